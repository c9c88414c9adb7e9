use quorate_proto::names::{GroupName, TopicName};

use super::*;
use crate::machine::{
    Ack, AttemptKey, Begin, Checked, Chosen, Command, DeadLetter, Delays, GiveBack, HalfId, MessageGroup, PutGroup,
    PutTopic, QueueId, QueueOffset, Recall, Receive, ReceiveScanned, Redrive, Reply, Resolution, Resolve, Retry, Scan,
    Send, SendDelayed, SendHalf, SendKey, StartAt, TopicKind, codec::sample, consumer,
};

/// A machine with something in every field.
fn machine() -> Machine {
    let mut machine = Machine::default();
    let mut at = 0;
    let mut apply = |machine: &mut Machine, command: Command| {
        at += 1;
        machine.apply(Timestamp(at * 100), Position(at * 1000), command, &mut Vec::new())
    };
    for name in ["orders", "bills"] {
        let name = TopicName::parse(name).expect("a name");
        apply(
            &mut machine,
            Command::PutTopic(PutTopic { name, queues: 2, kind: TopicKind::Any, auto: true, replace: false }),
        );
    }
    for (name, start, fifo) in [("g", StartAt::First, false), ("h", StartAt::Last, false), ("o", StartAt::First, true)]
    {
        let name = GroupName::parse(name).expect("a name");
        apply(&mut machine, Command::PutGroup(PutGroup { name, fifo, start, auto: true, replace: false, retry: None }));
    }
    for number in 0..12u32 {
        let (topic, queue) = (TopicId(number % 2), QueueId((number / 2 % 2) as u16));
        let key = SendKey(u128::from(number % 5));
        let record = Bytes::from_static(b"body").into();
        apply(&mut machine, Command::Send(Send { topic, queue, key, body_crc: number, tag_hash: 0, record }));
        if number == 5 || number == 8 {
            machine.border(Position(u64::from(number) * 10_000));
        }
    }
    for number in 0..5u32 {
        let (topic, queue, key) = (TopicId(number % 2), QueueId(0), SendKey(u128::from(100 + number)));
        let record = Bytes::from_static(b"later").into();
        let send = Send { topic, queue, key, body_crc: number, tag_hash: 7, record };
        let due = Timestamp(600_000 * u64::from(number) + 50_000);
        let reply = apply(&mut machine, Command::SendDelayed(SendDelayed { due, send }));
        let Reply::Delayed { id, .. } = reply else { panic!("{reply:?}") };
        if number == 3 {
            apply(&mut machine, Command::Recall(Recall { id, topic }));
        }
    }
    for (group, attempt) in [(0, Some("a")), (1, None), (0, Some("b"))] {
        let receive = Receive {
            group: GroupId(group),
            topic: TopicId(0),
            max: 3,
            invisible_ms: 10_000,
            first_queue: QueueId(1),
            attempt: attempt.map(AttemptKey::new),
            consumer: None,
        };
        let reply = apply(&mut machine, Command::Receive(receive));
        let Reply::Received { deliveries } = reply else { panic!("{reply:?}") };
        if let Some(delivery) = deliveries.first() {
            apply(&mut machine, Command::Ack(Ack { group: GroupId(group), entries: vec![delivery.handle] }));
        }
    }
    for (max, groups) in [(2, [1, 2, 1]), (2, [0, 1, 1])] {
        let receive = Receive {
            group: GroupId(2),
            topic: TopicId(0),
            max,
            invisible_ms: 10_000,
            first_queue: QueueId(1),
            attempt: None,
            consumer: None,
        };
        let choose = |(offset, group)| Chosen { offset: QueueOffset(offset), group: MessageGroup(group) };
        let chosen = (0..).zip(groups).map(choose).collect();
        let scan = Scan { queue: QueueId(1), from: QueueOffset(0), end: QueueOffset(3), chosen };
        apply(&mut machine, Command::ReceiveScanned(ReceiveScanned { receive, scans: vec![scan], verdicts: None }));
    }
    machine
}

