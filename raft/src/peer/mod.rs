//! How the nodes of a group talk: framed streams over the [`Network`] door, one connection per purpose.
//!
//! ```text
//! control  heartbeats, votes, cards   one shared connection per peer, many requests at once, never behind bulk
//! append   entries                    one per replication stream, pipelined, a window of unacknowledged bytes
//! image    the Raft snapshot          one per transfer
//! call     the layer above            one shared connection per peer, many requests at once
//! ```
//! Every connection starts with a handshake in which both sides show their [`Card`]: cluster, identity, segment size. What
//! does not fit is refused there, with words. Cards are shown again a few times a second, so that every node knows who is
//! alive, who leads, who is empty, and so that two nodes that applied different entries under one index find out and stop.
//! Nothing here waits without a deadline.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{
    config::GroupConfig,
    fatal::Fatal,
    log::Log,
    network::Network,
    types::{LogId, NodeId, Term},
};

pub(crate) mod append;
pub(crate) mod client;
pub(crate) mod codec;
pub(crate) mod dial;
pub(crate) mod mux;
pub(crate) mod server;
pub(crate) mod wire;

use codec::{CALL_BYTES_MAX, CONTROL_BYTES_MAX, Card, Class, HANDSHAKE_BYTES_MAX, Kind, Stage};
use mux::{CallFailure, Mux};

/// What a node says about itself, asked each time.
pub(crate) type CardSource = Arc<dyn Fn() -> Card + Send + Sync>;

/// What is known about another node.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub card: Card,
    pub at: Instant,
}

/// Another node, by its configured number. Who answers there may change, when its directory is wiped.
pub(crate) struct Peer {
    pub number: u16,
    address: Mutex<String>,
    /// The address is that of the membership, and not changed by what the node says of itself.
    is_member: AtomicBool,
    seen: Mutex<Option<Seen>>,
    control: Mux,
    call: Mux,
}

