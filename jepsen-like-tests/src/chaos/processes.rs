//! Broker processes as children: started, killed, paused, started again, and gone when the harness is gone.
//!
//! One thread, the keeper, does everything that touches a child: it forks (so that the kernel's death signal is tied to a
//! thread that lives long enough, see [`super::die_with_harness`]), sends signals and reaps. A signal goes only to a child that
//! has not been reaped, so never to a stranger that got the number since.
//!
//! ```text
//! Processes ──jobs──▶ keeper thread ──fork, signal, reap──▶ children (each leads its own process group)
//!                         └──▶ exits (channel): who ended, and whether the harness had asked for it
//! ```
//! Nobody survives: [`Processes::stop_all`] ends them in order, dropping [`Processes`] kills them, and a harness that is
//! killed itself takes them along through the kernel.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc as jobs,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::{mpsc, oneshot};

use super::parent::HARNESS_VARIABLE;

/// How often the keeper looks whether a child has ended.
const REAP_EVERY: Duration = Duration::from_millis(10);
/// Jobs that may wait for the keeper; each takes it well under a millisecond, but for the last.
const JOBS_MAX: usize = 64;
/// Exits that nobody has read yet; more are dropped.
const EXITS_MAX: usize = 256;

/// What to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The executable; [`std::env::current_exe`] to start this program again.
    pub program: PathBuf,
    pub nodes: Vec<NodeLaunch>,
}

/// One child. It inherits the environment but for variables that begin with `QUORATE_`, which would configure it behind
/// the harness's back.
#[derive(Clone, Debug)]
pub struct NodeLaunch {
    pub number: u32,
    pub args: Vec<OsString>,
    /// Takes standard output and error; appended to, its folder is made.
    pub log: PathBuf,
}

/// A child that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    pub number: u32,
    pub pid: u32,
    pub status: ExitStatus,
    /// How long it had run.
    pub lived: Duration,
    /// The harness had killed or stopped it.
    pub wanted: bool,
}

/// Why something could not be done to a child. Nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("no node {0} was planned")]
    NoSuchNode(u32),
    #[error("node {0} runs already")]
    Running(u32),
    #[error("node {0} does not run")]
    NotRunning(u32),
    #[error("node {number}: {what}: {source}")]
    Io { number: u32, what: &'static str, source: io::Error },
    #[error("the thread that keeps the processes has ended")]
    KeeperGone,
}

/// The children of this harness. Dropping it kills all of them and returns when they are gone.
#[derive(Debug)]
pub struct Processes {
    jobs: Option<jobs::SyncSender<Job>>,
    keeper: Option<JoinHandle<()>>,
}

enum Job {
    Start(u32, Reply<u32>),
    Signal(u32, Signal, Reply<u32>),
    Stop(Duration, Reply<()>),
}

type Reply<T> = oneshot::Sender<Result<T, ProcessError>>;

impl Processes {
    /// Starts the keeper, and no child yet. The receiver tells every end of a child.
    pub fn new(launch: Launch) -> io::Result<(Self, mpsc::Receiver<Exit>)> {
        let (jobs, queue) = jobs::sync_channel(JOBS_MAX);
        let (exits, ended) = mpsc::channel(EXITS_MAX);
        let children = launch.nodes.iter().map(|_| None).collect();
        let keeper = Keeper { launch, children, exits };
        let keeper = thread::Builder::new().name("keeper".to_owned()).spawn(move || keeper.run(&queue))?;
        Ok((Self { jobs: Some(jobs), keeper: Some(keeper) }, ended))
    }

    /// Starts node `number` with the arguments and directory it always has; returns its process id.
    pub async fn start(&self, number: u32) -> Result<u32, ProcessError> {
        self.ask(|reply| Job::Start(number, reply)).await
    }

    /// SIGKILL: the process ends here and now, without a chance to say anything. Returns the process id it had.
    pub async fn kill(&self, number: u32) -> Result<u32, ProcessError> {
        self.ask(|reply| Job::Signal(number, Signal::KILL, reply)).await
    }

    /// SIGSTOP: the process freezes, its connections stay open.
    pub async fn pause(&self, number: u32) -> Result<u32, ProcessError> {
        self.ask(|reply| Job::Signal(number, Signal::STOP, reply)).await
    }

    /// SIGCONT: the process goes on where it was.
    pub async fn resume(&self, number: u32) -> Result<u32, ProcessError> {
        self.ask(|reply| Job::Signal(number, Signal::CONT, reply)).await
    }

    /// SIGTERM: the process is told to stop in order. Returns its process id; its end comes as an [`Exit`].
    pub async fn terminate(&self, number: u32) -> Result<u32, ProcessError> {
        self.ask(|reply| Job::Signal(number, Signal::TERM, reply)).await
    }

