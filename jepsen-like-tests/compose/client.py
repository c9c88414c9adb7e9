"""One official Python client of the compose smoke: sends and receives, wherever it is run, until it is told to stop.

    python client.py NAME ENDPOINTS SAW_FILE

Obeys one word a line on standard input, and answers each with one line of JSON:

    report   the keys acknowledged so far and those received
    quiet    sends no more, receives on; answers as report does
    stop     ends; answers with the errors that reached the application

NAME begins every key, so that two clients share a topic and a consumer group. The sending, receiving and noting is kill_leader.py's.
"""

import json
import pathlib
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "interop" / "python"))

from kill_leader import READERS, TOPIC, Receiver, Saw, send_all  # noqa: E402  (it sets HOME before the client is imported)
from rocketmq import ClientConfiguration, Credentials, Producer, SimpleConsumer  # noqa: E402

THREADS = 2
RATE = 60  # sends a second of all threads together


def report(sends, receiver):
    acked = [send.key for send in list(sends) if send.error is None]
    return {"acked": acked, "sent": len(sends), "seen": sorted(set(receiver.seen))}


def main():
    name, endpoints, saw_file = sys.argv[1:]
    configuration = ClientConfiguration(endpoints, Credentials())
    producer, consumer = Producer(configuration, (TOPIC,)), SimpleConsumer(configuration, READERS, await_duration=5)
    producer.startup()
    consumer.startup()
    consumer.subscribe(TOPIC)
    saw = Saw(saw_file)
    receiver, sends, stop = Receiver(consumer, saw), [], threading.Event()
    threads = [
        threading.Thread(target=send_all, args=(f"{name}{n}", producer, RATE / THREADS, stop, sends, saw))
        for n in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        word = line.strip()
        if word == "quiet":
            stop.set()
            for thread in threads:
                thread.join()
        if word == "stop":
            break
        print(json.dumps(report(sends, receiver)), flush=True)
    stop.set()
    for thread in threads:
        thread.join()
    receiver.stop.set()
    receiver.thread.join()
    saw.close()
    errors = [send.error for send in sends if send.error is not None]
    print(json.dumps({"errors": errors, "broken": dict(receiver.broken)}), flush=True)
    consumer.shutdown()
    producer.shutdown()


if __name__ == "__main__":
    main()
