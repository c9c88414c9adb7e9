//! `/metrics` of three real nodes, read as strictly as a scraper may: what is there, and that it moves when the thing happens. And the page for
//! operators, held against the names in the sources.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

mod nodes;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Instant,
};

use nodes::{Role, config, get, run, run_until_fine, said};
use quorate_broker::metrics::Kind;

/// Samples by name and labels as they are written.
#[derive(Debug, Default)]
struct Page {
    kinds: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

/// Reads a page, and refuses everything that the format does not allow.
fn parse(text: &str) -> Page {
    let mut page = Page::default();
    let mut helped = BTreeSet::new();
    let mut current = String::new();
    assert!(text.ends_with('\n'), "the last line ends");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}: helped twice");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(helped.contains(name), "{line}: no help before it");
            assert!(page.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}: typed twice");
            current = name.to_owned();
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let value: f64 = value.parse().expect("a number");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        check_labels(labels.strip_suffix('}').expect("labels end"));
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(name.chars().all(legal), "{line}");
        let family = match page.kinds[&current].as_str() {
            "histogram" => name.strip_suffix("_bucket").or(name.strip_suffix("_sum")).or(name.strip_suffix("_count")),
            _ => Some(name),
        };
        assert_eq!(family, Some(current.as_str()), "{line}: not below its type");
        assert!(value >= 0.0 && value.is_finite(), "{line}");
        assert!(page.samples.insert(series.to_owned(), value).is_none(), "{line}: told twice");
    }
    page.check_histograms();
    page
}

/// `a="x",b="y"`, with backslashes before quotes, backslashes and the n of newlines only, and every name once.
fn check_labels(text: &str) {
    let (mut rest, mut names) = (text, BTreeSet::new());
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").expect("a label");
        assert!(names.insert(name), "{text}: {name} twice");
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().expect("a label ends") {
                (_, '\\') => assert!(matches!(chars.next(), Some((_, '\\' | '"' | 'n'))), "{text}"),
                (at, '"') => break at,
                (_, c) => assert!(!c.is_control(), "{text}"),
            }
        };
        rest = &value[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

impl Page {
    /// Buckets only grow, and the last one is the count.
    fn check_histograms(&self) {
        for (series, count) in self.samples.iter().filter(|(series, _)| series.contains("_count{")) {
            let family = series.split("_count{").next().unwrap();
            if self.kinds.get(family).map(String::as_str) != Some("histogram") {
                continue;
            }
            let start = series.replace("_count{", "_bucket{").trim_end_matches('}').to_owned();
            let mut buckets: Vec<(f64, f64)> = Vec::new();
            for (bucket, value) in self.samples.iter().filter(|(name, _)| name.starts_with(&format!("{start},le=\""))) {
                let bound = bucket.rsplit("le=\"").next().unwrap().trim_end_matches("\"}");
                buckets.push((if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() }, *value));
            }
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{series}: {buckets:?}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{series}");
        }
    }

    /// The sum of all series of this name whose labels hold all of `parts`.
    fn sum(&self, name: &str, parts: &[&str]) -> f64 {
        let of = |series: &str| {
            let labels = series.strip_prefix(name).filter(|rest| rest.starts_with('{'));
            labels.is_some_and(|labels| parts.iter().all(|part| labels.contains(part)))
        };
        self.samples.iter().filter(|(series, _)| of(series)).map(|(_, value)| value).sum()
    }
}

struct Node {
    role: Role,
    client: String,
    http: String,
}

