//! What must hold for every sequence of commands, not only for those somebody thought of.
//!
//! Random commands go into two machines, one of which is put through image bytes at random places. Both must answer the
//! same and end as the same bytes (LAW-SAME). Beside them runs a model that knows nothing but who holds which message.

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_broker::machine::{
    Ack, AttemptKey, Batch, ChangeInvisible, Command, CommitOffset, Delivery, DropGroup, DropTopic, Effect, GroupId,
    Handle, Machine, PutGroup, PutTopic, QueueId, QueueOffset, Receive, Reply, ResetOffset, Send, SendKey, StartAt,
    TopicId, TopicKind, UpdateOffset,
};
use quorate_proto::{
    names::{GroupName, TopicName},
    time::Timestamp,
};
use quorate_raft::Position;

/// A command with its choices still open: numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Send { topic: u32, queue: u16, id: u8, body: u8 },
    Receive { group: u32, topic: u32, max: u16, invisible_ms: u64, first: u16, attempt: Option<u8> },
    Ack { handle: usize },
    Change { handle: usize, invisible_ms: u64, renew: bool },
    Wild(Wild),
}

/// Commands that the model of holders does not follow.
#[derive(Clone, Debug)]
enum Wild {
    Commit { group: u32, topic: u32, queue: u16, offset: u64 },
    Reset { group: u32, topic: u32, queue: u16, offset: u64 },
    Update { group: u32, topic: u32, queue: u16, offset: u64 },
    DropTopic(u32),
    PutTopic { name: u8, queues: u16 },
    DropGroup(u32),
    PutGroup { name: u8, last: bool },
    Border,
    Floor { back: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..2u32, 0..3u16, any::<u8>(), 0..2u8).prop_map(|(topic, queue, id, body)| Step::Send { topic, queue, id, body }),
        4 => (0..2u32, 0..2u32, 0..6u16, 0..4_000u64, 0..4u16, proptest::option::of(0..4u8)).prop_map(
            |(group, topic, max, invisible_ms, first, attempt)| Step::Receive { group, topic, max, invisible_ms, first, attempt }
        ),
        4 => any::<usize>().prop_map(|handle| Step::Ack { handle }),
        2 => (any::<usize>(), 0..3_000u64, any::<bool>()).prop_map(
            |(handle, invisible_ms, renew)| Step::Change { handle, invisible_ms, renew }
        ),
    ]
}

fn wild_step() -> impl Strategy<Value = Step> {
    let place = || (0..3u32, 0..3u32, 0..3u16, 0..12u64);
    let wild = prop_oneof![
        place().prop_map(|(group, topic, queue, offset)| Wild::Commit { group, topic, queue, offset }),
        place().prop_map(|(group, topic, queue, offset)| Wild::Reset { group, topic, queue, offset }),
        place().prop_map(|(group, topic, queue, offset)| Wild::Update { group, topic, queue, offset }),
        (0..4u32).prop_map(Wild::DropTopic),
        (0..3u8, 1..4u16).prop_map(|(name, queues)| Wild::PutTopic { name, queues }),
        (0..4u32).prop_map(Wild::DropGroup),
        (0..3u8, any::<bool>()).prop_map(|(name, last)| Wild::PutGroup { name, last }),
        Just(Wild::Border),
        (0..8_000u64).prop_map(|back| Wild::Floor { back }),
    ];
    prop_oneof![4 => step(), 1 => wild.prop_map(Step::Wild)]
}