impl Peer {
    /// Where it is reached.
    pub(crate) fn address(&self) -> String {
        self.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The latest card and when it came.
    pub(crate) fn seen(&self) -> Option<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All other nodes this node knows of, and what it needs to reach them.
pub(crate) struct Peers {
    pub config: Arc<GroupConfig>,
    pub me: NodeId,
    network: Arc<dyn Network>,
    card: CardSource,
    log: Log,
    fatal: Fatal,
    started: Instant,
    /// Who sent entries or a heartbeat as leader last, and when; and the same of the leader before.
    led: Mutex<[Option<(Term, NodeId, Instant)>; 2]>,
    /// The latest term for which votes were asked, when first, and whether in spite of leases.
    campaign: Mutex<Option<(Term, Instant, bool)>>,
    /// Control connections that other nodes have opened to this one, and when something came over them last.
    incoming: Mutex<BTreeMap<u64, (NodeId, Instant)>>,
    /// Moves when a connection that another node had opened is gone.
    ended: watch::Sender<u64>,
    refusals: Mutex<BTreeSet<String>>,
    table: Mutex<BTreeMap<u16, Arc<Peer>>>,
}

/// Different refusals that are worth a warning each.
const REFUSALS_MAX: usize = 64;

impl Peers {
    pub(crate) fn new(
        config: Arc<GroupConfig>,
        me: NodeId,
        network: Arc<dyn Network>,
        card: CardSource,
        log: Log,
        fatal: Fatal,
    ) -> Arc<Self> {
        let started = Instant::now();
        let (led, campaign, incoming, ended, refusals, table) = Default::default();
        let peers =
            Self { config, me, network, card, log, fatal, started, led, campaign, incoming, ended, refusals, table };
        for member in peers.config.members.clone() {
            if member.number != me.number() {
                peers.peer(member.number, &member.peer_address);
            }
        }
        Arc::new(peers)
    }

    /// The peer of this number, made known with this address if it is new. The configuration's address leads, then the membership's.
    pub(crate) fn peer(&self, number: u16, address: &str) -> Arc<Peer> {
        self.peer_at(number, address, false)
    }

    /// Notes where the membership says that a member is reached, so that nodes which are not configured are found too.
    pub(crate) fn learn(&self, number: u16, address: &str) {
        if number != self.me.number() && !address.is_empty() {
            self.peer_at(number, address, true);
        }
    }

    fn peer_at(&self, number: u16, address: &str, is_member: bool) -> Arc<Peer> {
        let address = self.config.address_of(number).unwrap_or(address);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = table.entry(number).or_insert_with(|| {
            Arc::new(Peer {
                number,
                address: Mutex::new(address.to_owned()),
                is_member: AtomicBool::new(false),
                seen: Mutex::new(None),
                control: Mux::new(Class::Control, CONTROL_BYTES_MAX),
                call: Mux::new(Class::Call, CALL_BYTES_MAX),
            })
        });
        let mut known = peer.address.lock().unwrap_or_else(PoisonError::into_inner);
        if is_member {
            peer.is_member.store(true, Ordering::Relaxed);
        }
        if *known != address && (is_member || !peer.is_member.load(Ordering::Relaxed)) {
            *known = address.to_owned();
        }
        drop(known);
        peer.clone()
    }

    /// All known peers, by number.
    pub(crate) fn all(&self) -> Vec<Arc<Peer>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The peer of this number, if it is known.
    pub(crate) fn known(&self, number: u16) -> Option<Arc<Peer>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// This node's card.
    pub(crate) fn my_card(&self) -> Card {
        (self.card)()
    }

    /// The card of this number, if it is not older than `age`.
    pub(crate) fn fresh(&self, number: u16, age: Duration) -> Option<Card> {
        let seen = self.known(number)?.seen()?;
        (seen.at.elapsed() <= age).then_some(seen.card)
    }

    /// When a peer was last heard; this node's start if none ever was. `None` if there are no peers.
    pub(crate) fn last_heard(&self) -> Option<Instant> {
        let peers = self.all();
        if peers.is_empty() {
            return None;
        }
        let latest = peers.iter().filter_map(|peer| Some(peer.seen()?.at)).max();
        Some(latest.unwrap_or(self.started).max(self.started))
    }

    /// Notes a card, and stops this node if it and the other applied different entries under the same index.
    pub(crate) fn observe(&self, card: Card) {
        if card.node.number() == self.me.number() || card.cluster != self.config.cluster {
            return;
        }
        self.compare(&card);
        let peer = self.peer(card.node.number(), &card.peer_address);
        *peer.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Seen { card, at: Instant::now() });
    }

    /// Says once why a peer was refused: it will try again many times.
    pub(crate) fn report_refusal(&self, reason: &str) {
        let mut reported = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() < REFUSALS_MAX && reported.insert(reason.to_owned()) {
            tracing::warn!(%reason, "peer refused");
        } else {
            tracing::debug!(%reason, "peer refused");
        }
    }

    /// Any sign of life of a node whose card is known.
    pub(crate) fn touch(&self, node: NodeId) {
        if let Some(peer) = self.known(node.number()) {
            let mut seen = peer.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(seen) = seen.as_mut().filter(|seen| seen.card.node == node) {
                seen.at = Instant::now();
            }
        }
    }

    /// Notes that a leader has spoken as one.
    pub(crate) fn note_leader(&self, term: Term, node: NodeId) {
        let mut led = self.led.lock().unwrap_or_else(PoisonError::into_inner);
        if led[0].is_some_and(|(led_term, leader, _)| (led_term, leader) != (term, node)) {
            led[1] = led[0];
        }
        led[0] = Some((term, node, Instant::now()));
    }

    /// Notes that votes are asked for a term.
    pub(crate) fn note_campaign(&self, term: Term, in_spite_of_leases: bool) {
        let mut campaign = self.campaign.lock().unwrap_or_else(PoisonError::into_inner);
        if campaign.is_none_or(|(known, _, _)| known < term) {
            *campaign = Some((term, Instant::now(), in_spite_of_leases));
        }
    }

    /// When votes for this term were first asked, and whether in spite of leases.
    pub(crate) fn campaign(&self, term: Term) -> Option<(Instant, bool)> {
        let campaign = *self.campaign.lock().unwrap_or_else(PoisonError::into_inner);
        campaign.filter(|(known, _, _)| *known == term).map(|(_, at, in_spite)| (at, in_spite))
    }

    /// Whether this leader has spoken as one within `age`. What openraft remembers of a leader does not age: it is the
    /// vote, which survives the leader's death and this node's restart.
    pub(crate) fn is_led_by(&self, term: Term, node: NodeId, age: Duration) -> bool {
        self.led_at(term, node).is_some_and(|at| at.elapsed() <= age)
    }

    /// When this leader spoke as one last.
    pub(crate) fn led_at(&self, term: Term, node: NodeId) -> Option<Instant> {
        let led = *self.led.lock().unwrap_or_else(PoisonError::into_inner);
        let known = led.into_iter().flatten().find(|(led_term, leader, _)| *led_term == term && *leader == node);
        known.map(|(_, _, at)| at)
    }

    /// Notes a connection that a node has opened to this one, until the answer is dropped.
    pub(crate) fn incoming(&self, node: NodeId, class: Class) -> Incoming<'_> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let id = incoming.last_key_value().map_or(0, |(id, _)| id + 1);
        if class == Class::Control {
            incoming.insert(id, (node, Instant::now()));
        }
        Incoming { peers: self, id: (class == Class::Control).then_some(id) }
    }

    /// Whether this node holds an open control connection to here that is in use. Cards alone come over it every other
    /// heartbeat, so one that has been silent for longer is left over from a life that ended without a word.
    pub(crate) fn is_connected_from(&self, node: NodeId) -> bool {
        let age = self.config.heartbeat * 6;
        let incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        incoming.values().any(|(from, at)| *from == node && at.elapsed() <= age)
    }

