use std::{sync::Arc, time::Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::op::{Ack, Acked, Held, Hold, Op, Receive, Received, Send, Sent, Span, Spot};

fn span(process: u32, (invoke_us, return_us): (u64, u64)) -> Span {
    Span { process, invoke_us, return_us }
}

fn topic() -> Arc<str> {
    "demo".into()
}

fn send(process: u32, key: &str, at: (u64, u64), outcome: Sent) -> Op {
    Op::Send(Send { span: span(process, at), topic: topic(), key: key.into(), outcome })
}

fn stored(queue: u32, offset: u64) -> Sent {
    Sent::Stored { queue: Some(queue), offset: Some(offset) }
}

/// Acknowledged, and the client does not say where.
fn untold() -> Sent {
    Sent::Stored { queue: None, offset: None }
}

fn receive(process: u32, key: &str, at: (u64, u64), (queue, offset): (u32, u64), attempt: u32) -> Op {
    let outcome = Received::Message { key: key.into(), spot: Spot { queue, offset }, attempt };
    Op::Receive(Receive { span: span(process, at), topic: topic(), outcome })
}

fn receive_unknown(process: u32, at: (u64, u64)) -> Op {
    Op::Receive(Receive { span: span(process, at), topic: topic(), outcome: Received::Unknown("reset".into()) })
}

fn ack(process: u32, key: &str, at: (u64, u64), (queue, offset): (u32, u64), outcome: Acked) -> Op {
    Op::Ack(Ack { span: span(process, at), topic: topic(), key: key.into(), spot: Spot { queue, offset }, outcome })
}

/// What a correct group and its clients could have recorded: `count` sends of eight producers that overlap, four
/// consumers, sends that failed, sends of unknown outcome of which some are stored, answers lost and messages repeated.
fn clean(count: u64, seed: u64) -> Vec<Op> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut ops = Vec::new();
    let mut ends = [0_u64; 8];
    let mut stored_messages = Vec::new();
    for number in 0..count {
        let moment = 1_000_000 + number * 100;
        let at = (moment - random.random_range(1..2_000), moment + random.random_range(1..2_000));
        let (process, key) = (random.random_range(1..9), format!("run-{number:08}"));
        let queue = random.random_range(0..8_u32);
        let fate = random.random_range(0..1000);
        let outcome = match fate {
            0 | 4 | 5 => Sent::Failed("refused".into()),
            1 | 2 => Sent::Unknown("timed out".into()),
            3 => untold(),
            6..500 => Sent::Stored { queue: None, offset: Some(ends[queue as usize]) },
            _ => stored(queue, ends[queue as usize]),
        };
        ops.push(send(process, &key, at, outcome));
        if fate > 1 && !matches!(fate, 4 | 5) {
            stored_messages.push((key, (queue, ends[queue as usize])));
            ends[queue as usize] += 1;
        }
    }
    let start = 2_000_000 + count * 100;
    for (batch, messages) in (0..).zip(stored_messages.chunks(32)) {
        let (consumer, moment) = (100 + batch as u32 % 4, start + batch * 3_000);
        let at = (moment - random.random_range(1..6_000), moment + random.random_range(1..5_999));
        let lost_answer = random.random_range(0..30) == 0;
        if lost_answer {
            ops.push(receive_unknown(consumer, at));
        }
        for (key, place) in messages {
            let again = if lost_answer { (at.1 + 100_000_000, at.1 + 100_000_100) } else { at };
            if lost_answer {
                ops.push(receive(200 + batch as u32, key, again, *place, 2));
            } else {
                ops.push(receive(consumer, key, at, *place, 1));
            }
            let outcome = if random.random_range(0..500) == 0 { Acked::Unknown("".into()) } else { Acked::Done };
            ops.push(ack(consumer, key, (again.1, again.1 + 500), *place, outcome));
        }
    }
    ops
}

fn judge(ops: &[Op]) -> Verdict {
    Verdict::of(&Table::of(ops))
}

/// Each anomaly is planted into a long history that is clean, so that a checker must find the one thing and nothing else.
fn with(planted: Vec<Op>) -> Verdict {
    let mut ops = clean(3_000, 7);
    ops.extend(planted);
    judge(&ops)
}

