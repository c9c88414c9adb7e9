//! What a disk that fills up means: from which mark on old segments go early, and from which on nothing new is stored; and who has not
//! consumed what would go.
//!
//! Pure: the numbers come from whoever has looked at the disk. A level that was reached is left only when there is a little more room than
//! where it was entered, so that a disk at a mark does not change its mind with every message. Called by `leader/space`, which looks,
//! and by `leader/pump`, which moves the floor.

use std::collections::BTreeSet;

use quorate_proto::names::{GroupName, TopicName};
use quorate_raft::Position;

use crate::{
    config::RetentionConfig,
    machine::{Machine, QueueId, Topic},
};

/// Free bytes of a file system, and what this process could use of it if nothing else were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Room {
    /// Free.
    pub free: u64,
    /// Used and free together; 0 if the file system does not say.
    pub total: u64,
}

impl Room {
    /// How much is used, in whole percent, rounded down.
    pub fn used_percent(self) -> u32 {
        let used = u128::from(self.total.saturating_sub(self.free));
        u32::try_from(used * 100 / u128::from(self.total.max(1))).unwrap_or(100)
    }
}

/// How full a disk is, in the order of what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Level {
    /// Nothing is done.
    #[default]
    Roomy = 0,
    /// From `retention.disk_warn_percent` on: what every consumer group is done with goes early.
    Tight = 1,
    /// Halfway to `retention.disk_full_percent`: with `on_full = "delete_oldest"` the oldest segments go.
    Scarce = 2,
    /// From `retention.disk_full_percent` on, or when less than `retention.disk_reserve_bytes` are free: nothing is sent.
    Full = 3,
    /// Half of what was free at the mark before is used, too: the broker writes nothing of its own accord.
    Spent = 4,
}

impl Level {
    const ALL: [Self; 5] = [Self::Roomy, Self::Tight, Self::Scarce, Self::Full, Self::Spent];

    /// Its name, for people and between nodes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Roomy => "roomy",
            Self::Tight => "tight",
            Self::Scarce => "scarce",
            Self::Full => "full",
            Self::Spent => "spent",
        }
    }

    /// By its number between nodes; one that is not known is the worst.
    pub fn of_number(number: u32) -> Self {
        usize::try_from(number).ok().and_then(|number| Self::ALL.get(number).copied()).unwrap_or(Self::Spent)
    }
}

/// Where the levels of a disk begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    warn_percent: u8,
    full_percent: u8,
    reserve_bytes: u64,
}

impl Marks {
    /// As the settings say.
    pub fn of(retention: &RetentionConfig) -> Self {
        Self {
            warn_percent: retention.disk_warn_percent,
            full_percent: retention.disk_full_percent,
            reserve_bytes: retention.disk_reserve_bytes,
        }
    }

    /// The level of a disk that was at `before`. A file system that tells no size is never full.
    pub fn level(self, before: Level, room: Room) -> Level {
        if room.total == 0 {
            return Level::Roomy;
        }
        let slack = room.total / 50;
        let reached = |level: &Level| {
            let mark = self.free_at(*level, room.total);
            room.free <= if before >= *level { mark.saturating_add(slack) } else { mark }
        };
        Level::ALL.into_iter().skip(1).rev().find(reached).unwrap_or_default()
    }

    /// Free bytes with which a level begins.
    fn free_at(self, level: Level, total: u64) -> u64 {
        let free = |percent: u8| total / 100 * u64::from(100 - percent.min(100));
        let full = free(self.full_percent).max(self.reserve_bytes);
        let tight = free(self.warn_percent).max(full);
        match level {
            Level::Roomy => total,
            Level::Tight => tight,
            Level::Scarce => full + (tight - full) / 2,
            Level::Full => full,
            Level::Spent => full / 2,
        }
    }
}

/// Messages of a topic that would go although somebody has not consumed them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Their topic.
    pub topic: TopicName,
    /// Who has not; `None`: no group has ever read the topic.
    pub group: Option<GroupName>,
    /// How many, those included that were acked before an older one was.
    pub messages: u64,
}

