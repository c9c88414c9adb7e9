//! Tells name servers about this node's broker group, and keeps the list of live nodes that routes are made of.
//!
//! Every node registers with every name server: at once when leadership, live nodes or topics change, else each second as a heartbeat.
//! Name servers do not talk to each other and forget an entry after ten seconds, so a node that is cut off from one is served by
//! the others. A name server that does not answer delays nobody else.

mod addresses;
mod live;

use std::{
    sync::{Arc, RwLock},
    time::Duration,
};

use quorate_proto::{
    doors::{Net, connector},
    namesrv::{ListenerRoute, RegisterRequest, TopicRoute, UnregisterRequest, name_server_client::NameServerClient},
    time::Clock,
    v2::Code,
};
use quorate_raft::{Group, GroupStatus};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

pub(crate) use self::addresses::{Addresses, ListenerName};
use self::{
    addresses::Lists,
    live::{LiveNodes, Seen},
};
use crate::{
    config::BrokerConfig,
    metrics::Metrics,
    replica::{Replica, Shared},
};

/// How often presence is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often an unchanged registration is repeated.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Longest wait for a name server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The same at the end of this node.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(300);

/// Addresses of the live nodes, leader first, for each listener. Cheap to clone; read by every route.
#[derive(Clone)]
pub(crate) struct Live(Arc<RwLock<Arc<Lists>>>);

impl Live {
    /// Knows this node alone, until the registrar has looked.
    pub fn new(own: &Addresses) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(Lists::of(&[own])))))
    }

    /// The list now, for clients that came in by `listener`.
    pub fn addresses(&self, listener: &ListenerName) -> Arc<[String]> {
        self.lists().list(listener)
    }

    fn lists(&self) -> Arc<Lists> {
        self.0.read().expect("no panic while held").clone()
    }

    fn publish(&self, listed: &[&Addresses]) -> bool {
        let mut now = self.0.write().expect("no panic while held");
        let lists = Lists::of(listed).or_as_before(&now);
        let changed = **now != lists;
        if changed {
            *now = lists.into();
        }
        changed
    }
}

/// The registrar of one node.
pub(crate) struct Registrar {
    /// The door to name servers.
    pub net: Arc<dyn Net>,
    /// The broker group.
    pub group: Group<Replica>,
    /// The topics.
    pub shared: Shared,
    /// What it publishes.
    pub live: Live,
    /// Where clients find this node.
    pub addresses: Addresses,
    /// Monotonic time for presence.
    pub clock: Arc<dyn Clock>,
    /// Name servers, names, hysteresis.
    pub config: Arc<BrokerConfig>,
    /// Where failures are counted.
    pub metrics: Arc<Metrics>,
    /// Message types by topic kind; the table is the service's.
    pub accepted_types: fn(crate::machine::TopicKind) -> Vec<i32>,
}

