//! What must hold for every sequence of sends, receives, acks and timeouts when the leader reads ahead: in the order of message groups,
//! past a filter, or both.
//!
//! The machine is put through image bytes at random places, and its answers are held against a model that knows every message and
//! who holds it. Scans begin before, at or behind the cursor, as late or repeated commands do.

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_broker::machine::{
    Ack, AttemptKey, ChangeInvisible, Chosen, Command, Delays, Delivery, GroupId, Handle, Machine, MessageGroup,
    PutGroup, PutTopic, QueueId, QueueOffset, Receive, ReceiveScanned, Reply, Retry, Scan, Send, SendKey, StartAt,
    TopicId, TopicKind, Verdict,
};
use quorate_proto::{
    names::{GroupName, TopicName},
    time::Timestamp,
};
use quorate_raft::Position;

const TOPIC: TopicId = TopicId(0);
const GROUP: GroupId = GroupId(0);
const QUEUES: u16 = 2;

#[derive(Clone, Debug)]
enum Step {
    Send { queue: u16, group: u64, wanted: bool },
    Receive { max: u16, invisible_ms: u64, first: u16, attempt: Option<u8>, back: u64, ahead: u64 },
    Ack { handle: usize },
    Change { handle: usize, invisible_ms: u64, renew: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..QUEUES, 1..5u64, any::<bool>()).prop_map(|(queue, group, wanted)| Step::Send { queue, group, wanted }),
        5 => (0..5u16, 0..4_000u64, 0..QUEUES, proptest::option::of(0..3u8), 0..4u64, 0..9u64).prop_map(
            |(max, invisible_ms, first, attempt, back, ahead)| {
                Step::Receive { max, invisible_ms, first, attempt, back, ahead }
            }
        ),
        5 => any::<usize>().prop_map(|handle| Step::Ack { handle }),
        1 => (any::<usize>(), 0..3_000u64, any::<bool>()).prop_map(
            |(handle, invisible_ms, renew)| Step::Change { handle, invisible_ms, renew }
        ),
    ]
}

/// A message as a bystander knows it.
#[derive(Clone, Copy)]
struct Known {
    group: u64,
    wanted: bool,
    held: Option<(Handle, Timestamp)>,
    acked: bool,
}

struct World {
    machine: Machine,
    now: Timestamp,
    fifo: bool,
    filtered: bool,
    handles: Vec<Handle>,
    messages: BTreeMap<(QueueId, u64), Known>,
}

impl World {
    fn new(fifo: bool, filtered: bool) -> Self {
        let machine = Machine::default();
        let (handles, messages) = (Vec::new(), BTreeMap::new());
        let mut world = Self { machine, now: Timestamp(1_000), fifo, filtered, handles, messages };
        let name = TopicName::parse("t").expect("a name");
        let kind = TopicKind::Any;
        world.apply(Command::PutTopic(PutTopic { name, queues: QUEUES, kind, auto: false, replace: false }));
        let name = GroupName::parse("g").expect("a name");
        // More attempts than steps, so that nothing ends among the dead letters.
        let retry = Retry::new(1000, Delays::usual(fifo)).ok();
        world.apply(Command::PutGroup(PutGroup {
            name,
            fifo,
            start: StartAt::First,
            auto: false,
            replace: false,
            retry,
        }));
        world
    }

    fn apply(&mut self, command: Command) -> Reply {
        self.machine.apply(self.now, Position(0), command, &mut Vec::new())
    }

    fn cut(&mut self) {
        let image = self.machine.save_image();
        self.machine = Machine::load_image(image.clone()).expect("a saved image loads");
        assert_eq!(self.machine.save_image(), image);
    }