/// What would be lost with the log below the border `floor`; nothing if all of it was consumed by every group of its topic. A message that
/// waits for its time or its transaction is not among it: its body goes up before.
pub(crate) fn losses(machine: &Machine, floor: Position) -> impl Iterator<Item = Loss> + '_ {
    let read: BTreeSet<_> = machine.groups().flat_map(|group| group.topics()).collect();
    let pairs = machine.groups().flat_map(move |group| group.topics().map(move |topic| (group, topic)));
    let unconsumed = pairs.filter_map(move |(group, id)| {
        let topic = machine.topic_by_id(id)?;
        let done = |queue| machine.progress(group.id(), id, queue).map_or(0, |progress| progress.committed.0);
        let messages = going(topic, floor, done);
        (messages > 0).then(|| Loss { topic: topic.name().clone(), group: Some(group.name().clone()), messages })
    });
    let unread = machine.topics().filter(move |topic| !read.contains(&topic.id())).filter_map(move |topic| {
        let messages = going(topic, floor, |_| 0);
        (messages > 0).then(|| Loss { topic: topic.name().clone(), group: None, messages })
    });
    unconsumed.chain(unread)
}

/// Messages of a topic below `floor` and not below where somebody is.
fn going(topic: &Topic, floor: Position, done: impl Fn(QueueId) -> u64) -> u64 {
    let queue = |queue| {
        let (min, _) = topic.range(queue)?;
        let kept = topic.first_kept(queue, floor)?;
        // Most queues have nothing there, and nobody is asked about them.
        (kept > min).then(|| kept.0.saturating_sub(min.0.max(done(queue))))
    };
    (0..topic.queues()).filter_map(|number| queue(QueueId(number))).sum()
}

#[cfg(test)]
mod tests {
    use quorate_proto::time::Timestamp;

    use super::*;
    use crate::machine::{Command, DropGroup, GroupId, PutGroup, PutTopic, Receive, StartAt, TopicId, TopicKind};

    const GIB: u64 = 1 << 30;

    fn marks(reserve_bytes: u64) -> Marks {
        Marks { warn_percent: 75, full_percent: 90, reserve_bytes }
    }

    /// A disk of 100 GiB of which so much is used.
    fn used(gib: u64) -> Room {
        Room { free: (100 - gib) * GIB, total: 100 * GIB }
    }

