//! What a leader has to propose because time has passed or the floor is about to: the machine's plans, with the bodies they need.
//!
//! ```text
//!   machine.due ─▶ pointers ─▶ log ─▶ bodies to Deliver        machine.waiting ─▶ those below a floor ─▶ bodies to Carry
//! ```
//! Nothing here remembers what was proposed: what a command has changed is gone from the machine's list, and proposing it twice is
//! refused by apply, so a new leader begins with what the log says and nothing else. Used by the leader's tasks, and by the
//! simulation in their place.

use std::io;

use quorate_proto::time::Timestamp;
use quorate_raft::{Position, Term};

use crate::{
    machine::{DelayId, Pointer, Waiting},
    replica::{Found, Shared},
};

/// Waiting messages looked at under one lock, so that apply waits for well below a millisecond.
const LOOKED_AT: usize = 4096;

/// How much goes into one proposal.
#[derive(Clone, Copy, Debug)]
pub struct Portion {
    /// Most commands.
    pub commands_max: usize,
    /// Most bytes of bodies; one body always fits.
    pub bytes_max: u64,
}

/// Plans with bodies, for one node.
pub struct Schedule {
    shared: Shared,
    /// The planted bug: the leadership, and the first delayed message that it has seen itself.
    lost: Option<(Term, u64)>,
}

/// Some of the bodies that must go up before a floor.
pub struct GoingUp {
    /// To be carried; may be none.
    pub bodies: Vec<(Waiting, Found)>,
    /// Where to go on; `None` when everything was looked at.
    pub after: Option<Waiting>,
}

impl Schedule {
    /// The plans of the node with this machine and log.
    pub fn new(shared: Shared) -> Self {
        Self { shared, lost: None }
    }

    /// When something becomes ready; that may have passed already.
    pub fn next(&self) -> Option<Timestamp> {
        self.shared.read(|machine| machine.delay_stats().next_due)
    }

    /// What is due at `now`, the longest overdue first, as far as it fits; each with its body.
    ///
    /// # Errors
    /// The disk's, reading a body.
    pub fn due(&mut self, term: Term, now: Timestamp, portion: Portion) -> io::Result<Vec<(DelayId, Found)>> {
        let forgotten = self.forgotten(term);
        let due = self.shared.read(|machine| {
            let known = machine.due(now).filter(|(id, _)| id.number >= forgotten);
            fitting(known.map(|(id, message)| (id, message.pointer)), portion)
        });
        self.with_bodies(due)
    }

    /// Some of the messages behind `after` whose bodies lie below `floor`.
    ///
    /// A floor at a border that this machine has crossed may be proposed once every command of a walk from `None` to `None` was
    /// applied: bodies only ever move up, and every new one stands above. That holds whoever leads by then.
    ///
    /// # Errors
    /// The disk's, reading a body.
    pub fn carry(&self, floor: Position, after: Option<Waiting>, portion: Portion) -> io::Result<GoingUp> {
        let (below, after) = self.shared.read(|machine| {
            let (mut below, mut bytes, mut last) = (Vec::new(), 0, after);
            for (looked, (waiting, pointer)) in machine.waiting(after).enumerate() {
                let size = u64::from(pointer.size);
                let goes_up = pointer.position < floor;
                let full = below.len() >= portion.commands_max || bytes + size > portion.bytes_max;
                if looked >= LOOKED_AT || goes_up && full && !below.is_empty() {
                    return (below, last);
                }
                if goes_up {
                    below.push((waiting, pointer));
                    bytes += size;
                }
                last = Some(waiting);
            }
            (below, None)
        });
        Ok(GoingUp { bodies: self.with_bodies(below)?, after })
    }

    /// Bytes of the bodies that lie below `floor`.
    pub fn bytes_below(&self, floor: Position) -> u64 {
        let (mut bytes, mut after) = (0, None);
        loop {
            let last = self.shared.read(|machine| {
                let mut last = None;
                for (waiting, pointer) in machine.waiting(after).take(LOOKED_AT) {
                    last = Some(waiting);
                    bytes += if pointer.position < floor { u64::from(pointer.size) } else { 0 };
                }
                last
            });
            match last {
                Some(last) => after = Some(last),
                None => return bytes,
            }
        }
    }

    fn with_bodies<T>(&self, places: Vec<(T, Pointer)>) -> io::Result<Vec<(T, Found)>> {
        places.into_iter().map(|(what, pointer)| Ok((what, self.shared.stored(pointer)?))).collect()
    }

    /// With the planted bug, a leader knows only the delayed messages that came while it led; this is the first of those.
    fn forgotten(&mut self, term: Term) -> u64 {
        if !cfg!(feature = "mutant-timer-lost-at-failover") {
            return 0;
        }
        match self.lost {
            Some((lost, first)) if lost == term => first,
            Some(_) | None => {
                let first = self.shared.read(|machine| machine.delay_stats().next_number);
                self.lost = Some((term, first));
                first
            }
        }
    }
}

/// As many as a portion holds, and at least one.
fn fitting<T>(items: impl Iterator<Item = (T, Pointer)>, portion: Portion) -> Vec<(T, Pointer)> {
    let (mut fitting, mut bytes) = (Vec::new(), 0);
    for (what, pointer) in items {
        bytes += u64::from(pointer.size);
        if !fitting.is_empty() && (bytes > portion.bytes_max || fitting.len() >= portion.commands_max) {
            break;
        }
        fitting.push((what, pointer));
    }
    fitting
}
