//! Header blocks (RFC 7541) as a row of fields: enough of HPACK to find a field and to put another value of the same length
//! in its place. No header is decoded into a map and no dynamic table is kept; that is h2's work, which reads the block next.
//!
//! ```text
//! 1iiiiiii                       a field from the tables
//! 001sssss                       the dynamic table gets another size
//! 01iiiiii [name] value          a literal field that enters the dynamic table
//! 000niiii [name] value          a literal field that does not (n: on no later leg either)
//! ```
//! `i` = 0: the name follows as a string. A number that fills its bits goes on in bytes of seven bits, lowest first. A string is
//! `Hlllllll`, its length, and so many bytes; with H they are Huffman-coded.

use std::ops::Range;

use http::uri::Authority;

use crate::huffman;

const AUTHORITY: &[u8] = b":authority";
/// `:authority` as Huffman's only encoding of it.
const AUTHORITY_HUFFMAN: &[u8] = b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f";
/// `:authority` in the static table.
const AUTHORITY_INDEX: usize = 1;

/// Puts readable authorities into a header block. `None`: nothing to do, or no well-formed block (h2 will say so).
///
/// Each literal `:authority` that [`Authority`] refuses gets a value that it accepts, of the same decoded length, in the same
/// coding, under the same kind of field: the dynamic tables of both sides stay equal in entries and in size. The new block is
/// never longer. A name that stands in the dynamic table is not looked up; official encoders name `:authority` by the static
/// table or in full.
///
/// `whole`: the block ends here. Otherwise its last field may be cut off, and is left as it is.
pub(crate) fn mend_authorities(block: &[u8], whole: bool) -> Option<Vec<u8>> {
    let mut fields = Fields { block, at: 0 };
    let mut mended: Option<Vec<u8>> = None;
    let mut copied = 0;
    while fields.at < block.len() {
        match fields.next_literal() {
            Ok(Some(field)) if field.is_authority(block) => {
                let Some(value) = readable(&block[field.value.bytes.clone()], field.value.huffman) else { continue };
                let mended = mended.get_or_insert_with(|| Vec::with_capacity(block.len()));
                mended.extend_from_slice(&block[copied..field.value.start]);
                push_string(mended, &value, field.value.huffman);
                copied = field.value.bytes.end;
            }
            Ok(_) => {}
            Err(NoField::CutOff) if !whole => break,
            Err(NoField::CutOff | NoField::Malformed) => return None,
        }
    }
    let mut mended = mended?;
    mended.extend_from_slice(&block[copied..]);
    Some(mended)
}

/// Another value for an authority that nobody could read; `None` if it can be read, or not even decoded.
fn readable(value: &[u8], huffman: bool) -> Option<Vec<u8>> {
    let mut value = if huffman {
        if huffman::decode(value).all(|byte| byte.is_ok_and(is_ordinary)) {
            return None;
        }
        huffman::decode(value).collect::<Result<Vec<_>, _>>().ok()?
    } else {
        if value.iter().copied().all(is_ordinary) {
            return None;
        }
        value.to_vec()
    };
    if is_authority(&value) {
        return None;
    }
    for byte in value.iter_mut().filter(|byte| !is_ordinary(**byte)) {
        *byte = b'.';
    }
    is_authority(&value).then_some(value)
}

/// Whether a byte may stand anywhere in a host's name.
fn is_ordinary(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-'
}

/// Asks the parser that h2 asks.
fn is_authority(value: &[u8]) -> bool {
    Authority::try_from(value).is_ok()
}

/// Appends a string. Huffman's code gives fewer than six bits to letters and digits alone, and six to a full stop: what [`readable`]
/// puts in place of something is never longer.
fn push_string(block: &mut Vec<u8>, value: &[u8], huffman: bool) {
    if huffman {
        let encoded = huffman::encode(value);
        push_number(block, 0x80, 7, encoded.len());
        block.extend(encoded);
    } else {
        push_number(block, 0, 7, value.len());
        block.extend_from_slice(value);
    }
}

