//! Random operations, kills and power cuts against a model.
//!
//! The model is the list of states the log goes through, one per entry appended or removed, per vote and per purge.
//! Whatever happens, an opened log is in one of them, and not in one before the last that was acknowledged. The chain at
//! the last entry stands for all content before it. The writer runs as a task in virtual time, so a cut falls anywhere,
//! also inside a sync, and a failing case repeats from its seed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use quorate_raft::{
    FlushMode, LogId, LogIndex, NodeId, Position, SimDisk, Term,
    disk::sim::Keep,
    log::{Done, Log, VoteRecord},
    types::ImagePoint,
};

use crate::node::{Place, all, entry, next};

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u16>),
    /// Keeps this share of the entries above the committed one.
    Truncate(u8),
    /// Purges this share of the committed entries.
    Purge(u8),
    /// Continues behind an image this many segments further on.
    Reset(u8),
    Commit(u8),
    Vote,
    Read(u8),
    Pass(u16),
    Close,
    Kill,
    Cut(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => proptest::collection::vec(0u16..1800, 1..6).prop_map(Step::Append),
        3 => any::<u8>().prop_map(Step::Truncate),
        2 => any::<u8>().prop_map(Step::Purge),
        1 => any::<u8>().prop_map(Step::Reset),
        4 => any::<u8>().prop_map(Step::Commit),
        2 => Just(Step::Vote),
        4 => any::<u8>().prop_map(Step::Read),
        8 => (0u16..6000).prop_map(Step::Pass),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        3 => any::<u8>().prop_map(Step::Cut),
    ];
    proptest::collection::vec(step, 1..60)
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    purged: Option<LogId>,
    last: Option<LogId>,
    chain: u32,
    vote: Option<VoteRecord>,
}

impl State {
    fn of(log: &Log) -> Self {
        let last = log.last();
        let chain = last.map_or(0, |last| log.chain_at(last.index).unwrap().unwrap());
        Self { purged: log.purged(), last, chain, vote: log.vote() }
    }
}

struct World {
    sim: SimDisk,
    flush: FlushMode,
    log: Log,
    writer: tokio::task::JoinHandle<()>,
    states: Vec<State>,
    acked: Arc<AtomicUsize>,
    term: u64,
}

impl World {
    fn open(sim: SimDisk, flush: FlushMode) -> Self {
        let mut place = Place::sim(&sim);
        place.config.flush = flush;
        let (log, _) = place.open_idle().unwrap();
        let writer = tokio::spawn(log.clone().run_writer());
        let states = vec![State::of(&log)];
        Self { sim, flush, log, writer, states, acked: Arc::default(), term: 1 }
    }

    /// Notes the state that an operation leads to, and when it is acknowledged.
    fn promise(&mut self) -> Done {
        let (acked, number) = (self.acked.clone(), Arc::new(AtomicUsize::new(usize::MAX)));
        let told = number.clone();
        self.pending(number);
        Box::new(move |result| {
            result.unwrap();
            acked.fetch_max(told.load(Ordering::SeqCst), Ordering::SeqCst);
        })
    }

    fn pending(&mut self, number: Arc<AtomicUsize>) {
        // Set when the operation has been issued and its last state is known.
        PENDING.with_borrow_mut(|pending| *pending = Some(number));
    }

    fn issued(&mut self) {
        let number = PENDING.with_borrow_mut(Option::take).expect("an operation was promised");
        number.store(self.states.len() - 1, Ordering::SeqCst);
    }

    fn append(&mut self, sizes: &[u16]) {
        let first = next(&self.log, self.term, 0).id.index.0;
        let frames: Vec<_> =
            sizes.iter().enumerate().map(|(n, size)| entry(self.term, first + n as u64, usize::from(*size))).collect();
        let ids: Vec<_> = frames.iter().map(|frame| frame.id).collect();
        let done = self.promise();
        self.log.append(frames, done).unwrap();
        for id in ids {
            let chain = self.log.chain_at(id.index).unwrap().unwrap();
            self.states.push(State { last: Some(id), chain, ..State::of(&self.log) });
        }
        self.issued();
    }

    fn truncate(&mut self, share: u8) {
        let Some(last) = self.log.last() else { return };
        let lowest = self.log.committed().max(self.log.purged()).map_or(0, |kept| kept.index.0 + 1);
        let keep = lowest + (last.index.0 + 1).saturating_sub(lowest) * u64::from(share) / 256;
        if keep > last.index.0 {
            return;
        }
        // On its way the log may end anywhere between.
        for index in (keep..last.index.0).rev() {
            let id = self.log.id_at(LogIndex(index)).unwrap().unwrap();
            let chain = self.log.chain_at(LogIndex(index)).unwrap().unwrap();
            self.states.push(State { last: Some(id), chain, ..State::of(&self.log) });
        }
        let kept = keep.checked_sub(1).and_then(|index| self.log.id_at(LogIndex(index)).unwrap());
        let done = self.promise();
        self.log.truncate_after(kept, done);
        self.states.push(State::of(&self.log));
        self.issued();
        self.term += 1;
    }

    fn purge(&mut self, share: u8) {
        let Some(committed) = self.log.committed() else { return };
        let first = self.log.purged().map_or(0, |purged| purged.index.0 + 1);
        let upto = first + (committed.index.0 + 1).saturating_sub(first) * u64::from(share) / 256;
        if upto > committed.index.0 || upto < first {
            return;
        }
        let upto = self.log.id_at(LogIndex(upto)).unwrap().unwrap();
        let done = self.promise();
        self.log.purge(upto, done);
        self.states.push(State::of(&self.log));
        self.issued();
    }

