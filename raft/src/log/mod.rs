//! The commit log of a node: segments of frames, an index, one writer, and recovery.
//!
//! The Raft log *is* the commit log: every body a node has is in here, once, and everything else points at positions in it.
//!
//! ```text
//! append ─▶ state (placed, readable at once) ─▶ queue ─▶ writer ─▶ segment file ─▶ one sync ─▶ callbacks
//!               │ tail cache, index                          └▶ hard state (vote, floor, era, how far synced)
//! read ◀────────┴── files
//! ```
//! Names of the stages: *appended* (in memory) ≥ *written* (in the file) ≥ *synced* (on stable storage). With openraft an entry
//! may be committed and applied before it is written here, so nothing on disk may run ahead of `synced` (LAW-ORDER).
//! Must never: hand out bytes whose crc it has not checked since they came from a file (but for [`LogView`]'s
//! bodies), call something synced that is not, or drop an entry that may have been acked.
//!
//! `frame` bytes of an entry · `scan` the pure reading of them · `segment` files and borders · `index` index → position ·
//! `tail` newest frames · `state` the log in memory · `queue`, `writer` carrying out · `recover` opening · `read`, `handle` the API.

pub(crate) mod damage;
pub mod frame;
mod handle;
pub(crate) mod index;
mod queue;
mod read;
mod recover;
pub(crate) mod scan;
pub(crate) mod segment;
mod state;
mod tail;
mod writer;

pub use frame::{Frame, FrameError, HEADER_BYTES, Payload, Place, WIRE_HEADER_BYTES};
pub use handle::{CatchUp, Log, Recovery};
pub use queue::Done;
pub use read::LogView;
pub(crate) use segment::{name as position_name, parse as parse_position};
pub use state::Diverged;

pub use crate::hard_state::{CatchUpReason, Floor, OpenError, VoteRecord};
