//! Reads a SQL filter: one word ahead, from the left, refusing at the first word that does not fit.
//!
//! ```text
//! condition = and { OR and }              and  = not { AND not }              not = { NOT } predicate
//! predicate = operand [ = operand | <> operand | < | <= | > | >= operand | IS [NOT] NULL
//!                     | [NOT] BETWEEN operand AND operand | [NOT] IN ( text {, text} )
//!                     | [NOT] CONTAINS | STARTSWITH | ENDSWITH text ]
//! operand   = property | text | [+|-] number | TRUE | FALSE | NULL | ( condition )
//! ```
//! Only parentheses nest, so their depth bounds every recursion, here and in evaluation. What the words mean, and where this differs from
//! RocketMQ's `SelectorParser`, stands in [`super`]. Pure; called by [`super::Filter`].

use super::{
    condition::{Condition, Number, Operand},
    error::{FilterError, FilterFault},
    lexer::{INTEGER_RANGE, Lexer, Token},
};

/// Longest expression in bytes. RocketMQ has no limit; every message is held against every part of an expression.
pub(super) const BYTES_MAX: usize = 4 << 10;

/// Deepest nesting of parentheses. RocketMQ has no limit and answers with a stack overflow.
pub(super) const DEPTH_MAX: usize = 64;

/// Most entries of one `IN`. RocketMQ has no limit.
pub(super) const ENTRIES_MAX: usize = 256;

/// Reads an expression.
pub(super) fn parse(text: &str) -> Result<Condition, FilterError> {
    if text.len() > BYTES_MAX {
        let fault = FilterFault::TooLong { bytes: text.len(), max: BYTES_MAX };
        return Err(FilterError::new(text, 0, fault));
    }
    let mut parser = Parser { text, lexer: Lexer::new(text), token: Token::End, at: 0, depth: 0 };
    parser.advance()?;
    if parser.token == Token::End {
        return parser.fault(0, FilterFault::Empty);
    }
    let term = parser.condition()?;
    if parser.token != Token::End {
        return parser.expected(parser.wanted_behind(&term));
    }
    parser.as_condition(term)
}

struct Parser<'a> {
    text: &'a str,
    lexer: Lexer<'a>,
    /// The word ahead.
    token: Token<'a>,
    /// Where it begins.
    at: usize,
    /// Open parentheses.
    depth: usize,
}

/// What was read, and where it begins.
struct Term {
    at: usize,
    operand: Operand,
}

impl<'a> Parser<'a> {
    fn condition(&mut self) -> Result<Term, FilterError> {
        self.joined(Token::Or, Condition::Any, |parser| parser.joined(Token::And, Condition::All, Self::negation))
    }

    /// One or more parts with a word between them.
    fn joined(
        &mut self,
        word: Token<'static>,
        join: fn(Vec<Condition>) -> Condition,
        part: fn(&mut Self) -> Result<Term, FilterError>,
    ) -> Result<Term, FilterError> {
        let first = part(self)?;
        if self.token != word {
            return Ok(first);
        }
        let at = first.at;
        let mut conditions = vec![self.as_condition(first)?];
        while self.accept(word)? {
            let next = part(self)?;
            conditions.push(self.as_condition(next)?);
        }
        Ok(Term::condition(at, join(conditions)))
    }

    fn negation(&mut self) -> Result<Term, FilterError> {
        let at = self.at;
        let mut count = 0;
        while self.accept(Token::Not)? {
            count += 1;
        }
        let term = self.predicate()?;
        if count == 0 {
            return Ok(term);
        }
        let mut condition = self.as_condition(term)?;
        // Once or twice stands for any odd or even count, so that a row of NOT does not nest.
        for _ in 0..2 - count % 2 {
            condition = Condition::Not(Box::new(condition));
        }
        Ok(Term::condition(at, condition))
    }

