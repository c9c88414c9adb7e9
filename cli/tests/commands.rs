//! The binary as people and scripts meet it: exit codes, errors of three lines, and a node from its start to its end.

#![forbid(unsafe_code)]

mod nodes;

use nodes::{Role, broker, config, quorate, run, run_until_fine, said};

#[test]
fn help_is_no_error_and_wrong_usage_is_code_two() {
    let (code, out, _) = said(&run(&["--help"]));
    assert_eq!(code, 0);
    for command in
        ["broker", "namesrv", "health", "dev", "topic", "group", "dlq", "cluster", "doctor", "message", "bench"]
    {
        assert!(out.contains(command), "{out}");
    }
    assert_eq!(said(&run(&["topic", "create"])).0, 2);
    assert_eq!(said(&run(&[])).0, 2);
}

#[test]
fn with_nobody_there_a_command_fails_in_three_lines() {
    // Port 1 is nobody's.
    let (code, out, err) = said(&run(&["topic", "list", "--endpoints", "127.0.0.1:1"]));
    assert_eq!((code, out.as_str()), (4, ""));
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!(lines.len(), 3, "{err}");
    assert_eq!(lines[0], "error: the topics cannot be listed");
    assert!(lines[1].starts_with("  why: ") && lines[1].contains("127.0.0.1:1"), "{err}");
    assert!(lines[2].starts_with(" next: "), "{err}");
    assert_eq!(said(&run(&["topic", "list", "--endpoints", "nowhere"])).0, 2);
}

#[test]
fn wrong_settings_are_refused_with_the_place_and_the_remedy() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let misspelt = config(dir.path(), "[node]\nclutser = \"a\"\n");
    let (code, _, err) = said(&run(&["broker", "--config", &misspelt]));
    assert_eq!(code, 2);
    assert!(err.contains("broker.toml:4") && err.contains("did you mean node.cluster?"), "{err}");
    let (code, _, err) = said(&run(&["broker", "--listen", "0.0.0.0:0"]));
    assert!(code == 2 && err.contains("--insecure"), "{err}");
    let output = quorate(&["broker"]).env("QUORATE_NODE_NUMBER", "zero").output().expect("the binary runs");
    let (code, _, err) = said(&output);
    assert!(code == 2 && err.contains("QUORATE_NODE_NUMBER"), "{err}");
    let (code, out, _) = said(&run(&["broker", "--print-config", "--node", "2"]));
    let number = out.lines().find(|line| line.starts_with("node.number = 2"));
    assert!(code == 0 && number.is_some_and(|line| line.ends_with("# --node")), "{out}");
}

#[test]
fn print_config_shows_a_wrong_setting_and_then_refuses_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = config(dir.path(), "[storage]\nsegment_bytes = \"8MiB\"\n");
    let (code, out, err) = said(&run(&["broker", "--print-config", "--config", &config]));
    assert!(code == 2 && out.contains("storage.segment_bytes = \"8MiB\""), "{code} {out}");
    assert!(
        err.contains("storage.segment_bytes") && err.contains("broker.toml:4") && err.contains("17MiB to 4GiB"),
        "{err}"
    );
    let output = quorate(&["broker", "--print-config"]).env("QUORATE_LIMITS_PARKED_RECEIVES_MAX", "0").output();
    let (code, _, err) = said(&output.expect("the binary runs"));
    assert!(code == 2 && err.contains("0 is out of range; write 1 to 10000000"), "{err}");
}

/// Whatever a start would refuse without looking at the machine.
#[test]
fn print_config_refuses_what_a_start_refuses() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let refused = |role: &str, text: &str, words: &[&str]| {
        let path = dir.path().join("role.toml");
        std::fs::write(&path, text).expect("written");
        let path = path.to_str().expect("a plain path");
        for args in [&[role, "--config", path, "--print-config"][..], &[role, "--config", path]] {
            let (code, _, err) = said(&run(args));
            assert!(code == 2 && words.iter().all(|word| err.contains(word)), "{args:?} {text}: {code} {err}");
        }
    };
    refused("broker", "[log]\nfilter = \"info,,=x=\"\n", &["log.filter", "role.toml:2"]);
    refused(
        "broker",
        "[network]\npeer_listen = \"127.0.0.1:8081\"\n",
        &["network.peer_listen", "network.client_listen"],
    );
    refused("broker", "[name_server]\nlisten = \"127.0.0.1:9872\"\n", &["name_server.listen", "network.http_listen"]);
    refused(
        "broker",
        "[transactions]\nchecks_max = 99999999\n",
        &["transactions.checks_max", "1 to 1000", "role.toml:2"],
    );
    refused("broker", "[limits]\nmessage_bytes_max = \"99999999999TiB\"\n", &["1KiB to 32MiB"]);
    refused("namesrv", "[log]\nfilter = \"info,,=x=\"\n", &["log.filter", "role.toml:2"]);
    refused("namesrv", "[name_server]\nlisten = \"0.0.0.0:9876\"\n", &["name_server.listen", "--insecure"]);
}

