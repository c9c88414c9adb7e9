"""The official Python client keeps sending while the leader is killed with SIGKILL ten times, and nothing it was told is untrue.

    python kill_leader.py path/to/quorate [--kills 10] [--rate 240] [--saw FILE]

Eight threads send to a topic of one queue, one thread receives, and the leader dies 2 s after each return of the one before. At the end:

  * every acknowledged message was received, and none that nobody sent;
  * a message whose send returned before another's began lies before it: by the offsets the producer was told, and in the order
    of first deliveries;
  * no send raised an error into the application, and at least 200 a second were acknowledged over the whole run, deaths included.

A receive or ack may break when its node dies: the client does not repeat those, the application does, and the message comes again.
They are counted and printed. `--saw` keeps what the client saw as JSON lines, for check_history.py, which shares nothing with this file.
"""

import argparse
import collections
import gzip
import json
import os
import queue
import signal
import sys
import tempfile
import threading
import time

# The client writes its log below HOME; a test leaves nothing there.
os.environ["HOME"] = tempfile.mkdtemp(prefix="quorate-interop-home-")

from group import Failed, Group, until  # noqa: E402
from rocketmq import ClientConfiguration, Credentials, Message, Producer, SimpleConsumer  # noqa: E402

TOPIC, READERS = "interop-kill", "interop-kill-readers"
THREADS = 8
RATE_MIN = 200
PAUSE_SECONDS = 2
INVISIBLE_SECONDS = 15
BODY_BYTES = 256

Send = collections.namedtuple("Send", "key invoked returned offset error")
Delivery = collections.namedtuple("Delivery", "key attempt")

now = time.monotonic


class Saw:
    """What the client saw, written by one thread so that the others never wait for the disk. Times are seconds on one clock."""

    def __init__(self, path):
        self.lines = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._write, args=(path,), name="saw")
        self.thread.start()

    def send(self, process, send):
        line = {"key": send.key, "process": process, "invoked": send.invoked, "returned": send.returned}
        place = {} if send.error else {"queue": 0, "offset": send.offset}
        self.lines.put({**line, "ok": send.error is None, "topic": TOPIC, **place})

    def receive(self, delivery, at):
        # The client does not tell an application where a received message lies.
        self.lines.put({"key": delivery.key, "at": at, "attempt": delivery.attempt, "topic": TOPIC})

    def close(self):
        self.lines.put(None)
        self.thread.join()

    def _write(self, path):
        with gzip.open(path, "wt", encoding="utf-8") as file:
            while (line := self.lines.get()) is not None:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def body_of(key):
    return key.encode().ljust(BODY_BYTES, b".")


def send_all(number, producer, rate, stop, sends, saw):
    """One thread's sends, one after the other, at `rate` a second; after an outage it catches up, so the rate holds on average."""
    due = time.monotonic()
    count = 0
    while not stop.is_set():
        due += 1 / rate
        stop.wait(max(0.0, due - time.monotonic()))
        key = f"p{number}-{count:06}"
        count += 1
        message = Message()
        message.topic = TOPIC
        message.body = body_of(key)
        message.keys = key
        invoked, offset, error = now(), None, None
        try:
            offset = producer.send(message).offset
        except Exception as raised:  # whatever the client lets through is what the application sees
            error = f"{type(raised).__name__}: {raised}"
        send = Send(key, invoked, now(), offset, error)
        sends.append(send)
        saw.send(number, send)


class Receiver:
    """Receives and acknowledges until told to stop; keeps every delivery in the order in which it came."""

    def __init__(self, consumer, saw):
        self.consumer, self.saw = consumer, saw
        self.deliveries, self.seen, self.broken = [], set(), collections.Counter()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="receiver")
        self.thread.start()

    def _run(self):
        while not self.stop.is_set():
            try:
                messages = self.consumer.receive(32, INVISIBLE_SECONDS)
            except Exception as raised:
                self.broken[f"receive: {type(raised).__name__}"] += 1
                self.stop.wait(0.05)
                continue
            at = now()
            for message in messages:
                self._take(message, at)

    def _take(self, message, at):
        key = next(iter(message.keys), "")
        whole = message.body == body_of(key) and not message.corrupted
        # A damaged body is a message that nobody sent, and is kept as one.
        delivery = Delivery(key if whole else f"damaged {key}", message.delivery_attempt)
        self.deliveries.append(delivery)
        self.seen.add(delivery.key)
        self.saw.receive(delivery, at)
        try:
            self.consumer.ack(message)
        except Exception as raised:
            self.broken[f"ack: {type(raised).__name__}"] += 1


