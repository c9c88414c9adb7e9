//! `--no-demo`: the group stays up for whoever wants to develop against it or to break it. A node that is killed from
//! outside is started again after a second; one that cannot live is tried ever more rarely, and the others stay up.

use std::{convert::Infallible, os::unix::process::ExitStatusExt, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rustix::process::Signal;
use tokio::{sync::mpsc, time::sleep};

use super::{DevError, Group, Screen};
use crate::{chaos::Exit, world::World};

/// Between the end of a node and its next start.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// A node that lived shorter than this has a fault of its own, and waits twice as long as before …
const SHORT_LIFE: Duration = Duration::from_secs(3);
/// … up to this.
const RESTART_AFTER_MAX: Duration = Duration::from_secs(10);

/// Starts the group, says `ready endpoints=…` and keeps it up until dropped.
pub(super) async fn run<W: World>(
    group: &Group<W>,
    screen: &Arc<dyn Screen>,
    exits: &mut mpsc::Receiver<Exit>,
) -> Result<Infallible, DevError> {
    group.start_all(exits).await?;
    screen.ready(&format!("ready endpoints={}", group.plan.endpoints()));
    let mut restarts = FuturesUnordered::new();
    let mut patience = vec![RESTART_AFTER; group.plan.nodes.len()];
    loop {
        tokio::select! {
            exit = exits.recv() => {
                let Some(exit) = exit else { return Err(DevError::Process(crate::chaos::ProcessError::KeeperGone)) };
                let at = group.plan.nodes.iter().position(|node| node.number == exit.number).unwrap_or_default();
                patience[at] = next_patience(patience[at], exit.lived, is_killed(&exit));
                screen.warn(&said(group, &exit, patience[at]));
                let after = patience[at];
                restarts.push(async move {
                    sleep(after).await;
                    (exit.number, group.restart(exit.number).await)
                });
            }
            Some((number, started)) = restarts.next() => match started {
                Ok(pid) => screen.warn(&format!("broker {number} runs again (pid {pid})")),
                Err(error) => screen.warn(&format!("broker {number} could not be started again: {error}")),
            },
        }
    }
}

fn next_patience(last: Duration, lived: Duration, killed: bool) -> Duration {
    if lived < SHORT_LIFE && !killed { (last * 2).min(RESTART_AFTER_MAX) } else { RESTART_AFTER }
}

/// SIGKILL does not come from the node itself, so it says nothing about the node's health.
fn is_killed(exit: &Exit) -> bool {
    exit.status.signal() == Some(Signal::KILL.as_raw())
}

fn said<W: World>(group: &Group<W>, exit: &Exit, after: Duration) -> String {
    let Exit { number, pid, status, lived, .. } = exit;
    let mut text = format!("broker {number} (pid {pid}) ended: {status}; starting it again in {} s", after.as_secs());
    if *lived < SHORT_LIFE && !is_killed(exit) {
        text = format!("{text}\n{}", group.log_tail(*number));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_killed_from_outside_returns_after_a_second_and_one_that_cannot_live_ever_more_rarely() {
        let long = Duration::from_secs(60);
        assert_eq!(next_patience(RESTART_AFTER, long, false), RESTART_AFTER);
        let mut patience = RESTART_AFTER;
        for seconds in [2, 4, 8, 10, 10] {
            patience = next_patience(patience, Duration::from_millis(200), false);
            assert_eq!(patience, Duration::from_secs(seconds));
        }
        assert_eq!(next_patience(patience, long, false), RESTART_AFTER);
        assert_eq!(next_patience(patience, Duration::from_millis(200), true), RESTART_AFTER, "killed from outside");
    }
}
