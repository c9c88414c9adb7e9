//! Which queue a message group belongs to, as the official Java and Go clients compute it: SipHash-2-4 with Guava's key, modulo the
//! number of queues. Two producers of one group must agree, whatever language they are written in.
//!
//! Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), §2; test vectors from its appendix A.

/// The bytes 0, 1, … 15 as two little-endian words.
const KEY: (u64, u64) = (0x0706_0504_0302_0100, 0x0F0E_0D0C_0B0A_0908);

/// The position of the queue, below `queues`, that messages of `group` go to. `queues` is at least 1.
pub fn queue_of_group(group: &str, queues: usize) -> usize {
    let hash = sip_hash_2_4(KEY, group.as_bytes()) as i64;
    hash.rem_euclid(i64::try_from(queues.max(1)).unwrap_or(i64::MAX)) as usize
}

/// SipHash with two rounds a word and four at the end.
pub fn sip_hash_2_4(key: (u64, u64), bytes: &[u8]) -> u64 {
    let mut state = [
        key.0 ^ 0x736f_6d65_7073_6575,
        key.1 ^ 0x646f_7261_6e64_6f6d,
        key.0 ^ 0x6c79_6765_6e65_7261,
        key.1 ^ 0x7465_6462_7974_6573,
    ];
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        absorb(&mut state, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    last[7] = bytes.len() as u8;
    absorb(&mut state, u64::from_le_bytes(last));
    state[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn absorb(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    round(state);
    round(state);
    state[0] ^= word;
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_paper_s_vectors_come_out() {
        let bytes: Vec<u8> = (0..15).collect();
        assert_eq!(sip_hash_2_4(KEY, &bytes), 0xa129_ca61_49be_45e5);
        assert_eq!(sip_hash_2_4(KEY, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(sip_hash_2_4(KEY, &[0]), 0x74f8_39c5_93dc_67fd);
    }

    proptest! {
        #[test]
        fn a_group_always_has_the_same_queue_and_it_exists(group in ".{0,70}", queues in 1usize..200) {
            let queue = queue_of_group(&group, queues);
            prop_assert!(queue < queues);
            prop_assert_eq!(queue, queue_of_group(&group, queues));
        }
    }
}