/// Appends a number whose first `bits` bits share a byte with `flags`.
fn push_number(block: &mut Vec<u8>, flags: u8, bits: u32, number: usize) {
    let full = (1 << bits) - 1;
    if number < full {
        return block.push(flags | number as u8);
    }
    block.push(flags | full as u8);
    let mut rest = number - full;
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// Walks over a block.
struct Fields<'a> {
    block: &'a [u8],
    at: usize,
}

/// A field with its value in the block.
struct Literal {
    index: usize,
    name: Option<Text>,
    value: Text,
}

/// Where a string is: its length from `start`, its bytes behind that.
struct Text {
    start: usize,
    bytes: Range<usize>,
    huffman: bool,
}

/// Why there is no next field.
enum NoField {
    /// The block ends within it.
    CutOff,
    /// A number beyond all lengths.
    Malformed,
}

impl Literal {
    fn is_authority(&self, block: &[u8]) -> bool {
        match &self.name {
            None => self.index == AUTHORITY_INDEX,
            Some(name) => block[name.bytes.clone()] == *if name.huffman { AUTHORITY_HUFFMAN } else { AUTHORITY },
        }
    }
}

impl Fields<'_> {
    /// Steps over one field; `None` if it is no literal.
    fn next_literal(&mut self) -> Result<Option<Literal>, NoField> {
        let first = *self.block.get(self.at).ok_or(NoField::CutOff)?;
        let index = match first.leading_zeros() {
            0 => return self.number(7).map(|_| None),
            1 => self.number(6)?,
            2 => return self.number(5).map(|_| None),
            3.. => self.number(4)?,
        };
        let name = if index == 0 { Some(self.text()?) } else { None };
        Ok(Some(Literal { index, name, value: self.text()? }))
    }

    fn text(&mut self) -> Result<Text, NoField> {
        let start = self.at;
        let huffman = self.block.get(start).ok_or(NoField::CutOff)? & 0x80 != 0;
        let length = self.number(7)?;
        let bytes = self.at..self.at + length;
        if bytes.end > self.block.len() {
            return Err(NoField::CutOff);
        }
        self.at = bytes.end;
        Ok(Text { start, bytes, huffman })
    }

    /// A number of up to 28 bits and a prefix; no length of ours needs more.
    fn number(&mut self, bits: u32) -> Result<usize, NoField> {
        let full = (1 << bits) - 1;
        let mut number = usize::from(self.byte()?) & full;
        if number < full {
            return Ok(number);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(NoField::Malformed)
    }

    fn byte(&mut self) -> Result<u8, NoField> {
        let byte = *self.block.get(self.at).ok_or(NoField::CutOff)?;
        self.at += 1;
        Ok(byte)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: &[u8] = b"127.0.0.1:28091,127.0.0.1:28092";
    const MENDED: &[u8] = b"127.0.0.1.28091.127.0.0.1.28092";

    /// A literal field: `kind` is its first byte, with the index of the name in it.
    fn literal(kind: u8, name: Option<(&[u8], bool)>, value: (&[u8], bool)) -> Vec<u8> {
        let mut field = vec![kind];
        if let Some((name, huffman)) = name {
            push_string(&mut field, name, huffman);
        }
        push_string(&mut field, value.0, value.1);
        field
    }

    fn mend(block: &[u8]) -> Option<Vec<u8>> {
        mend_authorities(block, true)
    }

    #[test]
    fn a_list_becomes_one_name_of_the_same_length_under_every_kind_of_literal() {
        for huffman in [false, true] {
            for kind in [0x40, 0x00, 0x10] {
                let cases = [(kind | 1, None), (kind, Some((AUTHORITY, false))), (kind, Some((AUTHORITY, true)))];
                for (kind, name) in cases {
                    let rest = literal(0x40, Some((b"te", true)), (b"trailers", true));
                    let block = [b"\x3f\xe1\x1f\x83", &*literal(kind, name, (LIST, huffman)), &*rest].concat();
                    let expected = [b"\x3f\xe1\x1f\x83", &*literal(kind, name, (MENDED, huffman)), &*rest].concat();
                    assert_eq!(mend(&block), Some(expected), "kind {kind:#x}, {name:?}, huffman {huffman}");
                }
            }
        }
    }

    #[test]
    fn what_can_be_read_stays() {
        for value in ["a", "127.0.0.1:8081", "[::1]:8081", "host-1.example:80", "u@host", ""] {
            for huffman in [false, true] {
                assert_eq!(mend(&literal(0x41, None, (value.as_bytes(), huffman))), None, "{value}");
            }
        }
    }

    #[test]
    fn only_the_authority_is_touched() {
        assert_eq!(mend(&literal(0x44, None, (b"/a,b", false))), None);
        assert_eq!(mend(&literal(0x40, Some((b"x", false)), (LIST, false))), None);
        assert_eq!(mend(&literal(0x7e, None, (LIST, false))), None);
    }

    #[test]
    fn of_several_each_is_mended() {
        let (raw, coded) = (literal(0x41, None, (LIST, false)), literal(0x01, None, (LIST, true)));
        let expected = [literal(0x41, None, (MENDED, false)), vec![0x82], literal(0x01, None, (MENDED, true))].concat();
        assert_eq!(mend(&[raw, vec![0x82], coded].concat()), Some(expected));
    }

    #[test]
    fn a_block_that_is_not_well_formed_stays() {
        let good = literal(0x41, None, (LIST, false));
        assert_eq!(mend(&good[..good.len() - 1]), None, "cut off within the value");
        assert_eq!(mend(&[&*good, b"\x41"].concat()), None, "cut off behind it");
        assert_eq!(mend(&[&*good, b"\xff\xff\xff\xff\xff\x01"].concat()), None, "a number without end");
        assert_eq!(mend(b"\x41\x81\x00"), None, "not Huffman's");
        assert_eq!(mend(b""), None);
    }

    /// The first part of a block that a CONTINUATION frame carries on.
    #[test]
    fn what_is_whole_in_a_part_of_a_block_is_mended() {
        let block = [&*literal(0x41, None, (LIST, true)), b"\x40\x09x-"].concat();
        let expected = [&*literal(0x41, None, (MENDED, true)), b"\x40\x09x-"].concat();
        assert_eq!(mend_authorities(&block, false), Some(expected));
        assert_eq!(mend_authorities(&block[..9], false), None);
    }

    #[test]
    fn the_name_in_huffman_s_code_is_the_name() {
        assert_eq!(huffman::encode(AUTHORITY), AUTHORITY_HUFFMAN);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic_nor_grow(block: Vec<u8>, whole: bool) {
            let mended = mend_authorities(&block, whole);
            prop_assert!(mended.is_none_or(|mended| mended.len() <= block.len()));
        }

        #[test]
        fn every_authority_can_be_read_afterwards(
            value in proptest::collection::vec(any::<u8>(), 1..300), huffman: bool,
        ) {
            let block = literal(0x41, None, (&value, huffman));
            let block = mend(&block).inspect(|mended| assert!(mended.len() <= block.len())).unwrap_or(block);
            let mut fields = Fields { block: &block, at: 0 };
            let Ok(Some(field)) = fields.next_literal() else { panic!("no field") };
            let text = &block[field.value.bytes];
            let text = if huffman { huffman::decode(text).collect::<Result<Vec<_>, _>>().unwrap() } else { text.to_vec() };
            prop_assert_eq!(text.len(), value.len());
            prop_assert!(is_authority(&text));
            prop_assert_eq!(mend(&block), None);
        }
    }
}
