//! Numbers of the machine, each in a type of its own so that they cannot be swapped.

use std::fmt;

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
