"""The broker this run is configured with: PostgreSQL unless CELERY_BROKER_URL names another."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.conf import settings
from django.db import connection as django_connection
from kombu import Connection, Consumer, Exchange, Message, Producer, Queue

from console.celery import app

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def queue() -> Iterator[Queue]:
    """A queue of its own for each test."""
    name = f"test-{uuid.uuid4().hex}"
    made = Queue(name, Exchange(name), routing_key=name)
    yield made
    with app.connection_for_write() as connection:
        made(connection.default_channel).delete()


def publish(queue: Queue, *bodies: Any) -> None:
    with app.connection_for_write() as connection:
        producer = Producer(connection)
        for body in bodies:
            producer.publish(body, routing_key=queue.name, exchange="", declare=[queue], serializer="json")


@contextmanager
def consuming(
    connection: Connection, queue: Queue, *, ack: bool = True, prefetch: int = 0
) -> Iterator[list[Any]]:
    got: list[Any] = []

    def take(body: Any, message: Message) -> None:
        got.append(body)
        if ack:
            message.ack()

    channel = connection.default_channel
    with Consumer(channel, [queue], callbacks=[take], accept=["json"], prefetch_count=prefetch or None):
        yield got


def drain(connection: Connection, got: list[Any], count: int) -> None:
    """Consume until `count` messages have come."""
    for _ in range(100):
        if len(got) >= count:
            return
        try:
            connection.drain_events(timeout=0.3)
        except TimeoutError:
            continue
    raise AssertionError(f"{len(got)} of {count} messages came")


def has_more(connection: Connection) -> bool:
    """Whether anything comes in three short looks."""
    for _ in range(3):
        try:
            connection.drain_events(timeout=0.05)
        except TimeoutError:
            continue
        return True
    return False


def test_messages_arrive_in_order_and_once(queue: Queue) -> None:
    publish(queue, *range(50))
    with app.connection_for_read() as connection, consuming(connection, queue) as got:
        drain(connection, got, 50)
        assert not has_more(connection)
    assert got == list(range(50))


def test_a_sleeping_consumer_is_woken(queue: Queue) -> None:
    with app.connection_for_read() as connection, consuming(connection, queue) as got:
        sender = threading.Timer(0.2, publish, [queue, "wake up"])
        sender.start()
        connection.drain_events(timeout=30)
        sender.join()
    assert got == ["wake up"]


def test_consumers_share_the_messages(queue: Queue) -> None:
    with (
        app.connection_for_read() as one,
        app.connection_for_read() as two,
        consuming(one, queue, prefetch=1) as first,
        consuming(two, queue, prefetch=1) as second,
    ):
        publish(queue, *range(20))
        while len(first) + len(second) < 20:
            has_more(one)
            has_more(two)
    assert sorted(first + second) == list(range(20))
    assert first
    assert second


def test_no_more_is_taken_than_may_be_prefetched_and_the_rest_is_given_back(queue: Queue) -> None:
    publish(queue, *range(10))
    with app.connection_for_read() as connection, consuming(connection, queue, ack=False, prefetch=3) as got:
        drain(connection, got, 3)
        assert not has_more(connection)
        assert got == [0, 1, 2]
    with app.connection_for_read() as connection, consuming(connection, queue) as again:
        drain(connection, again, 10)
    assert sorted(again) == list(range(10))


def test_an_acknowledgement_from_another_thread_lets_the_next_message_in(queue: Queue) -> None:
    publish(queue, "first", "second")
    held: list[Message] = []
    bodies: list[Any] = []

    def take(body: Any, message: Message) -> None:
        bodies.append(body)
        held.append(message)

    with (
        app.connection_for_read() as connection,
        Consumer(connection.default_channel, [queue], callbacks=[take], accept=["json"], prefetch_count=1),
    ):
        drain(connection, bodies, 1)
        if settings.CELERY_BROKER_URL.startswith("postgresql"):
            threading.Timer(0.2, held[0].ack).start()
        else:  # other clients allow acknowledgements from their own thread only; Celery sees to that
            held[0].ack()
        drain(connection, bodies, 2)
        held[1].ack()
    assert bodies == ["first", "second"]


def test_a_publisher_survives_a_cut_connection() -> None:
    if not settings.CELERY_BROKER_URL.startswith("postgresql"):
        return  # how RabbitMQ and Redis lose connections is their clients' affair

    @app.task(name="tests.ping")
    def ping() -> None: ...

    ping.apply_async(queue="system", expires=0.001)
    with django_connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = 'fhirbots broker' AND datname = current_database()"
        )
        assert cursor.fetchone()[0] > 0
    ping.apply_async(queue="system", expires=0.001)
