"""The official Python client sends transactional messages and ends them in every way there is, and the leader is killed while some are open.

    python transactions.py path/to/quorate

Of each four messages the producer commits one and rolls one back; two it leaves open, and its checker says commit for one and rollback
for the other. The only stream by which the checker can be asked is on a follower at first, so the leader reaches it through the group. Then
the leader is killed while half messages wait for their check, and the next leader asks. Every committed message comes once, no other ever comes,
a repeated end is fine and the opposite one is refused.
"""

import json
import os
import sys
import tempfile
import threading
import time

# The client writes its log below HOME; a test leaves nothing there.
os.environ["HOME"] = tempfile.mkdtemp(prefix="quorate-interop-home-")
os.environ["QUORATE_TRANSACTIONS_IMMUNITY"] = "2s"
os.environ["QUORATE_TRANSACTIONS_CHECK_INTERVAL"] = "3s"

from group import Failed, Group, until  # noqa: E402
from kill_leader import kill_leader  # noqa: E402
from rocketmq import (  # noqa: E402
    ClientConfiguration,
    Credentials,
    Message,
    Producer,
    SimpleConsumer,
    TransactionChecker,
    TransactionResolution,
)
from rocketmq.grpc_protocol import TransactionSource  # noqa: E402

TOPIC, READERS = "interop-transactions", "interop-transactions-readers"
INVISIBLE_SECONDS = 30
# Long enough for a half message to wait while a leader dies and another one takes over.
IMMUNITY_SECONDS = 12
STREAM_NODE = 1


def is_committed(number):
    return number % 2 == 0


def is_left_open(number):
    return number % 4 >= 2


class Checker(TransactionChecker):
    """What the application's database would say."""

    def __init__(self):
        self.lock, self.asked = threading.Lock(), []

    def check(self, message):
        number = int(next(iter(message.keys)))
        if message.body != body_of(number) or message.corrupted:
            raise Failed(f"asked about a body that nobody sent: {message.body}")
        with self.lock:
            self.asked.append(number)
        return TransactionResolution.COMMIT if is_committed(number) else TransactionResolution.ROLLBACK


def body_of(number):
    return f"transaction {number}".encode()


def message_of(number, immunity=None):
    message = Message()
    message.topic = TOPIC
    message.body = body_of(number)
    message.keys = str(number)
    if immunity:
        message.add_property("CHECK_IMMUNITY_TIME_IN_SECONDS", str(immunity))
    return message


def expect_refused(what, code, call):
    try:
        call()
    except Exception as raised:  # whatever the client lets through is what the application sees
        if code and str(code) not in str(raised) and getattr(raised, "code", None) != code:
            raise Failed(f"{what}: refused with {raised!r}, expected {code}")
        print(f"refused, as it must be: {what}: {raised}", flush=True)
        return
    raise Failed(f"not refused: {what}")


def main():
    with Group(sys.argv[1]) as group:
        group.run("topic", "create", TOPIC, "--queues", "4", "--type", "transaction")
        configuration = ClientConfiguration(";".join(group.endpoints), Credentials())
        checker = Checker()
        producer = Producer(configuration, (TOPIC,), checker=checker)
        consumer = SimpleConsumer(configuration, READERS, await_duration=5)
        producer.startup()
        consumer.startup()
        consumer.subscribe(TOPIC)

        came = {}

        def receive():
            try:
                messages = consumer.receive(32, INVISIBLE_SECONDS)
            except Exception as raised:
                print(f"a receive broke: {type(raised).__name__}", flush=True)
                return
            for message in messages:
                number = int(next(iter(message.keys)))
                if number in came and message.delivery_attempt == 1:
                    raise Failed(f"message {number} came twice")
                if not is_committed(number):
                    raise Failed(f"message {number} came and was not committed")
                came[number] = message.body
                consumer.ack(message)

        def all_came(numbers):
            receive()
            return came.keys() >= {number for number in numbers if is_committed(number)}

        def send(number, immunity=None):
            transaction = producer.begin_transaction()
            receipt = producer.send(message_of(number, immunity), transaction)
            if not receipt.transaction_id:
                raise Failed(f"half message {number} was answered without a transaction id")
            return transaction

        def end(number, transaction):
            return transaction.commit() if is_committed(number) else transaction.rollback()

        def waiting():
            return json.loads(group.run("transaction", "list", "--topic", TOPIC, "-o", "json"))["transactions"]

        # The client's stream goes to the first address, so another node shall lead.
        leader = until("some node leads", 30, group.leader)
        if leader["number"] == STREAM_NODE:
            group.run("cluster", "transfer", "3")

        first = range(16)
        transactions = {number: send(number) for number in first}
        receive()
        if came:
            raise Failed(f"half messages came: {sorted(came)}")
        if len(waiting()) != len(first):
            raise Failed(f"{len(first)} half messages wait, listed are {len(waiting())}")
        for number, transaction in transactions.items():
            if not is_left_open(number):
                end(number, transaction)
        until("what was committed, and what the checker said is committed, is received", 40, lambda: all_came(first), every=0)
        until("the checker was asked about all that was left open", 20, lambda: {n for n in first if is_left_open(n)} <= set(checker.asked))
        until("no half message waits", 20, lambda: not waiting())
        print(f"checked through a follower's stream: {sorted(set(checker.asked))}", flush=True)

        end(0, transactions[0])
        expect_refused("a rollback of what is committed", 42800, transactions[0].rollback)
        expect_refused("a commit of what the checker rolled back", 42800, transactions[3].commit)
        answer = producer.end_transaction(
            transactions[0]._Transaction__send_receipt.message_queue.endpoints,
            transactions[0]._Transaction__message,
            "00FF",
            TransactionResolution.COMMIT,
            TransactionSource.SOURCE_CLIENT,
        )
        if answer.status.code != 40008:
            raise Failed(f"an unknown transaction id is answered {answer.status.code}")
        expect_refused("a plain message to a topic for transactional ones", None, lambda: producer.send(message_of(99)))

        second = range(100, 124)
        transactions = {number: send(number, IMMUNITY_SECONDS if is_left_open(number) else None) for number in second}
        asked_before = len(checker.asked)
        for number in list(second)[:8]:
            if not is_left_open(number):
                end(number, transactions[number])
        leader = until("some node leads", 30, group.leader)
        if leader["number"] == STREAM_NODE:
            group.run("cluster", "transfer", "2")
        kill_leader(group)
        for number in list(second)[8:]:
            if not is_left_open(number):
                # The client does not repeat it; the application does, and a repeat is fine.
                until(f"transaction {number} is ended", 20, lambda: ended(lambda: end(number, transactions[number])))
        until("all that was committed is received", 60, lambda: all_came(second), every=0)
        until("no half message waits", 30, lambda: not waiting())
        asked = {number for number in checker.asked[asked_before:] if number >= 100}
        if asked != {number for number in second if is_left_open(number)}:
            raise Failed(f"the next leader asked about {sorted(asked)}")
        # Long enough for what must not come to come.
        quiet = time.monotonic() + 3
        while time.monotonic() < quiet:
            receive()
        wanted = {number for number in [*first, *second] if is_committed(number)}
        if came != {number: body_of(number) for number in wanted}:
            raise Failed(f"committed were {sorted(wanted)}, received {sorted(came)}")
        print(f"ok: {len(came)} committed messages received once each, {len(first) + len(second) - len(came)} rolled back")
        consumer.shutdown()
        producer.shutdown()
    print("PASS")


def ended(call):
    try:
        call()
    except Exception as raised:
        print(f"an end broke, once more: {raised}", flush=True)
        return False
    return True


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"FAIL: {failed}")
