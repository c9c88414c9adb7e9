//! The newest frames in memory, so that replication, apply and readers at the head of the log touch no file.
//!
//! Of fixed size in bytes, except that a frame not yet written on this node stays whatever the size: with openraft an
//! entry may be committed by the other nodes, and applied here, before this node has written it (LAW-ORDER). A reader
//! that lags behind the tail reads files and pins nothing here. Owned by the log's state, under its lock.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{
    log::frame::Frame,
    types::{LogIndex, Position},
};

/// A run of frames without gaps, the newest of the log last.
pub(crate) struct Tail {
    frames: VecDeque<Frame>,
    bytes: u64,
    bytes_max: u64,
}

impl Tail {
    pub fn new(bytes_max: usize) -> Self {
        Self { frames: VecDeque::new(), bytes: 0, bytes_max: bytes_max as u64 }
    }

    /// Adds the next frame, which is placed.
    pub fn push(&mut self, frame: Frame) {
        debug_assert!(self.frames.back().is_none_or(|last| last.id.index.0 + 1 == frame.id.index.0));
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Drops the oldest frames down to the size limit, but none that ends above `written`.
    pub fn evict(&mut self, written: Position) {
        while self.bytes > self.bytes_max && self.frames.front().is_some_and(|frame| frame.end() <= written) {
            self.drop_first();
        }
    }

    /// Index of the oldest frame held.
    pub fn first(&self) -> Option<LogIndex> {
        self.frames.front().map(|frame| frame.id.index)
    }

    pub fn get(&self, index: LogIndex) -> Option<&Frame> {
        let offset = index.0.checked_sub(self.first()?.0)?;
        self.frames.get(usize::try_from(offset).ok()?)
    }

    /// Bytes of a payload, or part of it, by position.
    pub fn slice(&self, position: Position, len: usize) -> Option<Bytes> {
        let after = self.frames.partition_point(|frame| frame.payload_position() <= position);
        let frame = self.frames.get(after.checked_sub(1)?)?;
        let start = usize::try_from(position.0 - frame.payload_position().0).ok()?;
        let payload = frame.payload_bytes();
        (start.checked_add(len)? <= payload.len()).then(|| payload.slice(start..start + len))
    }

    /// Drops frames above `last`.
    pub fn truncate_after(&mut self, last: Option<LogIndex>) {
        while let Some(frame) = self.frames.back().filter(|frame| last.is_none_or(|last| frame.id.index > last)) {
            self.bytes -= frame.len();
            self.frames.pop_back();
        }
    }

    /// Drops frames up to and including `upto`.
    pub fn purge(&mut self, upto: LogIndex) {
        while self.first().is_some_and(|first| first <= upto) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= frame.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::frame::Payload,
        types::{LogId, NodeId, Term},
    };

    fn tail(count: u64, bytes_max: usize) -> Tail {
        let mut tail = Tail::new(bytes_max);
        let mut end = 0;
        for index in 0..count {
            let id = LogId { term: Term(1), node: NodeId(1), index: LogIndex(index) };
            let mut frame = Frame::new(id, Payload::Normal(vec![index as u8; 28].into()));
            frame.place = Some(frame.header_at(Position(end), 0).place);
            end += frame.len();
            tail.push(frame);
        }
        tail
    }

    #[test]
    fn what_is_not_written_here_is_never_evicted() {
        let mut tail = tail(10, 300);
        tail.evict(Position(0));
        assert_eq!(tail.first(), Some(LogIndex(0)));
        tail.evict(Position(250));
        assert_eq!(tail.first(), Some(LogIndex(2)));
        tail.evict(Position(1000));
        assert_eq!(tail.first(), Some(LogIndex(7)), "three frames of 100 bytes fit");
    }

    #[test]
    fn a_slice_lies_within_one_payload() {
        let tail = tail(3, 1000);
        assert_eq!(tail.slice(Position(172), 28), Some(vec![1; 28].into()));
        assert_eq!(tail.slice(Position(180), 4), Some(vec![1; 4].into()));
        assert_eq!(tail.slice(Position(172), 29), None);
        assert_eq!(tail.slice(Position(110), 1), None, "a header is no payload");
        assert_eq!(tail.slice(Position(10), 1), None);
    }
}
