//! `quorate cluster status` of a group that has lost its quorum: two of three nodes are away, and the one that is left takes no clients.

#![forbid(unsafe_code)]

mod nodes;

use std::{path::Path, process::Stdio, time::Instant};

use nodes::{PATIENCE, Role, free_ports, quorate, run, said};

/// One of three nodes, alone.
fn start(dir: &Path, ports: &[u16]) -> (Role, String, String) {
    let at = |port: u16| format!("127.0.0.1:{port}");
    let peers = format!("1@{};2@{};3@{}", at(ports[0]), at(ports[1]), at(ports[2]));
    let (data, config) = (dir.join("data"), nodes::config(dir, ""));
    let mut node = Role::start(&[
        "broker",
        "--config",
        &config,
        "--data",
        data.to_str().expect("a plain path"),
        "--peers",
        &peers,
        "--listen",
        &at(ports[3]),
        "--peer-listen",
        &at(ports[0]),
        "--http-listen",
        "127.0.0.1:0",
    ]);
    let (endpoint, http) = node.ready_both("client", "http");
    (node, endpoint, http)
}

/// What the leader of three is shown as once the two others are gone, and its commands' exit codes.
#[test]
fn an_old_leader_left_alone_is_no_leader() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ports = free_ports(6);
    let at = |port: u16| format!("127.0.0.1:{port}");
    let peers = format!("1@{};2@{};3@{}", at(ports[0]), at(ports[1]), at(ports[2]));
    let config = nodes::config(dir.path(), "");
    let mut nodes: Vec<(u32, Role, String, String)> = Vec::new();
    let started: Vec<Role> = (1..=3_usize)
        .map(|number| {
            let (data, own) = (dir.path().join(number.to_string()), number.to_string());
            let (listen, peer) = (at(ports[2 + number]), at(ports[number - 1]));
            let data = data.to_str().expect("a plain path");
            let args = [
                "broker",
                "--config",
                &config,
                "--data",
                data,
                "--peers",
                &peers,
                "--node",
                &own,
                "--listen",
                &listen,
                "--peer-listen",
                &peer,
                "--http-listen",
                "127.0.0.1:0",
            ];
            Role::start(&args)
        })
        .collect();
    for (number, mut role) in (1..).zip(started) {
        let (endpoint, http) = role.ready_both("client", "http");
        nodes.push((number, role, endpoint, http));
    }
    let endpoints = nodes.iter().map(|node| node.2.as_str()).collect::<Vec<_>>().join(";");
    let status = nodes::run_until_fine(&["cluster", "status", "-o", "json", "--endpoints", &endpoints]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let leader = status["leader"].as_u64().expect("it has one");
    let (mut left, others): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| u64::from(node.0) == leader);
    others.into_iter().for_each(|node| node.1.kill());
    let (_, _role, endpoint, http) = left.remove(0);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (code, out, err) = said(&run(&["cluster", "status", "--endpoints", &endpoint, "--http", &http]));
        if code == 4 {
            assert!(out.contains("candidate") && !out.contains("leader ") && err.contains("no leader"), "{out}{err}");
            assert!(!out.contains("not sent: not sent"), "{out}");
            break;
        }
        assert!(Instant::now() < deadline, "{code} {out}{err}");
    }
    let (_, metrics) = nodes::get(&http, "/metrics");
    let role = metrics.lines().find(|line| line.starts_with("quorate_raft_role") && line.contains("role=\"leader\""));
    assert!(role.is_some_and(|line| line.ends_with(" 0")), "{role:?}");
}

#[test]
fn a_node_left_alone_still_tells_who_answers_and_who_does_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_node, endpoint, http) = start(dir.path(), &free_ports(4));
    let at = ["--endpoints", endpoint.as_str(), "--http", http.as_str()];
    let deadline = Instant::now() + PATIENCE;
    // First it still takes clients; it lets them go when nobody has been heard of for a while.
    loop {
        let (code, _, err) = said(&run(&["topic", "list", at[0], at[1]]));
        assert_eq!(code, 4, "{err}");
        if err.contains("refused") {
            break;
        }
        assert!(Instant::now() < deadline, "its client listener stays open");
    }
    for command in [
        &["group", "list"][..],
        &["topic", "create", "t"],
        &["topic", "delete", "t"],
        &["transaction", "list"],
        &["message", "send", "t", "x"],
        &["message", "receive", "t", "--group", "g", "--wait", "1"],
        &["cluster", "transfer"],
        &["bench", "produce", "--seconds", "1"],
    ] {
        let (code, out, err) = said(&run(&[command, &at[..2]].concat()));
        assert_eq!(code, 4, "{command:?}: {out}{err}");
    }
    let (code, out, err) = said(&run(&[&["cluster", "status"], &at[..]].concat()));
    assert_eq!(code, 4, "{out}{err}");
    assert!(err.contains("no leader / no quorum: node 1 answers, nodes 2, 3 do not; 2 of 3"), "{out}{err}");
    assert_eq!(out.lines().filter(|line| line.contains(" away ")).count(), 2, "{out}");
    let (code, out, _) = said(&run(&[&["cluster", "status", "-o", "json"], &at[..]].concat()));
    assert!(code == 4 && out.contains("\"leader\":null"), "{out}");

    // Without the listener's name it says what was asked, and what to do.
    let (code, _, err) = said(&run(&["cluster", "status", "--endpoints", &endpoint, "--http", "127.0.0.1:1"]));
    assert!(code == 4 && err.contains(&endpoint) && err.contains("127.0.0.1:1") && err.contains("--http"), "{err}");

    // It goes on looking.
    let mut watch = quorate(&[&["cluster", "status", "--watch=0.1"], &at[..]].concat());
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let out = std::io::BufReader::new(watch.stdout.take().expect("it is piped"));
    let verdicts = std::io::BufRead::lines(out).map_while(Result::ok).filter(|line| line.contains("no quorum"));
    assert_eq!(verdicts.take(2).count(), 2);
    watch.kill().expect("it is our child");
    watch.wait().expect("it was ours");
}