def kill_leader(group):
    """Kills the leader and waits until it is back: another process of the same number, with everything that was committed then."""
    victim = until("some node leads", 30, group.leader)
    killed = now()
    os.kill(victim["pid"], signal.SIGKILL)

    def another():
        leader = group.leader()
        return leader if leader and leader["number"] != victim["number"] else None

    leader = until("another node leads", 30, another)
    elected = now()

    def rejoined():
        back = [node for node in group.nodes() if node["number"] == victim["number"]]
        return any(
            node["reachable"] and node["pid"] != victim["pid"] and node["applied_index"] >= leader["committed_index"]
            for node in back
        )

    until(f"node {victim['number']} is back (quorate dev starts it again)", 60, rejoined)
    print(
        f"killed node {victim['number']} (pid {victim['pid']}): node {leader['number']} seen to lead after"
        f" {elected - killed:.2f} s in term {leader['term']}, back after {now() - killed:.2f} s",
        flush=True,
    )


def verdict(sends, receiver, seconds):
    """The list of what does not hold; empty if all does."""
    faults = []
    acked = [send for send in sends if send.error is None]
    errors = [send for send in sends if send.error is not None]
    lost = [send.key for send in acked if send.key not in receiver.seen]
    invented = receiver.seen - {send.key for send in sends}
    if errors:
        faults.append(f"{len(errors)} sends raised errors, the first: {errors[0].error}")
    if lost:
        faults.append(f"{len(lost)} acknowledged messages never came, the first: {lost[0]}")
    if invented:
        faults.append(f"{len(invented)} messages came that nobody sent, such as {min(invented)}")
    if len(acked) < RATE_MIN * seconds:
        faults.append(f"{len(acked) / seconds:.0f} acknowledged sends/s, required are {RATE_MIN}")
    offsets = {send.key: send.offset for send in acked}
    if len(set(offsets.values())) != len(offsets):
        faults.append("two messages were given the same offset")
    spans = {send.key: (send.invoked, send.returned) for send in sends}
    first = [delivery.key for delivery in receiver.deliveries if delivery.attempt == 1 and delivery.key in spans]
    for what, keys in (("offsets", sorted(offsets, key=offsets.get)), ("first deliveries", first)):
        late = overtaken(keys, spans)
        if late:
            faults.append(f"order of {what}: {late[0]} stands after {late[1]}, whose send began after it had returned")
    repeats = sum(1 for delivery in receiver.deliveries if delivery.attempt > 1)
    print(
        f"{len(acked)} acknowledged of {len(sends)} sent in {seconds:.1f} s ({len(acked) / seconds:.0f}/s), "
        f"{len(receiver.seen)} received, {repeats} deliveries repeated, longest gap between acknowledgements "
        f"{longest_gap(acked):.2f} s, broken calls of the consumer: {dict(receiver.broken) or 'none'}"
    )
    return faults


def overtaken(keys, spans):
    """A pair (earlier, later) of which the later stands first in `keys`, though its send began after the earlier's returned."""
    began_last = None
    for key in keys:
        if began_last and spans[key][1] < spans[began_last][0]:
            return key, began_last
        if began_last is None or spans[key][0] > spans[began_last][0]:
            began_last = key
    return None


def longest_gap(acked):
    times = sorted(send.returned for send in acked)
    return max((b - a for a, b in zip(times, times[1:])), default=0)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("binary")
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--rate", type=int, default=240)
    arguments.add_argument("--saw", default=os.devnull, metavar="FILE")
    arguments = arguments.parse_args()

    with Group(arguments.binary) as group:
        group.run("topic", "create", TOPIC, "--queues", "1")
        configuration = ClientConfiguration(";".join(group.endpoints), Credentials())
        producer, consumer = Producer(configuration, (TOPIC,)), SimpleConsumer(configuration, READERS, await_duration=5)
        producer.startup()
        consumer.startup()
        consumer.subscribe(TOPIC)
        saw = Saw(arguments.saw)
        receiver, sends, stop = Receiver(consumer, saw), [], threading.Event()
        rate = arguments.rate / THREADS
        threads = [
            threading.Thread(target=send_all, args=(number, producer, rate, stop, sends, saw), name=f"sender {number}")
            for number in range(THREADS)
        ]
        begun = time.monotonic()
        try:
            for thread in threads:
                thread.start()
            for _ in range(arguments.kills):
                time.sleep(PAUSE_SECONDS)  # part of the requirement, not a wait for something
                kill_leader(group)
            time.sleep(PAUSE_SECONDS)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            seconds = time.monotonic() - begun
            try:
                acked = {send.key for send in sends if send.error is None}
                until("everything acknowledged is received", 60, lambda: acked <= receiver.seen)
            except Failed as failed:
                print(failed)  # the verdict counts what is missing
            receiver.stop.set()
            receiver.thread.join()
            saw.close()
        faults = verdict(sends, receiver, seconds)
        consumer.shutdown()
        producer.shutdown()
    if faults:
        raise Failed("; ".join(faults))
    print("PASS")


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"FAIL: {failed}")
