//! Receiving: a consumer that is asked for messages and acks them one by one, and one that reads queues and keeps its own books.

mod filter;
mod pull;
mod simple;

pub use filter::Filter;
pub use pull::{OffsetOf, PullConsumer, PullOptions, TopicQueue};
pub use simple::{ConsumerOptions, ReceiveOptions, SimpleConsumer};
