"""The store's own connections to PostgreSQL: a pool per process, transactions bound to the thread.

The pool follows Django's ``DATABASES["default"]`` and so pytest's test database too. Django's own connection is a
different one: what must be atomic with a resource has to be written through :func:`connection`.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from django.conf import settings
from django.db import connections
from psycopg_pool import ConnectionPool, PoolTimeout

from fhirstore import errors

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

WAIT: Final = 10.0
"""Seconds a caller waits for a free connection."""


class DatabaseUnavailableError(errors.FhirError):
    """503: no connection could be had, or it broke on the way."""

    def __init__(self) -> None:
        text = "The database cannot be reached at the moment. Try again shortly."
        super().__init__(errors.outcome(None, [errors.issue(text, code="transient")]), {"Retry-After": "5"})

    @property
    def status(self) -> int:
        return 503


class _Local(threading.local):
    """What belongs to this thread: the connection of its transaction and what waits for the commit."""

    connection: Connection | None = None
    callbacks: list[Callable[[], None]] = []  # replaced by each transaction
    before_use: Callable[[], None] | None = None
    proof: Callable[[], bool] | None = None


_local = _Local()
_lock = threading.RLock()
_pool: ConnectionPool[Connection] | None = None
_pool_database: str | None = None
_opened: list[Callable[[], None]] = []
_closing: list[Callable[[], None]] = []
_abandoned: list[Any] = []
"""Pools of the parent process: kept, because collecting them would close the parent's connections."""


def follow(opened: Callable[[], None], closing: Callable[[], None]) -> None:
    """Register what lives as long as the pool: called after it opened (also in another database), before it closes."""
    with _lock:
        _opened.append(opened)
        _closing.append(closing)
        if _pool is not None:
            opened()


def connection_parameters() -> dict[str, Any]:
    """Django's settings of the database as arguments for :func:`psycopg.connect`."""
    parameters: dict[str, Any] = connections["default"].get_connection_params()
    for django_only in ("cursor_factory", "context", "prepare_threshold", "pool"):
        parameters.pop(django_only, None)
    timeout = int(getattr(settings, "DATABASE_STATEMENT_TIMEOUT", 30) * 1000)
    # Compiling plans (JIT) costs more than any of our queries takes.
    options = f"-c timezone=UTC -c jit=off -c statement_timeout={timeout}"
    given = parameters.get("options")
    return {
        "connect_timeout": 5,
        "keepalives_idle": 30,
        **parameters,
        "options": f"{given} {options}" if given else options,
        "application_name": "fhirstore",
        "autocommit": True,
    }


def _is_stale(connection: Connection) -> bool:
    """True if the server has closed the connection: an idle one has nothing to read but its end."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _configure(connection: Connection) -> None:
    # One statement per resource type and shape is kept prepared.
    connection.prepared_max = 500


def _current_pool() -> ConnectionPool[Connection]:
    global _pool, _pool_database
    name: str = connections.settings["default"]["NAME"]
    if _pool is not None and _pool_database == name:
        return _pool
    with _lock:
        if _pool is not None and _pool_database == name:
            return _pool
        close()
        _pool = ConnectionPool(
            kwargs=connection_parameters(),
            min_size=1,
            max_size=int(
                getattr(settings, "DATABASE_POOL_SIZE", 0) or os.environ.get("DATABASE_POOL_SIZE") or 10
            ),
            timeout=WAIT,
            max_idle=300,
            configure=_configure,
            reconnect_timeout=5,  # then whoever asks next makes the pool try again
            name="fhirstore",
            open=True,
        )
        _pool_database = name
        for callback in _opened:
            callback()
        return _pool


def close() -> None:
    """Close all connections of this process; the next use opens them again."""
    global _pool, _pool_database
    with _lock:
        if _pool is None:
            return
        for callback in _closing:
            callback()
        pool, _pool, _pool_database = _pool, None, None
        pool.close()


def _after_fork() -> None:
    global _pool, _pool_database, _local, _lock
    _abandoned.append((_pool, _local.connection))
    _pool = _pool_database = None
    _lock, _local = threading.RLock(), _Local()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(close)


def _take(pool: ConnectionPool[Connection]) -> Connection:
    """A living connection. The pool's own check would pause between one dead connection and the next."""
    while True:
        try:
            connection = pool.getconn()
        except PoolTimeout as error:
            raise DatabaseUnavailableError from error
        if not _is_stale(connection):
            return connection
        connection.close()
        pool.putconn(connection)


