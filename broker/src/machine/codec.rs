//! Little-endian bytes in and out: the one way the machine writes what lasts (commands, images, receipt handles).
//!
//! A [`Reader`] is handed bytes from the log, from disk or from a client. It never panics, never reads past the end, and
//! [`Reader::count`] refuses a length that the bytes left could not hold, so nobody can make it allocate by lying.

use bytes::{BufMut, Bytes};

/// Bytes that do not say what they should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct DecodeError {
    /// What is wrong.
    pub what: &'static str,
    /// Where, counted from the start of the bytes.
    pub at: usize,
}

/// Takes fields off the front of some bytes.
#[derive(Clone)]
pub struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    /// Starts at the first byte.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error at the current place.
    pub fn error(&self, what: &'static str) -> DecodeError {
        DecodeError { what, at: self.at }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let end = self.at + N;
        let slice = self.bytes.get(self.at..end).ok_or(DecodeError { what: "ends too soon", at: self.at })?;
        self.at = end;
        Ok(slice.try_into().expect("the slice was cut to N bytes"))
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Sixteen bytes.
    pub fn u128(&mut self) -> Result<u128, DecodeError> {
        self.array().map(u128::from_le_bytes)
    }

    /// A byte that must be 0 or 1.
    pub fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError { what: "neither 0 nor 1", at: self.at - 1 }),
        }
    }

    /// A number of items of at least `item_bytes` each that follow.
    pub fn count(&mut self, item_bytes: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        if count > self.left() / item_bytes.max(1) {
            return Err(self.error("counts more items than there are bytes"));
        }
        Ok(count)
    }

    /// The next `len` bytes, sharing the memory they stand in.
    pub fn slice(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        if len > self.left() {
            return Err(self.error("ends too soon"));
        }
        let slice = self.bytes.slice(self.at..self.at + len);
        self.at += len;
        Ok(slice)
    }

    /// Text behind its length in one byte, parsed by `parse`.
    pub fn text<T, E>(
        &mut self,
        parse: impl FnOnce(&str) -> Result<T, E>,
        what: &'static str,
    ) -> Result<T, DecodeError> {
        let at = self.at;
        let len = usize::from(self.u8()?);
        let bytes = self.slice(len)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| DecodeError { what, at })?;
        parse(text).map_err(|_| DecodeError { what, at })
    }

    /// Nothing must be left.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.left() == 0 { Ok(()) } else { Err(self.error("bytes behind the end")) }
    }
}

/// Writes text of at most 255 bytes behind its length, as [`Reader::text`] takes it.
pub fn put_text(out: &mut impl BufMut, text: &str) {
    let len = u8::try_from(text.len()).expect("a parsed name has at most 127 bytes");
    out.put_u8(len);
    out.put_slice(text.as_bytes());
}

/// A stored sample of a format: what is in files out there. `UPDATE_SCRIPTS=1` stores `now` instead, for a new version.
#[cfg(test)]
pub(crate) fn sample(name: &str, now: &[u8]) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format").join(name);
    if std::env::var_os("UPDATE_SCRIPTS").is_some() {
        std::fs::write(&path, now).expect("writable");
    }
    std::fs::read(&path).expect("the sample is there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_the_bytes_cannot_hold_is_refused() {
        let mut reader = Reader::new(Bytes::from_static(&[3, 0, 0, 0, 1, 2, 3, 4, 5]));
        assert!(reader.count(2).is_err());
        let mut reader = Reader::new(Bytes::from_static(&[2, 0, 0, 0, 1, 2, 3, 4]));
        assert_eq!(reader.count(2), Ok(2));
    }

    #[test]
    fn reading_past_the_end_is_an_error_that_says_where() {
        let mut reader = Reader::new(Bytes::from_static(&[1, 2, 3]));
        assert_eq!(reader.u16(), Ok(0x0201));
        assert_eq!(reader.u16(), Err(DecodeError { what: "ends too soon", at: 2 }));
        assert_eq!(reader.slice(2), Err(DecodeError { what: "ends too soon", at: 2 }));
        assert!(reader.end().is_err());
        assert_eq!(reader.u8(), Ok(3));
        assert_eq!(reader.end(), Ok(()));
    }
}
