//! Reads the sources and holds them against the plan of the house: which crate may use which, which module stands above
//! which, where `unsafe`, openraft and sled live, what a pure module may not touch.
//!
//! The tables below *are* the plan. To change the plan, change a row and say why in the commit; a rule that is in the way at one place
//! gets a row in its list of exceptions, with the reason beside it. Every failure lists all places at once.

#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

#[path = "tidy/hash_walk.rs"]
mod hash_walk;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/pages.rs"]
mod pages;
#[path = "tidy/source.rs"]
mod source;

use hash_walk::hash_iterations;
use imports::{Import, circle, imports};
use source::{Crate, File, Token, find, line_at, workspace};

/// Which crates of ours each crate may use (tests and build scripts too). Nothing else, and no circles by construction: a row
/// names only rows above it.
const CRATES: [(&str, &[&str]); 7] = [
    ("proto", &[]),
    ("raft", &[]),
    ("namesrv", &["proto"]),
    ("client", &["proto"]),
    ("broker", &["proto", "raft"]),
    ("jepsen-like-tests", &["proto", "raft", "namesrv", "client", "broker"]),
    ("cli", &["proto", "raft", "namesrv", "client", "broker", "jepsen-like-tests"]),
];

/// Foreign crates that live in one place only: the crate that may name it in its manifest, and the path below which code may.
const WALLS: [(&str, &str, &str); 4] = [
    ("openraft", "raft", "raft/"),
    ("sled", "broker", "broker/src/store/checkpoint.rs"),
    ("protox", "proto", "proto/build.rs"),
    ("tonic_prost_build", "proto", "proto/build.rs"),
];

/// The modules of a crate from the top down; a module imports only from rows below its own. `*` stands for every module that
/// has no row; those may use each other as long as no circle comes of it.
const RANKS: [(&str, &[&[&str]]); 3] = [
    (
        "raft",
        &[
            &["group"],
            &["peer", "machine"],
            &["store"],
            &["binding", "inspect"],
            &["snapshot"],
            &["log"],
            &["hard_state"],
            &["disk"],
            &["*"],
        ],
    ),
    (
        "broker",
        &[
            &["run"],
            &["http"],
            &["service"],
            &["health"],
            &["registrar"],
            &["leader", "applier"],
            &["scan", "schedule"],
            &["replica"],
            &["store"],
            &["session", "waiters"],
            &["machine"],
            &["*"],
        ],
    ),
    ("client", &[&["client"], &["admin", "producer", "consumer"], &["session"], &["route"], &["transport"], &["*"]]),
];

/// Modules without I/O, clock, chance or async: rules only. A path ending in `/` means everything below it.
const PURE: [&str; 10] = [
    "proto/src/names.rs",
    "raft/src/log/frame.rs",
    "raft/src/log/scan.rs",
    "namesrv/src/table.rs",
    "client/src/picker.rs",
    "client/src/backoff.rs",
    "broker/src/leader/filter/",
    "broker/src/machine/",
    "broker/src/store/retention.rs",
    "jepsen-like-tests/src/check/",
];

/// Entries of [`PURE`] that are planned and not built yet. Remove the row here when the file appears.
const PURE_LATER: [&str; 0] = [];

/// What a pure module may not say.
const IMPURE: [&str; 13] = [
    "async",
    "await",
    "tokio",
    "std::fs",
    "std::net",
    "std::env",
    "std::thread",
    "tracing",
    "SystemTime",
    "Instant",
    "rand",
    "File",
    "println",
];

/// Words that say nothing about what is inside.
const EMPTY_NAMES: [&str; 10] =
    ["common", "util", "utils", "helper", "helpers", "impls", "manager", "base", "misc", "v2"];

/// Where a task or thread is started that neither a `JoinSet` nor an `AbortOnDropHandle` owns, and who ends it instead.
const SPAWNS: [(&str, &str); 3] = [
    (
        "raft/src/runtime.rs",
        "the tasks that openraft asks for; a node's scope remembers them and ends them with the node",
    ),
    ("jepsen-like-tests/src/dev/mod.rs", "waits for signals for as long as the process lives and holds nothing"),
    ("cli/src/bench/echo.rs", "blocks on the standard input, which nobody can interrupt; ends with the process"),
];

