//! Dead letters for operators: how many there are, what they say, and back into a topic.
//!
//! A dead letter topic is a topic like others and keeps what was redriven until retention takes it; the machine knows which ones were.
//! Every call looks at a bounded number of them and tells where to go on.

use quorate_proto::names::{GroupName, TopicName};

use super::{
    Failure, Leader,
    calls::{
        DeadLetterDetail, DeadLetterPlace, DeadLetterTopic, DeadLetterTopics, DeadLetters, ListDeadLetters,
        RedriveDeadLetters, RedrivenOne, RedrivenSome, ShowDeadLetters,
    },
    letter::{self, Letter, Revived},
    names::{TopicFacts, topic_facts},
};
use crate::machine::{self, Command, Machine, QueueId, QueueOffset, Refusal, Reply, Topic, TopicId};

/// Dead letters looked at by one call.
const LOOKED_AT: u64 = 256;
/// Bytes of them; one always fits.
const BYTES_MAX: u64 = 16 << 20;

/// What a dead letter becomes, or why it does not.
enum Planned {
    Move { message_id: String, topic: TopicName, command: machine::Redrive },
    No { message_id: String, failure: Failure },
}

impl Leader {
    /// The dead letter topics there are.
    pub async fn list_dead_letters(&self, _call: &ListDeadLetters) -> Result<DeadLetterTopics, Failure> {
        self.group.confirm_leadership().await?;
        let topics = self.shared.read(|machine| {
            machine
                .topics()
                .filter_map(|topic| Some((topic.name().dead_letters_of()?.to_owned(), topic.id())))
                .collect()
        });
        let detail = |(group, id): (String, TopicId)| self.shared.read(|machine| topic_detail(machine, group, id));
        let topics: Vec<(String, TopicId)> = topics;
        Ok(DeadLetterTopics { topics: topics.into_iter().filter_map(detail).collect() })
    }

    /// Some dead letters of a group, in the order in which they died.
    pub async fn show_dead_letters(&self, call: &ShowDeadLetters) -> Result<DeadLetters, Failure> {
        self.group.confirm_leadership().await?;
        let topic = self.dead_letter_topic(&call.group)?;
        let queues: Vec<(u16, u64, u64)> = self.shared.read(|machine| {
            let topic = machine.topic_by_id(topic);
            topic.map(ranges).unwrap_or_default()
        });
        let (mut found, mut looked_at, mut bytes) = (DeadLetters::default(), 0, 0);
        let after = call.after.as_ref();
        for (queue, min, end) in queues {
            let first = match after {
                Some(after) if u32::from(queue) < after.queue => continue,
                Some(after) if u32::from(queue) == after.queue => min.max(after.offset.saturating_add(1)),
                Some(_) | None => min,
            };
            for offset in first..end {
                if looked_at >= LOOKED_AT || bytes >= BYTES_MAX || found.letters.len() >= call.max as usize {
                    found.more = true;
                    return Ok(found);
                }
                looked_at += 1;
                found.last = Some(DeadLetterPlace { queue: queue.into(), offset });
                let Some(record) = self.stored_at(topic, QueueId(queue), QueueOffset(offset)).await? else { continue };
                bytes += record.bytes.len() as u64;
                let Some(letter) = letter::read(record.bytes) else { continue };
                let died_ms = record.stored_at.0;
                if !is_wanted(call, &letter, died_ms) {
                    continue;
                }
                let redriven =
                    self.shared.read(|machine| machine.is_redriven(topic, QueueId(queue), QueueOffset(offset)));
                found.letters.push(detail(letter, DeadLetterPlace { queue: queue.into(), offset }, died_ms, redriven));
            }
        }
        Ok(found)
    }

    /// Stores dead letters in a topic again, each at most once for ever. One result per place, in order.
    pub async fn redrive_dead_letters(&self, call: &RedriveDeadLetters) -> Result<RedrivenSome, Failure> {
        let from = self.dead_letter_topic(&call.group)?;
        let mut results = Vec::with_capacity(call.places.len());
        let (mut waiting, mut bytes) = (Vec::new(), 0);
        for place in &call.places {
            let planned = self.plan_redrive(from, place, &call.to).await;
            if let Planned::Move { command, .. } = &planned {
                bytes += command.record.bytes().len() as u64;
            }
            waiting.push(planned);
            if bytes >= self.config.limits.batch_bytes_max {
                results.extend(self.redrive(std::mem::take(&mut waiting)).await?);
                bytes = 0;
            }
        }
        results.extend(self.redrive(waiting).await?);
        Ok(RedrivenSome { results })
    }

    async fn redrive(&self, planned: Vec<Planned>) -> Result<Vec<RedrivenOne>, Failure> {
        let command = |planned: &Planned| match planned {
            Planned::Move { command, .. } => Some(Command::Redrive(command.clone())),
            Planned::No { .. } => None,
        };
        let commands: Vec<Command> = planned.iter().filter_map(command).collect();
        let mut replies = Vec::new().into_iter();
        if !commands.is_empty() {
            replies = self.proposer.propose(commands).await?.replies.into_iter();
        }
        let result = |planned| match planned {
            Planned::No { message_id, failure } => self.not_redriven(message_id, failure),
            Planned::Move { message_id, topic, .. } => match replies.next() {
                Some(Reply::Sent { queue, offset, .. }) => {
                    self.metrics.redriven.add(1);
                    let place = Some(DeadLetterPlace { queue: queue.0.into(), offset: offset.0 });
                    RedrivenOne { message_id, topic: topic.to_string(), place, ..RedrivenOne::default() }
                }
                Some(Reply::Refused(refusal)) => self.not_redriven(message_id, refusal.into()),
                Some(reply) => super::mismatched(&reply),
                None => unreachable!("the proposer gives one reply per command"),
            },
        };
        Ok(planned.into_iter().map(result).collect())
    }

