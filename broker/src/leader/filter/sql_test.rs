//! What SQL filters mean and refuse: tables, and random conditions against a second evaluator that knows nothing of the first.

use std::{borrow::Cow, fmt::Write as _, hint::black_box, time::Instant};

use proptest::prelude::*;

use super::{
    Filter, FilterKind, Properties,
    condition::{Truth, Unreadable},
    error::{FilterError, FilterFault},
    parser::{BYTES_MAX, DEPTH_MAX, ENTRIES_MAX, parse},
};

/// Properties of a message, by name.
struct Given<'a>(&'a [(&'a str, &'a str)]);

impl Properties for Given<'_> {
    fn tag(&self) -> Option<Cow<'_, str>> {
        self.property("TAGS")
    }

    fn property(&self, name: &str) -> Option<Cow<'_, str>> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| Cow::Borrowed(*value))
    }
}

const YES: Result<Truth, Unreadable> = Ok(Some(true));
const NO: Result<Truth, Unreadable> = Ok(Some(false));
const UNKNOWN: Result<Truth, Unreadable> = Ok(None);
const FAILS: Result<Truth, Unreadable> = Err(Unreadable);

#[track_caller]
fn evaluate(text: &str, message: &[(&str, &str)]) -> Result<Truth, Unreadable> {
    match parse(text) {
        Ok(condition) => condition.evaluate(&Given(message)),
        Err(error) => panic!("{text}: {error}"),
    }
}

/// `(expression, truth)` for one message.
#[track_caller]
fn check(message: &[(&str, &str)], table: &[(&str, Result<Truth, Unreadable>)]) {
    for (text, expected) in table {
        assert_eq!(evaluate(text, message), *expected, "{text} of {message:?}");
        let filter = Filter::parse(FilterKind::Sql, text).expect("legal");
        assert_eq!(filter.matches(&Given(message)), *expected == YES, "{text} delivers {message:?}");
    }
}

#[test]
fn and_or_and_not_have_three_values() {
    let words = [("TRUE", Some(true)), ("FALSE", Some(false)), ("NULL", None)];
    for (left, l) in words {
        let not = match l {
            Some(true) => Some(false),
            Some(false) => Some(true),
            None => None,
        };
        check(&[], &[(&format!("NOT {left}"), Ok(not)), (left, Ok(l))]);
        for (right, r) in words {
            let and = if l == Some(false) || r == Some(false) {
                Some(false)
            } else if l.is_none() || r.is_none() {
                None
            } else {
                Some(true)
            };
            let or = if l == Some(true) || r == Some(true) {
                Some(true)
            } else if l.is_none() || r.is_none() {
                None
            } else {
                Some(false)
            };
            check(&[], &[(&format!("{left} AND {right}"), Ok(and)), (&format!("{left} OR {right}"), Ok(or))]);
        }
    }
}

#[test]
fn not_binds_before_and_and_and_before_or_and_comparisons_before_all() {
    check(
        &[("a", "1"), ("b", "2")],
        &[
            ("TRUE OR TRUE AND FALSE", YES),
            ("(TRUE OR TRUE) AND FALSE", NO),
            ("FALSE AND TRUE OR TRUE", YES),
            ("FALSE AND (TRUE OR TRUE)", NO),
            ("NOT FALSE AND FALSE", NO),
            ("NOT (FALSE AND FALSE)", YES),
            ("NOT FALSE OR TRUE", YES),
            ("NOT TRUE OR TRUE", YES),
            ("NOT NOT TRUE", YES),
            ("NOT not NOT TRUE", NO),
            ("NOT a = 1", NO),
            ("NOT a = 2 AND b = 2", YES),
            ("NOT a IS NULL", YES),
            ("NOT a BETWEEN 5 AND 6 AND TRUE", YES),
            ("a BETWEEN 0 AND 2 AND b BETWEEN 2 AND 3", YES),
            ("(a = 1) = (b = 2)", YES),
            ("(a = 1) <> (b = 2)", NO),
            ("(a = 1) = FALSE", NO),
            ("((a)) = ((1))", YES),
        ],
    );
}

