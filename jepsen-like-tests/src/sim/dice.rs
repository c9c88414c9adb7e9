//! The chance of a run: every draw comes from the seed and from what the draw is for.
//!
//! A stream of its own per purpose keeps seeds meaningful while the simulator grows: a new draw of the nemesis does not
//! move the draws of the clients. The generator is written out here because a kept seed must still mean the same run after
//! an update of a random-number crate.

use std::{ops::RangeInclusive, time::Duration};

/// One stream of draws.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The stream for one purpose under one seed.
    pub fn new(seed: u64, purpose: &str) -> Self {
        Self(purpose.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte))))
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`, which must not be zero.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "nothing to draw from");
        ((u128::from(self.draw()) * u128::from(end)) >> 64) as u64
    }

    /// A number of the range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// A duration of so many milliseconds, drawn to the microsecond.
    pub fn millis(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_micros(self.within(range.start() * 1000..=range.end() * 1000))
    }

    /// True in `percent` of 100 draws.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of the things; `things` must not be empty.
    pub fn pick<T: Copy>(&mut self, things: &[T]) -> T {
        things[self.below(things.len() as u64) as usize]
    }
}

/// Spreads every bit of the input over the whole output (the finaliser of SplitMix64, Steele, Lea, Flood 2014).
pub(crate) fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A sum over bytes. Not a crc: images end with their own crc, which gives every one of them the same crc.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    words.fold(mix(bytes.len() as u64), |sum, word| mix(sum.rotate_left(1) ^ word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_one_seed_differ_by_purpose_and_repeat() {
        let draws = |purpose: &str| {
            let mut dice = Dice::new(7, purpose);
            [dice.draw(), dice.draw(), dice.draw()]
        };
        assert_eq!(draws("clients"), draws("clients"));
        assert_ne!(draws("clients"), draws("nemesis"));
    }

    #[test]
    fn draws_stay_in_their_range() {
        let mut dice = Dice::new(1, "range");
        for _ in 0..10_000 {
            assert!((3..=5).contains(&dice.within(3..=5)));
            let time = dice.millis(50..=400);
            assert!(time >= Duration::from_millis(50) && time <= Duration::from_millis(400));
        }
    }
}
