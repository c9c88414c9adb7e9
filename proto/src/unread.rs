//! Answers to requests that could not be read: bytes that are no protobuf, and messages larger than is decoded.
//!
//! tonic says INTERNAL and OUT_OF_RANGE then, which blames the server and costs official clients their channel. Every answer of RocketMQ's
//! service has its status in field 1, so there the reason travels in-band, as everything else does; calls of our own services have gRPC's
//! own code for it. No handler has seen such a request and nothing was done. Only what tonic made of a request by itself is looked at:
//! handlers answer neither of the two codes. Called by the gates of brokers and name servers.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use tonic::{Status, body::Body};

use crate::v2::{self, Code};

/// What a request was for, which says how its answer can carry a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// SendMessage.
    Send,
    /// Another call of RocketMQ's service.
    Messaging,
    /// Anything else.
    Other,
}

/// Why a request was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// RocketMQ's code.
    pub code: Code,
    /// What is wrong and what to do; shown to people.
    pub message: String,
}

/// What is wrong with a request that was not read; `None` if this status says something else. `smaller` is the advice to a sender of too
/// much.
pub fn reason(asked: Asked, status: &Status, smaller: impl FnOnce() -> String) -> Option<Unread> {
    let (code, message) = match (status.code(), asked) {
        (tonic::Code::Internal, _) => (
            Code::BadRequest,
            format!("the request is not a protobuf message of this call, nothing was done: {}", status.message()),
        ),
        (tonic::Code::OutOfRange, Asked::Send) => (Code::MessageBodyTooLarge, smaller()),
        (tonic::Code::OutOfRange, Asked::Messaging | Asked::Other) => (
            Code::PayloadTooLarge,
            format!("the request is too large for this call, nothing was done: {}", status.message()),
        ),
        _ => return None,
    };
    Some(Unread { code, message })
}

/// The answer, or what is said instead if its request could not be read. `smaller` is the advice to a sender of too much.
pub fn explain(asked: Asked, answer: Response<Body>, smaller: impl FnOnce() -> String) -> Response<Body> {
    let Some(unread) = answer.extensions().get::<Status>().and_then(|status| reason(asked, status, smaller)) else {
        return answer;
    };
    match (asked, unread.code) {
        (Asked::Send | Asked::Messaging, _) => in_band(unread),
        (Asked::Other, Code::PayloadTooLarge) => Status::resource_exhausted(unread.message).into_http(),
        (Asked::Other, _) => Status::invalid_argument(unread.message).into_http(),
    }
}

/// An answer that is nothing but a status; any answer of RocketMQ's service reads it as its own.
fn in_band(Unread { code, message }: Unread) -> Response<Body> {
    let status_alone = v2::HeartbeatResponse { status: Some(v2::Status { code: code as i32, message }) };
    let bytes = status_alone.encode_to_vec();
    let mut frame = BytesMut::with_capacity(5 + bytes.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(bytes.len()).expect("a reason is short"));
    frame.put_slice(&bytes);
    let mut trailers = HeaderMap::new();
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let body = Full::<Bytes>::new(frame.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut answer = Response::new(Body::new(body));
    answer.headers_mut().insert(http::header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(asked: Asked, status: Status) -> Response<Body> {
        explain(asked, status.into_http(), || "send smaller messages".to_owned())
    }

    async fn read<M: prost::Message + Default>(answer: Response<Body>) -> M {
        let body = answer.into_body().collect().await.expect("a whole answer");
        assert_eq!(
            body.trailers().and_then(|trailers| trailers.get("grpc-status")).map(|code| code.as_bytes()),
            Some(&b"0"[..])
        );
        M::decode(body.to_bytes().slice(5..)).expect("an answer of this call")
    }

    #[tokio::test]
    async fn rocketmq_s_calls_are_answered_in_band_whatever_the_answer_s_type() {
        let answer = said(Asked::Messaging, Status::internal("failed to decode"));
        let status = read::<v2::QueryRouteResponse>(answer).await.status.expect("in-band");
        assert!(status.code == 40000 && status.message.contains("failed to decode"), "{status:?}");
        let answer = said(Asked::Send, Status::out_of_range("too large"));
        let status = read::<v2::SendMessageResponse>(answer).await.status.expect("in-band");
        assert!(status.code == 41301 && status.message == "send smaller messages", "{status:?}");
        let answer = said(Asked::Messaging, Status::out_of_range("too large"));
        let content = read::<v2::ReceiveMessageResponse>(answer).await.content;
        let Some(v2::receive_message_response::Content::Status(status)) = content else { panic!("{content:?}") };
        assert_eq!(status.code, 41300);
    }

    #[test]
    fn other_calls_get_grpc_s_code_and_other_statuses_pass() {
        let code = |answer: Response<Body>| answer.extensions().get::<Status>().map(Status::code);
        assert_eq!(code(said(Asked::Other, Status::internal("x"))), Some(tonic::Code::InvalidArgument));
        assert_eq!(code(said(Asked::Other, Status::out_of_range("x"))), Some(tonic::Code::ResourceExhausted));
        assert_eq!(code(said(Asked::Send, Status::resource_exhausted("x"))), Some(tonic::Code::ResourceExhausted));
        assert_eq!(code(said(Asked::Messaging, Status::unimplemented("x"))), Some(tonic::Code::Unimplemented));
    }
}
