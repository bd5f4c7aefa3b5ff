"""The default message broker: a kombu transport over the project's own PostgreSQL.

A message is a row of the UNLOGGED table ``console_message`` and a NOTIFY on the channel of its queue; a consumer sleeps in
``select`` until the bell rings, then takes what it may with ``DELETE … SKIP LOCKED … RETURNING``. Nothing polls.
Delivery is at most once: a message is gone when it is taken, and the server empties the table after a crash. That is
enough here, because a message is only a doorbell for rows that are safe in ordinary tables (shared design §4).

Selected by the broker URL ``postgresql://default``, which means the database that Django calls "default".
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import weakref
from queue import Empty
from typing import Any, LiteralString

import orjson
import psycopg
from django.db import connections
from kombu.transport import TRANSPORT_ALIASES, virtual
from psycopg import sql

logger = logging.getLogger(__name__)

TRANSPORT_ALIASES["postgresql"] = "console.broker:Transport"

PUT = """
WITH message AS (INSERT INTO console_message (queue, body) VALUES (%(queue)s, %(body)s))
SELECT pg_notify('broker.' || %(queue)s, '')
"""
TAKE = """
DELETE FROM console_message WHERE id = ANY(ARRAY(
    SELECT id FROM console_message WHERE queue = ANY(%s::text[]) ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED))