/// Two machines that must agree.
struct Pair {
    straight: Machine,
    cut: Machine,
    now: Timestamp,
    position: u64,
    handles: Vec<Handle>,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            straight: Machine::default(),
            cut: Machine::default(),
            now: Timestamp(1_000),
            position: 0,
            handles: Vec::new(),
        };
        for name in 0..2 {
            pair.apply(put_topic(name, 3));
            pair.apply(put_group(name, StartAt::First));
        }
        pair
    }

    /// Each message that a group has not done counts once, whatever happened before.
    fn check_lag(&self) {
        let machine = &self.straight;
        for group in machine.groups() {
            for topic in group.topics() {
                let queues = machine.topic_by_id(topic).expect("progress goes with its topic").queues();
                for queue in (0..queues).map(QueueId) {
                    let place = (group.id(), topic, queue);
                    let lag = machine.lag(place.0, place.1, place.2, self.now).expect("it has begun");
                    let counted = lag.ready + lag.waiting + lag.in_flight;
                    if let Some(progress) = machine.progress(place.0, place.1, place.2) {
                        assert_eq!(counted, progress.behind + progress.in_flight, "{place:?} {lag:?} {progress:?}");
                    }
                }
            }
        }
    }

    fn apply(&mut self, command: Command) -> Reply {
        let payload = Batch { now: self.now, commands: vec![command] }.encode();
        let position = Position(self.position);
        self.position += 1_000;
        let commands = Batch::decode(payload).expect("what was encoded decodes").commands;
        let mut effects = (Vec::<Effect>::new(), Vec::<Effect>::new());
        let mut replies = Vec::new();
        for command in commands {
            let reply = self.straight.apply(self.now, position, command.clone(), &mut effects.0);
            assert_eq!(self.cut.apply(self.now, position, command, &mut effects.1), reply);
            replies.push(reply);
        }
        assert_eq!(effects.0, effects.1);
        self.check_lag();
        let reply = replies.pop().expect("one command, one reply");
        match &reply {
            Reply::Received { deliveries } => self.handles.extend(deliveries.iter().map(|delivery| delivery.handle)),
            Reply::Changed { handle, .. } => self.handles.push(*handle),
            Reply::Sent { .. }
            | Reply::Delayed { .. }
            | Reply::Half { .. }
            | Reply::Acked { .. }
            | Reply::Topic { .. }
            | Reply::Group { .. }
            | Reply::Done
            | Reply::Refused(_) => {}
        }
        reply
    }

    fn cut(&mut self) {
        let image = self.straight.save_image();
        assert_eq!(self.cut.save_image(), image, "equal machines give equal bytes");
        self.cut = Machine::load_image(image).expect("a saved image loads");
    }

    fn handle(&self, choice: usize) -> Option<Handle> {
        (!self.handles.is_empty()).then(|| self.handles[choice % self.handles.len()])
    }

    /// The command of a step, if it is one and there is something to choose from.
    fn command(&self, step: &Step) -> Option<Command> {
        Some(match *step {
            Step::Send { topic, queue, id, body } => Command::Send(Send {
                topic: TopicId(topic),
                queue: QueueId(queue),
                key: SendKey::new(TopicId(topic), "c", &id.to_string()),
                body_crc: u32::from(body),
                tag_hash: 0,
                record: bytes::Bytes::from(vec![body; 3]).into(),
            }),
            Step::Receive { group, topic, max, invisible_ms, first, attempt } => Command::Receive(Receive {
                group: GroupId(group),
                topic: TopicId(topic),
                max,
                invisible_ms,
                first_queue: QueueId(first),
                attempt: attempt.map(|attempt| AttemptKey::new(&attempt.to_string())),
                consumer: None,
            }),
            Step::Ack { handle } => {
                let handle = self.handle(handle)?;
                Command::Ack(Ack { group: handle.group, entries: vec![handle] })
            }
            Step::Change { handle, invisible_ms, renew } => {
                let handle = self.handle(handle)?;
                Command::ChangeInvisible(ChangeInvisible { group: handle.group, handle, invisible_ms, renew })
            }
            Step::Wild(ref wild) => self.wild(wild)?,
        })
    }

    fn wild(&self, wild: &Wild) -> Option<Command> {
        Some(match *wild {
            Wild::Commit { group, topic, queue, offset } => {
                let (group, topic) = (GroupId(group), TopicId(topic));
                Command::CommitOffset(CommitOffset { group, topic, queue: QueueId(queue), offset: QueueOffset(offset) })
            }
            Wild::Reset { group, topic, queue, offset } => {
                let (group, topic) = (GroupId(group), TopicId(topic));
                Command::ResetOffset(ResetOffset { group, topic, queue: QueueId(queue), offset: QueueOffset(offset) })
            }
            Wild::Update { group, topic, queue, offset } => {
                let (group, topic, queue, offset) =
                    (GroupId(group), TopicId(topic), QueueId(queue), QueueOffset(offset));
                Command::UpdateOffset(UpdateOffset { group, topic, queue, offset })
            }
            Wild::DropTopic(topic) => Command::DropTopic(DropTopic { topic: TopicId(topic) }),
            Wild::PutTopic { name, queues } => put_topic(name, queues),
            Wild::DropGroup(group) => Command::DropGroup(DropGroup { group: GroupId(group) }),
            Wild::PutGroup { name, last } => put_group(name, if last { StartAt::Last } else { StartAt::First }),
            Wild::Border | Wild::Floor { .. } => return None,
        })
    }
}

fn put_topic(name: u8, queues: u16) -> Command {
    let name = TopicName::parse(&format!("t{name}")).expect("a name");
    Command::PutTopic(PutTopic { name, queues, kind: TopicKind::Any, auto: false, replace: true })
}

fn put_group(name: u8, start: StartAt) -> Command {
    let name = GroupName::parse(&format!("g{name}")).expect("a name");
    Command::PutGroup(PutGroup { name, fifo: false, start, auto: false, replace: true, retry: None })
}

type Message = (GroupId, TopicId, QueueId, QueueOffset);

/// Who holds what, as a bystander sees it.
#[derive(Default)]
struct Holders {
    by_message: BTreeMap<Message, Holding>,
}

struct Holding {
    handle: Handle,
    visible_at: Timestamp,
    acked: bool,
}

