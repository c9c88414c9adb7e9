//! Receives of groups that filter or want order: the leader reads ahead, and the command carries what it saw.
//!
//! ```text
//!   filter, message groups ─▶ Scans::plan (under the lane's lock) ─▶ expects ─▶ ReceiveScanned ─▶ apply decides
//! ```
//! A plan reads a bounded number of records and then lets others run. Whatever it found that nobody else expects is proposed; if that is
//! nothing, the receive waits like any other. Cursors that fell far behind what was read follow by a command that hands out nothing,
//! and at the end of a poll by one for what no filter wanted.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use tokio::time::Instant;
use tracing::debug;

use super::{
    Failure, Leader,
    calls::{FilterText, Receive, Received},
    filter::{Filter, FilterKind, stored::StoredProperties},
    messages::{SECOND_LOOK, rest},
    names::{GroupFacts, TopicFacts},
    planner::{Expected, Expression, Lane},
};
use crate::{
    machine::{self, AttemptKey, Command, MessageGroup, Pointer, ReceiveScanned},
    scan::{Ask, Claimed, Look, Plan},
};

/// How often a receive plans anew at once when somebody else got what it expected.
const TRIES: u32 = 3;

/// Which messages a receive wants.
pub(super) struct Wanted {
    filter: Filter,
    /// How the client wrote it; `None` if every message is wanted.
    expression: Option<Expression>,
}

impl Wanted {
    /// Reads the filter of a call, which the service has checked.
    ///
    /// # Errors
    /// [`Failure::Filter`] if it cannot be read.
    pub(super) fn parse(filter: Option<&FilterText>) -> Result<Self, Failure> {
        let Some(FilterText { sql, text }) = filter else {
            return Ok(Self { filter: Filter::All, expression: None });
        };
        let kind = if *sql { FilterKind::Sql } else { FilterKind::Tag };
        let filter = Filter::parse(kind, text).map_err(Failure::Filter)?;
        let all = filter == Filter::All;
        Ok(Self { filter, expression: (!all).then(|| Expression { kind, text: text.clone() }) })
    }

    /// How the client wrote it, if it wants anything in particular.
    pub(super) fn expression(&self) -> Option<&Expression> {
        self.expression.as_ref()
    }
}

impl Look for Wanted {
    fn is_filter(&self) -> bool {
        self.expression.is_some()
    }

    fn may_want(&self, pointer: &Pointer) -> bool {
        self.filter.tag_hashes().is_none_or(|hashes| hashes.binary_search(&pointer.tag_hash).is_ok())
    }

    fn look(&self, message: &Bytes) -> Option<MessageGroup> {
        let wanted = self.expression.is_none()
            || StoredProperties::decode(message.clone()).is_some_and(|properties| self.filter.matches(&properties));
        wanted.then(|| message_group(message))
    }
}

/// The one field of a stored message that order is about. Everything else is skipped, bodies without a look.
#[derive(Clone, PartialEq, Message)]
struct Ordered {
    #[prost(message, optional, tag = "3")]
    system_properties: Option<OrderedProperties>,
}

#[derive(Clone, PartialEq, Message)]
struct OrderedProperties {
    #[prost(string, optional, tag = "17")]
    message_group: Option<String>,
}

fn message_group(message: &Bytes) -> MessageGroup {
    let ordered = Ordered::decode(message.clone()).ok();
    let name = ordered.and_then(|ordered| ordered.system_properties?.message_group);
    name.map_or(MessageGroup::NONE, |name| MessageGroup::of(&name))
}

