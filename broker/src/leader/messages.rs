//! Messages on the leader: send, receive, ack, change and renew invisible durations.

use std::time::Duration;

use quorate_proto::{names::TopicName, time::Timestamp};
use quorate_raft::{LeaderView, ProposeError};
use tokio::{
    sync::{futures::Notified, oneshot, watch},
    time::Instant,
};
use tracing::warn;

use super::{
    Failure, Leader,
    calls::{
        Ack, Acked, AckedOne, ChangeInvisible, Changed, Delivered, Outgoing, Recall, Recalled, Receive, Received,
        Renew, Renewed, Send, Sent, SentOne,
    },
    mismatched,
    names::{GroupFacts, TopicFacts},
    propose::Outcome,
    scanned::Wanted,
};
use crate::{
    machine::{
        self, AttemptKey, Command, Delivery, GroupId, Handle, MessageGroup, QueueId, RecallHandle, Refusal, Reply,
        SendKey, StoredRecord, TopicId, TopicKind, TransactionHandle,
    },
    replica::{Applied, Found},
    scan::Look as _,
    waiters::Waiter,
};

/// How soon a receive looks again when a plan came to nothing, so that no mistake of planning becomes a busy loop.
pub(super) const SECOND_LOOK: Duration = Duration::from_millis(100);
/// How long a message rests that was handed out and could not be read.
const UNREAD: Duration = Duration::from_secs(5);

impl Leader {
    /// Stores messages of one topic in their order: each ordered one in the queue of its message group, all others in one queue.
    ///
    /// One result per message. A failure of the whole call is `NotLeader`, `Overloaded` or `DiskFull` only if no message was handed to the log.
    pub async fn send(&self, call: &Send) -> Result<Sent, Failure> {
        self.space.check()?;
        let topic = self.topic(&call.topic).await?;
        for message in &call.messages {
            self.takes(topic.kind, message)?;
        }
        let next_queue = self.planner.next_queue(topic.queues);
        let queue = |message: &Outgoing| {
            message.message_group.map_or(next_queue, |group| MessageGroup(group).queue(topic.queues))
        };
        let mut receipts = Vec::with_capacity(1);
        for part in parts(&call.messages, self.config.limits.batch_bytes_max) {
            let command = |message: &Outgoing| {
                let send = send_once(topic.id, queue(message), &call.client_id, message);
                self.send_command(send, message)
            };
            let submitted = self.proposer.submit(part.iter().map(command).collect());
            let failed = submitted.is_err();
            receipts.push(submitted);
            if failed {
                break;
            }
        }
        if cfg!(feature = "mutant-ack-before-commit") {
            return Ok(planted_answer(call, next_queue));
        }
        let applied = together(receipts).await?;
        let replies = applied.into_iter().flat_map(|applied| applied.replies);
        let results = replies.zip(&call.messages).map(|(reply, message)| self.sent_one(reply, topic.id, message));
        Ok(Sent { results: results.collect() })
    }

    fn send_command(&self, send: machine::Send, message: &Outgoing) -> Command {
        if let Some(asked_ms) = message.half_immunity_ms {
            let immunity_ms = if asked_ms == 0 { milliseconds(self.config.transactions.immunity) } else { asked_ms };
            return Command::SendHalf(machine::SendHalf { immunity_ms, send });
        }
        match message.due_ms {
            0 => Command::Send(send),
            due_ms => Command::SendDelayed(machine::SendDelayed { due: Timestamp(due_ms), send }),
        }
    }

    /// The topic takes messages of this kind, and a delayed one does not lie too far ahead.
    fn takes(&self, takes: TopicKind, message: &Outgoing) -> Result<(), Failure> {
        let sent = kind(message);
        if !takes.takes(sent) {
            return Err(Failure::TopicTakes { takes, sent });
        }
        if message.due_ms == 0 {
            return Ok(());
        }
        let (ahead, max) = (Timestamp(message.due_ms).since(self.clock.now()), self.config.limits.delay_max);
        if ahead > max { Err(Failure::DelayTooLong { ahead, max }) } else { Ok(()) }
    }