#[test]
fn a_property_is_read_as_the_literal_beside_it_is_written() {
    check(
        &[("n", "42"), ("f", "3.14"), ("t", "True"), ("s", "it's"), ("big", "1700000000000"), ("e", "")],
        &[
            ("n = 42", YES),
            ("n = 42L", YES),
            ("42 = n", YES),
            ("n <> 42", NO),
            ("n = '42'", YES),
            ("n = '42.0'", NO),
            ("n = 42.0", YES),
            ("n = 4.2E1", YES),
            ("n > 41 AND n >= 42 AND n < 43 AND n <= 42", YES),
            ("n > 42 OR n < 42", NO),
            ("43 > n", YES),
            ("n > -1", YES),
            ("n > - 1", YES),
            ("n > +1", YES),
            ("f > 3.0", YES),
            ("f = 3.14 AND f < 4. AND f > .5", YES),
            ("f > 3", FAILS),
            ("f = 3", FAILS),
            ("f <> 3", FAILS),
            ("t = TRUE", YES),
            ("TRUE = t", YES),
            ("t = FALSE", NO),
            ("n = TRUE", NO),
            ("n = FALSE", YES),
            ("s = 'it''s'", YES),
            ("s > 1", FAILS),
            ("s = 1", FAILS),
            ("s <> 1", FAILS),
            ("e = ''", YES),
            ("e = 0", FAILS),
            ("big > 5", YES),
            ("big = 1700000000000", YES),
            ("'5' = 5", YES),
            ("1 < 2.5", YES),
            ("5 = 5.0", YES),
            ("N = 42", UNKNOWN),
        ],
    );
}

#[test]
fn a_missing_property_is_unknown_except_where_rocketmq_says_otherwise() {
    check(
        &[("a", "1")],
        &[
            ("x = 1", UNKNOWN),
            ("x <> 1", UNKNOWN),
            ("1 = x", NO),
            ("1 <> x", YES),
            ("x = a", UNKNOWN),
            ("a = x", NO),
            ("a <> x", YES),
            ("x = y", YES),
            ("x <> y", NO),
            ("x = TRUE", UNKNOWN),
            ("x > 1", UNKNOWN),
            ("1 > x", UNKNOWN),
            ("x > a", UNKNOWN),
            ("x BETWEEN 1 AND 2", UNKNOWN),
            ("x NOT BETWEEN 1 AND 2", UNKNOWN),
            ("a BETWEEN x AND 0", NO),
            ("a BETWEEN x AND 2", UNKNOWN),
            ("a NOT BETWEEN x AND 0", YES),
            ("x IN ('1')", UNKNOWN),
            ("x NOT IN ('1')", UNKNOWN),
            ("x CONTAINS 'a'", NO),
            ("x NOT CONTAINS 'a'", NO),
            ("NOT (x CONTAINS 'a')", YES),
            ("x IS NULL", YES),
            ("x IS NOT NULL", NO),
            ("a IS NULL", NO),
            ("a IS NOT NULL", YES),
            ("NULL IS NULL", YES),
            ("5 IS NOT NULL", YES),
            ("(x > 1) IS NULL", YES),
            ("x > 1 OR a = 1", YES),
            ("x > 1 AND a = 2", NO),
        ],
    );
}

#[test]
fn a_property_that_is_no_number_ends_the_evaluation_unless_it_was_decided_before() {
    check(
        &[("a", "abc"), ("b", "1")],
        &[
            ("a > 5 OR b = 1", FAILS),
            ("b = 1 OR a > 5", YES),
            ("a > 5 AND b = 2", FAILS),
            ("b = 2 AND a > 5", NO),
            ("NOT (a > 5)", FAILS),
            ("(a > 5) IS NULL", FAILS),
            ("a BETWEEN 1 AND 2", FAILS),
            ("a BETWEEN b AND b", FAILS),
            ("a > x", UNKNOWN),
        ],
    );
}

#[test]
fn numbers_are_compared_exactly() {
    check(
        &[
            ("odd", "9007199254740993"),
            ("even", "9007199254740992"),
            ("max", "9223372036854775807"),
            ("min", "-9223372036854775808"),
            ("over", "9223372036854775808"),
            ("nan", "NaN"),
            ("inf", "Infinity"),
            ("ninf", "-Infinity"),
            ("zero", "-0.0"),
            ("half", " .5 "),
            ("plus", "+7"),
            ("hex", "0x10"),
        ],
        &[
            ("odd > even", YES),
            ("odd = 9007199254740992", NO),
            ("odd > 9007199254740992", YES),
            ("9007199254740993 > 9007199254740992.0", YES),
            ("max = 9223372036854775807", YES),
            ("min = -9223372036854775808", YES),
            ("max < 9223372036854775808.0", YES),
            ("odd > 9007199254740992.0", YES),
            ("9223372036854775807 < 9223372036854775808.0", YES),
            ("-9223372036854775808 = -9223372036854775808.0", YES),
            ("-1 > -1.5 AND 1 < 1.5 AND -2 < -1.5", YES),
            ("over > 1", FAILS),
            ("over > max", YES),
            ("over > 1.0", YES),
            ("nan > 1.0", FAILS),
            ("nan = 1.0", FAILS),
            ("nan = 'NaN'", YES),
            ("inf > 1E308", YES),
            ("ninf < -1E308", YES),
            ("inf > max AND ninf < min", YES),
            ("zero = 0.0", YES),
            ("half = 0.5", YES),
            ("half > 0", FAILS),
            ("plus = 7", YES),
            ("hex = 16", FAILS),
            ("hex = 16.0", FAILS),
        ],
    );
}

