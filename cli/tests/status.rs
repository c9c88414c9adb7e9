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

#[test]
fn a_node_left_alone_still_tells_who_answers_and_who_does_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_node, endpoint, http) = start(dir.path(), &free_ports(4));
    let at = ["--endpoints", endpoint.as_str(), "--http", http.as_str()];
    let deadline = Instant::now() + PATIENCE;
    // First it still takes clients; it lets them go when nobody has been heard of for a while.
    while run(&["topic", "list", at[0], at[1]]).status.code() == Some(4) {
        assert!(Instant::now() < deadline, "its client listener stays open");
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
