//! What a node must never forget and the log cannot tell: its identity, its vote, where its log starts, how far the log
//! was certainly synced. One file, `data/hard_state`, two slots of 512 bytes at offsets 0 and 4096.
//!
//! A save goes to the older slot and is synced before anything relies on it; the slot with the higher sequence number
//! and a good crc wins. So a torn save leaves the state before it, which nobody was told to be replaced. Within a second
//! the other slot follows, so that later damage to one slot costs nothing either. Called by recovery and then by the
//! log writer alone. Must never claim more synced than is (LAW-ORDER). A slot, little endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `QRHS` |
//! | 4 | 2 | version, 1 |
//! | 6 | 2 | flags: 1 clean · 2 async flush · 4 vote · 8 vote committed · 16 committed · 32 purged · 64 power lost · 128 sync failed · 256 acked |
//! | 8 | 8 | sequence number of the save |
//! | 16 | 8 | node (number and incarnation) |
//! | 24 | 8 | segment bytes |
//! | 32 | 16 | boot id |
//! | 48 | 4 | era |
//! | 52 | 4 | chain at the floor |
//! | 56 | 8 | floor: position after the purged entry |
//! | 64 | 24 | purged: term, node, index |
//! | 88 | 16 | vote: term, node |
//! | 104 | 24 | committed: term, node, index |
//! | 128 | 8 | synced: the log below this position was on stable storage |
//! | 136 | 8 | acked: highest index this node is known to have acked |
//! | 144 | 2 | length of the cluster id, at most 255 |
//! | 146 | 255 | cluster id, then zeros |
//! | 508 | 4 | crc32c of bytes 0..508 |

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;

use crate::{
    config::GroupConfig,
    disk::{Disk, DiskFile},
    types::{LogId, LogIndex, NodeId, Position, Term},
};

const MAGIC: [u8; 4] = *b"QRHS";
const VERSION: u16 = 1;
const SLOT_BYTES: usize = 512;
const SLOT_OFFSETS: [u64; 2] = [0, 4096];
/// Longest cluster id.
pub const CLUSTER_BYTES_MAX: usize = 255;

mod flag {
    pub const CLEAN: u16 = 1;
    pub const ASYNC: u16 = 2;
    pub const VOTE: u16 = 4;
    pub const VOTE_COMMITTED: u16 = 8;
    pub const COMMITTED: u16 = 16;
    pub const PURGED: u16 = 32;
    pub const POWER_LOST: u16 = 64;
    pub const SYNC_FAILED: u16 = 128;
    pub const ACKED: u16 = 256;
}

/// What is left to do about a directory that has lost what only it could have kept, and in which order: a second lost directory loses the
/// group.
pub(crate) const REJOIN: &str = "if the other nodes are up and whole (`quorate cluster status`), move the data directory aside and start \
    again: the node will join the group again as a new one. If one of them is away, bring that one back first (docs/OPERATIONS.md, \
    \"One node is lost\")";

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file could not be used; says which.
    #[error("{what}: {source}")]
    Io {
        /// The file.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The directory belongs to another node, cluster or format; says the remedy.
    #[error("{0}")]
    WrongDirectory(String),
    /// Damage that is not a torn tail; says file, place and remedy.
    #[error("{0}")]
    Corrupt(String),
}

impl OpenError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = path.display().to_string();
        move |source| Self::Io { what, source }
    }
}

/// What a node granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VoteRecord {
    /// Term of the vote.
    pub term: Term,
    /// Who got it.
    pub node: NodeId,
    /// A quorum granted it: that node leads.
    pub committed: bool,
}

/// Where the kept log starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Floor {
    /// Last entry no longer kept.
    pub purged: Option<LogId>,
    /// The next entry stands here or, if it did not fit, at the next segment border.
    pub position: Position,
    /// Chain after the purged entry.
    pub chain: u32,
}

/// Why a node must catch up with a live leader before it votes or acks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUpReason {
    /// Async flush, unclean stop, another boot: what was only in the page cache is gone.
    PowerLoss,
    /// A sync of the log failed in an earlier run.
    SyncFailed,
}

/// The state itself; what a slot holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub cluster: String,
    pub node: NodeId,
    pub segment_bytes: u64,
    pub vote: Option<VoteRecord>,
    pub committed: Option<LogId>,
    pub floor: Floor,
    /// Frames written since the log's end was last set back, or the log was opened, carry this number or none higher.
    pub era: u32,
    /// Everything below is on stable storage.
    pub synced: Position,
    /// Highest index this node may have acked, as of the save.
    pub acked: Option<LogIndex>,
    pub clean: bool,
    pub async_flush: bool,
    pub boot_id: u128,
    pub catch_up: Option<CatchUpReason>,
}

