//! Reads the workspace as the compiler would and no further: crates, files, tokens, comments, and which tokens are test code.
//!
//! A dozen lines of `grep` would take a word in a comment for a use of it; a full parser would be a dependency. Tokens are enough
//! for every rule in `tidy.rs`.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
};

/// A member of the workspace.
pub struct Crate {
    /// Name of its folder, which is how the tables call it.
    pub folder: String,
    /// `Cargo.toml`.
    pub manifest: toml::Table,
    /// Every `.rs` file of it.
    pub files: Vec<File>,
}

/// A source file.
pub struct File {
    /// From the root of the workspace, with `/`.
    pub path: String,
    /// Lines in it.
    pub lines: usize,
    /// The text starts with an inner doc comment.
    pub has_essay: bool,
    /// Code without comments; literals are [`Token::Literal`].
    pub tokens: Vec<Token>,
    /// Line number from 1 and text of each comment.
    pub comments: Vec<(usize, String)>,
}

/// A word of the language.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// Identifier or keyword, and its line.
    Word(String, usize),
    /// One character of punctuation.
    Mark(char),
    /// Text, character or number.
    Literal,
}

impl Token {
    pub fn is_word(&self, text: &str) -> bool {
        matches!(self, Token::Word(word, _) if word == text)
    }

    pub fn word(&self) -> Option<&str> {
        match self {
            Token::Word(word, _) => Some(word),
            Token::Mark(_) | Token::Literal => None,
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(word, _) => f.write_str(word),
            Token::Mark(mark) => write!(f, "{mark}"),
            Token::Literal => f.write_str("\"…\""),
        }
    }
}

/// Where a sequence of tokens such as `tokio :: spawn` stands.
pub struct Hit {
    /// Index of its first token.
    pub at: usize,
    /// Its line.
    pub line: usize,
}

impl File {
    fn read(root: &Path, path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let relative = path.strip_prefix(root).expect("under the root").to_string_lossy().replace('\\', "/");
        Self::parse(relative, &text)
    }

    /// Splits a text.
    pub fn parse(path: String, text: &str) -> Self {
        let (tokens, comments) = split(text);
        let has_essay = text.trim_start().starts_with("//!");
        Self { path, lines: text.lines().count(), has_essay, tokens, comments }
    }

    /// Integration tests, benches, and files that hold nothing but unit tests.
    pub fn is_test(&self) -> bool {
        let path = &self.path;
        path.contains("/tests/")
            || path.contains("/benches/")
            || path.ends_with("_test.rs")
            || path.ends_with("/tests.rs")
    }

    /// Below `src/`: what other crates and the shipped binary are made of.
    pub fn is_source(&self) -> bool {
        self.path.contains("/src/") && !self.is_test()
    }

    /// The same file without what is compiled for tests only (`#[cfg(test)]` items; all of a test file).
    pub fn without_tests(&self) -> Vec<Token> {
        if self.is_test() { Vec::new() } else { drop_test_items(&self.tokens) }
    }

    /// The module of the crate this file belongs to: `log` for `raft/src/log/frame.rs`. None for crate roots and for what is not
    /// below `src/`.
    pub fn module(&self) -> Option<&str> {
        let (_, inside) = self.path.split_once("/src/")?;
        let first = inside.split('/').next()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (!matches!(inside, "lib.rs" | "main.rs") && name != "bin").then_some(name)
    }
}

/// Every place where `tokens` spell `pattern`, a text of words and punctuation such as `tokio::spawn` or `#[cfg`.
pub fn find(tokens: &[Token], pattern: &str) -> Vec<Hit> {
    let (pattern, _) = split(pattern);
    let same = |a: &Token, b: &Token| match (a, b) {
        (Token::Word(a, _), Token::Word(b, _)) => a == b,
        (a, b) => a == b,
    };
    let starts = tokens.windows(pattern.len()).enumerate();
    starts
        .filter(|(_, window)| window.iter().zip(&pattern).all(|(a, b)| same(a, b)))
        .map(|(at, _)| Hit { at, line: line_at(tokens, at) })
        .collect()
}

/// The line of the first word at or after `at`.
pub fn line_at(tokens: &[Token], at: usize) -> usize {
    let lines = tokens[at..].iter().find_map(|token| if let Token::Word(_, line) = token { Some(*line) } else { None });
    lines.unwrap_or(0)
}

/// The first names that a path beginning before `at` may go on with: one for `crate::a::b`, two for `crate::{a::b, c}`.
/// `at` is the index after the `::`.
pub fn heads(tokens: &[Token], at: usize) -> Vec<String> {
    match tokens.get(at) {
        Some(Token::Word(word, _)) => vec![word.clone()],
        Some(Token::Mark('{')) => {
            let (mut depth, mut fresh, mut found) = (0, true, Vec::new());
            for token in &tokens[at..] {
                match token {
                    Token::Mark('{') => depth += 1,
                    Token::Mark('}') => depth -= 1,
                    Token::Mark(',') if depth == 1 => fresh = true,
                    Token::Word(word, _) if depth == 1 && fresh => {
                        found.push(word.clone());
                        fresh = false;
                    }
                    Token::Word(..) | Token::Mark(_) | Token::Literal => {}
                }
                if depth == 0 {
                    break;
                }
            }
            found
        }
        Some(Token::Mark(_) | Token::Literal) | None => Vec::new(),
    }
}