    fn handle(&self, choice: usize) -> Option<Handle> {
        (!self.handles.is_empty()).then(|| self.handles[choice % self.handles.len()])
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Send { queue, group, wanted } => {
                let key = SendKey(self.messages.len() as u128);
                let record = bytes::Bytes::from_static(b"x").into();
                let send = Send { topic: TOPIC, queue: QueueId(queue), key, body_crc: 0, tag_hash: 0, record };
                let Reply::Sent { queue, offset, .. } = self.apply(Command::Send(send)) else { panic!("stored") };
                self.messages.insert((queue, offset.0), Known { group, wanted, held: None, acked: false });
            }
            Step::Receive { max, invisible_ms, first, attempt, back, ahead } => {
                let attempt = attempt.map(|attempt| AttemptKey::new(&attempt.to_string()));
                self.receive(max, invisible_ms, first, attempt, (back, ahead));
            }
            Step::Ack { handle } => {
                if let Some(handle) = self.handle(handle) {
                    self.ack(handle);
                }
            }
            Step::Change { handle, invisible_ms, renew } => {
                let Some(handle) = self.handle(handle) else { return };
                let change = ChangeInvisible { group: GROUP, handle, invisible_ms, renew };
                if let Reply::Changed { handle, visible_at } = self.apply(Command::ChangeInvisible(change)) {
                    self.handles.push(handle);
                    self.known(&handle).held = Some((handle, visible_at));
                }
            }
        }
    }

    fn known(&mut self, handle: &Handle) -> &mut Known {
        self.messages.get_mut(&(handle.queue, handle.offset.0)).expect("a message that was sent")
    }

    fn ack(&mut self, handle: Handle) {
        let Reply::Acked { results } = self.apply(Command::Ack(Ack { group: GROUP, entries: vec![handle] })) else {
            panic!("an ack is answered")
        };
        let known = self.known(&handle);
        if known.held.is_some_and(|(latest, _)| latest == handle) {
            assert_eq!(results, [Ok(())]);
            known.acked = true;
        }
    }

    /// What the leader would have read: from `back` before the cursor (or behind it, if the cursor was closer) to `ahead` of it.
    fn scan(&self, queue: QueueId, (back, ahead): (u64, u64)) -> Scan {
        let cursor = self.machine.cursor(GROUP, TOPIC, queue).expect("a queue");
        let from = if back == 3 { cursor.next.0 + 1 } else { cursor.next.0.saturating_sub(back) };
        let end = (cursor.next.0 + ahead).min(cursor.end.0).max(from);
        let wanted = |known: &Known| known.wanted || !self.filtered;
        let looked_at = self.messages.range((queue, from)..(queue, end)).filter(|(_, known)| wanted(known));
        let chosen = looked_at
            .map(|((_, offset), known)| Chosen { offset: QueueOffset(*offset), group: MessageGroup(known.group) });
        Scan { queue, from: QueueOffset(from), end: QueueOffset(end), chosen: chosen.collect() }
    }

    fn receive(
        &mut self,
        max: u16,
        invisible_ms: u64,
        first: u16,
        attempt: Option<AttemptKey>,
        around: (u64, u64),
    ) -> Vec<Delivery> {
        let first_queue = QueueId(first);
        let receive = Receive { group: GROUP, topic: TOPIC, max, invisible_ms, first_queue, attempt, consumer: None };
        let again = self.machine.again(GROUP, TOPIC, first_queue, self.now, usize::from(max));
        let verdict = |(queue, offset): (QueueId, QueueOffset)| Verdict {
            queue,
            offset,
            wanted: self.messages[&(queue, offset.0)].wanted,
        };
        let verdicts = self.filtered.then(|| again.into_iter().map(verdict).collect());
        let scans = (0..QUEUES).map(|step| self.scan(QueueId((first + step) % QUEUES), around)).collect();
        let reply = self.apply(Command::ReceiveScanned(ReceiveScanned { receive, scans, verdicts }));
        let Reply::Received { deliveries } = reply else { panic!("{reply:?}") };
        self.follow(&deliveries);
        deliveries
    }

    fn follow(&mut self, deliveries: &[Delivery]) {
        let batch: Vec<(QueueId, u64)> = deliveries.iter().map(|one| (one.queue, one.offset.0)).collect();
        for (number, delivery) in deliveries.iter().enumerate() {
            let place = batch[number];
            let known = self.messages[&place];
            assert!(!known.acked, "{place:?} came back after its ack");
            assert!(known.wanted || !self.filtered, "{place:?} is not wanted");
            let repeated = known.held.is_some_and(|(handle, _)| handle == delivery.handle);
            assert!(
                repeated || known.held.is_none_or(|(_, visible_at)| visible_at <= self.now),
                "{place:?} is held by two"
            );
            if self.fifo && !repeated {
                self.in_order(place, known.group, &batch[..number]);
            }
        }
        for delivery in deliveries {
            self.handles.push(delivery.handle);
            self.known(&delivery.handle).held = Some((delivery.handle, delivery.visible_at));
        }
    }

    /// Nothing of the message group before `place` is undone outside of this batch, and nothing of it at all is hidden elsewhere.
    fn in_order(&self, place: (QueueId, u64), group: u64, earlier: &[(QueueId, u64)]) {
        for (other, known) in self.messages.range((place.0, 0)..(place.0, u64::MAX)) {
            let matters = known.group == group && (known.wanted || !self.filtered) && *other != place;
            if !matters || earlier.contains(other) || known.acked {
                continue;
            }
            assert!(other.1 > place.1, "{place:?} overtook {other:?}");
            let hidden = known.held.is_some_and(|(_, visible_at)| visible_at > self.now);
            assert!(!hidden, "{place:?} goes out while {other:?} is in flight");
        }
    }

    /// Once all times have run out, everything that is wanted and undone comes, in order.
    fn drain(&mut self) {
        loop {
            self.now = Timestamp(self.now.0 + 10_000);
            let deliveries = self.receive(3, 1, 0, None, (0, 1_000));
            if deliveries.is_empty() {
                break;
            }
            for delivery in deliveries {
                self.ack(delivery.handle);
            }
        }
        for (place, known) in &self.messages {
            assert_eq!(known.acked, known.wanted || !self.filtered, "{place:?}");
        }
        for queue in (0..QUEUES).map(QueueId) {
            let progress = self.machine.progress(GROUP, TOPIC, queue).expect("received");
            assert_eq!((progress.in_flight, progress.behind), (0, 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn message_groups_keep_their_order_one_batch_at_a_time_and_nothing_wanted_is_lost(
        steps in proptest::collection::vec((step(), 0..800u64, any::<u8>()), 1..200),
        fifo in any::<bool>(),
        filtered in any::<bool>(),
    ) {
        let mut world = World::new(fifo, filtered);
        for (step, pass_ms, cut) in &steps {
            world.now = Timestamp(world.now.0 + pass_ms);
            if cut % 16 == 0 {
                world.cut();
            }
            world.take(step);
        }
        world.drain();
        world.cut();
    }
}