/// The open file and its newest record.
pub struct HardState {
    file: Arc<dyn DiskFile>,
    record: Record,
    sequence: u64,
    /// What each slot holds, if it can be read.
    slots: [Option<Record>; 2],
    next: usize,
}

impl HardState {
    /// Loads `data_dir/hard_state` and checks it against `config`: cluster, node number, segment size.
    ///
    /// `None` for a fresh directory (nothing was ever saved and there is no log); the caller then decides about birth and
    /// calls [`create`](Self::create). Changes nothing on disk.
    ///
    /// # Errors
    /// `WrongDirectory` if it belongs to somebody else, `Corrupt` if no slot is readable although the node has lived.
    pub fn load(disk: &Arc<dyn Disk>, config: &GroupConfig) -> Result<Option<Self>, OpenError> {
        let path = disk.join(&config.data_dir, "hard_state");
        let opened = match disk.open(&path, false) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(OpenError::io(&path)(error)),
        };
        let raw = match &opened {
            Some(file) => read_slots(file.as_ref()).map_err(OpenError::io(&path))?,
            None => [None, None],
        };
        let slots = [decode_slot(&raw[0]), decode_slot(&raw[1])];
        if let Some(version) = slots.iter().find_map(Slot::version) {
            return Err(unknown_version(&path, version));
        }
        let [first, second] = slots.map(Slot::good);
        let newest = match (&first, &second) {
            (Some((a, _)), Some((b, _))) => usize::from(b > a),
            (Some(_), None) => 0,
            (None, Some(_)) => 1,
            (None, None) => {
                // The first save ever writes slot 0 alone; with slot 1 empty and no log, nobody has relied on anything.
                let lived = raw[1].as_ref().is_some_and(|slot| slot.iter().any(|byte| *byte != 0))
                    || !log_is_empty(disk, config)?;
                return if lived { Err(lost(&path)) } else { Ok(None) };
            }
        };
        let file = opened.expect("a slot was read from it");
        let sequence = [&first, &second].into_iter().flatten().map(|(sequence, _)| *sequence).max().unwrap_or(0);
        let slots = [first.map(|(_, record)| record), second.map(|(_, record)| record)];
        let record = slots[newest].clone().expect("the newest slot is readable");
        check(&path, &record, config)?;
        Ok(Some(Self { file, record, sequence, slots, next: 1 - newest }))
    }

    /// Makes the directory and the file of a new node; durable when it returns.
    pub fn create(disk: &Arc<dyn Disk>, config: &GroupConfig, node: NodeId) -> Result<Self, OpenError> {
        let path = disk.join(&config.data_dir, "hard_state");
        if config.cluster.len() > CLUSTER_BYTES_MAX {
            return Err(OpenError::WrongDirectory(format!(
                "cluster id of {} bytes: at most {CLUSTER_BYTES_MAX}",
                config.cluster.len()
            )));
        }
        let record = Record {
            cluster: config.cluster.clone(),
            node,
            segment_bytes: config.segment_bytes,
            vote: None,
            committed: None,
            floor: Floor::default(),
            era: 0,
            synced: Position(0),
            acked: None,
            clean: true,
            async_flush: false,
            boot_id: 0,
            catch_up: None,
        };
        let make = || -> io::Result<Arc<dyn DiskFile>> {
            disk.create_dir(&config.data_dir)?;
            for part in ["log", "index", "image"] {
                disk.create_dir(&disk.join(&config.data_dir, part))?;
            }
            let file = disk.open(&path, true)?;
            file.set_len(SLOT_OFFSETS[1] + SLOT_BYTES as u64)?;
            Ok(file)
        };
        let file = make().map_err(OpenError::io(&path))?;
        let mut hard = Self { file, record: record.clone(), sequence: 0, slots: [None, None], next: 0 };
        let save = |hard: &mut Self| -> io::Result<()> {
            hard.write(record)?;
            hard.file.sync()?;
            disk.sync_dir(&config.data_dir)?;
            config
                .data_dir
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .map_or(Ok(()), |parent| disk.sync_dir(parent))
        };
        save(&mut hard).map_err(OpenError::io(&path))?;
        Ok(hard)
    }

    /// This node's identity.
    pub fn node(&self) -> NodeId {
        self.record.node
    }

    /// What it granted last.
    pub fn vote(&self) -> Option<VoteRecord> {
        self.record.vote
    }

    /// Last entry it knew to be committed when it saved; may be behind.
    pub fn committed(&self) -> Option<LogId> {
        self.record.committed
    }

    /// Where the kept log starts.
    pub fn floor(&self) -> Floor {
        self.record.floor
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// The file, to be synced by the caller after each [`write`](Self::write) before the next one.
    pub(crate) fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// Writes `record` into the older slot. Durable, and to be relied on, only after the caller has synced the file.
    pub(crate) fn write(&mut self, record: Record) -> io::Result<()> {
        self.sequence += 1;
        let slot = encode_slot(self.sequence, &record);
        self.file.write_at(SLOT_OFFSETS[self.next], &[Bytes::copy_from_slice(&slot)])?;
        self.slots[self.next] = Some(record.clone());
        self.next = 1 - self.next;
        self.record = record;
        Ok(())
    }

    /// Both slots hold what must not be lost: damage to one of them costs nothing.
    pub(crate) fn is_doubled(&self) -> bool {
        let essence = |record: &Record| (record.vote, record.floor, record.era, record.catch_up, record.clean);
        match &self.slots {
            [Some(a), Some(b)] => essence(a) == essence(b),
            [_, _] => false,
        }
    }
}