fn start(dir: &std::path::Path) -> BTreeMap<u16, Node> {
    let config = config(dir, "");
    let ports = nodes::free_ports(3);
    let peers: Vec<_> = (1..=3).zip(&ports).map(|(n, port)| format!("{n}@127.0.0.1:{port}")).collect();
    let peers = peers.join(";");
    let mut started = Vec::new();
    for (number, port) in (1..=3_u16).zip(&ports) {
        let (data, own, listen) = (dir.join(number.to_string()), number.to_string(), format!("127.0.0.1:{port}"));
        let mut args = nodes::broker(&data, &["--config", &config, "--peers", &peers, "--node", &own]);
        let peer_listen = args.iter().position(|arg| *arg == "--peer-listen").unwrap();
        args[peer_listen + 1] = &listen;
        started.push((number, Role::start(&args)));
    }
    let known = started.into_iter().map(|(number, mut role)| {
        let (client, http) = role.ready_both("client", "http");
        (number, Node { role, client, http })
    });
    known.collect()
}

fn page(node: &Node) -> Page {
    let (status, text) = get(&node.http, "/metrics");
    assert_eq!(status, 200);
    parse(&text)
}

/// Scrapes until the page is as wanted.
fn until(node: &Node, what: &str, wanted: impl Fn(&Page) -> bool) -> Page {
    let deadline = Instant::now() + nodes::PATIENCE;
    loop {
        let page = page(node);
        if wanted(&page) {
            return page;
        }
        assert!(Instant::now() < deadline, "{what}: {page:#?}");
    }
}

fn leader(nodes: &BTreeMap<u16, Node>) -> u16 {
    let deadline = Instant::now() + nodes::PATIENCE;
    loop {
        let leads = |node: &Node| page(node).sum("quorate_raft_is_leader", &[]) == 1.0;
        if let Some((number, _)) = nodes.iter().find(|(_, node)| leads(node)) {
            return *number;
        }
        assert!(Instant::now() < deadline, "nobody leads");
    }
}

