"""The official Python client sends and receives through each node alone, and every part of a message comes back as it was.

    python send_receive.py path/to/quorate
"""

import os
import sys
import tempfile
import uuid

# The client writes its log below HOME; a test leaves nothing there.
os.environ["HOME"] = tempfile.mkdtemp(prefix="quorate-interop-home-")

from group import Failed, Group, until  # noqa: E402
from rocketmq import ClientConfiguration, Credentials, Message, Producer, SimpleConsumer  # noqa: E402

INVISIBLE_SECONDS = 30
BODIES = {
    "text": "a body with ünïcödé, 消息队列 and \n lines".encode(),
    "zeros": bytes(1024),
    "every byte": bytes(range(256)) * 16,
    "large": os.urandom(1 << 20),
}


def through(endpoint, number):
    """Sends one message of each kind by `endpoint` and receives them by the same."""
    topic, group = f"interop-python-{number}", f"interop-python-group-{number}"
    configuration = ClientConfiguration(endpoint, Credentials())

    producer = Producer(configuration, (topic,))
    producer.startup()
    sent = {}
    for name, body in BODIES.items():
        message = Message()
        message.topic = topic
        message.body = body
        message.tag = "paid"
        message.keys = f"order-{number}-{uuid.uuid4()}"
        message.add_property("region", "北京")
        message.add_property("kind", name)
        receipt = producer.send(message)
        sent[receipt.message_id] = message

    consumer = SimpleConsumer(configuration, group, await_duration=5)
    consumer.startup()
    consumer.subscribe(topic)
    received = {}

    def receive():
        for message in consumer.receive(32, INVISIBLE_SECONDS):
            if message.message_id in received:
                raise Failed(f"{message.message_id} came twice within {INVISIBLE_SECONDS} s")
            received[message.message_id] = message
            consumer.ack(message)
        return len(received) >= len(sent)

    until(f"{len(sent)} messages are received by {endpoint}", 30, receive, every=0)
    compare(sent, received)
    consumer.shutdown()
    producer.shutdown()
    print(f"ok: {endpoint}: {len(sent)} messages, {sum(map(len, BODIES.values()))} bytes", flush=True)


def compare(sent, received):
    if sent.keys() != received.keys():
        raise Failed(f"sent {sorted(sent)}, received {sorted(received)}")
    for message_id, out in sent.items():
        back = received[message_id]
        if back.corrupted:
            raise Failed(f"{message_id}: the client finds the body's digest wrong")
        for part in ("topic", "body", "tag", "keys", "properties"):
            if getattr(out, part) != getattr(back, part):
                raise Failed(f"{message_id}: {part} was {getattr(out, part)!r} and came back {getattr(back, part)!r}")
        if back.delivery_attempt != 1:
            raise Failed(f"{message_id}: first delivery counted as attempt {back.delivery_attempt}")


def main():
    with Group(sys.argv[1]) as group:
        for number, endpoint in enumerate(group.endpoints):
            through(endpoint, number)
    print("PASS")


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"FAIL: {failed}")
