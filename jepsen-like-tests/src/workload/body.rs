//! Message bodies that can vouch for themselves: the key, filler of the wished size, and a checksum over both.
//!
//! The consumer takes the key from the body and not from a property, so that a body stored under the wrong name, cut or
//! mixed up shows as a message that nobody sent next to one that got lost.
//!
//! | bytes | holds |
//! |---|---|
//! | key | text without line feed |
//! | 1 | line feed |
//! | rest − 4 | filler, repeating the key |
//! | 4 | crc32c of all before, little endian |

use bytes::{BufMut, Bytes, BytesMut};

/// The body of message `key`, `size` bytes long or as long as the key needs.
pub fn body_of(key: &str, size: usize) -> Bytes {
    debug_assert!(!key.contains('\n'), "a key is one line");
    let mut body = BytesMut::with_capacity(size.max(key.len() + 5));
    body.put_slice(key.as_bytes());
    body.put_u8(b'\n');
    let filler = size.saturating_sub(body.len() + 4);
    body.extend(key.bytes().cycle().take(filler));
    let crc = crc32c::crc32c(&body);
    body.put_u32_le(crc);
    body.freeze()
}

/// The key in `body`; `None` if the body is not as [`body_of`] made it.
pub fn key_of(body: &[u8]) -> Option<&str> {
    let (checked, crc) = body.split_last_chunk::<4>()?;
    if crc32c::crc32c(checked) != u32::from_le_bytes(*crc) {
        return None;
    }
    let end = checked.iter().position(|byte| *byte == b'\n')?;
    std::str::from_utf8(&checked[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_comes_back_from_a_body_of_any_size() {
        for size in 0..200 {
            let body = body_of("run-1-2", size);
            assert_eq!(key_of(&body), Some("run-1-2"));
            assert_eq!(body.len(), size.max(12));
        }
    }

    #[test]
    fn a_damaged_body_has_no_key() {
        let body = body_of("run-1-2", 64);
        for at in 0..body.len() {
            let mut damaged = body.to_vec();
            damaged[at] ^= 1;
            assert_eq!(key_of(&damaged), None, "byte {at}");
            assert_eq!(key_of(&body[..at]), None, "cut at {at}");
        }
    }
}
