//! The network door of clients and servers: TCP in production, memory in simulation.
//!
//! broker, client and namesrv open no socket themselves; they are handed a [`Net`]. Two adapters put tonic on top:
//! [`connector`] for channels and [`incoming`] for servers.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::authority::Mended;

/// Future of a door: boxed, so that doors stay object safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connected byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// Opens and accepts connections.
pub trait Net: Send + Sync + 'static {
    /// Connects to `address` (`host:port`); errors are those of `connect(2)` and of name resolution.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>>;
    /// Binds `address`; port 0 takes a free one. `AddrInUse` if the port is taken.
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn NetListener>>>;
}

/// A bound port.
pub trait NetListener: Send + Sync + 'static {
    /// Waits for the next connection. Cancel safe.
    fn accept(&self) -> BoxFuture<'_, io::Result<Stream>>;
    /// The bound address, with its real port.
    fn local_address(&self) -> String;
}

/// A connection, with the other side's address.
pub struct Stream {
    inner: Box<dyn Duplex>,
    peer: String,
}

impl Stream {
    /// Wraps a byte stream.
    pub fn new(inner: impl Duplex, peer: String) -> Self {
        Self { inner: Box::new(inner), peer }
    }

    /// Address of the other side, `host:port`.
    pub fn peer(&self) -> &str {
        &self.peer
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// What a served request knows of its connection.
#[derive(Clone, Debug)]
pub struct PeerAddress(pub String);

impl tonic::transport::server::Connected for Stream {
    type ConnectInfo = PeerAddress;

    fn connect_info(&self) -> PeerAddress {
        PeerAddress(self.peer.clone())
    }
}

/// The machine's TCP, without Nagle's delay.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpNet;

impl Net for TcpNet {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Stream::new(stream, address.to_owned()))
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn NetListener>>> {
        Box::pin(async move {
            let listener = tokio::net::TcpListener::bind(address).await?;
            let local = listener.local_addr()?.to_string();
            Ok(Arc::new(TcpNetListener { listener, local }) as Arc<dyn NetListener>)
        })
    }
}

struct TcpNetListener {
    listener: tokio::net::TcpListener,
    local: String,
}

impl NetListener for TcpNetListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let (stream, peer) = self.listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Stream::new(stream, peer.to_string()))
        })
    }

    fn local_address(&self) -> String {
        self.local.clone()
    }
}

/// A tower service for [`tonic::transport::Endpoint::connect_with_connector_lazy`]: connects to the first of `addresses`
/// that answers, in order, whatever authority the URI names.
pub fn connector(net: Arc<dyn Net>, addresses: Vec<String>) -> Connector {
    Connector { net, addresses: addresses.into() }
}

/// See [`connector`].
#[derive(Clone)]
pub struct Connector {
    net: Arc<dyn Net>,
    addresses: Arc<[String]>,
}

impl tower_service::Service<http::Uri> for Connector {
    type Response = hyper_util::rt::TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let (net, addresses) = (self.net.clone(), self.addresses.clone());
        Box::pin(async move {
            let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address to connect to");
            for address in addresses.iter() {
                match net.connect(address).await {
                    Ok(stream) => return Ok(hyper_util::rt::TokioIo::new(stream)),
                    Err(error) => last = error,
                }
            }
            Err(last)
        })
    }
}

/// Connections of a listener as tonic's server takes them, each [`Mended`] for clients that name several addresses. Accept errors
/// (too many open files) are waited out, never ends.
pub fn incoming(
    listener: Arc<dyn NetListener>,
) -> impl futures_core::Stream<Item = io::Result<Stream>> + Send + 'static {
    Incoming { listener, accepting: None }
}

struct Incoming {
    listener: Arc<dyn NetListener>,
    accepting: Option<BoxFuture<'static, io::Result<Stream>>>,
}

impl futures_core::Stream for Incoming {
    type Item = io::Result<Stream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let listener = self.listener.clone();
        let accepting = self.accepting.get_or_insert_with(|| {
            Box::pin(async move {
                loop {
                    match listener.accept().await {
                        Ok(Stream { inner, peer }) => return Ok(Stream::new(Mended::new(inner), peer)),
                        Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                    }
                }
            })
        });
        let accepted = std::task::ready!(accepting.as_mut().poll(cx));
        self.accepting = None;
        Poll::Ready(Some(accepted))
    }
}

/// Splits `a:1;b:2` or `a:1,b:2` into addresses; blanks around them are dropped.
///
/// # Errors
/// Names the first part that is not `host:port`.
pub fn parse_addresses(text: &str) -> Result<Vec<String>, String> {
    let parts: Vec<&str> = text.split([';', ',']).map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err("no address given; expected host:port, several separated by ;".to_owned());
    }
    for part in &parts {
        let port = part.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if port.and_then(|port| port.parse::<u16>().ok()).is_none() {
            return Err(format!("{part:?} is not an address; expected host:port"));
        }
    }
    Ok(parts.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_separated_by_semicolon_or_comma() {
        assert_eq!(parse_addresses("a:1; b:2,c:3").expect("valid"), ["a:1", "b:2", "c:3"]);
        assert!(parse_addresses("a:1;b").is_err_and(|error| error.contains("\"b\"")));
        assert!(parse_addresses(" ; ").is_err());
        assert!(parse_addresses("a:70000").is_err());
    }
}
