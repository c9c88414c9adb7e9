//! Names that clients send: parsed once at the door, trusted afterwards.
//!
//! Lengths and characters are RocketMQ's: a topic has at most 127 characters, a consumer group 120, both of
//! `[%|a-zA-Z0-9_-]`. A name never becomes part of a file name.

use std::{borrow::Borrow, fmt, sync::Arc};

/// Longest topic name, in bytes.
pub const TOPIC_NAME_MAX: usize = 127;
/// Longest consumer group name, in bytes.
pub const GROUP_NAME_MAX: usize = 120;

/// Topics that RocketMQ keeps for itself; a client may neither create nor send to them.
pub const SYSTEM_TOPICS: [&str; 10] = [
    "TBW102",
    "SCHEDULE_TOPIC_XXXX",
    "BenchmarkTest",
    "RMQ_SYS_TRANS_HALF_TOPIC",
    "RMQ_SYS_TRANS_OP_HALF_TOPIC",
    "TRANS_CHECK_MAX_TIME_TOPIC",
    "RMQ_SYS_TRACE_TOPIC",
    "SELF_TEST_TOPIC",
    "OFFSET_MOVED_EVENT",
    "CHECKPOINT_TOPIC",
];

/// What the name of a topic of dead letters begins with; the name of their consumer group follows.
pub const DEAD_LETTER_PREFIX: &str = "%DLQ%";

/// Why a name is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("{what} name is empty; give 1 to {max} characters of a-z A-Z 0-9 _ - % |")]
    Empty {
        /// "topic" or "consumer group".
        what: &'static str,
        /// Longest name.
        max: usize,
    },
    /// Too long.
    #[error("{what} name has {len} characters, at most {max} are allowed")]
    TooLong {
        /// "topic" or "consumer group".
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// Longest name.
        max: usize,
    },
    /// A character that is not allowed.
    #[error("{what} name has the character {character:?} at {at}; only a-z A-Z 0-9 _ - % | are allowed")]
    Character {
        /// "topic" or "consumer group".
        what: &'static str,
        /// The character.
        character: char,
        /// Its byte offset.
        at: usize,
    },
    /// One of RocketMQ's own topics, or the prefix `rmq_sys_`.
    #[error("topic {name} is reserved by the system; choose another name")]
    Reserved {
        /// The name.
        name: String,
    },
}

fn check(what: &'static str, name: &str, max: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what, max });
    }
    if name.len() > max {
        return Err(NameError::TooLong { what, len: name.len(), max });
    }
    let bad = name.char_indices().find(|(_, c)| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '%' | '|')));
    match bad {
        Some((at, character)) => Err(NameError::Character { what, character, at }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// The name of a topic that a client may use.
    TopicName
}
name! {
    /// The name of a consumer group.
    GroupName
}

impl TopicName {
    /// Checks and owns a topic name.
    ///
    /// # Errors
    /// Says what is wrong with it; system topics are [`NameError::Reserved`].
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check("topic", name, TOPIC_NAME_MAX)?;
        if SYSTEM_TOPICS.contains(&name) || name.starts_with("rmq_sys_") {
            return Err(NameError::Reserved { name: name.to_owned() });
        }
        Ok(Self(name.into()))
    }

    /// The topic of a consumer group's dead letters.
    pub fn dead_letters(group: &GroupName) -> Self {
        Self(format!("{DEAD_LETTER_PREFIX}{group}").into())
    }

    /// Whether it is a topic of dead letters; then the consumer group's name.
    pub fn dead_letters_of(&self) -> Option<&str> {
        self.0.strip_prefix(DEAD_LETTER_PREFIX)
    }
}

impl GroupName {
    /// Checks and owns a consumer group name.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check("consumer group", name, GROUP_NAME_MAX)?;
        Ok(Self(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_name_keeps_rocketmq_s_length_and_characters() {
        assert!(TopicName::parse("order-paid_2|%x").is_ok());
        assert!(TopicName::parse(&"t".repeat(127)).is_ok());
        assert_eq!(TopicName::parse(&"t".repeat(128)), Err(NameError::TooLong { what: "topic", len: 128, max: 127 }));
        assert!(matches!(TopicName::parse(""), Err(NameError::Empty { .. })));
        for (name, character, at) in [("../etc", '.', 0), ("a b", ' ', 1), ("tö", 'ö', 1), ("a\0", '\0', 1)] {
            assert_eq!(TopicName::parse(name), Err(NameError::Character { what: "topic", character, at }));
        }
    }

    #[test]
    fn system_topics_cannot_be_used_by_clients() {
        for name in SYSTEM_TOPICS.iter().chain(&["rmq_sys_wheel_timer"]) {
            assert!(matches!(TopicName::parse(name), Err(NameError::Reserved { .. })), "{name}");
        }
    }

    #[test]
    fn a_group_name_has_at_most_120_characters() {
        assert!(GroupName::parse(&"g".repeat(120)).is_ok());
        assert!(GroupName::parse(&"g".repeat(121)).is_err());
    }
}