@contextmanager
def _borrowed() -> Iterator[Connection]:
    """A connection of the pool; what PostgreSQL reports becomes the store's errors."""
    pool = _current_pool()
    connection = _take(pool)
    try:
        yield connection
    except psycopg.errors.QueryCanceled as error:
        raise errors.FhirError(
            errors.outcome(
                "server-timeout",
                [errors.issue("The database took too long. Narrow the request.", code="timeout")],
            )
        ) from error
    except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
        raise errors.conflict("Others changed the same resources at the same time. Try again.") from error
    except psycopg.OperationalError as error:
        if connection.closed:
            raise DatabaseUnavailableError from error
        raise
    finally:
        pool.putconn(connection)


@contextmanager
def connection() -> Iterator[Connection]:
    """The connection of the thread's transaction, else one from the pool in autocommit mode.

    Raises:
        DatabaseUnavailableError: the database is away.
        FhirError: 504 after the statement timeout, 409 after a deadlock.
    """
    current = _local.connection
    if current is not None:
        if _local.before_use is not None:
            _local.before_use()
        yield current
    else:
        with _borrowed() as borrowed:
            yield borrowed


@contextmanager
def transaction() -> Iterator[Connection]:
    """A transaction of this thread; inside another one it joins that. Any exception rolls the whole of it back.

    Raises: as :func:`connection`.
    """
    if _local.connection is not None:
        with _prompt():
            yield _local.connection
        return
    callbacks: list[Callable[[], None]] = []
    proof: Callable[[], bool] | None = None
    try:
        with _borrowed() as borrowed:
            borrowed.execute("BEGIN")
            _local.connection = borrowed
            _local.callbacks = callbacks
            _local.proof = None
            try:
                yield borrowed
            except BaseException:
                if not borrowed.closed:
                    borrowed.execute("ROLLBACK")
                raise
            finally:
                _local.connection = None
            proof = _local.proof
            # PostgreSQL answers COMMIT with ROLLBACK when a statement had failed and its error was swallowed.
            if borrowed.execute("COMMIT").statusmessage == "ROLLBACK":
                raise psycopg.errors.InFailedSqlTransaction("a statement of this transaction failed before")
    except DatabaseUnavailableError:
        if proof is None or not proof():
            raise
    for callback in callbacks:
        _call(callback)


def prove_by(proof: Callable[[], bool]) -> None:
    """Say how to find out whether the transaction of this thread was committed, should the connection break at its COMMIT.

    Whoever is told 503 tries again, MedplumClient by itself: what was committed must not be reported as failed.
    """
    _local.proof = proof


@contextmanager
def before_use(callback: Callable[[], None]) -> Iterator[None]:
    """Inside, ``callback()`` runs before anything else uses the connection of the current transaction, and at the end.

    For writes that are held back to be sent together. Whoever opens a transaction of his own inside this one uses the
    connection as he likes; there it does not run, and nothing must be held back.
    """
    if _local.connection is None or _local.before_use is not None:
        raise RuntimeError("before_use() needs a transaction, and only one at a time")
    _local.before_use = callback
    try:
        yield
        callback()
    finally:
        _local.before_use = None


@contextmanager
def _prompt() -> Iterator[None]:
    """Send what is held back, and hold nothing back inside."""
    callback = _local.before_use
    if callback is not None:
        callback()
    _local.before_use = None
    try:
        yield
    finally:
        _local.before_use = callback


def may_hold_back() -> bool:
    """True where :func:`before_use` would run its callback."""
    return _local.before_use is not None


def plain_array(values: Iterable[Any]) -> str:
    """A PostgreSQL array of what needs no quotes, as text; many times cheaper than what psycopg makes of a list."""
    return "{" + ",".join(map(str, values)) + "}"


def in_transaction() -> bool:
    """True inside :func:`transaction` of this thread."""
    return _local.connection is not None


def on_commit(callback: Callable[[], None]) -> None:
    """Call ``callback`` after the commit of the outermost transaction, at once outside of one.

    Its errors are logged, never raised: the data is committed. After a rollback it is not called.
    """
    if _local.connection is not None:
        _local.callbacks.append(callback)
    else:
        _call(callback)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        logger.exception("A callback after commit failed.")


def lock(*names: str) -> None:
    """Hold the advisory locks ``names`` until the end of the current transaction; waits for them, in one order for all.

    For what has no row to lock yet: two conditional creates with the same condition, for example.
    """
    if _local.connection is None:
        raise RuntimeError("lock() needs a transaction")
    # Ordered by what is locked: whoever wants the same two asks for the same one first.
    _local.connection.execute(
        "SELECT pg_advisory_xact_lock(key) FROM (SELECT DISTINCT hashtextextended(name, 0) AS key"
        " FROM unnest(%s::text[]) AS name ORDER BY key OFFSET 0) AS keys",
        [list(names)],
    )