/// Where shipped code panics on purpose, and why an error would be worse.
const PANICS: [(&str, &str); 1] =
    [("broker/src/replica.rs", "a replica that cannot follow the log must not live on; the panic stops the node")];

/// A file longer than this is printed, not refused: length is a hint that a second thing has moved in.
const LONG: usize = 700;

/// A folder with more entries than this is printed likewise.
const FULL: usize = 14;

#[test]
fn crates_use_only_what_lies_below_them() {
    let (_, crates) = workspace();
    let mut faults = Vec::new();
    for one in &crates {
        let Some((_, allowed)) = CRATES.iter().find(|(name, _)| *name == one.folder) else {
            faults.push(format!("{}: no row in CRATES; say what it may use", one.folder));
            continue;
        };
        let may = |name: &str| *name == one.folder || allowed.contains(&name);
        for dependency in dependencies(&one.manifest) {
            if let Some(folder) = folder_of(&crates, &dependency).filter(|folder| !may(folder)) {
                faults.push(format!("{}/Cargo.toml depends on {folder}", one.folder));
            }
        }
        for file in &one.files {
            for (at, token) in file.tokens.iter().enumerate() {
                let Some(word) = token.word().filter(|word| word.starts_with("quorate_")) else { continue };
                if let Some(folder) = folder_of(&crates, &word.replace('_', "-")).filter(|folder| !may(folder)) {
                    faults.push(format!("{}:{} uses {folder}", file.path, line_at(&file.tokens, at)));
                }
            }
        }
    }
    report(&faults, "these arrows point up or sideways; share what both need through a crate below, or change CRATES");
}

#[test]
fn openraft_sled_maps_and_code_generation_each_have_one_home() {
    let (_, crates) = workspace();
    let mut faults = Vec::new();
    for (wall, home, place) in WALLS {
        for one in &crates {
            if one.folder != home && dependencies(&one.manifest).contains(&wall.replace('_', "-")) {
                faults.push(format!("{}/Cargo.toml depends on {wall}; only {home} may", one.folder));
            }
            for file in one.files.iter().filter(|file| !file.path.starts_with(place)) {
                faults.extend(
                    naming(file, wall).map(|line| format!("{}:{line} names {wall}; only {place} may", file.path)),
                );
            }
        }
    }
    for file in crates.iter().filter(|one| one.folder != "proto").flat_map(|one| &one.files) {
        for hit in find(&file.tokens, "include_proto") {
            faults.push(format!("{}:{} includes generated code; only proto does", file.path, hit.line));
        }
    }
    report(&faults, "these foreign crates are kept behind one wall, so that we can leave them");
}

/// Lines where a file names a foreign crate as a path: `name::…`, `use name…` or `extern crate name`.
fn naming<'a>(file: &'a File, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let tokens = &file.tokens;
    tokens.iter().enumerate().filter(|(_, token)| token.is_word(name)).filter_map(move |(at, _)| {
        let colons = tokens.get(at + 1) == Some(&Token::Mark(':')) && tokens.get(at + 2) == Some(&Token::Mark(':'));
        let inside = at >= 1 && tokens[at - 1] == Token::Mark(':');
        let used = at >= 1 && (tokens[at - 1].is_word("use") || tokens[at - 1].is_word("crate"));
        ((colons && !inside) || used).then(|| line_at(tokens, at))
    })
}

#[test]
fn every_crate_forbids_unsafe() {
    let (_, crates) = workspace();
    let mut faults = Vec::new();
    for file in crates.iter().flat_map(|one| &one.files) {
        faults.extend(find(&file.tokens, "unsafe").into_iter().map(|hit| format!("{}:{}", file.path, hit.line)));
        if is_crate_root(&file.path) && find(&file.tokens, "#![forbid(unsafe_code)]").is_empty() {
            faults.push(format!("{}: lacks #![forbid(unsafe_code)]", file.path));
        }
    }
    report(&faults, "no crate needs unsafe");
}

fn is_crate_root(path: &str) -> bool {
    path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs") || path.contains("/src/bin/")
}