#[test]
fn every_number_moves_when_the_thing_happens() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = start(dir.path());
    let first = leader(&nodes);
    let (client, at) = (nodes[&first].client.clone(), &nodes[&first]);
    let commands = |args: &[&str]| run_until_fine(&[args, &["--endpoints", &client]].concat());
    commands(&["topic", "create", "t", "--queues", "2"]);

    let before = page(at);
    for _ in 0..3 {
        commands(&["message", "send", "t", "hello"]);
    }
    let sent = page(at);
    let grown = |name: &str, parts: &[&str]| sent.sum(name, parts) - before.sum(name, parts);
    assert_eq!(grown("rocketmq_messages_in_total", &["topic=\"t\"", "message_type=\"normal\""]), 3.0);
    assert_eq!(grown("rocketmq_throughput_in_total", &["topic=\"t\""]), 15.0);
    assert_eq!(grown("rocketmq_message_size_count", &[]), 3.0);
    assert_eq!(grown("quorate_broker_calls_total", &["method=\"SendMessage\"", "outcome=\"ok\""]), 3.0);
    assert_eq!(grown("rocketmq_rpc_latency_count", &["request_code=\"SendMessage\""]), 3.0);
    for name in ["quorate_raft_last_log_index", "quorate_raft_commit_index", "quorate_raft_applied_index"] {
        assert!(grown(name, &[]) >= 3.0, "{name}");
    }
    for name in [
        "quorate_raft_append_fsync_seconds_count",
        "quorate_raft_group_commit_batch_size_count",
        "quorate_raft_group_commit_batch_bytes_sum",
        "quorate_raft_entries_appended_total",
        "quorate_raft_end_position_bytes",
        "rocketmq_storage_size",
        "quorate_broker_batches_total",
        "quorate_broker_commands_total",
        "quorate_broker_batch_commands_count",
        "quorate_broker_batch_bytes_sum",
        "quorate_broker_dedup_entries",
    ] {
        assert!(grown(name, &[]) > 0.0, "{name}");
    }

    commands(&["message", "receive", "t", "--group", "g", "--ack", "--max", "1"]);
    let pair = ["topic=\"t\"", "consumer_group=\"g\""];
    let received = until(at, "one of three is done", |page| page.sum("rocketmq_consumer_lag_messages", &pair) == 2.0);
    assert_eq!(received.sum("rocketmq_messages_out_total", &pair), 1.0);
    assert_eq!(received.sum("rocketmq_throughput_out_total", &pair), 5.0);
    assert_eq!(received.sum("rocketmq_consumer_ready_messages", &pair), 2.0);
    assert_eq!(received.sum("quorate_broker_calls_total", &["method=\"ReceiveMessage\"", "outcome=\"ok\""]), 1.0);
    commands(&["message", "receive", "t", "--group", "g", "--max", "1"]);
    until(at, "one is in flight", |page| page.sum("rocketmq_consumer_inflight_messages", &pair) == 1.0);

    let state = until(at, "followers are even", |page| page.sum("quorate_raft_follower_lag_entries", &[]) == 0.0);
    assert_eq!(state.sum("quorate_raft_follower_lag_bytes", &[]), 0.0);
    assert_eq!(state.sum("quorate_raft_peer_alive", &[]), 2.0);
    assert_eq!(state.sum("quorate_raft_voters", &[]), 3.0);
    assert_eq!(state.sum("quorate_raft_role", &["role=\"leader\""]), 1.0);
    assert_eq!(state.sum("rocketmq_topic_number", &[]), 1.0);
    assert_eq!(state.sum("rocketmq_consumer_group_number", &[]), 1.0);
    for name in [
        "quorate_broker_disk_free_bytes",
        "quorate_broker_disk_used_bytes",
        "quorate_broker_resident_bytes",
        "quorate_broker_open_files",
        "quorate_broker_uptime_seconds",
        "quorate_namesrv_claims_taken_total",
    ] {
        assert!(state.sum(name, &[]) > 0.0, "{name}");
    }
    assert_eq!(state.sum("quorate_broker_build_info", &[concat!("version=\"", env!("CARGO_PKG_VERSION"))]), 1.0);
    let expected = ["cluster=\"quorate\"", "node_type=\"broker\"", &format!("node_id=\"broker-a-{first}\"")];
    assert_eq!(state.sum("quorate_raft_is_leader", &expected), 1.0);

    // A follower forwards, tells no lags, and sees the leader die.
    let other = *nodes.keys().find(|number| **number != first).unwrap();
    let follower = page(&nodes[&other]);
    assert_eq!(follower.sum("rocketmq_consumer_lag_messages", &[]), 0.0);
    assert!(!follower.kinds.contains_key("rocketmq_consumer_lag_messages"));
    run_until_fine(&["topic", "create", "u", "--endpoints", &nodes[&other].client]);
    let forwarded = page(&nodes[&other]);
    assert!(forwarded.sum("quorate_broker_calls_forwarded_total", &[]) >= 1.0);
    nodes.remove(&first).unwrap().role.kill();
    let elected = until(&nodes[&other], "an election", |page| {
        page.sum("quorate_raft_elections_total", &[]) > forwarded.sum("quorate_raft_elections_total", &[])
    });
    let grown = |name: &str| elected.sum(name, &[]) - forwarded.sum(name, &[]);
    assert!(grown("quorate_raft_leader_changes_total") >= 1.0);
    assert!(grown("quorate_raft_election_seconds_count") >= 1.0);
    assert!(grown("quorate_raft_unavailable_seconds_total") > 0.0);
    assert!(grown("quorate_raft_term") >= 1.0);
    until(&nodes[&other], "one peer is gone", |page| page.sum("quorate_raft_peer_alive", &[]) == 1.0);

    // Nobody may be stopped now, and nobody pretends that it may.
    let left = *nodes.keys().next().unwrap();
    assert_eq!(get(&nodes[&left].http, "/health/safe-to-stop").0, 503);
}

