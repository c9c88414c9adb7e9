//! A network in memory for simulations: hosts, links that can be cut one way, latency, stalls, resets and crashes, all from
//! one seed.
//!
//! It behaves as TCP does, not as packets do. Bytes on a cut link wait and go on after it heals, and so does a connect. A
//! process that dies closes its connections, and the other side hears of it only over a link that works. A host that loses
//! power says nothing; connections to it break once it is back. Chance (latency, stalls, resets) is drawn from the seed, in
//! the order in which tasks ask: under a seeded, paused, single-threaded runtime every run is the same.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, watch},
    time::{Instant, Sleep},
};

use super::{Accepted, BoxFuture, Duplex, Listener, Network};

/// Bytes on their way in one direction of a connection; beyond that the writer waits.
const PIPE_BYTES: usize = 1 << 20;

/// First port given to a listener that asks for any.
const FIRST_PORT: u16 = 20_000;

/// A network of named hosts. Cheap to clone: all clones are the same network.
#[derive(Clone)]
pub struct MemoryNetwork {
    shared: Arc<Shared>,
}

struct Shared {
    hub: Mutex<Hub>,
    /// Counts changes of links and hosts; connects wait for it.
    version: watch::Sender<u64>,
}

struct Hub {
    rng: SmallRng,
    latency: Range<Duration>,
    stall: (f64, Duration),
    reset: f64,
    cuts: BTreeSet<(String, String)>,
    /// Pairs of hosts between which a firewall answers in the other's name.
    rejects: BTreeSet<(String, String)>,
    /// Hosts without power.
    dark: BTreeSet<String>,
    listeners: BTreeMap<String, Registered>,
    /// Which host an address belonged to last, so that a dark host can be told from a closed port.
    owners: BTreeMap<String, String>,
    pipes: Vec<Weak<Pipe>>,
    next_listener: u64,
    next_port: u16,
}

struct Registered {
    id: u64,
    host: String,
    queue: mpsc::UnboundedSender<Accepted>,
}

impl Hub {
    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.cuts.iter().any(|(a, b)| a == from && b == to)
    }

    fn is_rejected(&self, one: &str, other: &str) -> bool {
        self.rejects.iter().any(|(a, b)| (a == one && b == other) || (a == other && b == one))
    }

    fn delay(&mut self) -> Duration {
        let delay = match self.latency.is_empty() {
            true => self.latency.start,
            false => self.rng.random_range(self.latency.clone()),
        };
        let (chance, stall) = self.stall;
        if chance > 0.0 && self.rng.random_bool(chance) { delay + stall } else { delay }
    }

    fn live_pipes(&mut self) -> Vec<Arc<Pipe>> {
        self.pipes.retain(|pipe| pipe.strong_count() > 0);
        self.pipes.iter().filter_map(Weak::upgrade).collect()
    }
}

/// How an end of a pipe went away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gone {
    /// Closed: what was written before still arrives.
    Closed,
    /// Its process died.
    Reset,
    /// Its host lost power: nobody hears of it until the host is back.
    Dark,
}

/// One direction of a connection.
struct Pipe {
    from: String,
    to: String,
    state: Mutex<PipeState>,
}

#[derive(Default)]
struct PipeState {
    chunks: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    writer_gone: Option<Gone>,
    reader_gone: Option<Gone>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let mut state = self.state();
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
    }

    fn lose(&self, host: &str, how: Gone) {
        let mut state = self.state();
        if self.from == host && matches!(state.writer_gone, None | Some(Gone::Dark)) {
            state.writer_gone = Some(how);
        }
        if self.to == host && matches!(state.reader_gone, None | Some(Gone::Dark)) {
            state.reader_gone = Some(how);
        }
    }
}

impl MemoryNetwork {
    /// A network without latency or faults; every chance in it comes from `seed`.
    pub fn new(seed: u64) -> Self {
        let hub = Hub {
            rng: SmallRng::seed_from_u64(seed),
            latency: Duration::ZERO..Duration::ZERO,
            stall: (0.0, Duration::ZERO),
            reset: 0.0,
            cuts: BTreeSet::new(),
            rejects: BTreeSet::new(),
            dark: BTreeSet::new(),
            listeners: BTreeMap::new(),
            owners: BTreeMap::new(),
            pipes: Vec::new(),
            next_listener: 0,
            next_port: FIRST_PORT,
        };
        Self { shared: Arc::new(Shared { hub: Mutex::new(hub), version: watch::Sender::new(0) }) }
    }