#[test]
fn between_in_and_searches_hold_as_written() {
    check(
        &[("a", "5"), ("low", "1"), ("high", "9"), ("s", "axb"), ("u", "日本語 🦀")],
        &[
            ("a BETWEEN 5 AND 5", YES),
            ("a BETWEEN 6 AND 9", NO),
            ("a BETWEEN 1 AND 4", NO),
            ("a NOT BETWEEN 5 AND 5", NO),
            ("a NOT BETWEEN 6 AND 9", YES),
            ("a NOT BETWEEN 10 AND 0", YES),
            ("a BETWEEN low AND high", YES),
            ("a BETWEEN high AND low", NO),
            ("5 BETWEEN low AND high", YES),
            ("a BETWEEN -1.5 AND 7.5", YES),
            ("a IN ('4', '5', '5')", YES),
            ("a IN ('5.0')", NO),
            ("(a) NOT IN ('4')", YES),
            ("a NOT IN ('5')", NO),
            ("s CONTAINS 'x'", YES),
            ("s CONTAINS 'X'", NO),
            ("s NOT CONTAINS 'x'", NO),
            ("s NOT CONTAINS 'y'", YES),
            ("s STARTSWITH 'ax' AND s ENDSWITH 'xb'", YES),
            ("s NOT STARTSWITH 'ax' OR s NOT ENDSWITH 'xb'", NO),
            ("s NOT STARTSWITH 'b' AND s NOT ENDSWITH 'a'", YES),
            ("s CONTAINS ''", NO),
            ("s NOT CONTAINS ''", NO),
            ("s STARTSWITH '' OR s ENDSWITH ''", NO),
            ("'axb' CONTAINS 'x' AND 'axb' NOT CONTAINS 'u'", YES),
            ("u ENDSWITH '🦀' AND u CONTAINS '本' AND u IN ('日本語 🦀')", YES),
        ],
    );
}

#[test]
fn words_are_read_in_any_case_with_any_blanks_and_comments_between() {
    check(
        &[("a", "3"), ("_x$1", "y"), ("$", "z"), ("like", "w"), ("now", "1")],
        &[
            ("a=3 and a<>4 And a>2 AND a<=4", YES),
            ("a=3 OR a=4", YES),
            ("\t a\r\n=\u{c}3 ", YES),
            ("a -- the first\n = /* the * / second */ 3 -- end", YES),
            ("a=3--", YES),
            ("/**/TRUE/***/", YES),
            ("_x$1 = 'y' AND $ = 'z' AND like = 'w' AND now <= 2", YES),
            ("a is Not nUlL", YES),
            ("a not in('4')and(a)between 1 and 5", YES),
            ("'--' = '--' AND '/*' = '/*'", YES),
            ("a in (\n'3'\n,\n'4')", YES),
            ("0.0 = 0 AND 00.5 = 0.5 AND 5. = 5 AND .5E1 = 5 AND 5e+0 = 5 AND 5e-1 = .5", YES),
            ("a = 3l AND a = 3L", YES),
        ],
    );
}

#[track_caller]
fn refused(text: &str) -> FilterError {
    parse(text).expect_err(text)
}