const PLACE: (u32, u64) = (9, 0); // a queue of its own, which the clean history does not use

#[test]
fn a_clean_history_passes_every_checker() {
    let mut shown = [0; 4];
    for seed in 0..20 {
        let verdict = judge(&clean(5_000, seed));
        assert_eq!(verdict.verdict, Judgement::Pass, "seed {seed}: {:#?}", verdict.examples);
        assert_eq!(verdict.consumed, verdict.acked + verdict.recovered);
        let counts = [verdict.failed, verdict.recovered, verdict.redelivered, verdict.unknown - verdict.recovered];
        counts.iter().zip(&mut shown).for_each(|(count, sum)| *sum += count);
    }
    assert!(shown.iter().all(|count| *count > 0), "a kind of op is missing in the histories: {shown:?}");
}

#[test]
fn an_empty_history_does_not_pass() {
    assert_eq!(judge(&[]).verdict, Judgement::Fail);
}

#[test]
fn an_acknowledged_message_that_never_arrives_is_lost() {
    let verdict = with(vec![send(1, "x", (1, 2), stored(9, 0))]);
    assert_eq!((verdict.lost, verdict.verdict), (1, Judgement::Fail));
    assert_eq!(verdict.examples, ["lost: x was acknowledged at 2 us as demo queue 9 offset 0 and never delivered"]);
    let verdict = with(vec![send(1, "x", (1, 2), untold())]);
    assert_eq!((verdict.lost, verdict.verdict), (1, Judgement::Fail));
}

#[test]
fn an_unknown_send_may_arrive_or_not() {
    let unknown = || send(1, "x", (1, 2), Sent::Unknown("".into()));
    assert_eq!(with(vec![unknown()]).verdict, Judgement::Pass);
    assert_eq!(with(vec![unknown(), receive(100, "x", (3, 4), PLACE, 1)]).verdict, Judgement::Pass);
}

#[test]
fn a_delivered_message_that_nobody_sent_is_invented() {
    let verdict = with(vec![receive(100, "ghost", (3, 4), PLACE, 1)]);
    assert_eq!((verdict.invented, verdict.verdict), (1, Judgement::Fail));
}

#[test]
fn a_refused_send_that_is_delivered_is_an_aborted_read() {
    let verdict = with(vec![send(1, "x", (1, 2), Sent::Failed("".into())), receive(100, "x", (3, 4), PLACE, 1)]);
    assert_eq!((verdict.aborted_reads, verdict.verdict), (1, Judgement::Fail));
}

#[test]
fn a_key_at_two_places_is_a_duplicate() {
    let first = [send(1, "x", (1, 2), stored(9, 0)), receive(100, "x", (3, 4), (9, 0), 1)];
    let verdict = with([first.to_vec(), vec![receive(100, "x", (5, 6), (9, 1), 1)]].concat());
    assert_eq!((verdict.duplicates, verdict.verdict), (1, Judgement::Fail));
    // The answer to the send is a sighting too: told one place, found at another.
    let verdict = with(vec![first[0].clone(), receive(100, "x", (3, 4), (8, 0), 1)]);
    assert_eq!((verdict.duplicates, verdict.verdict), (1, Judgement::Fail));
}

#[test]
fn an_answer_that_tells_another_offset_than_the_delivery_is_found() {
    let history = |told| {
        let outcome = Sent::Stored { queue: None, offset: Some(told) };
        with(vec![send(1, "x", (1, 2), outcome), receive(100, "x", (3, 4), (9, 5), 1)])
    };
    assert_eq!(history(5).verdict, Judgement::Pass);
    assert_eq!((history(4).mistold, history(4).verdict), (1, Judgement::Fail));
}

#[test]
fn a_redelivery_with_a_higher_attempt_is_counted_and_allowed() {
    let verdict = with(vec![
        send(1, "x", (1, 2), stored(9, 0)),
        receive(100, "x", (3, 4), PLACE, 1),
        receive(101, "x", (50, 60), PLACE, 2),
    ]);
    let before = judge(&clean(3_000, 7)).redelivered;
    assert_eq!((verdict.duplicates, verdict.redelivered, verdict.verdict), (0, before + 1, Judgement::Pass));
}

