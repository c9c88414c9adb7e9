//! A condition over a message's properties, and what it comes to for one message.
//!
//! A condition is true, false or unknown; only a true one delivers. The rules are those of RocketMQ's `ComparisonExpression`,
//! `UnaryExpression` and `LogicExpression`, which [`super`] lists. A property that cannot be read as the number it is compared with ends the
//! evaluation: the message is not delivered, whatever else holds of it (there, an exception that `ExpressionMessageFilter` turns into no).
//! Evaluation allocates nothing and is linear in the condition. Pure; built by the parser beside it.

use std::{borrow::Cow, cmp::Ordering};

use super::Properties;

/// True, false, or unknown.
pub(super) type Truth = Option<bool>;

/// A property is not a number of the kind that it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

/// What a message is held against.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Condition {
    /// `TRUE`, `FALSE`, and `NULL` as unknown.
    Constant(Truth),
    /// All of at least two, with `AND`.
    All(Vec<Self>),
    /// One of at least two, with `OR`.
    Any(Vec<Self>),
    Not(Box<Self>),
    /// `=`; negated `<>`.
    Equal {
        left: Operand,
        right: Operand,
        negated: bool,
    },
    /// No operand is a text or a condition.
    Order {
        left: Operand,
        order: Order,
        right: Operand,
    },
    /// No operand is a text or a condition.
    Between {
        value: Operand,
        low: Operand,
        high: Operand,
        negated: bool,
    },
    IsNull {
        operand: Operand,
        negated: bool,
    },
    /// The entries are sorted.
    In {
        property: Box<str>,
        entries: Box<[Box<str>]>,
        negated: bool,
    },
    /// The operand is a property or a text.
    Search {
        operand: Operand,
        search: Search,
        text: Box<str>,
        negated: bool,
    },
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    Property(Box<str>),
    Text(Box<str>),
    Number(Number),
    Condition(Box<Condition>),
}

/// A number as it is written in the filter or read from a property; never NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Whole(i64),
    Float(f64),
}

/// A comparison that needs an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// A look into a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Search {
    Contains,
    StartsWith,
    EndsWith,
}

/// What an operand comes to for one message.
enum Value<'a> {
    Null,
    Boolean(bool),
    Number(Number),
    Text(Cow<'a, str>),
}

impl Condition {
    /// What the condition comes to for the message.
    pub(super) fn evaluate(&self, message: &impl Properties) -> Result<Truth, Unreadable> {
        match self {
            Self::Constant(truth) => Ok(*truth),
            Self::All(conditions) => decided_by(false, conditions, message),
            Self::Any(conditions) => decided_by(true, conditions, message),
            Self::Not(condition) => Ok(condition.evaluate(message)?.map(|truth| !truth)),
            Self::Equal { left, right, negated } => {
                let equal = equal(left.value(message)?, right.value(message)?)?;
                Ok(equal.map(|equal| equal != *negated))
            }
            Self::Order { left, order, right } => order.evaluate(left, right, message),
            Self::Between { value, low, high, negated } => {
                let (below, above) = match negated {
                    false => (Order::GreaterEqual, Order::LessEqual),
                    true => (Order::Less, Order::Greater),
                };
                let first = below.evaluate(value, low, message)?;
                if first == Some(*negated) {
                    return Ok(first);
                }
                let second = above.evaluate(value, high, message)?;
                Ok(if second == Some(*negated) { second } else { first.and(second) })
            }
            Self::IsNull { operand, negated } => {
                let null = matches!(operand.value(message)?, Value::Null);
                Ok(Some(null != *negated))
            }
            Self::In { property, entries, negated } => Ok(message.property(property).map(|value| {
                let found = entries.binary_search_by(|entry| entry.as_ref().cmp(value.as_ref())).is_ok();
                found != *negated
            })),
            Self::Search { operand, search, text, negated } => Ok(Some(match operand.value(message)? {
                Value::Text(value) if !text.is_empty() => search.finds(&value, text) != *negated,
                Value::Text(_) | Value::Null | Value::Boolean(_) | Value::Number(_) => false,
            })),
        }
    }
}

/// `OR` is decided by the first true condition and `AND` by the first false one; else an unknown one makes the whole unknown.
fn decided_by(decisive: bool, conditions: &[Condition], message: &impl Properties) -> Result<Truth, Unreadable> {
    let mut truth = Some(!decisive);
    for condition in conditions {
        let one = condition.evaluate(message)?;
        if one == Some(decisive) {
            return Ok(one);
        }
        truth = truth.and(one);
    }
    Ok(truth)
}

