//! The leader's end of a replication stream: requests go out while answers come in, within a window of bytes.
//!
//! openraft hands over a stream of requests and wants a stream of answers in the same order. Both are driven here by one
//! task, without a task or a queue in between: whoever polls for the next answer also writes what the window allows. The
//! window keeps a slow follower from filling the sockets, and bounds what a lost connection makes the leader send again.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::Stream;
use openraft::{
    errors::{NetworkError, RPCError},
    raft::StreamAppendResult,
};
use tokio::{
    io::AsyncWrite,
    time::{Instant, Sleep},
};

use crate::{
    binding::{AppendRequest, TypeConfig},
    log::Log,
    peer::{
        codec::{decode_append_result, encode_append},
        dial::Connection,
        wire::PIECES_MAX,
    },
};

/// An answer of the follower, or the end of the connection.
pub(crate) type AppendAnswer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// A replication session over a connection. The connection goes back to its owner only if the session ended in order.
pub(crate) struct AppendStream<'a, S> {
    home: &'a mut Option<Connection>,
    connection: Option<Connection>,
    input: Option<S>,
    window: usize,
    /// Bytes of each request that has no answer yet, in order.
    unanswered: VecDeque<usize>,
    unanswered_bytes: usize,
    outgoing: VecDeque<Bytes>,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
    log: Log,
}

impl<'a, S> AppendStream<'a, S>
where
    S: Stream<Item = AppendRequest> + Unpin,
{
    /// `patience`: longest time without any answer while one is due. `log`: where the requests are read from.
    pub(crate) fn new(
        home: &'a mut Option<Connection>,
        connection: Connection,
        input: S,
        window: usize,
        patience: Duration,
        log: Log,
    ) -> Self {
        let deadline = Box::pin(tokio::time::sleep(patience));
        Self {
            home,
            connection: Some(connection),
            input: Some(input),
            window,
            unanswered: VecDeque::new(),
            unanswered_bytes: 0,
            outgoing: VecDeque::new(),
            patience,
            deadline,
            log,
        }
    }

    /// Whether what follows this request is purged, so that nothing but such requests can come: openraft asks for the same entries again
    /// until its stream ends, and only then for what its leader has meanwhile decided to send instead.
    fn is_behind_purge(&self, request: &AppendRequest) -> bool {
        let before = request.prev_log_id.as_ref().map(|id| id.index);
        request.entries.is_empty() && before < self.log.purged().map(|id| id.index.0)
    }

    fn fail(&mut self, error: io::Error) -> Poll<Option<AppendAnswer>> {
        self.connection = None;
        self.input = None;
        Poll::Ready(Some(Err(RPCError::Network(NetworkError::new(&error)))))
    }

    /// Writes until the socket is full or nothing is left.
    fn write(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(connection) = self.connection.as_mut() else {
            return Ok(());
        };
        while !self.outgoing.is_empty() {
            let mut slices = [io::IoSlice::new(&[]); PIECES_MAX];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.outgoing) {
                *slice = io::IoSlice::new(piece);
                count += 1;
            }
            let writer = Pin::new(&mut connection.writer);
            let mut written = match writer.poll_write_vectored(context, &slices[..count]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(error)) => return Err(error),
            };
            while written > 0 {
                let Some(front) = self.outgoing.front_mut() else {
                    break;
                };
                if written < front.len() {
                    front.advance(written);
                    break;
                }
                written -= front.len();
                self.outgoing.pop_front();
            }
        }
        if let Poll::Ready(Err(error)) = Pin::new(&mut connection.writer).poll_flush(context) {
            return Err(error);
        }
        Ok(())
    }

    /// Takes one more request if the window has room; true if it did.
    fn take_request(&mut self, context: &mut Context<'_>) -> bool {
        // One request may exceed the window alone, so that a large entry goes through.
        if !self.unanswered.is_empty() && self.unanswered_bytes >= self.window {
            return false;
        }
        let Some(input) = self.input.as_mut() else {
            return false;
        };
        match Pin::new(input).poll_next(context) {
            Poll::Pending => false,
            Poll::Ready(None) => {
                self.input = None;
                false
            }
            Poll::Ready(Some(request)) if self.is_behind_purge(&request) => {
                self.input = None;
                false
            }
            Poll::Ready(Some(request)) => {
                let pieces = encode_append(&request);
                let bytes = pieces.iter().map(Bytes::len).sum();
                if self.unanswered.is_empty() {
                    self.deadline.as_mut().reset(Instant::now() + self.patience);
                }
                self.unanswered.push_back(bytes);
                self.unanswered_bytes += bytes;
                self.outgoing.extend(pieces);
                true
            }
        }
    }
}

impl<S> Stream for AppendStream<'_, S>
where
    S: Stream<Item = AppendRequest> + Unpin,
{
    type Item = AppendAnswer;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<AppendAnswer>> {
        let this = self.get_mut();
        if this.connection.is_none() {
            return Poll::Ready(None);
        }
        // Everything the window allows, then one push into the socket: requests that are ready together leave together.
        while this.take_request(context) {}
        if let Err(error) = this.write(context) {
            return this.fail(error);
        }
        let Some(connection) = this.connection.as_mut() else {
            return Poll::Ready(None);
        };
        if this.unanswered.is_empty() {
            if this.input.is_none() {
                // In order: the connection can serve the next session.
                *this.home = this.connection.take();
                return Poll::Ready(None);
            }
            // Nothing is due; only a broken connection would say something now.
            return match connection.reader.poll_next(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(_)) => this.fail(io::ErrorKind::ConnectionAborted.into()),
                Poll::Ready(Err(error)) => this.fail(error),
            };
        }
        match connection.reader.poll_next(context) {
            Poll::Ready(Ok(Some(message))) => {
                let bytes = this.unanswered.pop_front().unwrap_or_default();
                this.unanswered_bytes -= bytes;
                this.deadline.as_mut().reset(Instant::now() + this.patience);
                match decode_append_result(message) {
                    Ok(result) => {
                        if result.is_err() {
                            // The follower ends the stream with this; what was sent behind it is void.
                            this.connection = None;
                            this.input = None;
                        }
                        Poll::Ready(Some(Ok(result)))
                    }
                    Err(malformed) => this.fail(io::Error::new(io::ErrorKind::InvalidData, malformed)),
                }
            }
            Poll::Ready(Ok(None)) => this.fail(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Err(error)) => this.fail(error),
            Poll::Pending => match std::future::Future::poll(this.deadline.as_mut(), context) {
                Poll::Ready(()) => this.fail(io::ErrorKind::TimedOut.into()),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}