#[test]
fn two_deliveries_of_one_attempt_are_a_double_delivery() {
    let verdict = with(vec![
        send(1, "x", (1, 2), stored(9, 0)),
        receive(100, "x", (3, 4), PLACE, 1),
        receive(101, "x", (3, 5), PLACE, 1),
    ]);
    assert_eq!((verdict.double_deliveries, verdict.verdict), (1, Judgement::Fail));
}

#[test]
fn an_offset_with_two_keys_is_inconsistent() {
    let verdict = with(vec![
        send(1, "x", (1, 2), stored(9, 0)),
        send(2, "y", (1, 2), Sent::Unknown("".into())),
        receive(100, "x", (3, 4), PLACE, 1),
        receive(101, "y", (3, 5), PLACE, 2),
    ]);
    assert_eq!((verdict.inconsistent_offsets, verdict.verdict), (1, Judgement::Fail));
}

/// Sends x at 1..2 and y at `second`, which lands before it.
fn backwards(second_process: u32, second: (u64, u64), outcome: Sent) -> Verdict {
    with(vec![
        send(1, "x", (1, 2), stored(9, 1)),
        send(second_process, "y", second, outcome),
        receive(100, "y", (30, 40), (9, 0), 1),
        receive(100, "x", (30, 40), (9, 1), 1),
    ])
}

#[test]
fn a_later_send_that_stands_earlier_breaks_the_order() {
    let verdict = backwards(1, (3, 4), stored(9, 0));
    assert_eq!((verdict.order_violations, verdict.producer_order_violations), (1, 1));
    let verdict = backwards(2, (3, 4), stored(9, 0));
    assert_eq!((verdict.order_violations, verdict.producer_order_violations), (1, 0), "two producers");
    let verdict = backwards(1, (3, 4), untold());
    assert_eq!((verdict.order_violations, verdict.producer_order_violations), (1, 1), "the delivery tells the place");
    let verdict = backwards(1, (3, 4), Sent::Unknown("".into()));
    assert_eq!((verdict.order_violations, verdict.producer_order_violations), (1, 1), "unknown, seen, invoked later");
    let verdict = backwards(1, (2, 4), stored(9, 0));
    assert_eq!(verdict.verdict, Judgement::Pass, "overlapping sends may land either way");
}

#[test]
fn an_unknown_send_has_no_end_that_a_later_one_must_follow() {
    let verdict = with(vec![
        send(1, "x", (1, 2), Sent::Unknown("".into())),
        send(1, "y", (3, 4), stored(9, 0)),
        receive(100, "y", (30, 40), (9, 0), 1),
        receive(100, "x", (30, 40), (9, 1), 1),
    ]);
    assert_eq!(verdict.verdict, Judgement::Pass, "{:?}", verdict.examples);
}

fn two_in_order() -> Vec<Op> {
    vec![send(1, "x", (1, 2), stored(9, 0)), send(1, "y", (3, 4), stored(9, 1))]
}

#[test]
fn a_first_delivery_after_that_of_a_later_message_breaks_the_order() {
    let late = |attempt, begin| {
        let received = vec![receive(100, "y", (10, 11), (9, 1), 1), receive(101, "x", (begin, 20), (9, 0), attempt)];
        with([two_in_order(), received].concat())
    };
    assert_eq!(late(1, 12).consumption_order_violations, 1);
    assert_eq!(late(1, 12).order_violations, 1);
    assert_eq!(late(1, 11).verdict, Judgement::Pass, "the calls overlap");
    assert_eq!(late(2, 12).verdict, Judgement::Pass, "a redelivery");
}

/// A client that repeats a call whose answer it lost may get what that answer held, attempt 1 and all.
#[test]
fn a_repeated_call_may_bring_what_a_lost_answer_held() {
    let received = vec![
        receive_unknown(101, (5, 9)),
        receive(100, "y", (10, 11), (9, 1), 1),
        receive(101, "x", (12, 20), (9, 0), 1),
    ];
    let verdict = with([two_in_order(), received].concat());
    assert_eq!(verdict.verdict, Judgement::Pass, "{:?}", verdict.examples);
}

