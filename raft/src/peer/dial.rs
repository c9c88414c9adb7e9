//! Opening a connection: connect, hello, welcome, and both sides know whom they talk to.

use std::io;

use tokio::{
    io::{ReadHalf, WriteHalf, split},
    time::{Duration, Instant, timeout_at},
};

use crate::{
    network::Duplex,
    peer::{
        Peer, Peers,
        codec::{Card, Class, HANDSHAKE_BYTES_MAX, Hello, Refused, Welcome},
        wire::{Reader, framed, write_pieces},
    },
    types::NodeId,
};

/// Longest wait for a connection and its handshake.
pub(crate) const DIAL: Duration = Duration::from_secs(2);

/// A connection whose handshake is done.
pub(crate) struct Connection {
    pub reader: Reader<ReadHalf<Box<dyn Duplex>>>,
    pub writer: WriteHalf<Box<dyn Duplex>>,
    /// Who is at the other end.
    pub peer: NodeId,
}

/// Why there is no connection; nothing was asked of the peer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{address}: {source}")]
    Io { address: String, source: io::Error },
    #[error("{address}: {refused}")]
    Refused { address: String, refused: Refused },
}

/// Who is called, and where.
pub(crate) struct Target {
    pub address: String,
    /// Configured number of who should answer.
    pub number: u16,
    /// The identity that is meant; `None` takes whoever has the number.
    pub expected: Option<NodeId>,
}

/// Connects to a peer for one purpose. `expected`: the identity that is meant; `None` takes whoever has the number.
pub(crate) async fn dial(
    peers: &Peers,
    peer: &Peer,
    class: Class,
    expected: Option<NodeId>,
    bytes_max: usize,
    deadline: Instant,
) -> Result<Connection, DialError> {
    let to = Target { address: peer.address(), number: peer.number, expected };
    let (connection, card) = handshake(peers, to, class, bytes_max, deadline).await?;
    peers.observe(card);
    Ok(connection)
}

/// Connects, and checks who is there; the other side learns this node's card.
pub(crate) async fn handshake(
    peers: &Peers,
    to: Target,
    class: Class,
    bytes_max: usize,
    deadline: Instant,
) -> Result<(Connection, Card), DialError> {
    let Target { address, number, expected } = to;
    let deadline = deadline.min(Instant::now() + DIAL);
    let io = |source| DialError::Io { address: address.clone(), source };
    let refused = |refused| DialError::Refused { address: address.clone(), refused };

    let talk = async {
        let stream = peers.network.connect(&address).await.map_err(io)?;
        let (read, mut writer) = split(stream);
        let mut reader = Reader::new(read, HANDSHAKE_BYTES_MAX);
        let hello = Hello { class, number, expected, card: peers.my_card() };
        write_pieces(&mut writer, &framed(&hello.encode())).await.map_err(io)?;
        let answer = reader.next().await.map_err(io)?;
        let answer = answer.ok_or_else(|| io(io::ErrorKind::UnexpectedEof.into()))?;
        let welcome = Welcome::decode(answer).map_err(refused)?;
        welcome.accepted.map_err(refused)?;
        check_card(peers, &welcome.card, number, expected).map_err(refused)?;
        reader.set_bytes_max(bytes_max);
        Ok((Connection { reader, writer, peer: welcome.card.node }, welcome.card))
    };
    match timeout_at(deadline, talk).await {
        Ok(result) => result,
        Err(_) => Err(io(io::ErrorKind::TimedOut.into())),
    }
}

/// What must hold for any peer, whoever opened the connection.
fn check_group(peers: &Peers, card: &Card) -> Result<(), Refused> {
    if card.cluster != peers.config.cluster {
        let reason = format!(
            "node {} belongs to cluster {:?}, node {} to {:?}",
            card.node, card.cluster, peers.me, peers.config.cluster
        );
        return Err(Refused(reason));
    }
    if card.segment_bytes != peers.config.segment_bytes {
        let reason = format!(
            "segments of node {} have {} bytes, those of node {} have {}: all nodes of a group must agree",
            card.node, card.segment_bytes, peers.me, peers.config.segment_bytes
        );
        return Err(Refused(reason));
    }
    Ok(())
}

fn check_card(peers: &Peers, card: &Card, number: u16, expected: Option<NodeId>) -> Result<(), Refused> {
    check_group(peers, card)?;
    if card.node.number() != number {
        return Err(Refused(format!("node {} answers where node {number} is expected", card.node)));
    }
    match expected {
        Some(expected) if expected != card.node => Err(wrong_incarnation(expected, card.node)),
        Some(_) | None => Ok(()),
    }
}

fn wrong_incarnation(expected: NodeId, found: NodeId) -> Refused {
    Refused(format!("{expected:?} is expected, {found:?} answers: its data directory is another one"))
}

/// Whether this node takes a connection that starts with this hello.
pub(crate) fn check_hello(peers: &Peers, hello: &Hello) -> Result<(), Refused> {
    check_group(peers, &hello.card)?;
    if hello.number != peers.me.number() {
        let reason = format!("node {} was called, this is node {}", hello.number, peers.me);
        return Err(Refused(reason));
    }
    if hello.card.node.number() == peers.me.number() {
        return Err(Refused(format!("two nodes are configured as number {}", peers.me)));
    }
    match hello.expected {
        Some(expected) if expected != peers.me => Err(wrong_incarnation(expected, peers.me)),
        Some(_) | None => Ok(()),
    }
}
