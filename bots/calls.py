"""Asking a worker for something and waiting for the answer: a Celery task there, a notice back.

1. The process that asks puts a task on the queue ``bots`` with the id of the call and the channel it listens to.
2. A worker does the work and sends the reply as a notice, inside the transaction that stores what was done, so that an answer
   and what it answers for are one. A long reply waits in the table ``bots_reply``, and the notice only says so.
3. Silence has to be understood: every :data:`PATIENCE` seconds the asker sends the question "who is at it?" to all workers, and
   the one at work says so. A message that no worker has taken within :data:`QUEUE_TIME` expires, and is surely not done later.

So the asker learns within a bounded time, at no cost for the ordinary call, which of these is true: done, still running, failed on
the way, never begun, or lost with its worker.
"""

from __future__ import annotations

import base64
import math
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from kombu.exceptions import OperationalError

from bots.messages import send
from bots.turns import Turns
from bots.workers import free_threads
from fhirstore.api import FhirError, connection, listen, log_failure, notify

QUEUE_TIME: Final = 10.0
"""Seconds a call may wait for a free worker."""

CLOCK_TRUST: Final = 60.0
"""Seconds in which the clocks of two machines do not drift apart by anything that matters."""

PATIENCE: Final = 2.0
"""Seconds of silence after which the asker asks who is at it."""

QUESTIONS: Final = "bots_questions"
"""Channel of "who is at it?"; the payload is the call."""

INLINE: Final = 7_000
"""Bytes of a reply that travel in the notice itself (PostgreSQL takes 7999)."""

TAKEN: Final = "bots_taken"
"""Channel on which an asker says how many bytes of parts it has taken; the payload is the call and the number."""

WINDOW: Final = 1024 * 1024
"""Bytes of parts that may be on their way."""

INLINE_PART: Final = 5_000
"""Bytes of a part that travel in the notice itself, as base64."""

MAX_MESSAGE: Final = 256 * 1024
"""Bytes of a body that travel in the message."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The way back to whoever waits for a call."""

    call_id: str
    channel: str

    def notice(self, body: bytes) -> tuple[str, str] | None:
        """Channel and payload of the notice that is the reply; None if it is too long for one."""
        return (self.channel, f"{self.call_id}={body.decode()}") if len(body) <= INLINE else None

    def send_part(self, kind: str, body: bytes) -> None:
        """Send a part ahead of the reply: `kind` is one letter. Parts arrive in order."""
        if len(body) <= INLINE_PART:
            notify(self.channel, f"{self.call_id}>{kind}{base64.b64encode(body).decode()}")
            return
        number = uuid.uuid4().hex
        with connection() as session:
            session.execute("INSERT INTO bots_reply (id, body) VALUES (%s, %s)", (number, body))
        notify(self.channel, f"{self.call_id}#{kind}{number}")

    def send(self, body: bytes) -> None:
        """Send the reply with the commit of the current transaction, at once outside of one."""
        notice = self.notice(body)
        if notice is None:
            with connection() as session:
                session.execute("INSERT INTO bots_reply (id, body) VALUES (%s, %s)", (self.call_id, body))
            notice = self.channel, f"{self.call_id}@"
        notify(*notice)


Work = Callable[[bytes, Reply], None]
"""Does what the body asks for and sends the reply, in the transaction of its results if it has any."""


class NoAnswerError(Exception):
    """Nobody did it, or nobody is left to tell; the message is a sentence for the caller."""


@dataclass(slots=True)
class _Call:
    """A call this process waits for."""

    answered: threading.Event = field(default_factory=threading.Event)
    reply: bytes | None = None
    is_stored: bool = False
    has_failed: bool = False
    is_running: bool = False
    """A worker has said so since the last question."""
    parts: queue.SimpleQueue[tuple[str, str] | None] | None = None
    """What has come of a reply that comes in parts; None is its end."""


_calls: dict[str, _Call] = {}
_running: dict[str, str] = {}
"""Calls this process works on, with the channel that waits for them."""


# --- the side that asks ----------------------------------------------------------------------------------------------


