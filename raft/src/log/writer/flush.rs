//! Async flush: syncs in the background, at each interval. On a thread of its own if the writer has one, else by the writer.

use std::{
    io,
    sync::{Arc, atomic::Ordering, mpsc},
    time::Duration,
};

use tokio::time::Instant;
use tracing::warn;

use super::{Reached, Writer};
use crate::{
    config::FlushMode,
    disk::DiskFile,
    log::{handle::Shared, queue::Work},
};

/// An order to the background thread.
struct Flush {
    file: Arc<dyn DiskFile>,
    upto: Reached,
    cuts: u64,
}

impl Writer {
    pub(super) fn flush_due_in(&self) -> Option<Duration> {
        let FlushMode::Async(interval) = self.shared.flush else { return None };
        let idle = self.flushing || self.synced.position == self.written.position;
        (!idle).then(|| interval.saturating_sub(self.synced_at.elapsed()))
    }

    /// Begins a background sync, or does it here if nobody else can.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let order =
            self.active.as_ref().map(|(_, file)| Flush { file: file.clone(), upto: self.written, cuts: self.cuts });
        match (&self.flusher, order) {
            (Some(flusher), Some(order)) => {
                self.flushing = flusher.orders.send(order).is_ok();
                if self.flushing { Ok(()) } else { Err(io::Error::other("the sync thread has ended")) }
            }
            (_, _) => self.sync().await,
        }
    }

    pub(super) fn flushed(&mut self, upto: Reached, cuts: u64, result: io::Result<()>) -> io::Result<()> {
        self.flushing = false;
        self.synced_at = Instant::now();
        self.sync_failed |= result.is_err();
        result?;
        if cuts == self.cuts && upto.position > self.synced.position {
            self.synced = upto;
            self.hard_stale = true;
            self.publish();
        }
        Ok(())
    }
}

/// The thread of the background sync; ends with the writer.
pub(super) struct Flusher {
    orders: mpsc::Sender<Flush>,
}

impl Flusher {
    /// `None` if there is no thread to be had: the writer then syncs by itself.
    pub fn spawn(shared: Arc<Shared>) -> Option<Self> {
        let (orders, taken) = mpsc::channel::<Flush>();
        let run = move || {
            while let Ok(Flush { file, upto, cuts }) = taken.recv() {
                shared.syncs.fetch_add(1, Ordering::Relaxed);
                let began = Instant::now();
                let result = if cfg!(feature = "mutant-no-sync") { Ok(()) } else { file.sync() };
                shared.metrics.sync_seconds.record_time(began.elapsed());
                shared
                    .queue
                    .push(Work::Flushed { upto: upto.position, index: upto.index, cuts, result }, Box::new(|_| ()));
            }
        };
        match std::thread::Builder::new().name("log-flusher".into()).spawn(run) {
            Ok(_) => Some(Self { orders }),
            Err(error) => {
                warn!(%error, "no thread for background syncs");
                None
            }
        }
    }
}