    /// The network as one host sees it.
    pub fn door(&self, host: &str) -> Arc<dyn Network> {
        Arc::new(Door { host: host.to_owned(), shared: self.shared.clone() })
    }

    /// Each chunk of bytes takes a time from this range, one way. Order is kept.
    pub fn latency(&self, range: Range<Duration>) {
        self.shared.hub().latency = range;
    }

    /// With this chance a chunk, and what is behind it, takes so much longer, as if it had been lost and sent again.
    pub fn stalls(&self, chance: f64, stall: Duration) {
        self.shared.hub().stall = (chance, stall);
    }

    /// With this chance a write breaks its connection.
    pub fn resets(&self, chance: f64) {
        self.shared.hub().reset = chance;
    }

    /// Nothing gets from one host to another any more; the way back is not touched.
    pub fn cut(&self, from: &str, to: &str) {
        self.change(|hub| hub.cuts.extend([(from.to_owned(), to.to_owned())]));
    }

    /// A firewall between two hosts rejects: their connections are reset and new ones refused, as if the other's process had
    /// died, until [`MemoryNetwork::accept`].
    pub fn reject(&self, one: &str, other: &str) {
        self.change(|hub| {
            hub.rejects.insert((one.to_owned(), other.to_owned()));
            for pipe in hub.live_pipes() {
                if hub.is_rejected(&pipe.from, &pipe.to) {
                    let mut state = pipe.state();
                    state.writer_gone.get_or_insert(Gone::Reset);
                    state.reader_gone.get_or_insert(Gone::Reset);
                }
            }
        });
    }

    /// Undoes [`MemoryNetwork::reject`].
    pub fn accept(&self, one: &str, other: &str) {
        self.change(|hub| hub.rejects.retain(|(a, b)| (a, b) != (&one.to_owned(), &other.to_owned())));
    }

    /// Undoes [`MemoryNetwork::cut`]: what has been waiting arrives.
    pub fn heal(&self, from: &str, to: &str) {
        self.change(|hub| hub.cuts.retain(|(a, b)| a != from || b != to));
    }

    /// Undoes all cuts and rejections.
    pub fn heal_all(&self) {
        self.change(|hub| {
            hub.cuts.clear();
            hub.rejects.clear();
        });
    }

    /// A host's process dies: its ports close, its connections are reset.
    pub fn kill(&self, host: &str) {
        self.crash(host, false);
    }

    /// A host's process dies, or (`silent`) the host loses power: then nobody is told, and connects to it hang, until it
    /// listens again.
    pub fn crash(&self, host: &str, silent: bool) {
        self.change(|hub| {
            hub.listeners.retain(|_, listener| listener.host != host);
            let how = if silent { Gone::Dark } else { Gone::Reset };
            if silent {
                hub.dark.insert(host.to_owned());
            }
            for pipe in hub.live_pipes() {
                pipe.lose(host, how);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Hub)) {
        self.shared.change(change);
    }
}

impl Shared {
    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Hub)) {
        let pipes = {
            let mut hub = self.hub();
            change(&mut hub);
            hub.live_pipes()
        };
        for pipe in pipes {
            pipe.wake();
        }
        self.version.send_modify(|version| *version += 1);
    }

    /// Whether bytes pass, and an answer to them.
    fn links(&self, from: &str, to: &str) -> (bool, bool) {
        let hub = self.hub();
        (!hub.is_cut(from, to), !hub.is_cut(to, from))
    }
}

/// One host's door.
struct Door {
    host: String,
    shared: Arc<Shared>,
}

/// What a connect finds.
enum Found {
    Open(mpsc::UnboundedSender<Accepted>, String),
    Closed,
    Silence,
}

impl Door {
    fn find(&self, address: &str) -> Found {
        let hub = self.shared.hub();
        let Some(owner) = hub.owners.get(address) else {
            return Found::Closed;
        };
        if hub.dark.contains(owner) || hub.is_cut(&self.host, owner) || hub.is_cut(owner, &self.host) {
            return Found::Silence;
        }
        if hub.is_rejected(&self.host, owner) {
            return Found::Closed;
        }
        match hub.listeners.get(address) {
            Some(listener) => Found::Open(listener.queue.clone(), listener.host.clone()),
            None => Found::Closed,
        }
    }

