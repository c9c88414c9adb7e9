"""The official Python client's push consumer works off messages while the leader is killed, unordered and in order.

    python push.py path/to/quorate

Two push consumers share a group. Some messages fail at their first attempt: they come again with the next attempt number, after the delay of the group.
No message is lost, none that was worked on successfully is worked on again, and attempts go on counting across the kill. In an ordered group
each message group comes in its order, one at a time; one message fails for good, goes to the dead letters, and its message group goes on.
"""

import collections
import json
import os
import sys
import tempfile
import threading
import time

# The client writes its log below HOME; a test leaves nothing there.
os.environ["HOME"] = tempfile.mkdtemp(prefix="quorate-interop-home-")

from group import Failed, Group, until  # noqa: E402
from kill_leader import kill_leader  # noqa: E402
from order_and_filters import insist  # noqa: E402
from rocketmq import (  # noqa: E402
    ClientConfiguration,
    ConsumeResult,
    Credentials,
    FilterExpression,
    Message,
    MessageListener,
    Producer,
    PushConsumer,
)

PLAIN, WORKERS = "interop-push", "interop-push-workers"
COUNT = 300
FAILS_ONCE = 10  # every tenth fails at its first attempt

ORDERED, IN_ORDER = "interop-push-ordered", "interop-push-in-order"
LANES, EACH = 5, 30
FAILS_ALWAYS = (2, 7)  # lane and step of a message that nobody can work on
ATTEMPTS = 3


class Listener(MessageListener):
    """Hands messages to a function, one at a time, and remembers what broke in it: the client takes an exception for a failure."""

    def __init__(self, work):
        self.work, self.lock, self.broken = work, threading.Lock(), []

    def consume(self, message):
        with self.lock:
            try:
                return ConsumeResult.SUCCESS if self.work(message) else ConsumeResult.FAILURE
            except Failed as failed:
                self.broken.append(failed)
                return ConsumeResult.SUCCESS

    def check(self):
        if self.broken:
            raise self.broken[0]


def send(producer, topic, body, group=None):
    message = Message()
    message.topic, message.body, message.keys = topic, body.encode(), body.replace(" ", "-")
    if group:
        message.message_group = group
    insist(lambda: producer.send(message))


def described(group, name):
    """The one topic of a consumer group, as an operator sees it."""
    (topic,) = json.loads(group.run("group", "describe", name, "-o", "json"))["topics"]
    return topic


def all_done(group, name):
    return sum(queue["lag"] for queue in described(group, name)["queues"]) == 0


def unordered(group, configuration):
    group.run("topic", "create", PLAIN, "--queues", "4")
    group.run("group", "create", WORKERS, "--max-attempts", "5", "--retry", "ladder:1s")
    attempts, done = collections.defaultdict(list), collections.Counter()

    def work(message):
        number, attempt = int(message.body.decode()), message.delivery_attempt
        if attempt != len(attempts[number]) + 1:
            raise Failed(f"message {number} came with attempt {attempt} after {attempts[number]}")
        attempts[number].append(attempt)
        if number % FAILS_ONCE == 0 and attempt == 1:
            return False
        done[number] += 1
        return True

    listener = Listener(work)
    consumers = [PushConsumer(configuration, WORKERS, listener, {PLAIN: FilterExpression()}) for _ in range(2)]
    for consumer in consumers:
        consumer.startup()
    producer = Producer(configuration, (PLAIN,))
    producer.startup()
    for number in range(COUNT):
        send(producer, PLAIN, str(number))
        if number == COUNT // 3:
            until("the first messages are worked on", 30, lambda: done)
            kill_leader(group)
        time.sleep(0.005)
    until("every message is worked on", 120, lambda: len(done) == COUNT or listener.broken)
    listener.check()
    until("the group has nothing left", 30, lambda: all_done(group, WORKERS))
    repeated = {number: times for number, times in done.items() if times > 1}
    if repeated:
        raise Failed(f"worked on successfully more than once: {repeated}")
    wrong = [n for n, seen in attempts.items() if seen != ([1, 2] if n % FAILS_ONCE == 0 else [1])]
    if wrong:
        raise Failed(f"attempts of {wrong[:5]}: {[attempts[n] for n in wrong[:5]]}")
    topic = described(group, WORKERS)
    if len(topic["consumers"]) != 2 or topic["filters_differ"]:
        raise Failed(f"an operator sees {topic['consumers']}")
    for client in (*consumers, producer):
        client.shutdown()
    print(f"ok: {COUNT} messages, {COUNT // FAILS_ONCE} of them twice, by two push consumers", flush=True)


def in_order(group, configuration):
    group.run("topic", "create", ORDERED, "--type", "fifo", "--queues", "4")
    group.run("group", "create", IN_ORDER, "--fifo", "--max-attempts", str(ATTEMPTS), "--retry", "ladder:100ms")
    next_step, tries = collections.Counter(), collections.Counter()

    def work(message):
        lane, step = map(int, message.body.decode().split())
        if step == next_step[lane] + 1 and (lane, next_step[lane]) == FAILS_ALWAYS:
            next_step[lane] += 1
        if step != next_step[lane]:
            raise Failed(f"message group {lane}: {step} came when {next_step[lane]} was next")
        if (lane, step) == FAILS_ALWAYS:
            tries[lane, step] += 1
            return False
        next_step[lane] += 1
        return True

    listener = Listener(work)
    consumer = PushConsumer(configuration, IN_ORDER, listener, {ORDERED: FilterExpression()})
    consumer.startup()
    producer = Producer(configuration, (ORDERED,))
    producer.startup()
    for step in range(EACH):
        for lane in range(LANES):
            send(producer, ORDERED, f"{lane} {step}", group=f"lane {lane}")
        if step == EACH // 3:
            until("the first messages are worked on", 30, lambda: next_step)
            kill_leader(group)
    until("every message is worked on", 120, lambda: sum(next_step.values()) == LANES * EACH or listener.broken)
    listener.check()
    until("the group has nothing left", 30, lambda: all_done(group, IN_ORDER))
    dead = sum(queue["dead"] for queue in described(group, IN_ORDER)["queues"])
    if tries[FAILS_ALWAYS] < ATTEMPTS or dead != 1:
        raise Failed(f"{tries[FAILS_ALWAYS]} tries and {dead} dead letters")
    for client in (consumer, producer):
        client.shutdown()
    print(f"ok: {LANES} message groups of {EACH} in order, one message given up after {tries[FAILS_ALWAYS]} tries", flush=True)


def main():
    with Group(sys.argv[1]) as group:
        configuration = ClientConfiguration(";".join(group.endpoints), Credentials())
        unordered(group, configuration)
        in_order(group, configuration)
    print("PASS")


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"FAIL: {failed}")
