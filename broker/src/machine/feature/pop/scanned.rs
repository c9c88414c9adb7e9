//! Hand-outs of messages that the leader has looked at: filtered ones, and ones in order.
//!
//! The machine never reads a message, so it knows neither a message's group nor whether a filter wants it. The leader reads ahead of
//! the cursor and tells, in the command, what it saw: "of the offsets from … to …, these are wanted, and these are their message
//! groups". What stands at an offset never changes, so a [`Scan`] stays true however long it was under way; only where the cursor is
//! now, and which message groups are held, is decided here. A scan that begins behind the cursor came too early (the cursor was set
//! back) and is passed over whole.
//!
//! ```text
//!   next ──────────────── from ……… chosen ……… end        ignored: there is a gap
//!   from ……… next ……… chosen ……… end                     counts from `next` on
//!   a chosen message      handed out; or it waits for its message group; or the cursor stops at it (enough, or no room)
//!   any other             not wanted: done for this consumer group
//! ```

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::time::Timestamp;

use super::{Attempts, Flight, HandOut, IN_FLIGHT_MAX, Progress, order::WAITING_MAX};
use crate::machine::{
    command::{Scan, Verdict},
    ids::{MessageGroup, QueueId},
};

/// What a filter says of messages that were handed out or passed before, by place.
pub(super) struct Verdicts(BTreeMap<(QueueId, u64), bool>);

impl Verdicts {
    pub(super) fn new(verdicts: &[Verdict]) -> Self {
        Self(verdicts.iter().map(|verdict| ((verdict.queue, verdict.offset.0), verdict.wanted)).collect())
    }

    fn of(&self, queue: QueueId, offset: u64) -> Option<bool> {
        self.0.get(&(queue, offset)).copied()
    }

    fn in_queue(&self, queue: QueueId) -> impl Iterator<Item = (u64, bool)> + '_ {
        self.0.range((queue, 0)..=(queue, u64::MAX)).map(|((_, offset), wanted)| (*offset, *wanted))
    }
}

/// Message groups of which this receive has handed out all there was: what a scan finds of them behind that continues the batch.
#[derive(Default)]
pub(super) struct Batches(BTreeSet<(QueueId, MessageGroup)>);

impl Progress {
    /// Hands out what has timed out and is wanted; what is not wanted is done.
    pub(super) fn hand_out_wanted(
        &mut self,
        queue: QueueId,
        now: Timestamp,
        verdicts: &Verdicts,
        out: &mut HandOut<'_>,
        attempts: &mut Attempts,
    ) {
        for (offset, wanted) in verdicts.in_queue(queue) {
            let may_go = |flight: &Flight| flight.visible_at <= now && !self.is_last(*flight);
            let Some(flight) = self.in_flight.get(&offset).copied().filter(may_go) else { continue };
            if !wanted {
                self.settle(offset, flight, now);
                attempts.retire(flight.serial);
            } else if out.left() > 0 {
                self.deliver_again(queue, offset, flight, out, attempts);
            }
        }
    }

    /// Hands out what a scan found for a consumer group without order.
    pub(super) fn hand_out_scan(&mut self, scan: &Scan, end: u64, out: &mut HandOut<'_>) {
        let Some(scan_end) = self.scan_end(scan, end) else { return };
        for chosen in scan.chosen.iter().filter(|chosen| chosen.offset.0 < scan_end) {
            let offset = chosen.offset.0;
            if offset < self.next {
                continue;
            }
            self.next = offset;
            if out.left() == 0 || self.in_flight.len() >= IN_FLIGHT_MAX {
                return;
            }
            self.deliver_new(scan.queue, offset, out);
            self.next = offset + 1;
        }
        self.next = self.next.max(scan_end);
    }

    /// Hands out what message groups that are free have in flight or waiting, each from its first message on.
    pub(super) fn hand_out_free(
        &mut self,
        queue: QueueId,
        now: Timestamp,
        verdicts: Option<&Verdicts>,
        out: &mut HandOut<'_>,
        attempts: &mut Attempts,
        batches: &mut Batches,
    ) {
        let free: Vec<MessageGroup> = self.order.free(now).take(out.left()).collect();
        for group in free {
            // One more than may go out shows that there is more. A filter may pass over any number.
            let looked_at = if verdicts.is_some() { usize::MAX } else { out.left() + 1 };
            let places: Vec<u64> = self.order.places(group).take(looked_at).collect();
            let handed_out = places.into_iter().all(|offset| {
                let wanted = verdicts.map_or(Some(true), |verdicts| verdicts.of(queue, offset));
                match (wanted, self.in_flight.get(&offset).copied()) {
                    (None, _) => false,
                    (Some(false), flight) => {
                        self.pass_over(offset, flight, now);
                        flight.inspect(|flight| attempts.retire(flight.serial));
                        true
                    }
                    (Some(true), _) if out.left() == 0 => false,
                    (Some(true), Some(flight)) => {
                        self.deliver_again(queue, offset, flight, out, attempts);
                        true
                    }
                    (Some(true), None) if self.in_flight.len() >= IN_FLIGHT_MAX => false,
                    (Some(true), None) => {
                        let flight = self.deliver_new(queue, offset, out);
                        self.order.hold(group, offset, self.frees_at(flight));
                        true
                    }
                }
            });
            if handed_out {
                batches.0.insert((queue, group));
            }
        }
    }

    /// Hands out what a scan found for a consumer group that wants its messages in order.
    pub(super) fn hand_out_scan_in_order(
        &mut self,
        scan: &Scan,
        end: u64,
        out: &mut HandOut<'_>,
        batches: &mut Batches,
    ) {
        let Some(scan_end) = self.scan_end(scan, end) else { return };
        for chosen in scan.chosen.iter().filter(|chosen| chosen.offset.0 < scan_end) {
            let (offset, group) = (chosen.offset.0, chosen.group);
            if offset < self.next {
                continue;
            }
            self.next = offset;
            let place = (scan.queue, group);
            let may_go =
                self.order.is_new(group) || batches.0.contains(&place) || cfg!(feature = "mutant-order-overtaken");
            if may_go {
                if out.left() == 0 || self.in_flight.len() >= IN_FLIGHT_MAX {
                    return;
                }
                let flight = self.deliver_new(scan.queue, offset, out);
                self.order.hold(group, offset, self.frees_at(flight));
                batches.0.insert(place);
            } else {
                if self.order.waiting_count() >= WAITING_MAX {
                    return;
                }
                self.order.wait(group, offset);
            }
            self.next = offset + 1;
        }
        self.next = self.next.max(scan_end);
    }

    /// Where a scan ends that says something about what comes next; `end` is the queue's.
    fn scan_end(&self, scan: &Scan, end: u64) -> Option<u64> {
        (scan.from.0 <= self.next).then(|| scan.end.0.min(end))
    }

    fn pass_over(&mut self, offset: u64, flight: Option<Flight>, now: Timestamp) {
        if let Some(flight) = flight {
            self.in_flight.remove(&offset);
            self.forget(offset, flight);
        }
        self.order.settle(offset, now);
    }
}
