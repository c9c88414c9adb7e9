//! What a node keeps on disk beside the log, all of it a reading of the log that can be made again.
//!
//! ```text
//!   consume_queue   data/queue/v2/<topic number>/<queue>/<20-digit first offset>   pointers into the log, 20 bytes each
//!   checkpoint      data/checkpoint/                                               the machine some seconds ago
//!                   data/dedup/<20-digit first number>                             its remembered sends, 40 bytes each
//! ```
//! [`lane`] is the shape of both kinds of record files, [`queue_record`] the bytes of one pointer, [`files`] the handles. Consume queues and remembered sends go
//! through raft's `Disk` door; the checkpoint's database is the one thing that opens files of its own. LAW-ORDER holds
//! because a checkpoint is written only after the log up to it and the files it vouches for are synced.

pub(crate) mod checkpoint;
pub(crate) mod consume_queue;
pub(crate) mod files;
pub mod inspect;
pub(crate) mod lane;
pub(crate) mod plain;
pub(crate) mod queue_record;
pub(crate) mod retention;
pub(crate) mod save;
