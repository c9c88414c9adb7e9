//! Finds walks over hash maps: their order differs in each process, so a rule that walks one is not the same rule everywhere.
//! Looking up is fine.

use std::collections::BTreeSet;

use super::source::{Token, find, line_at};

/// Names declared as `HashMap` or `HashSet` in these tokens, where they are walked over.
pub fn hash_iterations(tokens: &[Token]) -> Vec<(String, usize)> {
    let walks = [
        "iter",
        "iter_mut",
        "into_iter",
        "keys",
        "into_keys",
        "values",
        "values_mut",
        "into_values",
        "drain",
        "retain",
    ];
    let mut names = BTreeSet::new();
    for map in ["HashMap", "HashSet"] {
        for hit in find(tokens, map) {
            // `name: HashMap<…>` or `name = HashMap::new()`, with any path in front of the type.
            let before = tokens[..hit.at].iter().rposition(|token| {
                !matches!(token, Token::Mark(':')) && !["std", "collections"].iter().any(|word| token.is_word(word))
            });
            let Some(before) = before else { continue };
            let name = if tokens[before] == Token::Mark('=') { before.checked_sub(1) } else { Some(before) };
            names.extend(name.and_then(|at| tokens[at].word()).map(str::to_owned));
        }
    }
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let Some(name) = token.word().filter(|word| names.contains(*word)) else { continue };
        let method = tokens.get(at + 2).and_then(Token::word).filter(|_| tokens.get(at + 1) == Some(&Token::Mark('.')));
        let back = tokens[..at]
            .iter()
            .rev()
            .find(|token| !matches!(token, Token::Mark('&' | '.')) && !token.is_word("self") && !token.is_word("mut"));
        let looped = back.is_some_and(|token| token.is_word("in")) && tokens.get(at + 1) == Some(&Token::Mark('{'));
        if looped || method.is_some_and(|method| walks.contains(&method)) {
            found.push((name.to_owned(), line_at(tokens, at)));
        }
    }
    found
}

#[test]
fn a_walk_over_a_hash_map_is_seen_and_a_look_up_is_not() {
    let walks = |text: &str| hash_iterations(&super::source::File::parse("x/src/y.rs".into(), text).tokens).len();
    assert_eq!(
        walks("struct S { m: HashMap<u8, u8> } fn f(s: &S) { s.m.get(&1); s.m.insert(1, 2); s.m.remove(&1); }"),
        0
    );
    assert_eq!(walks("struct S { m: std::collections::HashMap<u8, u8> } fn f(&self) { self.m.values().sum() }"), 1);
    assert_eq!(walks("let mut m = HashSet::new(); for x in &m { g(x) } for y in self.list { g(y) }"), 1);
}