def ask(task: Any, body: bytes, *, what: str, project: str) -> bytes:
    """Let a worker do something; returns its reply.

    Args:
        task: the Celery task that calls :func:`work`.
        body: UTF-8 text for the worker.
        what: subject of the sentences in errors, for example ``The Bot was not run``.
        project: that asks; projects take turns.

    Raises NoAnswerError.
    """
    channel = _inbox.channel()
    call_id = uuid.uuid4().hex
    call = _calls[call_id] = _Call()
    try:
        try:
            expires = clock.time() + QUEUE_TIME
            send(task, "bots", call_id, channel, expires, _sent(call_id, body), project)
        except (OperationalError, OSError) as error:
            raise NoAnswerError(f"{what}: the message broker cannot be reached") from error
        patience = _Patience(call_id, call, what)
        while not call.answered.wait(PATIENCE):
            patience.lasts()
        return _reply_of(call_id, call, what)
    finally:
        del _calls[call_id]


def ask_in_parts(
    task: Any, body: bytes, *, what: str, project: str, call_id: str
) -> Generator[tuple[str, bytes] | bytes | None]:
    """The same for work that sends parts before its reply: yields ``(kind, body)`` of each part, None in times of silence, and at
    the end the reply. The worker sends no more than :data:`WINDOW` bytes ahead of what was taken here.

    Args:
        task, body, what, project: as for :func:`ask`.
        call_id: a new ``uuid4().hex``.

    Raises NoAnswerError.
    """
    channel = _inbox.channel()
    parts: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
    call = _calls[call_id] = _Call(parts=parts)
    try:
        try:
            expires = clock.time() + QUEUE_TIME
            send(task, "bots", call_id, channel, expires, _sent(call_id, body), project)
        except (OperationalError, OSError) as error:
            raise NoAnswerError(f"{what}: the message broker cannot be reached") from error
        patience = _Patience(call_id, call, what)
        taken = 0
        while True:
            try:
                heard = parts.get(timeout=PATIENCE)
            except queue.Empty:
                patience.lasts()
                yield None
                continue
            if heard is None:
                yield _reply_of(call_id, call, what)
                return
            kind, text = heard
            part = _stored_reply(text[1:]) if kind == "#" else base64.b64decode(text[1:])
            yield text[0], part
            taken += len(part)
            if taken >= WINDOW // 8:
                notify(TAKEN, f"{call_id}{taken}")
                taken = 0
    finally:
        del _calls[call_id]


def _reply_of(call_id: str, call: _Call, what: str) -> bytes:
    if call.has_failed:
        raise NoAnswerError(f"{what} to its end: a fault of the server, whose log tells more")
    return _stored_reply(call_id) if call.is_stored else call.reply or b""


def _sent(call_id: str, body: bytes) -> str:
    """The body as the message carries it: a large one waits in the table, since brokers bound their messages (RabbitMQ: 16 MB)."""
    if len(body) <= MAX_MESSAGE:
        return body.decode()
    with connection() as session:
        session.execute("INSERT INTO bots_reply (id, body) VALUES (%s, %s)", (call_id, body))
    return ""


class _Patience:
    """What silence about a call means."""

    def __init__(self, call_id: str, call: _Call, what: str) -> None:
        self._call_id, self._call, self._what = call_id, call, what
        self._expired = time.monotonic() + QUEUE_TIME
        self._asked, self._silences, self._has_begun = 0.0, 0, False

    def lasts(self) -> None:
        """Nothing was heard for :data:`PATIENCE`; raises NoAnswerError as soon as it is sure that nothing will be."""
        if self._call.is_running:
            self._silences, self._has_begun = 0, True
        elif self._asked:
            self._silences += 1
            if self._has_begun and self._silences == 2:
                raise NoAnswerError(f"{self._what} to its end: the worker at it has stopped")
            if not self._has_begun and self._asked > self._expired:
                raise NoAnswerError(f"{self._what}: no worker answered within {QUEUE_TIME:.0f} s")
        self._call.is_running, self._asked = False, time.monotonic()
        notify(QUESTIONS, self._call_id)


def _stored_reply(call_id: str) -> bytes:
    with connection() as session:
        row = session.execute("DELETE FROM bots_reply WHERE id = %s RETURNING body", (call_id,)).fetchone()
    if row is None:
        raise NoAnswerError("The answer was lost: the database was restarted in between")
    return bytes(row[0])