    /// SIGTERM to all, SIGKILL to those that are still there after `patience`; all are gone when it returns.
    pub async fn stop_all(&self, patience: Duration) -> Result<(), ProcessError> {
        self.ask(|reply| Job::Stop(patience, reply)).await
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, ProcessError> {
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().expect("the sender is taken by drop only");
        jobs.send(job(reply)).map_err(|_| ProcessError::KeeperGone)?;
        answer.await.map_err(|_| ProcessError::KeeperGone)?
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(keeper) = self.keeper.take() {
            drop(keeper.join());
        }
    }
}

/// The state of the keeper thread. Its own drop kills what is left, so even a panic of the thread leaves nobody.
struct Keeper {
    launch: Launch,
    children: Vec<Option<Running>>,
    exits: mpsc::Sender<Exit>,
}

struct Running {
    child: Child,
    since: Instant,
    /// The harness has sent a signal that ends it.
    doomed: bool,
}

impl Running {
    fn signal(&mut self, signal: Signal) -> io::Result<u32> {
        let pid = self.child.id();
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("the kernel's process ids are positive");
        kill_process_group(raw, signal)?;
        self.doomed |= signal == Signal::KILL || signal == Signal::TERM;
        Ok(pid)
    }
}

impl Keeper {
    fn run(mut self, queue: &jobs::Receiver<Job>) {
        loop {
            match queue.recv_timeout(REAP_EVERY) {
                Ok(Job::Start(number, reply)) => drop(reply.send(self.start(number))),
                Ok(Job::Signal(number, signal, reply)) => drop(reply.send(self.signal(number, signal))),
                Ok(Job::Stop(patience, reply)) => {
                    self.stop_all(patience);
                    drop(reply.send(Ok(())));
                }
                Err(jobs::RecvTimeoutError::Timeout) => {}
                Err(jobs::RecvTimeoutError::Disconnected) => return,
            }
            self.reap();
        }
    }

    fn slot(&self, number: u32) -> Result<usize, ProcessError> {
        let found = self.launch.nodes.iter().position(|node| node.number == number);
        found.ok_or(ProcessError::NoSuchNode(number))
    }

    fn start(&mut self, number: u32) -> Result<u32, ProcessError> {
        let slot = self.slot(number)?;
        self.reap();
        if self.children[slot].is_some() {
            return Err(ProcessError::Running(number));
        }
        let node = &self.launch.nodes[slot];
        let failed = |what| move |source| ProcessError::Io { number, what, source };
        let log = open_log(node).map_err(failed("opening its log"))?;
        let errors = log.try_clone().map_err(failed("opening its log"))?;
        let mut command = Command::new(&self.launch.program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUORATE_")) {
            command.env_remove(name);
        }
        command
            .args(&node.args)
            .env(HARNESS_VARIABLE, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0); // so that a Ctrl-C in the terminal reaches the harness alone
        let child = command.spawn().map_err(failed("starting it"))?;
        let pid = child.id();
        self.children[slot] = Some(Running { child, since: Instant::now(), doomed: false });
        Ok(pid)
    }

    fn signal(&mut self, number: u32, signal: Signal) -> Result<u32, ProcessError> {
        let slot = self.slot(number)?;
        self.reap();
        let running = self.children[slot].as_mut().ok_or(ProcessError::NotRunning(number))?;
        let failed = |source: io::Error| ProcessError::Io { number, what: "sending it a signal", source };
        running.signal(signal).map_err(failed)
    }

    /// Takes note of children that have ended.
    fn reap(&mut self) {
        for (node, slot) in self.launch.nodes.iter().zip(&mut self.children) {
            let Some(running) = slot else { continue };
            let Ok(Some(status)) = running.child.try_wait() else { continue };
            let (pid, lived) = (running.child.id(), running.since.elapsed());
            let exit = Exit { number: node.number, pid, status, lived, wanted: running.doomed };
            *slot = None;
            self.exits.try_send(exit).ok(); // full: nobody reads them
        }
    }

    fn stop_all(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        for running in self.children.iter_mut().flatten() {
            drop(running.signal(Signal::TERM));
            drop(running.signal(Signal::CONT)); // a paused one would not hear it
        }
        while self.children.iter().any(Option::is_some) && Instant::now() < deadline {
            thread::sleep(REAP_EVERY);
            self.reap();
        }
        self.kill_all();
    }

    fn kill_all(&mut self) {
        for running in self.children.iter_mut().flatten() {
            drop(running.signal(Signal::KILL));
        }
        for running in self.children.iter_mut().flatten() {
            drop(running.child.wait());
        }
        self.reap();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill_all();
    }
}

fn open_log(node: &NodeLaunch) -> io::Result<File> {
    if let Some(folder) = node.log.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(&node.log)
}
