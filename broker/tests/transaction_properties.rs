//! Transactional messages, whatever comes in whatever order: invisible until committed, visible exactly once then, never after a rollback,
//! the first resolution is final and repeated answers agree, and no floor that a leader would propose takes a body that a queue or a half
//! message still needs.
//!
//! Random steps go into two machines, one of which is put through image bytes now and then; they must stay equal (LAW-SAME). Beside
//! them stands a model that knows how each transaction ended and what every queue holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_broker::machine::{
    Batch, Carry, Checked, Command, Effect, HalfId, Machine, Pointer, PutTopic, QueueId, QueueOffset, Record, Refusal,
    Reply, Resolution, Resolve, Send, SendHalf, SendKey, TopicId, TopicKind,
};
use quorate_proto::{names::TopicName, time::Timestamp};
use quorate_raft::Position;

const TOPIC: TopicId = TopicId(0);
const IMMUNITY_MS: u64 = 6_000;
const INTERVAL_MS: u64 = 30_000;
const CHECKS_MAX: u16 = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Send, or send again, what half message `id` is.
    Half {
        id: u8,
    },
    /// An ordinary message.
    Plain,
    /// End any transaction, ended or not; the body comes along if the leader's plan says so, or always.
    End {
        choice: usize,
        commit: bool,
        with_body: bool,
    },
    /// What a leader does when it looks at what is due, with or without a producer to ask.
    Check {
        has_producer: bool,
    },
    Border,
    /// Carry what must be carried below the newest border, then move the floor there. `Some(n)`: the leader dies after n carries.
    Floor {
        dies_after: Option<usize>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..32u8).prop_map(|id| Step::Half { id }),
        1 => Just(Step::Plain),
        5 => (any::<usize>(), any::<bool>(), any::<bool>())
            .prop_map(|(choice, commit, with_body)| Step::End { choice, commit, with_body }),
        2 => any::<bool>().prop_map(|has_producer| Step::Check { has_producer }),
        2 => Just(Step::Border),
        2 => proptest::option::of(0..4usize).prop_map(|dies_after| Step::Floor { dies_after }),
    ]
}

#[derive(Default)]
struct Known {
    ended: Option<Resolution>,
    seen: u32,
    checks: u16,
}

struct Run {
    straight: Machine,
    cut: Machine,
    now: Timestamp,
    position: u64,
    floor: Position,
    /// Numbers of the half messages by what the client calls them.
    numbers: BTreeMap<u8, HalfId>,
    known: BTreeMap<HalfId, Known>,
    /// What the queues hold.
    queues: BTreeMap<(QueueId, QueueOffset), Pointer>,
    /// Bodies by their position in the log, as far as the floor has not passed them.
    log: BTreeMap<Position, Bytes>,
}

impl Run {
    fn new() -> Self {
        let mut run = Self {
            straight: Machine::default(),
            cut: Machine::default(),
            now: Timestamp(1_000),
            position: 0,
            floor: Position(0),
            numbers: BTreeMap::new(),
            known: BTreeMap::new(),
            queues: BTreeMap::new(),
            log: BTreeMap::new(),
        };
        let name = TopicName::parse("t").expect("a name");
        let put = PutTopic { name, queues: 2, kind: TopicKind::Any, auto: false, replace: false };
        run.apply(Command::PutTopic(put));
        run
    }

    fn apply(&mut self, command: Command) -> Reply {
        let payload = Batch { now: self.now, commands: vec![command] }.encode();
        let base = Position(self.position);
        self.position += 1_000;
        let command = Batch::decode(payload).expect("what was encoded decodes").commands.remove(0);
        if let Command::Send(Send { record, .. })
        | Command::SendHalf(SendHalf { send: Send { record, .. }, .. })
        | Command::Resolve(Resolve { record: Some(record), .. })
        | Command::Carry(Carry { record, .. }) = &command
        {
            self.log.insert(Position(base.0 + u64::from(record.at())), record.bytes().clone());
        }
        let mut effects = (Vec::new(), Vec::new());
        let reply = self.straight.apply(self.now, base, command.clone(), &mut effects.0);
        assert_eq!(self.cut.apply(self.now, base, command, &mut effects.1), reply);
        assert_eq!(effects.0, effects.1);
        for effect in effects.0 {
            let Effect::Append { queue, offset, pointer, .. } = effect else { continue };
            self.queues.insert((queue, offset), pointer);
            let body = &self.log[&pointer.position];
            assert_eq!(body.len(), pointer.size as usize);
            if let Some(number) = self.numbers.get(&body[0]) {
                let known = self.known.get_mut(number).expect("every number is known");
                assert_eq!(known.ended, None, "{number:?} is visible after its end");
                known.seen += 1;
                assert_eq!(known.seen, 1, "{number:?} is visible twice");
            }
        }
        reply
    }

    fn body(&self, position: Position) -> Record {
        self.log.get(&position).expect("the floor has not passed a body that is needed").clone().into()
    }

