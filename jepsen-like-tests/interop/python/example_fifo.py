"""Ordered messages in Python, as docs/features/fifo.md shows them. Run by CI."""

import sys

from rocketmq import ClientConfiguration, Credentials, Message, Producer, SimpleConsumer

endpoints = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8081;127.0.0.1:8082;127.0.0.1:8083"
configuration = ClientConfiguration(endpoints, Credentials())

producer = Producer(configuration, ("orders",))
producer.startup()
for order in ("7", "8"):
    for event in ("created", "paid", "shipped"):
        message = Message()
        message.topic = "orders"
        message.message_group = order
        message.body = f"order {order}: {event}".encode()
        producer.send(message)

consumer = SimpleConsumer(configuration, "billing", await_duration=5)
consumer.startup()
consumer.subscribe("orders")
left = 6
while left:
    for message in consumer.receive(16, 30):  # each order's events in their order, the two orders side by side
        print("received", message.body.decode())
        consumer.ack(message)  # lets the order go on
        left -= 1

consumer.shutdown()
producer.shutdown()
