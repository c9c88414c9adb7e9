//! Processes of the binary, as the tests of the command line start them.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    io::{BufRead, BufReader, Lines, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything; reached only when a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn quorate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUORATE_")) {
        command.env_remove(name);
    }
    // The machine's disk may be nearly full of other things, and still has room for a test. A name server refuses what is no setting of its.
    if args.first() != Some(&"namesrv") {
        command.env("QUORATE_RETENTION_DISK_WARN_PERCENT", "97").env("QUORATE_RETENTION_DISK_FULL_PERCENT", "99");
    }
    command.args(args).stdin(Stdio::null());
    command
}

pub fn run(args: &[&str]) -> Output {
    quorate(args).output().expect("the binary runs")
}

/// Exit code, standard output, standard error.
pub fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Runs a command until it ends well: a node of a new group needs a moment to lead.
pub fn run_until_fine(args: &[&str]) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = run(args);
        if output.status.success() {
            return said(&output).1;
        }
        assert!(Instant::now() < deadline, "{:?}", said(&output));
    }
}

/// A role that runs; killed if a test gives up on it.
pub struct Role {
    child: Child,
    lines: Option<Lines<BufReader<ChildStderr>>>,
}

impl Role {
    pub fn start(args: &[&str]) -> Self {
        Self::spawn(quorate(args))
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the binary starts");
        let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        Self { child, lines: Some(lines) }
    }

    /// What stands behind `name=` in the line that says it is ready.
    pub fn ready(&mut self, name: &str) -> String {
        let line = self.line("ready ");
        let value = line.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        value.expect("it says where").to_owned()
    }

    /// Two of them.
    pub fn ready_both(&mut self, first: &str, second: &str) -> (String, String) {
        let line = self.line("ready ");
        let value = |name: &str| line.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        (value(first).expect("it says where").to_owned(), value(second).expect("it says where").to_owned())
    }

    /// The next line it says that holds `part`.
    pub fn line(&mut self, part: &str) -> String {
        let lines = self.lines.as_mut().expect("it is not stopped yet");
        lines.map_while(Result::ok).find(|line| line.contains(part)).expect("it says so")
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// The lines that nobody has read, of one that has ended.
    pub fn rest(&mut self) -> Vec<String> {
        self.lines.take().expect("it is not stopped yet").map_while(Result::ok).collect()
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("it is our child");
    }

    /// SIGTERM, as an orchestrator sends it.
    pub fn stop(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it is our child and not reaped");
        // Read on, so that it never waits for us.
        let lines = self.lines.take().expect("it is stopped once");
        let reader = std::thread::spawn(move || lines.map_while(Result::ok).count());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::park_timeout(Duration::from_millis(10));
        };
        reader.join().expect("reading does not fail");
        status
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command line of a node on free ports.
pub fn broker<'a>(data: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let data = data.to_str().expect("a plain path");
    let mut args = vec![
        "broker",
        "--data",
        data,
        "--listen",
        "127.0.0.1:0",
        "--peer-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ];
    args.extend(more);
    args
}

/// A config file whose name server takes a free port.
pub fn config(dir: &Path, more: &str) -> String {
    let path = dir.join("broker.toml");
    std::fs::write(&path, format!("[name_server]\nlisten = \"127.0.0.1:0\"\n{more}")).expect("written");
    path.to_str().expect("a plain path").to_owned()
}

/// Status and body of a page.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
    (head[9..12].parse().expect("a status"), body.to_owned())
}

/// Ports on which nobody listens now, each given once by this process. They lie below those of outgoing connections, one of which might
/// have taken a port by the time its node starts.
pub fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(101);
    let ports = std::iter::repeat_with(|| {
        let number = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        10_000 + (number % 22_000) as u16
    });
    ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).take(count).collect()
}
