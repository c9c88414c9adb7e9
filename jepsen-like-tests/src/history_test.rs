use std::fs;

use super::*;

fn span(process: u32, invoke_us: u64) -> Span {
    Span { process, invoke_us, return_us: invoke_us + 7 }
}

/// One op of each kind and outcome.
fn samples() -> Vec<Op> {
    let topic: Arc<str> = "demo".into();
    let spot = Spot { queue: 3, offset: 99 };
    let send =
        |at, outcome| Op::Send(Send { span: span(1, at), topic: topic.clone(), key: "k \"1\"\n".into(), outcome });
    let receive = |at, outcome| Op::Receive(Receive { span: span(2, at), topic: topic.clone(), outcome });
    let ack = |at, outcome| Op::Ack(Ack { span: span(2, at), topic: topic.clone(), key: "k-1".into(), spot, outcome });
    let fault = |at, kind| Op::Fault(Fault { span: span(0, at), node: 2, kind });
    let hold = |at, what| Op::Hold(Hold { span: span(1, at), topic: topic.clone(), key: "k-1".into(), what });
    vec![
        send(1, Sent::Stored { queue: Some(3), offset: Some(99) }),
        send(2, Sent::Stored { queue: None, offset: Some(99) }),
        send(2, Sent::Stored { queue: None, offset: None }),
        send(3, Sent::Failed("no \"such\" topic".into())),
        send(4, Sent::Unknown("timed out".into())),
        receive(5, Received::Message { key: "k-1".into(), spot, attempt: 2 }),
        receive(6, Received::Failed("not now".into())),
        receive(7, Received::Unknown("reset".into())),
        ack(8, Acked::Done),
        ack(9, Acked::Failed("expired".into())),
        ack(10, Acked::Unknown("timed out".into())),
        fault(11, FaultKind::Kill),
        fault(12, FaultKind::Restart),
        fault(13, FaultKind::Pause),
        fault(14, FaultKind::Resume),
        fault(15, FaultKind::Crash),
        hold(17, Held::Until { not_before_us: 99 }),
        hold(18, Held::Recall(Acked::Done)),
        hold(19, Held::Recall(Acked::Failed("too late".into()))),
        hold(20, Held::Recall(Acked::Unknown("reset".into()))),
        hold(21, Held::Half),
        hold(22, Held::End { commit: true, outcome: Acked::Done }),
        hold(23, Held::End { commit: false, outcome: Acked::Failed("ended".into()) }),
        hold(24, Held::End { commit: false, outcome: Acked::Unknown("reset".into()) }),
        Op::Election(Election { span: span(0, 16), leader: 3, term: 9 }),
    ]
}

async fn write(path: &Path, ops: &[Op]) {
    let recorder = Recorder::create(path).unwrap();
    for op in ops {
        recorder.record(op.clone()).await;
    }
    assert_eq!(recorder.close().await.unwrap(), ops.len() as u64);
}

#[tokio::test]
async fn every_kind_of_op_comes_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl.gz");
    write(&path, &samples()).await;
    let mut reader = Reader::open(&path).unwrap();
    let read: Vec<Op> = reader.by_ref().map(Result::unwrap).collect();
    assert_eq!(read, samples());
    assert!(!reader.is_cut());
}

/// A harness may be killed at any byte: whatever the cut, the reader returns a prefix and never an error or an invented op.
#[tokio::test]
async fn a_file_cut_at_any_byte_gives_a_prefix_of_the_ops() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("1"), folder.path().join("2"));
    write(&first, &samples()[..6]).await;
    write(&second, &samples()[6..]).await;
    let border = fs::read(&first).unwrap().len();
    let whole = [fs::read(&first).unwrap(), fs::read(&second).unwrap()].concat();
    let cut = folder.path().join("cut");
    for end in 0..=whole.len() {
        fs::write(&cut, &whole[..end]).unwrap();
        let mut reader = Reader::open(&cut).unwrap();
        let read: Vec<Op> =
            reader.by_ref().map(|op| op.unwrap_or_else(|error| panic!("cut at {end}: {error}"))).collect();
        assert_eq!(read, samples()[..read.len()], "cut at {end}");
        if end >= border {
            assert!(read.len() >= 6, "cut at {end}: the first member is whole");
        }
        assert_eq!(reader.is_cut(), end != whole.len() && end != border, "cut at {end}");
    }
}

/// The file must be readable while the run goes on, not only after the close.
#[tokio::test]
async fn ops_reach_the_file_without_a_close() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl.gz");
    let recorder = Recorder::create(&path).unwrap();
    for op in samples() {
        recorder.record(op).await;
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while Reader::open(&path).unwrap().map_while(Result::ok).count() < samples().len() {
        assert!(std::time::Instant::now() < deadline, "the ops did not reach the file");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_line_that_lacks_a_field_is_refused_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad");
    let mut member = GzEncoder::new(Vec::new(), Compression::fast());
    member.write_all(br#"{"type":"send","process":1,"invoke_us":1,"return_us":2,"outcome":"ok","topic":"t"}"#).unwrap();
    member.write_all(b"\n").unwrap();
    fs::write(&path, member.finish().unwrap()).unwrap();
    let error = Reader::open(&path).unwrap().next().unwrap().unwrap_err().to_string();
    assert!(error.ends_with("line 1: key is missing"), "{error}");
}
