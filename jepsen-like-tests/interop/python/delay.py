"""The official Python client sends delayed messages and recalls some, and the leader is killed while they wait.

    python delay.py path/to/quorate

Every message that was not recalled comes once, not before its time and soon after it; a recalled one never comes; recalling what has
come is refused. The client's delivery timestamps are whole seconds.
"""

import os
import sys
import tempfile
import time

# The client writes its log below HOME; a test leaves nothing there.
os.environ["HOME"] = tempfile.mkdtemp(prefix="quorate-interop-home-")

from group import Failed, Group, until  # noqa: E402
from kill_leader import kill_leader  # noqa: E402
from rocketmq import ClientConfiguration, Credentials, Message, Producer, SimpleConsumer  # noqa: E402

TOPIC, READERS = "interop-delay", "interop-delay-readers"
MESSAGES = 40
FIRST_SECONDS = 8
INVISIBLE_SECONDS = 30
# A killed leader costs a moment, and a receive that breaks with it another one; early is never allowed.
LATE_SECONDS = 12


def send(producer, number, due):
    message = Message()
    message.topic = TOPIC
    message.body = f"delayed {number}".encode()
    message.keys = str(number)
    message.delivery_timestamp = due
    receipt = producer.send(message)
    if not receipt.recall_handle:
        raise Failed(f"message {number} was answered without a recall handle")
    return receipt


def expect_refused(what, call):
    try:
        call()
    except Exception as raised:  # whatever the client lets through is what the application sees
        print(f"refused, as it must be: {what}: {raised}", flush=True)
        return
    raise Failed(f"not refused: {what}")


def main():
    with Group(sys.argv[1]) as group:
        group.run("topic", "create", TOPIC, "--queues", "4", "--type", "delay")
        configuration = ClientConfiguration(";".join(group.endpoints), Credentials())
        producer, consumer = Producer(configuration, (TOPIC,)), SimpleConsumer(configuration, READERS, await_duration=5)
        producer.startup()
        consumer.startup()
        consumer.subscribe(TOPIC)

        first = int(time.time()) + FIRST_SECONDS
        due = {number: first + number % 8 for number in range(MESSAGES)}
        receipts = {number: send(producer, number, due[number]) for number in range(MESSAGES)}
        recalled = {number for number in range(MESSAGES) if number % 5 == 0}
        for number in sorted(recalled):
            message_id = producer.recall_message(TOPIC, receipts[number].recall_handle)
            if message_id != receipts[number].message_id:
                raise Failed(f"the recall of {receipts[number].message_id} was answered for {message_id}")
        kill_leader(group)
        expect_refused("a recall by something that is no handle", lambda: producer.recall_message(TOPIC, "00FF"))

        came = {}

        def receive():
            try:
                messages = consumer.receive(32, INVISIBLE_SECONDS)
            except Exception as raised:
                print(f"a receive broke: {type(raised).__name__}", flush=True)
                return False
            at = time.time()
            for message in messages:
                number = int(next(iter(message.keys)))
                if number in came and message.delivery_attempt == 1:
                    raise Failed(f"message {number} came twice")
                if at < due[number]:
                    raise Failed(f"message {number} came {due[number] - at:.3f} s before its time")
                came.setdefault(number, at - due[number])
                consumer.ack(message)
            return len(came) >= MESSAGES - len(recalled)

        until("all that was not recalled is received", 60, receive, every=0)
        # Long enough for what must not come to come.
        quiet = time.monotonic() + 3
        while time.monotonic() < quiet:
            receive()
        if recalled & came.keys():
            raise Failed(f"recalled and received all the same: {sorted(recalled & came.keys())}")
        late = max(came.values())
        if late > LATE_SECONDS:
            raise Failed(f"the last message came {late:.1f} s after its time")
        number = min(came)
        expect_refused("a recall that is too late", lambda: producer.recall_message(TOPIC, receipts[number].recall_handle))
        print(f"ok: {len(came)} delayed messages, at most {late:.2f} s late over a killed leader; {len(recalled)} recalled")
        consumer.shutdown()
        producer.shutdown()
    print("PASS")


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"FAIL: {failed}")