#[test]
fn every_refusal_names_its_place_and_remedy() {
    for (text, at, words) in [
        ("", 0, "the expression is empty"),
        (" -- nothing\n ", 0, "the expression is empty"),
        ("*", 0, "TRUE asks for every message"),
        ("a", 0, "write a = TRUE or a IS NOT NULL"),
        ("a = 1 AND b", 10, "property b alone"),
        ("NOT a", 4, "property a alone"),
        ("b OR a = 1", 0, "property b alone"),
        ("(a) AND TRUE", 0, "property a alone"),
        ("'x'", 0, "a text or number alone"),
        ("TRUE OR 5", 8, "a text or number alone"),
        ("a =", 3, "the expression ends, expected a property"),
        ("a = = 1", 4, "found =, expected a property"),
        ("a == 1", 2, "write one = to compare"),
        ("a != 1", 2, "write <>"),
        ("a = 1 && b = 2", 6, "write AND"),
        ("a = 1 || b = 2", 6, "write OR"),
        ("a = \"x\"", 4, "texts stand in single quotes"),
        ("a = ‘x’", 4, "texts stand in single quotes"),
        ("`a` = 1", 0, "texts stand in single quotes"),
        ("a / 2 = 1", 2, "there is no arithmetic"),
        ("a + 2 = 1", 2, "found +, expected a comparison"),
        ("a = 1 + 2", 6, "found +, expected AND, OR or the end"),
        ("订单 = 1", 0, "properties are of ASCII letters"),
        ("a = '订单' AND é = 1", 17, "properties are of ASCII letters"),
        ("a = 'x", 4, "the text does not end"),
        ("a = 'x''", 4, "the text does not end"),
        ("a = 1 /* x", 6, "the comment does not end"),
        ("a = 007", 4, "without leading zeros"),
        ("a = 5abc", 4, "put a blank behind"),
        ("a = 1.2.3", 4, "put a blank behind"),
        ("a = 1e", 4, "put a blank behind"),
        ("a = 9223372036854775808", 4, "between -9223372036854775808"),
        ("a = -9223372036854775809", 5, "between -9223372036854775808"),
        ("a = 100000000000000000000000", 4, "between -9223372036854775808"),
        ("a = 1E999", 4, "1.7976931348623157E308"),
        ("a = 1E-999", 4, "4.9E-324"),
        ("a > 'x'", 4, "texts have no order"),
        ("'x' > a", 0, "texts have no order"),
        ("a > TRUE", 4, "have no order"),
        ("a > NULL", 4, "have no order"),
        ("(a = 1) > 2", 0, "have no order"),
        ("a BETWEEN 'a' AND 'b'", 10, "texts have no order"),
        ("a BETWEEN 1 AND NULL", 16, "have no order"),
        ("a BETWEEN 10 AND 0", 10, "swap them"),
        ("a BETWEEN 1.5 AND 1", 10, "swap them"),
        ("a BETWEEN 1 OR 2", 12, "found OR, expected AND and the upper bound"),
        ("a and between 2 and 10", 0, "property a alone"),
        ("TRUE and between 2 and 10", 9, "found between, expected a property"),
        ("a = NULL", 4, "write IS NULL"),
        ("NULL <> a", 0, "write IS NULL"),
        ("5 = TRUE", 4, "never equal"),
        ("TRUE = 'true'", 7, "never equal"),
        ("a IS 5", 5, "found 5, expected NULL or NOT NULL"),
        ("a IS NOT", 8, "the expression ends, expected NULL"),
        ("a = 1 = 2", 6, "cannot be compared again"),
        ("a > 1 > 2", 6, "cannot be compared again"),
        ("a IS NULL IS NULL", 10, "cannot be compared again"),
        ("a = 1 NOT IN ('x')", 6, "cannot be compared again"),
        ("a = NOT b", 4, "NOT stands before a whole condition"),
        ("a NOT = 1", 6, "expected IN, BETWEEN, CONTAINS"),
        ("a LIKE 'x%'", 2, "there is no LIKE"),
        ("(a like 'x%')", 3, "there is no LIKE"),
        ("a CONTAINS x", 11, "found x, expected a text in single quotes"),
        ("a CONTAINS 123", 11, "found 123, expected a text in single quotes"),
        ("5 CONTAINS 'x'", 0, "can be searched"),
        ("(a = 1) CONTAINS 'x'", 0, "can be searched"),
        ("'a' IN ('a')", 0, "only a property can be IN"),
        ("(a = 1) IN ('a')", 0, "only a property can be IN"),
        ("a IN 'x'", 5, "found 'x', expected ("),
        ("a IN ()", 6, "found ), expected a text in single quotes"),
        ("a IN (1)", 6, "found 1, expected a text in single quotes"),
        ("a IN ('1',)", 10, "found ), expected a text"),
        ("a IN ('1' '2')", 10, "expected , and another text, or )"),
        ("- a > 1", 2, "a sign stands before nothing else"),
        ("a = -'1'", 5, "a sign stands before nothing else"),
        ("(a = 1", 6, "the expression ends, expected AND, OR or )"),
        ("(a", 2, "the expression ends, expected a comparison, AND, OR or )"),
        ("a = 1)", 5, "found ), expected AND, OR or the end"),
        ("a = 1 b = 2", 6, "found b, expected AND, OR or the end"),
        ("()", 1, "found ), expected a property"),
        ("a = 1;", 5, "';' is not part of the language"),
        ("a = 1 AND", 9, "the expression ends"),
        ("AND", 0, "found AND"),
        ("a = \0", 4, "is not part of the language"),
    ] {
        let error = refused(text);
        let shown = error.to_string();
        assert_eq!(error.at, at, "{text}: {shown}");
        assert_eq!(error.column, text[..at].chars().count() + 1, "{text}: {shown}");
        assert!(shown.contains(words), "{text}: {shown}");
        assert!(shown.starts_with(&format!("filter expression, character {}: ", error.column)), "{shown}");
    }
}