/// Both slots as they are, for whoever only looks.
pub(crate) struct Slots {
    /// What a start would begin from.
    pub newest: Record,
    /// Slots that were written once and cannot be read.
    pub unreadable: usize,
}

impl Slots {
    /// Reads the file at `path`. Changes nothing.
    ///
    /// # Errors
    /// `WrongDirectory` if another version wrote it, `Corrupt` if no slot can be read, the disk's.
    pub(crate) fn read(disk: &dyn Disk, path: &Path) -> Result<Self, OpenError> {
        let raw = disk.open(path, false).and_then(|file| read_slots(file.as_ref())).map_err(OpenError::io(path))?;
        let decoded = raw.each_ref().map(decode_slot);
        if let Some(version) = decoded.iter().find_map(Slot::version) {
            return Err(unknown_version(path, version));
        }
        let was_written = |raw: &Option<Bytes>| raw.as_ref().is_some_and(|slot| slot.iter().any(|byte| *byte != 0));
        let written = raw.iter().filter(|raw| was_written(raw)).count();
        let good: Vec<_> = decoded.into_iter().filter_map(Slot::good).collect();
        let unreadable = written.saturating_sub(good.len());
        let newest = good.into_iter().max_by_key(|(sequence, _)| *sequence).ok_or_else(|| lost(path))?.1;
        Ok(Self { newest, unreadable })
    }
}

fn unknown_version(path: &Path, version: u16) -> OpenError {
    OpenError::WrongDirectory(format!(
        "{}: format version {version} is not known to this program; start the version that wrote it, or give this node an empty data directory",
        path.display()
    ))
}

enum Slot {
    Bad,
    Version(u16),
    Good(u64, Record),
}

impl Slot {
    fn version(&self) -> Option<u16> {
        match self {
            Self::Version(version) => Some(*version),
            Self::Bad | Self::Good(..) => None,
        }
    }

    fn good(self) -> Option<(u64, Record)> {
        match self {
            Self::Good(sequence, record) => Some((sequence, record)),
            Self::Bad | Self::Version(_) => None,
        }
    }
}

fn read_slots(file: &dyn DiskFile) -> io::Result<[Option<Bytes>; 2]> {
    let len = file.len()?;
    let read = |offset: u64| -> io::Result<Option<Bytes>> {
        if len < offset + SLOT_BYTES as u64 { Ok(None) } else { file.read_at(offset, SLOT_BYTES).map(Some) }
    };
    Ok([read(SLOT_OFFSETS[0])?, read(SLOT_OFFSETS[1])?])
}

