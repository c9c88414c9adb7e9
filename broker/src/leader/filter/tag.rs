//! Filters by tag: `*`, or tags with `||` between them.
//!
//! As RocketMQ's `FilterAPI.buildSubscriptionData` reads them: nothing and `*` mean every message; blanks (up to U+0020, Java's `trim`)
//! around a tag do not count; empty alternatives and repeated tags do not either; `||` alone is refused. A tag is matched whole, as
//! `FilterUtils.isTagMatched` does, and a message without a tag matches none. What RocketMQ takes as a tag that no message can
//! have, and so never delivers, is refused here: a single `|` and control characters (its `GrpcValidator.validateTag` keeps both out of
//! messages), and `*` beside tags. Blanks alone count as nothing, and blanks around `*` do not count.
//!
//! Pure. Called by [`super::Filter`].

use super::error::{FilterError, FilterFault};
use crate::machine::tag_hash;

/// Longest expression in bytes. RocketMQ has no limit; 16 KiB hold hundreds of tags.
pub(super) const BYTES_MAX: usize = 16 << 10;

/// The tags of a filter, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tags {
    /// Sorted, each once.
    tags: Box<[Box<str>]>,
    /// Of the tags; sorted, each once.
    hashes: Box<[u64]>,
}

impl Tags {
    /// Reads an expression; `None` if it asks for every message.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, FilterError> {
        let fault = |at, fault| Err(FilterError::new(text, at, fault));
        if text.len() > BYTES_MAX {
            return fault(0, FilterFault::TooLong { bytes: text.len(), max: BYTES_MAX });
        }
        let whole = text.trim_matches(is_blank);
        if whole.is_empty() || whole == "*" {
            return Ok(None);
        }
        let mut tags = Vec::new();
        let mut begin = 0;
        for part in text.split("||") {
            let tag = part.trim_matches(is_blank);
            let at = begin + (part.len() - part.trim_start_matches(is_blank).len());
            begin += part.len() + "||".len();
            if tag == "*" {
                return fault(at, FilterFault::StarAmongTags);
            }
            if let Some((offset, found)) = tag.char_indices().find(|(_, found)| *found == '|' || found.is_control()) {
                let wrong = if found == '|' { FilterFault::SingleBar } else { FilterFault::ControlInTag(found) };
                return fault(at + offset, wrong);
            }
            if !tag.is_empty() {
                tags.push(Box::from(tag));
            }
        }
        if tags.is_empty() {
            return fault(0, FilterFault::NoTag);
        }
        let mut hashes: Vec<_> = tags.iter().map(|tag| tag_hash(tag)).collect();
        tags.sort_unstable();
        tags.dedup();
        hashes.sort_unstable();
        hashes.dedup();
        Ok(Some(Self { tags: tags.into(), hashes: hashes.into() }))
    }

    /// Whether the tag is one of these.
    pub(super) fn contains(&self, tag: &str) -> bool {
        self.tags.binary_search_by(|known| known.as_ref().cmp(tag)).is_ok()
    }

    /// The tags' hashes, sorted.
    pub(super) fn hashes(&self) -> &[u64] {
        &self.hashes
    }
}

/// What Java's `String.trim` removes.
fn is_blank(found: char) -> bool {
    found <= ' '
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(text: &str) -> Vec<String> {
        let tags = Tags::parse(text).expect("legal").expect("names tags");
        tags.tags.iter().map(|tag| tag.to_string()).collect()
    }

    #[test]
    fn nothing_and_a_star_mean_every_message() {
        for text in ["", "*", "  ", " * ", "\t*\n"] {
            assert_eq!(Tags::parse(text), Ok(None), "{text:?}");
        }
    }

    #[test]
    fn blanks_around_tags_repeated_tags_and_empty_alternatives_do_not_count() {
        for (text, expected) in [
            ("A", &["A"][..]),
            ("A||B", &["A", "B"]),
            (" B ||\tA \n", &["A", "B"]),
            ("A || A||A", &["A"]),
            ("||A", &["A"]),
            ("A||", &["A"]),
            ("A || || B", &["A", "B"]),
            ("A||||B", &["A", "B"]),
            ("two words || a*", &["a*", "two words"]),
            ("订单 || été || 🦀", &["été", "订单", "🦀"]),
            ("\u{3000}A", &["\u{3000}A"]),
        ] {
            assert_eq!(tags(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_text_that_could_never_match_is_refused_where_it_goes_wrong() {
        for (text, at, column, fault) in [
            ("||", 0, 1, FilterFault::NoTag),
            (" || || ", 0, 1, FilterFault::NoTag),
            ("A || *", 5, 6, FilterFault::StarAmongTags),
            ("* || A", 0, 1, FilterFault::StarAmongTags),
            ("*||*", 0, 1, FilterFault::StarAmongTags),
            ("A | B", 2, 3, FilterFault::SingleBar),
            ("A ||| B", 4, 5, FilterFault::SingleBar),
            ("é || 订|单", 9, 7, FilterFault::SingleBar),
            ("A || B\u{7f}C", 6, 7, FilterFault::ControlInTag('\u{7f}')),
            ("A\tB", 1, 2, FilterFault::ControlInTag('\t')),
        ] {
            assert_eq!(Tags::parse(text), Err(FilterError { at, column, fault }), "{text:?}");
        }
    }

    #[test]
    fn an_expression_has_a_longest_length() {
        let longest = "x".repeat(BYTES_MAX);
        assert!(Tags::parse(&longest).is_ok());
        let fault = FilterFault::TooLong { bytes: BYTES_MAX + 1, max: BYTES_MAX };
        assert_eq!(Tags::parse(&(longest + "x")), Err(FilterError { at: 0, column: 1, fault }));
    }

    #[test]
    fn hashes_are_those_of_consume_queues_and_equal_hashes_are_told_apart_by_the_tag() {
        let filter = Tags::parse("BB || TagA").expect("legal").expect("names tags");
        assert_eq!(filter.hashes(), [2112, 2_598_919]);
        assert_eq!(tag_hash("Aa"), tag_hash("BB"), "the textbook collision");
        assert!(filter.contains("BB") && filter.contains("TagA"));
        for other in ["Aa", "B", "BBB", "taga", " TagA", ""] {
            assert!(!filter.contains(other), "{other:?}");
        }
        let both = Tags::parse("Aa||BB").expect("legal").expect("names tags");
        assert_eq!(both.hashes(), [2112]);
    }
}
