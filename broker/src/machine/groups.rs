//! Consumer groups: who shares progress, and where each of them stands in each topic.
//!
//! A group is told apart from its *subscriptions*: one per topic it has received from, made by the first receive (that is
//! when [`StartAt::Last`] is decided) and gone with the topic. What a subscription knows is the matter of
//! [`super::feature::pop`].

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};
use quorate_proto::{
    names::{GroupName, TopicName},
    time::Timestamp,
};

use super::{
    codec::{DecodeError, Reader, put_text},
    command::{PutGroup, StartAt},
    effect::Refusal,
    feature::{pop::Subscription, retry::Retry},
    ids::{GroupId, Serial, TopicId},
    topics::Topic,
};

/// Most consumer groups that clients bring into being by using them.
pub const AUTO_GROUPS_MAX: u32 = 1_000;
/// Most consumer groups altogether.
pub const GROUPS_MAX: u32 = 10_000;

/// A consumer group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    id: GroupId,
    name: GroupName,
    fifo: bool,
    auto: bool,
    start: StartAt,
    retry: Retry,
    created: Timestamp,
    subscriptions: BTreeMap<TopicId, Subscription>,
}

impl Group {
    /// Its number.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// It wants its messages in order.
    pub fn is_fifo(&self) -> bool {
        self.fifo
    }

    /// A client's use brought it into being.
    pub fn is_auto(&self) -> bool {
        self.auto
    }

    /// Where it begins in a topic.
    pub fn start(&self) -> StartAt {
        self.start
    }

    /// How often it gets a message.
    pub fn retry(&self) -> &Retry {
        &self.retry
    }

    /// The topic of its dead letters, which need not exist.
    pub fn dead_letters(&self) -> TopicName {
        TopicName::dead_letters(&self.name)
    }

    /// Log time of the command that made it.
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// Topics it has received from.
    pub fn topics(&self) -> impl Iterator<Item = TopicId> + '_ {
        self.subscriptions.keys().copied()
    }

    pub(crate) fn subscription(&self, topic: TopicId) -> Option<&Subscription> {
        self.subscriptions.get(&topic)
    }

    pub(crate) fn subscription_mut(&mut self, topic: TopicId) -> Option<&mut Subscription> {
        self.subscriptions.get_mut(&topic)
    }

    /// The subscription to `topic`, made now if there is none, with progress for all its queues.
    pub(crate) fn subscribe(&mut self, topic: &Topic) -> &mut Subscription {
        let (start, attempts) = (self.start, self.retry.max_attempts());
        let subscription = self.subscriptions.entry(topic.id());
        let subscription = subscription.or_insert_with(|| Subscription::new(topic, start, attempts));
        subscription.grow(topic, attempts);
        subscription
    }

    pub(crate) fn subscriptions(&self) -> impl Iterator<Item = (TopicId, &Subscription)> + '_ {
        self.subscriptions_from(TopicId(0))
    }

    /// Those from a topic's number on.
    pub(crate) fn subscriptions_from(&self, from: TopicId) -> impl Iterator<Item = (TopicId, &Subscription)> + '_ {
        self.subscriptions.range(from..).map(|(topic, subscription)| (*topic, subscription))
    }
}

/// All consumer groups.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Groups {
    by_id: BTreeMap<GroupId, Group>,
    by_name: BTreeMap<GroupName, GroupId>,
    next: u32,
    autos: u32,
}

impl Groups {
    pub(crate) fn by_name(&self, name: &GroupName) -> Option<&Group> {
        self.by_id.get(self.by_name.get(name)?)
    }

    pub(crate) fn by_id(&self, id: GroupId) -> Option<&Group> {
        self.by_id.get(&id)
    }