#[test]
fn length_nesting_and_lists_are_bounded() {
    let longest = format!("a = '{}'", "x".repeat(BYTES_MAX - 6));
    assert!(parse(&longest).is_ok());
    let error = refused(&format!("{longest} "));
    assert_eq!((error.at, error.fault), (0, FilterFault::TooLong { bytes: BYTES_MAX + 1, max: BYTES_MAX }));

    let nested = |depth: usize| format!("{}TRUE{}", "(NOT ".repeat(depth), ")".repeat(depth));
    assert_eq!(evaluate(&nested(DEPTH_MAX), &[]), YES);
    let error = refused(&nested(DEPTH_MAX + 1));
    assert_eq!((error.at, error.fault), (DEPTH_MAX * 5, FilterFault::TooDeep { max: DEPTH_MAX }));
    let error = refused(&"(".repeat(BYTES_MAX));
    assert_eq!((error.at, error.fault), (DEPTH_MAX, FilterFault::TooDeep { max: DEPTH_MAX }));
    assert!(matches!(refused(&"(".repeat(100_000)).fault, FilterFault::TooLong { .. }));
    assert_eq!(evaluate(&vec!["(TRUE)"; 300].join(" AND "), &[]), YES);
    assert_eq!(evaluate(&format!("{}TRUE", "NOT ".repeat(1000)), &[]), YES);
    assert_eq!(evaluate(&format!("{}TRUE", "NOT ".repeat(1001)), &[]), NO);
    assert_eq!(evaluate(&format!("a = {}1", "- ".repeat(2000)), &[("a", "1")]), YES);

    let list = |entries: usize| format!("a IN ({})", vec!["'x'"; entries].join(","));
    assert_eq!(evaluate(&list(ENTRIES_MAX), &[("a", "x")]), YES);
    let error = refused(&list(ENTRIES_MAX + 1));
    assert_eq!((error.at, error.fault), (6 + 4 * ENTRIES_MAX, FilterFault::TooManyEntries { max: ENTRIES_MAX }));
}

/// The texts that properties and literals are drawn from, with what each is as a whole number and, in halves, as a float.
const POOL: [(&str, Option<i64>, Option<i128>); 22] = [
    ("", None, None),
    ("0", Some(0), Some(0)),
    ("1", Some(1), Some(2)),
    ("01", Some(1), Some(2)),
    ("+1", Some(1), Some(2)),
    ("-2", Some(-2), Some(-4)),
    ("1.0", None, Some(2)),
    ("1.5", None, Some(3)),
    (" 1.5 ", None, Some(3)),
    (".5", None, Some(1)),
    ("1e3", None, Some(2000)),
    ("9007199254740993", Some((1 << 53) + 1), Some(1 << 54)),
    ("9223372036854775808", None, Some(1 << 64)),
    ("true", None, None),
    ("True", None, None),
    ("false", None, None),
    ("NaN", None, None),
    ("Infinity", None, Some(i128::MAX)),
    ("-Infinity", None, Some(i128::MIN)),
    ("inf", None, None),
    ("it's", None, None),
    ("été", None, None),
];