#[test]
fn an_acked_message_that_comes_back_breaks_the_ack() {
    let history = |begin, outcome| {
        with(vec![
            send(1, "x", (1, 2), stored(9, 0)),
            receive(100, "x", (3, 4), PLACE, 1),
            ack(100, "x", (5, 6), PLACE, outcome),
            receive(100, "x", (begin, 9), PLACE, 2),
        ])
    };
    assert_eq!((history(7, Acked::Done).acked_returned, history(7, Acked::Done).verdict), (1, Judgement::Fail));
    assert_eq!(history(5, Acked::Done).verdict, Judgement::Pass, "asked for before the ack was answered");
    assert_eq!(history(7, Acked::Unknown("".into())).verdict, Judgement::Pass);
    assert_eq!(history(7, Acked::Failed("".into())).verdict, Judgement::Pass);
}

#[test]
fn a_workload_that_uses_a_key_twice_does_not_pass() {
    let twice = [send(1, "x", (1, 2), stored(9, 0)), send(1, "x", (3, 4), stored(9, 0))];
    let verdict = with([twice.to_vec(), vec![receive(1, "x", (5, 6), PLACE, 1)]].concat());
    assert_eq!((verdict.attempted_twice, verdict.verdict), (1, Judgement::Fail));
}

#[test]
fn the_longest_gap_lies_between_acknowledgements_and_the_edges_of_the_run() {
    let at = |invoke, answer| send(1, &format!("{answer}"), (invoke, answer), stored(0, answer));
    let acked = [at(0, 1_000), at(10, 3_000), at(20, 12_000), at(30, 13_000)];
    let gaps = |ops: &[Op]| Gaps::of(&Table::of(ops));
    assert_eq!(gaps(&acked).longest(), Some(Gap { start_us: 3_000, end_us: 12_000 }));
    assert_eq!(gaps(&acked).longest_within(12_500, 20_000), Some(Gap { start_us: 12_000, end_us: 13_000 }));
    // The group never comes back: the last failure is an edge.
    let mut dead = acked.to_vec();
    dead.push(send(1, "dead", (14_000, 60_000), Sent::Unknown("".into())));
    assert_eq!(gaps(&dead).longest(), Some(Gap { start_us: 13_000, end_us: 60_000 }));
    assert_eq!(judge(&dead).longest_gap_ms, 47.0);
    assert_eq!(gaps(&[]).longest(), None);
}

#[test]
fn the_seven_keys_that_tools_rely_on_are_there() {
    let json = serde_json::to_value(judge(&clean(100, 1))).unwrap();
    for key in ["acked", "consumed", "lost", "duplicates", "order_violations", "longest_gap_ms"] {
        assert!(json[key].is_number(), "{key}");
    }
    assert_eq!(json["verdict"], "PASS");
}

/// Prints and does not judge: the machine may be busy. The figures to hold: 10^6 sends with as many deliveries and acks
/// in 5 s of one core and 500 MB, built with optimisation.
#[test]
fn a_million_ops_are_checked_in_seconds() {
    let ops = clean(1_000_000, 3);
    let start = Instant::now();
    let table = Table::of(&ops);
    let laid_out = start.elapsed();
    let verdict = Verdict::of(&table);
    println!("{} ops: laid out in {laid_out:.2?}, judged after {:.2?}", ops.len(), start.elapsed());
    assert_eq!(verdict.verdict, Judgement::Pass, "{:?}", verdict.examples);
}

fn hold(key: &str, at: u64, what: Held) -> Op {
    Op::Hold(Hold { span: span(1, (at, at)), topic: topic(), key: key.into(), what })
}

#[test]
fn a_delayed_message_is_early_until_its_moment_and_its_place_says_nothing_about_order() {
    let run = |returned| {
        judge(&[
            hold("late", 10, Held::Until { not_before_us: 1_000 }),
            send(1, "late", (10, 20), untold()),
            send(1, "plain", (30, 40), stored(0, 0)),
            receive(9, "plain", (50, 60), (0, 0), 1),
            receive(9, "late", (900, returned), (0, 1), 1),
        ])
    };
    assert_eq!((run(999).early, run(999).verdict), (1, Judgement::Fail));
    assert_eq!((run(1_000).early, run(1_000).verdict), (0, Judgement::Pass), "{:?}", run(1_000).examples);
}