    async fn connect_to(&self, address: &str) -> io::Result<Box<dyn Duplex>> {
        let mut version = self.shared.version.subscribe();
        loop {
            version.mark_unchanged();
            if let Found::Silence = self.find(address) {
                let _ = version.changed().await;
                continue;
            }
            let there_and_back = {
                let mut hub = self.shared.hub();
                hub.delay() + hub.delay()
            };
            tokio::time::sleep(there_and_back).await;
            match self.find(address) {
                Found::Silence => continue,
                Found::Closed => return Err(io::ErrorKind::ConnectionRefused.into()),
                Found::Open(queue, host) => {
                    let (near, far) = self.connection(&host);
                    return match queue.send((Box::new(far), self.host.clone())) {
                        Ok(()) => Ok(Box::new(near)),
                        Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
                    };
                }
            }
        }
    }

    fn connection(&self, host: &str) -> (End, End) {
        let pipe =
            |from: &str, to: &str| Arc::new(Pipe { from: from.to_owned(), to: to.to_owned(), state: Mutex::default() });
        let (there, back) = (pipe(&self.host, host), pipe(host, &self.host));
        self.shared.hub().pipes.extend([Arc::downgrade(&there), Arc::downgrade(&back)]);
        let end = |incoming: &Arc<Pipe>, outgoing: &Arc<Pipe>| End {
            shared: self.shared.clone(),
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
            arrival: None,
        };
        (end(&back, &there), end(&there, &back))
    }
}

impl Network for Door {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Duplex>>> {
        Box::pin(self.connect_to(address))
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn Listener>>> {
        Box::pin(async move {
            let (queue, waiting) = mpsc::unbounded_channel();
            let mut bound = Err(io::Error::from(io::ErrorKind::AddrInUse));
            self.shared.change(|hub| {
                let address = match address.strip_suffix(":0") {
                    Some(host) => {
                        hub.next_port += 1;
                        format!("{host}:{}", hub.next_port)
                    }
                    None => address.to_owned(),
                };
                if hub.listeners.contains_key(&address) {
                    return;
                }
                if hub.dark.remove(&self.host) {
                    // The host is back: whoever still talks to its former self hears of it.
                    for pipe in hub.live_pipes() {
                        let mut state = pipe.state();
                        let PipeState { writer_gone, reader_gone, .. } = &mut *state;
                        for gone in [writer_gone, reader_gone] {
                            if pipe.from == self.host || pipe.to == self.host {
                                *gone = gone.map(|how| if how == Gone::Dark { Gone::Reset } else { how });
                            }
                        }
                    }
                }
                hub.next_listener += 1;
                let id = hub.next_listener;
                hub.owners.insert(address.clone(), self.host.clone());
                hub.listeners.insert(address.clone(), Registered { id, host: self.host.clone(), queue });
                bound = Ok((id, address));
            });
            let (id, address) = bound?;
            let waiting = tokio::sync::Mutex::new(waiting);
            let listener: Arc<dyn Listener> = Arc::new(Port { id, address, waiting, shared: self.shared.clone() });
            Ok(listener)
        })
    }
}

/// A bound port; free again when dropped.
struct Port {
    id: u64,
    address: String,
    waiting: tokio::sync::Mutex<mpsc::UnboundedReceiver<Accepted>>,
    shared: Arc<Shared>,
}

impl Listener for Port {
    fn accept(&self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async move {
            match self.waiting.lock().await.recv().await {
                Some(accepted) => Ok(accepted),
                // The host crashed under its listener: nothing comes any more.
                None => std::future::pending().await,
            }
        })
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut hub = self.shared.hub();
        if hub.listeners.get(&self.address).is_some_and(|listener| listener.id == self.id) {
            hub.listeners.remove(&self.address);
        }
    }
}

/// One end of a connection.
struct End {
    shared: Arc<Shared>,
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
    arrival: Option<Pin<Box<Sleep>>>,
}

