//! What a broker says of a request that could not be read. How it is said: [`quorate_proto::unread`].

use http::Response;
use quorate_proto::unread;
pub(super) use quorate_proto::unread::Asked;
use tonic::{Status, body::Body};

use super::wire::status::Fault;
use crate::config::{Limits, units::format_bytes};

/// What is wrong with a request that was not read; `None` if this status says something else.
pub(super) fn fault(asked: Asked, status: &Status, limits: &Limits) -> Option<Fault> {
    let unread = unread::reason(asked, status, || smaller(limits))?;
    Some(Fault::new(unread.code, unread.message))
}

/// The answer, or what is said instead if its request could not be read.
pub(super) fn explain(asked: Asked, answer: Response<Body>, limits: &Limits) -> Response<Body> {
    unread::explain(asked, answer, || smaller(limits))
}

fn smaller(limits: &Limits) -> String {
    format!(
        "the request is larger than {}, nothing was sent: a message body may have {}, and several messages go into one call only \
         if they fit together; send smaller messages, or fewer per call",
        format_bytes(limits.request_bytes_max),
        format_bytes(limits.message_bytes_max),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_that_is_too_large_is_told_the_limits() {
        let said = fault(Asked::Send, &Status::out_of_range("x"), &Limits::default()).expect("it was not read");
        assert_eq!(said.code as i32, 41301);
        assert!(said.message.contains("16MiB") && said.message.contains("4MiB"), "{}", said.message);
        assert_eq!(fault(Asked::Send, &Status::resource_exhausted("x"), &Limits::default()), None);
    }
}
