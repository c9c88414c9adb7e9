//! The end of a run: all faults stop, and the group must be whole again, serve, and agree on everything it ever said.
//!
//! A run that only avoids wrong answers could be passed by a group that answers nothing, so healing within a bound of virtual time is
//! part of the verdict; and a group that lost everything on all its disks contradicts nobody, so the last word is held against what
//! the clients were told.

use std::time::Duration;

use quorate_raft::{LogId, LogIndex};
use tokio::time::{Instant, sleep};

use super::{
    trace::Event,
    world::{Subject, World},
};

/// Virtual time the group has to become whole and serve through every node, once all faults have ended.
pub const HEAL_WITHIN: Duration = Duration::from_secs(30);
/// Virtual time all replicas have to reach the same entry, once the clients have stopped.
const AGREE_WITHIN: Duration = Duration::from_secs(10);

/// Heals the group and waits until every node runs, votes and serves a request. What does not come in time is a violation.
pub async fn heal<S: Subject>(world: &World<S>) -> bool {
    world.heal();
    let deadline = Instant::now() + HEAL_WITHIN;
    for node in world.numbers() {
        while !(world.is_whole() && world.running(node).is_some() && S::probe(world, node).await) {
            if Instant::now() >= deadline {
                let states = states(world);
                world
                    .witness()
                    .violate("heals", format!("n{node} does not serve {HEAL_WITHIN:?} after the last fault; {states}"));
                return false;
            }
            sleep(Duration::from_millis(100)).await;
            if world.scenario().members {
                // What a change that was broken off has left behind.
                world.start(node);
                world.admit_all().await;
            }
        }
    }
    true
}

/// Waits until all replicas stand at the same entry and compares them with each other and with what the clients know.
/// The clients must have stopped.
pub async fn agree<S: Subject>(world: &World<S>) {
    let deadline = Instant::now() + AGREE_WITHIN;
    let quiet = loop {
        if let Some(index) = quiet(world) {
            break index;
        }
        if Instant::now() >= deadline {
            let states = states(world);
            world.witness().violate(
                "agrees",
                format!("replicas differ in length {AGREE_WITHIN:?} after the last request; {states}"),
            );
            return;
        }
        sleep(Duration::from_millis(20)).await;
    };
    world.look();
    world.witness().note(Event::Quiet { index: quiet.0 });
    compare(world, quiet);
}

/// The index at which all nodes stand, with everything applied; `None` while they do not.
fn quiet<S: Subject>(world: &World<S>) -> Option<LogIndex> {
    let running = world.all_running();
    let stands: Vec<Option<LogId>> = running
        .iter()
        .map(|(_, running)| running.group.status())
        .map(|status| status.last.filter(|_| status.last == status.applied))
        .collect();
    let first = stands.first().copied().flatten()?;
    let same = stands.len() == world.numbers().len() && stands.iter().all(|stand| *stand == Some(first));
    same.then_some(first.index)
}

fn compare<S: Subject>(world: &World<S>, quiet: LogIndex) {
    let witness = world.witness();
    if witness.acked_last() > Some(quiet) {
        witness
            .violate("lost-write", format!("all replicas end at {quiet}, acknowledged was {:?}", witness.acked_last()));
    }
    let running = world.all_running();
    let mut first = None;
    for (node, running) in &running {
        for wrong in world.subject().judge(&running.shared) {
            witness.violate("final-state", format!("n{node}: {wrong}"));
        }
        let (state, chain) = (S::state(&running.shared), running.group.status().chain);
        let (one, expected, hash) = first.get_or_insert((*node, state.clone(), chain));
        if *expected != state || *hash != chain {
            let sums = (crc32c::crc32c(expected), crc32c::crc32c(&state));
            witness.violate(
                "final-state",
                format!(
                    "n{one} and n{node} differ at {quiet}: states {sums:08x?}, running hashes {:08x?}",
                    (hash, chain)
                ),
            );
        }
    }
}

/// Where every node stands, for a report.
fn states<S: Subject>(world: &World<S>) -> String {
    let mut out = String::new();
    for node in world.numbers() {
        match world.running(node) {
            None => out.push_str(&format!("n{node} down; ")),
            Some(running) => {
                let status = running.group.status();
                let last = |id: Option<LogId>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
                out.push_str(&format!(
                    "n{node} {:?} term {} leader {:?} last {} committed {} applied {} members {:?}; ",
                    status.role,
                    status.term,
                    status.leader,
                    last(status.last),
                    last(status.committed),
                    last(status.applied),
                    status.members.iter().map(|member| (member.id, member.voter)).collect::<Vec<_>>(),
                ));
            }
        }
    }
    out
}
