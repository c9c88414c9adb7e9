//! Numbers of the machine, each in a type of its own so that they cannot be swapped.

use std::fmt;

use md5::{Digest, Md5};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A topic's number: given at its creation, never used again, so a re-created topic has another one.
    TopicId(u32)
}
number! {
    /// A consumer group's number: given at its creation, never used again.
    GroupId(u32)
}
number! {
    /// A numbered lane of a topic, from 0.
    QueueId(u16)
}
number! {
    /// The number of a record in its queue, from 0.
    QueueOffset(u64)
}
number! {
    /// The number of a delivery. Every hand-out and every changed receipt gets the next one, over all groups and topics,
    /// so a larger serial is always the later word about a message.
    Serial(u64)
}

number! {
    /// A message group by its digest: what an ordered consumer group tells apart. Two names of one digest would only be ordered
    /// more than they ask for.
    MessageGroup(u64)
}

impl MessageGroup {
    /// All messages of a queue that name no message group: one lane per queue.
    pub const NONE: Self = Self(0);

    /// The digest of a message group's name: the first 8 bytes of its MD5, little endian. An empty name is none.
    pub fn of(name: &str) -> Self {
        if name.is_empty() {
            return Self::NONE;
        }
        let digest: [u8; 16] = Md5::digest(name).into();
        Self(u128::from_le_bytes(digest) as u64)
    }

    /// The queue of a topic with `queues` of them that messages of this group stand in.
    pub fn queue(self, queues: u16) -> QueueId {
        let place = self.0 % u64::from(queues.max(1));
        QueueId(u16::try_from(place).expect("less than a u16"))
    }
}
