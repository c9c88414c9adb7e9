//! Where a consumer group stands, who is there, whether they agree, and how an operator puts it somewhere else.
//!
//! ```text
//!   machine: offsets, lag, dead letters ─┐
//!   log: store time of the oldest        ├─▶ GroupState          consumers: those that this leader has heard of in the last minute,
//!   planner: consumers and filters ──────┘                       by their settings, their receives and their pulls
//! ```
//! The numbers are read under one lock, after the leadership was confirmed, so each message counts once and none is negative. A reset is
//! planned by reading and done by one entry of the log, all queues or none.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::{admin, time::Timestamp};
use tokio::time::Instant;
use tracing::warn;

use super::{
    Failure, Leader,
    calls::{DescribeGroup, Done, Farewell, GroupStart, GroupState, ResetOffsets, ResetSome, Subscribe},
    names::{group_detail, group_name, topic_name},
    planner::{self, Differs, Expression, User},
    pull::Lane,
    scanned::Wanted,
};
use crate::{
    config::Filters,
    machine::{self, Command, Group, GroupId, Machine, Move, QueueId, QueueOffset, Refusal, Reply, TopicId},
};

/// Queues whose oldest message is looked up; of a group with more, the age of the rest is not told.
const AGES_MAX: usize = 1024;

impl Leader {
    /// Everything about a consumer group.
    pub async fn describe_group(&self, call: &DescribeGroup) -> Result<GroupState, Failure> {
        let name = group_name(&call.name)?;
        self.group.confirm_leadership().await?;
        self.clock.follow(self.shared.log_now());
        let (now, heard) = (self.clock.now(), Instant::now());
        let group = self.shared.read(|machine| machine.group(&name).map(Group::id)).ok_or(Refusal::GroupNotFound)?;
        let users: BTreeMap<TopicId, Vec<(String, User)>> = self.planner.users(group, heard).into_iter().collect();
        let state = self.shared.read(|machine| {
            let detail = group_detail(machine.group_by_id(group)?);
            Some((detail, topics(machine, group, &users, now)))
        });
        let (detail, mut found) = state.ok_or(Refusal::GroupNotFound)?;
        for (id, topic) in &mut found {
            topic.consumers = users.get(id).map(|users| consumers(users, heard)).unwrap_or_default();
            topic.differ = differ(users.get(id));
        }
        self.add_ages(&mut found).await;
        let topics = found.into_iter().map(|(_, topic)| topic).collect();
        Ok(GroupState { group: Some(detail), now_ms: now.0, topics })
    }

    /// Looks up when the first message of each queue that is not done was stored. What cannot be read now has no age.
    async fn add_ages(&self, topics: &mut [(TopicId, admin::GroupTopic)]) {
        let mut looked_up = 0;
        for (id, topic) in topics {
            for queue in &mut topic.queues {
                if queue.ready + queue.waiting + queue.in_flight == 0 || looked_up >= AGES_MAX {
                    continue;
                }
                looked_up += 1;
                let Ok(number) = u16::try_from(queue.id) else { continue };
                let oldest = self.stored_at(*id, QueueId(number), QueueOffset(queue.committed)).await;
                queue.oldest_ms = oldest.ok().flatten().map(|record| wire_ms(record.stored_at));
            }
        }
    }

    /// Puts a group somewhere else in a topic, or says what that would mean. What is in flight in those queues is forgotten.
    ///
    /// Refused whole if a queue does not hold a place that is named; nothing has changed then.
    pub async fn reset_offsets(&self, call: &ResetOffsets) -> Result<ResetSome, Failure> {
        let (topic, group) = (topic_name(&call.topic)?, group_name(&call.group)?);
        self.group.confirm_leadership().await?;
        let topic = self.known_topic(&topic)?;
        let group = self.shared.read(|machine| machine.group(&group).map(Group::id)).ok_or(Refusal::GroupNotFound)?;
        let places = self.places(topic, call).await?;
        let plan = self.shared.read(|machine| {
            places.iter().map(|(queue, offset)| planned(machine, group, topic, *queue, *offset)).collect()
        });
        let plan: Option<Vec<admin::ResetQueue>> = plan;
        let queues = plan.ok_or(Refusal::QueueNotFound)?;
        if call.dry_run {
            return Ok(ResetSome { queues });
        }
        let reset = |(queue, offset)| Command::ResetOffset(machine::ResetOffset { group, topic, queue, offset });
        let applied = self.proposer.propose(places.into_iter().map(reset).collect()).await?;
        for reply in applied.replies {
            if let Reply::Refused(refusal) = reply {
                return Err(refusal.into());
            }
        }
        Ok(ResetSome { queues })
    }

    /// Where a reset goes to, each within its queue.
    async fn places(&self, topic: TopicId, call: &ResetOffsets) -> Result<Vec<(QueueId, QueueOffset)>, Failure> {
        let mut places = Vec::new();
        for place in &call.places {
            let lane = self.lane_of(topic, place.queue)?;
            let (min, end) = self.range(lane)?;
            if !(min..=end).contains(&place.offset) {
                return Err(Refusal::OffsetOutOfRange { min: QueueOffset(min), end: QueueOffset(end) }.into());
            }
            places.push((lane.queue, QueueOffset(place.offset)));
        }
        let Some(to) = call.to.as_ref().filter(|_| places.is_empty()) else { return Ok(places) };
        let queues = self.shared.read(|machine| machine.topic_by_id(topic).map_or(0, machine::Topic::queues));
        for queue in (0..queues).map(QueueId) {
            let lane = Lane { topic, queue };
            let (min, end) = self.range(lane)?;
            let offset = match *to {
                GroupStart { end: true, .. } => end,
                GroupStart { since_ms: Some(ms), .. } => self.first_since(lane, (min, end), Timestamp(ms)).await?,
                GroupStart { .. } => min,
            };
            places.push((queue, QueueOffset(offset)));
        }
        Ok(places)
    }