#[test]
fn modules_import_only_from_lower_ranks() {
    let (_, crates) = workspace();
    let mut faults = Vec::new();
    for (name, rows) in RANKS {
        let one = crates.iter().find(|one| one.folder == name).expect("a crate of the table exists");
        let rest = rows.iter().position(|row| row.contains(&"*")).expect("every table has a row for the rest");
        let rank = |module: &str| rows.iter().position(|row| row.contains(&module)).unwrap_or(rest);
        for Import { from, to, place } in imports(one) {
            let (upper, lower) = (rank(&from), rank(&to));
            if upper > lower || (upper == lower && upper != rest) {
                faults.push(format!("{place}: {from} imports {to}, which does not stand below it"));
            }
        }
    }
    report(&faults, "imports go down only (RANKS in this test); move what both need below, or give a module its rank");
}

#[test]
fn modules_form_no_circle() {
    let (_, crates) = workspace();
    let mut faults = Vec::new();
    for one in &crates {
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for Import { from, to, .. } in imports(one) {
            graph.entry(from).or_default().insert(to);
        }
        faults.extend(circle(&graph).map(|circle| format!("{}: {}", one.folder, circle.join(" -> "))));
    }
    report(&faults, "modules that import each other are one module, or need a third below both");
}

#[test]
fn pure_modules_touch_nothing_outside_their_arguments() {
    let (_, crates) = workspace();
    let files: Vec<&File> = crates.iter().flat_map(|one| &one.files).collect();
    let mut faults = Vec::new();
    for pure in PURE {
        let below = |file: &&&File| file.path == pure || (pure.ends_with('/') && file.path.starts_with(pure));
        let matching: Vec<_> = files.iter().filter(below).collect();
        if matching.is_empty() != PURE_LATER.contains(&pure) {
            faults.push(format!("{pure}: is it built or not? PURE and PURE_LATER disagree with the tree"));
        }
        for file in matching {
            let tokens = file.without_tests();
            for word in IMPURE {
                faults.extend(find(&tokens, word).iter().map(|hit| format!("{}:{} says {word}", file.path, hit.line)));
            }
            for (name, line) in hash_iterations(&tokens) {
                faults.push(format!(
                    "{}:{line} walks over the hash map {name}, whose order differs each time",
                    file.path
                ));
            }
        }
    }
    report(&faults, "a pure module takes time and chance as arguments and leaves changes as values");
}

#[test]
fn every_file_and_folder_has_a_name_that_says_something() {
    let (_, crates) = workspace();
    let mut faults = Vec::new();
    for file in crates.iter().flat_map(|one| &one.files) {
        let parts = file.path.split('/').map(|part| part.strip_suffix(".rs").unwrap_or(part));
        faults.extend(parts.filter(|part| EMPTY_NAMES.contains(part)).map(|part| format!("{}: {part}", file.path)));
    }
    report(&faults, "name the thing that is inside");
}

#[test]
fn every_source_file_opens_with_what_it_is_for() {
    let (_, crates) = workspace();
    let files = crates.iter().flat_map(|one| &one.files).filter(|file| file.is_source() && !file.has_essay);
    let faults: Vec<_> = files.map(|file| file.path.clone()).collect();
    report(&faults, "begin the file with //! and say what it is for, what it must never do, who calls it");
}

#[test]
fn unfinished_places_have_a_number_and_do_not_panic() {
    let (_, crates) = workspace();
    let mut faults = Vec::new();
    for file in crates.iter().flat_map(|one| &one.files) {
        for (line, text) in &file.comments {
            for word in ["TODO", "FIXME", "XXX"] {
                // A word of its own, so that the topic SCHEDULE_TOPIC_XXXX is none.
                let alone = text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word);
                if alone && !(word == "TODO" && is_numbered(text)) {
                    faults.push(format!("{}:{line} {word} without a number, write TODO(#12): or do it", file.path));
                }
            }
        }
        if file.path.starts_with("jepsen-like-tests/") || !file.is_source() {
            continue;
        }
        let tokens = file.without_tests();
        let excused = PANICS.iter().any(|(path, _)| *path == file.path);
        for mark in
            ["todo!", "unimplemented!", "panic!", "dbg!"].into_iter().filter(|mark| !(excused && *mark == "panic!"))
        {
            faults.extend(find(&tokens, mark).iter().map(|hit| format!("{}:{} {mark}", file.path, hit.line)));
        }
    }
    report(&faults, "nothing is left half done");
}

