//! The message id that clients make: 17 bytes, written as 34 upper-case hex characters.
//!
//! ```text
//! 01 | last 6 bytes of a MAC address (here: random) | low 2 bytes of the process id | seconds since 2021-01-01 UTC (4) | sequence (4)
//! ```
//! A retry keeps its id, which is what the broker recognises a repeated send by.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::time::Timestamp;

/// 2021-01-01T00:00:00Z in seconds since 1970.
const EPOCH_2021_SECONDS: u64 = 1_609_459_200;

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Makes ids that no other factory makes, as long as (`node`, `process`) is unique. Thread safe.
#[derive(Debug)]
pub struct MessageIds {
    prefix: [u8; 9],
    sequence: AtomicU32,
}

impl MessageIds {
    /// `node` stands where RocketMQ has the MAC address; pass random bytes, since containers share MAC addresses and process ids.
    pub fn new(node: [u8; 6], process: u16) -> Self {
        let mut prefix = [0; 9];
        prefix[0] = 1;
        prefix[1..7].copy_from_slice(&node);
        prefix[7..].copy_from_slice(&process.to_be_bytes());
        Self { prefix, sequence: AtomicU32::new(0) }
    }

    /// The next id, stamped with `now`.
    pub fn next(&self, now: Timestamp) -> String {
        let seconds = (now.0 / 1000).saturating_sub(EPOCH_2021_SECONDS) as u32;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let mut text = String::with_capacity(34);
        for byte in self.prefix.iter().chain(&seconds.to_be_bytes()).chain(&sequence.to_be_bytes()) {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(HEX[usize::from(digit)]));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_34_hex_characters_in_rocketmq_s_layout() {
        let ids = MessageIds::new([0xAA, 1, 2, 3, 4, 0xFF], 0x1234);
        let now = Timestamp((EPOCH_2021_SECONDS + 258) * 1000 + 999);
        assert_eq!(ids.next(now), "01AA01020304FF12340000010200000000");
        assert_eq!(ids.next(now), "01AA01020304FF12340000010200000001");
    }
}