    fn sent_one(&self, reply: Reply, topic: TopicId, message: &Outgoing) -> SentOne {
        match reply {
            Reply::Sent { queue, offset, duplicate: _ } => {
                SentOne { queue: u32::from(queue.0), offset: offset.0, ..SentOne::default() }
            }
            Reply::Delayed { id, duplicate: _ } => {
                let handle = RecallHandle { topic, id, message_id: message.message_id.clone() };
                SentOne { recall_handle: handle.to_text(self.cluster), ..SentOne::default() }
            }
            Reply::Half { id, duplicate: _ } => {
                let handle = TransactionHandle { topic, id };
                SentOne { transaction_id: handle.to_text(self.cluster), ..SentOne::default() }
            }
            Reply::Refused(refusal) => SentOne { no: Some((self.to_no)(refusal.into())), ..SentOne::default() },
            reply @ (Reply::Received { .. }
            | Reply::Acked { .. }
            | Reply::Changed { .. }
            | Reply::Topic { .. }
            | Reply::Group { .. }
            | Reply::Done) => mismatched(&reply),
        }
    }

    /// Takes a delayed message back, if it is not visible yet.
    pub async fn recall(&self, call: &Recall) -> Result<Recalled, Failure> {
        let handle = RecallHandle::parse(&call.handle, self.cluster)?;
        let name = TopicName::parse(&call.topic).map_err(|_| Refusal::TopicNotFound)?;
        let topic = self.shared.read(|machine| machine.topic(&name).map(machine::Topic::id));
        if topic.ok_or(Refusal::TopicNotFound)? != handle.topic {
            return Err(Refusal::RecallInvalid.into());
        }
        let recall = machine::Recall { id: handle.id, topic: handle.topic };
        self.propose_one(Command::Recall(recall)).await.map(|_| Recalled { message_id: handle.message_id })
    }

    /// Hands out messages, waiting for some as long as the call says. Empty if none came.
    ///
    /// Dropped after the hand-out was proposed, the messages stay hidden until their time runs out; the same attempt id gets them back.
    pub async fn receive(&self, call: &Receive) -> Result<Received, Failure> {
        let until = Instant::now() + Duration::from_millis(call.wait_ms);
        let (topic, group) = (self.topic(&call.topic).await?, self.consumer_group(&call.group).await?);
        let lane = self.planner.lane(group.id, topic.id);
        let wanted = Wanted::parse(call.filter.as_ref())?;
        self.agree(&lane, &call.client_id, (&call.group, &call.topic), wanted.expression())?;
        self.begin(topic.id, group.id).await?;
        if group.fifo || wanted.is_filter() {
            return self.receive_scanned(call, until, topic, group, &lane, &wanted).await;
        }
        let attempt = AttemptKey::new(&call.attempt_id);
        let max = u16::try_from(call.max).unwrap_or(u16::MAX).max(1);
        let mut leadership = self.group.leader();
        let mut parked = None;
        loop {
            let woken = self.shared.waiters().wait(topic.id, group.id);
            let released = lane.released();
            let now = self.clock.now();
            let (ready, anyway, timeout) = self.shared.read(|machine| {
                (
                    machine.ready(group.id, topic.id, now),
                    // The first receive decides where a group begins that begins at the end.
                    machine.attempt_in_flight(group.id, topic.id, attempt, now)
                        || !machine.is_subscribed(group.id, topic.id),
                    machine.next_timeout(group.id, topic.id),
                )
            });
            let mut look_again = timeout.map(|at| at.since(now).max(SECOND_LOOK / 4));
            if let Some(claim) = lane.claim(ready, max, topic.queues, anyway) {
                let command = Command::Receive(machine::Receive {
                    group: group.id,
                    topic: topic.id,
                    max,
                    invisible_ms: call.invisible_ms,
                    first_queue: claim.first_queue,
                    attempt: Some(attempt),
                    consumer: machine::consumer(&call.client_id),
                });
                let received = self.hand_out(command, topic, group).await?;
                if !received.deliveries.is_empty() {
                    return Ok(received);
                }
                look_again = Some(SECOND_LOOK);
            }
            if Instant::now() >= until {
                return Ok(Received { deliveries: Vec::new(), now_ms: now.0 });
            }
            if parked.is_none() {
                parked = Some(self.park()?);
            }
            let again = look_again.map_or(until, |wait| until.min(Instant::now() + wait));
            rest(woken, released, again, &mut leadership).await?;
        }
    }

