//! What openraft runs on: tokio, with random numbers from the node's own seed and tasks that can be ended together.
//!
//! Every task that openraft or this crate spawns for a node runs inside that node's [`Scope`]. The scope gives each task a
//! generator of its own, derived from the node's seed, so that a simulation under one seed draws the same numbers again;
//! and it remembers the tasks, so that a simulated crash can end them all between two steps. Outside a scope (openraft's
//! own test suite) random numbers come from the operating system.
//!
//! Never uses `spawn_blocking` nor the wall clock.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::Either;
use openraft::{AsyncRuntime, Instant, OptionalSend};
use rand::{SeedableRng, rngs::SmallRng};
use tokio::task::{AbortHandle, JoinHandle};

/// Sleeps shorter than this only give way once: tokio's timer has a grain of a millisecond, and openraft asks for
/// single microseconds in the path of every commit.
const SHORTEST_SLEEP: Duration = Duration::from_micros(50);

tokio::task_local! {
    static CURRENT: Local;
}

/// The task's part of a scope.
struct Local {
    scope: Scope,
    seed: Cell<u64>,
}

/// All tasks of one node. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Scope {
    tasks: Arc<Mutex<Tasks>>,
}

#[derive(Default)]
struct Tasks {
    handles: Vec<AbortHandle>,
    /// Finished handles are dropped when the list reaches this length.
    sweep_at: usize,
    ended: bool,
}

impl Scope {
    /// Runs a future inside this scope with random numbers from `seed`.
    pub(crate) fn enter<F: Future>(&self, seed: u64, future: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(Local { scope: self.clone(), seed: Cell::new(seed) }, future)
    }

    /// Spawns a task of this node from outside of its tasks.
    pub(crate) fn spawn<F>(&self, seed: u64, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let handle = tokio::spawn(self.enter(seed, future));
        self.remember(handle.abort_handle());
        handle
    }

    /// Ends every task of this node at its next step, as a crash would.
    pub(crate) fn end(&self) {
        let handles = {
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.ended = true;
            std::mem::take(&mut tasks.handles)
        };
        for handle in handles {
            handle.abort();
        }
    }

    fn remember(&self, handle: AbortHandle) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.ended {
            handle.abort();
            return;
        }
        if tasks.handles.len() >= tasks.sweep_at.max(64) {
            tasks.handles.retain(|handle| !handle.is_finished());
            tasks.sweep_at = tasks.handles.len() * 2;
        }
        tasks.handles.push(handle);
    }
}

/// Spawns a task of the current node; a plain task outside of any node.
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let here = CURRENT.try_with(|local| (local.scope.clone(), mix(draw(&local.seed), SPAWN)));
    match here {
        Ok((scope, seed)) => scope.spawn(seed, future),
        Err(_) => tokio::spawn(future),
    }
}

/// A random number from the current task's seed.
pub(crate) fn random() -> u64 {
    CURRENT.try_with(|local| draw(&local.seed)).unwrap_or_else(|_| rand::random())
}

/// Odd constants that keep the numbers of a task apart from those of the tasks it spawns.
const DRAW: u64 = 0x6a09_e667_f3bc_c909;
const SPAWN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every input bit over the whole output.
pub(crate) fn mix(seed: u64, gamma: u64) -> u64 {
    let z = seed.wrapping_add(gamma);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn draw(seed: &Cell<u64>) -> u64 {
    let now = seed.get();
    seed.set(mix(now, DRAW));
    now
}

/// Gives way to the other tasks once.
#[derive(Default)]
pub(crate) struct Yield {
    done: bool,
}

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.done {
            return Poll::Ready(());
        }
        self.done = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The runtime in openraft's words.
pub(crate) struct Runtime {
    inner: openraft_tokio::TokioRuntime,
}

/// openraft re-exports its tokio runtime only under a deprecated name.
#[allow(deprecated)]
mod openraft_tokio {
    pub(crate) use openraft::{TokioInstant, TokioRuntime};
}

type Inner = openraft_tokio::TokioRuntime;

/// openraft's instants.
pub(crate) type TokioInstant = openraft_tokio::TokioInstant;

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runtime")
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Either<tokio::time::Sleep, Yield>;
    type Instant = openraft_tokio::TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <Inner as AsyncRuntime>::Mpsc;
    type Watch = <Inner as AsyncRuntime>::Watch;
    type Oneshot = <Inner as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Inner as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        if duration < SHORTEST_SLEEP {
            return Either::Right(Yield::default());
        }
        Either::Left(tokio::time::sleep(duration))
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let now = Self::Instant::now();
        if deadline < now + SHORTEST_SLEEP {
            return Either::Right(Yield::default());
        }
        Either::Left(Inner::sleep_until(deadline))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Inner::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        Inner::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SmallRng::seed_from_u64(random())
    }

    fn new(threads: usize) -> Self {
        Self { inner: Inner::new(threads) }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.inner.block_on(future)
    }
}
