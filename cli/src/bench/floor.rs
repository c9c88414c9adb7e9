//! `quorate bench floor`: the best this machine can do, measured beside the rest.
//!
//! Syncs are measured as the log makes them: `write` and `fdatasync`, once at the end of a growing file and once over bytes that
//! the file has already, which is what preallocation is about.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{echo::EchoPair, load::load_average};
use crate::{
    failure::{self, Failure},
    output::{Answer, note},
};

const SIZES: [(usize, [&str; 4]); 3] = [
    (
        4 << 10,
        ["sync_append_4k_p50_us", "sync_append_4k_p99_us", "sync_overwrite_4k_p50_us", "sync_overwrite_4k_p99_us"],
    ),
    (
        64 << 10,
        ["sync_append_64k_p50_us", "sync_append_64k_p99_us", "sync_overwrite_64k_p50_us", "sync_overwrite_64k_p99_us"],
    ),
    (
        1 << 20,
        ["sync_append_1m_p50_us", "sync_append_1m_p99_us", "sync_overwrite_1m_p50_us", "sync_overwrite_1m_p99_us"],
    ),
];
const IN_FLIGHT: [(usize, &str); 4] =
    [(1, "echo_1_per_s"), (64, "echo_64_per_s"), (256, "echo_256_per_s"), (1024, "echo_1024_per_s")];
/// Most syncs of one kind, and most bytes they write.
const SYNCS_MAX: usize = 2000;
const BYTES_MAX: usize = 256 << 20;

/// What to measure on.
#[derive(Debug, Args)]
pub struct FloorBench {
    /// Directory on the file system to measure; a file is made in it and removed
    #[arg(long, default_value = ".")]
    data_dir: PathBuf,
    /// Seconds for each figure
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

impl FloorBench {
    pub(super) async fn run(&self) -> Result<Answer, Failure> {
        let lasting = Duration::try_from_secs_f64(self.seconds).map_err(|error| {
            failure::config("--seconds is no time", error.to_string(), "quorate bench floor --seconds 2")
        })?;
        let mut figures: Vec<(&'static str, Value)> = Vec::new();
        let dir = self.data_dir.clone();
        let syncs = tokio::task::spawn_blocking(move || measure_syncs(&dir, lasting)).await;
        let failed = |error: io::Error| {
            let what = format!("syncs cannot be measured in {}", self.data_dir.display());
            failure::error(what, error.to_string(), "name a directory that may be written with --data-dir")
        };
        figures.extend(syncs.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)?);
        let failed = |error: io::Error| {
            failure::error("gRPC calls cannot be measured", error.to_string(), "quorate bench floor")
        };
        let pair = EchoPair::start().await.map_err(failed)?;
        // The first calls warm both processes up.
        pair.measure(64, lasting / 4).await.map_err(failed)?;
        for (in_flight, name) in IN_FLIGHT {
            note(format!("gRPC echo of 1 KiB, {in_flight} in flight"));
            let rate = pair.measure(in_flight, lasting).await.map_err(failed)?;
            figures.push((name, json!(rate.per_s.round())));
            if in_flight == 1 {
                figures.push(("echo_1_p50_us", json!(rate.p50_us)));
            }
        }
        figures.push(("file_system", json!(file_system(&self.data_dir).unwrap_or_else(|| "unknown".to_owned()))));
        figures.push(("cores", json!(std::thread::available_parallelism().map_or(0, usize::from))));
        figures.push(("load_1m", json!(load_average())));
        Ok(Answer::of_figures(figures))
    }
}

fn measure_syncs(dir: &Path, lasting: Duration) -> io::Result<Vec<(&'static str, Value)>> {
    let mut figures = Vec::new();
    for (size, [append_p50, append_p99, overwrite_p50, overwrite_p99]) in SIZES {
        note(format!("syncs of {} KiB", size >> 10));
        let file = tempfile::Builder::new().prefix("quorate-floor-").tempfile_in(dir)?;
        let handle = OpenOptions::new().write(true).open(file.path())?;
        let appended = sync_latencies(&handle, size, lasting, |number| (number * size) as u64)?;
        let written = appended.len() as usize;
        let overwritten = sync_latencies(&handle, size, lasting, |number| (number % written.max(1) * size) as u64)?;
        figures.extend([
            (append_p50, json!(appended.value_at_quantile(0.5))),
            (append_p99, json!(appended.value_at_quantile(0.99))),
            (overwrite_p50, json!(overwritten.value_at_quantile(0.5))),
            (overwrite_p99, json!(overwritten.value_at_quantile(0.99))),
        ]);
    }
    Ok(figures)
}

/// Writes and syncs until the time, the count or the bytes are used up; at least once.
fn sync_latencies(
    file: &File,
    size: usize,
    lasting: Duration,
    place: impl Fn(usize) -> u64,
) -> io::Result<Histogram<u64>> {
    let block = vec![0x51; size];
    let mut latencies = Histogram::new_with_bounds(1, 60_000_000, 3).expect("these bounds are valid");
    let start = Instant::now();
    for number in 0..SYNCS_MAX.min(BYTES_MAX / size) {
        if number > 0 && start.elapsed() > lasting {
            break;
        }
        let begin = Instant::now();
        file.write_all_at(&block, place(number))?;
        file.sync_data()?;
        latencies.saturating_record(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok(latencies)
}

/// The type of the file system that holds `path`: the longest mount point that leads to it.
fn file_system(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (point, kind) = (fields.next()?.replace("\\040", " "), fields.next()?.to_owned());
        path.starts_with(&point).then_some((point.len(), kind))
    };
    mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_are_measured_in_the_given_directory_and_leave_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let figures = measure_syncs(dir.path(), Duration::from_millis(1)).expect("syncs work");
        assert_eq!(figures.len(), 12);
        assert!(figures.iter().all(|(_, value)| value.as_u64().is_some_and(|us| us > 0)), "{figures:?}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("still there").count(), 0);
        assert!(file_system(dir.path()).is_some());
    }
}
