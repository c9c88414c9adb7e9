//! A machine without its type: openraft and everything around it are compiled once, not once per machine.

use bytes::Bytes;

use crate::{
    binding::Reply,
    machine::{CommittedEntry, ImagePoint, MachineError, StateMachine},
    types::{LogId, Position},
};

/// [`StateMachine`] with its reply boxed; the methods mean the same.
pub(crate) trait ErasedMachine: Send {
    fn applied(&self) -> Option<LogId>;
    fn apply(&mut self, entry: CommittedEntry) -> Reply;
    fn settle(&mut self, synced: Position);
    fn save_image(&mut self, border: Position) -> Bytes;
    fn load_image(&mut self, at: ImagePoint, image: &[u8]) -> Result<(), MachineError>;
    fn floor(&mut self, floor: Position);
}

struct Erased<M>(M);

/// Hides the type of a machine.
pub(crate) fn erase<M: StateMachine>(machine: M) -> Box<dyn ErasedMachine> {
    Box::new(Erased(machine))
}

impl<M: StateMachine> ErasedMachine for Erased<M> {
    fn applied(&self) -> Option<LogId> {
        self.0.applied()
    }

    fn apply(&mut self, entry: CommittedEntry) -> Reply {
        Reply::of(self.0.apply(entry))
    }

    fn settle(&mut self, synced: Position) {
        self.0.settle(synced);
    }

    fn save_image(&mut self, border: Position) -> Bytes {
        self.0.save_image(border)
    }

    fn load_image(&mut self, at: ImagePoint, image: &[u8]) -> Result<(), MachineError> {
        self.0.load_image(at, image)
    }

    fn floor(&mut self, floor: Position) {
        self.0.floor(floor);
    }
}
