use super::*;
use crate::machine::{Delays, codec::sample, ids::Serial};

fn handle(offset: u64) -> Handle {
    let (topic, group, queue) = (TopicId(1), GroupId(2), QueueId(3));
    Handle { topic, group, queue, offset: QueueOffset(offset), serial: Serial(offset + 7), attempt: 1 }
}

fn send(body: &'static str) -> Command {
    Command::Send(Send {
        topic: TopicId(1),
        queue: QueueId(2),
        key: SendKey(3),
        body_crc: 4,
        tag_hash: 5,
        record: Bytes::from_static(body.as_bytes()).into(),
    })
}

/// One of each, in the order of their numbers.
fn batch() -> Batch {
    let (group, topic, queue, offset) = (GroupId(1), TopicId(2), QueueId(3), QueueOffset(4));
    let name = TopicName::parse("orders").expect("a name");
    let attempt = Some(AttemptKey(11));
    Batch {
        now: Timestamp(1_700_000_000_000),
        commands: vec![
            send("hello"),
            Command::Receive(Receive {
                group,
                topic,
                max: 32,
                invisible_ms: 60_000,
                first_queue: queue,
                attempt,
                consumer: None,
            }),
            Command::Receive(Receive {
                group,
                topic,
                max: 1,
                invisible_ms: 0,
                first_queue: queue,
                attempt: None,
                consumer: None,
            }),
            Command::Ack(Ack { group, entries: vec![handle(1), handle(2)] }),
            Command::ChangeInvisible(ChangeInvisible { group, handle: handle(3), invisible_ms: 9, renew: true }),
            Command::CommitOffset(CommitOffset { group, topic, queue, offset }),
            Command::ResetOffset(ResetOffset { group, topic, queue, offset }),
            Command::PutTopic(PutTopic { name, queues: 8, kind: TopicKind::Any, auto: true, replace: false }),
            Command::DropTopic(DropTopic { topic }),
            Command::PutGroup(PutGroup {
                name: GroupName::parse("billing").expect("a name"),
                fifo: true,
                start: StartAt::Last,
                auto: false,
                replace: true,
                retry: None,
            }),
            Command::DropGroup(DropGroup { group }),
            send("world"),
        ],
    }
}

/// What decoding adds to a record is where it stands.
fn without_places(mut batch: Batch) -> Batch {
    for command in &mut batch.commands {
        if let Command::Send(Send { record, .. })
        | Command::SendHalf(SendHalf { send: Send { record, .. }, .. })
        | Command::Resolve(Resolve { record: Some(record), .. })
        | Command::SendDelayed(SendDelayed { send: Send { record, .. }, .. })
        | Command::Deliver(Deliver { record, .. })
        | Command::DeadLetter(DeadLetter { record, .. })
        | Command::Redrive(Redrive { record, .. })
        | Command::Carry(Carry { record, .. }) = command
        {
            *record = Record::new(record.bytes().clone());
        }
    }
    batch
}

#[test]
fn a_batch_survives_its_bytes() {
    let payload = batch().encode();
    assert_eq!(without_places(Batch::decode(payload).expect("sound bytes")), batch());
}

#[test]
fn records_are_slices_of_the_payload_and_know_where_they_stand() {
    let payload = batch().encode();
    let decoded = Batch::decode(payload.clone()).expect("sound bytes");
    for command in decoded.commands {
        let Command::Send(send) = command else { continue };
        let at = send.record.at() as usize;
        assert_eq!(&payload[at..at + send.record.bytes().len()], send.record.bytes());
        assert_eq!(payload[at..].as_ptr(), send.record.bytes().as_ptr(), "not a copy");
        let stamp = payload[at - 8..at].try_into().map(u64::from_le_bytes).ok();
        assert_eq!(stamp, Some(batch().now.0), "the stamp stands before the record");
    }
}

#[test]
fn the_bytes_of_a_batch_are_what_they_were() {
    let sample = sample("batch-2.bin", &batch().encode());
    assert_eq!(batch().encode()[..], sample[..], "the format has changed; a new version needs a new number");
    assert_eq!(Batch::decode(sample.into()).map(without_places), Ok(batch()));
}

/// Retries and dead letters.
fn dead_letters() -> Batch {
    let (group, topic, queue, attempt) = (GroupId(1), TopicId(2), QueueId(3), Some(AttemptKey(11)));
    let name = GroupName::parse("billing").expect("a name");
    let put = |delays| {
        let retry = Some(Retry::new(5, delays).expect("in range"));
        let (fifo, start, auto, replace) = (true, StartAt::First, false, false);
        Command::PutGroup(PutGroup { name: name.clone(), fifo, start, auto, replace, retry })
    };
    let consumer = consumer("host@1@0@x");
    let receive = Receive { group, topic, max: 32, invisible_ms: 60_000, first_queue: queue, attempt, consumer };
    let record: Record = Bytes::from_static(b"dead").into();
    Batch {
        now: Timestamp(1_700_000_000_000),
        commands: vec![
            put(Delays::Ladder(vec![1000, 5000])),
            put(Delays::exponential()),
            Command::Receive(receive.clone()),
            Command::ReceiveScanned(ReceiveScanned { receive, scans: Vec::new(), verdicts: None }),
            Command::GiveBack(GiveBack { group, invisible_ms: 9, entries: vec![handle(1), handle(2)] }),
            Command::DeadLetter(DeadLetter { handle: handle(3), forwarded: true, tag_hash: 5, record: record.clone() }),
            Command::Redrive(Redrive {
                from: topic,
                queue,
                offset: QueueOffset(4),
                to: TopicId(6),
                to_queue: QueueId(7),
                tag_hash: 8,
                record,
            }),
        ],
    }
}

