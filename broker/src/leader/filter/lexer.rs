//! Cuts a SQL filter into words, one at a time and no further than the parser has read, so that faults are found from the left.
//!
//! The words are those of RocketMQ's `SelectorParser.jj`: keywords in any case, names of ASCII letters, digits, `_` and `$`, texts in
//! single quotes with `''` for a quote inside, whole numbers with or without `L`, numbers with a point or an exponent, comments as
//! `-- …` and `/* … */`, and blank, tab, newline, return and form feed between them. A number must end where its word ends (there,
//! `5abc` is read as 5 and the rest dropped) and has no leading zeros. Pure; called by the parser beside it.

use super::{
    condition::{Order, Search},
    error::{FilterError, FilterFault},
};

/// A word of the language.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Token<'a> {
    /// A property.
    Name(&'a str),
    /// What stands between the quotes, inner quotes still doubled.
    Text(&'a str),
    /// A whole number without its sign, at most 2^63.
    Integer(u64),
    /// A finite number.
    Float(f64),
    /// `TRUE`, `FALSE`, and `NULL` as none.
    Constant(Option<bool>),
    Equal,
    Unequal,
    Order(Order),
    Search(Search),
    And,
    Or,
    Not,
    Between,
    In,
    Is,
    Open,
    Close,
    Comma,
    Plus,
    Minus,
    End,
}

/// Reads words from the left.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Bytes read so far: the end of the last word.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next word and the byte at which it begins.
    pub(super) fn next(&mut self) -> Result<(usize, Token<'a>), FilterError> {
        self.skip_blanks()?;
        let begin = self.at;
        let Some(first) = self.rest().chars().next() else { return Ok((begin, Token::End)) };
        let token = match first {
            'a'..='z' | 'A'..='Z' | '_' | '$' => word(self.take_while(is_name)),
            '0'..='9' => self.number()?,
            '.' if self.rest()[1..].starts_with(|found: char| found.is_ascii_digit()) => self.number()?,
            '\'' => self.quoted()?,
            _ => self.symbol(first)?,
        };
        Ok((begin, token))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn fault<T>(&self, at: usize, fault: FilterFault) -> Result<T, FilterError> {
        Err(FilterError::new(self.text, at, fault))
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|found| !belongs(found)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    fn accept(&mut self, symbol: &str) -> bool {
        let found = self.rest().starts_with(symbol);
        self.at += if found { symbol.len() } else { 0 };
        found
    }

    fn skip_blanks(&mut self) -> Result<(), FilterError> {
        loop {
            self.take_while(|found| matches!(found, ' ' | '\t' | '\n' | '\r' | '\u{c}'));
            let begin = self.at;
            if self.accept("--") {
                self.take_while(|found| !matches!(found, '\n' | '\r'));
            } else if self.accept("/*") {
                let Some(end) = self.rest().find("*/") else { return self.fault(begin, FilterFault::CommentOpen) };
                self.at += end + "*/".len();
            } else {
                return Ok(());
            }
        }
    }

    fn quoted(&mut self) -> Result<Token<'a>, FilterError> {
        let begin = self.at;
        self.at += 1;
        loop {
            self.take_while(|found| found != '\'');
            let end = self.at;
            if !self.accept("'") {
                return self.fault(begin, FilterFault::TextOpen);
            }
            if !self.accept("'") {
                return Ok(Token::Text(&self.text[begin + 1..end]));
            }
        }
    }

    fn number(&mut self) -> Result<Token<'a>, FilterError> {
        let begin = self.at;
        let digit = |found: char| found.is_ascii_digit();
        let whole = self.take_while(digit);
        let mut float = self.accept(".");
        if float {
            self.take_while(digit);
        }
        let mantissa = &self.text[begin..self.at];
        if let Some(behind) = self.rest().strip_prefix(['e', 'E']) {
            let digits = behind.strip_prefix(['+', '-']).unwrap_or(behind);
            if digits.starts_with(digit) {
                self.at = self.text.len() - digits.len();
                self.take_while(digit);
                float = true;
            }
        }
        let number = &self.text[begin..self.at];
        if !float && !self.accept("l") {
            self.accept("L");
        }
        let end = self.at;
        if !self.take_while(|found| is_name(found) || found == '.').is_empty() {
            let found = self.text[begin..self.at].to_owned();
            let remedy = "put a blank behind the number, or quote a text with '";
            return self.fault(begin, FilterFault::NotANumber { found, remedy });
        }
        self.at = end;
        let refuse = |remedy| self.fault(begin, FilterFault::NotANumber { found: number.to_owned(), remedy });
        if float {
            let value: f64 = number.parse().expect("digits, a point and an exponent are a number");
            let vanished = value == 0.0 && mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
            if value.is_infinite() || vanished {
                return refuse("write one between 4.9E-324 and 1.7976931348623157E308");
            }
            return Ok(Token::Float(value));
        }
        if whole.len() > 1 && whole.starts_with('0') {
            return refuse("write it without leading zeros, or quote it with ' to compare it as a text");
        }
        match number.parse() {
            Ok(value) if value <= 1 << 63 => Ok(Token::Integer(value)),
            _ => refuse(INTEGER_RANGE),
        }
    }

    fn symbol(&mut self, first: char) -> Result<Token<'a>, FilterError> {
        const SYMBOLS: [(&str, Token<'static>); 11] = [
            ("<>", Token::Unequal),
            ("<=", Token::Order(Order::LessEqual)),
            (">=", Token::Order(Order::GreaterEqual)),
            ("<", Token::Order(Order::Less)),
            (">", Token::Order(Order::Greater)),
            ("=", Token::Equal),
            ("(", Token::Open),
            (")", Token::Close),
            (",", Token::Comma),
            ("+", Token::Plus),
            ("-", Token::Minus),
        ];
        let found = SYMBOLS.iter().find(|(symbol, _)| self.rest().starts_with(symbol));
        if let Some((symbol, token)) = found.filter(|_| !self.rest().starts_with("==")) {
            self.at += symbol.len();
            return Ok(*token);
        }
        let remedy = match first {
            '=' => "write one = to compare",
            '!' => "write <> for unequal and NOT for the opposite",
            '&' => "write AND",
            '|' => "write OR",
            '"' | '`' | '‘' | '’' | '“' | '”' => "texts stand in single quotes ('), properties in none",
            '*' => "there is no arithmetic, and TRUE asks for every message",
            '/' | '%' => "there is no arithmetic",
            _ => "properties are of ASCII letters, digits, _ and $, texts stand in single quotes (')",
        };
        self.fault(self.at, FilterFault::NotInLanguage { found: first, remedy })
    }
}

/// What a whole number may be.
pub(super) const INTEGER_RANGE: &str =
    "write one between -9223372036854775808 and 9223372036854775807, or with a point";

fn is_name(found: char) -> bool {
    found.is_ascii_alphanumeric() || found == '_' || found == '$'
}

/// A keyword, else a property.
fn word(text: &str) -> Token<'_> {
    const KEYWORDS: [(&str, Token<'static>); 12] = [
        ("AND", Token::And),
        ("OR", Token::Or),
        ("NOT", Token::Not),
        ("BETWEEN", Token::Between),
        ("IN", Token::In),
        ("IS", Token::Is),
        ("TRUE", Token::Constant(Some(true))),
        ("FALSE", Token::Constant(Some(false))),
        ("NULL", Token::Constant(None)),
        ("CONTAINS", Token::Search(Search::Contains)),
        ("STARTSWITH", Token::Search(Search::StartsWith)),
        ("ENDSWITH", Token::Search(Search::EndsWith)),
    ];
    let keyword = KEYWORDS.iter().find(|(keyword, _)| text.eq_ignore_ascii_case(keyword));
    keyword.map_or(Token::Name(text), |(_, token)| *token)
}
