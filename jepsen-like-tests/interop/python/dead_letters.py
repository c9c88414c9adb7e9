"""The official Python client fails until its messages are dead letters, and reads them there.

    python dead_letters.py path/to/quorate

A simple consumer receives and acknowledges only what is even; its group allows three attempts, and the leader is killed after the first.
Attempts go on counting, each odd message ends in %DLQ%<group> once, where another consumer reads it with its origin, and a redrive brings it back,
once, however often it is asked for.
"""

import json
import os
import sys
import tempfile

# The client writes its log below HOME; a test leaves nothing there.
os.environ["HOME"] = tempfile.mkdtemp(prefix="quorate-interop-home-")

from group import Failed, Group, until  # noqa: E402
from kill_leader import kill_leader  # noqa: E402
from rocketmq import ClientConfiguration, Credentials, Message, Producer, SimpleConsumer  # noqa: E402

TOPIC, READERS = "interop-retries", "interop-retries-readers"
DEAD = f"%DLQ%{READERS}"
ATTEMPTS = 3
COUNT = 8
INVISIBLE_SECONDS = 10


def main():
    with Group(sys.argv[1]) as group:
        group.run("topic", "create", TOPIC, "--queues", "2")
        group.run("group", "create", READERS, "--max-attempts", str(ATTEMPTS), "--retry", "ladder:1s")
        configuration = ClientConfiguration(";".join(group.endpoints), Credentials())
        producer = Producer(configuration, (TOPIC,))
        consumer = SimpleConsumer(configuration, READERS, await_duration=5)
        producer.startup()
        consumer.startup()
        consumer.subscribe(TOPIC)
        for number in range(COUNT):
            message = Message()
            message.topic, message.body, message.keys = TOPIC, f"message {number}".encode(), str(number)
            producer.send(message)

        attempts = {number: [] for number in range(COUNT)}

        def receive():
            try:
                messages = consumer.receive(32, INVISIBLE_SECONDS)
            except Exception as raised:
                print(f"a receive broke: {type(raised).__name__}", flush=True)
                return
            for message in messages:
                number = int(next(iter(message.keys)))
                attempts[number].append(message.delivery_attempt)
                if number % 2 == 0:
                    consumer.ack(message)

        def all_tried(times):
            receive()
            return all(len(seen) >= (times if number % 2 else 1) for number, seen in attempts.items())

        until("the first attempts", 30, lambda: all_tried(1))
        kill_leader(group)
        until("the last attempts", 60, lambda: all_tried(ATTEMPTS))
        for number, seen in attempts.items():
            wanted = list(range(1, ATTEMPTS + 1)) if number % 2 else [1]
            if seen != wanted:
                raise Failed(f"message {number} was handed out with attempts {seen}, expected {wanted}")

        def letters():
            answer = json.loads(group.run("dlq", "list", "-o", "json"))
            return sum(topic["dead_letters"] for topic in answer if topic["group"] == READERS)

        odd = {number for number in range(COUNT) if number % 2}
        until("the dead letters", 30, lambda: letters() == len(odd))
        undertaker = SimpleConsumer(configuration, f"{READERS}-undertakers", await_duration=5)
        undertaker.startup()
        undertaker.subscribe(DEAD)
        dead = {}

        def read():
            for message in undertaker.receive(32, INVISIBLE_SECONDS):
                number = int(next(iter(message.keys)))
                properties = message.properties
                if number in dead or number not in odd or message.body != f"message {number}".encode():
                    raise Failed(f"dead letter {number} is none, or came twice: {message.body}")
                if (properties["DLQ_ORIGIN_TOPIC"], properties["DLQ_ATTEMPTS"]) != (TOPIC, str(ATTEMPTS)):
                    raise Failed(f"dead letter {number} says {properties}")
                dead[number] = properties["DLQ_LAST_CONSUMER"]
                undertaker.ack(message)
            return set(dead) == odd

        until("reading the dead letters", 30, read)
        print(f"dead letters {sorted(dead)}, last consumer {dead[1]}", flush=True)

        for expected in (len(odd), 0):
            answer = json.loads(group.run("dlq", "redrive", READERS, "-o", "json"))
            redriven = [outcome for outcome in answer["outcomes"] if outcome["state"] == "redriven"]
            if len(redriven) != expected or len(answer["outcomes"]) != expected:
                raise Failed(f"expected {expected} redriven: {answer}")
        again = []

        def all_back():
            for message in consumer.receive(32, INVISIBLE_SECONDS):
                if message.delivery_attempt != 1:
                    raise Failed(f"redriven, and attempt {message.delivery_attempt}")
                again.append(int(next(iter(message.keys))))
                consumer.ack(message)
            return len(again) >= len(odd)

        until("the redriven messages", 30, all_back)
        if sorted(again) != sorted(odd):
            raise Failed(f"redriven {sorted(again)}, expected {sorted(odd)}")
        for client in (producer, consumer, undertaker):
            client.shutdown()
    print("PASS")


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"FAIL: {failed}")
