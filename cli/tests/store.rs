//! `quorate store`: the directory of a node that has run, read by the binary.

mod nodes;

use std::{fs, path::Path, time::Instant};

use nodes::{PATIENCE, Role, broker, config, run, run_until_fine, said};
use serde_json::Value;

/// A node that has taken a topic and three messages, stopped.
fn stopped(dir: &Path) -> (String, String) {
    let data = dir.join("data");
    let settings = config(dir, "");
    let mut node = Role::start(&broker(&data, &["--config", &settings]));
    let address = node.ready("client");
    run_until_fine(&["topic", "create", "orders", "--endpoints", &address]);
    for body in ["one", "two", "three"] {
        run_until_fine(&["message", "send", "orders", body, "--key", body, "--endpoints", &address]);
    }
    // Its queues are written with a checkpoint, every few seconds of log time.
    run_until_fine(&["topic", "create", "later", "--endpoints", &address]);
    let deadline = Instant::now() + PATIENCE;
    while !data.join("queue/v2").exists() {
        run_until_fine(&["message", "send", "later", "x", "--endpoints", &address]);
        assert!(Instant::now() < deadline, "no queue is written");
    }
    let data = data.to_str().expect("a plain path").to_owned();
    let (code, _, err) = said(&run(&["store", "verify", &data]));
    assert!(code == 1 && err.contains("its node runs"), "{err}");
    assert_eq!(node.stop().code(), Some(0));
    (data, address)
}

fn json(args: &[&str]) -> (i32, Value) {
    let (code, out, err) = said(&run(args));
    (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
}

#[test]
fn a_stopped_node_is_verified_and_its_log_shown() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (data, _) = stopped(dir.path());
    let (code, verified) = json(&["store", "verify", &data, "-o", "json"]);
    assert_eq!((code, &verified["findings"]), (0, &Value::Array(Vec::new())), "{verified}");
    assert!(verified["queue_records"].as_u64() >= Some(3), "{verified}");
    assert!(verified["stopped_in_order"] == true && verified["entries"].as_u64() > Some(4), "{verified}");
    let (code, out, _) = said(&run(&["store", "verify", &data]));
    assert!(code == 0 && out.contains("queue records"), "{out}");

    let (code, out, _) = said(&run(&["store", "dump", &data, "--max", "100000", "-o", "json"]));
    assert_eq!(code, 0);
    let entries: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    let commands = entries.iter().filter_map(|entry| entry["commands"].as_array()).flatten();
    let sent: Vec<&Value> =
        commands.filter(|command| command["command"] == "Send" && command["name"] == "orders").collect();
    let keys: Vec<&str> = sent.iter().filter_map(|send| send["keys"][0].as_str()).collect();
    assert_eq!(keys, ["one", "two", "three"]);
    let last = entries.last().expect("some")["index"].as_u64().expect("a number").to_string();
    let (_, out, _) = said(&run(&["store", "dump", &data, "--from", &last, "-o", "json"]));
    assert_eq!(out.lines().count(), 1, "{out}");
    let (_, out, _) = said(&run(&["store", "dump", &data]));
    assert!(out.contains("Send orders"), "{out}");
    let (_, out, _) = said(&run(&["store", "dump", &data, "--max", "2", "-o", "json"]));
    assert_eq!(out.lines().count(), 2, "{out}");
}

#[test]
fn damage_is_named_with_file_and_byte_and_exit_code_five() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (data, _) = stopped(dir.path());
    let segment = Path::new(&data).join("log/00000000000000000000");
    let mut bytes = fs::read(&segment).expect("it is there");
    // In the second frame: the first one's payload is short.
    bytes[200] ^= 1;
    fs::write(&segment, &bytes).expect("written");
    let (code, verified) = json(&["store", "verify", &data, "-o", "json"]);
    let finding = &verified["findings"][0];
    assert_eq!((code, &finding["severity"]), (5, &Value::from("corrupt")), "{verified}");
    assert_eq!(finding["path"], segment.to_str().expect("a plain path"));
    assert!(finding["byte"].as_u64().is_some_and(|byte| byte <= 200), "{verified}");
    let (code, out, err) = said(&run(&["store", "verify", &data]));
    assert!(code == 5 && out.contains("corrupt") && err.contains("One node is lost"), "{out}{err}");
    let (code, _, err) = said(&run(&["store", "dump", &data]));
    assert!(code == 5 && err.contains("cannot be read further"), "{err}");

    bytes[200] ^= 1;
    fs::write(&segment, &bytes).expect("written");
    let queue = find_queue_file(&Path::new(&data).join("queue/v2"));
    let mut records = fs::read(&queue).expect("it is there");
    records[3] ^= 1;
    fs::write(&queue, records).expect("written");
    let (code, verified) = json(&["store", "verify", &data, "-o", "json"]);
    assert_eq!((code, &verified["findings"][0]["severity"]), (0, &Value::from("mended")), "{verified}");
    assert_eq!(verified["findings"][0]["path"], queue.to_str().expect("a plain path"));
}

/// The first file below a directory.
fn find_queue_file(dir: &Path) -> std::path::PathBuf {
    let path = fs::read_dir(dir).expect("a directory").next().expect("not empty").expect("readable").path();
    if path.is_dir() { find_queue_file(&path) } else { path }
}

#[test]
fn a_directory_that_is_no_nodes_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (code, _, err) = said(&run(&["store", "verify", dir.path().to_str().expect("a plain path")]));
    assert!(code == 1 && err.contains("no node's data") && err.contains("next:"), "{err}");
}
