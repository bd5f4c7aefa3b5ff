"""The short way of a message when its publisher and a consumer share a machine: a datagram from one to the other.

Each consumer of a queue has a Unix socket in the folder of the embedded database's own. A publisher sends to one of them, each in its
turn; whenever that does not succeed at once (no consumer, a full one, a message too long for a datagram), the message goes the
long way, through the table (:mod:`console.broker`). Both promise the same: a message is delivered at most once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Final

MAX_MESSAGE: Final = 64 * 1024
"""Bytes of a datagram; what is longer goes through the table."""

KNOWN_FOR: Final = 1.0
"""Seconds for which a publisher remembers which consumers there are."""


def meeting_place(host: str) -> Path | None:
    """The folder where publishers and consumers meet whose database has its socket in the folder `host`.

    None if `host` is a name or an address, or if others than the folder's owner could put a socket there.
    """
    if not host.startswith("/"):
        return None
    try:
        mode = Path(host).stat().st_mode
    except OSError:
        return None
    return None if mode & (stat.S_IWGRP | stat.S_IWOTH) else Path(host)


def _prefix(database: str, queue: str) -> str:
    return f"q{hashlib.sha256(f'{database} {queue}'.encode()).hexdigest()[:10]}."


class Inlet:
    """A consumer's end.

    Args:
        folder: the meeting place.
        database, queue: whose messages it takes.

    Raises OSError: there can be no socket in the folder.
    """

    def __init__(self, folder: Path, database: str, queue: str) -> None:
        self.queue = queue
        self._path = folder / f"{_prefix(database, queue)}{secrets.token_hex(3)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(os.fspath(self._path))
            self._path.chmod(0o600)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """What to wait for messages on."""
        return self._socket.fileno()

    def take(self, limit: int) -> list[bytes]:
        """At most `limit` of the messages that have come."""
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(found) < limit:
                found.append(self._socket.recv(MAX_MESSAGE))
        return found

    def close(self) -> list[bytes]:
        """Take no more; returns the messages nobody has taken."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)  # from now on publishers are refused
        left = self.take(1_000_000)
        self._socket.close()
        return left


class Outlet:
    """A publisher's end; threads may share it.

    Args:
        folder: the meeting place.
        database: whose messages these are.
    """

    def __init__(self, folder: Path, database: str) -> None:
        self._folder = folder
        self._database = database
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._lock = threading.Lock()
        self._consumers: dict[str, tuple[float, list[str]]] = {}

    def send(self, queue: str, body: bytes) -> bool:
        """Give the message to a consumer; False if there is none that takes it at once."""
        if len(body) > MAX_MESSAGE:
            return False
        for path in self._in_turn(queue):
            try:
                self._socket.sendto(body, path)
            except (ConnectionRefusedError, FileNotFoundError):  # it was killed, or has just stopped
                with contextlib.suppress(OSError):
                    Path(path).unlink()
                with self._lock:
                    self._consumers.pop(queue, None)
            except OSError:  # it is full
                continue
            else:
                return True
        return False

    def close(self) -> None:
        """Send no more."""
        self._socket.close()

    def _in_turn(self, queue: str) -> list[str]:
        with self._lock:
            looked, paths = self._consumers.get(queue, (0.0, []))
            now = time.monotonic()
            if now - looked > KNOWN_FOR:
                prefix = _prefix(self._database, queue)
                with contextlib.suppress(OSError):
                    paths = [each.path for each in os.scandir(self._folder) if each.name.startswith(prefix)]
                looked = now
            paths = paths[1:] + paths[:1]
            self._consumers[queue] = looked, paths
            return paths
