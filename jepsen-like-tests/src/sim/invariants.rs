//! What must hold at every step, checked as things happen.
//!
//! The [`Witness`] hears of every start, cut, apply, image and answer, and looks at every node some hundred times a second. It keeps
//! the one history that all nodes must agree on: the first node to execute an entry writes it down, everyone later is held
//! against it. It judges by what the nodes do and by what the clients were told, and keeps going after a violation, so that
//! the first ones are printed together with the trace.
//!
//! | Name | What it says |
//! |---|---|
//! | `same-log` | one index: one log id, one position, one payload, one running hash, on every node (LAW-SAME) |
//! | `in-order` | a machine executes entries in log order, each once, and only while its node runs |
//! | `same-image` | images at one border are equal byte for byte on every node, and what is loaded was saved by somebody |
//! | `law-order` | floor ≤ synced ≤ end (while anything is in the log); applied ≤ committed ≤ last (LAW-ORDER) |
//! | `commit-forward` | the committed entry of a running node never goes back |
//! | `durable` | what was committed and synced here is here again after any cut |
//! | `one-leader` | a (term, node) ballot has one leader; a new one serves only with everything acknowledged under lower ballots |
//! | `body` | a committed payload reads back from the log as it was proposed, down to the floor |
//! | `ack-order` | an acknowledged entry stands behind everything acknowledged before it was asked for |
//! | `fresh-read` | a confirmed read sees everything acknowledged before it was asked for |
//! | `no-crash` | no node ends by itself or refuses to start without a fault that explains it |

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use quorate_raft::{CommittedEntry, GroupStatus, LogId, LogIndex, Position};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    dice::digest,
    trace::{Event, Trace},
};

/// Violations kept; one bug breaks many rules at once.
const KEPT: usize = 20;

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Virtual time since the start of the run.
    pub at: Duration,
    /// Name of the rule, as in the table above.
    pub rule: &'static str,
    /// What was seen, with the values.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6} {}: {}", self.at.as_secs_f64(), self.rule, self.what)
    }
}

/// An executed entry as the first node executed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its log id.
    pub id: LogId,
    /// Position of its payload.
    pub position: Position,
    /// Length of its payload.
    pub len: u32,
    /// crc32c of its payload.
    pub crc: u32,
}

/// What one running node was last seen with.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    run: u32,
    running: bool,
    ready: bool,
    applied: Option<LogIndex>,
    committed: Option<LogIndex>,
    synced: Position,
    floor: Position,
    role: (u64, u16, bool),
    /// The last executed entry that this node had synced and knew to be committed, over all its lives.
    durable: Option<LogId>,
}

/// Everything the rules need.
#[derive(Debug)]
struct Oracle {
    started: Instant,
    trace: Trace,
    aloud: bool,
    entries: Vec<Option<Known>>,
    ids: Vec<Option<LogId>>,
    chains: Vec<Option<u32>>,
    images: BTreeMap<Position, Bytes>,
    nodes: BTreeMap<u16, Seen>,
    /// Highest acknowledged index per ballot of its entry.
    acked: BTreeMap<(u64, u64), LogIndex>,
    acked_last: Option<LogIndex>,
    /// The ballots that were seen serving, and whether their start was judged.
    ballots: BTreeMap<(u64, u64), u16>,
    violations: Vec<Violation>,
    tally: Tally,
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Acknowledged requests, and those answered "not now" or not at all.
    pub acked: u64,
    pub not_now: u64,
    pub unknown: u64,
    /// Confirmed reads.
    pub reads: u64,
    pub kills: u64,
    pub power_cuts: u64,
    pub wipes: u64,
    pub cuts: u64,
    /// Leaders that served.
    pub elections: u64,
    /// Terms in which two nodes served, one after the other (the higher node id wins within a term).
    pub shared_terms: u64,
    pub images_saved: u64,
    /// Images that a starting node went on from, and that a running node got from a leader.
    pub images_loaded: u64,
    pub images_installed: u64,
    /// Damaged files and failing disks.
    pub rots: u64,
    pub queue_rots: u64,
    pub bad_disks: u64,
    pub floors: u64,
    /// Payloads read back from logs.
    pub bodies: u64,
}

