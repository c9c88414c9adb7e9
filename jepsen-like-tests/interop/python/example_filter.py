"""Filters by tag and by SQL in Python, as docs/features/filters.md shows them. Run by CI."""

import sys

from rocketmq import ClientConfiguration, Credentials, FilterExpression, Message, Producer, SimpleConsumer
from rocketmq.grpc_protocol import FilterType

endpoints = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8081;127.0.0.1:8082;127.0.0.1:8083"
configuration = ClientConfiguration(endpoints, Credentials())

producer = Producer(configuration, ("payments",))
producer.startup()
for number, tag in enumerate(("paid", "refunded", "failed", "paid")):
    message = Message()
    message.topic = "payments"
    message.tag = tag
    message.add_property("amount", str(number * 100))
    message.body = f"{tag} {number * 100}".encode()
    producer.send(message)

by_tag = FilterExpression("paid || refunded")
by_property = FilterExpression("amount > 100 AND TAGS <> 'failed'", FilterType.SQL)
for group, expression, count in (("ledger", by_tag, 3), ("audit", by_property, 1)):
    consumer = SimpleConsumer(configuration, group, await_duration=5)
    consumer.startup()
    consumer.subscribe("payments", expression)
    while count:
        for message in consumer.receive(16, 30):
            print(group, "received", message.body.decode())
            consumer.ack(message)
            count -= 1
    consumer.shutdown()
producer.shutdown()
