//! One TCP proxy for each way from a node to a peer. A cut node's proxies carry nothing: bytes wait, and so do connects.
//!
//! That is what a cable pulled out between two switches looks like to both ends: no reset, no refusal, and after the repair what
//! was under way arrives.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

use crate::dev::GroupPlan;

const BUFFER_BYTES: usize = 64 << 10;

/// From one node to another.
type Way = (u32, u32);

/// The proxies of a group. Dropping them closes every connection.
#[derive(Debug)]
pub(super) struct Proxies {
    addresses: BTreeMap<Way, String>,
    /// The node that is cut off.
    cut: watch::Sender<Option<u32>>,
    _tasks: JoinSet<()>,
}

impl Proxies {
    /// One listener per way, on ports that the system chooses: they stay bound as long as the group lives.
    pub(super) async fn open(plan: &GroupPlan) -> io::Result<Self> {
        let cut = watch::Sender::new(None);
        let (mut addresses, mut tasks) = (BTreeMap::new(), JoinSet::new());
        for from in &plan.nodes {
            for to in plan.nodes.iter().filter(|to| to.number != from.number) {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let way = (from.number, to.number);
                addresses.insert(way, listener.local_addr()?.to_string());
                tasks.spawn(serve(listener, to.peer.clone(), Cut { way, node: cut.subscribe() }));
            }
        }
        Ok(Self { addresses, cut, _tasks: tasks })
    }

    /// Where each node reaches each other.
    pub(super) fn addresses(&self) -> BTreeMap<Way, String> {
        self.addresses.clone()
    }

    /// Cuts this node off from all others; `None` repairs.
    pub(super) fn cut(&self, node: Option<u32>) {
        self.cut.send_replace(node);
    }
}

/// Whether a way carries anything.
#[derive(Clone)]
struct Cut {
    way: Way,
    node: watch::Receiver<Option<u32>>,
}

impl Cut {
    /// Returns once it does; never if the proxies are gone.
    async fn open(&mut self) {
        let (from, to) = self.way;
        let open = self.node.wait_for(|node| node.is_none_or(|node| node != from && node != to));
        if open.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn serve(listener: TcpListener, target: String, cut: Cut) {
    let connections = Arc::new(Mutex::new(JoinSet::new()));
    while let Ok((near, _)) = listener.accept().await {
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        while connections.try_join_next().is_some() {}
        connections.spawn(carry(near, target.clone(), cut.clone()));
    }
}

async fn carry(near: TcpStream, target: String, mut cut: Cut) {
    cut.open().await;
    // A peer that is not there: the connection ends, as it would without a proxy.
    let Ok(far) = TcpStream::connect(&target).await else { return };
    for stream in [&near, &far] {
        if stream.set_nodelay(true).is_err() {
            return;
        }
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::join!(copy(near_in, far_out, cut.clone()), copy(far_in, near_out, cut));
}

/// Copies one direction until its end.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: Cut) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        cut.open().await;
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
    cut.open().await;
    // The other side may be gone already.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::*;
    use crate::dev::NodePlan;

    #[tokio::test]
    async fn a_cut_way_holds_bytes_and_connects_until_it_is_repaired() {
        let node = |number: u32, peer: String| NodePlan {
            number,
            folder: PathBuf::new(),
            log: PathBuf::new(),
            client: String::new(),
            peer,
            name_server: String::new(),
            http: String::new(),
        };
        let peer = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = peer.local_addr().unwrap().to_string();
        let plan = GroupPlan { folder: PathBuf::new(), nodes: vec![node(1, String::new()), node(2, address)] };
        let proxies = Proxies::open(&plan).await.unwrap();
        let way = &proxies.addresses()[&(1, 2)];

        let mut near = TcpStream::connect(way).await.unwrap();
        let (mut far, _) = peer.accept().await.unwrap();
        let mut got = [0; 4];
        near.write_all(b"open").await.unwrap();
        far.read_exact(&mut got).await.unwrap();

        proxies.cut(Some(1));
        near.write_all(b"held").await.unwrap();
        let _second = TcpStream::connect(way).await.unwrap();
        let silence = Duration::from_millis(50);
        assert!(tokio::time::timeout(silence, far.read_exact(&mut got)).await.is_err());
        assert!(tokio::time::timeout(silence, peer.accept()).await.is_err());

        proxies.cut(None);
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"held");
        peer.accept().await.unwrap();
    }
}
