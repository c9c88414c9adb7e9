//! Retries and dead letters: how often a consumer group gets a message, how long it waits in between, and what becomes of it then.
//!
//! ```text
//!   attempt 1 ── delay ──▶ attempt 2 ── delay ──▶ … attempt max ── its time runs out ──▶ DeadLetter
//!                                                                                          │ in one step: done in its queue,
//!                                          ForwardMessageToDeadLetterQueue ────────────────┘ a new record in %DLQ%<group>
//!                                          %DLQ%<group> ── Redrive: a new record in a topic, and never again for this dead letter
//! ```
//! Attempts are counted where messages are handed out, in [`super::pop`]; one that has no attempt left is never handed out again and waits
//! for its `DeadLetter`. The delays between attempts are the consumer's to keep: it hides what it could not work on for as long as the
//! policy says, which the settings of its group tell it. The machine keeps the policy and never acts on it.
//!
//! A dead letter is a record of its own, body included: it says where it came from, and retention counts from then on. DeadLetter names the
//! delivery and is refused if that is not the last word about the message, so any number of leaders may propose it (LAW-SAME). Which
//! dead letters were redriven is kept as runs of offsets, so that a redrive which stops half-way can be done again.
//!
//! Origin: RocketMQ's `SubscriptionGroupConfig.retryMaxTimes`, `CustomizedRetryPolicy` and `ExponentialRetryPolicy`; there a dead letter is
//! sent and then acknowledged, and a proxy that dies in between leaves it in both places.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};

use crate::machine::{
    codec::{DecodeError, Reader},
    ids::{GroupId, QueueId, QueueOffset, TopicId},
};

/// Most attempts that a consumer group may have.
pub const ATTEMPTS_MAX: u16 = 1000;
/// Most delays of a ladder.
pub const STEPS_MAX: usize = 32;
/// Longest delay between two attempts: what a consumer may hide a message for.
pub const DELAY_MS_MAX: u64 = 12 * 60 * 60 * 1000;
/// Largest factor between two exponential delays, in percent.
pub const FACTOR_PERCENT_MAX: u16 = 1000;

/// RocketMQ's retries, 16 of them, behind the first attempt.
const ATTEMPTS: u16 = 17;
/// RocketMQ's delays between them, in seconds.
const LADDER_S: [u64; 16] = [10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];
/// RocketMQ's delay between the attempts of an ordered consumer group, whose message group waits meanwhile.
const ORDERED_MS: u64 = 3000;

/// How often a consumer group gets a message, and how long it waits in between.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retry {
    max_attempts: u16,
    delays: Delays,
}

/// The delay before each attempt but the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delays {
    /// One after the other, in milliseconds; the last one again for all that follow.
    Ladder(Vec<u64>),
    /// Each so many times the one before.
    Exponential {
        /// The first one.
        initial_ms: u64,
        /// None is longer.
        max_ms: u64,
        /// How many times, in percent.
        factor_percent: u16,
    },
}

/// Why retry settings are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RetryError {
    /// No attempt, or too many.
    #[error("a message has 1 to {ATTEMPTS_MAX} attempts")]
    Attempts,
    /// No step, or too many.
    #[error("a ladder has 1 to {STEPS_MAX} delays")]
    Steps,
    /// A delay of nothing, or one that no consumer may hide a message for.
    #[error("a delay between attempts is 1ms to 12h")]
    Delay,
    /// Delays that become shorter, or explode.
    #[error("the factor of exponential delays is 1 to 10")]
    Factor,
    /// The longest is shorter than the first.
    #[error("the longest exponential delay is shorter than the first one")]
    Range,
}

impl Retry {
    /// Checks and owns retry settings.
    ///
    /// # Errors
    /// Says what is out of range.
    pub fn new(max_attempts: u16, delays: Delays) -> Result<Self, RetryError> {
        if !(1..=ATTEMPTS_MAX).contains(&max_attempts) {
            return Err(RetryError::Attempts);
        }
        let is_delay = |ms: &u64| (1..=DELAY_MS_MAX).contains(ms);
        match &delays {
            Delays::Ladder(steps) if steps.is_empty() || steps.len() > STEPS_MAX => return Err(RetryError::Steps),
            Delays::Ladder(steps) if !steps.iter().all(is_delay) => return Err(RetryError::Delay),
            Delays::Ladder(_) => {}
            Delays::Exponential { initial_ms, max_ms, .. } if !is_delay(initial_ms) || !is_delay(max_ms) => {
                return Err(RetryError::Delay);
            }
            Delays::Exponential { factor_percent, .. } if !(100..=FACTOR_PERCENT_MAX).contains(factor_percent) => {
                return Err(RetryError::Factor);
            }
            Delays::Exponential { initial_ms, max_ms, .. } if initial_ms > max_ms => return Err(RetryError::Range),
            Delays::Exponential { .. } => {}
        }
        Ok(Self { max_attempts, delays })
    }