    fn predicate(&mut self) -> Result<Term, FilterError> {
        let left = self.operand()?;
        let at = left.at;
        let condition = if self.accept(Token::Equal)? {
            self.equal(left, false)?
        } else if self.accept(Token::Unequal)? {
            self.equal(left, true)?
        } else if let Token::Order(order) = self.token {
            self.advance()?;
            self.check_ordered(&left)?;
            let right = self.ordered()?;
            Condition::Order { left: left.operand, order, right: right.operand }
        } else if self.accept(Token::Is)? {
            let negated = self.accept(Token::Not)?;
            self.expect(Token::Constant(None), "NULL or NOT NULL")?;
            Condition::IsNull { operand: left.operand, negated }
        } else {
            let negated = self.accept(Token::Not)?;
            if self.accept(Token::Between)? {
                self.between(left, negated)?
            } else if self.accept(Token::In)? {
                self.list(left, negated)?
            } else if let Token::Search(search) = self.token {
                self.advance()?;
                if matches!(left.operand, Operand::Number(_) | Operand::Condition(_)) {
                    return self.fault(left.at, FilterFault::NotSearchable);
                }
                let text = self.quoted()?;
                Condition::Search { operand: left.operand, search, text, negated }
            } else if negated {
                return self.expected("IN, BETWEEN, CONTAINS, STARTSWITH or ENDSWITH");
            } else {
                return Ok(left);
            }
        };
        if self.continues_comparison() {
            return self.fault(self.at, FilterFault::Chained);
        }
        Ok(Term::condition(at, condition))
    }

    /// What stands ahead would compare what was just compared.
    fn continues_comparison(&self) -> bool {
        matches!(
            self.token,
            Token::Equal
                | Token::Unequal
                | Token::Order(_)
                | Token::Search(_)
                | Token::Is
                | Token::In
                | Token::Between
                | Token::Not
        )
    }

    fn equal(&mut self, left: Term, negated: bool) -> Result<Condition, FilterError> {
        let right = self.operand()?;
        for side in [&left, &right] {
            if side.constant() == Some(&Condition::Constant(None)) {
                return self.fault(side.at, FilterFault::NullCompared);
            }
        }
        for (flag, other) in [(&left, &right), (&right, &left)] {
            if flag.constant().is_some() && matches!(other.operand, Operand::Number(_) | Operand::Text(_)) {
                return self.fault(right.at, FilterFault::FlagCompared);
            }
        }
        Ok(Condition::Equal { left: left.operand, right: right.operand, negated })
    }

    fn between(&mut self, value: Term, negated: bool) -> Result<Condition, FilterError> {
        self.check_ordered(&value)?;
        let low = self.ordered()?;
        self.expect(Token::And, "AND and the upper bound of BETWEEN")?;
        let high = self.ordered()?;
        if let (Operand::Number(least), Operand::Number(most)) = (&low.operand, &high.operand)
            && !negated
            && least.compare(*most).is_gt()
        {
            return self.fault(low.at, FilterFault::BoundsReversed);
        }
        Ok(Condition::Between { value: value.operand, low: low.operand, high: high.operand, negated })
    }

    fn list(&mut self, left: Term, negated: bool) -> Result<Condition, FilterError> {
        let Operand::Property(property) = left.operand else { return self.fault(left.at, FilterFault::InOfNoProperty) };
        self.expect(Token::Open, "( and texts in single quotes")?;
        let mut entries = Vec::new();
        loop {
            if entries.len() == ENTRIES_MAX {
                return self.fault(self.at, FilterFault::TooManyEntries { max: ENTRIES_MAX });
            }
            entries.push(self.quoted()?);
            if !self.accept(Token::Comma)? {
                break;
            }
        }
        self.expect(Token::Close, ", and another text, or )")?;
        entries.sort_unstable();
        entries.dedup();
        Ok(Condition::In { property, entries: entries.into(), negated })
    }

    fn operand(&mut self) -> Result<Term, FilterError> {
        let at = self.at;
        let operand = match self.token {
            Token::Name(name) => Operand::Property(name.into()),
            Token::Text(text) => Operand::Text(unquoted(text)),
            Token::Constant(truth) => Operand::Condition(Box::new(Condition::Constant(truth))),
            Token::Integer(_) | Token::Float(_) | Token::Plus | Token::Minus => {
                let number = self.number()?;
                return Ok(Term { at, operand: Operand::Number(number) });
            }
            Token::Open => {
                if self.depth == DEPTH_MAX {
                    return self.fault(at, FilterFault::TooDeep { max: DEPTH_MAX });
                }
                self.depth += 1;
                self.advance()?;
                let inner = self.condition()?;
                self.expect(Token::Close, self.wanted_before_close(&inner))?;
                self.depth -= 1;
                return Ok(Term { at, operand: inner.operand });
            }
            Token::Not => return self.fault(at, FilterFault::NotInComparison),
            Token::Equal
            | Token::Unequal
            | Token::Order(_)
            | Token::Search(_)
            | Token::And
            | Token::Or
            | Token::Between
            | Token::In
            | Token::Is
            | Token::Close
            | Token::Comma
            | Token::End => {
                return self.expected("a property, a text in single quotes, a number, TRUE, FALSE, NULL or (");
            }
        };
        self.advance()?;
        Ok(Term { at, operand })
    }

