//! Messages on a byte stream: a length, then that many bytes.

use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes a reader may hold before it reads on behalf of the next message.
const READ_AHEAD: usize = 64 << 10;

/// Pieces handed to the system in one vectored write.
pub(crate) const PIECES_MAX: usize = 64;

fn too_long(len: usize, max: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("message of {len} bytes, at most {max}"))
}

/// Reads messages; what arrived behind one is kept for the next.
pub(crate) struct Reader<R> {
    stream: R,
    buffer: BytesMut,
    bytes_max: usize,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// `bytes_max`: longest message that is accepted.
    pub(crate) fn new(stream: R, bytes_max: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), bytes_max }
    }

    /// Changes the bound, once the handshake has said what the connection is for.
    pub(crate) fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// The message at the front of the buffer, if it is whole.
    fn take_buffered(&mut self) -> io::Result<Option<Bytes>> {
        let Some(len) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*len) as usize;
        if len > self.bytes_max {
            return Err(too_long(len, self.bytes_max));
        }
        if self.buffer.len() < 4 + len {
            // One allocation of the right size for a long message; memory follows what really arrives for a huge one.
            let missing = 4 + len - self.buffer.len();
            self.buffer.reserve(missing.min(4 << 20));
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// The next message; `None` at a clean end. Cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(message) = self.take_buffered()? {
                return Ok(Some(message));
            }
            if self.buffer.capacity() - self.buffer.len() < READ_AHEAD / 4 {
                self.buffer.reserve(READ_AHEAD);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Polled form of [`Reader::next`].
    pub(crate) fn poll_next(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<Option<Bytes>>> {
        use std::task::{Poll, ready};
        loop {
            if let Some(message) = self.take_buffered()? {
                return Poll::Ready(Ok(Some(message)));
            }
            if self.buffer.capacity() - self.buffer.len() < READ_AHEAD / 4 {
                self.buffer.reserve(READ_AHEAD);
            }
            let stream = std::pin::Pin::new(&mut self.stream);
            if ready!(tokio_util::io::poll_read_buf(stream, context, &mut self.buffer))? == 0 {
                if self.buffer.is_empty() {
                    return Poll::Ready(Ok(None));
                }
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// Length and message, as one message is sent alone.
pub(crate) fn framed(body: &Bytes) -> [Bytes; 2] {
    [Bytes::copy_from_slice(&(body.len() as u32).to_le_bytes()), body.clone()]
}

/// Writes all pieces with as few system calls as they allow. Not cancel safe.
pub(crate) async fn write_pieces<W: AsyncWrite + Unpin>(stream: &mut W, pieces: &[Bytes]) -> io::Result<()> {
    let mut at = 0;
    let mut offset = 0;
    while at < pieces.len() {
        if offset == pieces[at].len() {
            at += 1;
            offset = 0;
            continue;
        }
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let mut count = 0;
        for (index, piece) in pieces[at..].iter().take(PIECES_MAX).enumerate() {
            slices[index] = IoSlice::new(if index == 0 { &piece[offset..] } else { piece });
            count = index + 1;
        }
        let mut written = stream.write_vectored(&slices[..count]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while written > 0 {
            let left = pieces[at].len() - offset;
            if written < left {
                offset += written;
                break;
            }
            written -= left;
            at += 1;
            offset = 0;
        }
    }
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_whole_however_they_are_cut() {
        let (mut near, far) = tokio::io::duplex(7);
        let messages: Vec<Bytes> = (0..50usize).map(|len| Bytes::from(vec![len as u8; len * 3])).collect();
        let sent = messages.clone();
        let writing = tokio::spawn(async move {
            let pieces: Vec<Bytes> = sent.iter().flat_map(framed).collect();
            write_pieces(&mut near, &pieces).await
        });
        let mut reader = Reader::new(far, 1024);
        for message in messages {
            assert_eq!(reader.next().await.unwrap(), Some(message));
        }
        writing.await.unwrap().unwrap();
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_message_beyond_the_bound_is_refused_before_memory_is_taken() {
        let (mut near, far) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut near, &u32::MAX.to_le_bytes()).await.unwrap();
        let error = Reader::new(far, 1024).next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