impl Tally {
    /// Counts what is an event of its own; the rest is counted where it is judged.
    fn count(&mut self, event: Event) {
        let counter = match event {
            Event::Kill { .. } => &mut self.kills,
            Event::PowerCut { .. } => &mut self.power_cuts,
            Event::Wipe { .. } => &mut self.wipes,
            Event::Rot { .. } => &mut self.rots,
            Event::QueueRot { .. } => &mut self.queue_rots,
            Event::Disk { well: false, .. } => &mut self.bad_disks,
            Event::Link { open: false, .. } => &mut self.cuts,
            Event::Save { .. } => &mut self.images_saved,
            Event::Floor { .. } => &mut self.floors,
            Event::NotNow { .. } => &mut self.not_now,
            Event::Unknown { .. } => &mut self.unknown,
            Event::Start { .. }
            | Event::Ready { .. }
            | Event::Stop { .. }
            | Event::Crash { .. }
            | Event::Disk { .. }
            | Event::Link { .. }
            | Event::Weather { .. }
            | Event::Sync { .. }
            | Event::Fault { .. }
            | Event::Role { .. }
            | Event::Apply { .. }
            | Event::Chain { .. }
            | Event::Load { .. }
            | Event::Invoke { .. }
            | Event::Done { .. }
            | Event::Heal
            | Event::Quiet { .. } => return,
        };
        *counter += 1;
    }

    /// The counts with their names.
    pub fn named(&self) -> [(&'static str, u64); 18] {
        let Self { acked, not_now, unknown, reads, kills, power_cuts, wipes, cuts, elections, shared_terms, .. } =
            *self;
        let Self { images_saved, images_loaded, images_installed, rots, queue_rots, bad_disks, floors, bodies, .. } =
            *self;
        [
            ("acked", acked),
            ("not now", not_now),
            ("unknown", unknown),
            ("reads", reads),
            ("kills", kills),
            ("power cuts", power_cuts),
            ("wipes", wipes),
            ("links cut", cuts),
            ("leaders", elections),
            ("terms with two", shared_terms),
            ("images saved", images_saved),
            ("images loaded", images_loaded),
            ("images installed", images_installed),
            ("rotten files", rots),
            ("rotten queues", queue_rots),
            ("bad disks", bad_disks),
            ("floor moves", floors),
            ("bodies read back", bodies),
        ]
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.acked += other.acked;
        self.not_now += other.not_now;
        self.unknown += other.unknown;
        self.reads += other.reads;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.wipes += other.wipes;
        self.cuts += other.cuts;
        self.elections += other.elections;
        self.shared_terms += other.shared_terms;
        self.images_saved += other.images_saved;
        self.images_loaded += other.images_loaded;
        self.images_installed += other.images_installed;
        self.rots += other.rots;
        self.queue_rots += other.queue_rots;
        self.bad_disks += other.bad_disks;
        self.floors += other.floors;
        self.bodies += other.bodies;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.named().map(|(name, count)| format!("{count} {name}"));
        f.write_str(&words.join(", "))
    }
}

/// Handle of the one witness of a run. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Witness {
    oracle: Arc<Mutex<Oracle>>,
    broken: CancellationToken,
}

/// What a client must be able to see: everything acknowledged before it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    after: Option<LogIndex>,
}

