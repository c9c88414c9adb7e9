//! Reading the consume queues of a node that does not run: is every record the record of its place. Changes nothing.
//!
//! A zero record is no finding: below the first message that the log still holds there are holes (see [`super::queue_record`]), and how long a
//! queue is stands in the checkpoint, which only its owner reads. Whatever is wrong here is made again by a start.

use std::{io, path::Path, sync::Arc};

use quorate_raft::{
    Disk,
    inspect::{Finding, Severity},
};

use super::{
    consume_queue::{FORMAT, RECORDS_PER_FILE},
    files::OpenFiles,
    lane::Lane,
    queue_record::{RECORD_BYTES, Spot, decode},
};
use crate::machine::{QueueId, QueueOffset, TopicId};

/// Records read at once.
const CHUNK: u64 = 50_000;

/// What a reading of all consume queues has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// Files read.
    pub files: u64,
    /// Records that are whole.
    pub records: u64,
    /// What is wrong, the first place of each file.
    pub findings: Vec<Finding>,
}

/// Reads all consume queues below a data directory.
///
/// # Errors
/// Only what keeps directories from being listed; what cannot be read of a file is a finding.
pub fn verify_queues(disk: Arc<dyn Disk>, data_dir: &Path) -> io::Result<Queues> {
    let root = data_dir.join("queue");
    let files = OpenFiles::new(disk.clone());
    let mut seen = Queues::default();
    let numbers = |dir: &Path| -> io::Result<Vec<u64>> {
        Ok(disk.list(dir)?.iter().filter_map(|name| name.parse().ok()).collect())
    };
    let topics = root.join(FORMAT);
    for topic in numbers(&topics)?.into_iter().filter_map(|topic| u32::try_from(topic).ok()) {
        let queues = topics.join(topic.to_string());
        for queue in numbers(&queues)?.into_iter().filter_map(|queue| u16::try_from(queue).ok()) {
            let dir = queues.join(queue.to_string());
            let record_bytes = RECORD_BYTES as u64;
            let lane = Lane { root: root.clone(), dir, record_bytes, per_file: RECORDS_PER_FILE };
            let spot = Spot { topic: TopicId(topic), queue: QueueId(queue), offset: QueueOffset(0) };
            for first in lane.list(&files)? {
                verify_file(&files, &lane, spot, first, &mut seen);
            }
        }
    }
    Ok(seen)
}

fn verify_file(files: &OpenFiles, lane: &Lane, spot: Spot, first: u64, seen: &mut Queues) {
    seen.files += 1;
    let mut wrong: Option<(u64, String)> = None;
    let mut count = 0;
    let mut at = first;
    while at < lane.next_file(first) {
        let records = match lane.read(files, at, CHUNK) {
            Ok(records) => records,
            Err(error) => {
                wrong.get_or_insert((at, format!("it cannot be read: {error}")));
                break;
            }
        };
        if records.is_empty() {
            break;
        }
        for record in records.chunks_exact(RECORD_BYTES) {
            let here = Spot { offset: QueueOffset(at), ..spot };
            let is_sound = record.first_chunk().is_some_and(|record| decode(here, record).is_some());
            if is_sound {
                seen.records += 1;
            } else if record.iter().any(|byte| *byte != 0) {
                count += 1;
                wrong.get_or_insert((at, format!("the record of offset {at} is not whole")));
            }
            at += 1;
        }
    }
    if let Some((at, what)) = wrong {
        let more = if count > 1 { format!(", and {} more of this file", count - 1) } else { String::new() };
        seen.findings.push(Finding {
            severity: Severity::Mended,
            path: lane.path_of(at),
            byte: Some((at - first) * RECORD_BYTES as u64),
            what: format!("{what}{more}; a start makes it again from the log"),
        });
    }
}