    /// Changes each time a connection that another node had opened is gone, or [`Peers::look_again`] is called.
    pub(crate) fn ended(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// Wakes whoever watches [`Peers::ended`].
    pub(crate) fn look_again(&self) {
        self.ended.send_modify(|count| *count += 1);
    }

    /// Tries to connect to where a node listens, says nothing, and goes away again.
    ///
    /// # Errors
    /// As connecting does; `TimedOut` if nothing answered in time.
    pub(crate) async fn knock(&self, peer: &Peer, within: Duration) -> std::io::Result<()> {
        let address = peer.address();
        match tokio::time::timeout(within, self.network.connect(&address)).await {
            Ok(connected) => connected.map(drop),
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    fn compare(&self, card: &Card) {
        let mine = self.my_card();
        let (Some((id, chain)), Some((applied, _))) = (card.applied, mine.applied) else {
            return;
        };
        if id.index > applied.index || card.stage != Stage::Member || mine.stage != Stage::Member {
            return;
        }
        // A node that has formed a group of its own under the same cluster id holds another log by right.
        if !card.voters.iter().any(|voter| mine.voters.contains(voter)) {
            return;
        }
        if let Some(reason) = diverged(&self.log, card.node, id, chain) {
            self.fatal.set(reason);
        }
    }

    /// The card of whoever answers for this number at this address, which need not be known yet.
    ///
    /// # Errors
    /// It cannot be reached, or does not fit: another cluster, number or segment size, in words.
    pub(crate) async fn meet(&self, number: u16, address: &str, deadline: Instant) -> Result<Card, dial::DialError> {
        let to = dial::Target { address: address.to_owned(), number, expected: None };
        Ok(dial::handshake(self, to, Class::Control, HANDSHAKE_BYTES_MAX, deadline).await?.1)
    }

    /// A request on the control connection to the node that is meant, and nobody else.
    pub(crate) async fn control(
        &self,
        node: NodeId,
        address: &str,
        kind: Kind,
        body: bytes::Bytes,
        deadline: Instant,
    ) -> Result<bytes::Bytes, CallFailure> {
        let peer = self.peer(node.number(), address);
        let answer = peer.control.request(self, &peer, Some(node), kind, body, deadline, true).await;
        if answer.is_ok() {
            self.touch(node);
        }
        answer
    }

    /// A request of the layer above.
    pub(crate) async fn call(
        &self,
        node: NodeId,
        request: bytes::Bytes,
        deadline: Instant,
    ) -> Result<bytes::Bytes, CallFailure> {
        let Some(peer) = self.known(node.number()) else {
            return Err(CallFailure::NotSent(format!("node {node} is not known")));
        };
        peer.call.request(self, &peer, Some(node), Kind::Call, request, deadline, false).await
    }

    /// A part of a file that another node has, over the connection for large answers.
    pub(crate) async fn borrow(
        &self,
        node: NodeId,
        request: bytes::Bytes,
        deadline: Instant,
    ) -> Result<bytes::Bytes, CallFailure> {
        let Some(peer) = self.known(node.number()) else {
            return Err(CallFailure::NotSent(format!("node {node} is not known")));
        };
        peer.call.request(self, &peer, Some(node), Kind::Lend, request, deadline, true).await
    }

    /// Shows cards with a peer, whoever it is now.
    pub(crate) async fn exchange_cards(&self, peer: &Peer, deadline: Instant) -> Result<(), CallFailure> {
        let mine = self.my_card().encode();
        let answer = peer.control.request(self, peer, None, Kind::Card, mine, deadline, true).await?;
        match Card::decode(answer) {
            Ok(card) => self.observe(card),
            Err(malformed) => return Err(CallFailure::Lost(malformed.to_string())),
        }
        Ok(())
    }
}

/// A connection that another node has opened; dropped with it.
pub(crate) struct Incoming<'a> {
    peers: &'a Peers,
    id: Option<u64>,
}

impl Incoming<'_> {
    /// Something came over it.
    pub(crate) fn touch(&self) {
        let Some(id) = self.id else { return };
        if let Some((_, at)) = self.peers.incoming.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id) {
            *at = Instant::now();
        }
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.peers.incoming.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        self.peers.look_again();
    }
}

/// Why another node's applied entry cannot be of the same log as this node's, if so.
fn diverged(log: &Log, node: NodeId, id: LogId, chain: u32) -> Option<String> {
    let ours = log.chain_at(id.index).ok()??;
    if ours == chain {
        return None;
    }
    Some(format!(
        "node {node} has applied entry {id} with chain {chain:08x}, here it is {ours:08x}: one of the two logs is damaged; \
         keep both data directories, compare them, and replace the wrong node"
    ))
}