    fn not_redriven(&self, message_id: String, failure: Failure) -> RedrivenOne {
        let before = failure == Failure::Refused(Refusal::Redriven);
        RedrivenOne { message_id, before, no: Some((self.to_no)(failure)), ..RedrivenOne::default() }
    }

    async fn plan_redrive(&self, from: TopicId, place: &DeadLetterPlace, to: &str) -> Planned {
        let mut message_id = String::new();
        match self.try_plan_redrive(from, place, to, &mut message_id).await {
            Ok((topic, command)) => Planned::Move { message_id, topic, command },
            Err(failure) => Planned::No { message_id, failure },
        }
    }

    async fn try_plan_redrive(
        &self,
        from: TopicId,
        place: &DeadLetterPlace,
        to: &str,
        message_id: &mut String,
    ) -> Result<(TopicName, machine::Redrive), Failure> {
        let queue = QueueId(u16::try_from(place.queue).map_err(|_| Refusal::QueueNotFound)?);
        let offset = QueueOffset(place.offset);
        let (min, end) = self.shared.read(|m| m.queue_range(from, queue)).ok_or(Refusal::QueueNotFound)?;
        let out_of_range = Refusal::OffsetOutOfRange { min, end };
        if offset < min || offset >= end {
            return Err(out_of_range.into());
        }
        let record = self.stored_at(from, queue, offset).await?.ok_or(out_of_range)?;
        let letter = letter::read(record.bytes.clone()).ok_or_else(not_a_message)?;
        *message_id = letter.message_id;
        if self.shared.read(|machine| machine.is_redriven(from, queue, offset)) {
            return Err(Refusal::Redriven.into());
        }
        let origin = letter.origin.map(|origin| origin.topic).unwrap_or_default();
        let name = if to.is_empty() { &origin } else { to };
        if name.is_empty() {
            return Err(Failure::NoOrigin);
        }
        let name = TopicName::parse(name).map_err(|_| Refusal::TopicNotFound)?;
        let TopicFacts { id: to, queues, kind } =
            self.shared.read(|machine| machine.topic(&name).map(topic_facts)).ok_or(Refusal::TopicNotFound)?;
        let Revived { record, tag_hash, message_group, kind: sent } =
            letter::revive(record.bytes, &name).ok_or_else(not_a_message)?;
        if !kind.takes(sent) {
            return Err(Failure::TopicTakes { takes: kind, sent });
        }
        let to_queue = message_group.map_or_else(|| self.planner.next_queue(queues), |group| group.queue(queues));
        Ok((name, machine::Redrive { from, queue, offset, to, to_queue, tag_hash, record: record.into() }))
    }

    fn dead_letter_topic(&self, group: &str) -> Result<TopicId, Failure> {
        let group = GroupName::parse(group).map_err(|_| Refusal::GroupNotFound)?;
        let name = TopicName::dead_letters(&group);
        self.shared.read(|machine| match machine.topic(&name) {
            Some(topic) => Ok(topic.id()),
            None if machine.group(&group).is_none() => Err(Refusal::GroupNotFound.into()),
            None => Err(Failure::NoDeadLetters),
        })
    }
}

fn not_a_message() -> Failure {
    Failure::Unreadable("it is no message".into())
}

fn ranges(topic: &Topic) -> Vec<(u16, u64, u64)> {
    let range = |queue| topic.range(QueueId(queue)).map(|(min, end)| (queue, min.0, end.0));
    (0..topic.queues()).filter_map(range).collect()
}

fn topic_detail(machine: &Machine, group: String, id: TopicId) -> Option<DeadLetterTopic> {
    let topic = machine.topic_by_id(id)?;
    let queues = ranges(topic);
    let letters = queues.iter().map(|(_, min, end)| end - min).sum();
    let redriven = queues.iter().map(|(queue, ..)| machine.redriven(id, QueueId(*queue))).sum();
    Some(DeadLetterTopic { group, topic: topic.name().to_string(), letters, redriven })
}

fn is_wanted(call: &ShowDeadLetters, letter: &Letter, died_ms: u64) -> bool {
    let origin = letter.origin.as_ref().map_or("", |origin| origin.topic.as_str());
    let matches = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
    matches(&call.topic, origin)
        && matches(&call.tag, &letter.tag)
        && matches(&call.message_id, &letter.message_id)
        && (call.key.is_empty() || letter.keys.contains(&call.key))
        && call.since_ms.is_none_or(|since| died_ms >= since)
        && call.until_ms.is_none_or(|until| died_ms < until)
}

fn detail(letter: Letter, place: DeadLetterPlace, died_ms: u64, redriven: bool) -> DeadLetterDetail {
    let Letter { message_id, keys, tag, body_bytes, origin } = letter;
    let origin = origin.unwrap_or_default();
    DeadLetterDetail {
        place: Some(place),
        message_id,
        keys,
        tag,
        body_bytes,
        died_ms,
        redriven,
        topic: origin.topic,
        queue: origin.queue,
        offset: origin.offset,
        sent_ms: origin.stored_ms,
        attempts: origin.attempts,
        reason: origin.reason,
        consumer: origin.consumer,
    }
}
