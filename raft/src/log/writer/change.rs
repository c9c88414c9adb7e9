//! Everything the writer does besides appending: truncation, purge, reset, votes, the hard state. What matters here is the
//! order of the steps: cut between any two of them, a later start finds the log as it was before or as it is after.

use std::io;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Reached, Writer};
use crate::{
    config::FlushMode,
    hard_state::{Floor, Record, VoteRecord},
    log::frame::HEADER_BYTES,
    types::LogIndex,
};

impl Writer {
    /// Sets the end of the log back. The order matters: once the era is raised what lies behind the new end vouches for
    /// nothing and attaches to nothing; before, all of it is still there.
    pub(super) async fn cut(&mut self, to: Reached) -> io::Result<()> {
        if self.synced.position < to.position {
            self.sync().await?;
        }
        self.written = to;
        self.synced = to;
        self.cuts += 1;
        self.save_hard(|record| record.era += 1).await?;
        let segments = self.shared.segments.borders;
        let segment = segments.below(to.position);
        let mut removed = false;
        for later in self.shared.segments.list()?.into_iter().rev().filter(|later| *later >= to.position) {
            self.shared.segments.remove(later)?;
            removed = true;
        }
        if removed {
            self.shared.segments.sync_dir()?;
        }
        self.shared.segments.remove_index(segment)?;
        // What was read of them while they were cut says nothing about what comes there.
        self.shared.damages.forget(|damaged| damaged >= segment);
        self.active = None;
        if segment < to.position {
            let file = match self.shared.segments.file(segment) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return self.carried_out(),
                Err(error) => return Err(error),
            };
            let rest = (segments.after(segment).0 - to.position.0).min(HEADER_BYTES as u64);
            file.write_at(to.position.0 - segment.0, &[Bytes::from(vec![0; rest as usize])])?;
            self.sync_log(&file).await?;
            self.active = Some((segment, file));
        }
        self.carried_out()
    }

    /// The oldest cut of the state is done.
    fn carried_out(&self) -> io::Result<()> {
        let mut state = self.shared.state();
        state.cuts.pop_front();
        state.progress(self.written.position, self.synced.position);
        Ok(())
    }

    /// Always synced, also with async flush, and never ahead of an entry that came before it.
    pub(super) async fn vote(&mut self, vote: VoteRecord) -> io::Result<()> {
        self.sync().await?;
        self.save_hard(|record| record.vote = Some(vote)).await
    }

    /// The floor is durable before the first byte below it goes, and never above what is synced (LAW-ORDER).
    pub(super) async fn purge(&mut self, floor: Floor) -> io::Result<()> {
        self.sync().await?;
        self.save_hard(|record| record.floor = floor).await?;
        let segments = &self.shared.segments;
        for segment in segments.list()?.into_iter().filter(|segment| segments.borders.after(*segment) <= floor.position)
        {
            segments.remove(segment)?;
        }
        self.shared.damages.forget(|segment| segments.borders.after(segment) <= floor.position);
        Ok(())
    }

    pub(super) async fn reset(&mut self, floor: Floor) -> io::Result<()> {
        let reached = Reached { position: floor.position, index: floor.purged.map(|purged| purged.index) };
        self.written = reached;
        self.synced = reached;
        self.cuts += 1;
        self.active = None;
        self.save_hard(|record| {
            record.era += 1;
            record.floor = floor;
            record.committed = record.committed.max(floor.purged);
        })
        .await?;
        for segment in self.shared.segments.list()?.into_iter().rev() {
            self.shared.segments.remove(segment)?;
        }
        self.shared.segments.sync_dir()?;
        self.shared.damages.forget(|_| true);
        self.carried_out()
    }

    pub(super) async fn close(&mut self) -> io::Result<()> {
        self.sync().await?;
        for _ in 0..2 {
            self.save_hard(|record| record.clean = true).await?;
        }
        Ok(())
    }

    /// Saves the hard state with what is true now and with `change`; durable when it returns.
    pub(super) async fn save_hard(&mut self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let mut record = self.hard.record().clone();
        record.synced = self.synced.position;
        let acked = if self.shared.flush == FlushMode::Sync { self.synced.index } else { self.written.index };
        // While a node must catch up, what it acked before is still to be reached.
        record.acked = if record.catch_up.is_some() { record.acked.max(acked) } else { acked };
        {
            // Saved only if it is in the synced log, and not while the log in memory is ahead of a cut in the files.
            let state = self.shared.state();
            let durable = |index: LogIndex| self.synced.index.is_some_and(|synced| index <= synced);
            if let Some(committed) = state.committed.filter(|id| state.cuts.is_empty() && durable(id.index)) {
                record.committed = record.committed.max(Some(committed));
            }
        }
        change(&mut record);
        self.hard.write(record)?;
        let file = self.hard.file().clone();
        self.sync_file(&file).await?;
        // One slot more, a second from now, if the other one does not hold the same yet.
        self.hard_stale = !self.hard.is_doubled();
        self.hard_saved_at = Instant::now();
        Ok(())
    }
}