/// A condition of the second evaluator.
#[derive(Debug, Clone)]
enum Ast {
    Constant(Option<bool>),
    And(Box<Ast>, Box<Ast>),
    Or(Box<Ast>, Box<Ast>),
    Not(Box<Ast>),
    Compare(Side, &'static str, Side),
    Between(Side, Side, Side, bool),
    IsNull(Side, bool),
    In(&'static str, Vec<usize>, bool),
    Find(Side, &'static str, usize, bool),
}

/// An operand; texts by their place in the pool.
#[derive(Debug, Clone)]
enum Side {
    Property(&'static str),
    Text(usize),
    Whole(i64),
    Float(f64),
    Condition(Box<Ast>),
}

/// What a side is of a message: a text of the pool, a number in halves with its kind, or a flag.
#[derive(Clone, Copy, PartialEq)]
enum Is {
    Text(usize),
    Whole(i128),
    Float(i128),
    Flag(bool),
}

/// Which text of the pool each of `a`, `b`, `c` has.
type Has = [Option<usize>; 3];

impl Side {
    fn of(&self, has: &Has) -> Result<Option<Is>, ()> {
        Ok(match self {
            Side::Property(name) => has[usize::from(name.as_bytes()[0] - b'a')].map(Is::Text),
            Side::Text(text) => Some(Is::Text(*text)),
            Side::Whole(whole) => Some(Is::Whole(i128::from(*whole) * 2)),
            Side::Float(float) => Some(Is::Float((float * 2.0) as i128)),
            Side::Condition(ast) => ast.of(has)?.map(Is::Flag),
        })
    }

    fn print(&self, out: &mut String) {
        match self {
            Side::Property(name) => out.push_str(name),
            Side::Text(text) => write!(out, "'{}'", POOL[*text].0.replace('\'', "''")).expect("a string"),
            Side::Whole(whole) => write!(out, "{whole}").expect("a string"),
            Side::Float(float) => write!(out, "{float:?}").expect("a string"),
            Side::Condition(ast) if matches!(**ast, Ast::Constant(_)) => ast.print(3, out),
            Side::Condition(ast) => {
                out.push('(');
                ast.print(0, out);
                out.push(')');
            }
        }
    }
}

/// Both sides in halves, the text read as its partner is; two texts each as they are.
fn halves(left: Is, right: Is) -> Result<(i128, i128), ()> {
    let whole = |text: usize| POOL[text].1.map(|whole| i128::from(whole) * 2);
    let free = |text: usize| whole(text).or(POOL[text].2).ok_or(());
    let number = |is: Is| match is {
        Is::Whole(halves) | Is::Float(halves) => Ok(halves),
        Is::Text(_) | Is::Flag(_) => Err(()),
    };
    let read = |text: usize, partner: Is| match partner {
        Is::Whole(_) => whole(text).ok_or(()),
        Is::Float(_) | Is::Text(_) | Is::Flag(_) => free(text),
    };
    Ok(match (left, right) {
        (Is::Text(l), Is::Text(r)) => {
            let (left, right) = (free(l)?, free(r)?);
            (left, right)
        }
        (Is::Text(l), _) => (read(l, right)?, number(right)?),
        (_, Is::Text(r)) => (number(left)?, read(r, left)?),
        (_, _) => (number(left)?, number(right)?),
    })
}

fn reference_equal(left: Option<Is>, right: Option<Is>) -> Result<Option<bool>, ()> {
    let (left, right) = match (left, right) {
        (None, None) => return Ok(Some(true)),
        (None, Some(_)) => return Ok(None),
        (Some(_), None) => return Ok(Some(false)),
        (Some(left), Some(right)) => (left, right),
    };
    Ok(Some(match (left, right) {
        (Is::Flag(flag), Is::Text(text)) | (Is::Text(text), Is::Flag(flag)) => {
            flag == (POOL[text].0 == "true" || POOL[text].0 == "True")
        }
        (Is::Flag(_), _) | (_, Is::Flag(_)) | (Is::Text(_), Is::Text(_)) => left == right,
        (_, _) => {
            let (left, right) = halves(left, right)?;
            left == right
        }
    }))
}

fn reference_order(left: Option<Is>, order: &str, right: Option<Is>) -> Result<Option<bool>, ()> {
    let (Some(left), Some(right)) = (left, right) else { return Ok(None) };
    let (left, right) = halves(left, right)?;
    Ok(Some(match order {
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        _ => left >= right,
    }))
}

fn reference_and(
    left: Result<Option<bool>, ()>,
    right: impl FnOnce() -> Result<Option<bool>, ()>,
) -> Result<Option<bool>, ()> {
    let left = left?;
    if left == Some(false) {
        return Ok(left);
    }
    Ok(match (left, right()?) {
        (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    })
}

fn reference_not(truth: Result<Option<bool>, ()>) -> Result<Option<bool>, ()> {
    truth.map(|truth| truth.map(|truth| !truth))
}

impl Ast {
    fn of(&self, has: &Has) -> Result<Option<bool>, ()> {
        match self {
            Ast::Constant(truth) => Ok(*truth),
            Ast::And(left, right) => reference_and(left.of(has), || right.of(has)),
            // By De Morgan, so that it is not the same table again.
            Ast::Or(left, right) => {
                reference_not(reference_and(reference_not(left.of(has)), || reference_not(right.of(has))))
            }
            Ast::Not(ast) => reference_not(ast.of(has)),
            Ast::Compare(left, "=", right) => reference_equal(left.of(has)?, right.of(has)?),
            Ast::Compare(left, "<>", right) => reference_not(reference_equal(left.of(has)?, right.of(has)?)),
            Ast::Compare(left, order, right) => reference_order(left.of(has)?, order, right.of(has)?),
            Ast::Between(value, low, high, negated) => {
                let (value, low, high) = (value.of(has)?, low.of(has)?, high.of(has)?);
                let inside = reference_and(reference_order(value, ">=", low), || reference_order(value, "<=", high));
                if *negated { reference_not(inside) } else { inside }
            }
            Ast::IsNull(side, negated) => Ok(Some(side.of(has)?.is_none() != *negated)),
            Ast::In(name, entries, negated) => Ok(match Side::Property(name).of(has)? {
                Some(Is::Text(text)) => Some(entries.contains(&text) != *negated),
                _ => None,
            }),
            Ast::Find(side, search, text, negated) => Ok(Some(match side.of(has)? {
                Some(Is::Text(value)) if *text != 0 => {
                    let (value, text) = (POOL[value].0, POOL[*text].0);
                    let found = match *search {
                        "CONTAINS" => value.split(text).count() > 1,
                        "STARTSWITH" => value.get(..text.len()) == Some(text),
                        _ => {
                            value.len() >= text.len()
                                && value.as_bytes()[value.len() - text.len()..] == *text.as_bytes()
                        }
                    };
                    found != *negated
                }
                _ => false,
            })),
        }
    }

    /// With as few parentheses as precedence allows: 0 for `OR`, 1 for `AND`, 2 for `NOT`, 3 for a comparison.
    fn print(&self, level: u8, out: &mut String) {
        let own = match self {
            Ast::Or(..) => 0,
            Ast::And(..) => 1,
            Ast::Not(_) => 2,
            Ast::Constant(_) | Ast::Compare(..) | Ast::Between(..) | Ast::IsNull(..) | Ast::In(..) | Ast::Find(..) => 3,
        };
        let open = own < level;
        out.push_str(if open { "(" } else { "" });
        let not = |negated: &bool| if *negated { " NOT" } else { "" };
        match self {
            Ast::Constant(truth) => out.push_str(truth.map_or("NULL", |truth| if truth { "TRUE" } else { "FALSE" })),
            Ast::And(left, right) | Ast::Or(left, right) => {
                left.print(own, out);
                out.push_str(if own == 1 { " AND " } else { " OR " });
                right.print(own, out);
            }
            Ast::Not(ast) => {
                out.push_str("NOT ");
                ast.print(own, out);
            }
            Ast::Compare(left, symbol, right) => {
                left.print(out);
                write!(out, " {symbol} ").expect("a string");
                right.print(out);
            }
            Ast::Between(value, low, high, negated) => {
                value.print(out);
                write!(out, "{} BETWEEN ", not(negated)).expect("a string");
                low.print(out);
                out.push_str(" AND ");
                high.print(out);
            }
            Ast::IsNull(side, negated) => {
                side.print(out);
                write!(out, " IS{} NULL", not(negated)).expect("a string");
            }
            Ast::In(name, entries, negated) => {
                write!(out, "{name}{} IN (", not(negated)).expect("a string");
                for (at, entry) in entries.iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { ", " });
                    Side::Text(*entry).print(out);
                }
                out.push(')');
            }
            Ast::Find(side, search, text, negated) => {
                side.print(out);
                write!(out, "{} {search} ", not(negated)).expect("a string");
                Side::Text(*text).print(out);
            }
        }
        out.push_str(if open { ")" } else { "" });
    }
}

fn property() -> impl Strategy<Value = &'static str> + Clone {
    prop::sample::select(vec!["a", "b", "c"])
}

fn number() -> impl Strategy<Value = Side> + Clone {
    let wholes = vec![0, 1, -1, -2, 500, (1 << 53) + 1, i64::MAX, i64::MIN];
    let floats = vec![0.0, 0.5, 1.0, 1.5, -1.5, 9_007_199_254_740_992.0, 1e30, -1e30];
    prop_oneof![prop::sample::select(wholes).prop_map(Side::Whole), prop::sample::select(floats).prop_map(Side::Float),]
}

fn ordered() -> impl Strategy<Value = Side> + Clone {
    prop_oneof![3 => property().prop_map(Side::Property), 2 => number()]
}

fn searched() -> impl Strategy<Value = Side> + Clone {
    prop_oneof![3 => property().prop_map(Side::Property), 1 => (0..POOL.len()).prop_map(Side::Text)]
}

/// Lower bound first where the parser looks.
fn between(value: Side, low: Side, high: Side, negated: bool) -> Ast {
    let size = |side: &Side| side.of(&[None; 3]).expect("a number").map(|is| halves(is, is).expect("a number").0);
    let swap = matches!((size(&low), size(&high)), (Some(low), Some(high)) if low > high);
    if swap { Ast::Between(value, high, low, negated) } else { Ast::Between(value, low, high, negated) }
}

fn ast() -> impl Strategy<Value = Ast> {
    let flag = any::<bool>().prop_map(|flag| Side::Condition(Box::new(Ast::Constant(Some(flag)))));
    let plain = prop_oneof![2 => searched(), 1 => number()];
    let equality = prop::sample::select(vec!["=", "<>"]);
    let order = prop::sample::select(vec!["<", "<=", ">", ">="]);
    let search = prop::sample::select(vec!["CONTAINS", "STARTSWITH", "ENDSWITH"]);
    let entries = prop::collection::vec(0..POOL.len(), 1..6);
    let leaf = prop_oneof![
        1 => any::<Option<bool>>().prop_map(Ast::Constant),
        4 => (plain.clone(), equality.clone(), plain.clone()).prop_map(|(l, symbol, r)| Ast::Compare(l, symbol, r)),
        1 => (property(), equality.clone(), flag.clone()).prop_map(|(l, symbol, r)| Ast::Compare(Side::Property(l), symbol, r)),
        1 => (flag, equality.clone(), property()).prop_map(|(l, symbol, r)| Ast::Compare(l, symbol, Side::Property(r))),
        4 => (ordered(), order, ordered()).prop_map(|(l, symbol, r)| Ast::Compare(l, symbol, r)),
        2 => (ordered(), ordered(), ordered(), any::<bool>()).prop_map(|(v, l, h, not)| between(v, l, h, not)),
        1 => (plain.clone(), any::<bool>()).prop_map(|(side, not)| Ast::IsNull(side, not)),
        1 => (property(), entries, any::<bool>()).prop_map(|(name, entries, not)| Ast::In(name, entries, not)),
        2 => (searched(), search, 0..POOL.len(), any::<bool>()).prop_map(|(s, how, text, not)| Ast::Find(s, how, text, not)),
    ];
    leaf.prop_recursive(6, 48, 2, move |inner| {
        let boxed = inner.clone().prop_map(Box::new);
        let nested = inner.prop_filter("a constant is a word of its own", |ast| !matches!(ast, Ast::Constant(_)));
        let condition = nested.prop_map(|ast| Side::Condition(Box::new(ast)));
        prop_oneof![
            3 => (boxed.clone(), boxed.clone()).prop_map(|(l, r)| Ast::And(l, r)),
            3 => (boxed.clone(), boxed.clone()).prop_map(|(l, r)| Ast::Or(l, r)),
            2 => boxed.prop_map(Ast::Not),
            1 => (condition.clone(), equality.clone(), plain.clone()).prop_map(|(l, symbol, r)| Ast::Compare(l, symbol, r)),
            1 => (plain.clone(), equality.clone(), condition.clone()).prop_map(|(l, symbol, r)| Ast::Compare(l, symbol, r)),
            1 => (condition, any::<bool>()).prop_map(|(side, not)| Ast::IsNull(side, not)),
        ]
    })
}

/// Words of the language and what looks like them, for texts that are nearly expressions.
const SOUP: [&str; 34] = [
    "a", "b", "AND", "or", "NOT", "IN", "IS", "NULL", "TRUE", "BETWEEN", "CONTAINS", "ENDSWITH", "(", ")", ",", "'",
    "''", "'x'", "=", "<>", "<", ">=", "1", "-", "2.5", "1e9", ".", "--", "/*", "*/", "\n", "é", "||", "LIKE",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_printed_condition_means_what_the_second_evaluator_says(
        ast in ast(),
        has in prop::collection::vec(prop::option::weighted(0.8, 0..POOL.len()), 24),
        lower in any::<bool>(),
    ) {
        let mut text = String::new();
        ast.print(0, &mut text);
        if lower {
            for word in ["AND", "OR", "NOT", "IN", "IS", "NULL", "BETWEEN", "CONTAINS", "STARTSWITH", "ENDSWITH"] {
                text = text.replace(&format!(" {word} "), &format!("\t{}\n", word.to_lowercase()));
            }
        }
        prop_assume!(text.len() <= BYTES_MAX);
        let condition = parse(&text).map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
        for has in has.chunks_exact(3) {
            let has = [has[0], has[1], has[2]];
            let message: Vec<_> = ["a", "b", "c"].into_iter().zip(has).filter_map(|(name, text)| Some((name, POOL[text?].0))).collect();
            let expected = ast.of(&has).map_err(|()| Unreadable);
            prop_assert_eq!(condition.evaluate(&Given(&message)), expected, "{} of {:?}", text, message);
        }
    }

    #[test]
    fn nearly_expressions_are_read_or_refused_at_a_place_in_the_text(words in prop::collection::vec(prop::sample::select(SOUP.to_vec()), 0..24), blank in "[ \t]?") {
        read_or_refuse(&words.join(&blank));
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused_at_a_place_in_the_text(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_or_refuse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn arbitrary_text_is_read_or_refused_at_a_place_in_the_text(text in any::<String>()) {
        read_or_refuse(&text);
    }
}

fn read_or_refuse(text: &str) {
    let message = [("a", "1"), ("b", "x")];
    for kind in [FilterKind::Tag, FilterKind::Sql] {
        match Filter::parse(kind, text) {
            Ok(filter) => _ = filter.matches(&Given(&message)),
            Err(error) => {
                assert_eq!(text[..error.at].chars().count() + 1, error.column, "{text:?}");
                assert!(!error.to_string().is_empty());
            }
        }
    }
}

/// Prints how fast messages are held against a usual expression: `cargo test --release -- --ignored --nocapture rate`.
#[test]
#[ignore = "prints a rate, checks nothing that other tests do not"]
fn rate_of_a_usual_expression() {
    const ROUNDS: u32 = 2_000_000;
    let text = "TAGS IN ('created', 'paid', 'sent') AND price > 100 AND region = 'Hangzhou' AND vip IS NOT NULL";
    let filter = Filter::parse(FilterKind::Sql, text).expect("legal");
    let message = Given(&[("TAGS", "paid"), ("price", "250"), ("region", "Hangzhou"), ("vip", "true")]);
    let begin = Instant::now();
    let delivered = (0..ROUNDS).filter(|_| black_box(&filter).matches(black_box(&message))).count();
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(delivered, ROUNDS as usize);
    println!("{:.1} million messages a second", f64::from(ROUNDS) / seconds / 1e6);
}
