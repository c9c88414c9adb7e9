//! Which messages of a topic a consumer wants. The broker reads the text; this only carries it.

use quorate_proto::v2;

/// A filter over the messages of a topic. All consumers of one group should use the same: what one does not want, none of them gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    expression: v2::FilterExpression,
}

impl Filter {
    /// Every message.
    pub fn all() -> Self {
        Self::tags("*")
    }

    /// Messages with one of some tags: `paid || refunded`.
    pub fn tags(expression: impl Into<String>) -> Self {
        Self::of(v2::FilterType::Tag, expression.into())
    }

    /// Messages of which an SQL condition over their properties is true: `region = 'north' AND amount > 100`.
    pub fn sql(condition: impl Into<String>) -> Self {
        Self::of(v2::FilterType::Sql, condition.into())
    }

    fn of(kind: v2::FilterType, expression: String) -> Self {
        Self { expression: v2::FilterExpression { r#type: kind.into(), expression } }
    }

    pub(crate) fn to_wire(&self) -> v2::FilterExpression {
        self.expression.clone()
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self::all()
    }
}