    #[test]
    fn a_disk_goes_through_its_levels_as_it_fills_up() {
        let mut level = Level::Roomy;
        let mut seen = Vec::new();
        for gib in [10, 74, 75, 82, 83, 89, 90, 94, 95, 100] {
            level = marks(0).level(level, used(gib));
            seen.push((gib, level));
        }
        use Level::{Full, Roomy, Scarce, Spent, Tight};
        let expected = [
            (10, Roomy),
            (74, Roomy),
            (75, Tight),
            (82, Tight),
            (83, Scarce),
            (89, Scarce),
            (90, Full),
            (94, Full),
            (95, Spent),
            (100, Spent),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_level_is_left_only_with_two_percent_more_room() {
        let next = |before, gib| marks(0).level(before, used(gib));
        assert_eq!(next(Level::Full, 89), Level::Full);
        assert_eq!(next(Level::Full, 88), Level::Full);
        assert_eq!(next(Level::Full, 87), Level::Scarce);
        assert_eq!(next(Level::Spent, 94), Level::Spent);
        assert_eq!(next(Level::Tight, 73), Level::Tight);
        assert_eq!(next(Level::Tight, 72), Level::Roomy);
        assert_eq!(next(Level::Roomy, 74), Level::Roomy);
        assert_eq!(next(Level::Spent, 1), Level::Roomy, "all at once");
    }

    #[test]
    fn a_small_disk_keeps_its_reserve_and_a_large_one_its_share() {
        let small = |free_mib: u64| Room { free: free_mib << 20, total: 300 << 20 };
        assert_eq!(marks(64 << 20).level(Level::Roomy, small(65)), Level::Scarce);
        assert_eq!(marks(64 << 20).level(Level::Roomy, small(64)), Level::Full);
        assert_eq!(marks(64 << 20).level(Level::Roomy, small(32)), Level::Spent);
        assert_eq!(marks(64 << 20).level(Level::Roomy, used(89)), Level::Scarce);
        assert_eq!(marks(64 << 20).level(Level::Roomy, used(90)), Level::Full);
    }

    #[test]
    fn a_file_system_that_tells_no_size_is_never_full() {
        assert_eq!(marks(1 << 20).level(Level::Full, Room { free: 0, total: 0 }), Level::Roomy);
        assert_eq!(Room { free: 0, total: 0 }.used_percent(), 0);
        assert_eq!(used(91).used_percent(), 91);
        assert_eq!(Room { free: 5, total: 0 }.used_percent(), 0);
    }

    const T: TopicId = TopicId(0);
    const G: GroupId = GroupId(0);

    fn apply(machine: &mut Machine, command: Command) -> crate::machine::Reply {
        machine.apply(Timestamp(1), Position(0), command, &mut Vec::new())
    }

    fn send(machine: &mut Machine, number: u128) {
        let send = crate::machine::Send {
            topic: T,
            queue: QueueId(0),
            key: crate::machine::SendKey(number),
            body_crc: 0,
            tag_hash: 0,
            record: crate::machine::Record::new(bytes::Bytes::from_static(b"x")),
        };
        apply(machine, Command::Send(send));
    }

    /// A topic `t` with two messages below the border 10 and one behind it, and a group `g` that has read nothing.
    fn machine() -> Machine {
        let mut machine = Machine::default();
        let name = TopicName::parse("t").expect("legal");
        let put = PutTopic { name, queues: 1, kind: TopicKind::Any, auto: false, replace: false };
        apply(&mut machine, Command::PutTopic(put));
        let name = GroupName::parse("g").expect("legal");
        apply(
            &mut machine,
            Command::PutGroup(PutGroup {
                name,
                fifo: false,
                start: StartAt::First,
                auto: false,
                replace: false,
                retry: None,
            }),
        );
        send(&mut machine, 1);
        send(&mut machine, 2);
        machine.border(Position(10));
        send(&mut machine, 3);
        machine
    }

    fn receive(machine: &mut Machine, max: u16) -> Vec<crate::machine::Handle> {
        let receive = Receive {
            group: G,
            topic: T,
            max,
            invisible_ms: 1000,
            first_queue: QueueId(0),
            attempt: None,
            consumer: None,
        };
        let crate::machine::Reply::Received { deliveries } = apply(machine, Command::Receive(receive)) else {
            panic!("received")
        };
        deliveries.into_iter().map(|delivery| delivery.handle).collect()
    }

    fn lost(machine: &Machine, floor: u64) -> Vec<(Option<String>, u64)> {
        let losses = losses(machine, Position(floor));
        losses.map(|loss| (loss.group.map(|group| group.to_string()), loss.messages)).collect()
    }

    #[test]
    fn what_no_group_has_read_is_lost_to_nobody_in_particular() {
        let machine = machine();
        assert_eq!(lost(&machine, 10), [(None, 2)]);
        assert_eq!(lost(&machine, 9), [], "there is no border");
    }

    #[test]
    fn only_what_every_group_has_acked_is_consumed() {
        let mut machine = machine();
        let handles = receive(&mut machine, 2);
        let g = || Some("g".to_owned());
        assert_eq!(lost(&machine, 10), [(g(), 2)], "in flight");
        let ack = |handle| Command::Ack(crate::machine::Ack { group: G, entries: vec![handle] });
        apply(&mut machine, ack(handles[1]));
        assert_eq!(lost(&machine, 10), [(g(), 2)], "the older one is not done");
        apply(&mut machine, ack(handles[0]));
        assert_eq!(lost(&machine, 10), []);
    }

    #[test]
    fn a_group_that_is_gone_loses_nothing_and_leaves_its_topic_unread() {
        let mut machine = machine();
        receive(&mut machine, 2);
        apply(&mut machine, Command::DropGroup(DropGroup { group: G }));
        assert_eq!(lost(&machine, 10), [(None, 2)]);
    }

    #[test]
    fn a_level_travels_as_its_number() {
        for level in Level::ALL {
            assert_eq!(Level::of_number(level as u32), level);
        }
        assert_eq!(Level::of_number(77), Level::Spent);
    }
}
