//! Seeds that ever failed, with what they found. Each runs in every test run, so that no bug comes back unseen.

/// Seed, virtual seconds, and the commit's subject that fixed what it found.
pub const FAILED: &[(u64, u64, &str)] = &[
    (40, 30, "raft: a stream that is behind a purge ends, and not its leader"),
    (52, 30, "raft: what an image stands for is not ahead of the log that it replaces"),
    (48, 30, "jepsen-like-tests: no power cut of a second node while the first awaits its new disk"),
];
