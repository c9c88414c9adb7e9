//! Which segments of this log are known to be damaged: noted where a read meets damage, said once, watched by the group.
//!
//! Damage stays: a read that met it once will meet it again, and whoever depends on the segment has to go elsewhere until the file is
//! whole. A transient failure (no descriptors) is not noted. Forgotten when the segment is made again or purged.

use std::{collections::BTreeMap, io};

use tokio::sync::watch;

use crate::{log::segment::Segments, types::Position};

/// Damaged segments by position, with what the read said that met it first.
pub(crate) type Damaged = BTreeMap<Position, String>;

/// The damaged segments of one log.
#[derive(Default)]
pub(crate) struct Damages {
    known: watch::Sender<Damaged>,
}

impl Damages {
    /// Notes what a read at `position` met, if it is damage. Hands the error on.
    pub fn note(&self, segments: &Segments, position: Position, error: io::Error) -> io::Error {
        if is_damage(&error) {
            let segment = segments.borders.below(position);
            self.known.send_if_modified(|known| {
                if known.contains_key(&segment) {
                    return false;
                }
                tracing::error!(
                    %error,
                    "a file of the log is damaged on this disk: what it held is served by the other nodes; \
                     docs/OPERATIONS.md, \"A file of the log is damaged while its node runs\""
                );
                known.insert(segment, error.to_string());
                true
            });
        }
        error
    }

    /// Forgets segments: they are whole again, or gone.
    pub fn forget(&self, which: impl Fn(Position) -> bool) {
        self.known.send_if_modified(|known| {
            let before = known.len();
            known.retain(|segment, _| !which(*segment));
            known.len() != before
        });
    }

    /// What is known now and later.
    pub fn watch(&self) -> watch::Receiver<Damaged> {
        self.known.subscribe()
    }
}

/// Whether a read met damage, which stays, and not for example a lack of descriptors, which passes.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}
