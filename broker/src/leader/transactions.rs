//! Transactions on the leader: how they end, and which of them wait.

use quorate_proto::names::TopicName;

use super::{
    Failure, Leader,
    calls::{Done, EndTransaction, ListTransactions, TransactionDetail, Transactions},
    filter::{Properties, stored::StoredProperties},
};
use crate::machine::{
    self, Command, Half, HalfId, Machine, Pointer, Record, Refusal, Resolution, Topic, TopicId, TransactionHandle,
};

/// Half messages looked at under one lock, so that apply waits for well below a millisecond.
const LOOKED_AT: usize = 4096;
/// Most half messages of one listing.
const LISTED_MAX: usize = 1000;
/// A commit is planned again when a segment border came between plan and apply; it cannot come much more often.
const PLANS_MAX: usize = 3;

impl Leader {
    /// Ends a transaction; fine if it had ended like that before.
    pub async fn end_transaction(&self, call: &EndTransaction) -> Result<Done, Failure> {
        let TransactionHandle { topic, id } = TransactionHandle::parse(&call.transaction_id, self.cluster)?;
        if let Some(name) = &call.topic
            && self.topic_number(name)? != topic
        {
            return Err(Refusal::TransactionUnknown.into());
        }
        let resolution = if call.commit { Resolution::Commit } else { Resolution::Rollback };
        for planned in 1.. {
            let record = if call.commit { self.body_for_commit(id).await? } else { None };
            let resolve = machine::Resolve { id, topic, resolution, record };
            match self.propose_one(Command::Resolve(resolve)).await {
                Err(Failure::Refused(Refusal::BodyNeeded)) if planned < PLANS_MAX => {}
                ended => {
                    ended?;
                    break;
                }
            }
        }
        let ended = if call.commit { &self.metrics.committed } else { &self.metrics.rolled_back };
        ended.add(1);
        Ok(Done {})
    }

    /// The bytes of a half message, if its queue must get them anew.
    async fn body_for_commit(&self, id: HalfId) -> Result<Option<Record>, Failure> {
        let behind = self.shared.read(|machine| {
            let pointer = machine.half(id)?.pointer;
            machine.is_behind_border(pointer.position).then_some(pointer)
        });
        let Some(pointer) = behind else { return Ok(None) };
        match self.body_at(pointer).await? {
            Some(record) => Ok(Some(record)),
            // Carried or resolved since, perhaps: what is planned next, or the answer, will show.
            None if self.shared.read(|machine| machine.half(id).is_none_or(|half| half.pointer != pointer)) => Ok(None),
            None => Err(Failure::Unreadable("no node has the half message now; end the transaction again".into())),
        }
    }

    /// The bytes of a message that waits there. `None` if no node has them now.
    pub(super) async fn body_at(&self, pointer: Pointer) -> Result<Option<Record>, Failure> {
        let found = self.shared.stored(pointer).map_err(|error| Failure::Unreadable(error.to_string()))?;
        Ok(self.body(found).await)
    }

    fn topic_number(&self, name: &str) -> Result<TopicId, Refusal> {
        let name = TopicName::parse(name).map_err(|_| Refusal::TopicNotFound)?;
        self.shared.read(|machine| machine.topic(&name).map(Topic::id)).ok_or(Refusal::TopicNotFound)
    }

    /// Half messages that wait, in the order of their sends.
    pub async fn list_transactions(&self, call: &ListTransactions) -> Result<Transactions, Failure> {
        let topic = call.topic.as_deref().map(|name| self.topic_number(name)).transpose()?;
        let max = usize::try_from(call.max).unwrap_or(LISTED_MAX).clamp(1, LISTED_MAX);
        let mut after = match call.after.as_str() {
            "" => None,
            text => Some(TransactionHandle::parse(text, self.cluster)?.id),
        };
        let is_wanted =
            |half: &Half| topic.is_none_or(|topic| topic == half.topic) && (!call.set_aside || half.check_at.is_none());
        let mut found = Vec::new();
        while found.len() <= max {
            let looked_at = self.shared.read(|machine| some_halves(machine, after));
            let Some((last, ..)) = looked_at.last() else { break };
            after = Some(*last);
            found.extend(looked_at.into_iter().filter(|(_, half, _)| is_wanted(half)));
        }
        let more = found.len() > max;
        found.truncate(max);
        let mut transactions = Vec::with_capacity(found.len());
        for (id, half, topic) in found {
            transactions.push(self.detail(id, half, topic).await?);
        }
        Ok(Transactions { transactions, more })
    }

    async fn detail(&self, id: HalfId, half: Half, topic: String) -> Result<TransactionDetail, Failure> {
        let record = self.body_at(half.pointer).await?;
        let stored = record.and_then(|record| StoredProperties::decode(record.bytes().clone()));
        let property = |name| stored.as_ref()?.property(name).map(|text| text.into_owned());
        let keys = property("KEYS").unwrap_or_default();
        Ok(TransactionDetail {
            topic,
            transaction_id: TransactionHandle { topic: half.topic, id }.to_text(self.cluster),
            message_id: property("UNIQ_KEY").unwrap_or_default(),
            sent_ms: half.sent_at.0,
            checks: half.checks.into(),
            check_ms: half.check_at.map(|at| at.0),
            size: half.pointer.size,
            keys: keys.split(' ').filter(|key| !key.is_empty()).map(str::to_owned).collect(),
        })
    }
}

/// The next half messages, each with the name of its topic.
fn some_halves(machine: &Machine, after: Option<HalfId>) -> Vec<(HalfId, Half, String)> {
    let name = |topic| machine.topic_by_id(topic).map(|topic| topic.name().to_string()).unwrap_or_default();
    machine.halves(after).take(LOOKED_AT).map(|(id, half)| (id, half, name(half.topic))).collect()
}
