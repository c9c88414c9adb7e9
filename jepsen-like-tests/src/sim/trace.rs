//! What happened in a run, in order: one hash over everything, and the last events in words.
//!
//! Two runs of one seed must agree in the hash, in this process or in another one; when they do not, something in the
//! product or in the simulator looked at a clock, an address or a hash map's order, and no seed can be trusted to replay.

use std::{collections::VecDeque, fmt, time::Duration};

use super::dice::mix;

/// Events kept in words unless the run asks for more.
pub const KEPT: usize = 400;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process was started; `run` counts the starts of the node.
    Start { node: u16, run: u32 },
    /// It has recovered and takes part.
    Ready { node: u16, run: u32, end: u64 },
    /// Its process died; what it wrote stays in the page cache.
    Kill { node: u16 },
    /// Its machine lost power: what it had not synced is gone.
    PowerCut { node: u16 },
    /// It was shut down in order.
    Stop { node: u16 },
    /// Its disk was replaced by an empty one.
    Wipe { node: u16 },
    /// A bit of one of its files flipped.
    Rot { node: u16 },
    /// Records of one of its consume queues rotted.
    QueueRot { node: u16 },
    /// Its disk fails from now on, or is well again.
    Disk { node: u16, well: bool },
    /// It ended by itself.
    Crash { node: u16 },
    /// A direction between two hosts was cut or healed.
    Link { from: u16, to: u16, open: bool },
    /// All links have this latency and this chance of trouble (per mille and write) from now on.
    Weather { latency_us: u64, trouble: u64 },
    /// The node's syncs take about this long from now on.
    Sync { node: u16, longest_us: u64 },
    /// A lane of the nemesis begins a fault.
    Fault { lane: u16, name: &'static str },
    /// A node's view of the leadership changed.
    Role { node: u16, term: u64, leader: u16, serving: bool },
    /// A node's machine executed an entry.
    Apply { node: u16, index: u64, position: u64, crc: u32 },
    /// A node's running hash after an index.
    Chain { node: u16, index: u64, chain: u32 },
    /// A node took an image of its machine.
    Save { node: u16, border: u64, sum: u64 },
    /// A node replaced its machine's state by an image.
    Load { node: u16, border: u64, sum: u64 },
    /// A node's machine heard that nothing below is kept.
    Floor { node: u16, floor: u64 },
    /// A client asked something.
    Invoke { client: u32, number: u64, node: u16 },
    /// It has the answer: done, and where.
    Done { client: u32, number: u64, index: u64 },
    /// It has the answer: certainly not done.
    NotNow { client: u32, number: u64 },
    /// It has no answer.
    Unknown { client: u32, number: u64 },
    /// All faults have ended.
    Heal,
    /// The clients have stopped and all nodes stand at the same entry.
    Quiet { index: u64 },
}