    /// Takes one of the places for receives that wait.
    pub(super) fn park(&self) -> Result<impl Drop + use<'_>, Failure> {
        let max = i64::try_from(self.config.limits.parked_receives_max).unwrap_or(i64::MAX);
        if self.metrics.parked.value() >= max {
            return Err(ProposeError::Overloaded.into());
        }
        Ok(self.metrics.parked.hold())
    }

    /// Proposes a receive and reads what it handed out.
    pub(super) async fn hand_out(
        &self,
        command: Command,
        topic: TopicFacts,
        group: GroupFacts,
    ) -> Result<Received, Failure> {
        let (reply, Applied { now, .. }) = self.propose_one(command).await?;
        let Reply::Received { deliveries } = reply else { mismatched(&reply) };
        let places: Vec<_> = deliveries.iter().map(|delivery| (delivery.queue, delivery.offset)).collect();
        // Reads files from a request task: the pages were just written or are about to be read in order, and a thread hop per
        // receive costs more than the rare page fault.
        let records = self.shared.records(topic.id, &places).map_err(|error| Failure::Unreadable(error.to_string()))?;
        let mut bytes = 0;
        let mut received = Received { deliveries: Vec::with_capacity(deliveries.len()), now_ms: now.0 };
        let (mut excess, mut unread) = (Vec::new(), Vec::new());
        for (delivery, found) in deliveries.into_iter().zip(records) {
            let Some(record) = self.recovered(found).await? else {
                unread.push(delivery);
                continue;
            };
            bytes += record.bytes.len() as u64;
            if bytes > self.config.limits.receive_bytes_max && !received.deliveries.is_empty() {
                excess.push(delivery);
                continue;
            }
            received.deliveries.push(Delivered {
                queue: u32::from(delivery.queue.0),
                offset: delivery.offset.0,
                attempt: delivery.attempt,
                handle: delivery.handle.to_text(self.cluster),
                stored_ms: record.stored_at.0,
                invisible_ms: u64::try_from(delivery.visible_at.since(now).as_millis()).unwrap_or(u64::MAX),
                record: record.bytes,
            });
        }
        let retries = received.deliveries.iter().filter(|delivered| delivered.attempt > 1).count() as u64;
        if retries > 0 {
            self.count_retries(topic.id, group.id, retries);
        }
        self.give_back(group.id, excess, Duration::ZERO);
        // Until retention has been applied here too, or a node is back that has the message.
        self.give_back(group.id, unread, UNREAD);
        Ok(received)
    }

    /// The message of a place, from this disk or another, once damage to its record has been mended. `None` if there is nothing to deliver.
    pub(super) async fn recovered(&self, mut found: Found) -> Result<Option<StoredRecord>, Failure> {
        loop {
            let spot = match found {
                Found::Record(record) => return Ok(Some(record)),
                // Retention has passed it between the hand-out and the read.
                Found::Gone => return Ok(None),
                // If nobody has it, it comes back when its invisible duration is over; by then another node may.
                Found::Rotten(pointer) => return Ok(self.rescue(pointer).await),
                Found::Damaged(spot) => spot,
            };
            self.mend(spot).await?;
            let read = self.shared.record(spot.topic, spot.queue, spot.offset);
            found = read.map_err(|error| Failure::Unreadable(error.to_string()))?;
        }
    }

    /// Takes deliveries back that are not in the answer, so that they do not count as attempts; they stay hidden for `hidden`. If this is not
    /// taken, they come back when their time runs out, and have counted.
    fn give_back(&self, group: GroupId, deliveries: Vec<Delivery>, hidden: Duration) {
        if deliveries.is_empty() {
            return;
        }
        let entries = deliveries.into_iter().map(|delivery| delivery.handle).collect();
        let given = machine::GiveBack { group, invisible_ms: milliseconds(hidden), entries };
        if let Err(error) = self.proposer.submit(vec![Command::GiveBack(given)]) {
            warn!(%error, "deliveries that are not in an answer stay hidden until their time runs out");
        }
    }

    fn count_retries(&self, topic: TopicId, group: GroupId, retries: u64) {
        let names = self.shared.read(|machine| {
            Some((machine.topic_by_id(topic)?.name().clone(), machine.group_by_id(group)?.name().clone()))
        });
        if let Some((topic, group)) = names {
            self.metrics.detail.traffic.retried(topic.as_str(), group.as_str(), retries);
        }
    }

    /// A message of a queue, from this disk or another. `None` if retention has passed it.
    ///
    /// # Errors
    /// The disk's, or no node has the message now.
    pub(super) async fn stored_at(
        &self,
        topic: TopicId,
        queue: QueueId,
        offset: machine::QueueOffset,
    ) -> Result<Option<StoredRecord>, Failure> {
        let found = self.shared.record(topic, queue, offset);
        let found = found.map_err(|error| Failure::Unreadable(error.to_string()))?;
        let gone = found == Found::Gone;
        match self.recovered(found).await? {
            None if !gone => Err(Failure::Unreadable("no node has it now".into())),
            record => Ok(record),
        }
    }

    /// Marks deliveries as done. One result per handle.
    pub async fn ack(&self, call: &Ack) -> Result<Acked, Failure> {
        let (topic, group) = self.known(&call.topic, &call.group)?;
        let mut results: Vec<Option<Refusal>> = Vec::with_capacity(call.handles.len());
        let mut entries = Vec::with_capacity(call.handles.len());
        for text in &call.handles {
            match self.handle(text, topic, group) {
                Ok(handle) => {
                    entries.push(handle);
                    results.push(None);
                }
                Err(refusal) => results.push(Some(refusal)),
            }
        }
        if !entries.is_empty() {
            let (reply, _) = self.propose_one(Command::Ack(machine::Ack { group, entries })).await?;
            let Reply::Acked { results: applied } = reply else { mismatched(&reply) };
            let parsed = results.iter_mut().filter(|result| result.is_none());
            for (result, applied) in parsed.zip(applied) {
                *result = applied.err();
            }
        }
        Ok(Acked {
            results: results
                .into_iter()
                .map(|refusal| AckedOne { no: refusal.map(|refusal| (self.to_no)(refusal.into())) })
                .collect(),
        })
    }

    /// Hides a delivery for another time and gives its new receipt.
    pub async fn change_invisible(&self, call: &ChangeInvisible) -> Result<Changed, Failure> {
        let (topic, group) = self.known(&call.topic, &call.group)?;
        let handle = self.handle(&call.handle, topic, group)?;
        let change = machine::ChangeInvisible { group, handle, invisible_ms: call.invisible_ms, renew: false };
        match self.propose_one(Command::ChangeInvisible(change)).await? {
            (Reply::Changed { handle, .. }, _) => Ok(Changed { handle: handle.to_text(self.cluster) }),
            (reply, _) => mismatched(&reply),
        }
    }

    /// Hides deliveries for longer without replacing their receipts. Per handle: whether it is still in flight.
    pub async fn renew(&self, call: &Renew) -> Result<Renewed, Failure> {
        let parsed: Vec<_> = call.handles.iter().map(|text| Handle::parse(text, self.cluster).ok()).collect();
        let command = |handle: &Handle| {
            Command::ChangeInvisible(machine::ChangeInvisible {
                group: handle.group,
                handle: *handle,
                invisible_ms: call.invisible_ms,
                renew: true,
            })
        };
        let applied = self.proposer.propose(parsed.iter().flatten().map(command).collect()).await?;
        let mut replies = applied.replies.into_iter();
        let mut renewed = |_| matches!(replies.next(), Some(Reply::Changed { .. }));
        Ok(Renewed { renewed: parsed.into_iter().map(|handle| handle.is_some_and(&mut renewed)).collect() })
    }

    /// A receipt handle that belongs to the topic and group of its call.
    pub(super) fn handle(&self, text: &str, topic: TopicId, group: GroupId) -> Result<Handle, Refusal> {
        let handle = Handle::parse(text, self.cluster)?;
        if handle.topic == topic && handle.group == group { Ok(handle) } else { Err(Refusal::ReceiptInvalid) }
    }
}

