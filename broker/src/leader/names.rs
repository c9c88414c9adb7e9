//! Topics and consumer groups: looked up, made at first use, made and removed by hand, listed.
//!
//! Listings confirm the leadership first, so that what was answered before is in them; lookups for a send or receive need not,
//! because the command that follows is checked by the machine.

use quorate_proto::{
    admin,
    names::{GroupName, TopicName},
    time::Timestamp,
};

use super::{
    Failure, Leader,
    calls::{
        CreateGroup, CreateTopic, Done, DropGroup, DropTopic, Dropped, EnsureGroup, EnsureTopic, GroupDetail,
        GroupShape, GroupStart, Groups, ListGroups, ListTopics, Range, TopicDetail, TopicShape, Topics,
    },
    mismatched,
};
use crate::{
    config::Start,
    machine::{
        self, Command, Delays, GroupId, Machine, PutGroup, PutTopic, QueueId, Refusal, Reply, Retry, RetryError,
        StartAt, TopicId, TopicKind,
    },
};

/// What a send or a receive needs to know of a topic.
#[derive(Debug, Clone, Copy)]
pub(super) struct TopicFacts {
    pub id: TopicId,
    pub queues: u16,
    pub kind: TopicKind,
}

/// What a receive needs to know of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupFacts {
    pub id: GroupId,
    pub fifo: bool,
}

impl Leader {
    /// A topic for a route; made if it is unknown and that is allowed.
    pub async fn ensure_topic(&self, call: &EnsureTopic) -> Result<TopicShape, Failure> {
        let facts = self.topic(&call.name).await?;
        Ok(TopicShape { queues: u32::from(facts.queues), kind: facts.kind as u32 })
    }

    /// A consumer group for settings; made if it is unknown and that is allowed.
    pub async fn ensure_group(&self, call: &EnsureGroup) -> Result<GroupShape, Failure> {
        Ok(GroupShape { fifo: self.consumer_group(&call.name).await?.fifo })
    }

    /// The topic of that name, made if it is unknown and that is allowed.
    pub(super) async fn topic(&self, name: &str) -> Result<TopicFacts, Failure> {
        let name = topic_name(name)?;
        if let Some(found) = self.shared.read(|machine| machine.topic(&name).map(topic_facts)) {
            return Ok(found);
        }
        let topics = &self.config.topics;
        if !topics.auto_create {
            return Err(Refusal::TopicNotFound.into());
        }
        self.space.check()?;
        let put =
            PutTopic { name, queues: topics.auto_create_queues, kind: TopicKind::Any, auto: true, replace: false };
        match self.propose_one(Command::PutTopic(put)).await? {
            (Reply::Topic { id }, _) => {
                let made = self.shared.read(|machine| machine.topic_by_id(id).map(topic_facts));
                Ok(made.ok_or(Refusal::TopicNotFound)?)
            }
            (reply, _) => mismatched(&reply),
        }
    }

    /// The consumer group of that name, made if it is unknown and that is allowed.
    pub(super) async fn consumer_group(&self, name: &str) -> Result<GroupFacts, Failure> {
        let name = group_name(name)?;
        if let Some(found) = self.shared.read(|machine| machine.group(&name).map(group_facts)) {
            return Ok(found);
        }
        if !self.config.groups.auto_create {
            return Err(Refusal::GroupNotFound.into());
        }
        let put = PutGroup { name, fifo: false, start: self.start(), auto: true, replace: false, retry: None };
        match self.propose_one(Command::PutGroup(put)).await? {
            (Reply::Group { id }, _) => Ok(GroupFacts { id, fifo: self.shared.read(|m| is_fifo(m, id)) }),
            (reply, _) => mismatched(&reply),
        }
    }

    /// Both as they are; nothing is made.
    pub(super) fn known(&self, topic: &str, group: &str) -> Result<(TopicId, GroupId), Failure> {
        let (topic, group) = (topic_name(topic)?, group_name(group)?);
        self.shared.read(|machine| {
            let topic = machine.topic(&topic).ok_or(Refusal::TopicNotFound)?.id();
            let group = machine.group(&group).ok_or(Refusal::GroupNotFound)?.id();
            Ok((topic, group))
        })
    }