    /// What RocketMQ does for a consumer group that says nothing.
    pub fn usual(fifo: bool) -> Self {
        Self { max_attempts: ATTEMPTS, delays: Delays::usual(fifo) }
    }

    /// How often a message is handed out, the first time included.
    pub fn max_attempts(&self) -> u16 {
        self.max_attempts
    }

    /// What lies between the attempts.
    pub fn delays(&self) -> &Delays {
        &self.delays
    }

    /// The delay before each attempt but the first, in milliseconds, as far as they differ: the last one holds for all that follow.
    pub fn steps(&self) -> Vec<u64> {
        let retries = usize::from(self.max_attempts - 1).max(1);
        match &self.delays {
            Delays::Ladder(steps) => steps.iter().copied().take(retries).collect(),
            Delays::Exponential { initial_ms, max_ms, factor_percent } => {
                let mut steps = vec![*initial_ms];
                while steps.len() < retries {
                    let last = steps[steps.len() - 1];
                    let next = (last * u64::from(*factor_percent) / 100).min(*max_ms);
                    if next == last {
                        break;
                    }
                    steps.push(next);
                }
                steps
            }
        }
    }

    pub(crate) fn encoded_len(&self) -> usize {
        let delays = match &self.delays {
            Delays::Ladder(steps) => 1 + 8 * steps.len(),
            Delays::Exponential { .. } => 8 + 8 + 2,
        };
        2 + 1 + delays
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u16_le(self.max_attempts);
        match &self.delays {
            Delays::Ladder(steps) => {
                out.put_u8(LADDER);
                out.put_u8(steps.len() as u8);
                for step in steps {
                    out.put_u64_le(*step);
                }
            }
            Delays::Exponential { initial_ms, max_ms, factor_percent } => {
                out.put_u8(EXPONENTIAL);
                out.put_u64_le(*initial_ms);
                out.put_u64_le(*max_ms);
                out.put_u16_le(*factor_percent);
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let max_attempts = reader.u16()?;
        let delays = match reader.u8()? {
            LADDER => {
                let count = reader.u8()?;
                Delays::Ladder((0..count).map(|_| reader.u64()).collect::<Result<_, _>>()?)
            }
            EXPONENTIAL => {
                Delays::Exponential { initial_ms: reader.u64()?, max_ms: reader.u64()?, factor_percent: reader.u16()? }
            }
            _ => return Err(reader.error("unknown delays between attempts")),
        };
        Self::new(max_attempts, delays).map_err(|_| reader.error("attempts or delays that cannot be"))
    }
}

const LADDER: u8 = 1;
const EXPONENTIAL: u8 = 2;

impl Delays {
    /// RocketMQ's: its ladder, or one short step for a consumer group that wants order.
    pub fn usual(fifo: bool) -> Self {
        Self::Ladder(if fifo { vec![ORDERED_MS] } else { LADDER_S.map(|seconds| seconds * 1000).to_vec() })
    }

    /// RocketMQ's exponential ones: from 5 s, twice as long each time, to 2 h.
    pub fn exponential() -> Self {
        Self::Exponential { initial_ms: 5_000, max_ms: 7_200_000, factor_percent: 200 }
    }
}

/// Dead letters that stand in a topic again.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Redriven {
    /// By queue of a dead letter topic: runs of offsets, first to end. Runs do not touch.
    runs: BTreeMap<(TopicId, QueueId), BTreeMap<u64, u64>>,
}

impl Redriven {
    /// This one was redriven.
    pub(crate) fn contains(&self, topic: TopicId, queue: QueueId, offset: QueueOffset) -> bool {
        let runs = self.runs.get(&(topic, queue));
        runs.and_then(|runs| runs.range(..=offset.0).next_back()).is_some_and(|(_, end)| offset.0 < *end)
    }

    /// How many of a queue were.
    pub(crate) fn count(&self, topic: TopicId, queue: QueueId) -> u64 {
        self.runs.get(&(topic, queue)).map_or(0, |runs| runs.iter().map(|(first, end)| end - first).sum())
    }

