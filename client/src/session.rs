//! What a producer or consumer keeps up besides its calls: the telemetry stream with its settings, and heartbeats.
//!
//! ```text
//!   every 10 s   heartbeat to each node of each known broker group; an answer clears what was held against the address
//!   always       one telemetry stream to a live node: settings out, settings in; opened again one second after it ends
//! ```
//! No call depends on any of it. A broker that hears nothing of a client serves it all the same.

use std::{sync::Arc, time::Duration};

use quorate_proto::v2::{self, telemetry_command::Command};
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    identity::Identity,
    picker::Fault,
    route::Routes,
    transport::{Transport, messaging},
};

/// RocketMQ's interval.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The rest between two telemetry streams, and the poll for a first route.
const REOPEN: Duration = Duration::from_secs(1);
/// Longest wait for the answer of a heartbeat or a farewell.
const SHORT_CALL: Duration = Duration::from_secs(1);

/// Ends when dropped.
pub(crate) struct Session {
    transport: Arc<Transport>,
    routes: Arc<Routes>,
    identity: Arc<Identity>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// Names the topics that the settings should list, and what a consumer wants of each, at the time they are sent.
pub(crate) type Topics = Arc<dyn Fn() -> Vec<(String, v2::FilterExpression)> + Send + Sync>;

/// What a client says on its telemetry stream, and what it listens to there.
#[derive(Clone)]
pub(crate) struct Talk {
    pub topics: Topics,
    /// The topics have changed: settings are sent again.
    pub changed: Arc<Notify>,
    /// Takes the broker's questions about half messages; without it they are passed over.
    pub checks: Option<mpsc::Sender<v2::RecoverOrphanedTransactionCommand>>,
}

impl Talk {
    /// Of a client that only names topics, once per stream.
    pub(crate) fn about(topics: Topics) -> Self {
        Self { topics, changed: Arc::default(), checks: None }
    }
}

impl Session {
    /// Starts both tasks on the current runtime.
    pub(crate) fn start(transport: Arc<Transport>, routes: Arc<Routes>, identity: Arc<Identity>, talk: Talk) -> Self {
        let beats = tokio::spawn(keep_beating(transport.clone(), routes.clone(), identity.clone()));
        let talks = tokio::spawn(keep_talking(transport.clone(), routes.clone(), identity.clone(), talk));
        let tasks = [AbortOnDropHandle::new(beats), AbortOnDropHandle::new(talks)];
        Self { transport, routes, identity, _tasks: tasks }
    }

    /// Tells every node that this client goes. Best effort, at most a second.
    pub(crate) async fn say_farewell(&self) {
        let farewells = self.routes.broker_addresses().into_iter().map(|address| async move {
            let connection = self.transport.connect(&address, SHORT_CALL).await.ok()?;
            let request = v2::NotifyClientTerminationRequest { group: self.identity.group.clone() };
            let mut client = messaging(&connection);
            client.notify_client_termination(self.identity.request(request, SHORT_CALL)).await.ok()
        });
        let all = futures_util::future::join_all(farewells);
        if tokio::time::timeout(SHORT_CALL, all).await.is_err() {
            tracing::debug!(client_id = %self.identity.client_id, "farewell not heard by all");
        }
    }
}

async fn keep_beating(transport: Arc<Transport>, routes: Arc<Routes>, identity: Arc<Identity>) {
    loop {
        let beats = routes.broker_addresses().into_iter().map(|address| beat(&transport, &identity, address));
        futures_util::future::join_all(beats).await;
        tokio::time::sleep(HEARTBEAT).await;
    }
}

async fn beat(transport: &Transport, identity: &Identity, address: Arc<str>) {
    let heartbeat = async {
        let connection = transport.connect(&address, SHORT_CALL).await?;
        let request = v2::HeartbeatRequest { group: identity.group.clone(), client_type: identity.client_type.into() };
        let mut client = messaging(&connection);
        client.heartbeat(identity.request(request, SHORT_CALL)).await.map_err(|status| status.to_string())
    };
    match tokio::time::timeout(SHORT_CALL, heartbeat).await {
        Ok(Ok(_)) => transport.clear(&address),
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "heartbeat failed");
            transport.blame(&address, Fault::Failed);
        }
        Err(_) => transport.blame(&address, Fault::Failed),
    }
}

async fn keep_talking(transport: Arc<Transport>, routes: Arc<Routes>, identity: Arc<Identity>, about: Talk) {
    loop {
        if let Err(error) = talk(&transport, &routes, &identity, &about).await {
            tracing::debug!(client_id = %identity.client_id, %error, "telemetry stream ended");
        }
        tokio::time::sleep(REOPEN).await;
    }
}

/// One telemetry stream, from its opening to its end.
async fn talk(transport: &Transport, routes: &Routes, identity: &Arc<Identity>, about: &Talk) -> Result<(), String> {
    let addresses = routes.broker_addresses();
    let Some(address) = transport.choose(&addresses, &[]) else { return Ok(()) };
    let connecting = transport.connect(&address, SHORT_CALL).await;
    let connection = connecting.inspect_err(|_| transport.blame(&address, Fault::Failed))?;
    let said = (identity.clone(), about.clone(), false);
    let outgoing = futures_util::stream::unfold(said, |(identity, about, again)| async move {
        if again {
            about.changed.notified().await;
        }
        let settings = identity.settings((about.topics)());
        Some((settings, (identity, about, true)))
    });
    let mut client = messaging(&connection);
    let answer = client.telemetry(identity.open_request(outgoing)).await.map_err(|status| status.to_string())?;
    let mut incoming = answer.into_inner();
    while let Some(command) = incoming.message().await.map_err(|status| status.to_string())? {
        match command.command {
            Some(Command::Settings(_)) => tracing::debug!(%address, "settings agreed"),
            Some(Command::ReconnectEndpointsCommand(_)) => return Ok(()),
            Some(Command::RecoverOrphanedTransactionCommand(question)) => {
                if let Some(checks) = &about.checks
                    && checks.try_send(question).is_err()
                {
                    tracing::debug!(%address, "too many checks of half messages wait; the broker asks again");
                }
            }
            // Requests for a stack trace or a trial consumption are for clients that have such a thing.
            Some(_) | None => {}
        }
    }
    Ok(())
}
