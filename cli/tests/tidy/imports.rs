//! Which module of a crate imports which, and whether that goes round in a circle.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Crate, File, Token, find, heads, line_at};

/// One module of a crate naming another.
pub struct Import {
    /// The module that imports.
    pub from: String,
    /// The module it needs.
    pub to: String,
    /// File and line.
    pub place: String,
}

/// Every import between two modules of a crate outside its tests, by `crate::…` or by `super::…`; what the crate root re-exports
/// counts as its module.
pub fn imports(one: &Crate) -> Vec<Import> {
    let sources: Vec<&File> = one.files.iter().filter(|file| file.is_source()).collect();
    let modules: BTreeSet<&str> = sources.iter().filter_map(|file| file.module()).collect();
    let root = sources.iter().find(|file| file.path.ends_with("/src/lib.rs"));
    let exported = root.map(|root| re_exports(root, &modules)).unwrap_or_default();
    let mut found = Vec::new();
    for file in &sources {
        let Some(from) = file.module() else { continue };
        let tokens = file.without_tests();
        let mut starts: Vec<usize> = find(&tokens, "crate::").into_iter().map(|hit| hit.at + 3).collect();
        // In a file right below src/, `super` is the crate root; deeper down it stays within the module.
        let depth = file.path.split_once("/src/").map_or(0, |(_, inside)| inside.matches('/').count());
        if depth == 0 || (depth == 1 && file.path.ends_with("/mod.rs")) {
            starts.extend(find(&tokens, "super::").into_iter().map(|hit| hit.at + 3));
        }
        for start in starts {
            for head in heads(&tokens, start) {
                let to = modules.get(head.as_str()).copied().or_else(|| exported.get(&head).map(String::as_str));
                if let Some(to) = to.filter(|to| *to != from) {
                    let place = format!("{}:{}", file.path, line_at(&tokens, start));
                    found.push(Import { from: from.to_owned(), to: to.to_owned(), place });
                }
            }
        }
    }
    found
}

/// Name of each re-exported item to the module it comes from: `pub use config::{Limits, Node as N}` at the crate root.
fn re_exports(root: &File, modules: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for hit in find(&root.tokens, "use") {
        let statement: Vec<_> =
            root.tokens[hit.at + 1..].iter().take_while(|token| **token != Token::Mark(';')).collect();
        let mut words =
            statement.iter().filter_map(|token| token.word()).filter(|word| !matches!(*word, "crate" | "self"));
        let Some(module) = words.next().filter(|word| modules.contains(word)) else { continue };
        found.extend(words.filter(|word| !modules.contains(word)).map(|word| (word.to_owned(), module.to_owned())));
    }
    found
}

/// A circle in `graph`, if there is one: modules without anything below are taken away until none is left or none can be.
pub fn circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut graph = graph.clone();
    while let Some(leaf) =
        graph.iter().find(|(_, below)| below.iter().all(|to| !graph.contains_key(to))).map(|(n, _)| n.clone())
    {
        graph.remove(&leaf);
    }
    let mut way = vec![graph.keys().next()?.clone()];
    loop {
        let next =
            graph[way.last().expect("never empty")].iter().find(|to| graph.contains_key(*to)).expect("no leaves");
        if let Some(start) = way.iter().position(|module| module == next) {
            way.push(next.clone());
            return Some(way.split_off(start));
        }
        way.push(next.clone());
    }
}

#[test]
fn an_import_up_the_ranks_is_seen_in_every_spelling() {
    let file = |path: &str, text: &str| File::parse(path.into(), text);
    let one = Crate {
        folder: "x".into(),
        manifest: toml::Table::new(),
        files: vec![
            file("x/src/lib.rs", "mod a; mod b; mod c; pub use a::{Top, Other}; use b::Hidden;"),
            file("x/src/a.rs", "use crate::{b::{self, Hidden}, c::Low};"),
            file("x/src/b/mod.rs", "fn f() { crate::c::g(); let x: super::Top; }"),
            file("x/src/c.rs", "use super::Top; #[cfg(test)] mod tests { use crate::b; }"),
        ],
    };
    let arrows: BTreeSet<_> = imports(&one).into_iter().map(|one| format!("{}>{}", one.from, one.to)).collect();
    assert_eq!(arrows.into_iter().collect::<Vec<_>>(), ["a>b", "a>c", "b>a", "b>c", "c>a"]);
    let graph = |rows: &[(&str, &str)]| {
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in rows {
            graph.entry((*from).into()).or_default().insert((*to).into());
        }
        graph
    };
    assert_eq!(circle(&graph(&[("a", "b"), ("b", "c"), ("c", "b")])), Some(vec!["b".into(), "c".into(), "b".into()]));
    assert_eq!(circle(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
}
