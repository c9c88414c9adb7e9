//! Being told to stop: SIGTERM and Ctrl-C end a role in order, a second one at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    failure::{self, Failure},
    output::note,
};

/// The usual code of a process that a signal ended.
const ENDED_BY_SIGNAL: i32 = 130;

/// Listens for signals as long as it lives.
pub struct Stop {
    /// Cancelled by the first signal.
    pub token: CancellationToken,
    _listener: AbortOnDropHandle<()>,
}

impl Stop {
    /// Starts to listen. Must be called within a runtime.
    ///
    /// # Errors
    /// The system refuses to tell of signals.
    pub fn listen() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            failure::error("signals cannot be heard", error.to_string(), "report this as a bug")
        };
        let terminated = signal(SignalKind::terminate()).map_err(failed)?;
        let interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
        let token = CancellationToken::new();
        let listener = tokio::spawn(listen(terminated, interrupted, token.clone()));
        Ok(Self { token, _listener: AbortOnDropHandle::new(listener) })
    }
}

async fn listen(mut terminated: Signal, mut interrupted: Signal, token: CancellationToken) {
    for first in [true, false] {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        if first {
            note("stopping; once more to stop at once");
            token.cancel();
        } else {
            std::process::exit(ENDED_BY_SIGNAL);
        }
    }
}
