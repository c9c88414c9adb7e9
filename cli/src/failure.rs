//! How a command fails: three lines (what failed, why, what to run next) and an exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | error |
//! | 2 | wrong usage or configuration |
//! | 3 | the cluster is not healthy |
//! | 4 | no leader or no quorum, as far as can be seen: no node that answers among them |
//! | 5 | a verification failed |

use std::{fmt, process::ExitCode};

use quorate_client::CallError;

/// Exit codes other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Error = 1,
    Usage = 2,
    Unhealthy = 3,
    NoQuorum = 4,
    Verification = VERIFICATION,
}

/// Exit code of a verification that failed.
pub const VERIFICATION: u8 = 5;

/// Why a command did not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    what: String,
    why: String,
    next: String,
    exit: Exit,
}

/// An error of exit code 1.
pub fn error(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Failure {
    Failure { what: what.into(), why: why.into(), next: next.into(), exit: Exit::Error }
}

/// Wrong usage or configuration.
pub fn config(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Failure {
    Failure { exit: Exit::Usage, ..error(what, why, next) }
}

/// Nobody leads, as far as can be seen.
pub fn no_quorum(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Failure {
    Failure { exit: Exit::NoQuorum, ..error(what, why, next) }
}

/// A call of the client; `what` says what it was for.
pub fn call(what: impl Into<String>, error: &CallError, endpoints: &str) -> Failure {
    let status = format!("quorate cluster status --endpoints '{endpoints}'");
    let (next, exit) = match error {
        CallError::Refused { code: 40402, .. } => {
            (format!("quorate topic list --endpoints '{endpoints}'"), Exit::Error)
        }
        CallError::Refused { code: 40403, .. } => {
            (format!("quorate group list --endpoints '{endpoints}'"), Exit::Error)
        }
        CallError::Refused { code: 50100, .. } => {
            ("use the address of a broker node (a name server answers routes only)".to_owned(), Exit::Error)
        }
        CallError::Refused { .. } => ("correct the call as the reason says".to_owned(), Exit::Error),
        CallError::NotNow { code: 0, .. } => (
            format!("start a broker (quorate dev --no-demo), or name a live one with --endpoints; {status}"),
            Exit::NoQuorum,
        ),
        CallError::NotNow { code: 50002, .. } => (status, Exit::NoQuorum),
        CallError::NotNow { .. } => ("try again in a moment".to_owned(), Exit::Error),
        // Handed to the log, and no majority confirmed it.
        CallError::Unknown { code: 50402, .. } => {
            (format!("look whether it took effect, then repeat; {status}"), Exit::NoQuorum)
        }
        CallError::Unknown { .. } => (format!("look whether it took effect, then repeat; {status}"), Exit::Error),
        CallError::Config { .. } => ("quorate --help".to_owned(), Exit::Usage),
    };
    Failure { what: what.into(), why: error.to_string(), next, exit }
}

impl Failure {
    /// What was verified is not as it should be.
    pub fn of_verification(self) -> Self {
        Self { exit: Exit::Verification, ..self }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        self.exit.into()
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n  why: {}\n next: {}", self.what, self.why, self.next)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_three_lines_and_the_documented_code() {
        let failure =
            call("topic t was not created", &CallError::NotNow { code: 50002, message: "no leader".into() }, "a:1");
        assert_eq!(failure.exit, Exit::NoQuorum);
        assert_eq!(
            failure.to_string(),
            "error: topic t was not created\n  why: not now: no leader\n next: quorate cluster status --endpoints 'a:1'"
        );
        let nobody = CallError::NotNow { code: 0, message: "a:1: connection refused".into() };
        let unconfirmed = CallError::Unknown { code: 50402, message: "not confirmed in time".into() };
        for error in [nobody, unconfirmed] {
            assert_eq!(call("x", &error, "a:1").exit, Exit::NoQuorum, "{error}");
        }
        let busy = CallError::NotNow { code: 42900, message: "too much under way".into() };
        assert_eq!(call("x", &busy, "a:1").exit, Exit::Error);
        let refused = CallError::Refused { code: 40402, message: "no topic t".into() };
        assert_eq!(call("x", &refused, "a:1").exit, Exit::Error);
        assert_eq!(config("x", "y", "z").exit, Exit::Usage);
    }
}
