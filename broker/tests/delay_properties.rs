//! Delayed messages, whatever comes in whatever order: never early, exactly once visible, a recall that is answered OK holds, and no
//! floor that a leader would propose loses a body.
//!
//! Random steps go into two machines, one of which is put through image bytes now and then; they must stay equal (LAW-SAME). Beside
//! them stands a model that knows when each message is due and whether somebody saw it.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_broker::machine::{
    Batch, Carry, Command, DelayId, Deliver, Effect, Machine, PutTopic, QueueId, Recall, Record, Reply, Send,
    SendDelayed, SendKey, TopicId, TopicKind, Waiting,
};
use quorate_proto::{names::TopicName, time::Timestamp};
use quorate_raft::Position;

const TOPIC: TopicId = TopicId(0);

#[derive(Clone, Debug)]
enum Step {
    /// Send, or send again, what message `id` is.
    Send {
        id: u8,
    },
    /// Propose a delivery, due or not, pending or not.
    Deliver {
        choice: usize,
    },
    Recall {
        choice: usize,
    },
    /// What a leader does when it wakes.
    DeliverDue,
    Border,
    /// Carry what must be carried below the newest border, then move the floor there. `Some(n)`: the leader dies after n carries.
    Floor {
        dies_after: Option<usize>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..24u8).prop_map(|id| Step::Send { id }),
        3 => any::<usize>().prop_map(|choice| Step::Deliver { choice }),
        2 => any::<usize>().prop_map(|choice| Step::Recall { choice }),
        2 => Just(Step::DeliverDue),
        2 => Just(Step::Border),
        2 => proptest::option::of(0..4usize).prop_map(|dies_after| Step::Floor { dies_after }),
    ]
}

struct Known {
    id: DelayId,
    recalled: bool,
    seen: u32,
}

