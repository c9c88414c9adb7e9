//! Histories on disk: JSON lines in gzip, one op per line. `docs/HISTORY.md` is the format's page.
//!
//! The file is a row of small complete gzip members, each written by one `write`. So a harness that is killed leaves a
//! file that any gzip reads up to the last member, at most half a second before the end; a half-written member at the
//! very end is the one damage a reader forgives, and it says so ([`Reader::is_cut`]).
//!
//! ```text
//! tasks ──Op──▶ bounded channel ──▶ one writer thread: JSON ▶ gzip member ▶ file
//! ```
//! Recording never waits for the disk: a task waits only when 16 Ki ops are queued. A full disk is reported by
//! [`Recorder::close`], so a run whose history is incomplete can not pass.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use flate2::{Compression, bufread::MultiGzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout_at,
};

use crate::op::{Ack, Acked, Election, Fault, FaultKind, Held, Hold, Op, Receive, Received, Send, Sent, Span, Spot};

/// Ops that may wait for the writer thread.
const QUEUED_MAX: usize = 16 * 1024;
/// A member is closed when it holds this much text …
const MEMBER_BYTES: usize = 256 * 1024;
/// … or when its first op is this old.
const MEMBER_AGE: Duration = Duration::from_millis(500);
/// No line that we write comes near this; a longer one is refused instead of read into memory.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Why a history could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("history {path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("history {path} line {line}: {why}")]
    Line { path: String, line: u64, why: String },
    #[error("history {path}: the writer thread ended early")]
    WriterGone { path: String },
}

/// Takes ops from many tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    sink: Sink,
}

#[derive(Clone, Debug)]
enum Sink {
    Memory(Arc<Mutex<Vec<Op>>>),
    File { path: Arc<str>, jobs: mpsc::Sender<Job> },
}

#[derive(Debug)]
enum Job {
    Record(Op),
    Close(oneshot::Sender<io::Result<u64>>),
}

impl Recorder {
    /// Keeps ops in memory, in the order of their recording; for simulations and tests. [`Recorder::take`] hands them out.
    pub fn memory() -> Self {
        Self { sink: Sink::Memory(Arc::default()) }
    }

    /// Creates `path` (an older file is replaced) and starts the writer thread, which ends at [`Recorder::close`] or
    /// with the last clone.
    pub fn create(path: &Path) -> Result<Self, HistoryError> {
        let name: Arc<str> = path.display().to_string().into();
        let failed = |source| HistoryError::Io { path: name.to_string(), source };
        let file = File::create(path).map_err(failed)?;
        let (jobs, queue) = mpsc::channel(QUEUED_MAX);
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
        thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || write_jobs(&timer, Members { file, text: Vec::new(), ops: 0 }, queue))
            .map_err(failed)?;
        Ok(Self { sink: Sink::File { path: Arc::clone(&name), jobs } })
    }

    /// Adds one op. Waits while the queue is full. What went wrong with the file is told by [`Recorder::close`].
    /// Cancel safe: a dropped call recorded the op or did not.
    pub async fn record(&self, op: Op) {
        match &self.sink {
            Sink::Memory(ops) => ops.lock().unwrap_or_else(PoisonError::into_inner).push(op),
            Sink::File { jobs, .. } => drop(jobs.send(Job::Record(op)).await),
        }
    }

    /// The ops recorded in memory since the last call; empty for a file.
    pub fn take(&self) -> Vec<Op> {
        match &self.sink {
            Sink::Memory(ops) => std::mem::take(&mut *ops.lock().unwrap_or_else(PoisonError::into_inner)),
            Sink::File { .. } => Vec::new(),
        }
    }

    /// Writes what is queued, syncs the file and returns the number of ops in it. Ops recorded afterwards are lost.
    /// An error means that the file is incomplete.
    pub async fn close(&self) -> Result<u64, HistoryError> {
        match &self.sink {
            Sink::Memory(ops) => Ok(ops.lock().unwrap_or_else(PoisonError::into_inner).len() as u64),
            Sink::File { path, jobs } => {
                let gone = || HistoryError::WriterGone { path: path.to_string() };
                let (reply, answer) = oneshot::channel();
                jobs.send(Job::Close(reply)).await.map_err(|_| gone())?;
                let closed = answer.await.map_err(|_| gone())?;
                closed.map_err(|source| HistoryError::Io { path: path.to_string(), source })
            }
        }
    }
}

