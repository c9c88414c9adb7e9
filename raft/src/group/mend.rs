//! Damage to this node's files while it runs: what can be put back is, and what cannot does not lead.
//!
//! An *image* is the same byte for byte on every node (LAW-SAME), so a damaged one is borrowed from another node, piece by piece, and judged
//! by what this node knows of its own: point, chain and membership, and the crc of the whole. Until then the Raft snapshot is not sent. A newer
//! image in its place would do as a snapshot, but whoever installs it never gets the bodies between the two, which were acknowledged.
//!
//! A *segment* that is damaged is served around: its messages by other nodes, its entries by another leader. So a leader that knows of
//! damage hands leadership to a voter that lacks nothing, takes none that is offered, and campaigns only when nobody else leads for long:
//! a group with a leader that lacks old bytes is better than one without. Why so: `docs/adr/0008-damage.md`.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::time::Instant;

use super::{Inner, transfer};
use crate::{
    machine::saver::blocking,
    peer::codec::IMAGE_BYTES_MAX,
    types::{NodeId, Position},
};

/// First byte of a request for a piece of an image.
const IMAGE: u8 = 1;

/// Bytes of one piece.
const PIECE: usize = 4 << 20;

/// Longest wait for one piece.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause before other nodes are asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Longest pause between two hand-overs of leadership that nobody took.
const HAND_OVER_PAUSE_MAX: Duration = Duration::from_secs(600);

/// Election timeouts without a leader after which a node with damage campaigns.
const PATIENCE_WITHOUT_LEADER: u32 = 8;

/// Answers another node that wants to put a file back.
///
/// # Errors
/// There is no such file here, or it cannot be read.
pub(super) async fn lend(inner: &Inner, mut request: Bytes) -> Result<Bytes, String> {
    let asked = |request: &mut Bytes| {
        let what = request.try_get_u8().ok()?;
        Some((what, Position(request.try_get_u64_le().ok()?), request.try_get_u64_le().ok()?))
    };
    let Some((IMAGE, border, offset)) = asked(&mut request) else {
        return Err("this node does not know what it is asked for".into());
    };
    let images = inner.images.clone();
    let piece = blocking(inner.config.writer, move || images.piece(border, offset, PIECE)).await;
    let (total, bytes) = piece.map_err(|error| error.to_string())?;
    let mut answer = BytesMut::with_capacity(8 + bytes.len());
    answer.put_u64_le(total);
    answer.put_slice(&bytes);
    Ok(answer.freeze())
}

/// Puts damaged images back as other nodes have them, until the node stops.
pub(super) async fn images(inner: Arc<Inner>) {
    let mut damaged = inner.images.damaged();
    loop {
        let wanted = tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            wanted = damaged.wait_for(|damaged| !damaged.is_empty()) => match wanted {
                Ok(wanted) => wanted.first().copied(),
                Err(_) => return,
            },
        };
        if let Some(border) = wanted
            && !mend_image(&inner, border).await
        {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn mend_image(inner: &Inner, border: Position) -> bool {
    for peer in inner.peers.all() {
        let Some(node) = peer.seen().map(|seen| seen.card.node) else { continue };
        let Some(bytes) = borrow_image(inner, node, border).await else { continue };
        let images = inner.images.clone();
        let file = inner.images.file(border);
        match blocking(inner.config.writer, move || images.mend(border, bytes)).await {
            Ok(()) => {
                tracing::warn!(file = %file.display(), from = %node, "a damaged image is put back as another node has it");
                return true;
            }
            Err(error) => {
                tracing::info!(file = %file.display(), from = %node, %error, "a damaged image is not put back")
            }
        }
    }
    false
}

async fn borrow_image(inner: &Inner, node: NodeId, border: Position) -> Option<Bytes> {
    let mut image = BytesMut::new();
    loop {
        let mut request = BytesMut::with_capacity(17);
        request.put_u8(IMAGE);
        request.put_u64_le(border.0);
        request.put_u64_le(image.len() as u64);
        let mut answer = inner.peers.borrow(node, request.freeze(), Instant::now() + PATIENCE).await.ok()?;
        let total = answer.try_get_u64_le().ok()?;
        if answer.is_empty() || total > IMAGE_BYTES_MAX as u64 {
            return None;
        }
        image.put_slice(&answer);
        if image.len() as u64 >= total {
            return Some(image.freeze());
        }
    }
}

/// Lets others lead while a segment of this node's log is damaged, until the node stops.
pub(super) async fn step_aside(inner: Arc<Inner>) {
    let mut damaged = inner.log.damaged();
    loop {
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            known = damaged.wait_for(|damaged| !damaged.is_empty()) => if known.is_err() {
                return;
            },
        }
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            () = while_damaged(&inner) => {}
        }
    }
}

async fn while_damaged(inner: &Arc<Inner>) {
    let look = inner.config.election_timeout.1;
    let (mut hand_over_at, mut pause) = (Instant::now(), look * 40);
    let mut led_at = Instant::now();
    while inner.is_damaged() {
        let leader = inner.leader.borrow().leader;
        let now = Instant::now();
        if leader.is_some() {
            led_at = now;
        }
        // A node that must catch up does not campaign in any case.
        let is_last_resort = led_at.elapsed() > look * PATIENCE_WITHOUT_LEADER;
        if inner.gate.is_open() {
            inner.raft.runtime_config().elect(is_last_resort);
        }
        if leader == Some(inner.me) && now >= hand_over_at {
            match transfer::transfer(inner, None).await {
                Ok(to) => {
                    tracing::warn!(%to, "this node's log is damaged, leadership is handed over");
                    hand_over_at = now + pause;
                    pause = (pause * 2).min(HAND_OVER_PAUSE_MAX);
                }
                Err(error) => {
                    tracing::info!(%error, "this node's log is damaged and nobody can lead in its place now");
                    hand_over_at = now + PAUSE;
                }
            }
        }
        tokio::time::sleep(look).await;
    }
    if inner.gate.is_open() {
        inner.raft.runtime_config().elect(true);
    }
}