#[test]
fn a_recalled_message_must_not_come_and_one_that_may_be_recalled_may() {
    let run = |answer: Option<Acked>, came: bool| {
        let mut ops = vec![
            hold("k", 10, Held::Until { not_before_us: 100 }),
            send(1, "k", (10, 20), untold()),
            send(1, "other", (21, 22), stored(0, 0)),
            receive(9, "other", (30, 40), (0, 0), 1),
        ];
        ops.extend(answer.map(|answer| hold("k", 50, Held::Recall(answer))));
        ops.extend(came.then(|| receive(9, "k", (200, 210), (0, 1), 1)));
        let verdict = judge(&ops);
        (verdict.recalled_and_back, verdict.lost)
    };
    let (failed, unknown) = (Some(Acked::Failed("too late".into())), Some(Acked::Unknown("reset".into())));
    assert_eq!((run(Some(Acked::Done), false), run(Some(Acked::Done), true)), ((0, 0), (1, 0)));
    assert_eq!((run(unknown.clone(), false), run(unknown, true)), ((0, 0), (0, 0)));
    assert_eq!((run(failed.clone(), false), run(failed, true)), ((0, 1), (0, 0)));
    assert_eq!((run(None, false), run(None, true)), ((0, 1), (0, 0)));
}

#[test]
fn a_transaction_is_all_or_nothing_and_half_of_it_is_seen_by_nobody() {
    let end = |at, commit, outcome| hold("k", at, Held::End { commit, outcome });
    let run = |ends: &[Op], came_at: Option<u64>| {
        let mut ops = vec![hold("k", 10, Held::Half), send(1, "k", (10, 20), untold())];
        ops.extend([send(1, "other", (21, 22), stored(0, 0)), receive(9, "other", (30, 40), (0, 0), 1)]);
        ops.extend_from_slice(ends);
        ops.extend(came_at.map(|at| receive(9, "k", (45, at), (0, 1), 1)));
        let verdict = judge(&ops);
        assert_eq!(verdict.lost, 0, "{:?}", verdict.examples);
        verdict.torn_transactions
    };
    let unknown = || Acked::Unknown("reset".into());
    let commit = |at| end(at, true, Acked::Done);
    let rollback = end(50, false, Acked::Done);
    assert_eq!((run(&[commit(50)], Some(50)), run(&[commit(50)], Some(60))), (0, 0));
    assert_eq!(run(&[commit(50)], Some(49)), 1, "early");
    assert_eq!(run(&[commit(50)], None), 1, "lost");
    assert_eq!((run(&[], None), run(&[], Some(60))), (0, 1), "nobody ended it");
    let rolled_back = std::slice::from_ref(&rollback);
    assert_eq!((run(rolled_back, None), run(rolled_back, Some(60))), (0, 2));
    for commit in [true, false] {
        assert_eq!(run(&[end(50, commit, unknown())], None), 0);
    }
    assert_eq!(run(&[end(50, true, unknown())], Some(60)), 0);
    assert_eq!(run(&[end(50, true, unknown()), commit(55)], Some(52)), 0, "the first may have had its effect");
    assert_eq!(run(&[end(50, true, unknown()), rollback.clone()], None), 0);
    assert_eq!(run(&[end(50, true, Acked::Failed("no".into()))], Some(60)), 1);
    assert_eq!(run(&[commit(50), rollback], Some(60)), 1, "both ways");
}

/// The part of a key before the first minus.
fn group_of(key: &str) -> Option<&str> {
    key.split_once('-').map(|(group, _)| group)
}

fn in_order(ops: &[Op]) -> u64 {
    group_order(&Table::of(ops), group_of, |_| false).count
}

/// Sends of `keys` to queue 0, in this order.
fn sent(keys: &[&str]) -> Vec<Op> {
    (0..).zip(keys).map(|(offset, key)| send(1, key, (offset * 10, offset * 10 + 5), stored(0, offset))).collect()
}

