//! What executes committed entries. Pure rules live above this crate; here is the contract, and below it what keeps it.
//!
//! ```text
//! openraft ── committed entries ──▶ applier ── apply ──▶ StateMachine ── reply ──▶ proposer
//!                                      │ first entry of a new segment: image of everything before it
//!                                      ▼
//!                                    saver ── log synced? ──▶ image durable ── floor moved ──▶ Raft snapshot, purge
//! ```

use bytes::Bytes;

pub(crate) mod applier;
pub(crate) mod erased;
pub(crate) mod restore;
pub(crate) mod saver;

pub use crate::types::ImagePoint;
use crate::types::{LogId, Position};

/// A committed entry on its way into the machine.
#[derive(Clone, Debug)]
pub struct CommittedEntry {
    /// Its log id.
    pub id: LogId,
    /// Position in the commit log of the payload's first byte; equal on all nodes.
    pub position: Position,
    /// What was proposed.
    pub payload: Bytes,
}

/// An image or checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("image at {border}: {reason}")]
pub struct MachineError {
    /// Border of the image.
    pub border: Position,
    /// What is wrong with it.
    pub reason: String,
}

/// The executor of committed entries of one node. Called by one task only, in log order.
///
/// Same entries ⇒ same state, same replies, same image bytes on every node (LAW-SAME). A disk fault inside must end the
/// process: there is no error to return.
pub trait StateMachine: Send + 'static {
    /// What `apply` answers the proposer.
    type Reply: Send + 'static;

    /// The last entry contained in what the machine restored from its own checkpoint; `None` if it starts empty.
    /// Called once at start. If the log or the newest image cannot continue from there, `load_image` follows.
    fn applied(&self) -> Option<LogId>;

    /// Executes one entry.
    fn apply(&mut self, entry: CommittedEntry) -> Self::Reply;

    /// Nothing more is ready to apply just now. `synced` is how far this node's own log is on stable storage:
    /// a checkpoint must not run ahead of it (LAW-ORDER).
    fn settle(&mut self, synced: Position);

    /// The state as bytes, taken when apply crosses a segment border; `border` is the first position of the new segment.
    fn save_image(&mut self, border: Position) -> Bytes;

    /// Replaces the whole state by an image (empty `image` with `applied: None` = the empty machine).
    fn load_image(&mut self, at: ImagePoint, image: &[u8]) -> Result<(), MachineError>;

    /// The floor moved, in log order: nothing below `floor` will be readable. `floor` is a segment border.
    fn floor(&mut self, floor: Position);
}