    fn number(&mut self) -> Result<Number, FilterError> {
        let mut negative = false;
        while self.token == Token::Minus || self.token == Token::Plus {
            negative ^= self.token == Token::Minus;
            self.advance()?;
        }
        let number = if let Token::Float(value) = self.token {
            Number::Float(if negative { -value } else { value })
        } else if let Token::Integer(size) = self.token {
            let whole = if negative { 0i64.checked_sub_unsigned(size) } else { 0i64.checked_add_unsigned(size) };
            let Some(whole) = whole else {
                let fault = FilterFault::NotANumber { found: size.to_string(), remedy: INTEGER_RANGE };
                return self.fault(self.at, fault);
            };
            Number::Whole(whole)
        } else {
            return self.expected("a number; a sign stands before nothing else");
        };
        self.advance()?;
        Ok(number)
    }

    /// An operand that has an order.
    fn ordered(&mut self) -> Result<Term, FilterError> {
        let term = self.operand()?;
        self.check_ordered(&term)?;
        Ok(term)
    }

    fn check_ordered(&self, term: &Term) -> Result<(), FilterError> {
        match term.operand {
            Operand::Property(_) | Operand::Number(_) => Ok(()),
            Operand::Text(_) => self.fault(term.at, FilterFault::TextOrdered),
            Operand::Condition(_) => self.fault(term.at, FilterFault::ConditionOrdered),
        }
    }

    fn quoted(&mut self) -> Result<Box<str>, FilterError> {
        let Token::Text(text) = self.token else { return self.expected("a text in single quotes") };
        self.advance()?;
        Ok(unquoted(text))
    }

    fn as_condition(&self, term: Term) -> Result<Condition, FilterError> {
        match term.operand {
            Operand::Condition(condition) => Ok(*condition),
            Operand::Property(name) => self.fault(term.at, FilterFault::PropertyAlone { name: name.into() }),
            Operand::Text(_) | Operand::Number(_) => self.fault(term.at, FilterFault::ValueAlone),
        }
    }

    fn wanted_behind(&self, term: &Term) -> &'static str {
        self.wanted(term, "AND, OR or the end", "a comparison, AND, OR or the end")
    }

    fn wanted_before_close(&self, term: &Term) -> &'static str {
        self.wanted(term, "AND, OR or )", "a comparison, AND, OR or )")
    }

    fn wanted(&self, term: &Term, condition: &'static str, operand: &'static str) -> &'static str {
        match (&term.operand, self.token) {
            (_, Token::Name(name)) if name.eq_ignore_ascii_case("LIKE") => {
                "CONTAINS, STARTSWITH or ENDSWITH; there is no LIKE"
            }
            (Operand::Condition(_), _) => condition,
            (Operand::Property(_) | Operand::Text(_) | Operand::Number(_), _) => operand,
        }
    }

    fn advance(&mut self) -> Result<(), FilterError> {
        (self.at, self.token) = self.lexer.next()?;
        Ok(())
    }

    /// Passes the word if it is ahead.
    fn accept(&mut self, word: Token<'static>) -> Result<bool, FilterError> {
        let found = self.token == word;
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect(&mut self, word: Token<'static>, wanted: &'static str) -> Result<(), FilterError> {
        if self.accept(word)? { Ok(()) } else { self.expected(wanted) }
    }

    /// The word ahead is another than the wanted one.
    fn expected<T>(&self, wanted: &'static str) -> Result<T, FilterError> {
        let found: String = self.text[self.at..self.lexer.at()].chars().take(32).collect();
        let fault = if self.token == Token::End {
            FilterFault::Ends { wanted }
        } else {
            FilterFault::Unexpected { found, wanted }
        };
        self.fault(self.at, fault)
    }

    fn fault<T>(&self, at: usize, fault: FilterFault) -> Result<T, FilterError> {
        Err(FilterError::new(self.text, at, fault))
    }
}

impl Term {
    fn condition(at: usize, condition: Condition) -> Self {
        Self { at, operand: Operand::Condition(Box::new(condition)) }
    }

    /// `TRUE`, `FALSE` or `NULL`, if it is one.
    fn constant(&self) -> Option<&Condition> {
        let Operand::Condition(condition) = &self.operand else { return None };
        matches!(**condition, Condition::Constant(_)).then_some(condition)
    }
}

fn unquoted(text: &str) -> Box<str> {
    text.replace("''", "'").into()
}
