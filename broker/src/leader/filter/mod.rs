//! Which messages a consumer asked for: RocketMQ's tag and SQL filters, parsed once and held against many messages.
//!
//! ```text
//!   kind, text ─▶ Filter::parse ─▶ tag_hashes: which records of a consume queue are worth reading
//!                               └▶ matches:    which of the read messages are delivered
//! ```
//! Pure: text and messages come in, yes or no comes out. It never decides what happens to a message that does not match, and a text that it
//! does not fully understand is refused with the place and the remedy, never read half. Called by the leader's planner.

mod error;
mod tag;

use std::borrow::Cow;

pub(crate) use self::error::{FilterError, FilterFault};
use self::tag::Tags;

/// The language of a filter's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FilterKind {
    /// `*`, or tags with `||` between them.
    Tag,
    /// A condition over properties.
    Sql,
}

/// What a filter sees of a message.
pub(crate) trait Properties {
    /// The message's tag; none is not the same as `""`.
    fn tag(&self) -> Option<Cow<'_, str>>;

    /// The value under a name as RocketMQ's SQL knows it: `TAGS`, `KEYS` and the other names the system keeps for itself, else a user
    /// property. Names differ in case.
    fn property(&self, name: &str) -> Option<Cow<'_, str>>;
}

/// A parsed filter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Filter {
    /// Every message.
    All,
    /// Messages with one of some tags.
    Tags(Tags),
}

impl Filter {
    /// Reads a filter. Tags: empty and `*` are [`Filter::All`].
    ///
    /// # Errors
    /// The first fault from the left, with its place.
    pub fn parse(kind: FilterKind, text: &str) -> Result<Self, FilterError> {
        match kind {
            FilterKind::Tag => Ok(Tags::parse(text)?.map_or(Self::All, Self::Tags)),
            FilterKind::Sql => Err(FilterError::new(text, 0, FilterFault::SqlNotBuilt)),
        }
    }

    /// The hashes of the tags that can match, sorted; `None` if the hash says nothing about a match. A message whose hash
    /// ([`crate::machine::tag_hash`]) is not among them does not match; one whose hash is may still not.
    pub fn tag_hashes(&self) -> Option<&[u64]> {
        match self {
            Self::All => None,
            Self::Tags(tags) => Some(tags.hashes()),
        }
    }

    /// The message is one that the filter asks for.
    pub fn matches(&self, message: &impl Properties) -> bool {
        match self {
            Self::All => true,
            Self::Tags(tags) => message.tag().is_some_and(|tag| tags.contains(&tag)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with a tag alone.
    struct Tagged(Option<&'static str>);

    impl Properties for Tagged {
        fn tag(&self) -> Option<Cow<'_, str>> {
            self.0.map(Cow::Borrowed)
        }

        fn property(&self, name: &str) -> Option<Cow<'_, str>> {
            self.tag().filter(|_| name == "TAGS")
        }
    }

    #[test]
    fn a_filter_by_tag_names_hashes_and_decides_by_the_tag_itself() {
        let filter = Filter::parse(FilterKind::Tag, "BB || C").expect("legal");
        assert_eq!(filter.tag_hashes(), Some(&[67, 2112][..]));
        for (tag, expected) in [(Some("BB"), true), (Some("C"), true), (Some("Aa"), false), (None, false)] {
            assert_eq!(filter.matches(&Tagged(tag)), expected, "{tag:?}");
            assert_eq!(Tagged(tag).property("TAGS"), Tagged(tag).tag(), "SQL sees the same tag");
        }
    }

    #[test]
    fn a_star_and_nothing_ask_for_every_message() {
        for text in ["*", ""] {
            let filter = Filter::parse(FilterKind::Tag, text).expect("legal");
            assert_eq!(filter, Filter::All);
            assert_eq!(filter.tag_hashes(), None);
            assert!(filter.matches(&Tagged(None)) && filter.matches(&Tagged(Some("A"))));
        }
    }

    #[test]
    fn sql_is_refused() {
        let refused = Filter::parse(FilterKind::Sql, "a = 1").expect_err("not built");
        assert_eq!((refused.column, refused.fault), (1, FilterFault::SqlNotBuilt));
    }
}
