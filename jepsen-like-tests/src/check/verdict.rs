//! All promises judged over one history: the figures people ask for, and PASS or FAIL.

use std::path::Path;

use serde::Serialize;

use super::{
    Findings, Gaps, Table, TableBuilder, aborted_reads, acked_returned, atomic, attempted_twice, consumed_backwards,
    double_deliveries, duplicates, early, inconsistent_offsets, invented, lost, mistold, nonlinear_appends,
    producer_order, recalled, redelivered, table::SendOutcome,
};
use crate::history::{HistoryError, Reader};

/// PASS if nothing was found and something was acknowledged: a run in which nothing worked proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Judgement {
    Pass,
    Fail,
}

/// What a history shows. Serialized, the first seven fields are the keys that tools rely on.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Sends that were acknowledged.
    pub acked: u64,
    /// Different messages of the run that were delivered.
    pub consumed: u64,
    /// Acknowledged and never delivered.
    pub lost: u64,
    /// Stored more than once: places beyond the first of a key.
    pub duplicates: u64,
    /// Sends that stand before one acknowledged before they were invoked, plus first deliveries out of order.
    pub order_violations: u64,
    /// Longest time without an acknowledged send, in milliseconds.
    pub longest_gap_ms: f64,
    pub verdict: Judgement,
    pub attempted: u64,
    pub failed: u64,
    pub unknown: u64,
    /// Of unknown outcome and delivered: they were stored, which is allowed.
    pub recovered: u64,
    /// Deliveries with an attempt above 1, which at-least-once allows.
    pub redelivered: u64,
    pub invented: u64,
    pub aborted_reads: u64,
    pub inconsistent_offsets: u64,
    /// Delivered at another offset than the producer was told.
    pub mistold: u64,
    pub double_deliveries: u64,
    pub acked_returned: u64,
    /// The part of `order_violations` within one producer.
    pub producer_order_violations: u64,
    /// The part of `order_violations` seen by consumers.
    pub consumption_order_violations: u64,
    /// Delayed messages delivered before their time.
    pub early: u64,
    /// Messages delivered although their recall was answered OK.
    pub recalled_and_back: u64,
    /// Transactions that were not all or nothing.
    pub torn_transactions: u64,
    /// Keys that the workload used twice: the run is worthless.
    pub attempted_twice: u64,
    /// The history's file ended in the middle of something.
    pub cut: bool,
    /// The first findings of each kind, in words.
    pub examples: Vec<String>,
}

impl Verdict {
    /// Judges `table`.
    pub fn of(table: &Table) -> Self {
        let mut all = Collected::default();
        let sends = |outcome| table.sends.iter().filter(move |send| send.outcome == outcome);
        let [acked, failed, unknown] = [SendOutcome::Acked, SendOutcome::Failed, SendOutcome::Unknown]
            .map(|outcome| sends(outcome).count() as u64);
        let recovered = sends(SendOutcome::Unknown).filter(|send| table.keys[send.key as usize].is_delivered()).count();
        let consumed = table.keys.iter().filter(|key| key.is_delivered() && key.send().is_some()).count();
        let lost = all.take("lost", lost(table));
        let duplicates = all.take("duplicate", duplicates(table));
        let appends = all.take("append order", nonlinear_appends(table));
        let consumption_order_violations = all.take("delivery order", consumed_backwards(table));
        let invented = all.take("invented", invented(table));
        let aborted_reads = all.take("aborted read", aborted_reads(table));
        let inconsistent_offsets = all.take("inconsistent offset", inconsistent_offsets(table));
        let mistold = all.take("mistold", mistold(table));
        let double_deliveries = all.take("double delivery", double_deliveries(table));
        let acked_returned = all.take("acked and back", acked_returned(table));
        let early = all.take("early", early(table));
        let recalled_and_back = all.take("recalled and back", recalled(table));
        let torn_transactions = all.take("transaction", atomic(table));
        let attempted_twice = all.take("workload", attempted_twice(table));
        if acked == 0 {
            all.take("nothing", Findings { count: 1, examples: vec!["no send was acknowledged".to_owned()] });
        }
        let longest_us = Gaps::of(table).longest().map_or(0, |gap| gap.length_us());
        Self {
            acked,
            consumed: consumed as u64,
            lost,
            duplicates,
            order_violations: appends + consumption_order_violations,
            longest_gap_ms: longest_us as f64 / 1000.0,
            verdict: if all.count == 0 { Judgement::Pass } else { Judgement::Fail },
            attempted: table.sends.len() as u64,
            failed,
            unknown,
            recovered: recovered as u64,
            redelivered: redelivered(table),
            invented,
            aborted_reads,
            inconsistent_offsets,
            mistold,
            double_deliveries,
            acked_returned,
            producer_order_violations: producer_order(table).count,
            consumption_order_violations,
            early,
            recalled_and_back,
            torn_transactions,
            attempted_twice,
            cut: false,
            examples: all.examples,
        }
    }

    /// Judges the history at `path`, op by op; returns the table as well, for what else is to be asked of it.
    pub fn of_file(path: &Path) -> Result<(Self, Table), HistoryError> {
        let mut reader = Reader::open(path)?;
        let mut builder = TableBuilder::default();
        for op in reader.by_ref() {
            builder.add(&op?);
        }
        let table = builder.build();
        let mut verdict = Self::of(&table);
        verdict.cut = reader.is_cut();
        if verdict.cut {
            verdict.object("the history's file is cut: its end is missing".to_owned());
        }
        Ok((verdict, table))
    }

    /// Turns the verdict to FAIL for a reason that no op shows, such as a broker that crashed.
    pub fn object(&mut self, reason: String) {
        self.verdict = Judgement::Fail;
        self.examples.push(reason);
    }
}

#[derive(Default)]
struct Collected {
    count: u64,
    examples: Vec<String>,
}

impl Collected {
    fn take(&mut self, kind: &str, findings: Findings) -> u64 {
        self.count += findings.count;
        self.examples.extend(findings.examples.into_iter().map(|example| format!("{kind}: {example}")));
        findings.count
    }
}
