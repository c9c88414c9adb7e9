//! The engine of `quorate dev`: a group of three broker processes on this machine, with real files and real syncs.
//!
//! ```text
//! plan (ports, folders) ─▶ group (children, leader watch) ─┬▶ demo: load, SIGKILL of the leader, drain, report
//!                                                          └▶ keep: stays up, starts again whoever is killed
//! ```
//! Whatever happens, the children are gone when [`run`] returns, two seconds at most after it was told to stop. The
//! report's verdict is made from the saved history alone, read back from its file.
//!
//! The engine prints nothing itself: it talks to a [`Screen`], because only `cli` knows about terminals.

mod demo;
mod group;
mod keep;
mod plan;
mod report;
mod screen;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use group::Group;
pub(crate) use plan::Lock;
pub use plan::{CommandLine, GroupPlan, NodePlan};
pub use report::{Failover, Report};
pub use screen::Screen;

use crate::{
    chaos::ProcessError,
    history::HistoryError,
    workload::Drain,
    world::{World, WorldError},
};

/// Nodes of the group.
pub const NODES: u32 = 3;
/// Between SIGTERM and SIGKILL when the group is stopped; with what comes after it stays below two seconds.
const STOP_PATIENCE: Duration = Duration::from_millis(1_200);

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct DevOptions {
    /// The executable of the children; [`std::env::current_exe`] but in tests.
    pub program: PathBuf,
    /// First of the clients' ports, the others follow; free ones if missing.
    pub port: Option<u16>,
    /// Where the nodes' files and the history go, kept after the run; a temporary folder if missing.
    pub data: Option<PathBuf>,
    /// Run the demo, or keep the group up until told to stop.
    pub demo: bool,
    /// Length of the demo's load.
    pub seconds: u32,
    /// Messages per second.
    pub rate: u32,
    /// How long to wait for the last messages.
    pub drain: Drain,
}

/// How a run ended when nothing went wrong in it.
#[derive(Debug)]
pub enum DevEnd {
    /// The demo came to a verdict.
    Judged(Box<Report>),
    /// Told to stop before.
    Stopped,
}

/// Why there is no verdict. The children are gone.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("data directory {folder} is used by {holder}; stop it or pass another --data")]
    InUse { folder: String, holder: String },
    #[error("{path} holds {found}, which is no plan of a group: move the folder away or use another --data")]
    Plan { path: String, found: String },
    #[error("broker {number} ended while the group was starting ({status}); its log {log} ends with\n{tail}")]
    BrokerEnded { number: u32, status: String, log: String, tail: String },
    #[error("{what} took longer than {seconds} s{hint}")]
    TooLong { what: &'static str, seconds: u64, hint: String },
    #[error("a call to the group failed: {0}")]
    World(#[from] WorldError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// Runs `quorate dev` until the demo's verdict, or until `stop` says so.
///
/// `command_line` makes a child's arguments from the plan; its program must call
/// [`crate::chaos::die_with_harness`] first.
/// Errors and the stop leave no process behind; a temporary folder is removed unless the verdict is FAIL.
pub async fn run<W: World>(
    options: DevOptions,
    command_line: CommandLine,
    world: Arc<W>,
    screen: Arc<dyn Screen>,
    stop: CancellationToken,
) -> Result<DevEnd, DevError> {
    let (plan, _lock, mut folder) = GroupPlan::make(&options)?;
    if options.demo {
        screen.line(&format!("quorate dev - {NODES}-node group, data in {}", plan.describe_folder(folder.is_some())));
    }
    let (group, mut exits) = Group::new(plan, &options.program, &command_line, Arc::clone(&world))?;
    let work = async {
        if options.demo {
            let report = demo::run(&options, &group, &world, &screen, &mut exits).await?;
            Ok(DevEnd::Judged(Box::new(report)))
        } else {
            keep::run(&group, &screen, &mut exits).await.map(|never| match never {})
        }
    };
    let end = stop.run_until_cancelled(work).await;
    screen.progress(None);
    group.stop(STOP_PATIENCE).await?;
    let end = end.unwrap_or(Ok(DevEnd::Stopped));
    let failed = matches!(&end, Ok(DevEnd::Judged(report)) if !report.is_pass()) || end.is_err();
    if let Some(folder) = folder.as_mut().filter(|_| failed) {
        folder.disable_cleanup(true);
        screen.warn(&format!("the nodes' files are kept in {}", folder.path().display()));
    }
    end
}

/// Hears Ctrl-C, SIGTERM and SIGHUP for as long as it lives.
#[derive(Debug)]
pub struct StopSignals {
    stop: CancellationToken,
    _listener: JoinSet<()>,
}

impl StopSignals {
    /// From now on these signals do not end the process by themselves: the first one cancels the token, a second one
    /// ends the process at once, and the kernel ends the children with it. Must be called within a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let stop = CancellationToken::new();
        let told = stop.clone();
        let mut listener = JoinSet::new();
        listener.spawn(async move {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
                if told.is_cancelled() {
                    std::process::exit(130);
                }
                told.cancel();
            }
        });
        Ok(Self { stop, _listener: listener })
    }

    /// Cancelled by the first signal.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }
}
