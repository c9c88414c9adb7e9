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
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

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

use codec::{CALL_BYTES_MAX, CONTROL_BYTES_MAX, Card, Class, Kind, Stage};
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
    /// Who sent entries or a heartbeat as leader last, and when.
    led: Mutex<Option<(Term, NodeId, Instant)>>,
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
        let (led, refusals, table) = Default::default();
        let peers = Self { config, me, network, card, log, fatal, started, led, refusals, table };
        for member in peers.config.members.clone() {
            if member.number != me.number() {
                peers.peer(member.number, &member.peer_address);
            }
        }
        Arc::new(peers)
    }

    /// The peer of this number, made known with this address if it is new. The configuration's address leads.
    pub(crate) fn peer(&self, number: u16, address: &str) -> Arc<Peer> {
        let address = self.config.address_of(number).unwrap_or(address);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = table.entry(number).or_insert_with(|| {
            Arc::new(Peer {
                number,
                address: Mutex::new(address.to_owned()),
                seen: Mutex::new(None),
                control: Mux::new(Class::Control, CONTROL_BYTES_MAX),
                call: Mux::new(Class::Call, CALL_BYTES_MAX),
            })
        });
        let mut known = peer.address.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != address {
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
        *self.led.lock().unwrap_or_else(PoisonError::into_inner) = Some((term, node, Instant::now()));
    }

    /// Whether this leader has spoken as one within `age`. What openraft remembers of a leader does not age: it is the
    /// vote, which survives the leader's death and this node's restart.
    pub(crate) fn is_led_by(&self, term: Term, node: NodeId, age: Duration) -> bool {
        let led = *self.led.lock().unwrap_or_else(PoisonError::into_inner);
        led.is_some_and(|(led_term, leader, at)| led_term == term && leader == node && at.elapsed() <= age)
    }

    /// When this leader has spoken as one last.
    pub(crate) fn led_at(&self, term: Term, node: NodeId) -> Option<Instant> {
        let led = *self.led.lock().unwrap_or_else(PoisonError::into_inner);
        led.filter(|(led_term, leader, _)| *led_term == term && *leader == node).map(|(.., at)| at)
    }

    fn compare(&self, card: &Card) {
        let mine = self.my_card();
        let (Some((id, chain)), Some((applied, _))) = (card.applied, mine.applied) else {
            return;
        };
        if id.index > applied.index || card.stage != Stage::Member || mine.stage != Stage::Member {
            return;
        }
        if let Some(reason) = diverged(&self.log, card.node, id, chain) {
            self.fatal.set(reason);
        }
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