/// The open file and the member that is being filled.
struct Members {
    file: File,
    text: Vec<u8>,
    ops: u64,
}

impl Members {
    fn add(&mut self, op: &Op) -> io::Result<()> {
        serde_json::to_writer(&mut self.text, &Line::from(op))?;
        self.text.push(b'\n');
        self.ops += 1;
        if self.text.len() >= MEMBER_BYTES { self.write_member() } else { Ok(()) }
    }

    fn write_member(&mut self) -> io::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        let mut member = GzEncoder::new(Vec::with_capacity(self.text.len() / 4), Compression::fast());
        member.write_all(&self.text)?;
        self.file.write_all(&member.finish()?)?;
        self.text.clear();
        Ok(())
    }
}

/// The writer thread. After the first error it only drains, so that no task hangs, and tells the error at the close.
/// Its own small runtime is there for one thing: to wait for the next op or for the age of a member, whichever is first.
fn write_jobs(timer: &tokio::runtime::Runtime, mut members: Members, mut queue: mpsc::Receiver<Job>) {
    let mut failure: Option<io::Error> = None;
    let mut oldest = tokio::time::Instant::now();
    loop {
        let waiting = members.text.is_empty();
        let next = timer.block_on(async {
            if waiting { Ok(queue.recv().await) } else { timeout_at(oldest + MEMBER_AGE, queue.recv()).await }
        });
        let written = match next {
            Ok(Some(Job::Record(_))) if failure.is_some() => Ok(()),
            Ok(Some(Job::Record(op))) => {
                if waiting {
                    oldest = tokio::time::Instant::now();
                }
                members.add(&op)
            }
            Err(_elapsed) => members.write_member(),
            Ok(Some(Job::Close(reply))) => {
                let closed = match failure.take() {
                    Some(error) => Err(error),
                    None => members.write_member().and_then(|()| members.file.sync_all()).map(|()| members.ops),
                };
                drop(reply.send(closed));
                return;
            }
            Ok(None) => return drop(members.write_member()),
        };
        if let Err(error) = written {
            members.text.clear();
            failure.get_or_insert(error);
        }
    }
}

/// Reads a history op by op; memory does not grow with the file.
pub struct Reader {
    path: String,
    lines: BufReader<MultiGzDecoder<BufReader<File>>>,
    text: Vec<u8>,
    topic: Arc<str>,
    line: u64,
    cut: bool,
}

impl Reader {
    /// Opens `path`; an empty file is a history cut at its start.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| HistoryError::Io { path: name.clone(), source })?;
        let lines = BufReader::with_capacity(64 * 1024, MultiGzDecoder::new(BufReader::new(file)));
        Ok(Self { path: name, lines, text: Vec::new(), topic: "".into(), line: 0, cut: false })
    }

    /// Whether the file ended inside a member or a line, as after a kill of the harness. Known at the end only.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    fn next_op(&mut self) -> Result<Option<Op>, HistoryError> {
        self.text.clear();
        let read = (&mut self.lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.text);
        match read {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.cut = true;
                return Ok(None);
            }
            Err(source) => return Err(HistoryError::Io { path: self.path.clone(), source }),
        }
        self.line += 1;
        if self.text.last() != Some(&b'\n') {
            if self.text.len() as u64 >= LINE_BYTES_MAX {
                return Err(self.refuse(format!("longer than {LINE_BYTES_MAX} bytes")));
            }
            self.cut = true;
            return Ok(None);
        }
        let line: Line = serde_json::from_slice(&self.text).map_err(|error| self.refuse(error.to_string()))?;
        if line.topic.as_deref().is_some_and(|topic| *topic != *self.topic) {
            self.topic = line.topic.as_deref().unwrap_or_default().into();
        }
        line.into_op(&self.topic).map(Some).map_err(|field| self.refuse(format!("{field} is missing")))
    }

    fn refuse(&self, why: String) -> HistoryError {
        HistoryError::Line { path: self.path.clone(), line: self.line, why }
    }
}

impl Iterator for Reader {
    type Item = Result<Op, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_op().transpose()
    }
}

