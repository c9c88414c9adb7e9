//! The Huffman code of HPACK (RFC 7541, Appendix B), as far as `hpack` needs it: single strings, in no hurry.
//!
//! The code is canonical: symbols ordered by (length of their code, number) have codes that count upwards. So the whole of
//! Appendix B follows from one list of lengths, which is small enough to be held against another implementation symbol by
//! symbol (see the tests). Codes grow from their first bit, and the text ends in fewer than eight ones.

/// How many bits the code of each byte has, and last that of the end mark, which no text may hold.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,  5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,  6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const SYMBOLS: usize = 257;
const END_MARK: u16 = 256;
const LENGTH_LAST: usize = 30;

static CODE: Code = Code::from_lengths();

/// The code both ways.
struct Code {
    /// The code of each symbol, in its lowest bits.
    codes: [u32; SYMBOLS],
    /// The symbols by (length, number).
    ordered: [u16; SYMBOLS],
    /// For each length: the code of its first symbol, where that is in `ordered`, and how many symbols have this length.
    first: [(u32, u16, u16); LENGTH_LAST + 1],
}

impl Code {
    const fn from_lengths() -> Self {
        let mut made = Self { codes: [0; SYMBOLS], ordered: [0; SYMBOLS], first: [(0, 0, 0); LENGTH_LAST + 1] };
        let (mut code, mut place, mut length) = (0_u32, 0_u16, 1);
        while length <= LENGTH_LAST {
            code <<= 1;
            made.first[length] = (code, place, 0);
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if LENGTHS[symbol] as usize == length {
                    made.codes[symbol] = code;
                    made.ordered[place as usize] = symbol as u16;
                    made.first[length].2 += 1;
                    code += 1;
                    place += 1;
                }
                symbol += 1;
            }
            length += 1;
        }
        made
    }

    /// The symbol whose code is the `length` bits of `code`, if they are one.
    fn symbol(&self, code: u32, length: usize) -> Option<u16> {
        let (first, place, count) = self.first[length];
        let nth = code.checked_sub(first).filter(|nth| *nth < u32::from(count))?;
        Some(self.ordered[usize::from(place) + nth as usize])
    }
}

/// The text is not one that an encoder makes: the end mark within, or bits left over that are not a short run of ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotHuffman;

/// The bytes of an encoded text, one after the other; ends after the first [`NotHuffman`]. Allocates nothing.
pub(crate) fn decode(text: &[u8]) -> impl Iterator<Item = Result<u8, NotHuffman>> {
    Decode { text, bit: 0 }
}

struct Decode<'a> {
    text: &'a [u8],
    bit: usize,
}

impl Iterator for Decode<'_> {
    type Item = Result<u8, NotHuffman>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut code, mut length) = (0, 0);
        while let Some(byte) = self.text.get(self.bit / 8) {
            code = code << 1 | u32::from(byte >> (7 - self.bit % 8) & 1);
            length += 1;
            self.bit += 1;
            match CODE.symbol(code, length) {
                Some(END_MARK) => return Some(Err(self.stop())),
                Some(symbol) => return Some(Ok(symbol as u8)),
                None if length == LENGTH_LAST => return Some(Err(self.stop())),
                None => {}
            }
        }
        let padding = length < 8 && code == (1 << length) - 1;
        if padding { None } else { Some(Err(self.stop())) }
    }
}

impl Decode<'_> {
    fn stop(&mut self) -> NotHuffman {
        self.text = &[];
        self.bit = 0;
        NotHuffman
    }
}

/// The encoded form of `text`; there is only one.
pub(crate) fn encode(text: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(text.len());
    let (mut bits, mut count) = (0_u64, 0);
    for byte in text {
        let length = LENGTHS[usize::from(*byte)];
        bits = bits << length | u64::from(CODE.codes[usize::from(*byte)]);
        count += length;
        while count >= 8 {
            count -= 8;
            encoded.push((bits >> count) as u8);
        }
    }
    if count > 0 {
        encoded.push((bits << (8 - count)) as u8 | 0xff >> count);
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every code is counted once: the last one, of the end mark, is all ones, so no two overlap and no bits are without meaning.
    #[test]
    fn the_code_is_complete() {
        assert_eq!(CODE.codes[usize::from(END_MARK)], (1 << LENGTH_LAST) - 1);
        assert_eq!(CODE.first.iter().map(|(_, _, count)| usize::from(*count)).sum::<usize>(), SYMBOLS);
    }

    #[test]
    fn the_examples_of_the_rfc_come_out() {
        // RFC 7541, appendix C.4.1 and C.4.3.
        assert_eq!(encode(b"www.example.com"), b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff");
        assert_eq!(encode(b"custom-value"), b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf");
    }

    /// Holds the code against h2's, with every byte that a header value can carry. The control characters are left over; all of
    /// their codes are known to be among those left over too, and which of them is which matters to nobody here, because each
    /// is one byte that no authority may hold.
    #[tokio::test]
    async fn h2_reads_what_we_encode() {
        use tokio::io::AsyncWriteExt as _;
        let value: Vec<u8> = (0..=255).filter(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 127)).collect();
        let encoded = encode(&value);
        let mut block = b"\x82\x84\x86\x41\x01a\x40\x01x".to_vec();
        block.extend([0xff, (encoded.len() - 127) as u8 | 0x80, ((encoded.len() - 127) >> 7) as u8]);
        block.extend(&encoded);
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        sent.extend([0, (block.len() >> 8) as u8, block.len() as u8, 1, 5, 0, 0, 0, 1]);
        sent.extend(block);

        let (mut client, server) = tokio::io::duplex(64 * 1024);
        client.write_all(&sent).await.expect("fits the pipe");
        let mut connection = h2::server::handshake(server).await.expect("a preface");
        let (request, _) = connection.accept().await.expect("a request").expect("a well-formed one");
        assert_eq!(request.headers()["x"].as_bytes(), value);
    }

    #[test]
    fn what_no_encoder_makes_is_refused() {
        let decoded = |text: &[u8]| decode(text).collect::<Result<Vec<_>, _>>();
        assert_eq!(decoded(b""), Ok(vec![]));
        assert_eq!(decoded(b"\x07"), Ok(vec![b'0']), "five bits and three ones");
        assert_eq!(decoded(b"\x00\x00"), Err(NotHuffman), "one bit over, and a zero");
        assert_eq!(decoded(b"\x06"), Err(NotHuffman), "filled up with other than ones");
        assert_eq!(decoded(b"\x07\xff"), Err(NotHuffman), "a byte of filling too many");
        assert_eq!(decoded(b"\xff\xff\xff\xff"), Err(NotHuffman), "the end mark");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&text)).collect::<Result<Vec<_>, _>>(), Ok(text));
        }

        /// There is one encoding of a text only, so what decodes encodes to itself.
        #[test]
        fn what_decodes_encodes_to_itself(encoded: Vec<u8>) {
            if let Ok(text) = decode(&encoded).collect::<Result<Vec<_>, _>>() {
                prop_assert_eq!(encode(&text), encoded);
            }
        }
    }
}