#[test]
fn numbers_that_make_no_sense_are_wrong_usage_with_the_range() {
    for (args, range) in [
        (&["topic", "create", "t", "--queues", "-1"][..], "1..=1024"),
        (&["topic", "create", "t", "--queues", "0"], "1..=1024"),
        (&["message", "receive", "t", "--group", "g", "--max", "0"], "1..=65535"),
        (&["transaction", "list", "--max", "0"], "1..=1000"),
        (&["transaction", "list", "--max", "1001"], "1..=1000"),
        (&["cluster", "status", "--http", "foo"], "host:port"),
        (&["cluster", "status", "--http", "127.0.0.1:9872;foo:"], "host:port"),
        (&["health", "--address", "foo"], "host:port"),
        (&["cluster", "status", "--watch", "0"], "0.1 to 86400"),
        (&["cluster", "status", "--watch=0"], "0.1 to 86400"),
        (&["group", "create", "g", "--max-attempts", "0"], "1..=1000"),
        (&["group", "create", "g", "--retry", "ladder:"], "1 to 32 delays"),
        (&["group", "create", "g", "--retry", "ladder:10s,x"], "x"),
        (&["group", "create", "g", "--retry", "exponential:5s"], "exponential:FIRST,LONGEST"),
        (&["group", "create", "g", "--retry", "exponential:5s,1s"], "shorter than the first"),
        (&["group", "create", "g", "--retry", "quadratic"], "ladder or exponential"),
        (&["bench", "produce", "--seconds", "0"], "1..=86400"),
        (&["dlq", "redrive", "g", "--rate", "0"], "1..=100000"),
        (&["dlq", "redrive", "g", "--max", "0"], "1.."),
        (&["dlq", "show", "g", "--since", "yesterday"], "yesterday"),
        (&["group", "create", "g", "--from", "middle"], "or first, or last"),
        (&["group", "reset-offset", "g", "--topic", "t"], "--to-time"),
        (&["group", "reset-offset", "g", "--topic", "t", "--first", "--last"], "cannot be used with"),
        (&["group", "reset-offset", "g", "--topic", "t", "--to-offset", "5"], "QUEUE=OFFSET"),
        (&["group", "reset-offset", "g", "--topic", "t", "--to-time", "yesterday"], "2026-11-24T22:13:20"),
        (&["cluster", "status", "--watch=-1"], "0.1 to 86400"),
        (&["cluster", "status", "--watch=nan"], "0.1 to 86400"),
    ] {
        let (code, _, err) = said(&run(args));
        assert!(code == 2 && err.contains(range), "{args:?}: {err}");
    }
}

/// What beyond `limits.connections_max` happens to a connection: it is taken and closed.
#[test]
fn a_command_whose_connection_is_closed_at_once_says_that_nothing_was_sent() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let (code, _, err) = said(&run(&["topic", "create", "t", "--endpoints", &address]));
    assert!(code == 4 && err.contains("not now") && !err.contains("unknown"), "{err}");
}