    /// Notes one that was not.
    pub(crate) fn add(&mut self, topic: TopicId, queue: QueueId, offset: QueueOffset) {
        let runs = self.runs.entry((topic, queue)).or_default();
        let end = runs.remove(&(offset.0 + 1)).unwrap_or(offset.0 + 1);
        match runs.range_mut(..=offset.0).next_back() {
            Some((_, before)) if *before == offset.0 => *before = end,
            Some(_) | None => drop(runs.insert(offset.0, end)),
        }
    }

    /// Retention has passed what lies before `min`.
    pub(crate) fn forget_below(&mut self, topic: TopicId, queue: QueueId, min: QueueOffset) {
        let Some(runs) = self.runs.get_mut(&(topic, queue)) else { return };
        let mut kept = runs.split_off(&min.0);
        if let Some((_, end)) = runs.pop_last().filter(|(_, end)| *end > min.0) {
            kept.insert(min.0, end);
        }
        *runs = kept;
        if runs.is_empty() {
            self.runs.remove(&(topic, queue));
        }
    }

    pub(crate) fn drop_topic(&mut self, topic: TopicId) {
        self.runs.retain(|(of, _), _| *of != topic);
    }

    /// Writes each topic's runs behind its number, in order.
    pub(crate) fn save(&self, mut part: impl FnMut(TopicId, &mut dyn FnMut(&mut BytesMut))) {
        let mut rest = self.runs.iter().peekable();
        while let Some(((topic, _), _)) = rest.peek().copied() {
            part(*topic, &mut |out| {
                while let Some(((_, queue), runs)) = rest.next_if(|((of, _), _)| of == topic) {
                    out.put_u16_le(queue.0);
                    out.put_u32_le(u32::try_from(runs.len()).expect("runs are fewer than 4 billion"));
                    for (first, end) in runs {
                        out.put_u64_le(*first);
                        out.put_u64_le(*end);
                    }
                }
            });
        }
    }

    /// `range`: what a queue of the topic holds.
    pub(crate) fn load(
        &mut self,
        topic: TopicId,
        range: impl Fn(QueueId) -> Option<(QueueOffset, QueueOffset)>,
        reader: &mut Reader,
    ) -> Result<(), DecodeError> {
        if reader.left() == 0 {
            return Err(reader.error("a part without redriven dead letters"));
        }
        let mut last = None;
        while reader.left() > 0 {
            let queue = QueueId(reader.u16()?);
            let (min, max) = range(queue).ok_or_else(|| reader.error("dead letters redriven from no queue"))?;
            let (mut runs, mut behind) = (BTreeMap::new(), None);
            for _ in 0..reader.count(16)? {
                let (first, end) = (reader.u64()?, reader.u64()?);
                let apart = behind.is_none_or(|behind| first > behind);
                if !apart || first < min.0 || end <= first || end > max.0 {
                    return Err(reader.error("redriven dead letters are not in order"));
                }
                behind = Some(end);
                runs.insert(first, end);
            }
            if runs.is_empty() || last.replace(queue).is_some_and(|last| last >= queue) {
                return Err(reader.error("redriven dead letters are not in order"));
            }
            self.runs.insert((topic, queue), runs);
        }
        Ok(())
    }
}

/// How many messages of each queue have become dead letters of a consumer group, since both are there.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Deaths {
    counts: BTreeMap<(GroupId, TopicId), BTreeMap<QueueId, u64>>,
}

impl Deaths {
    pub(crate) fn add(&mut self, group: GroupId, topic: TopicId, queue: QueueId) {
        *self.counts.entry((group, topic)).or_default().entry(queue).or_default() += 1;
    }

    pub(crate) fn count(&self, group: GroupId, topic: TopicId, queue: QueueId) -> u64 {
        self.counts.get(&(group, topic)).and_then(|queues| queues.get(&queue)).copied().unwrap_or(0)
    }

    pub(crate) fn drop_topic(&mut self, topic: TopicId) {
        self.counts.retain(|(_, of), _| *of != topic);
    }

    pub(crate) fn drop_group(&mut self, group: GroupId) {
        self.counts.retain(|(of, _), _| *of != group);
    }