/// A name server alone has a page of its own, and is ready once it knows a node.
#[test]
fn a_name_server_tells_who_is_registered() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Role::start(&["namesrv", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    let (address, http) = server.ready_both("name_server", "http");
    assert_eq!(get(&http, "/health/live").0, 200);
    let (status, why) = get(&http, "/health/ready");
    assert!(status == 503 && why.contains("no broker has registered"), "{status} {why}");
    assert_eq!(get(&http, "/health/safe-to-stop").0, 404);
    let read = || parse(&get(&http, "/metrics").1);
    let none = read();
    assert_eq!(none.sum("quorate_namesrv_nodes", &["node_type=\"namesrv\""]), 0.0);

    let config = config(dir.path(), "");
    let data = dir.path().join("data");
    let mut node = Role::start(&nodes::broker(&data, &["--config", &config, "--name-servers", &address]));
    let client = node.ready("client");
    run_until_fine(&["topic", "create", "t", "--endpoints", &client]);
    let deadline = Instant::now() + nodes::PATIENCE;
    while read().sum("quorate_namesrv_topics", &[]) != 1.0 {
        assert!(Instant::now() < deadline, "{:#?}", read());
    }
    let known = read();
    for name in ["quorate_namesrv_nodes", "quorate_namesrv_groups"] {
        assert_eq!(known.sum(name, &[]), 1.0, "{name}");
    }
    assert_eq!(known.kinds["quorate_namesrv_nodes"], "gauge");
    assert_eq!(known.kinds["quorate_namesrv_claims_expired_total"], "counter");
    assert_eq!(get(&http, "/health/ready").0, 200);
    let taken = said(&run(&["namesrv", "--listen", "127.0.0.1:0", "--http-listen", &http]));
    assert!(taken.0 == 1 && taken.2.contains(&http), "{taken:?}");
    assert_eq!(node.stop().code(), Some(0));
    assert_eq!(read().sum("quorate_namesrv_nodes", &[]), 0.0, "it said goodbye");
    assert_eq!(server.stop().code(), Some(0));
}

/// Name, kind, labels and help of all that is declared anywhere.
fn declared() -> Vec<(&'static str, &'static str, String, &'static str)> {
    let labels = |labels: &[&str]| {
        let quoted: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        if quoted.is_empty() { "–".to_owned() } else { quoted.join(", ") }
    };
    let metrics = quorate_raft::metrics::ALL.iter().copied().chain(quorate_broker::metrics::all());
    let mut all: Vec<_> =
        metrics.map(|metric| (metric.name, metric.kind.name(), labels(metric.labels), metric.help)).collect();
    let counters = quorate_namesrv::Metrics::default().read();
    let kind = |kind| match kind {
        quorate_namesrv::metrics::Kind::Counter => Kind::Counter,
        quorate_namesrv::metrics::Kind::Gauge => Kind::Gauge,
    };
    all.extend(counters.iter().map(|one| (one.name, kind(one.kind).name(), labels(&[]), one.help)));
    all
}

/// A row says what the source says, and there is no row for what is not there.
#[test]
fn the_page_for_operators_names_every_metric_as_it_is() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
    let text = fs::read_to_string(path).unwrap();
    let mut missing = Vec::new();
    for (name, kind, labels, help) in declared() {
        let row = format!("| `{name}` | {kind} | {labels} | {help} |");
        if !text.lines().any(|line| line.starts_with(&row) && line.len() > row.len() + 4) {
            missing.push(row);
        }
    }
    assert!(
        missing.is_empty(),
        "docs/METRICS.md lacks these rows (with a word on when to worry):\n{}",
        missing.join("\n")
    );
    let known: BTreeSet<_> = declared().into_iter().map(|(name, ..)| name).collect();
    for row in text.lines().filter_map(|line| line.strip_prefix("| `")) {
        let name = row.split('`').next().unwrap();
        let is_metric = name.starts_with("rocketmq_") || name.starts_with("quorate_");
        assert!(!is_metric || known.contains(name), "docs/METRICS.md tells of {name}, which is not there");
    }
}