struct Run {
    straight: Machine,
    cut: Machine,
    now: Timestamp,
    position: u64,
    floor: Position,
    known: BTreeMap<u64, Known>,
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
            known: BTreeMap::new(),
            log: BTreeMap::new(),
        };
        let name = TopicName::parse("t").expect("a name");
        let put = PutTopic { name, queues: 2, kind: TopicKind::Delay, auto: false, replace: false };
        run.apply(Command::PutTopic(put));
        run
    }

    fn apply(&mut self, command: Command) -> Reply {
        let payload = Batch { now: self.now, commands: vec![command] }.encode();
        let base = Position(self.position);
        self.position += 1_000;
        let command = Batch::decode(payload).expect("what was encoded decodes").commands.remove(0);
        if let Command::SendDelayed(SendDelayed { send: Send { record, .. }, .. })
        | Command::Deliver(Deliver { record, .. })
        | Command::Carry(Carry { record, .. }) = &command
        {
            self.log.insert(Position(base.0 + u64::from(record.at())), record.bytes().clone());
        }
        let mut effects = (Vec::new(), Vec::new());
        let reply = self.straight.apply(self.now, base, command.clone(), &mut effects.0);
        assert_eq!(self.cut.apply(self.now, base, command, &mut effects.1), reply);
        assert_eq!(effects.0, effects.1);
        for effect in effects.0 {
            if let Effect::Append { pointer, .. } = effect {
                let body = &self.log[&pointer.position];
                let number = u64::from_le_bytes(body[..8].try_into().expect("bodies begin with their number"));
                // One that was due when it was sent has no number among the delayed.
                let Some(known) = self.known.get_mut(&number) else { continue };
                assert!(known.id.due <= self.now, "{:?} is visible at {}", known.id, self.now);
                assert!(!known.recalled, "{:?} is visible after its recall", known.id);
                known.seen += 1;
                assert_eq!(known.seen, 1, "{:?} is visible twice", known.id);
            }
        }
        reply
    }

    fn id(&self, choice: usize) -> Option<DelayId> {
        (!self.known.is_empty()).then(|| self.known.values().nth(choice % self.known.len()).expect("within").id)
    }

    fn body(&self, position: Position) -> Record {
        self.log.get(&position).expect("the floor has not passed a body that is needed").clone().into()
    }

    fn deliver_due(&mut self) {
        let due: Vec<_> = self.straight.due(self.now).collect();
        assert!(due.windows(2).all(|two| two[0].0 < two[1].0), "the longest overdue first");
        for (id, message) in due {
            let record = self.body(message.pointer.position);
            let reply = self.apply(Command::Deliver(Deliver { id, record }));
            assert!(matches!(reply, Reply::Sent { duplicate: false, .. }), "{reply:?}");
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Send { id } => {
                // The same id is always the same message, due at its own time.
                let due = Timestamp(1_500 + u64::from(id) * 731);
                let number = u64::from(id);
                let mut body = number.to_le_bytes().to_vec();
                body.resize(8 + usize::from(id % 5), b'.');
                let send = Send {
                    topic: TOPIC,
                    queue: QueueId(u16::from(id % 2)),
                    key: SendKey(u128::from(id)),
                    body_crc: 1,
                    tag_hash: 9,
                    record: Bytes::from(body).into(),
                };
                // Only for as long as the window of repeats covers it: a later one is a new message by design.
                if self.now.0 > 55_000 {
                    return;
                }
                let reply = self.apply(Command::SendDelayed(SendDelayed { due, send }));
                if let Reply::Delayed { id, duplicate } = reply {
                    assert_eq!(self.known.contains_key(&number), duplicate);
                    let known = self.known.entry(number).or_insert(Known { id, recalled: false, seen: 0 });
                    assert_eq!(known.id, id, "a repeat gets the first answer");
                } else {
                    assert!(matches!(reply, Reply::Sent { .. }), "{reply:?}");
                    assert!(due <= self.now && !self.known.contains_key(&number));
                }
            }
            Step::Deliver { choice } => {
                let Some(id) = self.id(choice) else { return };
                let place = self.straight.waiting(None).find(|(waiting, _)| *waiting == Waiting::Delayed(id));
                let record = match place {
                    Some((_, pointer)) => self.body(pointer.position),
                    None => Bytes::from_static(b"a stale leader's").into(),
                };
                let reply = self.apply(Command::Deliver(Deliver { id, record }));
                assert_eq!(matches!(reply, Reply::Sent { .. }), place.is_some() && id.due <= self.now, "{reply:?}");
            }
            Step::Recall { choice } => {
                let Some(id) = self.id(choice) else { return };
                let now = self.now;
                let reply = self.apply(Command::Recall(Recall { id, topic: TOPIC }));
                let known = self.known.values_mut().find(|known| known.id == id).expect("chosen from there");
                let in_time = if known.recalled { now < id.due } else { known.seen == 0 };
                assert_eq!(reply == Reply::Done, in_time, "{id:?} at {now}: {reply:?}");
                known.recalled |= in_time;
            }
            Step::DeliverDue => self.deliver_due(),
            Step::Border => {
                self.straight.border(Position(self.position));
                self.cut.border(Position(self.position));
            }
            Step::Floor { dies_after } => self.move_floor(dies_after),
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
    fn a_delayed_message_is_never_early_visible_once_and_survives_every_floor(
        steps in proptest::collection::vec((step(), 0..900u64, any::<u8>()), 1..160),
    ) {
        let mut run = Run::new();
        for (step, pass_ms, cut) in &steps {
            run.now = Timestamp(run.now.0 + pass_ms);
            if cut % 16 == 0 {
                run.cut();
            }
            run.step(step);
        }
        // In the end everything that was not taken back is there, once, and everything that waits can still be read.
        for (_, pointer) in run.straight.waiting(None) {
            prop_assert!(run.log.contains_key(&pointer.position) && pointer.position >= run.floor);
        }
        run.now = Timestamp(run.now.0 + 100_000);
        run.deliver_due();
        for known in run.known.values() {
            prop_assert_eq!(known.seen, u32::from(!known.recalled));
        }
        let stats = run.straight.delay_stats();
        prop_assert_eq!((stats.pending, stats.bytes, stats.lost), (0, 0, 0));
        run.cut();
    }
}
