//! What the pages for readers point at: programs, files and tests. A page that names a test that is gone is worse than none.

use std::{collections::BTreeSet, fs, path::Path};

use super::{
    report,
    source::{find, workspace},
};

/// Pages that say which test stands behind what.
const PAGES: [&str; 7] = [
    "README.md",
    "docs/ARCHITECTURE.md",
    "docs/OPERATIONS.md",
    "docs/PROMISES.md",
    "docs/adr/0001-openraft-pinned.md",
    "docs/adr/0003-one-client-listener.md",
    "CHANGELOG.md",
];

/// Programs that pages show as they are run.
const EXAMPLES: [(&str, &str); 4] = [
    ("README.md", "jepsen-like-tests/interop/python/example.py"),
    ("README.md", "jepsen-like-tests/interop/rust/src/example.rs"),
    ("docs/features/fifo.md", "jepsen-like-tests/interop/python/example_fifo.py"),
    ("docs/features/filters.md", "jepsen-like-tests/interop/python/example_filter.py"),
];

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Readers copy from these pages, so they show programs that are run.
#[test]
fn pages_show_their_examples_as_they_are_run() {
    let (root, _) = workspace();
    for (page, example) in EXAMPLES {
        let shown = read(&root, page);
        let text = read(&root, example);
        // Its first paragraph says what the file is; the page says it in its own words.
        let (_, program) = text.split_once("\n\n").expect("a first paragraph");
        assert!(shown.contains(program.trim()), "{page} does not show {example} as it is");
    }
}

#[test]
fn the_files_and_tests_that_the_pages_name_exist() {
    let (root, crates) = workspace();
    let mut functions = BTreeSet::new();
    for file in crates.iter().flat_map(|one| &one.files) {
        functions.extend(find(&file.tokens, "fn").iter().filter_map(|hit| file.tokens.get(hit.at + 1)?.word()));
    }
    let mut faults = Vec::new();
    for page in PAGES {
        let text = read(&root, page);
        let folder = Path::new(page).parent().expect("a page is in a folder");
        let gone = |path: &str| !root.join(path).exists() && !root.join(folder).join(path).exists();
        for name in named(&text) {
            // Names in capitals are variables.
            let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            let is_test = name.matches('_').count() >= 3 && name.chars().all(is_legal);
            let is_path = name.contains('/')
                && [".rs", ".py", ".md", ".toml", ".yaml", ".sh"].iter().any(|ending| name.ends_with(ending));
            if is_test && !functions.contains(name) {
                faults.push(format!("{page}: there is no function {name}"));
            }
            if is_path && gone(name) {
                faults.push(format!("{page}: there is no file {name}"));
            }
        }
    }
    report(&faults, "the pages tell the truth about what exists");
}

/// What a page names: everything between backticks, and the targets of its links.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let code = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    code.chain(links)
}
