//! A codec for requests that several attempts share: encodes from behind an `Arc`, into a buffer of exactly the right size.

use std::{marker::PhantomData, sync::Arc};

use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Bytes of gRPC's frame head.
const HEAD_BYTES: usize = 5;

pub(super) struct Shared<Q, R> {
    bytes: usize,
    types: PhantomData<fn(Q) -> R>,
}

impl<Q: Message, R> Shared<Q, R> {
    pub(super) fn for_request(request: &Q) -> Self {
        Self { bytes: request.encoded_len(), types: PhantomData }
    }
}

impl<Q, R> Codec for Shared<Q, R>
where
    Q: Message + 'static,
    R: Message + Default + 'static,
{
    type Encode = Arc<Q>;
    type Decode = R;
    type Encoder = SharedEncoder<Q>;
    type Decoder = Answer<R>;

    fn encoder(&mut self) -> Self::Encoder {
        SharedEncoder { bytes: self.bytes, types: PhantomData }
    }

    fn decoder(&mut self) -> Self::Decoder {
        Answer(PhantomData)
    }
}

pub(super) struct SharedEncoder<Q> {
    bytes: usize,
    types: PhantomData<fn(Q)>,
}

impl<Q: Message> Encoder for SharedEncoder<Q> {
    type Item = Arc<Q>;
    type Error = Status;

    fn encode(&mut self, request: Arc<Q>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        let bytes = self.bytes + HEAD_BYTES;
        BufferSettings::new(bytes, bytes)
    }
}

pub(super) struct Answer<R>(PhantomData<fn() -> R>);

impl<R: Message + Default> Decoder for Answer<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(512, 32 * 1024)
    }
}