impl Holders {
    fn delivered(&mut self, delivery: &Delivery, now: Timestamp) {
        let handle = delivery.handle;
        let message = (handle.group, handle.topic, handle.queue, handle.offset);
        match self.by_message.get(&message) {
            None => assert_eq!(delivery.attempt, 1, "the first hand-out of {message:?}"),
            Some(before) => {
                assert!(!before.acked, "{message:?} came back after its ack");
                if before.handle.serial == handle.serial {
                    // The repeat of a receive: the same delivery once more.
                    assert_eq!((before.handle, before.visible_at), (handle, delivery.visible_at));
                } else {
                    assert!(before.visible_at <= now, "{message:?} is held by two at once");
                    assert_eq!(delivery.attempt, before.handle.attempt + 1);
                    assert!(handle.serial > before.handle.serial);
                }
            }
        }
        self.by_message.insert(message, Holding { handle, visible_at: delivery.visible_at, acked: false });
    }

    fn holding(&mut self, handle: &Handle) -> &mut Holding {
        let message = (handle.group, handle.topic, handle.queue, handle.offset);
        self.by_message.get_mut(&message).expect("a handle comes with a delivery")
    }

    fn follow(&mut self, command: &Command, reply: &Reply, now: Timestamp) {
        match (command, reply) {
            (_, Reply::Received { deliveries }) => deliveries.iter().for_each(|delivery| self.delivered(delivery, now)),
            (Command::Ack(ack), Reply::Acked { results }) => {
                let holding = self.holding(&ack.entries[0]);
                let is_latest = holding.handle == ack.entries[0];
                assert_eq!(results[0].is_ok(), is_latest || holding.acked);
                holding.acked |= is_latest;
            }
            (Command::ChangeInvisible(change), Reply::Changed { handle, visible_at }) => {
                let holding = self.holding(&change.handle);
                assert!(!holding.acked && holding.handle == change.handle);
                assert_eq!(change.renew, holding.handle == *handle);
                (holding.handle, holding.visible_at) = (*handle, *visible_at);
            }
            (Command::ChangeInvisible(change), _) => {
                let holding = self.holding(&change.handle);
                assert!(holding.acked || holding.handle != change.handle);
            }
            (_, _) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_message_has_one_holder_never_returns_after_its_ack_and_is_never_lost(
        steps in proptest::collection::vec((step(), 0..800u64, any::<u8>()), 1..250),
    ) {
        let mut pair = Pair::new();
        let mut holders = Holders::default();
        for (step, pass_ms, cut) in &steps {
            pair.now = Timestamp(pair.now.0 + pass_ms);
            if cut % 16 == 0 {
                pair.cut();
            }
            let Some(command) = pair.command(step) else { continue };
            let reply = pair.apply(command.clone());
            holders.follow(&command, &reply, pair.now);
        }
        // Everything that is left comes out once all times have run out, and then nothing comes any more.
        pair.now = Timestamp(pair.now.0 + 10_000);
        for group in [GroupId(0), GroupId(1)] {
            for topic in [TopicId(0), TopicId(1)] {
                loop {
                    let receive = Receive { group, topic, max: 7, invisible_ms: 1, first_queue: QueueId(1), attempt: None , consumer: None};
                    let Reply::Received { deliveries } = pair.apply(Command::Receive(receive)) else { unreachable!() };
                    if deliveries.is_empty() {
                        break;
                    }
                    for delivery in &deliveries {
                        holders.delivered(delivery, pair.now);
                        let ack = Command::Ack(Ack { group, entries: vec![delivery.handle] });
                        let reply = pair.apply(ack.clone());
                        holders.follow(&ack, &reply, pair.now);
                    }
                }
                let ends = (0..3).map(|queue| pair.straight.queue_range(topic, QueueId(queue)).expect("a queue").1.0);
                let sent: u64 = ends.sum();
                let done = holders.by_message.iter().filter(|((g, t, ..), holding)| {
                    (*g, *t) == (group, topic) && holding.acked
                });
                prop_assert_eq!(done.count() as u64, sent);
            }
        }
        pair.cut();
    }

    #[test]
    fn two_machines_stay_equal_whatever_the_log_says(
        steps in proptest::collection::vec((wild_step(), 0..8_000u64, any::<u8>()), 1..250),
    ) {
        let mut pair = Pair::new();
        let mut border = 0;
        for (step, pass_ms, cut) in &steps {
            pair.now = Timestamp(pair.now.0 + pass_ms);
            if cut % 16 == 0 {
                pair.cut();
            }
            let mut effects = (Vec::new(), Vec::new());
            if let Step::Wild(Wild::Border) = step {
                border = pair.position;
                pair.straight.border(Position(border));
                pair.cut.border(Position(border));
                // Replay may come to the same border again.
                pair.cut.border(Position(border));
            } else if let Step::Wild(Wild::Floor { back }) = step {
                let floor = Position(border.saturating_sub(*back));
                pair.straight.floor(floor, &mut effects.0);
                pair.cut.floor(floor, &mut effects.1);
                prop_assert_eq!(effects.0, effects.1);
                pair.cut.floor(floor, &mut Vec::new());
            } else if let Some(command) = pair.command(step) {
                pair.apply(command);
            }
        }
        pair.cut();
        // A replica that starts from this image and gets the same commands is the same machine.
        let ready = |machine: &Machine| machine.ready(GroupId(0), TopicId(0), pair.now);
        prop_assert_eq!(ready(&pair.straight), ready(&pair.cut));
    }
}