    fn send(&self, id: u8) -> Send {
        Send {
            topic: TOPIC,
            queue: QueueId(u16::from(id % 2)),
            key: SendKey(u128::from(id)),
            body_crc: 1,
            tag_hash: 9,
            record: Bytes::from(vec![id; 1 + usize::from(id % 5)]).into(),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Half { id } => {
                // Only for as long as the window of repeats covers it: a later one is a new message by design.
                if self.now.0 > 55_000 {
                    return;
                }
                let reply = self.apply(Command::SendHalf(SendHalf { immunity_ms: IMMUNITY_MS, send: self.send(id) }));
                let Reply::Half { id: number, duplicate } = reply else { panic!("{reply:?}") };
                assert_eq!(self.numbers.contains_key(&id), duplicate);
                let known = *self.numbers.entry(id).or_insert(number);
                assert_eq!(known, number, "a repeat gets the first answer");
                self.known.entry(number).or_default();
            }
            Step::Plain => {
                let send = Send { key: SendKey(u128::from(self.position) + 1000), ..self.send(255) };
                assert!(matches!(self.apply(Command::Send(send)), Reply::Sent { .. }));
            }
            Step::End { choice, commit, with_body } => self.end(choice, commit, with_body),
            Step::Check { has_producer } => self.check(has_producer),
            Step::Border => {
                self.straight.border(Position(self.position));
                self.cut.border(Position(self.position));
            }
            Step::Floor { dies_after } => self.move_floor(dies_after),
        }
    }

    fn end(&mut self, choice: usize, commit: bool, with_body: bool) {
        if self.known.is_empty() {
            return;
        }
        let id = *self.known.keys().nth(choice % self.known.len()).expect("within");
        let resolution = if commit { Resolution::Commit } else { Resolution::Rollback };
        let pointer = self.straight.half(id).map(|half| half.pointer);
        let needed = pointer.is_some_and(|pointer| self.straight.is_behind_border(pointer.position));
        let resolve = |record| Command::Resolve(Resolve { id, topic: TOPIC, resolution, record });
        if needed && commit {
            let without = self.apply(resolve(None));
            assert_eq!(without, Reply::Refused(Refusal::BodyNeeded));
        }
        let record = pointer.filter(|_| commit && (needed || with_body)).map(|pointer| self.body(pointer.position));
        let reply = self.apply(resolve(record));
        let known = self.known.get_mut(&id).expect("chosen from there");
        match known.ended {
            None if commit => assert!(matches!(reply, Reply::Sent { duplicate: false, .. }), "{reply:?}"),
            Some(ended) if ended != resolution => {
                return assert_eq!(reply, Reply::Refused(Refusal::TransactionEnded { ended }));
            }
            None | Some(_) => assert_eq!(reply, Reply::Done),
        }
        known.ended = Some(resolution);
        assert_eq!(known.seen, u32::from(commit));
    }

    fn check(&mut self, has_producer: bool) {
        let topics: Vec<TopicId> = self.straight.topics_to_check(self.now).collect();
        for topic in topics {
            let due: Vec<_> = self.straight.to_check(topic, self.now).collect();
            assert!(!due.is_empty());
            for (id, half) in due {
                assert!(half.check_at.is_some_and(|at| at <= self.now));
                let last = half.checks >= CHECKS_MAX;
                if !last && !has_producer {
                    continue;
                }
                let again_ms = (!last).then_some(INTERVAL_MS);
                let checked = Command::Checked(Checked { id, checks: half.checks, again_ms });
                assert_eq!(self.apply(checked.clone()), Reply::Done);
                assert!(matches!(self.apply(checked), Reply::Refused(Refusal::CheckedSince)), "twice");
                self.known.get_mut(&id).expect("every number is known").checks += u16::from(!last);
            }
        }
    }

    fn move_floor(&mut self, dies_after: Option<usize>) {
        let Some(floor) = self.straight.border_below(Position(u64::MAX)) else { return };
        let below: Vec<_> = self.straight.waiting(None).filter(|(_, pointer)| pointer.position < floor).collect();
        for (carried, (waiting, pointer)) in below.into_iter().enumerate() {
            if dies_after == Some(carried) {
                return;
            }
            let record = self.body(pointer.position);
            assert_eq!(self.apply(Command::Carry(Carry { waiting, record })), Reply::Done);
        }
        self.floor = floor;
        self.log = self.log.split_off(&floor);
        let mut effects = (Vec::new(), Vec::new());
        self.straight.floor(floor, &mut effects.0);
        self.cut.floor(floor, &mut effects.1);
        assert_eq!(effects.0, effects.1);
        for effect in effects.0 {
            if let Effect::MinMoved { queue, min, .. } = effect {
                self.queues.retain(|(at, offset), _| *at != queue || *offset >= min);
            }
        }
        for (place, pointer) in &self.queues {
            assert!(pointer.position >= floor, "{place:?} is kept and its body is gone");
        }
    }

    fn cut(&mut self) {
        let image = self.straight.save_image();
        assert_eq!(self.cut.save_image(), image, "equal machines give equal bytes");
        self.cut = Machine::load_image(image).expect("a saved image loads");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_half_message_is_visible_once_it_is_committed_and_only_then_and_its_first_end_is_final(
        steps in proptest::collection::vec((step(), 0..3_000u64, any::<u8>()), 1..160),
    ) {
        let mut run = Run::new();
        for (step, pass_ms, cut) in &steps {
            run.now = Timestamp(run.now.0 + pass_ms);
            if cut % 16 == 0 {
                run.cut();
            }
            run.step(step);
        }
        for (_, pointer) in run.straight.waiting(None) {
            prop_assert!(run.log.contains_key(&pointer.position) && pointer.position >= run.floor);
        }
        let open = run.known.values().filter(|known| known.ended.is_none()).count() as u64;
        let stats = run.straight.transaction_stats();
        prop_assert_eq!((stats.pending + stats.set_aside, stats.lost), (open, 0));
        for (id, half) in run.straight.halves(None) {
            prop_assert_eq!(half.checks, run.known[&id].checks);
        }
        for known in run.known.values() {
            prop_assert_eq!(known.seen, u32::from(known.ended == Some(Resolution::Commit)));
        }
        run.cut();
    }
}
