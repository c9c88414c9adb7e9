//! Why a filter's text was refused: the place and the remedy. Never decides anything; made by the parsers of this module and shown to
//! clients under the code of an illegal filter expression.

/// A text that is no filter. To clients this is code 40010, `ILLEGAL_FILTER_EXPRESSION`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter expression, character {column}: {fault}")]
pub(crate) struct FilterError {
    /// Bytes of the text before the fault.
    pub at: usize,
    /// The character at which the fault begins, counted from 1.
    pub column: usize,
    /// What is wrong, and what to write.
    pub fault: FilterFault,
}

impl FilterError {
    /// The fault at byte `at` of the text, which is a border between characters.
    pub(super) fn new(text: &str, at: usize, fault: FilterFault) -> Self {
        let before = text.get(..at).expect("faults stand where a character begins");
        Self { at, column: before.chars().count() + 1, fault }
    }
}

/// What is wrong with a filter's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FilterFault {
    #[error("the expression has {bytes} bytes, at most {max} are allowed; use fewer or shorter alternatives")]
    TooLong { bytes: usize, max: usize },
    #[error("no tag is named; write * for every message, or tags with || between them")]
    NoTag,
    #[error("* means every message and stands alone; remove it or the tags beside it")]
    StarAmongTags,
    #[error("a single | is not part of any tag; write || between tags")]
    SingleBar,
    #[error("{0:?} is a control character, which no tag has; remove it")]
    ControlInTag(char),
    #[error("filtering by SQL expression is not implemented by this broker; filter by tag")]
    SqlNotBuilt,
}