    /// A consumer is there and is going to receive so. Topics and groups that are not there yet are passed over.
    pub async fn subscribe(&self, call: &Subscribe) -> Result<Done, Failure> {
        for to in &call.topics {
            let Ok((topic, group)) = self.known(&to.topic, &call.group) else { continue };
            let wanted = Wanted::parse(to.filter.as_ref())?;
            let lane = self.planner.lane(group, topic);
            if call.pulls {
                lane.note_pull(&call.client_id, wanted.expression(), Instant::now());
            } else {
                self.agree(&lane, &call.client_id, (&call.group, &to.topic), wanted.expression())?;
            }
        }
        Ok(Done {})
    }

    /// A consumer goes: from now on nobody is compared with it.
    pub async fn farewell(&self, call: &Farewell) -> Result<Done, Failure> {
        let name = group_name(&call.group)?;
        if let Some(group) = self.shared.read(|machine| machine.group(&name).map(Group::id)) {
            self.planner.forget(group, &call.client_id);
        }
        Ok(Done {})
    }

    /// Takes note of a consumer, and says so the first time that one of its group filters otherwise; refuses it if that is not allowed.
    pub(super) fn agree(
        &self,
        lane: &planner::Lane,
        client_id: &str,
        (group, topic): (&str, &str),
        expression: Option<&Expression>,
    ) -> Result<(), Failure> {
        let reject = self.config.groups.filters == Filters::Reject;
        let Some(Differs { other, expression: theirs, first }) =
            lane.note(client_id, expression, Instant::now(), reject)
        else {
            return Ok(());
        };
        let (ours, theirs) = (shown(expression), shown(theirs.as_ref()));
        if first {
            warn!(
                group,
                topic,
                client_id,
                filter = ours,
                other_client_id = other,
                other_filter = theirs,
                "consumers of one group filter differently: what one does not want, none of them gets"
            );
        }
        if reject {
            return Err(Failure::FiltersDiffer { group: group.into(), topic: topic.into(), other, theirs, ours });
        }
        Ok(())
    }
}

/// The topics that a group has begun in, or has consumers for.
fn topics(
    machine: &Machine,
    group: GroupId,
    users: &BTreeMap<TopicId, Vec<(String, User)>>,
    now: Timestamp,
) -> Vec<(TopicId, admin::GroupTopic)> {
    let begun = machine.group_by_id(group).into_iter().flat_map(Group::topics);
    let heard = users.iter().filter(|(_, users)| !users.is_empty()).map(|(topic, _)| *topic);
    let all: BTreeSet<TopicId> = begun.chain(heard).collect();
    let delayed = machine.delayed_by_queue(|topic| all.contains(&topic));
    let topic = |id: TopicId| {
        let topic = machine.topic_by_id(id)?;
        let queue = |queue: QueueId| {
            let (min, end) = topic.range(queue)?;
            let lag = machine.lag(group, id, queue, now)?;
            Some(admin::GroupQueue {
                id: queue.0.into(),
                min: min.0,
                max: end.0,
                committed: machine.place(group, id, queue)?.0,
                ready: lag.ready,
                waiting: lag.waiting,
                in_flight: lag.in_flight,
                delayed: delayed.get(&(id, queue)).copied().unwrap_or(0),
                dead: machine.dead(group, id, queue),
                oldest_ms: None,
            })
        };
        let queues = (0..topic.queues()).map(QueueId).filter_map(queue).collect();
        Some((id, admin::GroupTopic { name: topic.name().to_string(), queues, ..admin::GroupTopic::default() }))
    };
    all.into_iter().filter_map(topic).collect()
}

fn consumers(users: &[(String, User)], now: Instant) -> Vec<admin::GroupConsumer> {
    let consumer = |(client_id, user): &(String, User)| admin::GroupConsumer {
        client_id: client_id.clone(),
        pulls: user.pulls,
        filter: shown(user.expression.as_ref()),
        silent_ms: u64::try_from(now.saturating_duration_since(user.heard).as_millis()).unwrap_or(u64::MAX),
    };
    users.iter().map(consumer).collect()
}

fn differ(users: Option<&Vec<(String, User)>>) -> bool {
    let filters = users.into_iter().flatten().filter(|(_, user)| !user.pulls).map(|(_, user)| &user.expression);
    let mut filters = filters;
    filters.next().is_some_and(|first| filters.any(|other| other != first))
}

fn planned(
    machine: &Machine,
    group: GroupId,
    topic: TopicId,
    queue: QueueId,
    to: QueueOffset,
) -> Option<admin::ResetQueue> {
    let Move { skipped, again, forgotten } = machine.move_to(group, topic, queue, to)?;
    let begins = machine.cursor(group, topic, queue)?.next;
    let from = machine.place(group, topic, queue).unwrap_or(begins);
    Some(admin::ResetQueue { id: queue.0.into(), from: from.0, to: to.0, skipped, again, forgotten })
}

fn shown(expression: Option<&Expression>) -> String {
    expression.map_or_else(|| "every message".to_owned(), ToString::to_string)
}

fn wire_ms(at: Timestamp) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}
