//! The second opinion: `check_history.py` finds the planted anomalies and agrees with the Rust checkers on histories
//! that neither of them was written for. Says loudly when there is no Python to ask.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use quorate_jepsen::{
    check::{Table, Verdict},
    history::Recorder,
    op::{Ack, Acked, Op, Receive, Received, Send, Sent, Span, Spot},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

fn topic() -> Arc<str> {
    "demo".into()
}

fn send(process: u32, key: &str, (invoke_us, return_us): (u64, u64), outcome: Sent) -> Op {
    Op::Send(Send { span: Span { process, invoke_us, return_us }, topic: topic(), key: key.into(), outcome })
}

fn stored(queue: u32, offset: u64) -> Sent {
    Sent::Stored { queue: Some(queue), offset: Some(offset) }
}

fn received(process: u32, (invoke_us, return_us): (u64, u64), outcome: Received) -> Op {
    Op::Receive(Receive { span: Span { process, invoke_us, return_us }, topic: topic(), outcome })
}

fn receive(process: u32, key: &str, at: (u64, u64), (queue, offset): (u32, u64), attempt: u32) -> Op {
    received(process, at, Received::Message { key: key.into(), spot: Spot { queue, offset }, attempt })
}

fn ack(process: u32, key: &str, (invoke_us, return_us): (u64, u64), (queue, offset): (u32, u64)) -> Op {
    let span = Span { process, invoke_us, return_us };
    let spot = Spot { queue, offset };
    Op::Ack(Ack { span, topic: topic(), key: key.into(), spot, outcome: Acked::Done })
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("check_history.py")
}

fn python_is_missing() -> bool {
    let missing = Command::new("python3").arg("--version").output().is_err();
    if missing {
        eprintln!("\n*** NOT RUN: python3 is not installed, so check_history.py was not tested ***\n");
    }
    missing
}

/// The script's answer; its exit code must be the verdict.
fn ask_python(arguments: &[&Path], flags: &[&str]) -> Value {
    let output = Command::new("python3").arg(script()).args(flags).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let answer: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(i32::from(answer["verdict"] != "PASS")));
    answer
}

async fn save(path: &Path, ops: &[Op]) {
    let recorder = Recorder::create(path).unwrap();
    for op in ops {
        recorder.record(op.clone()).await;
    }
    recorder.close().await.unwrap();
}

/// Both opinions on `ops`, which must be the same.
async fn both(folder: &Path, ops: &[Op]) -> Value {
    let path = folder.join("history.jsonl.gz");
    save(&path, ops).await;
    let python = ask_python(&[&path], &[]);
    let rust = serde_json::to_value(Verdict::of(&Table::of(ops))).unwrap();
    let keys = [
        "acked",
        "consumed",
        "lost",
        "duplicates",
        "order_violations",
        "longest_gap_ms",
        "invented",
        "aborted_reads",
        "inconsistent_offsets",
        "mistold",
        "double_deliveries",
        "acked_returned",
    ];
    for key in keys {
        assert_eq!(python[key].as_f64(), rust[key].as_f64(), "{key}\npython {python}\nrust {rust}\n{ops:#?}");
    }
    assert_eq!(python["verdict"], rust["verdict"]);
    python
}

/// Two messages, sent, delivered and acknowledged in order.
fn clean() -> Vec<Op> {
    vec![
        send(1, "a", (1_000, 2_000), stored(0, 0)),
        send(1, "b", (3_000, 5_000), stored(0, 1)),
        receive(100, "a", (6_000, 7_000), (0, 0), 1),
        receive(100, "b", (6_000, 7_000), (0, 1), 1),
        ack(100, "a", (7_000, 8_000), (0, 0)),
    ]
}

#[tokio::test]
async fn the_script_passes_a_clean_history_and_finds_each_planted_anomaly() {
    if python_is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let clean_answer = both(folder.path(), &clean()).await;
    assert_eq!(clean_answer["verdict"], "PASS");
    assert_eq!(clean_answer["longest_gap_ms"], 3.0);
    let planted = [
        ("lost", vec![send(1, "c", (5_000, 6_000), stored(0, 2))]),
        ("duplicates", vec![receive(101, "a", (8_000, 9_000), (1, 0), 1)]),
        (
            "order_violations",
            vec![
                send(2, "c", (5_500, 6_000), stored(1, 7)),
                send(2, "d", (6_500, 7_000), stored(1, 6)),
                receive(100, "d", (8_000, 9_000), (1, 6), 1),
                receive(100, "c", (8_000, 9_000), (1, 7), 1),
            ],
        ),
        (
            "order_violations",
            vec![
                send(2, "c", (5_500, 6_000), stored(1, 6)),
                send(2, "d", (6_500, 7_000), stored(1, 7)),
                receive(100, "d", (8_000, 9_000), (1, 7), 1),
                receive(101, "c", (9_500, 9_900), (1, 6), 1),
            ],
        ),
        (
            "mistold",
            vec![
                send(2, "c", (5_500, 6_000), Sent::Stored { queue: None, offset: Some(3) }),
                receive(101, "c", (8_000, 9_000), (1, 6), 1),
            ],
        ),
        ("invented", vec![receive(100, "ghost", (8_000, 9_000), (1, 0), 1)]),
        ("acked_returned", vec![receive(100, "a", (8_500, 9_000), (0, 0), 2)]),
    ];
    for (kind, ops) in planted {
        let answer = both(folder.path(), &[clean(), ops].concat()).await;
        assert_eq!((&answer[kind], &answer["verdict"]), (&json!(1), &json!("FAIL")), "{kind}: {answer}");
    }
}

