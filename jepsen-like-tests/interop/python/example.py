"""A producer and a consumer in Python, as the README shows them. Run by CI."""

import sys

from rocketmq import ClientConfiguration, Credentials, Message, Producer, SimpleConsumer

endpoints = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8081;127.0.0.1:8082;127.0.0.1:8083"
configuration = ClientConfiguration(endpoints, Credentials())

producer = Producer(configuration, ("hello",))
producer.startup()
message = Message()
message.topic = "hello"
message.body = b"hello from Python"
print("sent", producer.send(message).message_id)

consumer = SimpleConsumer(configuration, "hello-readers", await_duration=5)
consumer.startup()
consumer.subscribe("hello")
for message in consumer.receive(16, 30):  # at most 16, hidden from others for 30 s
    print("received", message.body)
    consumer.ack(message)

consumer.shutdown()
producer.shutdown()
