//! What a call can come to when it did not succeed, and the one table that sorts the wire's codes into it.
//!
//! The four kinds ask for four different reactions: a refusal will be repeated word for word, so fix the call; not now had no effect,
//! so repeat it later; unknown may have had its effect, so repeat it only if that is harmless; a config error is the
//! caller's own and never left the process.

use quorate_proto::v2::Code;

/// Why a call has no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// A deterministic no of the broker: nothing happened, and the same call gets the same answer.
    #[error("refused with {code} ({name}): {message}", name = code_name(*.code))]
    Refused {
        /// RocketMQ's code, for example 40402.
        code: i32,
        /// The broker's reason.
        message: String,
    },
    /// Nobody could take the call: it certainly had no effect and may be repeated.
    #[error("not now: {message}")]
    NotNow {
        /// RocketMQ's code, or 0 if no node was reached.
        code: i32,
        /// The last reason.
        message: String,
    },
    /// The call was handed over and its outcome never came back: it may or may not have had, or may still have, its effect.
    #[error("the outcome is unknown: {message}")]
    Unknown {
        /// RocketMQ's code, or 0 if no node answered.
        code: i32,
        /// The last reason.
        message: String,
    },
    /// The call or the configuration cannot work; nothing left this process.
    #[error("{message}")]
    Config {
        /// What to change.
        message: String,
    },
}

/// What a send can come to.
pub type SendError = CallError;
/// What a receive can come to. An unknown receive may have handed out messages that come back after their invisible duration.
pub type ReceiveError = CallError;
/// What an ack or a change of the invisible duration can come to.
pub type AckError = CallError;
/// What an operator's call can come to.
pub type AdminError = CallError;

impl CallError {
    /// The code, or 0 where there is none.
    pub fn code(&self) -> i32 {
        match self {
            Self::Refused { code, .. } | Self::NotNow { code, .. } | Self::Unknown { code, .. } => *code,
            Self::Config { .. } => 0,
        }
    }

    /// Whether the call certainly had no effect.
    pub fn is_without_effect(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::NotNow { .. } | Self::Config { .. } => true,
            Self::Unknown { .. } => false,
        }
    }
}

/// The name of a code, as RocketMQ writes it, or `?`.
pub fn code_name(code: i32) -> &'static str {
    Code::try_from(code).map_or("?", |code| code.as_str_name())
}

/// Sorts a status code of the wire. `Ok` is OK, MULTIPLE_RESULTS, and nothing else.
///
/// A code that this client does not know is unknown if it stands in the server's own range (5xxxx) and a refusal otherwise.
pub(crate) fn check_code(code: i32, message: &str) -> Result<(), CallError> {
    let message = || if message.is_empty() { code_name(code).to_owned() } else { message.to_owned() };
    match code {
        20000 | 30000 => Ok(()),
        // Too many requests and HA not available: decided before anything was handed over.
        42900 | 50002 => Err(CallError::NotNow { code, message: message() }),
        // Not implemented, unsupported, wrong version: a no.
        50100 | 50500..=50502 => Err(CallError::Refused { code, message: message() }),
        // Request timeout, and everything that went wrong inside the server.
        40800 | 50000..=59999 => Err(CallError::Unknown { code, message: message() }),
        _ => Err(CallError::Refused { code, message: message() }),
    }
}

/// As [`check_code`] for an answer's status; a missing one is unknown.
pub(crate) fn check_status(status: Option<&quorate_proto::v2::Status>) -> Result<(), CallError> {
    match status {
        Some(status) => check_code(status.code, &status.message),
        None => Err(CallError::Unknown { code: 0, message: "the answer has no status".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_the_four_kinds_apart() {
        assert_eq!(check_code(20000, ""), Ok(()));
        assert_eq!(check_code(30000, ""), Ok(()));
        for code in [40402, 40010, 41301, 50100, 50501, 43101, 40013] {
            assert!(matches!(check_code(code, "x"), Err(CallError::Refused { .. })), "{code}");
        }
        for code in [42900, 50002] {
            assert!(matches!(check_code(code, "x"), Err(CallError::NotNow { .. })), "{code}");
        }
        for code in [50402, 50401, 50400, 50001, 50000, 40800] {
            let error = check_code(code, "x").expect_err("not ok");
            assert!(matches!(error, CallError::Unknown { .. }) && !error.is_without_effect(), "{code}");
        }
    }

    #[test]
    fn an_error_names_the_code() {
        let error = check_code(40402, "topic t does not exist").expect_err("not ok");
        assert_eq!(error.to_string(), "refused with 40402 (TOPIC_NOT_FOUND): topic t does not exist");
    }
}
