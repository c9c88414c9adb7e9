//! The one table from the broker's words for "no" to RocketMQ's codes.
//!
//! Everything a client can be told in-band goes through [`Fault`]: a code of `apache.rocketmq.v2.Code` and a text that says what
//! to do. Which code matters, because official clients act on it: 50002 is retried by all of them, 42900 makes the Python producer
//! give up, and an error at the gRPC level costs the Go client its connection. So nothing here ever becomes a gRPC status.

use quorate_proto::v2::{Code, Status};
use quorate_raft::ProposeError;

use crate::{leader::Failure, machine::Refusal};

/// A "no" for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// RocketMQ's code.
    pub code: Code,
    /// What is wrong and what to do; shown to people.
    pub message: String,
}

impl Fault {
    /// A fault with its text.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The answer for a call or a part of one that is not built.
    pub fn not_built(what: &str) -> Self {
        Self::new(Code::NotImplemented, format!("{what} is not implemented by this broker; nothing was done"))
    }

    /// The answer for a call that came back undone: certainly without effect.
    pub fn no_leader() -> Self {
        Self::new(Code::HaNotAvailable, "the broker group has no leader at the moment; nothing was done, try again")
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        Self { code: fault.code as i32, message: fault.message }
    }
}

/// The status of success.
pub(crate) fn ok() -> Status {
    Status { code: Code::Ok as i32, message: "OK".into() }
}

/// The status over several results: theirs if they agree, else [`Code::MultipleResults`].
pub(crate) fn summary<'a>(mut statuses: impl Iterator<Item = &'a Status>) -> Status {
    let Some(first) = statuses.next() else { return ok() };
    if statuses.all(|status| status.code == first.code) {
        return first.clone();
    }
    Status { code: Code::MultipleResults as i32, message: "the entries have different results; look at each".into() }
}

/// The code of a refusal of the machine.
pub(crate) fn refusal_code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::TopicNotFound | Refusal::TooManyAutoTopics { .. } => Code::TopicNotFound,
        Refusal::GroupNotFound | Refusal::TooManyAutoGroups { .. } => Code::ConsumerGroupNotFound,
        Refusal::QueueNotFound => Code::NotFound,
        Refusal::ReceiptInvalid
        | Refusal::ReceiptForeign
        | Refusal::ReceiptExpired
        | Refusal::RecallInvalid
        | Refusal::RecallForeign => Code::InvalidReceiptHandle,
        // Not 40401, which the Python and Node clients take for OK.
        Refusal::RecallTooLate | Refusal::NotPending => Code::NotFound,
        Refusal::NotDue { .. } => Code::IllegalDeliveryTime,
        Refusal::TransactionUnknown | Refusal::TransactionForeign | Refusal::TransactionForgotten => {
            Code::InvalidTransactionId
        }
        Refusal::TransactionEnded { .. } | Refusal::CheckedSince | Refusal::BodyNeeded => Code::PreconditionFailed,
        Refusal::AttemptsLeft | Refusal::Redriven => Code::PreconditionFailed,
        Refusal::TooManyTopics { .. }
        | Refusal::TooManyGroups { .. }
        | Refusal::TopicExists { .. }
        | Refusal::GroupExists { .. }
        | Refusal::GroupInUse { .. } => Code::PreconditionFailed,
        Refusal::QueueCount { .. } | Refusal::QueuesShrink { .. } => Code::BadRequest,
        Refusal::OffsetOutOfRange { .. } => Code::IllegalOffset,
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal_code(&refusal), refusal.to_string())
    }
}

