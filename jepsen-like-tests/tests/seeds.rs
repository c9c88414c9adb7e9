//! Seeds that ever failed, with what they found. Each runs in every test run, so that no bug comes back unseen.

/// Seed, virtual seconds, and the commit's subject that fixed what it found.
pub const FAILED: &[(u64, u64, &str)] = &[];
