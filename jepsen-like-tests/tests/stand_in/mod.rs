//! A stand-in for a broker group: three processes that share a journal file and elect a leader by a file lock. It keeps
//! what the harness relies on (acks survive SIGKILL, sends are deduplicated, deliveries are repeated) in a page of code,
//! so that the harness is tested without a broker. One of its modes has a planted bug.
//!
//! A process of it is this test binary again: the test `stand_in_broker_process` turns into a broker when it finds its
//! plan among the arguments, where the test runner takes it for one more filter.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quorate_jepsen::{
    op::{Acked, Sent, Spot},
    workload::{body_of, key_of},
    world::{Consuming, Handed, Message, NodeView, Producing, Role, World, WorldError},
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

const QUEUES: usize = 8;
const INVISIBLE: Duration = Duration::from_secs(1);

/// What is wrong with the group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Right,
    /// Acknowledges every 100th send without keeping it.
    Forgets,
    /// Ends at once.
    Broken,
}

/// Arguments that turn this test binary into broker `number`.
pub fn arguments(mode: Mode, number: u32, client: &str, group_folder: &Path) -> Vec<std::ffi::OsString> {
    let mode = match mode {
        Mode::Right => "right",
        Mode::Forgets => "forgets",
        Mode::Broken => "broken",
    };
    let plan = format!("stand-in,{mode},{number},{client},{}", group_folder.display());
    ["stand_in_broker_process", "--exact", "--nocapture", &plan].map(Into::into).to_vec()
}

/// Runs a broker if the arguments say so, and does not return then.
pub fn run_if_asked() {
    let Some(plan) = std::env::args().find_map(|arg| arg.strip_prefix("stand-in,").map(str::to_owned)) else { return };
    let parts: Vec<&str> = plan.splitn(4, ',').collect();
    let (mode, number, client, folder) = (parts[0], parts[1].parse().unwrap(), parts[2], PathBuf::from(parts[3]));
    quorate_jepsen::chaos::die_with_harness().unwrap();
    if mode == "broken" {
        eprintln!("cannot read the config");
        std::process::exit(3);
    }
    let broker = Arc::new(Broker { number, folder, forgets: mode == "forgets", leading: Mutex::new(None) });
    let candidate = Arc::clone(&broker);
    thread::spawn(move || candidate.lead());
    for connection in TcpListener::bind(client).unwrap().incoming() {
        let broker = Arc::clone(&broker);
        thread::spawn(move || broker.serve(connection.unwrap()));
    }
}

struct Broker {
    number: u32,
    folder: PathBuf,
    forgets: bool,
    leading: Mutex<Option<State>>,
}

/// The leader's state: the journal, replayed.
struct State {
    journal: File,
    lines: u64,
    sends: u64,
    queues: Vec<Vec<Held>>,
    stored: HashMap<String, (usize, usize)>,
}

struct Held {
    key: String,
    attempt: u32,
    acked: bool,
    visible_at: Instant,
}

impl Broker {
    /// Waits for the lock that the kernel takes from a dead leader, then replays and leads.
    fn lead(&self) {
        let lock = File::create(self.folder.join("stand-in.lock")).unwrap();
        lock.lock().unwrap();
        let term = self.leader().map_or(1, |(_, term)| term + 1);
        let path = self.folder.join("stand-in.journal");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let journal = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let mut state = State {
            journal,
            lines: 0,
            sends: 0,
            queues: (0..QUEUES).map(|_| Vec::new()).collect(),
            stored: HashMap::new(),
        };
        text.lines().for_each(|line| state.apply(line));
        *self.leading.lock().unwrap() = Some(state);
        fs::write(self.folder.join("stand-in.leader.new"), format!("{} {term}", self.number)).unwrap();
        fs::rename(self.folder.join("stand-in.leader.new"), self.folder.join("stand-in.leader")).unwrap();
        loop {
            thread::park(); // holds the lock until the process ends
        }
    }

    fn leader(&self) -> Option<(u32, u64)> {
        let text = fs::read_to_string(self.folder.join("stand-in.leader")).ok()?;
        let (number, term) = text.split_once(' ')?;
        Some((number.parse().ok()?, term.parse().ok()?))
    }

    fn serve(&self, connection: TcpStream) {
        let mut answers = connection.try_clone().unwrap();
        for request in BufReader::new(connection).lines() {
            let Ok(request) = request else { return };
            let answer = self.answer(&request) + "\n";
            if answers.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &str) -> String {
        let words: Vec<&str> = request.split(' ').collect();
        let mut leading = self.leading.lock().unwrap();
        if words[0] == "status" {
            let (leader, term) = self.leader().unwrap_or_default();
            let role = if leading.is_some() { "leader" } else { "follower" };
            let index = leading.as_ref().map_or_else(
                || fs::read_to_string(self.folder.join("stand-in.journal")).unwrap_or_default().lines().count() as u64,
                |state| state.lines,
            );
            return format!("{} {role} {term} {leader} {index} {}", self.number, std::process::id());
        }
        let Some(state) = leading.as_mut() else { return "not-leader".to_owned() };
        match words[0] {
            "send" => state.send(words[1], self.forgets),
            "receive" => state.receive(words[1].parse().unwrap()),
            "ack" => state.write(&format!("a {} {}", words[1], words[2])),
            other => panic!("unknown request {other}"),
        }
    }
}

impl State {
    fn send(&mut self, key: &str, forgets: bool) -> String {
        self.sends += 1;
        let queue = self.sends as usize % QUEUES;
        if forgets && self.sends.is_multiple_of(100) {
            return format!("{queue} {}", self.queues[queue].len() + 1_000_000);
        }
        if !self.stored.contains_key(key) {
            self.write(&format!("s {queue} {key}"));
        }
        let (queue, offset) = self.stored[key];
        format!("{queue} {offset}")
    }

