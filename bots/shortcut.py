"""The short way of a message when its sender and a worker share a machine: a datagram from one to a thread of the other.

A worker has a Unix socket for each of its queues, beside the embedded database's own, and threads that wait at it. A sender tries
one worker after the other, each in its turn; whenever that does not succeed at once (no worker, a full one, a message too long for
a datagram), the message goes the long way, through the broker and Celery. Both promise the same: it is delivered at most once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import stat
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Final

MAX_MESSAGE: Final = 64 * 1024
"""Bytes of a datagram; what is longer goes the long way."""

KNOWN_FOR: Final = 1.0
"""Seconds for which a sender remembers which workers there are."""


def meeting_place(host: str) -> Path | None:
    """The folder where senders and workers meet whose database has its socket in the folder `host`.

    None if `host` is a name or an address, if others than the folder's owner could put a socket there, or if this is not Linux: only
    there threads that wait for a datagram can be told that none will come.
    """
    if not host.startswith("/") or sys.platform != "linux":
        return None
    try:
        mode = Path(host).stat().st_mode
    except OSError:
        return None
    return None if mode & (stat.S_IWGRP | stat.S_IWOTH) else Path(host)


def _prefix(database: str, queue: str) -> str:
    return f"q{hashlib.sha256(f'{database} {queue}'.encode()).hexdigest()[:10]}."


class Inlet:
    """A worker's end.

    Args:
        folder: the meeting place.
        database, queue: whose messages it takes.

    Raises OSError: there can be no socket in the folder.
    """

    def __init__(self, folder: Path, database: str, queue: str) -> None:
        self._path = folder / f"{_prefix(database, queue)}{secrets.token_hex(3)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(os.fspath(self._path))
            self._path.chmod(0o600)
        except OSError:
            self._socket.close()
            raise
        weakref.finalize(self, self._socket.close)  # not before the last thread has let go of it

    def take(self) -> bytes:
        """Wait for a message; empty when it is closed and all that had come have been taken. Any thread may call it."""
        return self._socket.recv(MAX_MESSAGE)

    def close(self) -> None:
        """Let no more in."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)  # senders are refused, those that wait are woken


class Outlet:
    """A sender's end; threads may share it.

    Args:
        folder: the meeting place.
        database: whose messages these are.
    """

    def __init__(self, folder: Path, database: str) -> None:
        self._folder = folder
        self._database = database
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        weakref.finalize(self, self._socket.close)
        self._lock = threading.Lock()
        self._workers: dict[str, tuple[float, list[str]]] = {}

    def send(self, queue: str, body: bytes) -> bool:
        """Give the message to a worker; False if there is none that takes it at once."""
        if len(body) > MAX_MESSAGE:
            return False
        for path in self._in_turn(queue):
            try:
                self._socket.sendto(body, path)
            except (ConnectionRefusedError, FileNotFoundError, BrokenPipeError):  # killed, or just stopped
                with contextlib.suppress(OSError):
                    Path(path).unlink()
                with self._lock:
                    self._workers.pop(queue, None)
            except OSError:  # it is full
                continue
            else:
                return True
        return False

    def _in_turn(self, queue: str) -> list[str]:
        with self._lock:
            looked, paths = self._workers.get(queue, (0.0, []))
            now = time.monotonic()
            if now - looked > KNOWN_FOR:
                prefix = _prefix(self._database, queue)
                with contextlib.suppress(OSError):
                    paths = [each.path for each in os.scandir(self._folder) if each.name.startswith(prefix)]
                looked = now
            paths = paths[1:] + paths[:1]
            self._workers[queue] = looked, paths
            return paths
