//! Receiving: a consumer that is asked for messages and acks them one by one.

mod simple;

pub use simple::{ConsumerOptions, ReceiveOptions, SimpleConsumer};
