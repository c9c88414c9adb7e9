//! The attempts of one call: which address next, how long, and what it comes to in the end.
//!
//! An attempt that certainly did not leave this process costs nothing but time: the next address is tried at once, and after a round of all
//! of them the call rests and begins again. An attempt that was handed over counts. Once an attempt's outcome is unknown, no later
//! "no" can take that back: the call ends well or unknown.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Transport, connection::Connection};
use crate::{backoff::Backoff, error::CallError, picker::Fault};

/// Added to an attempt's deadline here, so that the server's own last word still arrives.
const SLACK: Duration = Duration::from_millis(200);

/// How far a call may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallLimits {
    /// Attempts that were handed to a node.
    pub(crate) attempts: u32,
    /// Time for one attempt.
    pub(crate) attempt_timeout: Duration,
    /// Time for all of it.
    pub(crate) total_timeout: Duration,
    /// Rounds over all addresses without reaching one.
    pub(crate) rounds: u32,
    /// Whether an attempt of unknown outcome may be repeated: the broker recognises the repetition, or it does no harm.
    pub(crate) repeat_unknown: bool,
}

/// One try on one connection.
pub(crate) struct Attempt {
    pub(crate) connection: Connection,
    /// What the server is told it has.
    pub(crate) timeout: Duration,
    started: Instant,
}

/// A call under way.
pub(crate) struct Attempts<'a> {
    transport: &'a Transport,
    limits: CallLimits,
    started: Instant,
    handed_over: u32,
    rounds: u32,
    tried: Vec<Arc<str>>,
    last: Option<CallError>,
    unknown: Option<CallError>,
    rests: Backoff,
    rest_first: bool,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(transport: &'a Transport, limits: CallLimits) -> Self {
        Self {
            transport,
            limits,
            started: Instant::now(),
            handed_over: 0,
            rounds: 0,
            tried: Vec::new(),
            last: None,
            unknown: None,
            rests: Backoff::producer(),
            rest_first: false,
        }
    }

    /// Connects to the next address, in the order the picker wants.
    ///
    /// # Errors
    /// What the call came to, when its time or its rounds are used up.
    pub(crate) async fn next(&mut self, addresses: &[Arc<str>]) -> Result<Attempt, CallError> {
        loop {
            let left = self.limits.total_timeout.saturating_sub(self.started.elapsed());
            if left.is_zero() {
                return Err(self.outcome());
            }
            if std::mem::take(&mut self.rest_first) {
                tokio::time::sleep(self.rests.next(self.transport.chance()).min(left)).await;
                continue;
            }
            let Some(address) = self.transport.choose(addresses, &self.tried) else {
                self.rounds += 1;
                if self.rounds >= self.limits.rounds || addresses.is_empty() {
                    return Err(self.outcome());
                }
                self.tried.clear();
                self.rest_first = true;
                continue;
            };
            match self.transport.connect(&address, left).await {
                Ok(connection) => {
                    let timeout = self.limits.attempt_timeout.min(left);
                    return Ok(Attempt { connection, timeout, started: Instant::now() });
                }
                Err(message) => {
                    self.transport.blame(&address, Fault::Failed);
                    self.last = Some(CallError::NotNow { code: 0, message });
                    self.tried.push(address);
                }
            }
        }
    }

    /// Waits for an attempt's answer, no longer than its deadline, and sorts what went wrong.
    pub(crate) async fn answer<T>(
        &self,
        attempt: &Attempt,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, CallError> {
        let address = attempt.connection.address();
        match tokio::time::timeout(attempt.timeout + SLACK, call).await {
            Ok(Ok(answer)) => {
                self.transport.answered(address, attempt.started.elapsed());
                Ok(answer)
            }
            Ok(Err(status)) => {
                let (error, reached) = super::sort_status(address, &status);
                if !reached {
                    self.transport.blame(address, Fault::Failed);
                }
                Err(error)
            }
            Err(_) => {
                // A node answers before the deadline it was given; one that did not is stuck or gone without a word.
                attempt.connection.retire();
                self.transport.blame(address, Fault::Failed);
                let message = format!("{address} did not answer within {:?}", attempt.timeout + SLACK);
                Err(CallError::Unknown { code: 0, message })
            }
        }
    }

    /// Takes note of an attempt's failure. Returns if another attempt should be made.
    ///
    /// # Errors
    /// What the call came to.
    pub(crate) fn failed(&mut self, attempt: &Attempt, error: CallError) -> Result<(), CallError> {
        self.tried.push(attempt.connection.address().clone());
        let again = match &error {
            CallError::Refused { .. } | CallError::Config { .. } => false,
            CallError::NotNow { code, .. } => {
                self.rest_first = *code == 42900;
                // Not reached, as with a refused connection: the next address is free.
                self.handed_over += u32::from(*code != 0);
                true
            }
            CallError::Unknown { .. } => {
                self.handed_over += 1;
                self.unknown = Some(error.clone());
                self.limits.repeat_unknown
            }
        };
        self.last = Some(error);
        if again && self.handed_over < self.limits.attempts { Ok(()) } else { Err(self.outcome()) }
    }

    /// What the call came to: the last error, unless an earlier attempt may have taken effect.
    fn outcome(&mut self) -> CallError {
        let last = self.last.take();
        match self.unknown.take() {
            Some(CallError::Unknown { code, message }) => match last {
                Some(last) if !matches!(last, CallError::Unknown { .. }) => {
                    CallError::Unknown { code, message: format!("{message}; then {last}") }
                }
                _ => CallError::Unknown { code, message },
            },
            Some(other) => other,
            None => last.unwrap_or_else(|| CallError::NotNow { code: 0, message: "no address to call".to_owned() }),
        }
    }
}