    /// Makes a topic by hand; one that exists and looks the same is the answer too.
    pub async fn create_topic(&self, call: &CreateTopic) -> Result<Done, Failure> {
        self.space.check()?;
        let put = PutTopic {
            name: topic_name(&call.name)?,
            queues: u16::try_from(call.queues).unwrap_or(u16::MAX),
            kind: kind_of(call.kind),
            auto: false,
            replace: false,
        };
        self.propose_one(Command::PutTopic(put)).await.map(|_| Done {})
    }

    /// Makes a consumer group by hand; one that exists and looks the same is the answer too.
    pub async fn create_group(&self, call: &CreateGroup) -> Result<Done, Failure> {
        let name = group_name(&call.name)?;
        let retry = call.retry.as_ref().map(|wish| retry_of(call.fifo, wish)).transpose().map_err(Failure::Retry)?;
        let start = call.start.map_or_else(|| self.start(), start_of);
        let (fifo, replace) = (call.fifo, call.replace);
        let put = PutGroup { name, fifo, start, auto: false, replace, retry };
        self.propose_one(Command::PutGroup(put)).await.map(|_| Done {})
    }

    /// Removes a topic and its messages. Those that wait in it and that nobody could receive yet must be dropped on purpose, and so must dead
    /// letters. They are counted when the call comes: what is sent while it is carried out goes like any other message.
    pub async fn drop_topic(&self, call: &DropTopic) -> Result<Dropped, Failure> {
        let name = topic_name(&call.name)?;
        self.group.confirm_leadership().await?;
        let found = self.shared.read(|m| {
            let topic = m.topic(&name)?;
            let (halves, delayed) = m.waiting_in(topic.id());
            let letters = topic.ranges().map(|(min, end)| end - min).sum();
            Some((topic.id(), Dropped { halves, delayed }, letters))
        });
        let (topic, waiting, letters) = found.ok_or(Refusal::TopicNotFound)?;
        if let Some(group) = name.dead_letters_of().filter(|_| !call.force && letters > 0) {
            return Err(Failure::HoldsDeadLetters { topic: call.name.clone(), group: group.to_owned(), letters });
        }
        let Dropped { halves, delayed } = waiting;
        if !call.force && halves + delayed > 0 {
            return Err(Failure::StillWaiting { topic: call.name.clone(), halves, delayed });
        }
        self.propose_one(Command::DropTopic(machine::DropTopic { topic })).await.map(|_| waiting)
    }

    /// Removes a consumer group and its progress.
    pub async fn drop_group(&self, call: &DropGroup) -> Result<Done, Failure> {
        let name = group_name(&call.name)?;
        self.group.confirm_leadership().await?;
        let group = self.shared.read(|m| m.group(&name).map(machine::Group::id)).ok_or(Refusal::GroupNotFound)?;
        self.propose_one(Command::DropGroup(machine::DropGroup { group })).await.map(|_| Done {})
    }

    /// All topics, or one, with the offsets of their queues.
    pub async fn list_topics(&self, call: &ListTopics) -> Result<Topics, Failure> {
        self.group.confirm_leadership().await?;
        let Some(name) = &call.name else {
            return Ok(Topics { topics: self.shared.read(|machine| machine.topics().map(topic_detail).collect()) });
        };
        let name = topic_name(name)?;
        let topic = self.shared.read(|machine| machine.topic(&name).map(topic_detail)).ok_or(Refusal::TopicNotFound)?;
        Ok(Topics { topics: vec![topic] })
    }

    /// All consumer groups.
    pub async fn list_groups(&self, _call: &ListGroups) -> Result<Groups, Failure> {
        self.group.confirm_leadership().await?;
        Ok(Groups { groups: self.shared.read(|machine| machine.groups().map(group_detail).collect()) })
    }

    fn start(&self) -> StartAt {
        match self.config.groups.start {
            Start::First => StartAt::First,
            Start::Last => StartAt::Last,
        }
    }
}