class _Inbox:
    """The channel on which this process hears replies; another one after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel = ""
        self._process = 0
        self._listening = threading.Event()

    def channel(self) -> str:
        """Return the channel's name; by then it is listened to."""
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():
                    self._listening.clear()
                    self._channel = f"bots_reply_{uuid.uuid4().hex}"
                    listen(self._channel, self._receive, self._listening.set)
                    self._process = os.getpid()
        if not self._listening.wait(5):
            with (
                connection()
            ):  # opens the pool, and with it the listener, if this process has not used it yet
                self._listening.wait(5)
        return self._channel

    @staticmethod
    def _receive(payload: str) -> None:
        call = _calls.get(payload[:32])
        if call is None:
            return
        kind, text = payload[32], payload[33:]
        if kind == "~":
            call.is_running = True
            return
        if kind in ">#":
            call.is_running = True
            if call.parts is not None:
                call.parts.put((kind, text))
            return
        call.is_stored, call.has_failed = kind == "@", kind == "!"
        call.reply = text.encode()
        call.answered.set()
        if call.parts is not None:
            call.parts.put(None)


_inbox = _Inbox()


class _Clock:
    """The database's clock, asked once in :data:`CLOCK_TRUST` and counted on from there by this machine's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = -math.inf
        self._zero = time.time() - time.monotonic()

    def time(self) -> float:
        """Seconds since 1970; while the database is away by the last that it said."""
        if time.monotonic() - self._asked > CLOCK_TRUST:
            with self._lock:
                if time.monotonic() - self._asked > CLOCK_TRUST:
                    self._ask()
        return self._zero + time.monotonic()

    def _ask(self) -> None:
        try:
            with connection() as session:
                begun = time.monotonic()
                row = session.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
            if row is not None:
                self._zero = row[0] - (begun + time.monotonic()) / 2
        except (
            FhirError,
            psycopg.Error,
        ) as error:  # what needs the clock needs the database, and will say so
            log_failure("asking for the time", error)
        self._asked = time.monotonic()


clock: Final = _Clock()
"""Of this process."""

turns: Final = Turns(free_threads)
"""Of this process."""


# --- the side that works ---------------------------------------------------------------------------------------------


def work(call_id: str, channel: str, expires: float, body: str, project: str, do: Work) -> None:
    """Do what a call asks for, in a worker, unless it has expired; when it is the project's turn.

    Args:
        call_id, channel, expires, body, project: as the task received them.
        do: the work.
    """
    turns.take(project, lambda: _work(call_id, channel, expires, body, do))


def _work(call_id: str, channel: str, expires: float, body: str, do: Work) -> None:
    if clock.time() > expires:
        return
    _running[call_id] = channel
    try:
        do(body.encode() or _stored_reply(call_id), Reply(call_id, channel))
    except Exception as error:  # noqa: BLE001  whatever it is (the database, a fault of ours): somebody waits to hear of it
        log_failure(f"call {call_id}", error)
        notify(channel, f"{call_id}!")
    finally:
        del _running[call_id]


class Parts:
    """Sends a call's parts, no faster than they are taken.

    Args:
        reply: the way back.
    """

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._ahead = 0
        self._changed = threading.Condition()

    def send(self, kind: str, body: bytes, is_over: Callable[[], bool]) -> None:
        """Send a part once there is room for it; leave it out if the call `is_over` before."""
        with self._changed:
            while self._ahead and self._ahead + len(body) > WINDOW:
                if is_over():
                    return
                self._changed.wait(0.5)
            self._ahead += len(body)
        self._reply.send_part(kind, body)

    def __enter__(self) -> Parts:
        _parts[self._reply.call_id] = self
        return self

    def __exit__(self, *_: object) -> None:
        del _parts[self._reply.call_id]

    def taken(self, count: int) -> None:
        """The asker has taken `count` bytes."""
        with self._changed:
            self._ahead -= count
            self._changed.notify()


_parts: dict[str, Parts] = {}


def answer_questions() -> None:
    """Let this process answer "who is at it?" and hear what was taken from now on; every worker calls it once."""
    listen(QUESTIONS, _answer_question)
    listen(TAKEN, _note_taken)


def _note_taken(payload: str) -> None:
    parts = _parts.get(payload[:32])
    if parts is not None:
        parts.taken(int(payload[32:]))


def _answer_question(call_id: str) -> None:
    channel = _running.get(call_id)
    if channel is not None:
        notify(channel, f"{call_id}~")


def forget_old_replies() -> None:
    """Drop replies nobody has fetched: their askers are gone."""
    with connection() as session:
        session.execute("DELETE FROM bots_reply WHERE created < now() - interval '20 minutes'")