impl Event {
    /// The event as numbers: which one, then its fields.
    fn words(self) -> [u64; 5] {
        match self {
            Self::Start { node, run } => [1, node.into(), run.into(), 0, 0],
            Self::Ready { node, run, end } => [2, node.into(), run.into(), end, 0],
            Self::Kill { node } => [3, node.into(), 0, 0, 0],
            Self::PowerCut { node } => [4, node.into(), 0, 0, 0],
            Self::Stop { node } => [5, node.into(), 0, 0, 0],
            Self::Wipe { node } => [6, node.into(), 0, 0, 0],
            Self::Crash { node } => [7, node.into(), 0, 0, 0],
            Self::Link { from, to, open } => [8, from.into(), to.into(), open.into(), 0],
            Self::Weather { latency_us, trouble } => [9, latency_us, trouble, 0, 0],
            Self::Sync { node, longest_us } => [10, node.into(), longest_us, 0, 0],
            Self::Fault { lane, name } => {
                [11, lane.into(), name.bytes().fold(0, |sum, byte| mix(sum ^ u64::from(byte))), 0, 0]
            }
            Self::Role { node, term, leader, serving } => [12, node.into(), term, leader.into(), serving.into()],
            Self::Apply { node, index, position, crc } => [13, node.into(), index, position, crc.into()],
            Self::Chain { node, index, chain } => [14, node.into(), index, chain.into(), 0],
            Self::Save { node, border, sum } => [15, node.into(), border, sum, 0],
            Self::Load { node, border, sum } => [16, node.into(), border, sum, 0],
            Self::Floor { node, floor } => [17, node.into(), floor, 0, 0],
            Self::Invoke { client, number, node } => [18, client.into(), number, node.into(), 0],
            Self::Done { client, number, index } => [19, client.into(), number, index, 0],
            Self::NotNow { client, number } => [20, client.into(), number, 0, 0],
            Self::Unknown { client, number } => [21, client.into(), number, 0, 0],
            Self::Rot { node } => [24, node.into(), 0, 0, 0],
            Self::QueueRot { node } => [26, node.into(), 0, 0, 0],
            Self::Disk { node, well } => [25, node.into(), well.into(), 0, 0],
            Self::Heal => [22, 0, 0, 0, 0],
            Self::Quiet { index } => [23, index, 0, 0, 0],
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Start { node, run } => write!(f, "n{node} start (run {run})"),
            Self::Ready { node, run, end } => write!(f, "n{node} ready (run {run}), log ends at {end}"),
            Self::Kill { node } => write!(f, "n{node} KILL"),
            Self::PowerCut { node } => write!(f, "n{node} POWER CUT"),
            Self::Stop { node } => write!(f, "n{node} stop"),
            Self::Wipe { node } => write!(f, "n{node} WIPE"),
            Self::Rot { node } => write!(f, "n{node} ROT: a bit of its files flips"),
            Self::QueueRot { node } => write!(f, "n{node} ROT: records of a consume queue"),
            Self::Disk { node, well: false } => write!(f, "n{node} disk FAILS"),
            Self::Disk { node, well: true } => write!(f, "n{node} disk is well"),
            Self::Crash { node } => write!(f, "n{node} CRASH by itself"),
            Self::Link { from, to, open: false } => write!(f, "link n{from} → n{to} CUT"),
            Self::Link { from, to, open: true } => write!(f, "link n{from} → n{to} open"),
            Self::Weather { latency_us, trouble } => {
                write!(f, "network: latency up to {latency_us} µs, trouble {trouble}‰")
            }
            Self::Sync { node, longest_us } => write!(f, "n{node} syncs take up to {longest_us} µs"),
            Self::Fault { lane, name } => write!(f, "nemesis {lane}: {name}"),
            Self::Role { node, term, leader: 0, .. } => write!(f, "n{node} knows no leader in term {term}"),
            Self::Role { node, term, leader, serving } => {
                write!(f, "n{node} follows n{leader} in term {term}{}", if serving { ", SERVING" } else { "" })
            }
            Self::Apply { node, index, position, crc } => write!(f, "n{node} apply {index} at {position} ({crc:08x})"),
            Self::Chain { node, index, chain } => write!(f, "n{node} chain {index} = {chain:08x}"),
            Self::Save { node, border, sum } => write!(f, "n{node} image at {border} ({sum:016x})"),
            Self::Load { node, border, sum } => write!(f, "n{node} LOADS image at {border} ({sum:016x})"),
            Self::Floor { node, floor } => write!(f, "n{node} floor {floor}"),
            Self::Invoke { client, number, node } => write!(f, "c{client} asks #{number} of n{node}"),
            Self::Done { client, number, index } => write!(f, "c{client} has #{number} done at {index}"),
            Self::NotNow { client, number } => write!(f, "c{client} has #{number} not now"),
            Self::Unknown { client, number } => write!(f, "c{client} has #{number} unknown"),
            Self::Heal => f.write_str("all faults end"),
            Self::Quiet { index } => write!(f, "quiet at entry {index}"),
        }
    }
}

/// The events of a run so far.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    count: u64,
    kept: VecDeque<(Duration, Event)>,
    kept_max: usize,
}

impl Trace {
    /// An empty trace that keeps the last `kept_max` events in words.
    pub fn new(kept_max: usize) -> Self {
        Self { hash: 0, count: 0, kept: VecDeque::new(), kept_max }
    }

    /// Adds an event at a virtual time.
    pub fn add(&mut self, at: Duration, event: Event) {
        let time = at.as_micros() as u64;
        self.hash = event.words().into_iter().fold(mix(self.hash ^ time), |hash, word| mix(hash.rotate_left(1) ^ word));
        self.count += 1;
        if self.kept.len() >= self.kept_max {
            self.kept.pop_front();
        }
        if self.kept_max > 0 {
            self.kept.push_back((at, event));
        }
    }

    /// Fold of every event with its time.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The kept events, one line each, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.kept.iter().map(|(at, event)| format!("{:>12.6} {event}", at.as_secs_f64())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_order_time_and_every_field() {
        let hash = |events: &[(u64, Event)]| {
            let mut trace = Trace::new(0);
            events.iter().for_each(|(at, event)| trace.add(Duration::from_micros(*at), *event));
            trace.hash()
        };
        let (a, b) = (Event::Kill { node: 1 }, Event::Kill { node: 2 });
        let reference = hash(&[(1, a), (2, b)]);
        assert_eq!(reference, hash(&[(1, a), (2, b)]));
        assert_ne!(reference, hash(&[(1, b), (2, a)]));
        assert_ne!(reference, hash(&[(1, a), (3, b)]));
        assert_ne!(reference, hash(&[(1, a), (2, Event::PowerCut { node: 2 })]));
    }

    #[test]
    fn only_the_last_events_are_kept_in_words() {
        let mut trace = Trace::new(2);
        for node in 1..=3 {
            trace.add(Duration::from_millis(5), Event::Kill { node });
        }
        assert_eq!(trace.lines(), ["    0.005000 n2 KILL", "    0.005000 n3 KILL"]);
        assert_eq!(trace.count(), 3);
    }
}
