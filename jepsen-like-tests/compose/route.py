"""The addresses that a node or a name server gives to a client for a topic, one a line, by the official client's own protocol files.

    python route.py HOST:PORT TOPIC

A program of its own, so that it can be run in a network namespace.
"""

import sys

import grpc
from rocketmq.grpc_protocol import definition_pb2, service_pb2, service_pb2_grpc

endpoint, topic = sys.argv[1:]
with grpc.insecure_channel(endpoint) as channel:
    request = service_pb2.QueryRouteRequest(topic=definition_pb2.Resource(name=topic))
    headers = (("x-mq-client-id", "route@1@0@smoke"), ("x-mq-language", "PYTHON"))
    answer = service_pb2_grpc.MessagingServiceStub(channel).QueryRoute(request, timeout=5, metadata=headers)
if answer.status.code != definition_pb2.OK:
    sys.exit(f"{endpoint} answers {answer.status.code}: {answer.status.message}")
found = [f"{one.host}:{one.port}" for queue in answer.message_queues for one in queue.broker.endpoints.addresses]
print("\n".join(dict.fromkeys(found)))