impl Witness {
    /// A witness whose clock starts now. With `aloud` every event is printed as it happens.
    pub fn new(events_kept: usize, aloud: bool) -> Self {
        let oracle = Oracle {
            started: Instant::now(),
            trace: Trace::new(events_kept),
            aloud,
            entries: Vec::new(),
            ids: Vec::new(),
            chains: Vec::new(),
            images: BTreeMap::new(),
            nodes: BTreeMap::new(),
            acked: BTreeMap::new(),
            acked_last: None,
            ballots: BTreeMap::new(),
            violations: Vec::new(),
            tally: Tally::default(),
        };
        Self { oracle: Arc::new(Mutex::new(oracle)), broken: CancellationToken::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancelled at the first violation.
    pub fn broken(&self) -> &CancellationToken {
        &self.broken
    }

    /// Adds an event that no rule looks at.
    pub fn note(&self, event: Event) {
        self.lock().note(event);
    }

    /// Writes down that a rule did not hold.
    pub fn violate(&self, rule: &'static str, what: String) {
        self.lock().violate(rule, what);
        self.broken.cancel();
    }

    fn judge(&self, judged: impl FnOnce(&mut Oracle)) {
        let mut oracle = self.lock();
        judged(&mut oracle);
        if !oracle.violations.is_empty() {
            self.broken.cancel();
        }
    }

    /// A process of a node starts.
    pub fn start(&self, node: u16, run: u32) {
        self.judge(|oracle| {
            let before = oracle.nodes.get(&node).copied().unwrap_or_default();
            oracle.nodes.insert(node, Seen { run, running: true, durable: before.durable, ..Seen::default() });
            oracle.note(Event::Start { node, run });
        });
    }

    /// It has recovered: what was committed and synced here must be here again.
    pub fn ready(&self, node: u16, run: u32, status: &GroupStatus) {
        self.judge(|oracle| {
            oracle.note(Event::Ready { node, run, end: status.end.0 });
            if let Some(seen) = oracle.nodes.get_mut(&node) {
                seen.ready = true;
            }
            let durable = oracle.nodes.get(&node).and_then(|seen| seen.durable);
            if status.last < durable {
                let last = status.last;
                oracle.violate(
                    "durable",
                    format!("n{node} had {durable:?} committed and synced, comes back with {last:?}"),
                );
            }
        });
    }

    /// A process of a node has ended, however.
    pub fn end(&self, node: u16, event: Event) {
        self.judge(|oracle| {
            oracle.note(event);
            oracle.end(node);
        });
    }

    /// The node's disk is empty from now on, or lost what it had promised: nothing can be demanded of it.
    pub fn forget(&self, node: u16, event: Option<Event>) {
        self.judge(|oracle| {
            if let Some(event) = event {
                oracle.note(event);
            }
            if let Some(seen) = oracle.nodes.get_mut(&node) {
                seen.durable = None;
            }
        });
    }

    /// A direction of the network was cut or healed.
    pub fn link(&self, from: u16, to: u16, open: bool) {
        self.judge(|oracle| {
            oracle.note(Event::Link { from, to, open });
        });
    }

    /// A machine executes an entry.
    pub fn apply(&self, node: u16, run: u32, entry: &CommittedEntry) {
        let crc = crc32c::crc32c(&entry.payload);
        let found = Known { id: entry.id, position: entry.position, len: entry.payload.len() as u32, crc };
        self.judge(|oracle| oracle.apply(node, run, found));
    }

    /// A machine was asked for an image.
    pub fn save(&self, node: u16, border: Position, image: &[u8]) {
        let sum = digest(image);
        self.judge(|oracle| {
            oracle.note(Event::Save { node, border: border.0, sum });
            let first = oracle.images.entry(border).or_insert_with(|| Bytes::copy_from_slice(image)).clone();
            if first != *image {
                let how = difference(&first, image);
                oracle.violate(
                    "same-image",
                    format!("n{node} saves another image at {border} than was saved first: {how}"),
                );
            }
        });
    }

    /// A machine's state was replaced by an image.
    pub fn load(&self, node: u16, border: Position, applied: Option<LogId>, image: &[u8]) {
        let sum = digest(image);
        self.judge(|oracle| {
            oracle.note(Event::Load { node, border: border.0, sum });
            let mut is_installed = false;
            if let Some(seen) = oracle.nodes.get_mut(&node) {
                seen.applied = applied.map(|id| id.index);
                is_installed = seen.ready;
            }
            oracle.tally.images_installed += u64::from(is_installed);
            if applied.is_none() && image.is_empty() {
                return;
            }
            oracle.tally.images_loaded += 1;
            match oracle.images.get(&border).cloned() {
                Some(saved) if saved == *image => {}
                Some(saved) => {
                    let how = difference(&saved, image);
                    oracle.violate(
                        "same-image",
                        format!("n{node} loads another image at {border} than was saved: {how}"),
                    );
                }
                None => oracle.violate("same-image", format!("n{node} loads an image at {border} that nobody saved")),
            }
        });
    }

    /// A machine restored itself from its own checkpoint.
    pub fn restored(&self, node: u16, applied: Option<LogId>) {
        self.judge(|oracle| {
            if let Some(seen) = oracle.nodes.get_mut(&node) {
                seen.applied = applied.map(|id| id.index);
            }
        });
    }

    /// A machine heard of a new floor.
    pub fn floor(&self, node: u16, floor: Position) {
        self.judge(|oracle| {
            oracle.note(Event::Floor { node, floor: floor.0 });
        });
    }

    /// Looks at a running node.
    pub fn look(&self, node: u16, serving: bool, status: &GroupStatus) {
        self.judge(|oracle| oracle.look(node, serving, status));
    }

    /// A committed payload was read from a node's log, or is gone below its floor.
    pub fn body(&self, node: u16, known: Known, read: Option<&[u8]>) {
        self.judge(|oracle| {
            oracle.tally.bodies += 1;
            let Some(bytes) = read else { return };
            let crc = crc32c::crc32c(bytes);
            if crc != known.crc || bytes.len() != known.len as usize {
                let (id, at) = (known.id, known.position);
                oracle.violate(
                    "body",
                    format!("n{node} reads {} bytes, crc {crc:08x}, for entry {id} at {at}: {known:?}", bytes.len()),
                );
            }
        });
    }

    /// A client asks; hand what is returned back with the answer.
    pub fn invoke(&self, client: u32, number: u64, node: u16) -> Asked {
        let mut oracle = self.lock();
        oracle.note(Event::Invoke { client, number, node });
        Asked { after: oracle.acked_last }
    }

    /// A client's entry was acknowledged at `index`; its payload must be what stands there.
    pub fn acked(&self, client: u32, number: u64, asked: Asked, index: LogIndex, payload_crc: u32) {
        self.judge(|oracle| oracle.acked(client, number, asked, index, payload_crc));
    }

    /// A client was told that its message is stored; where is judged later, from the history.
    pub fn stored(&self, client: u32, number: u64) {
        let mut oracle = self.lock();
        oracle.tally.acked += 1;
        oracle.note(Event::Done { client, number, index: 0 });
    }

    /// A client's confirmed read saw everything up to `index`.
    pub fn read(&self, client: u32, number: u64, asked: Asked, index: Option<LogIndex>) {
        self.judge(|oracle| {
            oracle.tally.reads += 1;
            oracle.note(Event::Done { client, number, index: index.map_or(0, |index| index.0) });
            if index < asked.after {
                let after = asked.after;
                oracle.violate(
                    "fresh-read",
                    format!(
                        "c{client} #{number} reads up to {index:?}, but {after:?} was acknowledged before it asked"
                    ),
                );
            }
        });
    }

    /// A client was told that its request certainly had no effect.
    pub fn not_now(&self, client: u32, number: u64) {
        let mut oracle = self.lock();
        oracle.note(Event::NotNow { client, number });
    }

    /// A client does not know whether its request has or will have an effect.
    pub fn unknown(&self, client: u32, number: u64) {
        let mut oracle = self.lock();
        oracle.note(Event::Unknown { client, number });
    }

    /// The entry every node executes at this index, if any node has.
    pub fn known(&self, index: LogIndex) -> Option<Known> {
        self.lock().entries.get(index.0 as usize).copied().flatten()
    }

    /// The highest acknowledged index.
    pub fn acked_last(&self) -> Option<LogIndex> {
        self.lock().acked_last
    }

    /// Virtual time since the start of the run.
    pub fn elapsed(&self) -> Duration {
        self.lock().started.elapsed()
    }

    /// Hash and number of all events, the last ones in words, the counts and the violations.
    pub fn summary(&self) -> (u64, u64, Vec<String>, Tally, Vec<Violation>) {
        let oracle = self.lock();
        (oracle.trace.hash(), oracle.trace.count(), oracle.trace.lines(), oracle.tally, oracle.violations.clone())
    }
}

impl Oracle {
    fn note(&mut self, event: Event) {
        self.tally.count(event);
        let at = self.started.elapsed();
        if self.aloud {
            eprintln!("{:>12.6} {event}", at.as_secs_f64());
        }
        self.trace.add(at, event);
    }

    fn violate(&mut self, rule: &'static str, what: String) {
        if self.violations.len() < KEPT {
            let violation = Violation { at: self.started.elapsed(), rule, what };
            if self.aloud {
                eprintln!("VIOLATION {violation}");
            }
            self.violations.push(violation);
        }
    }

    fn apply(&mut self, node: u16, run: u32, found: Known) {
        let index = found.id.index;
        self.note(Event::Apply { node, index: index.0, position: found.position.0, crc: found.crc });
        let seen = self.nodes.entry(node).or_default();
        let (was_running, last_run, last) = (seen.running, seen.run, seen.applied);
        seen.applied = Some(index);
        if !was_running || last_run != run {
            self.violate("in-order", format!("n{node} run {run} executes {} after it ended", found.id));
        }
        if last >= Some(index) {
            self.violate("in-order", format!("n{node} executes {} after {last:?}", found.id));
        }
        let before = self.entries.iter().take(index.0 as usize).rposition(Option::is_some);
        let skipped = before.filter(|before| last.is_none_or(|last| last.0 < *before as u64));
        if let Some(skipped) = skipped {
            self.violate("in-order", format!("n{node} executes {} after {last:?} and skips {skipped}", found.id));
        }
        match slot(&mut self.entries, index) {
            Some(known) if *known != found => {
                let known = *known;
                self.violate("same-log", format!("n{node} executes {found:?}, another node executed {known:?}"));
            }
            Some(_) => {}
            free @ None => *free = Some(found),
        }
        self.same_id(node, found.id);
    }

    /// One index has one log id, once it is committed.
    fn same_id(&mut self, node: u16, id: LogId) {
        let first = *slot(&mut self.ids, id.index).get_or_insert(id);
        if first != id {
            self.violate("same-log", format!("n{node} has {id} committed, another node has {first}"));
        }
    }

    /// Remembers what a node that ends must come back with.
    fn end(&mut self, node: u16) {
        let Some(seen) = self.nodes.get_mut(&node) else { return };
        seen.running = false;
        let committed = seen.committed.map_or(0, |index| index.0 as usize + 1);
        let known = self.entries.iter().take(committed).flatten();
        let durable = known.rev().find(|known| known.position.0 + u64::from(known.len) <= seen.synced.0);
        seen.durable = seen.durable.max(durable.map(|known| known.id));
    }

    fn look(&mut self, node: u16, serving: bool, status: &GroupStatus) {
        let Some(mut seen) = self.nodes.get(&node).copied() else { return };
        let index = |id: Option<LogId>| id.map(|id| id.index);
        let (committed, applied, last) = (index(status.committed), index(status.applied), index(status.last));
        if committed < seen.committed {
            self.violate("commit-forward", format!("n{node} committed {committed:?} after {:?}", seen.committed));
        }
        if applied > committed || committed > last {
            self.violate("law-order", format!("n{node}: applied {applied:?}, committed {committed:?}, last {last:?}"));
        }
        // A log that has just been emptied for an image has nothing to sync.
        let is_empty = status.floor == status.end;
        if (status.floor > status.synced && !is_empty) || status.synced > status.end || status.floor < seen.floor {
            let (floor, synced, end) = (status.floor, status.synced, status.end);
            self.violate(
                "law-order",
                format!("n{node}: floor {floor} (was {}), synced {synced}, end {end}", seen.floor),
            );
        }
        if let Some(id) = status.committed {
            self.same_id(node, id);
        }
        if let Some(id) = status.applied {
            self.same_id(node, id);
            let chain = status.chain;
            let first = *slot(&mut self.chains, id.index).get_or_insert(chain);
            if first != chain {
                self.violate(
                    "same-log",
                    format!("n{node} has running hash {chain:08x} at {id}, another node has {first:08x}"),
                );
            }
            if applied != seen.applied {
                self.note(Event::Chain { node, index: id.index.0, chain });
            }
        }
        let role = (status.term.0, status.leader.map_or(0, |id| id.number()), serving);
        if role != seen.role {
            self.note(Event::Role { node, term: role.0, leader: role.1, serving });
        }
        if serving {
            self.serves(node, status);
        }
        seen.committed = committed;
        seen.synced = status.synced;
        seen.floor = status.floor;
        seen.role = role;
        self.nodes.insert(node, seen);
    }

    /// A leader serves: its ballot is its own, and it has executed what was acknowledged under lower ballots.
    fn serves(&mut self, node: u16, status: &GroupStatus) {
        let ballot = (status.term.0, status.id.0);
        if self.ballots.contains_key(&ballot) {
            return;
        }
        self.tally.elections += 1;
        if self.ballots.keys().any(|(term, _)| *term == ballot.0) {
            self.tally.shared_terms += 1;
        }
        self.ballots.insert(ballot, node);
        let owed = self.acked.range(..ballot).map(|(_, index)| *index).max();
        let applied = status.applied.map(|id| id.index);
        if applied < owed {
            self.violate(
                "one-leader",
                format!("n{node} serves in term {} with {applied:?} applied, but {owed:?} was acknowledged", ballot.0),
            );
        }
    }

    fn acked(&mut self, client: u32, number: u64, asked: Asked, index: LogIndex, payload_crc: u32) {
        self.tally.acked += 1;
        self.note(Event::Done { client, number, index: index.0 });
        if Some(index) <= asked.after {
            let after = asked.after;
            self.violate(
                "ack-order",
                format!("c{client} #{number} stands at {index}, but {after:?} was acknowledged before it asked"),
            );
        }
        match slot(&mut self.entries, index) {
            Some(known) if known.crc == payload_crc => {
                let ballot = (known.id.term.0, known.id.node.0);
                let highest = self.acked.entry(ballot).or_insert(index);
                *highest = index.max(*highest);
            }
            other => {
                let other = *other;
                self.violate(
                    "same-log",
                    format!(
                        "c{client} #{number} (crc {payload_crc:08x}) is acknowledged at {index}, where {other:?} stands"
                    ),
                );
            }
        }
        self.acked_last = self.acked_last.max(Some(index));
    }
}

/// Where two images part.
fn difference(first: &[u8], second: &[u8]) -> String {
    let at = first.iter().zip(second).take_while(|(a, b)| a == b).count();
    let from = |bytes: &[u8]| format!("{:02x?}", &bytes[at..bytes.len().min(at + 16)]);
    format!("{} and {} bytes, equal up to {at}, then {} and {}", first.len(), second.len(), from(first), from(second))
}

/// The place of an index in a table that grows.
fn slot<T: Clone>(table: &mut Vec<Option<T>>, index: LogIndex) -> &mut Option<T> {
    let at = index.0 as usize;
    if table.len() <= at {
        table.resize(at + 1, None);
    }
    &mut table[at]
}

#[cfg(test)]
#[path = "invariants_test.rs"]
mod tests;