/// One line as `docs/HISTORY.md` has it. Fields a reader does not know are skipped.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Line<'a> {
    r#type: LineType,
    process: u32,
    invoke_us: u64,
    return_us: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outcome: Option<LineOutcome>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    topic: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    key: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    error: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<LineFault>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before_us: Option<u64>,
}

/// Text that borrows from the line where JSON allows it (no escapes); a plain `Option<Cow>` would always copy.
#[derive(Debug, Serialize, Deserialize)]
struct Text<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LineType {
    #[default]
    Send,
    Receive,
    Ack,
    Until,
    Recall,
    Half,
    Commit,
    Rollback,
    Fault,
    Election,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LineOutcome {
    Ok,
    Fail,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LineFault {
    Kill,
    Restart,
    Pause,
    Resume,
    Crash,
}

fn text(text: &str) -> Option<Text<'_>> {
    Some(Text(text.into()))
}

impl<'a> Line<'a> {
    fn new(r#type: LineType, span: Span) -> Self {
        let Span { process, invoke_us, return_us } = span;
        Self { r#type, process, invoke_us, return_us, ..Self::default() }
    }

    fn outcome(self, outcome: LineOutcome, error: Option<&'a str>) -> Self {
        Self { outcome: Some(outcome), error: error.and_then(text), ..self }
    }

    fn spot(self, spot: Spot) -> Self {
        Self { queue: Some(spot.queue), offset: Some(spot.offset), ..self }
    }
}

impl<'a> From<&'a Op> for Line<'a> {
    fn from(op: &'a Op) -> Self {
        match op {
            Op::Send(send) => {
                let line =
                    Self { topic: text(&send.topic), key: text(&send.key), ..Self::new(LineType::Send, send.span) };
                match &send.outcome {
                    Sent::Stored { queue, offset } => {
                        Self { queue: *queue, offset: *offset, ..line.outcome(LineOutcome::Ok, None) }
                    }
                    Sent::Failed(why) => line.outcome(LineOutcome::Fail, Some(why)),
                    Sent::Unknown(why) => line.outcome(LineOutcome::Unknown, Some(why)),
                }
            }
            Op::Receive(receive) => {
                let line = Self { topic: text(&receive.topic), ..Self::new(LineType::Receive, receive.span) };
                match &receive.outcome {
                    Received::Message { key, spot, attempt } => {
                        let line = Self { key: text(key), attempt: Some(*attempt), ..line };
                        line.outcome(LineOutcome::Ok, None).spot(*spot)
                    }
                    Received::Failed(why) => line.outcome(LineOutcome::Fail, Some(why)),
                    Received::Unknown(why) => line.outcome(LineOutcome::Unknown, Some(why)),
                }
            }
            Op::Ack(ack) => {
                let line = Self { topic: text(&ack.topic), key: text(&ack.key), ..Self::new(LineType::Ack, ack.span) };
                match &ack.outcome {
                    Acked::Done => line.outcome(LineOutcome::Ok, None).spot(ack.spot),
                    Acked::Failed(why) => line.outcome(LineOutcome::Fail, Some(why)).spot(ack.spot),
                    Acked::Unknown(why) => line.outcome(LineOutcome::Unknown, Some(why)).spot(ack.spot),
                }
            }
            Op::Hold(Hold { span, topic, key, what }) => {
                let line = |kind| Self { topic: text(topic), key: text(key), ..Self::new(kind, *span) };
                match what {
                    Held::Until { not_before_us } => {
                        Self { not_before_us: Some(*not_before_us), ..line(LineType::Until) }
                    }
                    Held::Half => line(LineType::Half),
                    Held::End { commit, outcome } => {
                        let line = line(if *commit { LineType::Commit } else { LineType::Rollback });
                        match outcome {
                            Acked::Done => line.outcome(LineOutcome::Ok, None),
                            Acked::Failed(why) => line.outcome(LineOutcome::Fail, Some(why)),
                            Acked::Unknown(why) => line.outcome(LineOutcome::Unknown, Some(why)),
                        }
                    }
                    Held::Recall(Acked::Done) => line(LineType::Recall).outcome(LineOutcome::Ok, None),
                    Held::Recall(Acked::Failed(why)) => line(LineType::Recall).outcome(LineOutcome::Fail, Some(why)),
                    Held::Recall(Acked::Unknown(why)) => {
                        line(LineType::Recall).outcome(LineOutcome::Unknown, Some(why))
                    }
                }
            }
            Op::Fault(fault) => Self {
                fault: Some(match fault.kind {
                    FaultKind::Kill => LineFault::Kill,
                    FaultKind::Restart => LineFault::Restart,
                    FaultKind::Pause => LineFault::Pause,
                    FaultKind::Resume => LineFault::Resume,
                    FaultKind::Crash => LineFault::Crash,
                }),
                node: Some(fault.node),
                ..Self::new(LineType::Fault, fault.span)
            },
            Op::Election(election) => Self {
                node: Some(election.leader),
                term: Some(election.term),
                ..Self::new(LineType::Election, election.span)
            },
        }
    }
}

impl Line<'_> {
    /// The op of this line; the error is the name of the field that is missing.
    fn into_op(self, topic: &Arc<str>) -> Result<Op, &'static str> {
        let span = Span { process: self.process, invoke_us: self.invoke_us, return_us: self.return_us };
        let spot = self.queue.zip(self.offset).map(|(queue, offset)| Spot { queue, offset });
        let why = || self.error.as_deref().unwrap_or_default().into();
        let key = || self.key.as_deref().map(Box::<str>::from).ok_or("key");
        let topic = || if self.topic.is_some() { Ok(Arc::clone(topic)) } else { Err("topic") };
        let outcome = || self.outcome.ok_or("outcome");
        let acked = || {
            Ok(match outcome()? {
                LineOutcome::Ok => Acked::Done,
                LineOutcome::Fail => Acked::Failed(why()),
                LineOutcome::Unknown => Acked::Unknown(why()),
            })
        };
        Ok(match self.r#type {
            LineType::Send => Op::Send(Send {
                span,
                topic: topic()?,
                key: key()?,
                outcome: match outcome()? {
                    LineOutcome::Ok => Sent::Stored { queue: self.queue, offset: self.offset },
                    LineOutcome::Fail => Sent::Failed(why()),
                    LineOutcome::Unknown => Sent::Unknown(why()),
                },
            }),
            LineType::Receive => Op::Receive(Receive {
                span,
                topic: topic()?,
                outcome: match outcome()? {
                    LineOutcome::Ok => Received::Message {
                        key: key()?,
                        spot: spot.ok_or("queue or offset")?,
                        attempt: self.attempt.ok_or("attempt")?,
                    },
                    LineOutcome::Fail => Received::Failed(why()),
                    LineOutcome::Unknown => Received::Unknown(why()),
                },
            }),
            LineType::Ack => Op::Ack(Ack {
                span,
                topic: topic()?,
                key: key()?,
                spot: spot.ok_or("queue or offset")?,
                outcome: acked()?,
            }),
            LineType::Until => {
                let what = Held::Until { not_before_us: self.not_before_us.ok_or("not_before_us")? };
                Op::Hold(Hold { span, topic: topic()?, key: key()?, what })
            }
            LineType::Recall => Op::Hold(Hold { span, topic: topic()?, key: key()?, what: Held::Recall(acked()?) }),
            LineType::Half => Op::Hold(Hold { span, topic: topic()?, key: key()?, what: Held::Half }),
            kind @ (LineType::Commit | LineType::Rollback) => {
                let what = Held::End { commit: kind == LineType::Commit, outcome: acked()? };
                Op::Hold(Hold { span, topic: topic()?, key: key()?, what })
            }
            LineType::Fault => Op::Fault(Fault {
                span,
                node: self.node.ok_or("node")?,
                kind: match self.fault.ok_or("fault")? {
                    LineFault::Kill => FaultKind::Kill,
                    LineFault::Restart => FaultKind::Restart,
                    LineFault::Pause => FaultKind::Pause,
                    LineFault::Resume => FaultKind::Resume,
                    LineFault::Crash => FaultKind::Crash,
                },
            }),
            LineType::Election => {
                Op::Election(Election { span, leader: self.node.ok_or("node")?, term: self.term.ok_or("term")? })
            }
        })
    }
}

#[cfg(test)]
#[path = "history_test.rs"]
mod tests;