#[test]
fn a_node_serves_the_commands_and_stops_in_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (data, config) = (dir.path().join("data"), config(dir.path(), ""));
    let args = broker(&data, &["--config", &config]);
    let mut node = Role::start(&args);
    let endpoint = node.ready("client");
    let at = ["--endpoints", endpoint.as_str()];
    let fine = |args: &[&str]| run_until_fine(&[args, &at[..]].concat());

    let status = fine(&["cluster", "status", "-o", "json"]);
    assert!(status.contains("\"role\":\"leader\""), "{status}");
    let created = fine(&["topic", "create", "t", "--queues", "3", "-o", "json"]);
    assert!(created.contains("\"queues\":3"), "{created}");
    assert_eq!(said(&run(&["topic", "describe", "nosuch", at[0], at[1]])).0, 1);
    let sent = fine(&["message", "send", "t", "hello", "-o", "json"]);
    assert!(sent.contains("\"queue_offset\":0"), "{sent}");
    let received = fine(&["message", "receive", "t", "--group", "g", "--ack", "-o", "json"]);
    assert!(received.contains("\"body\":\"hello\""), "{received}");
    fine(&["topic", "create", "halves", "--type", "transaction"]);
    let half = fine(&["message", "send", "halves", "wait", "--half", "--key", "k", "-o", "json"]);
    let half: serde_json::Value = serde_json::from_str(&half).expect("JSON");
    let id = half["transaction_id"].as_str().expect("it has one");
    let waiting = || fine(&["transaction", "list", "--topic", "halves", "-o", "json"]);
    assert!(waiting().contains(id) && waiting().contains(half["message_id"].as_str().expect("it has one")));
    assert!(fine(&["transaction", "list"]).contains(id));
    assert!(!fine(&["transaction", "list", "--set-aside"]).contains(id));
    assert!(fine(&["transaction", "commit", id, "-o", "json"]).contains("committed"));
    fine(&["transaction", "commit", id]);
    let (code, _, err) = said(&run(&["transaction", "rollback", id, at[0], at[1]]));
    assert!(code == 1 && err.contains("42800"), "{err}");
    assert_eq!(said(&run(&["transaction", "rollback", "00FF", at[0], at[1]])).0, 1);
    assert!(!waiting().contains(id));
    let received = fine(&["message", "receive", "halves", "--group", "g", "--ack", "-o", "json"]);
    assert!(received.contains("\"body\":\"wait\""), "{received}");
    assert!(fine(&["group", "list"]).contains("CREATED (UTC)"));
    let groups = fine(&["group", "list", "-o", "json"]);
    assert!(groups.contains("\"name\":\"g\""), "{groups}");
    fine(&["group", "delete", "g"]);
    for table in [&["topic", "list"][..], &["topic", "describe", "t"]] {
        let shown = fine(table);
        assert!(shown.contains("CREATED (UTC)") && shown.contains(" 20"), "{shown}");
    }
    fine(&["topic", "delete", "t"]);
    let no = |args: &[&str], words: &[&str]| {
        let (code, _, err) = said(&run(&[args, &at[..]].concat()));
        assert!(code == 1 && words.iter().all(|word| err.contains(word)), "{args:?}: {code} {err}");
    };
    // Looking for messages makes no topic, and dead letters have theirs by themselves.
    no(&["message", "receive", "nosuch", "--group", "g"], &["40402", "nosuch"]);
    no(&["topic", "create", "%DLQ%g"], &["40000", "dead letters of consumer group g"]);
    no(&["topic", "delete", "%DLQ%g"], &["40402"]);
    // What there is goes into a file, and from there into a group that lacks it.
    let file = dir.path().join("backup.json");
    let file = file.to_str().expect("a plain path");
    fine(&["topic", "create", "ordered", "--type", "fifo", "--queues", "2"]);
    fine(&["group", "create", "settled", "--fifo", "--max-attempts", "3", "--retry", "ladder:5s", "--from", "last"]);
    fine(&["group", "create", "patient", "--retry", "exponential:1s,1m,1.5"]);
    assert!(fine(&["cluster", "backup", file]).contains("groups"));
    no(&["cluster", "backup", file], &["--force"]);
    let groups = || fine(&["group", "list", "-o", "json"]);
    let settings = |list: String| {
        let mut list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        list.as_array_mut().expect("a list").iter_mut().for_each(|one| one["created_ms"] = 0.into());
        list
    };
    let (topics, before) = (fine(&["topic", "describe", "ordered", "-o", "json"]), settings(groups()));
    for gone in [["topic", "delete", "ordered"], ["group", "delete", "settled"], ["group", "delete", "patient"]] {
        fine(&gone);
    }
    assert!(fine(&["cluster", "restore", file, "--dry-run"]).contains("would be made"));
    assert!(!groups().contains("settled"));
    let restored = fine(&["cluster", "restore", file]);
    assert!(restored.contains("made") && restored.contains("there already"), "{restored}");
    assert_eq!(settings(groups()), before);
    let ordered = fine(&["topic", "describe", "ordered", "-o", "json"]);
    assert!(
        ordered.contains("\"queues\":2") == topics.contains("\"queues\":2") && ordered.contains("fifo"),
        "{ordered}"
    );
    fine(&["group", "create", "settled", "--fifo", "--max-attempts", "4", "--replace"]);
    let (code, out, _) = said(&run(&["cluster", "restore", file, at[0], at[1]]));
    assert!(code == 1 && out.contains("differs"), "{out}");
    std::fs::write(file, "{}").expect("written");
    let (code, _, err) = said(&run(&["cluster", "restore", file, at[0], at[1]]));
    assert!(code == 2 && err.contains("was not restored"), "{err}");
    fine(&["topic", "delete", "ordered"]);
    // A half message waits: nobody loses it by mistake.
    fine(&["message", "send", "halves", "wait", "--half"]);
    let (code, _, err) = said(&run(&["topic", "delete", "halves", at[0], at[1]]));
    assert!(
        code == 1 && err.contains("42800") && err.contains("1 half and 0 delayed") && err.contains("--force"),
        "{err}"
    );
    assert!(fine(&["topic", "list"]).contains("halves"));
    let deleted = fine(&["topic", "delete", "halves", "--force", "-o", "json"]);
    assert!(deleted.contains("\"halves\":1") && deleted.contains("\"delayed\":0"), "{deleted}");
    assert_eq!(fine(&["topic", "list", "-o", "json"]).trim(), "[]");

    // The port is taken, and so is the directory: each has an error of its own.
    let other = dir.path().join("other");
    let other = other.to_str().expect("a plain path");
    let (code, _, err) = said(&run(&["broker", "--config", &config, "--data", other, "--listen", &endpoint]));
    assert!(code == 1 && err.contains(&endpoint), "{err}");
    let used = format!("data directory {} is used by process {}", data.display(), node.pid());
    let (code, _, err) = said(&run(&args));
    assert!(code == 1 && err.contains(&used) && err.contains("--data"), "{err}");
    // Both at once, as when a node is started twice: it is the directory that matters.
    let mut twice = args.clone();
    let listen = twice.iter().position(|arg| *arg == "--listen").expect("it is given");
    twice[listen + 1] = &endpoint;
    let (code, _, err) = said(&run(&twice));
    assert!(code == 1 && err.contains(&used), "{err}");

    assert_eq!(node.stop().code(), Some(0));
    let (code, _, err) = said(&run(&broker(&data, &["--config", &config, "--node", "2"])));
    assert!(code == 1 && err.contains("node 1"), "{err}");
}

