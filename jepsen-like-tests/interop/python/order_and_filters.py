"""The official Python client sends ordered messages and receives them in order, and filters by tag and by SQL, while the leader is killed.

    python order_and_filters.py path/to/quorate

Ordered: four threads send to message groups of their own; the messages of a message group are received in the order of their sends, each
once it is acknowledged never again, though one ack in eight is left out so that retries happen, and though the leader dies meanwhile.
Filters: a consumer by tags and one by SQL each receive everything they ask for and nothing else, across another such death.
"""

import collections
import os
import signal
import sys
import tempfile
import threading

# The client writes its log below HOME; a test leaves nothing there.
os.environ["HOME"] = tempfile.mkdtemp(prefix="quorate-interop-home-")

from group import Failed, Group, until  # noqa: E402
from rocketmq import (  # noqa: E402
    ClientConfiguration,
    Credentials,
    FilterExpression,
    Message,
    Producer,
    SimpleConsumer,
)
from rocketmq.grpc_protocol import FilterType  # noqa: E402

ORDERED, IN_ORDER = "interop-ordered", "interop-in-order"
FILTERED = "interop-filtered"
SENDERS, GROUPS_EACH, MESSAGES_EACH = 4, 5, 20
FILTERED_COUNT = 400
INVISIBLE_SECONDS = 10


def message_to(topic, body, group=None, tag=None, properties=()):
    message = Message()
    message.topic = topic
    message.body = body.encode()
    if group:
        message.message_group = group
    if tag:
        message.tag = tag
    for key, value in properties:
        message.add_property(key, value)
    return message


def kill_leader(group):
    """Kills the leader and returns when another one leads."""
    victim = until("some node leads", 30, group.leader)
    os.kill(victim["pid"], signal.SIGKILL)
    until("another node leads", 30, lambda: (group.leader() or victim)["number"] != victim["number"])
    print(f"killed node {victim['number']}", flush=True)


def whole(group):
    """All three nodes are there and up to date."""
    leader = group.leader()
    nodes = [node for node in group.nodes() if node["reachable"]]
    return leader and len(nodes) == 3 and all(node["applied_index"] >= leader["committed_index"] for node in nodes)


def insist(call, tries=20):
    """Repeats what a dying node interrupts: this client does so for sends, and leaves receives and acks to the application."""
    for tried in range(tries):
        try:
            return call()
        except Exception:  # whatever the client lets through
            if tried + 1 == tries:
                raise


def ordered(group, configuration):
    group.run("topic", "create", ORDERED, "--type", "fifo", "--queues", "4")
    group.run("group", "create", IN_ORDER, "--fifo")
    producer = Producer(configuration, (ORDERED,))
    producer.startup()

    def send_all(sender):
        for step in range(MESSAGES_EACH):
            for number in range(GROUPS_EACH):
                name = f"{sender}.{number}"
                producer.send(message_to(ORDERED, f"{name} {step}", group=name))

    senders = [threading.Thread(target=send_all, args=(sender,)) for sender in range(SENDERS)]
    for thread in senders:
        thread.start()
    consumer = SimpleConsumer(configuration, IN_ORDER, await_duration=5)
    consumer.startup()
    consumer.subscribe(ORDERED)
    done, state = collections.Counter(), {"deliveries": 0, "repeats": 0, "killed": False}
    wanted = SENDERS * GROUPS_EACH * MESSAGES_EACH

    def receive():
        batch, failed = collections.Counter(), set()
        for message in insist(lambda: consumer.receive(8, INVISIBLE_SECONDS)):
            name, step = message.body.decode().split()
            if message.message_group != name:
                raise Failed(f"{message.body} came back with message group {message.message_group!r}")
            expected = done[name] + batch[name]
            if int(step) != expected:
                raise Failed(f"message group {name}: {step} was handed out when {expected} was next")
            batch[name] += 1
            state["deliveries"] += 1
            state["repeats"] += message.delivery_attempt > 1
            # One fails in eight, and with it what stands behind it in its message group.
            if state["deliveries"] % 8 == 0:
                failed.add(name)
            if name not in failed:
                insist(lambda: consumer.ack(message))
                done[name] += 1
                batch[name] -= 1
        if not state["killed"] and sum(done.values()) > wanted / 4:
            state["killed"] = True
            kill_leader(group)
        return sum(done.values()) >= wanted

    until(f"{wanted} messages are received in order", 240, receive, every=0)
    for thread in senders:
        thread.join()
    consumer.shutdown()
    producer.shutdown()
    if not state["repeats"]:
        raise Failed("no message was repeated, so nothing was shown about retries")
    print(f"ok: {wanted} messages of {SENDERS * GROUPS_EACH} message groups, {state['repeats']} repeats", flush=True)


def filters(group, configuration):
    group.run("topic", "create", FILTERED, "--queues", "4")
    producer = Producer(configuration, (FILTERED,))
    producer.startup()
    colors = ("red", "green", "blue")
    for number in range(FILTERED_COUNT):
        properties = (("n", str(number)), ("color", colors[number % 3]))
        # "Aa" and "BB" have one hash.
        producer.send(message_to(FILTERED, str(number), tag=("Aa", "BB", "C", "D")[number % 4], properties=properties))
    asked = {
        "tag": (FilterExpression("BB"), lambda n: n % 4 == 1),
        "tags": (FilterExpression("Aa || D"), lambda n: n % 4 in (0, 3)),
        "sql": (
            FilterExpression("color = 'red' AND n BETWEEN 50 AND 350", FilterType.SQL),
            lambda n: n % 3 == 0 and 50 <= n <= 350,
        ),
    }
    for name, (expression, wants) in asked.items():
        consumer = SimpleConsumer(configuration, f"interop-filter-{name}", await_duration=5)
        consumer.startup()
        consumer.subscribe(FILTERED, expression)
        wanted = {number for number in range(FILTERED_COUNT) if wants(number)}
        received = set()

        def receive():
            for message in insist(lambda: consumer.receive(16, INVISIBLE_SECONDS)):
                number = int(message.body)
                if number not in wanted:
                    raise Failed(f"filter {name}: {number} was not asked for")
                insist(lambda: consumer.ack(message))
                received.add(number)
            if name == "tags" and len(received) > 50 and not killed:
                killed.append(name)
                kill_leader(group)
            return received == wanted

        killed = []
        until(f"filter {name} gets its {len(wanted)} messages", 120, receive, every=0)
        consumer.shutdown()
        print(f"ok: filter {name}: {len(wanted)} of {FILTERED_COUNT}", flush=True)
    producer.shutdown()


def main():
    with Group(sys.argv[1]) as group:
        configuration = ClientConfiguration(";".join(group.endpoints), Credentials())
        ordered(group, configuration)
        until("the killed node is back", 60, lambda: whole(group))
        filters(group, configuration)
    print("PASS")


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"FAIL: {failed}")
