#!/usr/bin/env python3
"""Recomputes the verdict of a run from its saved history, and from what other clients saw.

    check_history.py [HISTORY.jsonl.gz] [--client-saw FILE]... [--topic NAME] [--no-errors]

A second opinion: it shares no line and no idea of a data structure with the checkers in Rust, only the definitions in
docs/HISTORY.md. Standard library only. Prints one JSON object with the keys acked, consumed, lost, duplicates,
order_violations, longest_gap_ms, verdict (and more) and exits with 0 for PASS, 1 for FAIL, 2 if it cannot judge.

A --client-saw file is JSON lines, plain or gzip, with times in seconds on one clock:

    {"key": "k1", "invoked": 1.5, "returned": 1.6, "ok": true}      a send; "ok": false means that the application got
                                                                    an error and nobody knows whether it was stored
    {"key": "k1", "queue": 3, "offset": 17, "at": 2.0}              a receive; queue and offset where the client has them

Optional in both: "topic", "process", "attempt". Order is judged for the messages whose queue and offset some client saw;
how many those were is told as order_checked.
"""

import argparse
import bisect
import collections
import gzip
import json
import sys
import zlib

MICROS = 1_000_000


def text_lines(path):
    """The whole lines of a file, plain or gzip, and whether its end is missing."""
    with open(path, "rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
    if not is_gzip:
        with open(path, "rb") as raw:
            content = raw.read()
        cut = bool(content) and not content.endswith(b"\n")
        return content.split(b"\n")[: -1 if cut else None], cut
    pieces, cut = [], False
    with gzip.open(path) as unpacked:
        try:
            while piece := unpacked.read(1 << 20):
                pieces.append(piece)
        except (EOFError, zlib.error):
            cut = True
    content = b"".join(pieces)
    if not content.endswith(b"\n"):
        cut = True
    lines = content.split(b"\n")
    return lines[:-1], cut


def rows_of(path):
    lines, cut = text_lines(path)
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from error
    return rows, cut


class Run:
    """All that was seen, whoever saw it. Times are compared within one source only, since clocks differ."""

    def __init__(self):
        self.sends = []
        self.receives = []
        self.acks = []
        self.cut = False
        self.client_errors = 0

    def add_history(self, path):
        rows, cut = rows_of(path)
        self.cut |= cut
        waiting = {}  # consumer -> (calls of unknown outcome since, call that brought messages last)
        for row in rows:
            kind, outcome = row["type"], row.get("outcome")
            row["source"] = path
            if kind == "send":
                self.sends.append(row)
            elif kind == "receive" and outcome == "unknown":
                unknown, answered = waiting.get(row["process"], (None, None))
                if answered is not None or unknown is None:
                    unknown = row["invoke_us"]
                waiting[row["process"]] = (unknown, None)
            elif kind == "receive" and outcome == "ok":
                unknown, answered = waiting.get(row["process"], (None, None))
                if answered is not None and answered != row["invoke_us"]:
                    unknown = None
                waiting[row["process"]] = (unknown, row["invoke_us"])
                row["since_us"] = row["invoke_us"] if unknown is None else unknown
                self.receives.append(row)
            elif kind == "ack" and outcome == "ok":
                self.acks.append(row)

    def add_client(self, path, topic):
        rows, cut = rows_of(path)
        self.cut |= cut
        for row in rows:
            row.setdefault("topic", topic)
            row["source"] = path
            if "invoked" in row:
                row["invoke_us"] = round(row["invoked"] * MICROS)
                row["return_us"] = round(row["returned"] * MICROS)
                row["outcome"] = "ok" if row["ok"] else "unknown"
                self.client_errors += not row["ok"]
                self.sends.append(row)
            else:
                row["since_us"] = row["return_us"] = round(row["at"] * MICROS)
                self.receives.append(row)


def place_of(row):
    if row.get("queue") is None or row.get("offset") is None:
        return None
    return (row.get("topic"), row["queue"], row["offset"])


def went_backwards(events):
    """Events (begin, end, offset) of one lane: how many began after another of a higher offset had ended."""
    ends = sorted((end, offset) for _, end, offset in events if end is not None)
    highest_so_far = []
    for _, offset in ends:
        highest_so_far.append(max(offset, highest_so_far[-1]) if highest_so_far else offset)
    times = [end for end, _ in ends]
    count = 0
    for begin, _, offset in events:
        ended = bisect.bisect_left(times, begin)
        if ended and highest_so_far[ended - 1] > offset:
            count += 1
    return count


def longest_gap_us(sends):
    """Between acknowledgements of one source; the first invocation and the last return of any send are edges."""
    longest = 0
    by_source = collections.defaultdict(list)
    for send in sends:
        by_source[send["source"]].append(send)
    for of_source in by_source.values():
        moments = [send["return_us"] for send in of_source if send["outcome"] == "ok"]
        moments.append(min(send["invoke_us"] for send in of_source))
        moments.append(max(send["return_us"] for send in of_source))
        moments.sort()
        longest = max([longest] + [later - earlier for earlier, later in zip(moments, moments[1:])])
    return longest


def judge(run, no_errors):
    delivered = collections.defaultdict(set)  # key -> places, or None for a delivery that did not say
    for receive in run.receives:
        delivered[receive["key"]].add(place_of(receive))
    outcome_of, sent_twice = {}, 0
    for send in run.sends:
        sent_twice += send["key"] in outcome_of
        outcome_of[send["key"]] = send["outcome"]

    acked = [send for send in run.sends if send["outcome"] == "ok"]
    lost = [send["key"] for send in acked if send["key"] not in delivered]
    invented = [key for key in delivered if key not in outcome_of]
    aborted = [key for key in delivered if outcome_of.get(key) == "fail"]

    known = {key: {place for place in places if place} for key, places in delivered.items()}
    told = {send["key"]: place_of(send) for send in run.sends if send["outcome"] == "ok" and place_of(send)}
    duplicates = 0
    for key in known.keys() | told.keys():
        places = known.get(key, set()) | ({told[key]} if key in told else set())
        duplicates += max(len(places) - 1, 0)

    # A send may be told its offset alone, without a queue: then only the offset can be compared.
    mistold = 0
    for send in acked:
        offset, places = send.get("offset"), delivered.get(send["key"], set())
        if offset is not None and places and None not in places:
            mistold += all(place[2] != offset for place in places)

    at_place = collections.defaultdict(set)
    for key, places in known.items():
        for place in places:
            at_place[place].add(key)
    for key, place in told.items():
        at_place[place].add(key)
    inconsistent = sum(len(keys) - 1 for keys in at_place.values())

    lanes = collections.defaultdict(list)
    order_checked = 0
    for send in run.sends:
        seen = known.get(send["key"], set())
        place = told.get(send["key"]) or (next(iter(seen)) if len(seen) == 1 else None)
        if place is None or send["outcome"] == "fail":
            continue
        order_checked += 1
        end = send["return_us"] if send["outcome"] == "ok" else None
        lanes[send["source"], place[0], place[1]].append((send["invoke_us"], end, place[2]))
    order_violations = sum(went_backwards(events) for events in lanes.values())

    first_deliveries = collections.defaultdict(list)
    attempts = collections.Counter()
    for receive in run.receives:
        place, attempt = place_of(receive), receive.get("attempt")
        if place is None or attempt is None:
            continue
        attempts[place, attempt] += 1
        if attempt == 1:
            event = (receive["since_us"], receive["return_us"], place[2])
            first_deliveries[receive["source"], place[0], place[1]].append(event)
    order_violations += sum(went_backwards(events) for events in first_deliveries.values())
    double = sum(count - 1 for count in attempts.values())

    acked_at = {}
    for ack in run.acks:
        where = (ack["source"], place_of(ack))
        acked_at[where] = min(ack["return_us"], acked_at.get(where, ack["return_us"]))
    came_back = 0
    for receive in run.receives:
        when = acked_at.get((receive["source"], place_of(receive)))
        came_back += when is not None and when < receive["since_us"]

    result = {
        "acked": len(acked),
        "consumed": sum(1 for key in delivered if key in outcome_of),
        "lost": len(lost),
        "duplicates": duplicates,
        "order_violations": order_violations,
        "longest_gap_ms": longest_gap_us(run.sends) / 1000,
    }
    breaches = {
        "invented": len(invented),
        "aborted_reads": len(aborted),
        "inconsistent_offsets": inconsistent,
        "mistold": mistold,
        "double_deliveries": double,
        "acked_returned": came_back,
        "attempted_twice": sent_twice,
    }
    bad = result["lost"] + duplicates + order_violations + sum(breaches.values())
    bad += run.cut or not acked or (no_errors and run.client_errors > 0)
    result["verdict"] = "FAIL" if bad else "PASS"
    result.update(breaches)
    result.update(
        client_errors=run.client_errors,
        order_checked=order_checked,
        cut=run.cut,
        examples={"lost": sorted(lost)[:5], "invented": sorted(invented)[:5]},
    )
    return result


def main():
    parser = argparse.ArgumentParser(description="Recomputes the verdict of a run from its saved history.")
    parser.add_argument("history", nargs="?", help="a history as `quorate dev` saves it")
    parser.add_argument("--client-saw", action="append", default=[], help="what another client saw, JSON lines")
    parser.add_argument("--topic", help="topic of client lines that name none (default: the history's, if it has one)")
    parser.add_argument("--no-errors", action="store_true", help="an error that reached an application is a FAIL")
    arguments = parser.parse_args()
    if not arguments.history and not arguments.client_saw:
        parser.error("a history or a --client-saw file is needed")
    run = Run()
    try:
        if arguments.history:
            run.add_history(arguments.history)
        topics = {row["topic"] for row in run.sends + run.receives}
        topic = arguments.topic or (topics.pop() if len(topics) == 1 else None)
        for path in arguments.client_saw:
            run.add_client(path, topic)
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"check_history.py: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    result = judge(run, arguments.no_errors)
    print(json.dumps(result))
    return 0 if result["verdict"] == "PASS" else 1


if __name__ == "__main__":
    sys.exit(main())