impl Operand {
    fn value<'a>(&'a self, message: &'a impl Properties) -> Result<Value<'a>, Unreadable> {
        Ok(match self {
            Self::Property(name) => message.property(name).map_or(Value::Null, Value::Text),
            Self::Text(text) => Value::Text(Cow::Borrowed(text)),
            Self::Number(number) => Value::Number(*number),
            Self::Condition(condition) => condition.evaluate(message)?.map_or(Value::Null, Value::Boolean),
        })
    }
}

impl Order {
    /// Compares the operands; unknown without one of them.
    fn evaluate(self, left: &Operand, right: &Operand, message: &impl Properties) -> Result<Truth, Unreadable> {
        let ordering = match (left.value(message)?, right.value(message)?) {
            (Value::Null, _) | (_, Value::Null) => return Ok(None),
            (Value::Number(left), Value::Number(right)) => left.compare(right),
            (Value::Number(left), Value::Text(right)) => left.compare(left.read_alike(&right)?),
            (Value::Text(left), Value::Number(right)) => right.read_alike(&left)?.compare(right),
            (Value::Text(left), Value::Text(right)) => Number::read(&left)?.compare(Number::read(&right)?),
            // The parser lets no condition come here.
            (Value::Boolean(_), _) | (_, Value::Boolean(_)) => return Err(Unreadable),
        };
        Ok(Some(self.holds(ordering)))
    }

    /// The ordering is one that was asked for.
    pub(super) fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Less => ordering.is_lt(),
            Self::LessEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterEqual => ordering.is_ge(),
        }
    }
}

impl Search {
    fn finds(self, value: &str, text: &str) -> bool {
        match self {
            Self::Contains => value.contains(text),
            Self::StartsWith => value.starts_with(text),
            Self::EndsWith => value.ends_with(text),
        }
    }
}

/// Origin: `ComparisonExpression.doCreateEqual`, whose two sides differ when one is missing.
fn equal(left: Value<'_>, right: Value<'_>) -> Result<Truth, Unreadable> {
    Ok(match (left, right) {
        (Value::Null, Value::Null) => Some(true),
        (Value::Null, _) => None,
        (_, Value::Null) => Some(false),
        (Value::Boolean(left), Value::Boolean(right)) => Some(left == right),
        (Value::Boolean(flag), Value::Text(text)) | (Value::Text(text), Value::Boolean(flag)) => {
            Some(flag == text.eq_ignore_ascii_case("true"))
        }
        (Value::Boolean(_), Value::Number(_)) | (Value::Number(_), Value::Boolean(_)) => Some(false),
        (Value::Text(left), Value::Text(right)) => Some(left == right),
        (Value::Number(left), Value::Number(right)) => Some(left.compare(right).is_eq()),
        (Value::Number(number), Value::Text(text)) | (Value::Text(text), Value::Number(number)) => {
            Some(number.compare(number.read_alike(&text)?).is_eq())
        }
    })
}

impl Number {
    /// Reads a property to compare it with this number: with a whole number only whole numbers are.
    fn read_alike(self, text: &str) -> Result<Self, Unreadable> {
        match self {
            Self::Whole(_) => text.parse().map(Self::Whole).map_err(|_| Unreadable),
            Self::Float(_) => Self::read(text),
        }
    }

    /// Reads a property as the number that it is.
    fn read(text: &str) -> Result<Self, Unreadable> {
        text.parse().map(Self::Whole).or_else(|_| read_float(text))
    }

    /// Exact, also between kinds.
    pub(super) fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Whole(left), Self::Whole(right)) => left.cmp(&right),
            (Self::Float(left), Self::Float(right)) => left.partial_cmp(&right).expect("numbers are never NaN"),
            (Self::Whole(left), Self::Float(right)) => compare_whole(left, right),
            (Self::Float(left), Self::Whole(right)) => compare_whole(right, left).reverse(),
        }
    }
}

/// Compares without rounding the whole number to a float.
fn compare_whole(whole: i64, float: f64) -> Ordering {
    /// 2^63.
    const END: f64 = 9_223_372_036_854_775_808.0;
    if float >= END {
        return Ordering::Less;
    }
    if float < -END {
        return Ordering::Greater;
    }
    let cut = float.trunc();
    whole.cmp(&(cut as i64)).then_with(|| cut.partial_cmp(&float).expect("numbers are never NaN"))
}

/// As Java's `Double.valueOf` reads what `String.valueOf` writes; no NaN, no hexadecimal, no suffix.
fn read_float(text: &str) -> Result<Number, Unreadable> {
    let text = text.trim_matches(|found| found <= ' ');
    let value = match text.strip_prefix(['+', '-']).unwrap_or(text) {
        "Infinity" if text.starts_with('-') => f64::NEG_INFINITY,
        "Infinity" => f64::INFINITY,
        digits if digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') => {
            text.parse().map_err(|_| Unreadable)?
        }
        _ => return Err(Unreadable),
    };
    Ok(Number::Float(value))
}
