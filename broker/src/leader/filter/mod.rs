//! Which messages a consumer asked for: RocketMQ's tag and SQL filters, parsed once and held against many messages.
//!
//! ```text
//!   kind, text ─▶ Filter::parse ─▶ tag_hashes: which records of a consume queue are worth reading
//!                               └▶ matches:    which of the read messages are delivered
//! ```
//! Pure: text and messages come in, yes or no comes out. It never decides what happens to a message that does not match, and a text that it
//! does not fully understand is refused with the place and the remedy, never read half. Called by the leader's planner.
//!
//! # What SQL means
//! As RocketMQ's `filter` module and its page on message filtering have it:
//! - Property values are texts. Compared with a whole number they are read as one, with a number that has a point or exponent as any
//!   number, with `TRUE` or `FALSE` as "is it `true`, in any case". Two properties are equal as texts and ordered as numbers.
//! - A value that is not such a number ends the evaluation: the message is not delivered, whatever follows. So `price > 3` delivers no
//!   message whose price is `3.14`; that is written `price > 3.0`.
//! - A missing property is unknown in comparisons, `BETWEEN` and `IN`, with three-valued `AND`, `OR`, `NOT`; unknown does not deliver. But
//!   `x = y` is true if both are missing and false if only y is (`ComparisonExpression.doCreateEqual`), and `[NOT] CONTAINS`,
//!   `STARTSWITH`, `ENDSWITH` are false of a missing property, and for an empty text.
//!
//! # Where this differs from RocketMQ
//! - Whole numbers have 64 bits; there a number below 2^31 makes the property one of 32 bits, and a timestamp is then never delivered.
//!   Comparisons are exact; there two properties, and whole numbers with floats, are rounded. NaN is not a number. `0.0` may be written.
//! - `NOT` binds as in SQL, behind comparisons: `NOT a = 1` is `NOT (a = 1)`. There it is `(NOT a) = 1`, which never holds,
//!   and `NOT a IS NULL` holds there for messages without `a`.
//! - `TRUE = a` is `a = TRUE`; there it fails on a cast.
//! - Refused instead of silently never (or always) true: a property alone as a condition, signs before anything but a number, `5 = TRUE`,
//!   `5 CONTAINS 'x'`, comparisons in a row without parentheses. Refused instead of ignored: what follows a complete expression.
//! - Bounds on length, nesting and the entries of `IN`.

mod condition;
mod error;
mod lexer;
mod parser;
#[cfg(test)]
mod sql_test;
pub(crate) mod stored;
mod tag;

use std::borrow::Cow;

pub(crate) use self::error::FilterError;
use self::{condition::Condition, tag::Tags};

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
    /// Messages of which a condition is true.
    Sql(Sql),
}

/// A condition over properties.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sql(Condition);

impl Filter {
    /// Reads a filter. Tags: empty and `*` are [`Filter::All`].
    ///
    /// # Errors
    /// The first fault from the left, with its place.
    pub fn parse(kind: FilterKind, text: &str) -> Result<Self, FilterError> {
        match kind {
            FilterKind::Tag => Ok(Tags::parse(text)?.map_or(Self::All, Self::Tags)),
            FilterKind::Sql => Ok(Self::Sql(Sql(parser::parse(text)?))),
        }
    }

    /// The hashes of the tags that can match, sorted; `None` if the hash says nothing about a match. A message whose hash
    /// ([`crate::machine::tag_hash`]) is not among them does not match; one whose hash is may still not.
    pub fn tag_hashes(&self) -> Option<&[u64]> {
        match self {
            Self::All | Self::Sql(_) => None,
            Self::Tags(tags) => Some(tags.hashes()),
        }
    }

    /// The message is one that the filter asks for.
    pub fn matches(&self, message: &impl Properties) -> bool {
        match self {
            Self::All => true,
            Self::Tags(tags) => message.tag().is_some_and(|tag| tags.contains(&tag)),
            Self::Sql(Sql(condition)) => condition.evaluate(message) == Ok(Some(true)),
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
    fn sql_sees_the_tag_as_a_property_and_says_nothing_of_hashes() {
        let filter = Filter::parse(FilterKind::Sql, "TAGS = 'A'").expect("legal");
        assert_eq!(filter.tag_hashes(), None);
        for (tag, expected) in [(Some("A"), true), (Some("B"), false), (None, false)] {
            assert_eq!(filter.matches(&Tagged(tag)), expected, "{tag:?}");
        }
    }
}