fn log_is_empty(disk: &Arc<dyn Disk>, config: &GroupConfig) -> Result<bool, OpenError> {
    for part in ["log", "image"] {
        let dir = disk.join(&config.data_dir, part);
        if !disk.list(&dir).map_err(OpenError::io(&dir))?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn lost(path: &Path) -> OpenError {
    OpenError::Corrupt(format!(
        "{}: neither slot can be read, so this node no longer knows its vote; {REJOIN}",
        path.display()
    ))
}

fn check(path: &Path, record: &Record, config: &GroupConfig) -> Result<(), OpenError> {
    let wrong = |what: &str, found: String, expected: String| {
        OpenError::WrongDirectory(format!(
            "{}: this directory belongs to {what} {found}, the configuration says {expected}; point data_dir at this node's own directory or correct the configuration",
            path.display()
        ))
    };
    if record.cluster != config.cluster {
        return Err(wrong("cluster", record.cluster.clone(), config.cluster.clone()));
    }
    if record.node.number() != config.number {
        return Err(wrong("node", record.node.number().to_string(), config.number.to_string()));
    }
    if record.segment_bytes != config.segment_bytes {
        return Err(wrong(
            "a log with segments of",
            format!("{} bytes", record.segment_bytes),
            format!("{} bytes", config.segment_bytes),
        ));
    }
    Ok(())
}

fn encode_slot(sequence: u64, record: &Record) -> [u8; SLOT_BYTES] {
    let mut flags = 0;
    let mut set = |condition: bool, bit: u16| {
        if condition {
            flags |= bit;
        }
    };
    set(record.clean, flag::CLEAN);
    set(record.async_flush, flag::ASYNC);
    set(record.vote.is_some(), flag::VOTE);
    set(record.vote.is_some_and(|vote| vote.committed), flag::VOTE_COMMITTED);
    set(record.committed.is_some(), flag::COMMITTED);
    set(record.floor.purged.is_some(), flag::PURGED);
    set(record.catch_up == Some(CatchUpReason::PowerLoss), flag::POWER_LOST);
    set(record.catch_up == Some(CatchUpReason::SyncFailed), flag::SYNC_FAILED);
    set(record.acked.is_some(), flag::ACKED);
    let vote = record.vote.unwrap_or_default();
    let mut out = [0; SLOT_BYTES];
    out[0..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[6..8].copy_from_slice(&flags.to_le_bytes());
    out[32..48].copy_from_slice(&record.boot_id.to_le_bytes());
    out[48..52].copy_from_slice(&record.era.to_le_bytes());
    out[52..56].copy_from_slice(&record.floor.chain.to_le_bytes());
    let mut put = |offset: usize, number: u64| out[offset..offset + 8].copy_from_slice(&number.to_le_bytes());
    put(8, sequence);
    put(16, record.node.0);
    put(24, record.segment_bytes);
    put(56, record.floor.position.0);
    for (offset, id) in [(64, record.floor.purged), (104, record.committed)] {
        let id = id.unwrap_or_default();
        put(offset, id.term.0);
        put(offset + 8, id.node.0);
        put(offset + 16, id.index.0);
    }
    put(88, vote.term.0);
    put(96, vote.node.0);
    put(128, record.synced.0);
    put(136, record.acked.unwrap_or_default().0);
    let cluster = record.cluster.as_bytes();
    out[144..146].copy_from_slice(&u16::try_from(cluster.len()).expect("create bounds the cluster id").to_le_bytes());
    out[146..146 + cluster.len()].copy_from_slice(cluster);
    let crc = crc32c::crc32c(&out[..508]);
    out[508..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode_slot(bytes: &Option<Bytes>) -> Slot {
    let Some(bytes) = bytes else { return Slot::Bad };
    let u16_at = |offset: usize| u16::from_le_bytes(bytes[offset..offset + 2].try_into().expect("two bytes"));
    let u32_at = |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"));
    let u64_at = |offset: usize| u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"));
    let id_at = |offset: usize| LogId {
        term: Term(u64_at(offset)),
        node: NodeId(u64_at(offset + 8)),
        index: LogIndex(u64_at(offset + 16)),
    };
    if bytes[0..4] != MAGIC || crc32c::crc32c(&bytes[..508]) != u32_at(508) {
        return Slot::Bad;
    }
    if u16_at(4) != VERSION {
        return Slot::Version(u16_at(4));
    }
    let flags = u16_at(6);
    let has = |bit: u16| flags & bit != 0;
    let cluster_len = usize::from(u16_at(144));
    if cluster_len > CLUSTER_BYTES_MAX {
        return Slot::Bad;
    }
    let Ok(cluster) = std::str::from_utf8(&bytes[146..146 + cluster_len]) else { return Slot::Bad };
    let vote = VoteRecord { term: Term(u64_at(88)), node: NodeId(u64_at(96)), committed: has(flag::VOTE_COMMITTED) };
    let catch_up = if has(flag::SYNC_FAILED) {
        Some(CatchUpReason::SyncFailed)
    } else {
        has(flag::POWER_LOST).then_some(CatchUpReason::PowerLoss)
    };
    let record = Record {
        cluster: cluster.to_owned(),
        node: NodeId(u64_at(16)),
        segment_bytes: u64_at(24),
        vote: has(flag::VOTE).then_some(vote),
        committed: has(flag::COMMITTED).then(|| id_at(104)),
        floor: Floor {
            purged: has(flag::PURGED).then(|| id_at(64)),
            position: Position(u64_at(56)),
            chain: u32_at(52),
        },
        era: u32_at(48),
        synced: Position(u64_at(128)),
        acked: has(flag::ACKED).then(|| LogIndex(u64_at(136))),
        clean: has(flag::CLEAN),
        async_flush: has(flag::ASYNC),
        boot_id: u128::from_le_bytes(bytes[32..48].try_into().expect("sixteen bytes")),
        catch_up,
    };
    Slot::Good(u64_at(8), record)
}