/// The workspace that this test belongs to.
pub fn workspace() -> (PathBuf, Vec<Crate>) {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .parent()
        .expect("cli/ has a parent")
        .to_owned();
    let members = table(&root.join("Cargo.toml"))["workspace"]["members"].clone();
    let members = members.as_array().expect("a list of folders");
    let folders = members.iter().map(|folder| folder.as_str().expect("a folder").to_owned());
    let crates = folders.map(|folder| {
        let manifest = table(&root.join(&folder).join("Cargo.toml"));
        let mut files = Vec::new();
        for part in ["src", "tests", "benches", "examples"] {
            collect(&root, &root.join(&folder).join(part), &mut files);
        }
        let build = root.join(&folder).join("build.rs");
        if build.exists() {
            files.push(File::read(&root, &build));
        }
        Crate { folder, manifest, files }
    });
    let crates = crates.collect();
    (root, crates)
}

fn table(path: &Path) -> toml::Table {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<File>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    for path in paths {
        // A folder with a manifest is a project of its own (jepsen-like-tests/interop has one).
        if path.is_dir() && !path.join("Cargo.toml").exists() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(File::read(root, &path));
        }
    }
}

/// Tokens and comments of a text. Knows nested comments, raw and byte strings, and lifetimes from characters.
fn split(text: &str) -> (Vec<Token>, Vec<(usize, String)>) {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut comments) = (Vec::new(), Vec::new());
    let (mut at, mut line) = (0, 1);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while at < chars.len() {
        let (c, next) = (chars[at], chars.get(at + 1).copied().unwrap_or(' '));
        let start = at;
        if c == '/' && next == '/' {
            at = end_of_line(&chars, at);
            comments.push((line, chars[start..at].iter().collect()));
        } else if c == '/' && next == '*' {
            at = end_of_block(&chars, at);
            comments.push((line, chars[start..at].iter().collect()));
        } else if let Some(end) = end_of_string(&chars, at) {
            at = end;
            tokens.push(Token::Literal);
        } else if c == '\'' {
            let is_char = next == '\\' || chars.get(at + 2) == Some(&'\'');
            if is_char {
                at += if next == '\\' { 3 } else { 2 };
                while chars.get(at).is_some_and(|&c| c != '\'') {
                    at += 1;
                }
                tokens.push(Token::Literal);
            }
            at += 1;
        } else if is_word(c) {
            while at < chars.len() && is_word(chars[at]) {
                at += 1;
            }
            let word: String = chars[start..at].iter().collect();
            tokens.push(if c.is_ascii_digit() { Token::Literal } else { Token::Word(word, line) });
        } else {
            if !c.is_whitespace() {
                tokens.push(Token::Mark(c));
            }
            at += 1;
        }
        line += chars[start..at.min(chars.len())].iter().filter(|&&c| c == '\n').count();
    }
    (tokens, comments)
}

fn end_of_line(chars: &[char], from: usize) -> usize {
    chars[from..].iter().position(|&c| c == '\n').map_or(chars.len(), |length| from + length)
}

fn end_of_block(chars: &[char], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0);
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

/// The end of the string literal that begins at `from`, if one does: `"…"`, `b"…"`, `c"…"`, `r#"…"#` and their mixtures.
fn end_of_string(chars: &[char], from: usize) -> Option<usize> {
    let prefix = chars[from..].iter().take(2).take_while(|c| matches!(c, 'b' | 'c' | 'r')).count();
    let raw = chars[from..from + prefix].contains(&'r');
    let hashes = if raw { chars[from + prefix..].iter().take_while(|&&c| c == '#').count() } else { 0 };
    let open = from + prefix + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let mut at = open + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' if !raw => at += 2,
            '"' if chars[at + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes => {
                return Some(at + 1 + hashes);
            }
            _ => at += 1,
        }
    }
    Some(chars.len())
}

/// Drops each item behind `#[cfg(test)]`: up to its `;`, or to the end of its first block.
fn drop_test_items(tokens: &[Token]) -> Vec<Token> {
    let starts: Vec<_> = find(tokens, "#[cfg(test)]").into_iter().map(|hit| hit.at).collect();
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        if starts.contains(&at) {
            at = end_of_item(tokens, at);
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

fn end_of_item(tokens: &[Token], from: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') if depth <= 1 => return at + 1,
            Token::Mark('}') => depth -= 1,
            Token::Mark(';') if depth == 0 => return at + 1,
            Token::Word(..) | Token::Mark(_) | Token::Literal => {}
        }
    }
    tokens.len()
}

// The reader is code, so it is tried on code.

#[test]
fn words_in_comments_and_texts_are_not_code() {
    let text = r##"
        //! unsafe
        /* unsafe /* nested unsafe */ unsafe */
        fn f<'a>(a: &'a str) -> char { let _ = (r#"unsafe " "#, b"unsafe", "\"unsafe", '"', '\'', 'u'); a.unsafe_code }
        fn g() { unsafe { h() } }
    "##;
    let file = File::parse("x/src/y.rs".into(), text);
    let hits = find(&file.tokens, "unsafe");
    assert_eq!(hits.iter().map(|hit| hit.line).collect::<Vec<_>>(), [5]);
    assert!(file.has_essay && file.comments.len() == 2);
}

#[test]
fn test_items_are_not_held_to_the_rules() {
    let text =
        "use a::b; #[cfg(test)] use tokio::c; #[cfg(test)] mod tests { fn f() { if x { tokio::d() } } } fn g() {}";
    let file = File::parse("x/src/y.rs".into(), text);
    assert_eq!(find(&file.tokens, "tokio").len(), 2);
    let kept = file.without_tests();
    assert!(find(&kept, "tokio").is_empty() && find(&kept, "fn g").len() == 1, "{kept:?}");
}
