//! The real network: TCP with small writes sent at once and socket buffers of a known size.
//!
//! A peer's stream is bounded by a window of bytes above this; buffers of that order keep a pipeline full without hiding
//! megabytes in the kernel, where nobody can take them back.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};

use super::{Accepted, BoxFuture, Duplex, Listener, Network};

/// Bytes of each socket buffer, asked of the system; it may give less.
const SOCKET_BUFFER: u32 = 2 << 20;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Peers over TCP.
#[derive(Clone, Copy, Default, Debug)]
pub struct TcpNetwork;

struct TcpDoor {
    listener: TcpListener,
    address: String,
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Before connect and listen, or the window scale is settled without them.
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    Ok(socket)
}

async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = lookup_host(address).await?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address")));
    }
    Ok(addresses)
}

async fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in resolve(address).await? {
        match socket(address)?.connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Network for TcpNetwork {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Duplex>>> {
        Box::pin(async move {
            let stream: Box<dyn Duplex> = Box::new(connect(address).await?);
            Ok(stream)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn Listener>>> {
        Box::pin(async move {
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for resolved in resolve(address).await? {
                let socket = socket(resolved)?;
                // A restarted node takes its port back although old connections linger.
                socket.set_reuseaddr(true)?;
                match socket.bind(resolved).and_then(|()| socket.listen(BACKLOG)) {
                    Ok(listener) => {
                        let address = listener.local_addr()?.to_string();
                        let door: Arc<dyn Listener> = Arc::new(TcpDoor { listener, address });
                        return Ok(door);
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        })
    }
}

impl Listener for TcpDoor {
    fn accept(&self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async move {
            let (stream, from) = self.listener.accept().await?;
            stream.set_nodelay(true)?;
            let stream: Box<dyn Duplex> = Box::new(stream);
            Ok((stream, from.to_string()))
        })
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}