impl Drop for End {
    fn drop(&mut self) {
        {
            let mut state = self.outgoing.state();
            state.writer_gone.get_or_insert(Gone::Closed);
        }
        {
            let mut state = self.incoming.state();
            state.reader_gone.get_or_insert(Gone::Closed);
        }
        self.outgoing.wake();
        self.incoming.wake();
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (passes, _) = this.shared.links(&this.incoming.from, &this.incoming.to);
        let mut state = this.incoming.state();
        state.reader = Some(context.waker().clone());
        if state.reader_gone.is_some() {
            // This end's own process is dead.
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !passes {
            return Poll::Pending;
        }
        if state.writer_gone == Some(Gone::Reset) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let Some((due, chunk)) = state.chunks.front_mut() else {
            return match state.writer_gone {
                Some(Gone::Closed) => Poll::Ready(Ok(())),
                Some(Gone::Reset | Gone::Dark) | None => Poll::Pending,
            };
        };
        if *due > Instant::now() {
            let due = *due;
            drop(state);
            let mut arrival = Box::pin(tokio::time::sleep_until(due));
            // Ready at once only if the time has just come; then the reader is called again.
            if std::future::Future::poll(arrival.as_mut(), context).is_ready() {
                context.waker().wake_by_ref();
            }
            this.arrival = Some(arrival);
            return Poll::Pending;
        }
        let len = chunk.len().min(buffer.remaining());
        buffer.put_slice(&chunk[..len]);
        chunk.advance(len);
        if chunk.is_empty() {
            state.chunks.pop_front();
        }
        state.bytes -= len;
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let (passes, answers) = this.shared.links(&this.outgoing.from, &this.outgoing.to);
        let (delay, resets) = {
            let mut hub = this.shared.hub();
            let chance = hub.reset;
            (hub.delay(), chance > 0.0 && hub.rng.random_bool(chance))
        };
        if resets {
            for pipe in [&this.incoming, &this.outgoing] {
                let mut state = pipe.state();
                state.writer_gone.get_or_insert(Gone::Reset);
                state.reader_gone.get_or_insert(Gone::Reset);
                drop(state);
                pipe.wake();
            }
        }
        let mut state = this.outgoing.state();
        state.writer = Some(context.waker().clone());
        if state.writer_gone.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let is_told = passes && answers;
        if is_told && matches!(state.reader_gone, Some(Gone::Closed | Gone::Reset)) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let room = PIPE_BYTES.saturating_sub(state.bytes).min(bytes.len());
        if room == 0 && !bytes.is_empty() {
            return Poll::Pending;
        }
        let due = Instant::now() + delay;
        let due = state.chunks.back().map_or(due, |(last, _)| due.max(*last));
        state.chunks.push_back((due, Bytes::copy_from_slice(&bytes[..room])));
        state.bytes += room;
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.outgoing.state().writer_gone.get_or_insert(Gone::Closed);
        this.outgoing.wake();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn pair(network: &MemoryNetwork) -> (Box<dyn Duplex>, Box<dyn Duplex>) {
        let listener = network.door("b").listen("b:1").await.unwrap();
        let near = network.door("a").connect("b:1").await.unwrap();
        let (far, from) = listener.accept().await.unwrap();
        assert_eq!(from, "a");
        (near, far)
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_arrive_in_order_after_their_latency() {
        let network = MemoryNetwork::new(1);
        network.latency(Duration::from_millis(5)..Duration::from_millis(9));
        let (mut near, mut far) = pair(&network).await;
        let before = Instant::now();
        near.write_all(b"one").await.unwrap();
        near.write_all(b"two").await.unwrap();
        let mut got = [0; 6];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"onetwo");
        assert!(before.elapsed() >= Duration::from_millis(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_holds_bytes_one_way_until_it_heals() {
        let network = MemoryNetwork::new(1);
        let (mut near, mut far) = pair(&network).await;
        network.cut("a", "b");
        near.write_all(b"held").await.unwrap();
        far.write_all(b"back").await.unwrap();
        let mut got = [0; 4];
        near.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"back");
        let waited = tokio::time::timeout(Duration::from_secs(60), far.read_exact(&mut got)).await;
        assert!(waited.is_err(), "nothing passes a cut");
        network.heal_all();
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"held");
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_process_resets_and_refuses_and_a_dark_host_is_silent() {
        let network = MemoryNetwork::new(1);
        let (mut near, _far) = pair(&network).await;
        network.kill("b");
        assert!(near.read_u8().await.is_err());
        let refused = network.door("a").connect("b:1").await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

        let (mut near, _far) = pair(&network).await;
        network.crash("b", true);
        assert!(tokio::time::timeout(Duration::from_secs(60), near.read_u8()).await.is_err());
        let door = network.door("a");
        assert!(tokio::time::timeout(Duration::from_secs(60), door.connect("b:1")).await.is_err());
        let _back = network.door("b").listen("b:1").await.unwrap();
        assert!(near.read_u8().await.is_err(), "the host is back and does not know the connection");
    }
}
