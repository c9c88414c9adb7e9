//! Receiving: a consumer that is asked for messages and acks them one by one.

mod filter;
mod simple;

pub use filter::Filter;
pub use simple::{ConsumerOptions, ReceiveOptions, SimpleConsumer};