#[test]
fn an_operator_sees_where_a_group_stands_and_puts_it_somewhere_else() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (data, config) = (dir.path().join("data"), config(dir.path(), ""));
    let mut node = Role::start(&broker(&data, &["--config", &config]));
    let endpoint = node.ready("client");
    let at = ["--endpoints", endpoint.as_str()];
    let fine = |args: &[&str]| run_until_fine(&[args, &at[..]].concat());
    let json = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&fine(&[args, &["-o", "json"]].concat())).expect("JSON")
    };
    fine(&["topic", "create", "t", "--queues", "1"]);
    let made = json(&["group", "create", "g", "--from", "2026-11-24T22:13:20"]);
    assert_eq!(made[0]["from"], "2026-11-24T22:13:20");
    assert!(fine(&["group", "create", "g", "--from", "first", "--replace"]).contains("first"));
    for body in ["one", "two", "three"] {
        fine(&["message", "send", "t", body]);
    }
    fine(&["message", "receive", "t", "--group", "g", "--max", "2", "--ack"]);
    fine(&["message", "receive", "t", "--group", "g", "--max", "1"]);
    let queue = || json(&["group", "describe", "g"])["topics"][0]["queues"][0].clone();
    let before = queue();
    assert_eq!((&before["lag"], &before["in_flight"], &before["committed"]), (&1.into(), &1.into(), &2.into()));
    assert!(before["oldest_age_ms"].is_u64(), "{before}");
    let table = fine(&["group", "describe", "g"]);
    assert!(table.contains("IN FLIGHT") && table.contains("CONSUMERS"), "{table}");

    let reset = |more: &[&str]| json(&[&["group", "reset-offset", "g", "--topic", "t"], more].concat());
    let plan = reset(&["--first", "--dry-run"]);
    let expected = serde_json::json!({ "queue": 0, "from": 2, "to": 0, "skipped": 0, "again": 2, "forgotten": 1 });
    assert_eq!((&plan["queues"][0], &plan["dry_run"]), (&expected, &true.into()));
    assert_eq!(queue()["committed"], 2, "nothing was changed");
    assert_eq!(reset(&["--to-offset", "0=1"])["queues"][0]["again"], 1);
    assert_eq!(queue()["committed"], 1);
    assert_eq!(reset(&["--to-time", "1h"])["queues"][0]["to"], 0);
    assert_eq!(reset(&["--last"])["queues"][0]["skipped"], 3);
    let far = ["group", "reset-offset", "g", "--topic", "t", "--to-offset", "0=9", at[0], at[1]];
    let (code, _, err) = said(&run(&far));
    assert!(code == 1 && err.contains("40019") && err.contains("was not moved"), "{err}");
    let (code, _, err) = said(&run(&["group", "describe", "nosuch", at[0], at[1]]));
    assert!(code == 1 && err.contains("40403") && err.contains("group list"), "{err}");
    assert_eq!(node.stop().code(), Some(0));
}

