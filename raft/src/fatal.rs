//! The one place where a node's end by a fault is written down: first reason wins, everybody can wait for it.

use std::{any::Any, sync::Arc};

use tokio::sync::watch;

/// Set once, by whoever meets the fault first. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Fatal {
    reason: Arc<watch::Sender<Option<String>>>,
}

impl Fatal {
    pub(crate) fn new() -> Self {
        Self { reason: Arc::new(watch::Sender::new(None)) }
    }

    /// Ends the node with this reason, unless it has ended already.
    pub(crate) fn set(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.reason.send_if_modified(|current| {
            if current.is_some() {
                return false;
            }
            tracing::error!(%reason, "node stops by a fault");
            *current = Some(reason);
            true
        });
    }

    /// The reason, if the node has ended.
    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }

    /// Waits for the reason. Cancel safe.
    pub(crate) async fn wait(&self) -> String {
        let mut reason = self.reason.subscribe();
        loop {
            if let Some(reason) = reason.borrow_and_update().clone() {
                return reason;
            }
            if reason.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What a panic said.
pub(crate) fn panic_words(panic: &(dyn Any + Send)) -> &str {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked without words")
}