impl Leader {
    /// Hands out messages past a filter or in order, waiting for some until `until`. Empty if none came.
    pub(super) async fn receive_scanned(
        &self,
        call: &Receive,
        until: Instant,
        topic: TopicFacts,
        group: GroupFacts,
        lane: &Arc<Lane>,
        wanted: &Wanted,
    ) -> Result<Received, Failure> {
        let max = u16::try_from(call.max).unwrap_or(u16::MAX).max(1);
        let receive = machine::Receive {
            group: group.id,
            topic: topic.id,
            max,
            invisible_ms: call.invisible_ms,
            first_queue: machine::QueueId(0),
            attempt: Some(AttemptKey::new(&call.attempt_id)),
            consumer: machine::consumer(&call.client_id),
        };
        let mut leadership = self.group.leader();
        let (mut parked, mut tries) = (None, 0);
        loop {
            let woken = self.shared.waiters().wait(topic.id, group.id);
            let released = lane.released();
            let now = self.clock.now();
            let (repeat, begun, timeout) = self.shared.read(|machine| {
                let attempt = receive.attempt.expect("set above");
                (
                    machine.attempt_in_flight(group.id, topic.id, attempt, now),
                    machine.is_subscribed(group.id, topic.id),
                    machine.next_timeout(group.id, topic.id),
                )
            });
            let mut look_again = timeout.map(|at| at.since(now).max(SECOND_LOOK / 4));
            if repeat || !begun {
                // The first receive of a group decides where it begins, before anything is read.
                let command = ReceiveScanned {
                    receive: machine::Receive { max: if begun { max } else { 0 }, ..receive.clone() },
                    scans: Vec::new(),
                    // With a filter nobody has asked about what was handed out to others.
                    verdicts: wanted.is_filter().then(Vec::new),
                };
                let received = self.hand_out(Command::ReceiveScanned(command), topic, group).await?;
                if !received.deliveries.is_empty() {
                    return Ok(received);
                }
                continue;
            }
            let (plan, expected, first_queue) = self.plan(topic, group, max, lane, wanted).await?;
            if let Some(pointer) = plan.rotten {
                let message = self.rescue(pointer).await.map(|record| record.bytes);
                lane.read_ahead(wanted.expression.as_ref()).await.scans().rescued(pointer, message);
                continue;
            }
            if let Some(spot) = plan.damaged {
                self.mend(spot).await?;
                continue;
            }
            let (count, more) = (plan.count(), plan.more);
            if count > 0 || plan.moves {
                let command = ReceiveScanned {
                    receive: machine::Receive { first_queue, ..receive.clone() },
                    scans: plan.scans,
                    verdicts: plan.verdicts,
                };
                let received = self.hand_out(Command::ReceiveScanned(command), topic, group).await?;
                drop(expected);
                if !received.deliveries.is_empty() {
                    return Ok(received);
                }
                tries += u32::from(count > 0);
                look_again = (tries >= TRIES).then_some(SECOND_LOOK);
                if look_again.is_none() && Instant::now() < until {
                    continue;
                }
            } else if more && Instant::now() < until {
                tokio::task::yield_now().await;
                continue;
            }
            if Instant::now() >= until {
                self.pass_over_unwanted(&receive, lane, wanted).await;
                return Ok(Received { deliveries: Vec::new(), now_ms: now.0 });
            }
            if parked.is_none() {
                parked = Some(self.park()?);
            }
            let again = look_again.map_or(until, |wait: Duration| until.min(Instant::now() + wait));
            rest(woken, released, again, &mut leadership).await?;
            tries = 0;
        }
    }

    /// Plans a receive and speaks for what it found.
    async fn plan(
        &self,
        topic: TopicFacts,
        group: GroupFacts,
        max: u16,
        lane: &Arc<Lane>,
        wanted: &Wanted,
    ) -> Result<(Plan, Option<Expected>, machine::QueueId), Failure> {
        let mut ahead = lane.read_ahead(wanted.expression.as_ref()).await;
        let (claimed, first) = lane.expected(topic.queues);
        let ask = Ask { group: group.id, topic: topic.id, first, now: self.clock.now(), max, claimed: &claimed };
        // Reads files from a request task, as handing out does, and for the same reason; a bounded number of records each time.
        let plan = ahead.scans().plan(&self.shared, &ask, wanted);
        let plan = plan.map_err(|error| Failure::Unreadable(error.to_string()))?;
        let expected = lane.expect(plan.expects.clone());
        Ok((plan, expected, first))
    }

    /// Lets the cursors follow over what no filter wanted. Best effort: what is not told now is read again by the next leader at most.
    async fn pass_over_unwanted(&self, receive: &machine::Receive, lane: &Lane, wanted: &Wanted) {
        if !wanted.is_filter() {
            return;
        }
        let scans = {
            let mut ahead = lane.read_ahead(wanted.expression.as_ref()).await;
            let claimed = Claimed::default();
            let (group, topic, first) = (receive.group, receive.topic, receive.first_queue);
            let ask = Ask { group, topic, first, now: self.clock.now(), max: 0, claimed: &claimed };
            ahead.scans().unwanted(&self.shared, &ask)
        };
        if scans.is_empty() {
            return;
        }
        let receive = machine::Receive { max: 0, attempt: None, ..receive.clone() };
        let command = Command::ReceiveScanned(ReceiveScanned { receive, scans, verdicts: Some(Vec::new()) });
        if let Err(error) = self.proposer.submit(vec![command]) {
            debug!(%error, "cursors did not follow what was passed over");
        }
    }
}