/// The same, with transactions in every state.
fn with_transactions() -> Machine {
    let mut machine = machine();
    let mut at = 100_000;
    let mut apply = |command: Command| {
        at += 1000;
        machine.apply(Timestamp(at), Position(at * 10), command, &mut Vec::new())
    };
    for number in 0..6u32 {
        let (topic, queue, key) = (TopicId(number % 2), QueueId(0), SendKey(u128::from(200 + number)));
        let record = Bytes::from_static(b"half").into();
        let send = Send { topic, queue, key, body_crc: number, tag_hash: 7, record };
        let reply = apply(Command::SendHalf(SendHalf { immunity_ms: 500, send }));
        assert_eq!(reply, Reply::Half { id: HalfId(number.into()), duplicate: false });
    }
    let end = |number, resolution| {
        Command::Resolve(Resolve { id: HalfId(number), topic: TopicId(number as u32 % 2), resolution, record: None })
    };
    assert!(matches!(apply(end(0, Resolution::Commit)), Reply::Sent { .. }));
    assert_eq!(apply(end(1, Resolution::Rollback)), Reply::Done);
    let checked = |number, again_ms| Command::Checked(Checked { id: HalfId(number), checks: 0, again_ms });
    assert_eq!(apply(checked(2, Some(30_000))), Reply::Done);
    assert_eq!(apply(checked(3, None)), Reply::Done);
    machine
}

/// The same, with messages of few attempts: one that has none left, and two that are dead letters, one of them redriven.
fn with_dead_letters() -> Machine {
    let mut machine = machine();
    let mut at = 100_000;
    let mut apply = |command: Command| {
        at += 1000;
        machine.apply(Timestamp(at), Position(at * 10), command, &mut Vec::new())
    };
    let retry = Some(Retry::new(1, Delays::exponential()).expect("in range"));
    let name = GroupName::parse("few").expect("a name");
    let put = PutGroup { name, fifo: false, start: StartAt::First, auto: false, replace: false, retry };
    assert_eq!(apply(Command::PutGroup(put)), Reply::Group { id: GroupId(3) });
    let (group, topic, first_queue) = (GroupId(3), TopicId(0), QueueId(0));
    let consumer = consumer("host@1");
    let receive = Receive { group, topic, max: 4, invisible_ms: 10, first_queue, attempt: None, consumer };
    let Reply::Received { deliveries } = apply(Command::Receive(receive)) else { panic!("nothing came") };
    for delivery in &deliveries[1..3] {
        let record = Bytes::from_static(b"dead").into();
        let dead = DeadLetter { handle: delivery.handle, forwarded: false, tag_hash: 0, record };
        assert!(matches!(apply(Command::DeadLetter(dead)), Reply::Sent { .. }));
    }
    let given = GiveBack { group, invisible_ms: 0, entries: vec![deliveries[3].handle] };
    assert_eq!(apply(Command::GiveBack(given)), Reply::Acked { results: vec![Ok(())] });
    let (from, queue, offset, to) = (TopicId(2), QueueId(0), QueueOffset(1), TopicId(0));
    let record = Bytes::from_static(b"again").into();
    let redrive = Redrive { from, queue, offset, to, to_queue: QueueId(0), tag_hash: 0, record };
    assert!(matches!(apply(Command::Redrive(redrive)), Reply::Sent { .. }));
    machine
}

/// The same, with a group that begins at a time.
fn with_a_start_at_a_time() -> Machine {
    let mut machine = with_dead_letters();
    let name = GroupName::parse("since").expect("a name");
    let start = StartAt::Since(Timestamp(77_000));
    let put = PutGroup { name, fifo: false, start, auto: false, replace: false, retry: None };
    let now = Timestamp(machine.now().0 + 1);
    machine.apply(now, Position(9_000_000), Command::PutGroup(put), &mut Vec::new());
    let places = vec![(QueueId(1), QueueOffset(2))];
    let begin = Begin { group: GroupId(4), topic: TopicId(0), places };
    let reply = machine.apply(now, Position(9_001_000), Command::Begin(begin), &mut Vec::new());
    assert_eq!(reply, Reply::Done);
    machine
}

fn with_crc(mut body: Vec<u8>) -> Bytes {
    let crc = crc32c::crc32c(&body);
    body.extend_from_slice(&crc.to_le_bytes());
    body.into()
}

#[test]
fn an_image_is_the_same_after_a_round_trip() {
    for machine in [Machine::default(), machine(), with_transactions(), with_dead_letters(), with_a_start_at_a_time()] {
        let image = machine.save_image();
        let loaded = Machine::load_image(image.clone()).expect("sound bytes");
        assert_eq!(loaded.save_image(), image);
    }
}

#[test]
fn the_bytes_of_an_image_are_what_they_were() {
    let sample = sample("image-3.bin", &machine().save_image());
    assert_eq!(machine().save_image()[..], sample[..], "the format has changed; a new version needs a new number");
    let image = with_transactions().save_image();
    let sample = self::sample("image-3-transactions.bin", &image);
    assert_eq!(image[..], sample[..], "the format has changed; a new version needs a new number");
    let image = with_a_start_at_a_time().save_image();
    let sample = self::sample("image-3-starts-and-deaths.bin", &image);
    assert_eq!(image[..], sample[..], "the format has changed; a new version needs a new number");
}

