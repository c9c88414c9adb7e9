//! Where topics live: asked once per topic, refreshed every 30 s, and at once when a call found an address dead.
//!
//! A route is answered by any broker node and by any name server. During a failover the first refresh may still bring the old list, so a
//! failure starts a quick series (now, after 1 s, 2 s, 4 s …) that runs out into the usual interval.

use std::{
    collections::HashMap,
    sync::{
        Arc, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use quorate_proto::v2::{self, Permission};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    error::{CallError, check_status},
    group_hash::queue_of_group,
    identity::{Identity, resource},
    transport::{Attempts, CallLimits, Transport, messaging},
};

/// RocketMQ's interval.
const REFRESH: Duration = Duration::from_secs(30);
/// The first step of the series after a failure, and the shortest time between two refreshes.
const REFRESH_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// A broker group that serves a topic.
#[derive(Debug, PartialEq)]
pub(crate) struct Broker {
    pub(crate) name: String,
    /// Its live nodes, leader first.
    pub(crate) addresses: Vec<Arc<str>>,
    wire: v2::Broker,
}

/// One queue of a topic, as the wire has it.
#[derive(Debug, PartialEq)]
struct Queue {
    broker: usize,
    wire: v2::MessageQueue,
}

/// Where one topic lives.
#[derive(Debug)]
pub(crate) struct Route {
    brokers: Vec<Broker>,
    queues: Vec<Queue>,
    writable: Vec<usize>,
    turn: AtomicUsize,
}

impl Route {
    /// Reads an answer. Queues without a usable broker are dropped.
    fn from_wire(queues: Vec<v2::MessageQueue>) -> Self {
        let (mut brokers, mut kept): (Vec<Broker>, Vec<Queue>) = (Vec::new(), Vec::new());
        for queue in queues {
            let Some(wire) = &queue.broker else { continue };
            let addresses: Vec<Arc<str>> =
                wire.endpoints.iter().flat_map(|endpoints| &endpoints.addresses).map(text).collect();
            if addresses.is_empty() {
                continue;
            }
            let known = brokers.iter().position(|broker| broker.name == wire.name);
            let broker = known.unwrap_or_else(|| {
                brokers.push(Broker { name: wire.name.clone(), addresses, wire: wire.clone() });
                brokers.len() - 1
            });
            kept.push(Queue { broker, wire: queue });
        }
        let is_writable = |queue: &Queue| matches!(queue.wire.permission(), Permission::Write | Permission::ReadWrite);
        let writable =
            kept.iter().enumerate().filter(|(_, queue)| is_writable(queue)).map(|(place, _)| place).collect();
        Self { brokers, queues: kept, writable, turn: AtomicUsize::new(0) }
    }

    /// The broker and queue id a message goes to: by its group's hash, else in turn. The broker chooses the queue itself in the end, so
    /// the id is a wish. `None` if no queue may be written.
    pub(crate) fn queue_to_write(&self, message_group: Option<&str>) -> Option<(&Broker, i32)> {
        if self.writable.is_empty() {
            return None;
        }
        let place = match message_group {
            Some(group) => queue_of_group(group, self.writable.len()),
            None => self.turn.fetch_add(1, Ordering::Relaxed) % self.writable.len(),
        };
        let queue = &self.queues[self.writable[place]];
        Some((&self.brokers[queue.broker], queue.wire.id))
    }

    /// The broker to receive from, in turn, and a queue that names it. The broker picks among all its queues.
    pub(crate) fn queue_to_read(&self, topic: &str) -> Option<(&Broker, v2::MessageQueue)> {
        if self.brokers.is_empty() {
            return None;
        }
        let broker = &self.brokers[self.turn.fetch_add(1, Ordering::Relaxed) % self.brokers.len()];
        let queue = v2::MessageQueue {
            topic: Some(resource(topic)),
            id: -1,
            permission: Permission::ReadWrite.into(),
            broker: Some(broker.wire.clone()),
            accept_message_types: Vec::new(),
        };
        Some((broker, queue))
    }

    /// Broker name and id of every queue that may be read, in order.
    pub(crate) fn readable(&self) -> impl Iterator<Item = (&str, i32)> {
        let may = |queue: &&Queue| matches!(queue.wire.permission(), Permission::Read | Permission::ReadWrite);
        self.queues.iter().filter(may).map(|queue| (self.brokers[queue.broker].name.as_str(), queue.wire.id))
    }

    /// A queue by the name of its broker and its id, as the wire has it.
    pub(crate) fn queue(&self, broker: &str, id: i32) -> Option<v2::MessageQueue> {
        let is_it = |queue: &&Queue| queue.wire.id == id && self.brokers[queue.broker].name == broker;
        self.queues.iter().find(is_it).map(|queue| queue.wire.clone())
    }

    /// The broker of that name, else the first.
    pub(crate) fn broker(&self, name: &str) -> Option<&Broker> {
        self.brokers.iter().find(|broker| broker.name == name).or(self.brokers.first())
    }

    /// All addresses, each once.
    fn addresses(&self) -> impl Iterator<Item = &Arc<str>> {
        self.brokers.iter().flat_map(|broker| &broker.addresses)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.brokers == other.brokers && self.queues == other.queues
    }
}

fn text(address: &v2::Address) -> Arc<str> {
    match address.host.contains(':') && !address.host.starts_with('[') {
        true => format!("[{}]:{}", address.host, address.port).into(),
        false => format!("{}:{}", address.host, address.port).into(),
    }
}

/// The addresses of an answered route, each once, in its order.
pub(crate) fn addresses(queues: Vec<v2::MessageQueue>) -> Vec<String> {
    let mut addresses: Vec<String> = Vec::new();
    for address in Route::from_wire(queues).addresses() {
        if !addresses.iter().any(|known| known.as_str() == &**address) {
            addresses.push(address.to_string());
        }
    }
    addresses
}

/// The routes a client knows.
pub(crate) struct Routes {
    shared: Arc<Shared>,
    _refresher: AbortOnDropHandle<()>,
}

struct Shared {
    transport: Arc<Transport>,
    identity: Arc<Identity>,
    limits: CallLimits,
    endpoints: Vec<Arc<str>>,
    routes: RwLock<HashMap<String, Arc<Route>>>,
    asking: tokio::sync::Mutex<()>,
    failure: Notify,
}

impl Routes {
    /// Starts the refresher on the current runtime.
    pub(crate) fn start(
        transport: Arc<Transport>,
        identity: Arc<Identity>,
        limits: CallLimits,
        endpoints: Vec<Arc<str>>,
    ) -> Self {
        let shared = Arc::new(Shared {
            transport,
            identity,
            limits,
            endpoints,
            routes: RwLock::default(),
            asking: tokio::sync::Mutex::default(),
            failure: Notify::new(),
        });
        let refresher = tokio::spawn(refresh(shared.clone()));
        Self { shared, _refresher: AbortOnDropHandle::new(refresher) }
    }

    /// The route of a topic, asked for if not known yet.
    ///
    /// # Errors
    /// As the route call ended; `Refused` with 40402 if the topic does not exist and is not made by itself.
    pub(crate) async fn of(&self, topic: &str) -> Result<Arc<Route>, CallError> {
        if let Some(route) = self.shared.known(topic) {
            return Ok(route);
        }
        let _asking = self.shared.asking.lock().await;
        match self.shared.known(topic) {
            Some(route) => Ok(route),
            None => self.shared.ask(topic).await,
        }
    }

    /// The newest route known, if any.
    pub(crate) fn known(&self, topic: &str) -> Option<Arc<Route>> {
        self.shared.known(topic)
    }

    /// A call found an address dead or a topic gone: refresh now, and for a while more often.
    pub(crate) fn report_failure(&self) {
        self.shared.failure.notify_one();
    }

    /// The addresses of all brokers known, each once, in the order of their routes.
    pub(crate) fn broker_addresses(&self) -> Vec<Arc<str>> {
        self.shared.broker_addresses()
    }
}

impl Shared {
    fn known(&self, topic: &str) -> Option<Arc<Route>> {
        self.routes.read().expect("no holder of this lock panics").get(topic).cloned()
    }

    fn broker_addresses(&self) -> Vec<Arc<str>> {
        let routes = self.routes.read().expect("no holder of this lock panics");
        let mut topics: Vec<_> = routes.iter().collect();
        topics.sort_by_key(|(topic, _)| *topic);
        let mut addresses: Vec<Arc<str>> = Vec::new();
        for address in topics.into_iter().flat_map(|(_, route)| route.addresses()) {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    async fn ask(&self, topic: &str) -> Result<Arc<Route>, CallError> {
        let mut addresses = self.endpoints.clone();
        addresses.extend(self.broker_addresses().into_iter().filter(|address| !self.endpoints.contains(address)));
        let request =
            v2::QueryRouteRequest { topic: Some(resource(topic)), endpoints: Some(wire_endpoints(&self.endpoints)) };
        let mut attempts = Attempts::new(&self.transport, self.limits);
        let answer = loop {
            let attempt = attempts.next(&addresses).await?;
            let mut client = messaging(&attempt.connection);
            let call = client.query_route(self.identity.request(request.clone(), attempt.timeout));
            let answer = attempts.answer(&attempt, call).await.map(tonic::Response::into_inner);
            match answer.and_then(|answer| check_status(answer.status.as_ref()).map(|()| answer)) {
                Ok(answer) => break answer,
                Err(error) => attempts.failed(&attempt, error)?,
            }
        };
        Ok(self.learn(topic, Route::from_wire(answer.message_queues)))
    }

    /// Keeps the old route if nothing changed, and with it the turn.
    fn learn(&self, topic: &str, route: Route) -> Arc<Route> {
        let mut routes = self.routes.write().expect("no holder of this lock panics");
        match routes.get(topic) {
            Some(known) if known.is_same(&route) => known.clone(),
            _ => {
                let route = Arc::new(route);
                routes.insert(topic.to_owned(), route.clone());
                route
            }
        }
    }

    fn forget(&self, topic: &str) {
        self.routes.write().expect("no holder of this lock panics").remove(topic);
    }
}

async fn refresh(shared: Arc<Shared>) {
    let mut interval = REFRESH;
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => interval = (2 * interval).min(REFRESH),
            () = shared.failure.notified() => {
                if interval > REFRESH_AFTER_FAILURE {
                    interval = REFRESH_AFTER_FAILURE;
                } else {
                    // One refresh has just been made: the next step of the series does.
                    tokio::time::sleep(interval).await;
                }
            }
        }
        let mut topics: Vec<String> =
            shared.routes.read().expect("no holder of this lock panics").keys().cloned().collect();
        topics.sort();
        for topic in topics {
            match shared.ask(&topic).await {
                Ok(_) => {}
                Err(error) if error.code() == 40402 => shared.forget(&topic),
                Err(error) => tracing::debug!(%topic, %error, "route not refreshed"),
            }
        }
    }
}

/// Addresses as the wire has them; names and numbers alike.
pub(crate) fn wire_endpoints(addresses: &[Arc<str>]) -> v2::Endpoints {
    let split = |address: &Arc<str>| {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
        v2::Address { host: host.trim_matches(['[', ']']).to_owned(), port: port.parse().unwrap_or(0) }
    };
    let addresses: Vec<v2::Address> = addresses.iter().map(split).collect();
    let is = |parse: fn(&str) -> bool| addresses.iter().all(|address| parse(&address.host));
    let scheme = if is(|host| host.parse::<std::net::Ipv4Addr>().is_ok()) {
        v2::AddressScheme::IPv4
    } else if is(|host| host.parse::<std::net::Ipv6Addr>().is_ok()) {
        v2::AddressScheme::IPv6
    } else {
        v2::AddressScheme::DomainName
    };
    v2::Endpoints { scheme: scheme.into(), addresses }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(broker: &str, id: i32, permission: Permission, addresses: &[&str]) -> v2::MessageQueue {
        let addresses: Vec<Arc<str>> = addresses.iter().map(|address| Arc::from(*address)).collect();
        v2::MessageQueue {
            id,
            permission: permission.into(),
            broker: Some(v2::Broker { name: broker.to_owned(), id: 0, endpoints: Some(wire_endpoints(&addresses)) }),
            ..v2::MessageQueue::default()
        }
    }

    #[test]
    fn messages_go_round_the_writable_queues_and_a_group_stays_on_one() {
        let nodes = ["127.0.0.1:1", "127.0.0.1:2"];
        let route = Route::from_wire(vec![
            queue("g", 0, Permission::ReadWrite, &nodes),
            queue("g", 1, Permission::Read, &nodes),
            queue("g", 2, Permission::Write, &nodes),
            queue("h", 0, Permission::ReadWrite, &[]),
        ]);
        let ids: Vec<i32> = (0..4).filter_map(|_| route.queue_to_write(None).map(|(_, id)| id)).collect();
        assert_eq!(ids, [0, 2, 0, 2]);
        let of_group: Vec<i32> =
            (0..4).filter_map(|_| route.queue_to_write(Some("order-7")).map(|(_, id)| id)).collect();
        assert!(of_group.windows(2).all(|pair| pair[0] == pair[1]) && of_group.len() == 4);
        assert_eq!(route.addresses().map(|address| &**address).collect::<Vec<_>>(), nodes);
        assert!(Route::from_wire(Vec::new()).queue_to_write(None).is_none());
        let two = vec![
            queue("g", 0, Permission::ReadWrite, &nodes),
            queue("h", 0, Permission::ReadWrite, &["127.0.0.1:3", "127.0.0.1:1"]),
        ];
        assert_eq!(addresses(two), ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
    }

    #[test]
    fn addresses_survive_the_wire() {
        let addresses: Vec<Arc<str>> = ["10.0.0.1:8081", "10.0.0.2:8081"].map(Arc::from).to_vec();
        let wire = wire_endpoints(&addresses);
        assert_eq!(wire.scheme(), v2::AddressScheme::IPv4);
        assert_eq!(wire.addresses.iter().map(text).collect::<Vec<_>>(), addresses);
        let wire = wire_endpoints(&["[::1]:8081".into()]);
        assert_eq!((wire.scheme(), &*text(&wire.addresses[0])), (v2::AddressScheme::IPv6, "[::1]:8081"));
        assert_eq!(wire_endpoints(&["broker-1:8081".into()]).scheme(), v2::AddressScheme::DomainName);
    }
}