    /// Writes the counts behind the numbers of group and topic, in order.
    pub(crate) fn save(&self, mut part: impl FnMut(GroupId, TopicId, &mut dyn FnMut(&mut BytesMut))) {
        for ((group, topic), queues) in &self.counts {
            part(*group, *topic, &mut |out| {
                for (queue, count) in queues {
                    out.put_u16_le(queue.0);
                    out.put_u64_le(*count);
                }
            });
        }
    }

    /// `queues`: how many the topic has.
    pub(crate) fn load(
        &mut self,
        (group, topic): (GroupId, TopicId),
        queues: u16,
        reader: &mut Reader,
    ) -> Result<(), DecodeError> {
        let mut counts = BTreeMap::new();
        while reader.left() > 0 {
            let (queue, count) = (QueueId(reader.u16()?), reader.u64()?);
            let behind = counts.last_key_value().is_none_or(|(last, _)| *last < queue);
            if !behind || queue.0 >= queues || count == 0 {
                return Err(reader.error("dead letters counted of no queue, or twice"));
            }
            counts.insert(queue, count);
        }
        if counts.is_empty() {
            return Err(reader.error("a part without dead letters"));
        }
        self.counts.insert((group, topic), counts);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(retry: &Retry) -> Vec<u64> {
        retry.steps().iter().map(|ms| ms / 1000).collect()
    }

    #[test]
    fn the_usual_delays_are_rocketmq_s() {
        let usual = Retry::usual(false);
        assert_eq!(usual.max_attempts(), 17);
        assert_eq!(minutes(&usual), LADDER_S);
        assert_eq!(minutes(&usual).iter().sum::<u64>(), 4 * 3600 + 45 * 60 + 40);
        assert_eq!(minutes(&Retry::usual(true)), [3]);
    }

    #[test]
    fn exponential_delays_grow_up_to_the_longest_and_no_further_than_there_are_retries() {
        let retry = |attempts, delays| Retry::new(attempts, delays).expect("in range");
        let seconds = [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 7200];
        assert_eq!(minutes(&retry(17, Delays::exponential())), seconds);
        assert_eq!(minutes(&retry(4, Delays::exponential())), [5, 10, 20]);
        assert_eq!(minutes(&retry(1, Delays::exponential())), [5]);
        let level = Delays::Exponential { initial_ms: 2000, max_ms: 9000, factor_percent: 100 };
        assert_eq!(minutes(&retry(17, level)), [2]);
        assert_eq!(minutes(&retry(3, Delays::usual(false))), [10, 30]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let exponential =
            |initial_ms, max_ms, factor_percent| Delays::Exponential { initial_ms, max_ms, factor_percent };
        for (attempts, delays, why) in [
            (0, Delays::usual(false), RetryError::Attempts),
            (1001, Delays::usual(false), RetryError::Attempts),
            (3, Delays::Ladder(Vec::new()), RetryError::Steps),
            (3, Delays::Ladder(vec![1; 33]), RetryError::Steps),
            (3, Delays::Ladder(vec![1, 0]), RetryError::Delay),
            (3, Delays::Ladder(vec![DELAY_MS_MAX + 1]), RetryError::Delay),
            (3, exponential(0, 5, 200), RetryError::Delay),
            (3, exponential(1, DELAY_MS_MAX + 1, 200), RetryError::Delay),
            (3, exponential(1, 5, 99), RetryError::Factor),
            (3, exponential(1, 5, 1001), RetryError::Factor),
            (3, exponential(6, 5, 200), RetryError::Range),
        ] {
            assert_eq!(Retry::new(attempts, delays), Err(why));
        }
    }

    #[test]
    fn redriven_ones_are_kept_as_runs_until_retention_passes_them() {
        let (topic, queue) = (TopicId(1), QueueId(0));
        let mut redriven = Redriven::default();
        for offset in [5, 3, 4, 9, 0] {
            assert!(!redriven.contains(topic, queue, QueueOffset(offset)));
            redriven.add(topic, queue, QueueOffset(offset));
        }
        assert_eq!(redriven.runs[&(topic, queue)], [(0, 1), (3, 6), (9, 10)].into());
        assert_eq!(redriven.count(topic, queue), 5);
        redriven.forget_below(topic, queue, QueueOffset(4));
        assert_eq!(redriven.runs[&(topic, queue)], [(4, 6), (9, 10)].into());
        assert!(redriven.contains(topic, queue, QueueOffset(5)) && !redriven.contains(topic, queue, QueueOffset(6)));
        redriven.forget_below(topic, queue, QueueOffset(10));
        assert_eq!(redriven, Redriven::default());
    }
}
