//! How long to wait before trying again. Pure: chance comes in as a number.

use std::time::Duration;

/// Waits that grow by a factor up to a bound, each spread over its upper half so that many clients do not return at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    multiplier: f64,
    next: Duration,
}

impl Backoff {
    /// The first wait is at most `initial`, none is longer than `max`. A multiplier below 1 counts as 1.
    pub fn new(initial: Duration, max: Duration, multiplier: f64) -> Self {
        Self { initial, max, multiplier: multiplier.max(1.0), next: initial.min(max) }
    }

    /// RocketMQ's producer policy: 10 ms, doubled, at most 1 s.
    pub fn producer() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_secs(1), 2.0)
    }

    /// The next wait, between half and all of the current step. `chance` lies in 0 .. 1.
    pub fn next(&mut self, chance: f64) -> Duration {
        let step = self.next;
        self.next = step.mul_f64(self.multiplier).min(self.max);
        step.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
    }

    /// Back to the first step, after a success.
    pub fn reset(&mut self) {
        self.next = self.initial.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_again_after_a_success() {
        let mut backoff = Backoff::producer();
        let waits: Vec<u128> = (0..9).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0), Duration::from_millis(5));
    }

    proptest! {
        #[test]
        fn a_wait_lies_between_half_the_step_and_the_bound(
            initial in 0u64..5_000, max in 0u64..5_000, multiplier in 0.0f64..8.0, chances in prop::collection::vec(0.0f64..1.0, 1..20),
        ) {
            let max = Duration::from_millis(max);
            let mut backoff = Backoff::new(Duration::from_millis(initial), max, multiplier);
            let mut step = Duration::from_millis(initial).min(max);
            for chance in chances {
                let wait = backoff.next(chance);
                prop_assert!(wait <= max && wait >= step.mul_f64(0.499), "{wait:?} of {step:?}");
                step = step.mul_f64(multiplier.max(1.0)).min(max);
            }
        }
    }
}
