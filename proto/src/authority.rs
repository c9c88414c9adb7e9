//! Lets clients in that name several addresses at once as the authority of their calls.
//!
//! A RocketMQ client is given a list, `10.0.0.1:8081;10.0.0.2:8081`, and hands it to its gRPC library as one target with several
//! addresses. The libraries then send the list as `:authority`: grpc-core (Python, C++) as
//! `10.0.0.1:8081,10.0.0.2:8081`, grpc-go as `10.0.0.1:8081%2C10.0.0.2:8081`. Neither is an authority of RFC 3986 to the `http`
//! crate, so h2 resets every call of such a client with PROTOCOL_ERROR before anything of ours sees it. Nothing of ours
//! decides by the authority, so any value that h2 can read is as good as another.
//!
//! [`Mended`] sits between the socket and h2 and puts such a value in, on the way in only:
//!
//! ```text
//! client ──▶ preface, frames ──▶ Mended ──▶ h2          DATA, SETTINGS, …: as they came, not copied, not held
//!                                                       HEADERS: held until whole, mended, never longer than before
//! client ◀────────────────────────────────── h2          untouched
//! ```
//! The new value has the same decoded length as the old one, so h2's dynamic table has the same entries and evictions as the
//! client's, and calls that name the value by its index find the readable one. It must never corrupt a stream: what is no HTTP/2, no
//! well-formed header block, or over [`HEADERS_BYTES_MAX`], passes as it came, for h2 to judge. Who calls it: [`crate::doors::incoming`].

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::hpack;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes before a frame's payload: length (3, big-endian), type, flags, stream id (4).
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// HEADERS frames with a payload beyond this are not looked into. h2 refuses them anyway unless told to take frames this large.
const HEADERS_BYTES_MAX: usize = 64 * 1024;

/// A frame that arrives in parts is taken in steps of so many bytes at most, so memory follows what was sent, not what was announced.
const HELD_STEP: usize = 4 * 1024;

/// A client's connection, as the server reads it: authorities that h2 could not read are replaced by ones that it can.
///
/// Writes pass through. Reads report the end and errors of the connection as they come; a frame that the end cuts off comes out as it
/// is. Holds at most one HEADERS frame.
pub struct Mended<S> {
    inner: S,
    place: Place,
    /// Bytes taken and not handed on yet: the beginning of a frame while `free` is 0, else a mended frame.
    held: Vec<u8>,
    /// The reader has had `held[..given]` and may have `held[..free]`.
    given: usize,
    free: usize,
}

/// Where in the client's stream the next byte belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// So many bytes of the preface were seen.
    Preface { seen: usize },
    /// In a frame's payload, of which so many bytes are to come; 0: before a frame's header.
    Frames { payload_left: usize },
    /// Not HTTP/2, or past the end.
    Opaque,
}

/// What became of some bytes: the first `handed_on` are for the reader now, those from `unfinished` on begin a frame that
/// has to be held.
struct Sifted {
    handed_on: usize,
    unfinished: usize,
}

impl<S> Mended<S> {
    /// Takes a connection of which nothing was read yet.
    pub fn new(inner: S) -> Self {
        Self { inner, place: Place::Preface { seen: 0 }, held: Vec::new(), given: 0, free: 0 }
    }

    /// Hands on what is free, as far as there is room.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let part = &self.held[self.given..self.free];
        let part = &part[..part.len().min(buf.remaining())];
        buf.put_slice(part);
        self.given += part.len();
        if self.given == self.free {
            self.held.clear();
            self.held.shrink_to(HELD_STEP);
            (self.given, self.free) = (0, 0);
        }
    }
}