impl From<ProposeError> for Fault {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { .. } => Self::no_leader(),
            ProposeError::Overloaded => {
                Self::new(Code::TooManyRequests, "the broker has too much under way; nothing was done, slow down")
            }
            ProposeError::TooLarge(bytes) => {
                Self::new(Code::PayloadTooLarge, format!("{bytes} bytes do not fit one log entry; send less at once"))
            }
            // Stopped is reported after the hand-over too, so it may stand for either outcome.
            ProposeError::Unknown | ProposeError::Stopped(_) => Self::new(
                Code::SlavePersistenceTimeout,
                "the broker group did not confirm in time; the outcome is unknown, repeat with the same message id",
            ),
        }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) => refusal.into(),
            Failure::Propose(error) => error.into(),
            Failure::TopicTakes { .. } => Self::new(Code::MessagePropertyConflictWithType, failure.to_string()),
            Failure::DelayTooLong { .. } => Self::new(Code::IllegalDeliveryTime, failure.to_string()),
            Failure::StillWaiting { .. } | Failure::HoldsDeadLetters { .. } => {
                Self::new(Code::PreconditionFailed, failure.to_string())
            }
            Failure::Filter(_) => Self::new(Code::IllegalFilterExpression, failure.to_string()),
            Failure::FiltersDiffer { .. } => Self::new(Code::PreconditionFailed, failure.to_string()),
            Failure::Retry(_) => Self::new(Code::BadRequest, failure.to_string()),
            Failure::NoDeadLetters => Self::new(Code::NotFound, failure.to_string()),
            Failure::NoOrigin => Self::new(Code::PreconditionFailed, failure.to_string()),
            // What RocketMQ's proxy answers for it; its clients repeat it twice or so and then show the text.
            Failure::DiskFull(_) | Failure::Unreadable(_) => Self::new(Code::InternalServerError, failure.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        leader::filter::{Filter, FilterKind},
        machine::{QueueOffset, TopicId, TopicKind},
    };

    #[test]
    fn every_refusal_has_its_rocketmq_code_and_says_what_to_do() {
        let table = [
            (Refusal::TopicNotFound, 40402),
            (Refusal::GroupNotFound, 40403),
            (Refusal::QueueNotFound, 40400),
            (Refusal::ReceiptInvalid, 40013),
            (Refusal::ReceiptForeign, 40013),
            (Refusal::ReceiptExpired, 40013),
            (Refusal::RecallInvalid, 40013),
            (Refusal::RecallForeign, 40013),
            (Refusal::RecallTooLate, 40400),
            (Refusal::NotPending, 40400),
            (Refusal::NotDue { due: quorate_proto::time::Timestamp(1) }, 40012),
            (Refusal::TransactionUnknown, 40008),
            (Refusal::TransactionForeign, 40008),
            (Refusal::TransactionForgotten, 40008),
            (Refusal::TransactionEnded { ended: crate::machine::Resolution::Commit }, 42800),
            (Refusal::CheckedSince, 42800),
            (Refusal::AttemptsLeft, 42800),
            (Refusal::Redriven, 42800),
            (Refusal::BodyNeeded, 42800),
            (Refusal::TooManyAutoTopics { max: 1000 }, 40402),
            (Refusal::TooManyAutoGroups { max: 1000 }, 40403),
            (Refusal::TooManyTopics { max: 9 }, 42800),
            (Refusal::TooManyGroups { max: 9 }, 42800),
            (Refusal::TopicExists { id: TopicId(1) }, 42800),
            (Refusal::GroupExists { id: crate::machine::GroupId(1) }, 42800),
            (Refusal::GroupInUse { id: crate::machine::GroupId(1) }, 42800),
            (Refusal::QueueCount { max: 9 }, 40000),
            (Refusal::QueuesShrink { have: 9 }, 40000),
            (Refusal::OffsetOutOfRange { min: QueueOffset(1), end: QueueOffset(2) }, 40019),
        ];
        for (refusal, code) in table {
            let status = Status::from(Fault::from(refusal));
            assert_eq!(status.code, code, "{refusal}");
            assert!(status.message.len() > 15, "{}", status.message);
        }
    }

    #[test]
    fn certain_and_uncertain_failures_never_share_a_code() {
        let code = |error: ProposeError| Fault::from(error).code as i32;
        assert_eq!(code(ProposeError::NotLeader { leader: None }), 50002);
        assert_eq!(code(ProposeError::Overloaded), 42900);
        assert_eq!(code(ProposeError::TooLarge(5)), 41300);
        assert_eq!(code(ProposeError::Unknown), 50402);
        assert_eq!(code(ProposeError::Stopped("disk".into())), 50402);
        let takes = Fault::from(Failure::TopicTakes { takes: TopicKind::Fifo, sent: TopicKind::Normal });
        assert_eq!(takes.code as i32, 40014);
        assert!(takes.message.contains("takes FIFO messages only, and this one is NORMAL"), "{}", takes.message);
        let day = std::time::Duration::from_secs(86_400);
        let too_long = Fault::from(Failure::DelayTooLong { ahead: 41 * day, max: 40 * day });
        assert_eq!(too_long.code as i32, 40012);
        assert!(too_long.message.contains("at most 40d are allowed"), "{}", too_long.message);
        let illegal = Filter::parse(FilterKind::Tag, "a | b").expect_err("a single bar");
        assert_eq!(Fault::from(Failure::Filter(illegal)).code as i32, 40010);
        assert_eq!(Fault::from(Failure::Unreadable("x".into())).code as i32, 50001);
        assert_eq!(Fault::from(Failure::DiskFull("x".into())).code as i32, 50001);
    }

    #[test]
    fn entries_that_differ_are_summed_up_as_multiple_results() {
        let bad = Status::from(Fault::from(Refusal::ReceiptExpired));
        assert_eq!(summary([ok(), ok()].iter()).code, 20000);
        assert_eq!(summary([bad.clone(), bad.clone()].iter()), bad);
        assert_eq!(summary([ok(), bad].iter()).code, 30000);
    }
}