#[test]
fn the_bytes_of_retries_and_dead_letters_are_what_they_were() {
    let sample = sample("batch-dead-letters-2.bin", &dead_letters().encode());
    assert_eq!(dead_letters().encode()[..], sample[..], "the format has changed; a new version needs a new number");
    assert_eq!(Batch::decode(sample.into()).map(without_places), Ok(dead_letters()));
}

/// What consumers that pull say.
fn pull() -> Batch {
    let (group, topic, queue, offset) = (GroupId(1), TopicId(2), QueueId(3), QueueOffset(1 << 40));
    let update = Command::UpdateOffset(UpdateOffset { group, topic, queue, offset });
    Batch { now: Timestamp(1_700_000_000_000), commands: vec![update] }
}

/// A group that begins at a time, and where that is.
fn begin() -> Batch {
    let name = GroupName::parse("billing").expect("a name");
    let start = StartAt::Since(Timestamp(1_700_000_000_001));
    let places = vec![(QueueId(0), QueueOffset(7)), (QueueId(3), QueueOffset(1 << 40))];
    let put = PutGroup { name, fifo: true, start, auto: false, replace: true, retry: None };
    let usual = Some(Retry::new(5, Delays::exponential()).expect("in range"));
    Batch {
        now: Timestamp(1_700_000_000_000),
        commands: vec![
            Command::PutGroup(put.clone()),
            Command::PutGroup(PutGroup { retry: usual, ..put }),
            Command::Begin(Begin { group: GroupId(1), topic: TopicId(2), places }),
        ],
    }
}

#[test]
fn the_bytes_of_a_start_at_a_time_are_what_they_were() {
    let sample = sample("batch-begin-2.bin", &begin().encode());
    assert_eq!(begin().encode()[..], sample[..], "the format has changed; a new version needs a new number");
    assert_eq!(Batch::decode(sample.into()), Ok(begin()));
}

#[test]
fn the_bytes_of_what_consumers_that_pull_say_are_what_they_were() {
    let sample = sample("batch-pull-2.bin", &pull().encode());
    assert_eq!(pull().encode()[..], sample[..], "the format has changed; a new version needs a new number");
    assert_eq!(Batch::decode(sample.into()), Ok(pull()));
}

#[test]
fn a_client_id_that_is_too_long_is_cut_at_a_character() {
    assert_eq!(consumer(""), None);
    assert_eq!(consumer(&"é".repeat(200)).as_deref(), Some("é".repeat(127).as_str()));
}

/// What the leader read ahead, with and without a filter.
fn scanned() -> Batch {
    let receive = Receive {
        group: GroupId(1),
        topic: TopicId(2),
        max: 32,
        invisible_ms: 60_000,
        first_queue: QueueId(3),
        attempt: Some(AttemptKey(11)),
        consumer: None,
    };
    let chosen = |offset, group| Chosen { offset: QueueOffset(offset), group: MessageGroup(group) };
    let (from, end) = (QueueOffset(7), QueueOffset(1 << 40));
    let scans = vec![
        Scan { queue: QueueId(0), from, end, chosen: vec![chosen(7, 5), chosen(8, 6), chosen(9_000, 5)] },
        Scan { queue: QueueId(1), from, end, chosen: Vec::new() },
    ];
    let verdict = |offset, wanted| Verdict { queue: QueueId(1), offset: QueueOffset(offset), wanted };
    let verdicts = vec![verdict(3, true), verdict(4, false)];
    let now = Timestamp(1_700_000_000_000);
    let plain = ReceiveScanned { receive: receive.clone(), scans: scans.clone(), verdicts: None };
    let filtered = ReceiveScanned { receive, scans, verdicts: Some(verdicts) };
    Batch { now, commands: vec![Command::ReceiveScanned(plain), Command::ReceiveScanned(filtered)] }
}

#[test]
fn the_bytes_of_what_was_read_ahead_are_what_they_were() {
    let sample = sample("batch-scanned-2.bin", &scanned().encode());
    assert_eq!(scanned().encode()[..], sample[..], "the format has changed; a new version needs a new number");
    assert_eq!(Batch::decode(sample.into()), Ok(scanned()));
}

