//! The connections to one address: made when first needed, made again when lost, never two attempts at once.

use std::sync::{
    Arc, RwLock,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

use quorate_proto::doors::Net;
use tokio::time::Instant;

use super::connection::Connection;
use crate::backoff::Backoff;

/// Rests between failed dials: a restarted node is found again within half a second.
fn redial() -> Backoff {
    Backoff::new(Duration::from_millis(25), Duration::from_millis(500), 2.0)
}

/// An address and what leads there.
pub(crate) struct Peer {
    address: Arc<str>,
    lanes: Box<[Lane]>,
    next: AtomicUsize,
}

/// One connection's place.
struct Lane {
    current: RwLock<Option<Connection>>,
    dialing: tokio::sync::Mutex<Dialing>,
}

struct Dialing {
    rests: Backoff,
    /// Until when to fail at once, and with what.
    failed: Option<(Instant, String)>,
}

impl Peer {
    /// `connections` is at least 1.
    pub(crate) fn new(address: Arc<str>, connections: usize) -> Self {
        let lane = |_| Lane {
            current: RwLock::new(None),
            dialing: tokio::sync::Mutex::new(Dialing { rests: redial(), failed: None }),
        };
        Self { address, lanes: (0..connections.max(1)).map(lane).collect(), next: AtomicUsize::new(0) }
    }

    /// A live connection, dialled if there is none.
    ///
    /// # Errors
    /// Why the address cannot be reached; shortly after a failed dial that one's reason, at once.
    pub(crate) async fn connection(
        &self,
        net: &dyn Net,
        timeout: Duration,
        chance: impl Fn() -> f64,
    ) -> Result<Connection, String> {
        let lane = match self.lanes.len() {
            1 => &self.lanes[0],
            lanes => &self.lanes[self.next.fetch_add(1, Ordering::Relaxed) % lanes],
        };
        match lane.live() {
            Some(connection) => Ok(connection),
            None => lane.dial(net, &self.address, timeout, chance).await,
        }
    }
}

impl Lane {
    fn live(&self) -> Option<Connection> {
        let current = self.current.read().expect("no holder of this lock panics");
        current.as_ref().filter(|connection| !connection.is_retired()).cloned()
    }

    async fn dial(
        &self,
        net: &dyn Net,
        address: &Arc<str>,
        timeout: Duration,
        chance: impl Fn() -> f64,
    ) -> Result<Connection, String> {
        let mut dialing = self.dialing.lock().await;
        if let Some(connection) = self.live() {
            return Ok(connection);
        }
        if let Some((until, reason)) = &dialing.failed
            && Instant::now() < *until
        {
            return Err(reason.clone());
        }
        match Connection::dial(net, address, timeout).await {
            Ok(connection) => {
                dialing.failed = None;
                dialing.rests.reset();
                *self.current.write().expect("no holder of this lock panics") = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                let reason = format!("{address}: {error}");
                dialing.failed = Some((Instant::now() + dialing.rests.next(chance()), reason.clone()));
                Err(reason)
            }
        }
    }
}