/// Histories made of dice: nearly everything is wrong in them, and both must count it the same way.
#[tokio::test]
async fn both_opinions_agree_on_histories_made_of_dice() {
    if python_is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..12 {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut ops = Vec::new();
        let at = |dice: &mut StdRng| {
            let begin = dice.random_range(0..400);
            (begin, begin + dice.random_range(0..40))
        };
        for number in 0..dice.random_range(0..80) {
            let outcome = match dice.random_range(0..6) {
                0 => Sent::Failed("".into()),
                1 => Sent::Unknown("".into()),
                2 => Sent::Stored { queue: None, offset: None },
                _ => stored(dice.random_range(0..3), dice.random_range(0..40)),
            };
            ops.push(send(dice.random_range(1..4), &format!("k{number}"), at(&mut dice), outcome));
        }
        for process in 100..103 {
            let mut clock = 0;
            for _ in 0..dice.random_range(0..30) {
                let call = (clock + dice.random_range(1..9), clock + dice.random_range(9..30));
                clock = call.1;
                if dice.random_range(0..5) == 0 {
                    ops.push(received(process, call, Received::Unknown("".into())));
                    continue;
                }
                for _ in 0..dice.random_range(0..4) {
                    let key = format!("k{}", dice.random_range(0..90));
                    let place = (dice.random_range(0..3), dice.random_range(0..40));
                    ops.push(receive(process, &key, call, place, dice.random_range(1..3)));
                    if dice.random_range(0..2) == 0 {
                        ops.push(ack(process, &key, at(&mut dice), place));
                    }
                }
            }
        }
        both(folder.path(), &ops).await;
    }
}

#[tokio::test]
async fn what_another_client_saw_is_judged_alone_or_with_a_history() {
    if python_is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let saw = folder.path().join("saw.jsonl");
    let sends = concat!(
        r#"{"key":"a","invoked":1.0,"returned":1.5,"ok":true}"#,
        "\n",
        r#"{"key":"b","invoked":2.0,"returned":2.75,"ok":true}"#,
        "\n",
        r#"{"key":"c","invoked":3.0,"returned":3.1,"ok":false}"#,
        "\n",
    );
    let receive =
        |key: &str, offset: u64| format!("{{\"key\":\"{key}\",\"queue\":0,\"offset\":{offset},\"at\":9.5}}\n");
    let judge = |receives: &str, flags: &[&str]| {
        std::fs::write(&saw, format!("{sends}{receives}")).unwrap();
        ask_python(&[], &[&["--client-saw", saw.to_str().unwrap()], flags].concat())
    };

    let good = judge(&(receive("a", 0) + &receive("b", 1)), &[]);
    assert_eq!((&good["verdict"], &good["longest_gap_ms"]), (&json!("PASS"), &json!(1250.0)), "{good}");
    assert_eq!((&good["client_errors"], &good["order_checked"]), (&json!(1), &json!(2)), "{good}");
    assert_eq!(judge(&(receive("a", 0) + &receive("b", 1)), &["--no-errors"])["verdict"], "FAIL");
    assert_eq!(judge(&receive("a", 0), &[])["lost"], 1);
    assert_eq!(judge(&(receive("a", 1) + &receive("b", 0)), &[])["order_violations"], 1);
    assert_eq!(judge(&(receive("a", 0) + &receive("b", 1) + &receive("b", 2)), &[])["duplicates"], 1);
    assert_eq!(judge(&(receive("a", 0) + &receive("b", 1) + &receive("x", 2)), &[])["invented"], 1);
    let untold = "{\"key\":\"a\",\"at\":9.5}\n{\"key\":\"b\",\"at\":9.5}\n{\"key\":\"b\",\"at\":9.6}\n";
    let answer = judge(untold, &[]);
    assert_eq!((&answer["verdict"], &answer["order_checked"]), (&json!("PASS"), &json!(0)), "{answer}");

    // The other client's messages may be received by the run that the history is of, and its places count.
    let history = folder.path().join("history.jsonl.gz");
    let ops =
        [clean(), vec![receive_of_other(100, "other-1", (0, 3)), receive_of_other(100, "other-2", (0, 2))]].concat();
    save(&history, &ops).await;
    let sends = r#"{"key":"other-1","invoked":1.0,"returned":1.5,"ok":true}
{"key":"other-2","invoked":2.0,"returned":2.75,"ok":true}
"#;
    std::fs::write(&saw, sends).unwrap();
    let answer = ask_python(&[&history], &["--client-saw", saw.to_str().unwrap()]);
    assert_eq!((&answer["acked"], &answer["order_violations"]), (&json!(4), &json!(1)), "{answer}");
}

fn receive_of_other(process: u32, key: &str, place: (u32, u64)) -> Op {
    receive(process, key, (8_000, 9_000), place, 1)
}

#[tokio::test]
async fn a_cut_history_does_not_pass() {
    if python_is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl.gz");
    save(&path, &clean()).await;
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    let answer = ask_python(&[&path], &[]);
    assert_eq!((&answer["cut"], &answer["verdict"]), (&json!(true), &json!("FAIL")), "{answer}");
    let (rust, _) = Verdict::of_file(&path).unwrap();
    assert!(rust.cut && !rust.examples.is_empty(), "{rust:?}");
}
