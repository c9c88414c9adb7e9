//! Children of the harness, with a shell in the place of a broker.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path, time::Duration};

use quorate_jepsen::chaos::{Launch, NodeLaunch, ProcessError, Processes};
use tokio::time::Instant;

fn launch(folder: &Path, scripts: &[&str]) -> Launch {
    let node = |(number, script): (u32, &&str)| NodeLaunch {
        number,
        args: vec!["-c".into(), (*script).into()],
        log: folder.join("log").join(format!("{number}.log")),
    };
    Launch { program: "/bin/sh".into(), nodes: (1..).zip(scripts).map(node).collect() }
}

/// The letter that `/proc` has for a process: S sleeping, T stopped, Z zombie; none when it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_child_is_killed_started_again_and_its_output_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (processes, mut exits) = Processes::new(launch(folder.path(), &["echo up; exec sleep 100"])).unwrap();
    let first = processes.start(1).await.unwrap();
    assert!(matches!(processes.start(1).await, Err(ProcessError::Running(1))));
    let log = folder.path().join("log/1.log");
    wait_until("the output", || fs::read_to_string(&log).is_ok_and(|text| text == "up\n")).await;
    assert_eq!(processes.kill(1).await.unwrap(), first);
    let exit = exits.recv().await.unwrap();
    assert!((exit.number, exit.pid, exit.wanted) == (1, first, true), "{exit:?}");
    assert!(matches!(processes.kill(1).await, Err(ProcessError::NotRunning(1))));
    let second = processes.start(1).await.unwrap();
    assert_ne!(first, second);
    wait_until("the output", || fs::read_to_string(&log).is_ok_and(|text| text == "up\nup\n")).await;
    drop(processes);
    assert_eq!(state(second), None, "dropping the processes kills and reaps them");
}

#[tokio::test]
async fn a_child_that_ends_by_itself_is_told_as_unwanted() {
    let folder = tempfile::tempdir().unwrap();
    let (processes, mut exits) = Processes::new(launch(folder.path(), &["exit 7"])).unwrap();
    processes.start(1).await.unwrap();
    let exit = exits.recv().await.unwrap();
    assert!(exit.status.code() == Some(7) && !exit.wanted, "{exit:?}");
    assert!(matches!(processes.start(9).await, Err(ProcessError::NoSuchNode(9))));
}

#[tokio::test]
async fn a_paused_child_stands_still_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (processes, _exits) = Processes::new(launch(folder.path(), &["exec sleep 100"])).unwrap();
    let pid = processes.start(1).await.unwrap();
    processes.pause(1).await.unwrap();
    wait_until("the pause", || state(pid) == Some('T')).await;
    processes.resume(1).await.unwrap();
    wait_until("the resume", || state(pid) == Some('S')).await;
}

/// Two seconds is what the user is promised; one of the children does not listen, one is paused.
#[tokio::test]
async fn all_are_gone_in_time_even_those_that_do_not_listen() {
    let folder = tempfile::tempdir().unwrap();
    let scripts = ["trap '' TERM; echo deaf; exec sleep 100", "exec sleep 100", "exec sleep 100"];
    let (processes, _exits) = Processes::new(launch(folder.path(), &scripts)).unwrap();
    let mut pids = Vec::new();
    for number in 1..=3 {
        pids.push(processes.start(number).await.unwrap());
    }
    processes.pause(3).await.unwrap();
    let log = folder.path().join("log/1.log");
    wait_until("the trap", || fs::read_to_string(&log).is_ok_and(|text| text == "deaf\n")).await;
    let told = Instant::now();
    processes.stop_all(Duration::from_millis(500)).await.unwrap();
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    assert!(pids.iter().all(|pid| state(*pid).is_none()), "{pids:?}");
}