/// Waits until there may be something to hand out, or until `again`. Fails when this node does not lead any more.
pub(super) async fn rest(
    woken: Waiter,
    released: Notified<'_>,
    again: Instant,
    leadership: &mut watch::Receiver<LeaderView>,
) -> Result<(), Failure> {
    tokio::select! {
        () = woken => {}
        () = released => {}
        () = tokio::time::sleep_until(again) => {}
        changed = leadership.changed() => {
            let view = *leadership.borrow_and_update();
            if changed.is_err() || !view.serving {
                return Err(ProposeError::NotLeader { leader: view.leader }.into());
            }
        }
    }
    Ok(())
}

/// Which kind of message it is. The service lets none in that is two at once.
fn kind(message: &Outgoing) -> TopicKind {
    if message.half_immunity_ms.is_some() {
        return TopicKind::Transaction;
    }
    match (message.due_ms, message.message_group) {
        (0, None) => TopicKind::Normal,
        (0, Some(_)) => TopicKind::Fifo,
        (_, _) => TopicKind::Delay,
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn send_once(topic: TopicId, queue: QueueId, client_id: &str, message: &Outgoing) -> machine::Send {
    machine::Send {
        topic,
        queue,
        key: SendKey::new(topic, client_id, &message.message_id),
        body_crc: message.body_crc,
        tag_hash: message.tag_hash,
        record: message.record.clone().into(),
    }
}

/// Cuts the messages of a call into runs of at most `bytes_max`, or one message.
fn parts(messages: &[Outgoing], bytes_max: u64) -> impl Iterator<Item = &[Outgoing]> {
    let mut rest = messages;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |message: &&Outgoing| {
            bytes += message.record.len() as u64;
            bytes <= bytes_max
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (part, behind) = rest.split_at_checked(count)?;
        rest = behind;
        Some(part)
    })
}

/// The outcome of a call that went in several submissions: all applied, or the kind of failure that holds for the whole.
async fn together(
    receipts: Vec<Result<oneshot::Receiver<Outcome>, ProposeError>>,
) -> Result<Vec<Applied>, ProposeError> {
    let mut applied = Vec::with_capacity(receipts.len());
    let mut failed = None;
    let count = receipts.len();
    for (at, receipt) in receipts.into_iter().enumerate() {
        let outcome = match receipt {
            Ok(receipt) => receipt.await.unwrap_or(Err(ProposeError::Unknown)),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(part) => applied.push(part),
            // One part may be in the log and another not: the whole is unknown, and a repeat of it is recognised.
            Err(error) if count > 1 && (at > 0 || failed.is_some()) && Some(&error) != failed.as_ref() => {
                failed = Some(ProposeError::Unknown);
            }
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        None => Ok(applied),
        Some(error) if applied.is_empty() => Err(error),
        Some(_) => Err(ProposeError::Unknown),
    }
}

/// What the planted bug answers: everything is stored, at offset 0.
fn planted_answer(call: &Send, queue: QueueId) -> Sent {
    let stored = SentOne { queue: u32::from(queue.0), ..SentOne::default() };
    Sent { results: vec![stored; call.messages.len()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Outgoing {
        Outgoing { record: vec![0; bytes].into(), ..Outgoing::default() }
    }

    #[test]
    fn a_call_is_cut_into_runs_that_fit_an_entry() {
        let messages: Vec<_> = [4, 4, 9, 30, 1, 1].map(message).into();
        let sizes: Vec<usize> = parts(&messages, 10).map(<[_]>::len).collect();
        assert_eq!(sizes, [2, 1, 1, 2]);
        assert_eq!(parts(&[], 10).count(), 0);
    }

    fn receipt(outcome: Outcome) -> Result<oneshot::Receiver<Outcome>, ProposeError> {
        let (sender, receiver) = oneshot::channel();
        sender.send(outcome).expect("the receiver is held");
        Ok(receiver)
    }

    #[tokio::test]
    async fn a_call_of_several_parts_is_certain_only_if_all_parts_agree() {
        let applied = || Applied { now: quorate_proto::time::Timestamp(1), replies: Vec::new() };
        let not_leader = || ProposeError::NotLeader { leader: None };
        assert_eq!(
            together(vec![receipt(Ok(applied())), receipt(Ok(applied()))]).await,
            Ok(vec![applied(), applied()])
        );
        assert_eq!(together(vec![receipt(Err(not_leader()))]).await, Err(not_leader()));
        assert_eq!(together(vec![Err(ProposeError::Overloaded)]).await, Err(ProposeError::Overloaded));
        assert_eq!(together(vec![receipt(Err(not_leader())), receipt(Err(not_leader()))]).await, Err(not_leader()));
        for mixed in [
            vec![receipt(Ok(applied())), receipt(Err(not_leader()))],
            vec![receipt(Ok(applied())), Err(ProposeError::Overloaded)],
            vec![receipt(Err(ProposeError::Unknown)), receipt(Err(not_leader()))],
            vec![receipt(Err(not_leader())), receipt(Err(ProposeError::Unknown))],
        ] {
            assert_eq!(together(mixed).await, Err(ProposeError::Unknown));
        }
    }
}