impl Registrar {
    /// Works until `shutdown`, then takes this node off the name servers.
    pub async fn run(self, shutdown: CancellationToken) {
        let (requests, _) = watch::channel(None);
        let mut servers = JoinSet::new();
        for address in &self.config.network.name_servers {
            servers.spawn(self.name_server(address.clone()).keep_registered(requests.subscribe()));
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.publish(&requests) => {}
        }
        // Tells the tasks to say goodbye and end.
        drop(requests);
        while let Some(ended) = servers.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    /// Looks at the group again and again, and publishes the live nodes and the registration.
    async fn publish(&self, requests: &watch::Sender<Option<RegisterRequest>>) {
        let mut nodes = LiveNodes::default();
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leadership = self.group.leader();
        let mut topics = self.shared.waiters().topics_changed();
        let mut published: Option<Instant> = None;
        loop {
            let changed = tokio::select! {
                _ = ticks.tick() => false,
                Ok(()) = leadership.changed() => true,
                Ok(()) = topics.changed() => true,
            };
            let status = self.group.status();
            let leader = status.leader.map(|leader| leader.number());
            nodes.update(self.clock.monotonic(), seen(&status), leader, &self.config.route);
            let moved = self.live.publish(&nodes.listed());
            if changed || moved || published.is_none_or(|at| at.elapsed() >= HEARTBEAT) {
                published = Some(Instant::now());
                // A node that reaches no peer takes no clients, so it must not be found.
                let isolated = leadership.borrow().isolated;
                requests.send_replace((!isolated).then(|| self.request(&status)));
            }
        }
    }

    fn name_server(&self, address: String) -> NameServer {
        // The connector goes to its address, whatever the URI says.
        let channel = Endpoint::from_static("http://name-server")
            .connect_timeout(ANSWER_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .connect_with_connector_lazy(connector(self.net.clone(), vec![address.clone()]));
        let node = &self.config.node;
        NameServer {
            address,
            client: NameServerClient::new(channel),
            goodbye: UnregisterRequest {
                cluster: node.cluster.clone(),
                group: node.group.clone(),
                number: node.number.into(),
            },
            metrics: self.metrics.clone(),
        }
    }

    fn request(&self, status: &GroupStatus) -> RegisterRequest {
        let node = &self.config.node;
        let route = |topic: &crate::machine::Topic| TopicRoute {
            name: topic.name().to_string(),
            queues: u32::from(topic.queues()),
            accept_message_types: (self.accepted_types)(topic.kind()),
        };
        let lists = self.live.lists();
        let listeners = lists.named().map(|(name, live)| ListenerRoute { name: name.to_owned(), live: live.to_vec() });
        RegisterRequest {
            cluster: node.cluster.clone(),
            group: node.group.clone(),
            number: node.number.into(),
            term: status.term.0,
            leader: status.leader == Some(status.id),
            client_address: self.addresses.own.clone(),
            live: lists.list(&None).to_vec(),
            listeners: listeners.collect(),
            // Grows with everything that is applied, and is the same on all nodes.
            topics_version: status.applied.map_or(0, |applied| applied.index.0 + 1),
            topics: self.shared.read(|machine| machine.topics().map(route).collect()),
        }
    }
}

/// One name server, as this node deals with it.
struct NameServer {
    address: String,
    client: NameServerClient<Channel>,
    goodbye: UnregisterRequest,
    metrics: Arc<Metrics>,
}

impl NameServer {
    /// Sends each registration that is published; of several published while one is under way, the latest. Says goodbye when there
    /// is nothing to register any more or the publisher ends.
    async fn keep_registered(mut self, mut requests: watch::Receiver<Option<RegisterRequest>>) {
        let (mut reachable, mut registered) = (true, false);
        let metrics = self.metrics.clone();
        // Counts this name server as long as it has the latest registration.
        let mut held = None;
        while requests.changed().await.is_ok() {
            let request = requests.borrow_and_update().clone();
            let Some(request) = request else {
                held = None;
                if std::mem::take(&mut registered) {
                    self.say_goodbye().await;
                }
                continue;
            };
            let problem = self.register(request).await.err();
            match (&problem, reachable) {
                (None, false) => info!(name_server = self.address, "registered again"),
                (Some(problem), true) => {
                    warn!(name_server = self.address, problem, "name server did not take the registration");
                }
                (None, true) | (Some(_), false) => {}
            }
            reachable = problem.is_none();
            registered |= reachable;
            held = held.filter(|_| reachable).or_else(|| reachable.then(|| metrics.registered.hold()));
        }
        drop(held);
        if registered && reachable {
            self.say_goodbye().await;
        }
    }

    /// Best effort: an entry that stays expires.
    async fn say_goodbye(&mut self) {
        let goodbye = self.client.unregister(self.goodbye.clone());
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
    }

    async fn register(&mut self, request: RegisterRequest) -> Result<(), String> {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.client.register(request)).await;
        let problem = match answer {
            Ok(Ok(answer)) if answer.get_ref().code == Code::Ok as i32 => return Ok(()),
            Ok(Ok(answer)) => answer.into_inner().message,
            Ok(Err(status)) => status.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        self.metrics.registrations_failed.add(1);
        Err(problem)
    }
}

/// The voters that have said where clients find them. A learner has most of the log to come and may never vote: clients learn of it when it
/// does.
fn seen(status: &GroupStatus) -> Vec<Seen> {
    let member = |member: &quorate_raft::MemberStatus| {
        let info = member.info.as_deref().filter(|info| !info.is_empty())?;
        Some(Seen { number: member.id.number(), addresses: Addresses::parse(info), alive: member.alive })
    };
    status.members.iter().filter(|member| member.voter).filter_map(member).collect()
}