/// Parts that came later are absent in what was written before.
#[test]
fn an_image_from_before_dead_letters_were_counted_loads_and_counts_from_now_on() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format/image-3-dead-letters.bin");
    let old = std::fs::read(path).expect("the sample is there");
    let old = Machine::load_image(old.into()).expect("version 3");
    let now = with_dead_letters();
    assert_eq!((old.totals(), old.now()), (now.totals(), now.now()));
    let counted = |machine: &Machine| machine.dead(GroupId(3), TopicId(0), QueueId(0));
    assert_eq!((counted(&old), counted(&now)), (0, 2));
}

#[test]
fn when_a_topic_or_group_was_made_is_log_time_and_survives_a_change_and_an_image() {
    let put = |queues, replace| {
        let name = TopicName::parse("late").expect("a name");
        Command::PutTopic(PutTopic { name, queues, kind: TopicKind::Any, auto: false, replace })
    };
    let mut machine = machine();
    let at = machine.now().0 + 5_000;
    machine.apply(Timestamp(at), Position(0), put(2, false), &mut Vec::new());
    machine.apply(Timestamp(at + 1), Position(0), put(4, true), &mut Vec::new());
    let loaded = Machine::load_image(machine.save_image()).expect("sound bytes");
    for machine in [machine, loaded] {
        let created = |name| machine.topic(&TopicName::parse(name).expect("a name")).map(|topic| topic.created().0);
        assert_eq!((created("late"), created("orders")), (Some(at), Some(100)));
        let group = machine.group(&GroupName::parse("g").expect("a name"));
        assert_eq!(group.map(|group| group.created().0), Some(300));
    }
}

#[test]
fn an_image_of_an_earlier_version_is_refused_in_words() {
    for file in ["image-1.bin", "image-2.bin"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format").join(file);
        let old = std::fs::read(path).expect("the sample is there");
        let error = Machine::load_image(old.into()).map(|_| ()).expect_err("another version");
        assert!(error.to_string().contains("reads version 3 only"), "{error}");
    }
}

#[test]
fn a_damaged_image_is_refused_by_its_checksum() {
    let image = machine().save_image();
    for len in 0..image.len() {
        assert!(Machine::load_image(image.slice(..len)).is_err(), "cut at {len}");
    }
    for at in 0..image.len() {
        let mut bytes = image.to_vec();
        bytes[at] ^= 0x40;
        assert!(Machine::load_image(bytes.into()).is_err(), "byte {at}");
    }
}

#[test]
fn a_hostile_image_with_a_sound_checksum_is_refused_or_means_what_it_says() {
    for machine in [with_transactions(), with_a_start_at_a_time()] {
        hostile(&machine.save_image());
    }
}

fn hostile(image: &Bytes) {
    let body = &image[..image.len() - 4];
    let mut refused = 0;
    for at in 0..body.len() {
        for flip in [0x01, 0x80, 0xFF] {
            let mut bytes = body.to_vec();
            bytes[at] ^= flip;
            let hostile = with_crc(bytes);
            match Machine::load_image(hostile.clone()) {
                Err(_) => refused += 1,
                Ok(loaded) => assert_eq!(loaded.save_image(), hostile, "byte {at} was understood as something else"),
            }
        }
    }
    assert!(refused > body.len(), "only {refused} refused");
    for len in 0..body.len() {
        assert!(Machine::load_image(with_crc(body[..len].to_vec())).is_err(), "cut at {len}");
    }
}

#[test]
fn parts_and_remembered_sends_make_the_machine_again() {
    let machine = machine();
    let parts = machine.save_parts();
    assert!(parts.windows(2).all(|two| two[0].key < two[1].key), "parts come in the order of their keys");
    let (first, end) = machine.remembered();
    let remembered = machine.save_remembered(0);
    assert_eq!(remembered.len() as u64, (end - first) * REMEMBERED_BYTES as u64);
    let loaded: Result<Machine, DecodeError> = Machine::load_parts(parts.clone(), |asked_first, asked_end| {
        assert_eq!((asked_first, asked_end), (first, end));
        Ok(remembered)
    });
    assert_eq!(loaded.map(|loaded| loaded.save_image()), Ok(machine.save_image()));
    assert!(Machine::load_parts::<DecodeError>(parts, |_, _| Ok(Bytes::new())).is_err());
}

#[test]
fn remembered_sends_can_be_saved_from_a_number_on() {
    let machine = machine();
    let (_, end) = machine.remembered();
    let all = machine.save_remembered(0);
    let last_two = machine.save_remembered(end - 2);
    assert_eq!(all[all.len() - 2 * REMEMBERED_BYTES..], last_two[..]);
    assert!(machine.save_remembered(end).is_empty());
}