impl<S: AsyncRead + Unpin> Mended<S> {
    /// Reads into the reader's own buffer and mends there. Whether there is something for the reader, or nothing more to come.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let read = &mut buf.filled_mut()[before..];
        let ended = read.is_empty();
        let sifted = self.place.sift(read);
        self.held.extend_from_slice(&read[sifted.unfinished..]);
        buf.set_filled(before + sifted.handed_on);
        Poll::Ready(Ok(ended || sifted.handed_on > 0))
    }

    /// Reads on in the frame that is held, and frees it when it is whole or will never be.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = self.held.len();
        self.held.resize(before + missing(&self.held).min(HELD_STEP), 0);
        let mut part = ReadBuf::new(&mut self.held[before..]);
        let polled = Pin::new(&mut self.inner).poll_read(cx, &mut part);
        let read = part.filled().len();
        self.held.truncate(before + read);
        ready!(polled)?;
        if read == 0 {
            self.place = Place::Opaque;
        }
        self.free = self.place.sift(&mut self.held).handed_on;
        if self.free > 0 {
            self.held.truncate(self.free);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.free > 0 {
                this.give(buf);
                return Poll::Ready(Ok(()));
            }
            if !this.held.is_empty() {
                ready!(this.poll_held(cx))?;
            } else if ready!(this.poll_ahead(cx, buf))? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl Place {
    /// Goes over the next bytes of the stream and mends the frames that are whole in them, in place. What is mended may be shorter, and
    /// then the rest moves up.
    fn sift(&mut self, bytes: &mut [u8]) -> Sifted {
        let (mut from, mut to) = (0, 0);
        while from < bytes.len() {
            let rest = &mut bytes[from..];
            let (taken, kept) = match *self {
                Place::Opaque => (rest.len(), rest.len()),
                Place::Preface { seen } => {
                    let part = rest.len().min(PREFACE.len() - seen);
                    *self = match seen + part {
                        _ if rest[..part] != PREFACE[seen..seen + part] => Place::Opaque,
                        seen if seen < PREFACE.len() => Place::Preface { seen },
                        _ => Place::Frames { payload_left: 0 },
                    };
                    (part, part)
                }
                Place::Frames { payload_left: 0 } => {
                    let Some(payload) = payload_bytes(rest) else { break };
                    if rest[3] == HEADERS && payload <= HEADERS_BYTES_MAX {
                        let Some(frame) = rest.get_mut(..FRAME_HEADER + payload) else { break };
                        (frame.len(), mend_headers(frame))
                    } else {
                        *self = Place::Frames { payload_left: payload };
                        (FRAME_HEADER, FRAME_HEADER)
                    }
                }
                Place::Frames { payload_left } => {
                    let part = rest.len().min(payload_left);
                    *self = Place::Frames { payload_left: payload_left - part };
                    (part, part)
                }
            };
            if from != to {
                bytes.copy_within(from..from + kept, to);
            }
            from += taken;
            to += kept;
        }
        Sifted { handed_on: to, unfinished: from }
    }
}

/// How long the payload of the frame is that begins here; `None` if its header is not whole.
fn payload_bytes(frame: &[u8]) -> Option<usize> {
    match frame {
        [high, middle, low, _, _, _, _, _, _, ..] => Some(u32::from_be_bytes([0, *high, *middle, *low]) as usize),
        _ => None,
    }
}

/// How many bytes the beginning of a frame lacks until it can be judged.
fn missing(frame: &[u8]) -> usize {
    FRAME_HEADER + payload_bytes(frame).unwrap_or(0) - frame.len()
}

/// Mends a whole HEADERS frame in place and returns how long it is now.
fn mend_headers(frame: &mut [u8]) -> usize {
    let whole = frame[4] & END_HEADERS != 0;
    let Some(old) = header_block(frame) else { return frame.len() };
    let mended = hpack::mend_authorities(&frame[old.clone()], whole).filter(|mended| mended.len() <= old.len());
    let Some(mended) = mended else { return frame.len() };
    let end = old.start + mended.len();
    frame[old.start..end].copy_from_slice(&mended);
    frame.copy_within(old.end.., end);
    let length = frame.len() - (old.end - end);
    frame[..3].copy_from_slice(&((length - FRAME_HEADER) as u32).to_be_bytes()[1..]);
    length
}

/// Where in a HEADERS frame the header block is, between priority and padding; `None` if these are longer than the frame.
fn header_block(frame: &[u8]) -> Option<Range<usize>> {
    let (flags, mut block) = (frame[4], FRAME_HEADER..frame.len());
    if flags & PADDED != 0 {
        block.end = block.end.checked_sub(usize::from(*frame.get(FRAME_HEADER)?))?;
        block.start += 1;
    }
    if flags & PRIORITY != 0 {
        block.start += 5;
    }
    (block.start <= block.end).then_some(block)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::huffman;

    const LIST: &[u8] = b"10.0.0.1:8081,10.0.0.2:8081";
    const MENDED: &[u8] = b"10.0.0.1.8081.10.0.0.2.8081";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    /// A header block as grpc-core begins it.
    fn raw(authority: &[u8]) -> Vec<u8> {
        [b"\x83\x86\x40\x0a:authority", &[authority.len() as u8][..], authority, b"\x40\x02te\x08trailers"].concat()
    }

    /// A header block as grpc-go begins it.
    fn coded(authority: &[u8]) -> Vec<u8> {
        let text = huffman::encode(authority);
        [b"\x83\x86\x41", &[0x80 | text.len() as u8][..], &text, b"\x5f\x08trailers"].concat()
    }

    /// A client's stream with everything in it, and what h2 is to see of it.
    fn conversation() -> (Vec<u8>, Vec<u8>) {
        let with = |list: &[u8]| {
            let mut bytes = PREFACE.to_vec();
            bytes.extend(frame(4, 0, b"\0\x02\0\0\0\0"));
            bytes.extend(frame(HEADERS, END_HEADERS, &raw(list)));
            bytes.extend(frame(0, 0, &raw(LIST)));
            bytes.extend(frame(HEADERS, END_HEADERS | PADDED, &[b"\x03", &*coded(list), b"\0\0\0"].concat()));
            bytes.extend(frame(0, 0, b""));
            bytes.extend(frame(HEADERS, END_HEADERS | PRIORITY, &[b"\0\0\0\0\x10", &*coded(list)].concat()));
            bytes.extend(frame(6, 0, b"12345678"));
            bytes.extend(frame(
                HEADERS,
                END_HEADERS | PADDED | PRIORITY,
                &[b"\x01\0\0\0\0\x10", &*raw(list), b"\0"].concat(),
            ));
            bytes.extend(frame(HEADERS, 0, &[&*coded(list), b"\x40\x03x"].concat()));
            bytes.extend(frame(9, END_HEADERS, b"-a\x01b"));
            bytes.extend(frame(HEADERS, END_HEADERS, b"\x83\x86\xbe"));
            bytes.extend(frame(0, 1, &[7; 300]));
            bytes
        };
        (with(LIST), with(MENDED))
    }

    /// A client whose bytes arrive in these portions; before each the reader has to wait once.
    struct Portions(VecDeque<Vec<u8>>, bool);

    impl AsyncRead for Portions {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.1 = !self.1;
            if self.1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(first) = self.0.front_mut() {
                let rest = first.split_off(first.len().min(buf.remaining()));
                buf.put_slice(first);
                *first = rest;
                if first.is_empty() {
                    self.0.pop_front();
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    /// What the server reads of `bytes` that arrive in portions of the given sizes (over and over), into buffers of `room` bytes.
    fn read(bytes: &[u8], sizes: &[usize], room: usize) -> Vec<u8> {
        let mut portions = VecDeque::new();
        let mut rest = bytes;
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (portion, behind) = rest.split_at(rest.len().min(*size));
            portions.push_back(portion.to_vec());
            rest = behind;
        }
        let mut stream = Mended::new(Portions(portions, false));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (mut seen, mut buffer) = (Vec::new(), vec![0; room]);
            loop {
                match stream.read(&mut buffer).await.expect("portions have no errors") {
                    0 => return seen,
                    size => seen.extend(&buffer[..size]),
                }
            }
        })
    }

    #[test]
    fn every_kind_of_headers_frame_is_mended_and_all_else_stays() {
        let (sent, expected) = conversation();
        assert_eq!(read(&sent, &[usize::MAX], 1 << 16), expected);
    }

    #[test]
    fn no_split_of_the_stream_changes_what_is_read() {
        let (sent, expected) = conversation();
        for room in [1, 24, 1 << 16] {
            assert_eq!(read(&sent, &[1], room), expected, "byte by byte, room for {room}");
        }
        for split in 1..sent.len() {
            assert_eq!(read(&sent, &[split, usize::MAX], 1 << 16), expected, "split at {split}");
        }
    }

    #[test]
    fn what_is_not_http_2_stays() {
        let behind = frame(HEADERS, END_HEADERS, &raw(LIST));
        let sent = [b"GET / HTTP/1.1\r\n\r\n", &*behind].concat();
        assert_eq!(read(&sent, &[5], 64), sent);
        let sent = [&PREFACE[..20], b"?", &PREFACE[20..], &behind].concat();
        assert_eq!(read(&sent, &[5], 64), sent);
    }

    #[test]
    fn frames_that_are_broken_or_too_large_stay() {
        let padded_too_much = frame(HEADERS, END_HEADERS | PADDED, &[b"\xff", &*raw(LIST)].concat());
        let no_room_for_priority = frame(HEADERS, END_HEADERS | PRIORITY, b"\0\0");
        let empty = frame(HEADERS, END_HEADERS | PADDED, b"");
        let mut large = raw(LIST);
        large.extend(std::iter::repeat_n(0x83, HEADERS_BYTES_MAX));
        let too_large = frame(HEADERS, END_HEADERS, &large);
        let sent = [PREFACE, &padded_too_much, &no_room_for_priority, &empty, &too_large].concat();
        for sizes in [&[usize::MAX][..], &[7], &[5000]] {
            assert_eq!(read(&sent, sizes, 9000), sent);
        }
    }

    #[test]
    fn the_largest_frame_is_mended_though_it_arrives_in_parts() {
        let filled = |list: &[u8]| {
            let mut block = raw(list);
            block.resize(HEADERS_BYTES_MAX, 0x83);
            [PREFACE, &*frame(HEADERS, END_HEADERS, &block), &*frame(0, 1, b"body")].concat()
        };
        for sizes in [&[usize::MAX][..], &[11], &[16 * 1024]] {
            assert!(read(&filled(LIST), sizes, 8192) == filled(MENDED));
        }
    }

    #[test]
    fn what_the_end_of_the_connection_cuts_off_comes_out_as_it_is() {
        let (sent, expected) = conversation();
        let headers = PREFACE.len() + FRAME_HEADER + 6;
        for end in headers..headers + FRAME_HEADER + raw(LIST).len() {
            assert_eq!(read(&sent[..end], &[13], 64), sent[..end], "end at {end}");
        }
        let end = headers + FRAME_HEADER + raw(LIST).len();
        assert_eq!(read(&sent[..end], &[13], 64), expected[..end]);
    }

    proptest! {
        #[test]
        fn random_portions_do_not_change_what_is_read(
            sizes in proptest::collection::vec(1_usize..90, 1..20), room in 1_usize..200,
        ) {
            let (sent, expected) = conversation();
            prop_assert_eq!(read(&sent, &sizes, room), expected);
        }

        /// Whatever follows the preface: no panic, the same for every split, never more than was sent.
        #[test]
        fn arbitrary_bytes_are_read_alike_in_every_portion(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..3, size in 1_usize..40, room in 1_usize..60,
        ) {
            let headers = if kind > 0 { frame(HEADERS, bytes.first().map_or(0, |byte| byte & 0x2c), &bytes) } else { bytes };
            let sent = if kind < 2 { [PREFACE, &*headers].concat() } else { headers };
            let whole = read(&sent, &[usize::MAX], 1024);
            prop_assert!(whole.len() <= sent.len());
            prop_assert_eq!(read(&sent, &[size], room), whole);
        }

        #[test]
        fn a_stream_without_headers_comes_out_unchanged(
            frames in proptest::collection::vec((any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..12),
            size in 1_usize..100, room in 1_usize..100,
        ) {
            let mut sent = PREFACE.to_vec();
            for (kind, flags, payload) in frames {
                sent.extend(frame(if kind == HEADERS { 0 } else { kind }, flags, &payload));
            }
            prop_assert_eq!(read(&sent, &[size], room), sent);
        }
    }
}
