//! What this node answers to its peers.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::{
    ReadPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{NetworkError, RPCError},
};

use super::{Inner, fast_path, members, mend, removed::Claim};
use crate::{
    binding::{AppendRequest, RaftVote, Snapshot},
    machine::applier::snapshot_meta,
    network::BoxFuture,
    peer::{
        append::AppendAnswer,
        codec::{
            Card, Kind, decode_append, decode_transfer, decode_vote_request, encode_append_response,
            encode_vote_response,
        },
        server::Service,
    },
    snapshot::Image,
    types::{NodeId, Term},
};

/// The service of one node.
pub(super) struct NodeService(pub(super) Arc<Inner>);

/// Notes that a leader spoke.
fn note_leader(inner: &Inner, request: &AppendRequest) {
    inner.peers.note_leader(Term(request.vote.leader_id.term), request.vote.leader_id.node_id);
}

fn words(error: impl ToString) -> String {
    error.to_string()
}

impl Service for NodeService {
    fn request(&self, from: NodeId, kind: Kind, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let inner = self.0.clone();
        Box::pin(async move {
            match kind {
                Kind::Vote if inner.gate.may_vote() => {
                    let request = decode_vote_request(body).map_err(words)?;
                    inner.peers.note_campaign(Term(request.vote.leader_id.term), request.leadership_transfer);
                    let response = inner.raft.vote(request).await.map_err(words)?;
                    Ok(encode_vote_response(&response))
                }
                Kind::PreVote if inner.gate.may_vote() => {
                    let request = decode_vote_request(body).map_err(words)?;
                    let response = inner.raft.pre_vote(request).await.map_err(words)?;
                    Ok(encode_vote_response(&response))
                }
                Kind::Vote | Kind::PreVote => Err("this node must catch up before it votes".into()),
                Kind::Append => {
                    let request = decode_append(body).map_err(words)?;
                    note_leader(&inner, &request);
                    let response = inner.raft.append_entries(request).await.map_err(words)?;
                    Ok(encode_append_response(&response))
                }
                Kind::Transfer if inner.is_damaged() => {
                    Err("this node's log is damaged: another one should lead".into())
                }
                Kind::Transfer if inner.gate.is_open() => {
                    let request = decode_transfer(body).map_err(words)?;
                    let result = inner.raft.handle_transfer_leader(request).await.map_err(words)?;
                    result.map_err(words)?;
                    Ok(Bytes::new())
                }
                Kind::Transfer => Err("this node must catch up before it leads".into()),
                Kind::Card => {
                    let card = Card::decode(body).map_err(words)?;
                    if card.node != from {
                        return Err("a card of another node".into());
                    }
                    inner.peers.observe(card);
                    Ok(inner.peers.my_card().encode())
                }
                Kind::Suspect => fast_path::answer(&inner, body).await,
                Kind::Join => members::admit(&inner, from, Claim::decode(body)).map(members::Told::encode),
                Kind::ReadIndex => {
                    let linearizer = inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(words)?;
                    let index = linearizer.read_log_id().index();
                    Ok(Bytes::copy_from_slice(&index.to_le_bytes()))
                }
                Kind::Lend => mend::lend(&inner, body).await,
                Kind::Call => Ok(inner.calls.call(from, body).await),
                Kind::Answer | Kind::Refusal | Kind::Cancel => Err("not a request".into()),
            }
        })
    }

    fn append(
        &self,
        requests: Pin<Box<dyn Stream<Item = AppendRequest> + Send>>,
    ) -> Pin<Box<dyn Stream<Item = AppendAnswer> + Send>> {
        let inner = self.0.clone();
        let requests = requests.inspect(move |request| note_leader(&inner, request));
        let answers = self.0.raft.stream_append(requests);
        Box::pin(answers.map(|answer| answer.map_err(|fatal| RPCError::Network(NetworkError::new(&fatal)))))
    }

    fn install(&self, vote: RaftVote, image: Image) -> BoxFuture<'static, Result<RaftVote, String>> {
        let inner = self.0.clone();
        Box::pin(async move {
            let meta = snapshot_meta(&image.meta).map_err(words)?;
            let Some(last) = meta.last_log_id else {
                return Err("an image of nothing".into());
            };
            // openraft stops the node if a snapshot is of a later leader than who sends it; a peer must not be able to.
            if last.leader_id > vote.leader_id {
                return Err("an image of a later leader".into());
            }
            let committed = inner.raft.data_metrics().borrow_watched().local_committed;
            if committed.is_some_and(|committed| last > committed && last.index <= committed.index) {
                return Err("an image that contradicts what is committed".into());
            }
            let snapshot = Snapshot { meta, snapshot: Some(image) };
            let response = inner.raft.install_full_snapshot(vote, snapshot).await.map_err(words)?;
            Ok(response.vote)
        })
    }
}
