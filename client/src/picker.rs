//! Which address a call goes to. Pure: time comes in, nothing is waited for.
//!
//! The order of the route is the order of preference (the leader stands first). An address that failed is avoided for a while, and on
//! request one that answered slowly too, by the table of RocketMQ's `MQFaultStrategy`. Avoided never means unusable: when every address
//! is avoided, the one that has been so longest is tried, so a client is never stuck on its own memory.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// What spoke against an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It answered, after this long.
    Slow(Duration),
    /// It could not be reached, lost the call, or never answered.
    Failed,
}

/// (Latency of at least, avoided for): RocketMQ 5's `latencyMax` and `notAvailableDuration`, in milliseconds.
const LATENCY_TABLE: [(u64, u64); 7] =
    [(15_000, 30_000), (5_000, 10_000), (3_000, 6_000), (1_800, 5_000), (550, 2_000), (100, 0), (50, 0)];

/// A failure weighs as much as a latency of 10 s does.
const FAILED_AS_LATENCY: Duration = Duration::from_secs(10);

/// Remembers which addresses to avoid, and chooses.
#[derive(Clone, Debug, Default)]
pub struct Picker {
    avoided: BTreeMap<Arc<str>, Duration>,
}

impl Picker {
    /// Notes what spoke against `address` at `now` (any monotonic time).
    pub fn blame(&mut self, address: &Arc<str>, fault: Fault, now: Duration) {
        let latency = match fault {
            Fault::Slow(latency) => latency,
            Fault::Failed => FAILED_AS_LATENCY,
        };
        let until = now + avoided_for(latency);
        if until > now {
            let entry = self.avoided.entry(address.clone()).or_default();
            *entry = until.max(*entry);
        }
    }

    /// Forgets what spoke against `address`: it has answered a heartbeat or a call.
    pub fn clear(&mut self, address: &str) {
        if !self.avoided.is_empty() {
            self.avoided.remove(address);
        }
    }

    /// The place in `addresses` of the one to use at `now`: the first that is not avoided, else the one whose time is up first.
    /// `None` if all of them are in `tried`.
    pub fn choose(&self, addresses: &[Arc<str>], tried: &[Arc<str>], now: Duration) -> Option<usize> {
        if self.avoided.is_empty() && tried.is_empty() {
            return (!addresses.is_empty()).then_some(0);
        }
        let avoided_until = |address: &Arc<str>| self.avoided.get(address).copied().filter(|until| *until > now);
        let candidates = addresses.iter().enumerate().filter(|(_, address)| !tried.contains(address));
        candidates.min_by_key(|(place, address)| (avoided_until(address), *place)).map(|(place, _)| place)
    }
}

fn avoided_for(latency: Duration) -> Duration {
    let latency = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
    let row = LATENCY_TABLE.iter().find(|(at_least, _)| latency >= *at_least);
    Duration::from_millis(row.map_or(0, |(_, avoided)| *avoided))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn addresses(count: usize) -> Vec<Arc<str>> {
        (0..count).map(|n| Arc::from(format!("n{n}:1"))).collect()
    }

    #[test]
    fn the_first_address_is_used_until_it_fails_and_again_ten_seconds_later() {
        let (mut picker, all) = (Picker::default(), addresses(3));
        assert_eq!(picker.choose(&all, &[], SECOND), Some(0));
        picker.blame(&all[0], Fault::Failed, SECOND);
        assert_eq!(picker.choose(&all, &[], SECOND), Some(1));
        assert_eq!(picker.choose(&all, &[], 10 * SECOND), Some(1));
        assert_eq!(picker.choose(&all, &[], 11 * SECOND), Some(0));
        picker.blame(&all[0], Fault::Failed, 12 * SECOND);
        picker.clear(&all[0]);
        assert_eq!(picker.choose(&all, &[], 12 * SECOND), Some(0));
    }

    #[test]
    fn when_all_are_avoided_the_one_whose_time_is_up_first_is_tried() {
        let (mut picker, all) = (Picker::default(), addresses(3));
        picker.blame(&all[1], Fault::Failed, SECOND);
        picker.blame(&all[0], Fault::Failed, 2 * SECOND);
        picker.blame(&all[2], Fault::Failed, 3 * SECOND);
        assert_eq!(picker.choose(&all, &[], 3 * SECOND), Some(1));
        assert_eq!(picker.choose(&all, &[all[1].clone()], 3 * SECOND), Some(0));
        assert_eq!(picker.choose(&all, &all, 3 * SECOND), None);
    }

    #[test]
    fn a_slow_answer_is_held_against_an_address_by_rocketmq_s_table() {
        let table =
            [(549, 0), (550, 2_000), (1_799, 2_000), (1_800, 5_000), (3_000, 6_000), (5_000, 10_000), (60_000, 30_000)];
        for (latency, avoided) in table {
            let (mut picker, all) = (Picker::default(), addresses(2));
            picker.blame(&all[0], Fault::Slow(Duration::from_millis(latency)), SECOND);
            let at = |ms| picker.choose(&all, &[], SECOND + Duration::from_millis(ms));
            assert_eq!(at(avoided), Some(0), "{latency}");
            if avoided > 0 {
                assert_eq!(at(avoided - 1), Some(1), "{latency}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_untried_address_is_always_found_and_a_blameless_one_preferred(
            count in 1usize..6, blamed in prop::collection::vec((0usize..6, 0u64..40), 0..8),
            tried in prop::collection::vec(0usize..6, 0..6), now in 0u64..40,
        ) {
            let (mut picker, all) = (Picker::default(), addresses(count));
            for (place, at) in &blamed {
                if *place < count {
                    picker.blame(&all[*place], Fault::Failed, SECOND * *at as u32);
                }
            }
            let tried: Vec<Arc<str>> = tried.into_iter().filter(|place| *place < count).map(|place| all[place].clone()).collect();
            let is_blamed = |place: usize| blamed.iter().any(|(other, at)| *other == place && at + 10 > now);
            let chosen = picker.choose(&all, &tried, SECOND * now as u32);
            let untried: Vec<usize> = (0..count).filter(|place| !tried.contains(&all[*place])).collect();
            prop_assert_eq!(chosen.is_none(), untried.is_empty());
            if let Some(chosen) = chosen {
                prop_assert!(untried.contains(&chosen));
                let first_blameless = untried.iter().copied().find(|place| !is_blamed(*place));
                prop_assert_eq!(first_blameless.unwrap_or(chosen), chosen);
            }
        }
    }
}
