//! Numbers of the log, each in a type of its own so that they cannot be swapped.

use std::fmt;

/// A node's identity in its broker group: the configured number (1, 2, 3 …) and the incarnation of its data directory.
///
/// A wiped directory draws a new incarnation, so a node that lost its log never votes under its old identity (LAW-BIRTH).
/// `number << 32 | incarnation`; the incarnation is a random nonzero number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u64);

impl NodeId {
    /// Joins a configured number and a directory's incarnation.
    pub fn new(number: u16, incarnation: u32) -> Self {
        Self(u64::from(number) << 32 | u64::from(incarnation))
    }

    /// The configured number, as operators write it.
    pub fn number(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The data directory's incarnation.
    pub fn incarnation(self) -> u32 {
        self.0 as u32
    }
}

impl From<u64> for NodeId {
    fn from(raw: u64) -> Self {
        Self(raw)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:08x}", self.number(), self.incarnation())
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// An era of leadership.
    Term
}
number! {
    /// The number of an entry in the log, starting at 0.
    LogIndex
}
number! {
    /// A byte offset in the commit log; equal on all nodes of a group.
    Position
}

/// Which leader wrote an entry, and where it stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct LogId {
    /// Term of the leader that wrote the entry.
    pub term: Term,
    /// The leader that wrote the entry.
    pub node: NodeId,
    /// Number of the entry.
    pub index: LogIndex,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.term, self.node, self.index)
    }
}

/// Where an image was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImagePoint {
    /// Last entry the image contains; `None` for the empty machine.
    pub applied: Option<LogId>,
    /// The segment border the image stands at: the first position it does not contain.
    pub border: Position,
}
