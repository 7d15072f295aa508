#!/usr/bin/env python3
"""Asks Tollstream over Kafka and prints the answer as it comes, with nothing but confluent-kafka and its stock serializer.

    ask.py --organization org_demo --model auto --prompt "Where is my order?"

Ends with 0 when the answer is whole, 1 when it is not, 2 when none came in time.
"""

import argparse
import json
import sys
import time
import uuid
from decimal import Decimal

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--brokers", default="127.0.0.1:9092")
    parser.add_argument("--registry", default="http://127.0.0.1:8081/apis/ccompat/v7")
    parser.add_argument("--topic-prefix", default="", help="what the names of the topics begin with")
    parser.add_argument("--organization", required=True, help="who pays")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--prompt", required=True)
    parser.add_argument(
        "--partitioner",
        choices=["default", "murmur2"],
        default="murmur2",
        help="murmur2 finds the organization's partition; librdkafka's default finds another, and the gateway moves the record",
    )
    parser.add_argument("--frames", action="store_true", help="print each frame as one line of JSON")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    return parser.parse_args()


def listen(options):
    """A consumer at the end of one partition of `responses`, and that partition: the record asks for the answer there."""
    topic = f"{options.topic_prefix}responses"
    consumer = Consumer({"bootstrap.servers": options.brokers, "group.id": "ask.py", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    partition = uuid.uuid4().int % len(partitions)
    # Where the partition ends is asked before the question is sent, so no frame can be missed.
    _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
    consumer.assign([TopicPartition(topic, partition, end)])
    return consumer, partition


def ask(options, registry, request_id, partition):
    """Sends one chat request. Only required fields and what is of interest here; the schema has the rest."""
    topic = f"{options.topic_prefix}requests"
    body = {"model": options.model, "stream": True, "messages": [{"role": "user", "content": options.prompt}]}
    chat = {
        "request_id": request_id,
        "organization": options.organization,
        "model": options.model,
        "timeout_ms": int(options.timeout * 1000),
        "reply_partition": partition,
        "body": json.dumps(body).encode(),
    }
    # The schema is the registered one: nothing of it is copied here, and nothing is registered.
    serialize = AvroSerializer(registry, conf={"auto.register.schemas": False, "use.latest.version": True})
    settings = {"bootstrap.servers": options.brokers, "enable.idempotence": True}
    if options.partitioner == "murmur2":
        settings["partitioner"] = "murmur2_random"
    producer = Producer(settings)
    refused = []
    producer.produce(
        topic,
        key=options.organization.encode(),
        value=serialize({"kind": "chat", "chat": chat}, SerializationContext(topic, MessageField.VALUE)),
        on_delivery=lambda error, _: refused.append(error) if error else None,
    )
    if producer.flush(options.timeout) or refused:
        raise KafkaException(*refused)


def frames(options, consumer, registry, request_id):
    """The frames of the answer, in order, ending with the terminal one; nothing more when the time is over."""
    deserialize = AvroDeserializer(registry)
    deadline = time.monotonic() + options.timeout
    while (left := deadline - time.monotonic()) > 0:
        message = consumer.poll(min(left, 1))
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        if message.key() != request_id.encode():
            continue
        frame = deserialize(message.value(), SerializationContext(message.topic(), MessageField.VALUE))
        yield frame
        if frame["kind"] == "terminal":
            return


def show(options, frame):
    """Prints a frame: as JSON, or the text in it."""
    if options.frames:
        print(json.dumps(frame, default=lambda value: value.decode()), flush=True)
    elif frame["kind"] == "content":
        for event in frame["content"]["events"]:
            for choice in json.loads(event)["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)


def main():
    options = arguments()
    registry = SchemaRegistryClient({"url": options.registry})
    request_id = str(uuid.uuid4())
    consumer, partition = listen(options)
    attempt, expected, head, terminal = None, 0, None, None
    try:
        ask(options, registry, request_id, partition)
        for frame in frames(options, consumer, registry, request_id):
            if frame["kind"] == "content":
                # The attempt that spoke first is the answer; a later one would begin from the start again.
                attempt = attempt or frame["attempt"]
                if frame["attempt"] != attempt or frame["sequence"] < expected:
                    continue
                if frame["sequence"] > expected:
                    print(f"\nframe {expected} of the answer is missing", file=sys.stderr)
                    return 1
                expected += 1
                head = head or frame["content"]["head"]
            elif frame["kind"] == "terminal":
                terminal = frame["terminal"]
            show(options, frame)
    finally:
        consumer.close()
    if terminal is None:
        print(f"\nno answer within {options.timeout:g} s", file=sys.stderr)
        return 2
    head, usage, error = terminal["head"] or head or {}, terminal["usage"] or {}, terminal["error"]
    if error:
        print(f"\n{terminal['outcome']}: {error['status']} {error['code']}: {error['message']}", file=sys.stderr)
        return 1
    cost = terminal["cost_pico_usd"]
    print(
        f"\n{terminal['outcome']}: {head.get('model')} on {head.get('deployment')}, "
        f"{usage.get('input')} tokens in, {usage.get('output')} out, "
        f"{'unknown cost' if cost is None else f'{Decimal(cost).scaleb(-12):f} USD'}",
        file=sys.stderr,
    )
    return 0 if terminal["outcome"] == "COMPLETED" else 1


if __name__ == "__main__":
    sys.exit(main())