    fn receive(&mut self, max: usize) -> String {
        let now = Instant::now();
        let mut taken = Vec::new();
        for (queue, messages) in self.queues.iter().enumerate() {
            let free = messages.iter().enumerate().filter(|(_, held)| !held.acked && held.visible_at <= now);
            taken.extend(free.map(|(offset, _)| (queue, offset)));
        }
        taken.truncate(max);
        let mut answer = String::new();
        for (queue, offset) in taken {
            self.write(&format!("d {queue} {offset}"));
            let held = &self.queues[queue][offset];
            answer += &format!("{queue} {offset} {} {};", held.attempt, held.key);
        }
        answer
    }

    fn write(&mut self, line: &str) -> String {
        self.journal.write_all(format!("{line}\n").as_bytes()).unwrap();
        self.apply(line);
        String::new()
    }

    fn apply(&mut self, line: &str) {
        self.lines += 1;
        let words: Vec<&str> = line.split(' ').collect();
        let queue: usize = words[1].parse().unwrap();
        if words[0] == "s" {
            self.stored.insert(words[2].to_owned(), (queue, self.queues[queue].len()));
            let held = Held { key: words[2].to_owned(), attempt: 0, acked: false, visible_at: Instant::now() };
            return self.queues[queue].push(held);
        }
        let held = &mut self.queues[queue][words[2].parse::<usize>().unwrap()];
        if words[0] == "a" {
            held.acked = true;
        } else {
            held.attempt += 1;
            held.visible_at = Instant::now() + INVISIBLE;
        }
    }
}

/// The client side.
pub struct StandIn;

/// Asks one node; the error tells whether the request can have arrived.
async fn ask(endpoint: &str, request: &str) -> Result<String, bool> {
    let connection = tokio::net::TcpStream::connect(endpoint).await.map_err(|_| false)?;
    let (read, mut write) = connection.into_split();
    write.write_all(format!("{request}\n").as_bytes()).await.map_err(|_| true)?;
    let mut answer = String::new();
    let read = tokio::io::BufReader::new(read).read_line(&mut answer).await;
    if read.is_ok() && answer.ends_with('\n') { Ok(answer.trim_end().to_owned()) } else { Err(true) }
}

/// Asks all nodes in turn until the leader answers. With `again`, also after a request that may have arrived.
async fn ask_leader(endpoints: &str, request: &str, again: bool) -> Result<String, ()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        for endpoint in endpoints.split(';') {
            match ask(endpoint, request).await {
                Ok(answer) if answer == "not-leader" => {}
                Ok(answer) => return Ok(answer),
                Err(true) if !again => return Err(()),
                Err(_) => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(())
}

pub struct Client {
    endpoints: String,
}

fn spot(words: &[&str]) -> Spot {
    Spot { queue: words[0].parse().unwrap(), offset: words[1].parse().unwrap() }
}

impl Producing for Client {
    async fn send(&self, key: &str, body: Bytes) -> Sent {
        assert_eq!(key_of(&body), Some(key));
        match ask_leader(&self.endpoints, &format!("send {key}"), true).await {
            Ok(answer) => {
                let Spot { queue, offset } = spot(&answer.split(' ').collect::<Vec<_>>());
                Sent::Stored { queue: Some(queue), offset: Some(offset) }
            }
            Err(()) => Sent::Unknown("no answer".into()),
        }
    }
}

impl Consuming for Client {
    type Receipt = Spot;

    async fn receive(&self, max: u32) -> Handed<Spot> {
        let Ok(answer) = ask_leader(&self.endpoints, &format!("receive {max}"), false).await else {
            return Handed::Unknown("reset".into());
        };
        let message = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let spot = spot(&words);
            Message { body: body_of(words[3], 64), spot, attempt: words[2].parse().unwrap(), receipt: spot }
        };
        Handed::Messages(answer.split_terminator(';').map(message).collect())
    }

    async fn ack(&self, spot: Spot) -> Acked {
        match ask_leader(&self.endpoints, &format!("ack {} {}", spot.queue, spot.offset), true).await {
            Ok(_) => Acked::Done,
            Err(()) => Acked::Unknown("no answer".into()),
        }
    }
}

impl World for StandIn {
    type Producer = Client;
    type Consumer = Client;

    async fn producer(&self, endpoints: &str, _topic: &str) -> Result<Client, WorldError> {
        Ok(Client { endpoints: endpoints.to_owned() })
    }

    async fn consumer(&self, endpoints: &str, _topic: &str, _group: &str) -> Result<Client, WorldError> {
        Ok(Client { endpoints: endpoints.to_owned() })
    }

    async fn arrange(&self, _endpoints: &str, _topic: &str, _queues: u32, _group: &str) -> Result<(), WorldError> {
        Ok(())
    }

    async fn status(&self, endpoint: &str) -> Result<Vec<NodeView>, WorldError> {
        let answer = ask(endpoint, "status").await;
        let answer = answer.map_err(|_| WorldError { call: "status", why: "silent".to_owned() })?;
        let words: Vec<&str> = answer.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let leader = Some(number(3) as u32).filter(|leader| *leader > 0);
        Ok(vec![NodeView {
            number: number(0) as u32,
            reachable: true,
            role: Role::parse(words[1]),
            term: number(2),
            leader,
            last_index: number(4),
            committed_index: number(4),
            applied_index: number(4),
            pid: number(5),
        }])
    }
}
