//! What the doctor sees: each address resolved, connected to and asked, from this place.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use quorate_client::{CallError, Client, ClientConfig, ClusterStatusResponse, Doors};
use tokio::{net::TcpStream, time::timeout};

/// Longest wait for a name to resolve and for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for an answer, all attempts together.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything that was seen.
#[derive(Debug, Default)]
pub struct Facts {
    /// The endpoints given, in order, and each address that some route names beside them.
    pub visits: Vec<Visit>,
    /// How many of the visits are endpoints.
    pub endpoints: usize,
}

/// What came of one address.
#[derive(Debug)]
pub struct Visit {
    /// `host:port`, as given or as a route names it.
    pub address: String,
    /// How far it was possible to get.
    pub reached: Reached,
}

/// How far it was possible to get.
#[derive(Debug)]
pub enum Reached {
    /// The name means nothing here.
    NotResolved(String),
    /// No connection.
    NotConnected(String),
    /// A connection, and no answer worth the name.
    NotAnswered(CallError),
    /// A node.
    Node(Box<Node>),
}

/// A node that answered.
#[derive(Debug)]
pub struct Node {
    /// The group as it sees it.
    pub status: ClusterStatusResponse,
    /// The addresses that clients which come in here are given.
    pub route: Vec<String>,
    /// What was asked for the route: a topic, or the admin call if there is no topic.
    pub asked: Option<String>,
    /// This machine's clock when the answer was made, as well as that can be known.
    pub here_ms: u64,
    /// How far it may be off.
    pub uncertain_ms: u64,
}

/// Visits the endpoints, and whatever their routes name.
pub async fn examine(endpoints: &[String]) -> Facts {
    let mut facts = Facts::default();
    let mut next = endpoints.to_vec();
    while let Some(address) = next.pop() {
        if facts.visits.iter().any(|visit| visit.address == address) {
            continue;
        }
        let reached = reach(&address).await;
        // Routes of routes: a node of the group may give away other addresses than the one that named it.
        if let Reached::Node(node) = &reached {
            next.splice(0..0, node.route.iter().rev().cloned());
        }
        facts.visits.push(Visit { address, reached });
    }
    let place = |address: &String| endpoints.iter().position(|endpoint| endpoint == address).unwrap_or(usize::MAX);
    facts.visits.sort_by_key(|visit| place(&visit.address));
    facts.endpoints = facts.visits.iter().filter(|visit| endpoints.contains(&visit.address)).count();
    facts
}

async fn reach(address: &str) -> Reached {
    let found = match timeout(CONNECT_TIMEOUT, tokio::net::lookup_host(address)).await {
        Ok(Ok(found)) => found.collect::<Vec<SocketAddr>>(),
        Ok(Err(error)) => return Reached::NotResolved(error.to_string()),
        Err(_) => return Reached::NotResolved(format!("no answer within {CONNECT_TIMEOUT:?}")),
    };
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(&found[..])).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Reached::NotConnected(error.to_string()),
        Err(_) => return Reached::NotConnected(format!("no connection within {CONNECT_TIMEOUT:?}")),
    }
    match ask(address).await {
        Ok(node) => Reached::Node(Box::new(node)),
        Err(error) => Reached::NotAnswered(error),
    }
}

async fn ask(address: &str) -> Result<Node, CallError> {
    let config = ClientConfig { total_timeout: ANSWER_TIMEOUT, ..ClientConfig::new(vec![address.to_owned()]) };
    let admin = Client::new(config, Doors::system())?.admin();
    // The first answer also pays for the connection; the second one's time says how exact its clock is.
    admin.cluster_status().await?;
    let before = now_ms();
    let status = admin.cluster_status().await?;
    let after = now_ms();
    // Without a leader nobody lists topics; the admin call's route is as good then.
    let topic = admin.list_topics().await.ok().and_then(|topics| topics.into_iter().next()).map(|topic| topic.name);
    let route = match &topic {
        Some(topic) => admin.route(topic).await.ok(),
        None => None,
    };
    Ok(Node {
        asked: route.is_some().then_some(topic).flatten(),
        route: route.unwrap_or_else(|| status.route.clone()),
        status,
        here_ms: before + after.saturating_sub(before) / 2,
        uncertain_ms: after.saturating_sub(before),
    })
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
