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
    #[error("the expression is empty; write a condition such as a = 'x', or TRUE for every message")]
    Empty,
    #[error("{found:?} is not part of the language; {remedy}")]
    NotInLanguage { found: char, remedy: &'static str },
    #[error("the text does not end; close it with ', and write '' for a quote inside")]
    TextOpen,
    #[error("the comment does not end; close it with */")]
    CommentOpen,
    #[error("{found} is not a number of the language; {remedy}")]
    NotANumber { found: String, remedy: &'static str },
    #[error("found {found}, expected {wanted}")]
    Unexpected { found: String, wanted: &'static str },
    #[error("the expression ends, expected {wanted}")]
    Ends { wanted: &'static str },
    #[error("property {name} alone is no condition; write {name} = TRUE or {name} IS NOT NULL")]
    PropertyAlone { name: String },
    #[error("a text or number alone is no condition; compare it with a property")]
    ValueAlone,
    #[error("a comparison cannot be compared again; join two with AND or OR, or put the first in parentheses")]
    Chained,
    #[error("NOT stands before a whole condition; put it and its condition in parentheses")]
    NotInComparison,
    #[error("nothing equals NULL; write IS NULL or IS NOT NULL")]
    NullCompared,
    #[error("TRUE and FALSE never equal a text or number; compare them with a property")]
    FlagCompared,
    #[error("texts have no order; compare with a number, without quotes")]
    TextOrdered,
    #[error("conditions, TRUE, FALSE and NULL have no order; compare a property with a number")]
    ConditionOrdered,
    #[error("the lower bound of BETWEEN is above the upper one; swap them")]
    BoundsReversed,
    #[error("only a property can be IN a list; write its name before IN")]
    InOfNoProperty,
    #[error("only properties and texts can be searched; write one before CONTAINS, STARTSWITH or ENDSWITH")]
    NotSearchable,
    #[error("more than {max} parentheses are open here; use fewer")]
    TooDeep { max: usize },
    #[error("the list of IN has more than {max} entries; join shorter lists with OR")]
    TooManyEntries { max: usize },
}