#[test]
fn a_scan_that_chose_what_it_did_not_look_at_is_refused() {
    let bad = |change: fn(&mut Scan)| {
        let mut batch = scanned();
        let Some(Command::ReceiveScanned(receive)) = batch.commands.first_mut() else { panic!("a scan") };
        change(&mut receive.scans[0]);
        Batch::decode(batch.encode()).map(drop)
    };
    assert_eq!(bad(|_| {}), Ok(()));
    assert!(bad(|scan| scan.end = QueueOffset(9_000)).is_err(), "behind the end");
    assert!(bad(|scan| scan.chosen.swap(0, 1)).is_err(), "not in order");
    assert!(bad(|scan| scan.chosen[1] = scan.chosen[0]).is_err(), "twice");
}

/// Everything about half messages.
fn transactions() -> Batch {
    let Command::Send(send) = send("half") else { panic!("a send") };
    let (id, topic, now) = (HalfId(1 << 40), TopicId(1), Timestamp(1_700_000_000_000));
    let record: Record = Bytes::from_static(b"half").into();
    let end = |resolution, record| Command::Resolve(Resolve { id, topic, resolution, record });
    let waiting = Waiting::Half(id);
    Batch {
        now,
        commands: vec![
            Command::SendHalf(SendHalf { immunity_ms: 6_000, send }),
            end(Resolution::Commit, Some(record.clone())),
            end(Resolution::Commit, None),
            end(Resolution::Rollback, None),
            Command::Checked(Checked { id, checks: 3, again_ms: Some(30_000) }),
            Command::Checked(Checked { id, checks: 15, again_ms: None }),
            Command::Carry(Carry { waiting, record }),
        ],
    }
}

#[test]
fn the_bytes_of_transactions_are_what_they_were() {
    let sample = sample("batch-transactions-2.bin", &transactions().encode());
    assert_eq!(transactions().encode()[..], sample[..], "the format has changed; a new version needs a new number");
    assert_eq!(Batch::decode(sample.into()).map(without_places), Ok(transactions()));
}

#[test]
fn every_cut_and_every_flipped_byte_is_an_error_or_another_batch_and_never_a_panic() {
    for payload in [batch().encode(), scanned().encode(), transactions().encode()] {
        for len in 0..payload.len() {
            assert!(Batch::decode(payload.slice(..len)).is_err(), "cut at {len}");
        }
        for at in 0..payload.len() {
            for flip in [1, 0x80, 0xFF] {
                let mut bytes = payload.to_vec();
                bytes[at] ^= flip;
                if let Ok(other) = Batch::decode(bytes.clone().into()) {
                    assert_eq!(other.encode()[..], bytes[..], "byte {at}: decoded to something else than it says");
                }
            }
        }
    }
}

#[test]
fn bytes_behind_the_end_and_unknown_numbers_are_refused() {
    let mut payload = batch().encode().to_vec();
    payload.push(0);
    assert!(Batch::decode(payload.into()).is_err());
    let empty = Batch { now: Timestamp(1), commands: Vec::new() };
    assert_eq!(Batch::decode(empty.encode()), Ok(empty.clone()));
    let mut unknown = empty.encode().to_vec();
    unknown[9] = 1;
    unknown.extend([200, 0, 0, 0, 0]);
    assert_eq!(Batch::decode(unknown.into()).expect_err("unknown").what, "unknown command");
}

/// Delayed messages, in the order of their numbers.
fn delayed() -> Batch {
    let Command::Send(send) = send("later") else { unreachable!() };
    let id = DelayId { due: Timestamp(1_700_000_100_000), number: 6 };
    let record = Record::new(Bytes::from_static(b"later"));
    Batch {
        now: Timestamp(1_700_000_000_000),
        commands: vec![
            Command::SendDelayed(SendDelayed { due: id.due, send }),
            Command::Deliver(Deliver { id, record: record.clone() }),
            Command::Recall(Recall { id, topic: TopicId(1) }),
            Command::Carry(Carry { waiting: Waiting::Delayed(id), record }),
        ],
    }
}

#[test]
fn the_bytes_of_delayed_messages_are_what_they_were() {
    let sample = sample("batch-2-delayed.bin", &delayed().encode());
    assert_eq!(delayed().encode()[..], sample[..], "the format has changed; a new version needs a new number");
    let decoded = Batch::decode(sample.clone().into()).expect("sound bytes");
    let mut records = Vec::new();
    for command in &decoded.commands {
        if let Command::SendDelayed(SendDelayed { send: Send { record, .. }, .. })
        | Command::Deliver(Deliver { record, .. })
        | Command::DeadLetter(DeadLetter { record, .. })
        | Command::Redrive(Redrive { record, .. })
        | Command::Carry(Carry { record, .. }) = command
        {
            records.push(record);
        }
    }
    assert_eq!(records.len(), 3);
    for record in records {
        let at = record.at() as usize;
        assert_eq!(&sample[at..at + 5], b"later", "a record knows where it stands");
    }
    assert_eq!(without_places(decoded), delayed());
    for len in 0..sample.len() {
        assert!(Batch::decode(sample[..len].to_vec().into()).is_err(), "cut at {len}");
    }
}
