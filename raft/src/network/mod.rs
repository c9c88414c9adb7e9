//! The network door of peers: streams in order, nothing more. TCP in production, memory in simulation.

use std::{future::Future, io, pin::Pin, sync::Arc};

mod memory;
mod tcp;

pub use memory::MemoryNetwork;
pub use tcp::TcpNetwork;

use tokio::io::{AsyncRead, AsyncWrite};

/// A connected byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// A connection that came in, and the address it came from.
pub type Accepted = (Box<dyn Duplex>, String);

/// Future of a door: boxed, so that doors stay object safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens and accepts connections between nodes.
pub trait Network: Send + Sync + 'static {
    /// Connects to `address` (`host:port`). Errors are those of `connect(2)`; `ConnectionRefused` means the port is closed.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Duplex>>>;
    /// Binds `address`. `AddrInUse` if the port is taken.
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn Listener>>>;
}

/// A bound port.
pub trait Listener: Send + Sync + 'static {
    /// Waits for the next connection. Cancel safe.
    fn accept(&self) -> BoxFuture<'_, io::Result<Accepted>>;
    /// The bound address with its real port.
    fn local_address(&self) -> String;
}
