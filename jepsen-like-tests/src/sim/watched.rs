//! A machine under observation: everything the group asks of it is told to the witness first.
//!
//! So the rules of [`super::invariants`] hold for every machine, the counter's as well as the broker's, and no machine has
//! to be written for the simulator.

use bytes::Bytes;
use quorate_raft::{CommittedEntry, ImagePoint, LogId, MachineError, Position, StateMachine};

use super::invariants::Witness;

/// The machine of one run of one node.
pub struct Watched<M> {
    inner: M,
    witness: Witness,
    node: u16,
    run: u32,
}

impl<M: StateMachine> Watched<M> {
    /// Watches `inner`, which may have restored itself from a checkpoint of its own.
    pub fn new(inner: M, witness: Witness, node: u16, run: u32) -> Self {
        witness.restored(node, inner.applied());
        Self { inner, witness, node, run }
    }
}

impl<M: StateMachine> StateMachine for Watched<M> {
    type Reply = M::Reply;

    fn applied(&self) -> Option<LogId> {
        self.inner.applied()
    }

    fn apply(&mut self, entry: CommittedEntry) -> M::Reply {
        self.witness.apply(self.node, self.run, &entry);
        self.inner.apply(entry)
    }

    fn settle(&mut self, synced: Position) {
        self.inner.settle(synced);
    }

    fn save_image(&mut self, border: Position) -> Bytes {
        let image = self.inner.save_image(border);
        self.witness.save(self.node, border, &image);
        image
    }

    fn load_image(&mut self, at: ImagePoint, image: &[u8]) -> Result<(), MachineError> {
        self.witness.load(self.node, at.border, at.applied, image);
        self.inner.load_image(at, image)
    }

    fn floor(&mut self, floor: Position) {
        self.witness.floor(self.node, floor);
        self.inner.floor(floor);
    }
}
