//! `quorate health` and the health service of gRPC against a node that runs, is starting, is gone or is something else.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

mod nodes;

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use nodes::{Role, config, quorate, run, said};
use quorate_proto::health::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Asks until the exit code is as expected; returns what was said then.
fn until(code: i32, args: &[&str]) -> String {
    let deadline = Instant::now() + nodes::PATIENCE;
    loop {
        let (now, out, err) = said(&run(&[&["health"], args].concat()));
        if now == code {
            return out;
        }
        assert!(Instant::now() < deadline, "{now} {out} {err}");
    }
}

#[test]
fn a_group_of_one_is_live_and_ready_and_never_safe_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    let mut node = Role::start(&nodes::broker(&dir.path().join("data"), &["--config", &config]));
    let http = node.ready("http");
    let at = ["--address", http.as_str()];
    let ask = |more: &[&str]| said(&run(&[&["health"], more, &at[..]].concat()));

    assert_eq!(until(0, &at), "ready: yes\n");
    let (code, out, _) = ask(&["--live", "-o", "json"]);
    assert_eq!((code, out.as_str()), (0, "{\"check\":\"live\",\"ok\":true,\"why\":[]}\n"));
    let (code, out, _) = ask(&["--safe-to-stop"]);
    assert!(code == 3 && out.contains("only voter"), "{code} {out}");
    assert_eq!(ask(&["--live", "--ready"]).0, 2, "one question at a time");

    // As a container asks: no arguments, the same variables as the node.
    let asked = quorate(&["health", "--ready"]).env("QUORATE_NETWORK_HTTP_LISTEN", &http).output().unwrap();
    assert_eq!(said(&asked).0, 0);

    assert_eq!(node.stop().code(), Some(0));
    let (code, _, err) = ask(&[]);
    assert!(code == 1 && err.contains(&http), "{err}");
}

#[test]
fn whoever_is_no_node_or_says_nothing_cannot_be_asked() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let began = Instant::now();
    let (code, _, err) = said(&run(&["health", "--address", &address]));
    assert!(code == 1 && err.contains("no answer within 2 s"), "{err}");
    assert!(began.elapsed() < Duration::from_secs(20));

    let off = quorate(&["health"]).env("QUORATE_NETWORK_HTTP_LISTEN", "").output().unwrap();
    let (code, _, err) = said(&off);
    assert!(code == 1 && err.contains("switched off (QUORATE_NETWORK_HTTP_LISTEN)"), "{err}");
    let any = quorate(&["health"]).env("QUORATE_NETWORK_HTTP_LISTEN", "127.0.0.1:0").output().unwrap();
    assert_eq!(said(&any).0, 1);
}

/// A node of three that never sees the others lives, and is neither ready nor safe to stop.
#[test]
fn a_node_alone_of_three_lives_and_is_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    let ports = nodes::free_ports(3);
    let peers = format!("1@127.0.0.1:{};2@127.0.0.1:{};3@127.0.0.1:{}", ports[0], ports[1], ports[2]);
    let data = dir.path().join("data");
    let listen = format!("127.0.0.1:{}", ports[0]);
    let mut args = nodes::broker(&data, &["--config", &config, "--peers", &peers]);
    let peer_listen = args.iter().position(|arg| *arg == "--peer-listen").unwrap();
    args[peer_listen + 1] = &listen;
    let mut node = Role::start(&args);
    let http = node.ready("http");
    assert_eq!(until(0, &["--live", "--address", &http]), "live: yes\n");
    let ready = until(3, &["--ready", "--address", &http]);
    assert!(ready.starts_with("ready: no, it "), "{ready}");
    assert!(until(3, &["--safe-to-stop", "--address", &http]).contains("no leader"));
    assert_eq!(node.stop().code(), Some(0));
}

#[tokio::test]
async fn grpc_probes_see_readiness_come_and_watchers_are_let_go_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    let mut node = Role::start(&nodes::broker(&dir.path().join("data"), &["--config", &config]));
    let client = node.ready("client");
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{client}")).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let request = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let deadline = Duration::from_secs(30);

    let mut states = health.watch(request("apache.rocketmq.v2.MessagingService")).await.unwrap().into_inner();
    let serving = async {
        loop {
            let state = states.message().await.unwrap().unwrap();
            if state.status() == ServingStatus::Serving {
                return;
            }
        }
    };
    tokio::time::timeout(deadline, serving).await.unwrap();
    assert_eq!(health.check(request("")).await.unwrap().into_inner().status(), ServingStatus::Serving);
    assert_eq!(health.check(request("nosuch")).await.unwrap_err().code(), tonic::Code::NotFound);
    let mut unknown = health.watch(request("nosuch")).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);

    let stopped = tokio::task::spawn_blocking(move || node.stop());
    let ended = async {
        while let Ok(Some(_)) = states.message().await {}
        while let Ok(Some(_)) = unknown.message().await {}
    };
    tokio::time::timeout(deadline, ended).await.unwrap();
    assert_eq!(stopped.await.unwrap().code(), Some(0));
}