/// A topic kind between nodes and back; an unknown number takes everything.
pub(crate) fn kind_of(number: u32) -> TopicKind {
    u8::try_from(number).ok().and_then(TopicKind::from_number).unwrap_or(TopicKind::Any)
}

/// Names in calls were checked where the call came in; a name that is none is a topic nobody has.
pub(super) fn topic_name(name: &str) -> Result<TopicName, Refusal> {
    TopicName::parse(name).map_err(|_| Refusal::TopicNotFound)
}

pub(super) fn group_name(name: &str) -> Result<GroupName, Refusal> {
    GroupName::parse(name).map_err(|_| Refusal::GroupNotFound)
}

/// Retry settings as an operator wishes them: what is left out is as RocketMQ has it.
fn retry_of(fifo: bool, wish: &admin::Retry) -> Result<Retry, RetryError> {
    let max_attempts = match wish.max_attempts {
        0 => Retry::usual(fifo).max_attempts(),
        attempts => u16::try_from(attempts).map_err(|_| RetryError::Attempts)?,
    };
    let delays = match &wish.exponential {
        Some(admin::ExponentialDelays { initial_ms, max_ms, factor_percent }) => Delays::Exponential {
            initial_ms: *initial_ms,
            max_ms: *max_ms,
            factor_percent: u16::try_from(*factor_percent).map_err(|_| RetryError::Factor)?,
        },
        None if wish.ladder_ms.is_empty() => Delays::usual(fifo),
        None => Delays::Ladder(wish.ladder_ms.clone()),
    };
    Retry::new(max_attempts, delays)
}

fn wish_of(retry: &Retry) -> admin::Retry {
    let max_attempts = retry.max_attempts().into();
    match retry.delays() {
        Delays::Ladder(steps) => admin::Retry { max_attempts, ladder_ms: steps.clone(), exponential: None },
        Delays::Exponential { initial_ms, max_ms, factor_percent } => {
            let (initial_ms, max_ms, factor_percent) = (*initial_ms, *max_ms, u32::from(*factor_percent));
            let exponential = Some(admin::ExponentialDelays { initial_ms, max_ms, factor_percent });
            admin::Retry { max_attempts, ladder_ms: Vec::new(), exponential }
        }
    }
}

/// A start between nodes and back.
fn start_of(wish: GroupStart) -> StartAt {
    match (wish.end, wish.since_ms) {
        (true, _) => StartAt::Last,
        (false, Some(ms)) => StartAt::Since(Timestamp(ms)),
        (false, None) => StartAt::First,
    }
}

pub(super) fn group_detail(group: &machine::Group) -> GroupDetail {
    let start = match group.start() {
        StartAt::First => GroupStart { end: false, since_ms: None },
        StartAt::Last => GroupStart { end: true, since_ms: None },
        StartAt::Since(Timestamp(ms)) => GroupStart { end: false, since_ms: Some(ms) },
    };
    GroupDetail {
        name: group.name().to_string(),
        fifo: group.is_fifo(),
        created_ms: group.created().0,
        retry: Some(wish_of(group.retry())),
        start: Some(start),
    }
}

pub(super) fn topic_facts(topic: &machine::Topic) -> TopicFacts {
    TopicFacts { id: topic.id(), queues: topic.queues(), kind: topic.kind() }
}

fn group_facts(group: &machine::Group) -> GroupFacts {
    GroupFacts { id: group.id(), fifo: group.is_fifo() }
}

fn is_fifo(machine: &Machine, id: GroupId) -> bool {
    machine.group_by_id(id).is_some_and(machine::Group::is_fifo)
}

fn topic_detail(topic: &machine::Topic) -> TopicDetail {
    let range = |queue| {
        let (min, end) = topic.range(QueueId(queue)).unwrap_or_default();
        Range { min: min.0, end: end.0 }
    };
    TopicDetail {
        name: topic.name().to_string(),
        kind: topic.kind() as u32,
        queues: (0..topic.queues()).map(range).collect(),
        created_ms: topic.created().0,
    }
}