RETURNING id, queue, body
"""
BATCH = 32
"""Messages taken at once by a consumer without a prefetch limit."""


class QoS(virtual.QoS):
    """Prefetch bookkeeping that wakes the consumer when an acknowledgement makes room for another message."""

    def ack(self, delivery_tag: str) -> None:
        """Forget the message; called from the threads that run tasks."""
        full = not self.can_consume()
        super().ack(delivery_tag)
        transport: Any = self.channel.connection
        if full and transport is not None:  # None once the channel is closed
            transport.wake()

    def restore_unacked(self) -> list[Any]:
        """Give back what was taken but not begun. What cannot be given back is lost, and the sweeps find its rows.

        Kombu would write those messages into a file in the temporary folder: they may hold patient data.
        """
        lost: Any = super().restore_unacked()
        if lost:
            logger.warning("%d messages could not be given back to the broker.", len(lost))
        return []


class Channel(virtual.Channel):
    """Queues as rows; exchanges and bindings live in the process, as every publisher declares the queue it uses."""

    QoS = QoS
    body_encoding = "utf-8"
    connection: Transport

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str]:
        """The body is JSON text already; a message that is given back has it as bytes."""
        return body.decode() if isinstance(body, bytes) else body, encoding or "utf-8"

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.connection.execute(PUT, {"queue": queue, "body": orjson.dumps(message).decode()})

    def _take(self, queues: list[str], limit: int) -> list[tuple[int, str, str]]:
        names = f"{{{','.join(queues)}}}"  # psycopg takes longer to make an array than all the rest of this
        return sorted(self.connection.execute(TAKE, (names, limit)).fetchall())

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        for _id, _queue, body in self._take([queue], 1):
            return orjson.loads(body)  # type: ignore[no-any-return]
        raise Empty

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Hand over the waiting messages of the consumed queues; raises ``queue.Empty`` when there are none."""
        room: int | None = self.qos.can_consume_max_estimate()  # None: no limit
        limit = BATCH if room is None else room
        rows = self._take(self._active_queues, limit) if self._active_queues and limit else []
        if not rows:
            raise Empty
        self.connection.may_hold_more = len(rows) == limit
        for _id, queue, body in rows:
            (callback or self.connection._deliver)(orjson.loads(body), queue)

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Consume from `queue`, and listen for its bell from now on."""
        self.connection.listen(queue)
        return super().basic_consume(queue, *args, **kwargs)

    def _size(self, queue: str) -> int:
        row = self.connection.execute(
            "SELECT count(*) FROM console_message WHERE queue = %s", (queue,)
        ).fetchone()
        return int(row[0]) if row else 0

    def _purge(self, queue: str) -> int:
        return self.connection.execute("DELETE FROM console_message WHERE queue = %s", (queue,)).rowcount


class Transport(virtual.Transport):
    """One kombu connection: one psycopg connection, opened at first use and again after an error."""

    Channel = Channel
    driver_type = driver_name = "postgresql"
    default_port = 5432
    connection_errors = (
        *virtual.Transport.connection_errors,
        psycopg.OperationalError,
        psycopg.InterfaceError,
    )
    channel_errors = (*virtual.Transport.channel_errors, psycopg.Error)
    client: Any

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._session: psycopg.Connection[tuple[Any, ...]] | None = None
        self._bells: set[str] = set()
        self.may_hold_more = True
        """There may be messages whose bell has rung already."""
        self._lock = threading.RLock()
        self._bell, self._rope = socket.socketpair()
        self._rope.setblocking(False)
        for end in (self._bell, self._rope):  # kombu drops broken connections without closing them
            weakref.finalize(self, end.close)
        _transports.add(self)

    def driver_version(self) -> str:
        """The version of the client library."""
        return psycopg.__version__

    def establish_connection(self) -> Any:
        """Connect; raises ``psycopg.OperationalError`` when the database does not answer."""
        self.execute("SELECT 1")
        return super().establish_connection()

    def execute(self, statement: LiteralString, parameters: Any = None) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run one statement; after an error the next call opens a new connection (kombu decides about retries)."""
        with self._lock:
            if self._session is None or self._session.closed:
                self._session = self._connect()
            return self._session.execute(statement, parameters)

    def listen(self, queue: str) -> None:
        """Let the bell of `queue` wake this connection, also after a reconnect."""
        with self._lock:
            self._bells.add(f"broker.{queue}")
            if self._session is not None and not self._session.closed:
                self._session.execute(sql.SQL("LISTEN {}").format(sql.Identifier(f"broker.{queue}")))

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        parameters = connections["default"].get_connection_params()
        del parameters["cursor_factory"]
        parameters |= {"application_name": "fhirbots broker", "connect_timeout": 3, "autocommit": True}
        session: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(**parameters)
        session.prepare_threshold = 1
        session.add_notify_handler(lambda _notification: self.wake())  # those that come with another answer
        session.execute("SET statement_timeout = '10s'")
        for bell in self._bells:
            session.execute(sql.SQL("LISTEN {}").format(sql.Identifier(bell)))
        return session

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Sleep until a bell rings, unless the last look left something behind, and deliver what is waiting.

        Raises ``TimeoutError`` when nothing was there: after `timeout` seconds, or earlier after a false alarm.
        """
        cycle: Any = self.cycle
        if self.may_hold_more:
            self.may_hold_more = False
            with contextlib.suppress(Empty):
                cycle.get(self._deliver)
                return
        self._sleep(timeout)
        try:
            cycle.get(self._deliver)
        except Empty:
            raise TimeoutError from None

    def _sleep(self, timeout: float | None) -> None:
        session = self._session
        if session is None or session.closed:
            raise psycopg.OperationalError("the broker's connection is closed")
        poll = select.poll()
        poll.register(session.fileno(), select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        wait = None if timeout is None else int(timeout * 1000)
        ready = {descriptor for descriptor, _event in poll.poll(0 if _stopping.is_set() else wait)}
        if self._bell.fileno() in ready:
            self._bell.recv(4096)
        if session.fileno() in ready:
            with self._lock:
                session.pgconn.consume_input()  # raises OperationalError when the server has gone
                while session.pgconn.notifies():
                    pass

    def wake(self) -> None:
        """Make a sleeping `drain_events` look again; any thread may call it."""
        with contextlib.suppress(OSError):  # the bell rings already, or the transport is closed
            self._rope.send(b"!")

    def close_connection(self, connection: Any) -> None:
        """Give back the messages that were taken but not begun, then close."""
        super().close_connection(connection)
        if self._session is not None:
            self._session.close()
        self._bell.close()
        self._rope.close()


_transports: weakref.WeakSet[Transport] = weakref.WeakSet()
_stopping = threading.Event()


def interrupt() -> None:
    """Let no consumer of this process sleep any more: the worker shall stop at once, not at its next look."""
    _stopping.set()
    for transport in list(_transports):
        transport.wake()