fn is_numbered(text: &str) -> bool {
    text.split("TODO(#")
        .nth(1)
        .and_then(|rest| rest.split_once("):"))
        .is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[test]
fn every_task_and_thread_has_an_owner() {
    let (_, crates) = workspace();
    let mut faults = Vec::new();
    for file in crates.iter().flat_map(|one| &one.files).filter(|file| file.is_source()) {
        let tokens = file.without_tests();
        let owned = !find(&tokens, "AbortOnDropHandle").is_empty();
        if owned || SPAWNS.iter().any(|(path, _)| *path == file.path) {
            continue;
        }
        for call in ["tokio::spawn(", "task::spawn(", "thread::spawn("] {
            faults.extend(find(&tokens, call).iter().map(|hit| format!("{}:{} {call}…)", file.path, hit.line)));
        }
    }
    report(
        &faults,
        "spawn on a JoinSet that somebody joins or keep an AbortOnDropHandle; or a row in SPAWNS that names who ends it",
    );
}

/// An exception that nobody needs any more is a hole.
#[test]
fn every_exception_is_still_needed() {
    let (_, crates) = workspace();
    let rows = [("SPAWNS", "spawn", &SPAWNS[..]), ("PANICS", "panic!", &PANICS[..])];
    let mut faults = Vec::new();
    for (table, word, rows) in rows {
        for (path, reason) in rows {
            let file = crates.iter().flat_map(|one| &one.files).find(|file| file.path == *path);
            if file.is_none_or(|file| find(&file.without_tests(), word).is_empty()) {
                faults.push(format!("{table}: {path} ({reason}) has no {word}"));
            }
        }
    }
    report(&faults, "remove the row");
}

#[test]
fn only_the_command_line_has_a_main_that_ships() {
    let (_, crates) = workspace();
    let mut faults = Vec::new();
    for one in crates.iter().filter(|one| one.folder != "cli") {
        let mains = one.files.iter().filter(|file| is_crate_root(&file.path) && !file.path.ends_with("/src/lib.rs"));
        faults.extend(mains.map(|file| file.path.clone()));
    }
    report(&faults, "a role is a library with run(config, doors, shutdown)");
}

/// Fails never: length is a habit, and this is the place where it shows.
#[test]
fn long_files_and_full_folders_are_printed() {
    let (root, crates) = workspace();
    let files: Vec<_> = crates.iter().flat_map(|one| &one.files).collect();
    let mut folders: BTreeMap<&Path, usize> = BTreeMap::new();
    for file in &files {
        if file.lines > LONG {
            println!("long: {} has {} lines; is it about one thing?", file.path, file.lines);
        }
        *folders.entry(Path::new(&file.path).parent().expect("a file is in a folder")).or_default() += 1;
    }
    for (folder, count) in folders.into_iter().filter(|(_, count)| *count > FULL) {
        println!("full: {} has {count} files", root.join(folder).strip_prefix(&root).expect("below").display());
    }
}

// What the rules share.

/// Names of all dependencies of a manifest, for whatever purpose or platform.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut tables = vec![manifest];
    tables.extend(
        manifest
            .get("target")
            .and_then(toml::Value::as_table)
            .into_iter()
            .flat_map(|targets| targets.values().filter_map(toml::Value::as_table)),
    );
    for table in tables {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(list) = table.get(kind).and_then(toml::Value::as_table) else { continue };
            for (name, details) in list {
                let renamed = details.get("package").and_then(toml::Value::as_str);
                found.insert(renamed.unwrap_or(name).to_owned());
            }
        }
    }
    found
}

/// The folder of one of our packages.
fn folder_of<'a>(crates: &'a [Crate], package: &str) -> Option<&'a str> {
    let found = crates.iter().find(|one| one.manifest["package"]["name"].as_str() == Some(package));
    found.map(|one| one.folder.as_str())
}

/// # Panics
/// If there are faults; lists them all.
fn report(faults: &[String], rule: &str) {
    assert!(faults.is_empty(), "{rule}:\n  {}\n", faults.join("\n  "));
}
