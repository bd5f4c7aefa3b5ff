"""Messages between processes by PostgreSQL's LISTEN and NOTIFY: for invalidating caches and ringing bells.

One thread and one connection per process listen. A notice can be lost while the connection is away; ``on_reset`` is
called whenever listening (re)starts, so that whoever caches can drop everything. The thread starts with the store's
first use of the database, so a process that never reads never listens.
"""

from __future__ import annotations

import logging
import random
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg
from psycopg import sql

from fhirstore import database

logger = logging.getLogger(__name__)

Callback = Callable[[str], None]

_listeners: dict[str, list[tuple[Callback, Callable[[], None] | None]]] = {}
_lock = threading.Lock()
_listener: _Listener | None = None


def listen(channel: str, callback: Callback, on_reset: Callable[[], None] | None = None) -> None:
    """Call ``callback(payload)`` in the listening thread for each notice on ``channel``.

    Args:
        channel: its name, at most 63 bytes.
        callback: must be quick; its errors are logged.
        on_reset: called each time listening has (re)started: notices before that may be lost.
    """
    with _lock:
        _listeners.setdefault(channel, []).append((callback, on_reset))
        if _listener is not None:
            _listener.wake()


def notify(channel: str, payload: str) -> None:
    """Send a notice to all processes, this one included; inside a transaction it goes out with the commit.

    Args:
        channel: its name.
        payload: at most 7999 bytes.
    """
    with database.connection() as connection:
        connection.execute("SELECT pg_notify(%s, %s)", [channel, payload])


class _Listener(threading.Thread):
    """Waits for notices on its own connection until stopped; reconnects with growing pauses."""

    def __init__(self) -> None:
        super().__init__(name="fhirstore-notices", daemon=True)
        self._parameters = database.connection_parameters()
        self._bell, self._rope = socket.socketpair()
        self._rope.setblocking(False)
        self._stopping = False

    def wake(self) -> None:
        """Make the thread look for new channels, or for the end."""
        # Full: it is awake anyway. Closed: it has ended.
        with suppress(OSError):
            self._rope.send(b"!")

    def stop(self) -> None:
        """End the thread and wait for it, unless one of its listeners hangs."""
        self._stopping = True
        self.wake()
        if threading.current_thread() is not self:
            self.join(5)

    def run(self) -> None:
        pause = 0.0
        try:
            while not self._stopping:
                try:
                    with psycopg.connect(**self._parameters) as connection:
                        pause = 0.0
                        self._follow(connection)
                except psycopg.OperationalError:
                    pause = min(5.0, max(0.1, pause * 2))
                    logger.warning("Lost the connection for notices; trying again in about %.1f s.", pause)
                    self._rest(pause * random.uniform(0.8, 1.2))  # noqa: S311  spreads reconnects, no secret
        finally:
            self._bell.close()
            self._rope.close()

    def _rest(self, seconds: float) -> None:
        """Sleep, but wake up for the end."""
        self._bell.settimeout(seconds)
        with suppress(TimeoutError):
            self._bell.recv(64)

    def _follow(self, connection: psycopg.Connection) -> None:
        """Listen on all channels and hand out notices until stopped or disconnected."""
        channels: set[str] = set()
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(self._bell.fileno(), select.POLLIN)
        while not self._stopping:
            for channel in _listeners.keys() - channels:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                channels.add(channel)
                for _, on_reset in list(_listeners[channel]):
                    if on_reset is not None:
                        _guarded(on_reset)
            for notice in connection.notifies(timeout=0):
                for callback, _ in list(_listeners.get(notice.channel, ())):
                    _guarded(callback, notice.payload)
            if any(fd == self._bell.fileno() for fd, _ in poll.poll()):
                self._bell.recv(64)


def _guarded(callback: Callable[..., None], *arguments: str) -> None:
    try:
        callback(*arguments)
    except Exception:
        logger.exception("A listener failed.")


def _start() -> None:
    global _listener
    with _lock:
        _listener = _Listener()
        _listener.start()


def _stop() -> None:
    global _listener
    with _lock:
        listener, _listener = _listener, None
    if listener is not None and listener.is_alive():
        listener.stop()


database.follow(_start, _stop)
