//! Messages and bytes by topic and consumer group, without a lock and in bounded space.
//!
//! A fixed table of cells that are filled once and never emptied: a name hashes to a place and takes the first free cell from there, and what
//! finds none within a few steps is counted under [`OTHER`]. First come, first told apart: a counter that moved between its own line and the
//! rest would look like a restart to whoever computes rates.

use std::{
    hash::{BuildHasher, RandomState},
    sync::OnceLock,
};

use super::{Counter, DEAD_LETTERS, Family, MESSAGES_IN, MESSAGES_OUT, REDELIVERIES, THROUGHPUT_IN, THROUGHPUT_OUT};

/// Most topics, and pairs of topic and group, that are told apart.
pub const TOLD_APART_MAX: usize = 256;
/// The rest. Not a legal name, so it is nobody's.
pub const OTHER: &str = "(other)";
/// Cells looked at for one name.
const STEPS: usize = 8;

/// What clients sent and received.
#[derive(Debug, Default)]
pub struct Traffic {
    /// By topic and message type.
    sent: Table,
    /// By topic and consumer group.
    received: Table,
    /// Likewise, what was handed out once more.
    retried: Table,
    /// Likewise, what became a dead letter.
    dead: Table,
}

impl Traffic {
    /// Messages of `topic` were stored.
    pub fn sent(&self, topic: &str, message_type: &str, messages: u64, bytes: u64) {
        self.sent.count(topic, message_type, messages, bytes);
    }

    /// Messages of `topic` went to a consumer of `group`.
    pub fn received(&self, topic: &str, group: &str, messages: u64, bytes: u64) {
        self.received.count(topic, group, messages, bytes);
    }

    /// Messages of `topic` went to a consumer of `group` once more.
    pub fn retried(&self, topic: &str, group: &str, messages: u64) {
        self.retried.count(topic, group, messages, 0);
    }

    /// Messages of `topic` became dead letters of `group`.
    pub fn dead(&self, topic: &str, group: &str, messages: u64) {
        self.dead.count(topic, group, messages, 0);
    }

    /// All of it.
    pub fn read(&self) -> Vec<Family> {
        let [messages_in, bytes_in] = self.sent.read();
        let [messages_out, bytes_out] = self.received.read();
        let ([retried, _], [dead, _]) = (self.retried.read(), self.dead.read());
        vec![
            MESSAGES_IN.each(messages_in),
            THROUGHPUT_IN.each(bytes_in),
            MESSAGES_OUT.each(messages_out),
            THROUGHPUT_OUT.each(bytes_out),
            REDELIVERIES.each(retried),
            DEAD_LETTERS.each(dead),
        ]
    }
}

/// Counts by two names.
#[derive(Debug)]
struct Table {
    hashing: RandomState,
    cells: Box<[OnceLock<Cell>]>,
    other: Cell,
}

#[derive(Debug)]
struct Cell {
    names: [Box<str>; 2],
    messages: Counter,
    bytes: Counter,
}

impl Cell {
    fn new(first: &str, second: &str) -> Self {
        Self { names: [first.into(), second.into()], messages: Counter::default(), bytes: Counter::default() }
    }
}

impl Default for Table {
    fn default() -> Self {
        let cells = (0..TOLD_APART_MAX).map(|_| OnceLock::new()).collect();
        Self { hashing: RandomState::new(), cells, other: Cell::new(OTHER, OTHER) }
    }
}

impl Table {
    fn count(&self, first: &str, second: &str, messages: u64, bytes: u64) {
        if messages == 0 {
            return;
        }
        let cell = self.cell(first, second);
        cell.messages.add(messages);
        cell.bytes.add(bytes);
    }

    fn cell(&self, first: &str, second: &str) -> &Cell {
        let start = self.hashing.hash_one((first, second)) as usize;
        for step in 0..STEPS {
            let cell = &self.cells[start.wrapping_add(step) % TOLD_APART_MAX];
            let cell = cell.get_or_init(|| Cell::new(first, second));
            if *cell.names[0] == *first && *cell.names[1] == *second {
                return cell;
            }
        }
        &self.other
    }

    /// Messages and bytes with their names, in the order of the names.
    fn read(&self) -> [Vec<(Vec<String>, f64)>; 2] {
        let mut cells: Vec<_> = self.cells.iter().filter_map(OnceLock::get).collect();
        cells.sort_by(|a, b| a.names.cmp(&b.names));
        cells.extend((self.other.messages.value() > 0).then_some(&self.other));
        let names = |cell: &Cell| cell.names.iter().map(ToString::to_string).collect::<Vec<_>>();
        [
            cells.iter().map(|cell| (names(cell), cell.messages.value() as f64)).collect(),
            cells.iter().map(|cell| (names(cell), cell.bytes.value() as f64)).collect(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_names_than_cells_are_summed_up_and_nothing_is_lost() {
        let table = Table::default();
        for round in 0..2_u64 {
            for topic in 0..4 * TOLD_APART_MAX {
                table.count(&format!("t{topic}"), "g", 1, 10 + round);
            }
        }
        let [messages, bytes] = table.read();
        assert!(messages.len() > TOLD_APART_MAX / 2 && messages.len() <= TOLD_APART_MAX + 1, "{}", messages.len());
        assert_eq!(messages.last().map(|(names, _)| names[0].as_str()), Some(OTHER));
        let all = 8.0 * TOLD_APART_MAX as f64;
        assert_eq!(messages.iter().map(|(_, count)| count).sum::<f64>(), all);
        assert_eq!(bytes.iter().map(|(_, count)| count).sum::<f64>(), all * 10.5);
    }

    #[test]
    fn pairs_are_told_apart_and_what_never_came_has_no_line() {
        let traffic = Traffic::default();
        traffic.received("a", "g", 2, 20);
        traffic.received("a", "h", 1, 5);
        traffic.received("a", "h", 0, 0);
        traffic.sent("b", "normal", 0, 0);
        let [messages, bytes] = traffic.received.read();
        let line = |group: &str, value: f64| (vec!["a".to_owned(), group.to_owned()], value);
        assert_eq!(messages, [line("g", 2.0), line("h", 1.0)]);
        assert_eq!(bytes, [line("g", 20.0), line("h", 5.0)]);
        assert!(traffic.sent.read()[0].is_empty());
    }
}