    pub(crate) fn by_id_mut(&mut self, id: GroupId) -> Option<&mut Group> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Group> + '_ {
        self.by_id.values()
    }

    /// Those from a number on.
    pub(crate) fn from(&self, from: GroupId) -> impl Iterator<Item = &Group> + '_ {
        self.by_id.range(from..).map(|(_, group)| group)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Group> + '_ {
        self.by_id.values_mut()
    }

    /// Makes (at log time `now`) or changes a group. Progress stays; a changed start holds for topics it has not received from yet.
    pub(crate) fn put(&mut self, put: &PutGroup, now: Timestamp) -> Result<GroupId, Refusal> {
        let retry = put.retry.clone().unwrap_or_else(|| Retry::usual(put.fifo));
        if let Some(id) = self.by_name.get(&put.name) {
            let group = self.by_id.get_mut(id).expect("every name leads to a group");
            let same = group.fifo == put.fifo && group.start == put.start && group.retry == retry;
            if put.auto || (same && !group.auto) {
                return Ok(group.id);
            }
            if !same && !put.replace {
                return Err(Refusal::GroupExists { id: group.id });
            }
            if group.fifo != put.fifo && !group.subscriptions.values().all(Subscription::is_idle) {
                return Err(Refusal::GroupInUse { id: group.id });
            }
            self.autos -= u32::from(group.auto);
            (group.auto, group.fifo, group.start) = (false, put.fifo, put.start);
            for subscription in group.subscriptions.values_mut() {
                subscription.set_max_attempts(retry.max_attempts());
            }
            group.retry = retry;
            return Ok(group.id);
        }
        if put.auto && self.autos >= AUTO_GROUPS_MAX {
            return Err(Refusal::TooManyAutoGroups { max: AUTO_GROUPS_MAX });
        }
        if self.by_id.len() >= GROUPS_MAX as usize {
            return Err(Refusal::TooManyGroups { max: GROUPS_MAX });
        }
        let id = GroupId(self.next);
        self.next += 1;
        let PutGroup { name, fifo, start, auto, replace: _, retry: _ } = put.clone();
        self.insert(Group { id, name, fifo, auto, start, retry, created: now, subscriptions: BTreeMap::new() });
        Ok(id)
    }

    /// Removes a group and its progress; its number is never used again.
    pub(crate) fn drop_group(&mut self, id: GroupId) -> Result<(), Refusal> {
        let group = self.by_id.remove(&id).ok_or(Refusal::GroupNotFound)?;
        self.by_name.remove(&group.name);
        self.autos -= u32::from(group.auto);
        Ok(())
    }

    /// Forgets everybody's progress in a topic that is gone.
    pub(crate) fn drop_topic(&mut self, topic: TopicId) {
        for group in self.by_id.values_mut() {
            group.subscriptions.remove(&topic);
        }
    }

    fn insert(&mut self, group: Group) {
        self.autos += u32::from(group.auto);
        self.by_name.insert(group.name.clone(), group.id);
        self.by_id.insert(group.id, group);
    }

    /// The number that the next group gets.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    pub(crate) fn with_next(next: u32) -> Self {
        Self { next, ..Self::default() }
    }

    /// `now`: the machine's log time.
    pub(crate) fn load(&mut self, id: GroupId, now: Timestamp, reader: &mut Reader) -> Result<(), DecodeError> {
        let name = reader.text(GroupName::parse, "not a consumer group name")?;
        let fifo = reader.flag()?;
        let start = StartAt::decode(reader)?;
        let auto = reader.flag()?;
        let created = Timestamp(reader.u64()?);
        let retry = Retry::decode(reader)?;
        if created > now {
            return Err(reader.error("a consumer group was made in the future"));
        }
        if self.by_id.contains_key(&id) || self.by_name.contains_key(&name) || id.0 >= self.next {
            return Err(reader.error("a consumer group's number or name is not its own"));
        }
        self.insert(Group { id, name, fifo, auto, start, retry, created, subscriptions: BTreeMap::new() });
        Ok(())
    }

    pub(crate) fn load_subscription(
        &mut self,
        group: GroupId,
        topic: &Topic,
        issued: Serial,
        reader: &mut Reader,
    ) -> Result<(), DecodeError> {
        let group = self.by_id.get_mut(&group).ok_or_else(|| reader.error("progress of an unknown group"))?;
        let subscription = Subscription::load(topic, (group.fifo, group.retry.max_attempts()), issued, reader)?;
        match group.subscriptions.insert(topic.id(), subscription) {
            None => Ok(()),
            Some(_) => Err(reader.error("a group's progress in a topic stands twice")),
        }
    }
}

impl Group {
    /// Writes the group without its subscriptions.
    pub(crate) fn save(&self, out: &mut BytesMut) {
        put_text(out, self.name.as_str());
        out.put_u8(u8::from(self.fifo));
        self.start.encode(out);
        out.put_u8(u8::from(self.auto));
        out.put_u64_le(self.created.0);
        self.retry.encode(out);
    }
}
