//! Following the floor: the image at the floor becomes the Raft snapshot, then the log before it goes away.
//!
//! The floor itself is set by the log, alike on every node; this task only carries it out here, step by step, each of which
//! can be repeated. It starts over at every start, so a node that was cut in the middle finishes then. openraft purges
//! nothing that is not in the snapshot, and a leader keeps what a follower is just reading.

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::watch;

use super::Inner;
use crate::types::{LogId, Position};

/// Pause between two looks at what openraft has done so far.
const STEP: Duration = Duration::from_millis(50);

/// Looks at one step before it is asked for again.
const LOOKS: u32 = 40;

pub(super) async fn follow(inner: Arc<Inner>, mut saved: watch::Receiver<Position>) {
    let mut applied = inner.applied.clone();
    loop {
        applied.mark_unchanged();
        saved.mark_unchanged();
        let floor = applied.borrow().floor;
        if !is_done(&inner, floor) {
            carry_out(&inner, floor).await;
        }
        // Wait for a new floor, or for the image of this one. Looking again now and then costs nothing.
        let moved = applied.wait_for(|now| now.floor > floor);
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            moved = moved => if moved.is_err() { return },
            image = saved.changed() => if image.is_err() { return },
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
    }
}

/// Nothing is left to do for this floor.
fn is_done(inner: &Inner, floor: Position) -> bool {
    inner.log.floor().position >= floor
}

async fn carry_out(inner: &Inner, floor: Position) {
    let Some(target) = inner.images.newest_upto(floor).and_then(|meta| meta.point.applied) else {
        return;
    };
    if snapshot_of(inner) < Some(target) && !make_snapshot(inner, target).await {
        return;
    }
    if inner.raft.trigger().purge_log(target.index.0).await.is_err() {
        return;
    }
    for _ in 0..LOOKS {
        if inner.log.purged().map(|id| id.index) >= Some(target.index) {
            tracing::info!(floor = %inner.log.floor().position, "log purged");
            return;
        }
        tokio::time::sleep(STEP).await;
    }
}

fn snapshot_of(inner: &Inner) -> Option<LogId> {
    inner.raft.data_metrics().borrow_watched().snapshot.as_ref().map(crate::binding::from_raft)
}

async fn make_snapshot(inner: &Inner, target: LogId) -> bool {
    if inner.raft.trigger().snapshot().await.is_err() {
        return false;
    }
    for _ in 0..LOOKS {
        if snapshot_of(inner).map(|id| id.index) >= Some(target.index) {
            return true;
        }
        tokio::time::sleep(STEP).await;
    }
    false
}