    fn reset(&mut self, share: u8) {
        self.term += 1;
        let border = Position(self.log.border_below(self.log.end()).0 + 4096 * (1 + u64::from(share % 4)));
        let index = self.log.last().map_or(0, |last| last.index.0) + 1 + u64::from(share);
        let applied = LogId { term: Term(self.term), node: NodeId::new(1, 7), index: LogIndex(index) };
        let done = self.promise();
        self.log.reset_to(ImagePoint { applied: Some(applied), border }, u32::from(share), done);
        self.states.push(State::of(&self.log));
        self.issued();
    }

    fn vote(&mut self) {
        self.term += 1;
        let done = self.promise();
        self.log.save_vote(VoteRecord { term: Term(self.term), node: NodeId::new(2, 2), committed: false }, done);
        self.states.push(State::of(&self.log));
        self.issued();
    }

    fn commit(&self, share: u8) {
        let first = self.log.committed().max(self.log.purged()).map_or(0, |id| id.index.0);
        let Some(last) = self.log.last() else { return };
        let index = first + last.index.0.saturating_sub(first) * u64::from(share) / 256;
        if let Some(id) = self.log.id_at(LogIndex(index)).unwrap() {
            self.log.save_committed(Some(id));
        }
    }

    /// Reads a part of the log, whatever the writer has still to do.
    fn read(&self, share: u8) {
        let kept = all(&self.log).unwrap();
        let from = kept.len() * usize::from(share) / 256;
        let Some(first) = kept.get(from) else { return };
        let part = self.log.read(first.id.index, LogIndex(u64::MAX), Some(5000)).unwrap();
        assert!(!part.is_empty() && part == kept[from..from + part.len()]);
        assert_eq!(kept.last().map(|frame| frame.id), self.log.last());
        assert!(kept.windows(2).all(|pair| pair[0].place.unwrap().chain == pair[1].place.unwrap().prev_chain));
        for frame in part.iter().filter(|frame| Some(frame.id) <= self.log.committed()) {
            let body = self.log.view().read(frame.payload_position(), frame.payload_len()).unwrap();
            assert_eq!(body, frame.payload_bytes());
        }
    }

    /// The node stops in some way and opens again.
    fn again(self, lost: bool) -> Self {
        self.writer.abort();
        let World { sim, flush, states, acked, term, .. } = self;
        let mut reopened = Self::open(sim, flush);
        reopened.term = term + 1;
        let found = &reopened.states[0];
        let acked = if lost { 0 } else { acked.load(Ordering::SeqCst) };
        assert!(
            states.iter().skip(acked).any(|state| state == found),
            "opened as {found:?}, which is none of the states since the last acknowledged one: {:#?}",
            &states[acked..]
        );
        all(&reopened.log).unwrap();
        assert!(reopened.log.committed() <= reopened.log.last());
        reopened
    }
}

thread_local! {
    static PENDING: std::cell::RefCell<Option<Arc<AtomicUsize>>> = const { std::cell::RefCell::new(None) };
}

async fn run(seed: u64, flush: FlushMode, steps: Vec<Step>) {
    let sim = SimDisk::new(seed);
    sim.faults(|faults| faults.sync_delay = Some((Duration::from_micros(100), Duration::from_millis(4))));
    let mut world = World::open(sim, flush);
    for step in steps {
        match step {
            Step::Append(sizes) => world.append(&sizes),
            Step::Truncate(share) => world.truncate(share),
            Step::Purge(share) => world.purge(share),
            Step::Reset(share) => world.reset(share),
            Step::Commit(share) => world.commit(share),
            Step::Vote => world.vote(),
            Step::Read(share) => world.read(share),
            Step::Pass(micros) => tokio::time::sleep(Duration::from_micros(u64::from(micros))).await,
            Step::Close => {
                let (sender, closed) = tokio::sync::oneshot::channel();
                world.log.close(Box::new(move |result| drop(sender.send(result))));
                closed.await.unwrap().unwrap();
                let last = world.states.last().cloned();
                world.sim.kill();
                world = world.again(false);
                assert_eq!(world.states.last().cloned(), last, "a closed log is whole");
            }
            Step::Kill => {
                world.sim.kill();
                world = world.again(false);
            }
            Step::Cut(how) => {
                world.sim.power_cut([Keep::Nothing, Keep::Prefix, Keep::Sectors][usize::from(how) % 3]);
                world = world.again(flush != FlushMode::Sync);
            }
        }
    }
}

fn in_virtual_time(seed: u64, flush: FlushMode, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run(seed, flush, steps));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn with_sync_flush_what_was_acknowledged_survives_any_cut(seed in any::<u64>(), steps in steps()) {
        in_virtual_time(seed, FlushMode::Sync, steps);
    }

    #[test]
    fn with_async_flush_it_survives_any_kill_and_a_cut_leaves_a_former_state(seed in any::<u64>(), steps in steps()) {
        in_virtual_time(seed, FlushMode::Async(Duration::from_millis(3)), steps);
    }
}

#[test]
fn a_disk_that_lies_about_syncs_is_caught() {
    // The check of the check: with the planted bug, acknowledged entries are missing after a cut.
    let sim = SimDisk::new(1);
    let node = Place::sim(&sim).start();
    sim.faults(|faults| faults.lie_on_sync = true);
    node.fill(1, [100; 5]);
    let last = node.log.last();
    drop(node);
    sim.power_cut(Keep::Nothing);
    let found = Place::sim(&sim).open().map(|(_, recovery)| recovery.last);
    assert!(!matches!(found, Ok(found) if found == last));
}