#[test]
fn a_message_group_may_come_in_batches_but_none_before_the_one_before_is_done() {
    let sends = || sent(&["a-0", "b-1", "a-2", "a-3", "alone"]);
    let with = |more: Vec<Op>| in_order(&[sends(), more].concat());
    let done = |key, at, place| ack(7, key, at, place, Acked::Done);
    // In one batch, or when the one before is done, or when it is of another message group.
    let batch = vec![receive(7, "a-0", (100, 110), (0, 0), 1), receive(7, "a-2", (100, 110), (0, 2), 1)];
    assert_eq!(with(batch.clone()), 0);
    assert_eq!(with(vec![receive(7, "b-1", (100, 110), (0, 1), 1)]), 0);
    let first = || vec![receive(7, "a-0", (100, 110), (0, 0), 1), done("a-0", (120, 130), (0, 0))];
    assert_eq!(with([first(), vec![receive(8, "a-2", (140, 150), (0, 2), 1)]].concat()), 0);
    // The ack may have had its effect as soon as it was invoked, and an unknown one may have had it too.
    assert_eq!(with([first(), vec![receive(8, "a-2", (115, 121), (0, 2), 1)]].concat()), 0);
    let maybe = ack(7, "a-0", (120, 130), (0, 0), Acked::Unknown("reset".into()));
    assert_eq!(with(vec![maybe, receive(8, "a-2", (140, 150), (0, 2), 1)]), 0);
    // Overtaken: not acked at all, acked too late, acked without effect, or left out of a batch.
    assert_eq!(with(vec![receive(8, "a-2", (140, 150), (0, 2), 1)]), 1);
    assert_eq!(with([first(), vec![receive(8, "a-2", (100, 119), (0, 2), 1)]].concat()), 1);
    let failed = ack(7, "a-0", (120, 130), (0, 0), Acked::Failed("expired".into()));
    assert_eq!(with(vec![failed, receive(8, "a-2", (140, 150), (0, 2), 1)]), 1);
    let gap = vec![receive(7, "a-0", (100, 110), (0, 0), 1), receive(7, "a-3", (100, 110), (0, 3), 1)];
    assert_eq!(with(gap), 1);
    // A retry of what is left of a batch is in order, a later one beside it is not.
    let left = [batch, vec![done("a-0", (120, 130), (0, 0)), receive(8, "a-2", (500, 510), (0, 2), 2)]].concat();
    assert_eq!(with(left.clone()), 0);
    assert_eq!(with([left, vec![receive(9, "a-3", (505, 520), (0, 3), 1)]].concat()), 1);
    // What has no message group is ordered among its like; what retention dropped may be overtaken.
    assert_eq!(with(vec![receive(7, "alone", (100, 110), (0, 4), 1)]), 0);
    let late = [sends(), vec![receive(8, "a-2", (140, 150), (0, 2), 1)]].concat();
    assert_eq!(group_order(&Table::of(&late), group_of, |key| key == "a-0").count, 0);
}

#[test]
fn what_a_filter_does_not_want_is_found_whoever_got_it() {
    let ops = [
        sent(&["yes-0", "no-1"]),
        vec![receive(7, "yes-0", (100, 110), (0, 0), 1), receive(8, "no-1", (100, 110), (0, 1), 1)],
    ];
    let table = Table::of(ops.iter().flatten());
    assert_eq!(unwanted(&table, |_| true).count, 0);
    let found = unwanted(&table, |key| key.starts_with("yes"));
    assert_eq!(found.count, 1);
    assert!(found.examples[0].contains("no-1"), "{}", found.examples[0]);
}

#[test]
fn the_order_of_many_deliveries_of_message_groups_is_judged_within_seconds() {
    let count = 200_000;
    let mut ops = Vec::new();
    for number in 0..count {
        let (at, key) = (number * 10, format!("g{}-{number}", number % 100));
        ops.push(send(1, &key, (at, at + 5), stored(0, number)));
        ops.push(receive(2, &key, (at + 6, at + 7), (0, number), 1));
        ops.push(ack(2, &key, (at + 8, at + 9), (0, number), Acked::Done));
    }
    let started = Instant::now();
    assert_eq!(in_order(&ops), 0);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}