/// The doctor stands where a client stands: a route that leads nowhere is found by it, and by nobody who asks the nodes.
#[test]
fn the_doctor_finds_an_address_that_clients_are_given_and_cannot_reach() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (data, config) = (dir.path().join("data"), config(dir.path(), ""));
    let listeners = "[network]\nlisteners = [\"astray@127.0.0.1:0=127.0.0.1:1\"]\n";
    let config = {
        let text = std::fs::read_to_string(&config).expect("written") + listeners;
        std::fs::write(&config, text).expect("written");
        config
    };
    let mut node = Role::start(&broker(&data, &["--config", &config]));
    let (endpoint, astray) = node.ready_both("client", "listeners");
    let astray = astray.split(['@', '=']).nth(1).expect("where it listens");

    let fine = run_until_fine(&["doctor", "-o", "json", "--endpoints", &endpoint]);
    assert!(fine.contains("\"healthy\":true") && !fine.contains("\"wrong\""), "{fine}");
    assert!(fine.contains("no topic yet"), "{fine}");
    // It made none to ask for its route.
    let at = ["--endpoints", endpoint.as_str()];
    assert_eq!(run_until_fine(&[&["topic", "list", "-o", "json"], &at[..]].concat()).trim(), "[]");
    run_until_fine(&[&["topic", "create", "t"], &at[..]].concat());
    assert!(run_until_fine(&["doctor", "--endpoints", &endpoint]).contains("(topic t)"));

    let (code, out, err) = said(&run(&["doctor", "--endpoints", astray]));
    assert!(
        code == 3 && out.contains("127.0.0.1:1, given to clients of") && out.contains("network.listeners"),
        "{out}{err}"
    );
    let (code, out, _) = said(&run(&["doctor", "-o", "json", "--endpoints", "127.0.0.1:1"]));
    assert!(code == 3 && out.contains("\"healthy\":false"), "{out}");
    assert_eq!(said(&run(&["doctor", "--endpoints", "nowhere"])).0, 2);
    assert_eq!(node.stop().code(), Some(0));
}

#[test]
fn a_name_server_runs_alone_and_stops_in_order() {
    let mut server = Role::start(&["namesrv", "--listen", "127.0.0.1:0"]);
    let address = server.ready("name_server");
    // It answers routes, not operators.
    let (code, _, err) = said(&run(&["topic", "list", "--endpoints", &address]));
    assert!(code == 1 && err.contains("name server"), "{err}");
    let taken = said(&run(&["namesrv", "--listen", &address]));
    assert!(taken.0 == 1 && taken.2.contains(&address), "{taken:?}");
    assert_eq!(server.stop().code(), Some(0));
}
