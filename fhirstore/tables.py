# ruff: noqa: S608  (built of resource types from the definitions and constants of this module; values are parameters)
"""The tables of the store as functions: find a resource, read its versions, write the next one.

Only :mod:`fhirstore.repository` uses them; it decides who may do what. Each statement carries the project.

The resource type stands in the statements as a literal, so that they are planned for its partition alone; it comes from
the definitions and not from a request. Reads and writes are prepared. ``project IS NOT DISTINCT FROM`` leaves the planner no
other index than the one by id, also before it has any statistics.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any, Final, Literal, cast
from uuid import UUID

import orjson
import psycopg
from django.conf import settings

from fhirstore import changes, database, errors
from fhirstore.database import plain_array
from fhirstore.definitions import registry
from fhirstore.search.sql import StatisticsCache, TermStatistics, read_statistics
from fhirstore.search.terms import Hasher, Rows, canonical_uuid

# --- versions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of a resource.

    Attributes:
        content: its JSON in UTF-8 with the whole ``meta``; for deletions a stub with ``meta`` only.
        deleted: the version is a deletion.
        interaction: what made the version.
    """

    type: str
    id: str
    version_id: str
    last_updated: datetime
    content: bytes
    deleted: bool = False
    interaction: Literal["create", "update", "delete"] = "update"

    @property
    def resource(self) -> dict[str, Any]:
        """The content, parsed anew at each call."""
        return cast(dict[str, Any], orjson.loads(self.content))


@dataclass(frozen=True, slots=True)
class Current:
    """A resource's row and its current version."""

    rid: int
    stored: Stored


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Moment:
    """When a version is made, to the millisecond, and the version id that carries it."""

    milliseconds: int
    version_id: str

    @classmethod
    def now(cls) -> Moment:
        """The present."""
        milliseconds = time.time_ns() // 1_000_000
        return cls(milliseconds, uuid7(milliseconds))

    @classmethod
    def after(cls, earlier: datetime) -> Moment:
        """The present, but later than the version before, whose clock may be ahead: versions order by time."""
        milliseconds = max(time.time_ns() // 1_000_000, (earlier - _EPOCH) // timedelta(milliseconds=1) + 1)
        return cls(milliseconds, uuid7(milliseconds))

    @property
    def last_updated(self) -> datetime:
        """The time as ``meta.lastUpdated`` and the tables have it."""
        return _EPOCH + timedelta(milliseconds=self.milliseconds)

    @property
    def text(self) -> str:
        """The same as a FHIR instant."""
        return self.last_updated.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def uuid7(milliseconds: int) -> str:
    """A UUID of version 7 (RFC 9562): ordered by time, which keeps the indexes compact, random otherwise."""
    random = int.from_bytes(os.urandom(10))
    value = (
        milliseconds << 80 | 0x7 << 76 | (random >> 62 & 0xFFF) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    )
    return str(UUID(int=value))


def new_id() -> str:
    """An id for a resource that has to be known before it is stored."""
    return uuid7(time.time_ns() // 1_000_000)


# --- reading ------------------------------------------------------------------------------------------------


def find(project: str, type_: str, id: str, *, lock: bool = False) -> Current | None:
    """Return a resource's current version, None if there is none.

    Args:
        lock: keep other writers away until the transaction ends.
    """
    if canonical_uuid(id) is None:
        return None
    if lock and (known := _held.locked.pop((project, type_, id), None)) is not None:
        return known
    key = [id, project]
    with database.connection() as connection:
        if lock:
            # On its own: joined with its version, the row would be dropped when it changed during the wait.
            connection.execute(_lock(type_), key, prepare=True)
        row = connection.execute(_read(type_), key, prepare=True).fetchone()
    if row is None:
        return None
    rid, version_id, last_updated, deleted, interaction, content = row
    return Current(rid, Stored(type_, id, version_id, last_updated, content.encode(), deleted, interaction))


def find_many(project: str, type_: str, ids: Iterable[str]) -> list[Stored]:
    """Return the current versions of those resources that are there and not deleted, in no particular order.

    Args:
        ids: UUIDs.
    """
    with database.connection() as connection:
        found = connection.execute(_read_many(type_), [plain_array(ids), project], prepare=True).fetchall()
    return [
        Stored(type_, id_, version_id, last_updated, content.encode(), interaction=interaction)
        for id_, version_id, last_updated, interaction, content in found
    ]


def find_version(project: str, type_: str, id: str, version_id: str) -> Stored | None:
    """Return one version of a resource."""
    if canonical_uuid(version_id) is None:
        return None
    found = _versions(project, type_, id, "AND v.version_id = %s", [version_id])
    return found[0] if found else None


def versions(project: str, type_: str, id: str, *, count: int | None = None, offset: int = 0) -> list[Stored]:
    """Return the versions of a resource, newest first."""
    return _versions(project, type_, id, "ORDER BY v.version_id DESC LIMIT %s OFFSET %s", [count, offset])


def versions_of_type(
    project: str, type_: str, *, count: int, offset: int = 0, since: datetime | None = None
) -> list[Stored]:
    """Return the versions of all resources of a type, newest first.

    The newest n versions belong to n resources at most, and to those that were changed last, which an index knows.
    """
    last = offset + count
    with database.connection() as connection:
        found = connection.execute(
            _read_type_versions(type_),
            {"project": project, "since": since, "last": last, "count": count, "offset": offset},
            prepare=False,
        ).fetchall()
    return [
        Stored(type_, id_, version_id, last_updated, content.encode(), interaction == "delete", interaction)
        for id_, version_id, last_updated, interaction, content in found
    ]


def last_live_version(project: str, type_: str, id: str) -> Stored | None:
    """Return the newest version that is no deletion."""
    tail = "AND v.interaction <> 'delete' ORDER BY v.version_id DESC LIMIT 1"
    found = _versions(project, type_, id, tail, [])
    return found[0] if found else None


def count_versions(project: str, type_: str, id: str) -> int:
    """Return the number of versions of a resource."""
    statement = (
        "SELECT count(*) FROM resource r JOIN version v ON v.rid = r.rid"
        " WHERE r.type = %s AND r.id = %s AND r.project IS NOT DISTINCT FROM %s"
    )
    with database.connection() as connection:
        row = connection.execute(statement, [type_, id, project]).fetchone()
    return int(row[0]) if row else 0


def find_project(type: str, id: str) -> str | None:
    """Return the project of a resource, None if there is no such resource: for authentication only.

    The one look-up that crosses projects: whoever signs in with a client id does not know the project.
    """
    if canonical_uuid(id) is None or not registry.is_resource_type(type):
        return None
    with database.connection() as connection:
        row = connection.execute(
            "SELECT project::text FROM resource WHERE type = %s AND id = %s AND NOT deleted", [type, id]
        ).fetchone()
    return row[0] if row else None


def projects() -> list[str]:
    """Return the ids of all projects that have a Project resource: for the server's own work across them."""
    with database.connection() as connection:
        found = connection.execute(
            "SELECT id::text FROM resource WHERE type = 'Project' AND NOT deleted ORDER BY id"
        )
        return [id for (id,) in found.fetchall()]


def scan(
    project: str,
    type_: str,
    after: tuple[datetime, int],
    *,
    deleted: bool = False,
    terms: Iterable[int] | None = None,
    count: int = 500,
) -> list[Current]:
    """Return the next resources of a type, in the order of their last change.

    Args:
        after: time of that change and ``rid`` of the one before.
        deleted: the deleted ones instead of the others.
        terms: only resources that are found by one of these terms.
    """
    statement = (
        "SELECT r.rid, r.id::text, r.version_id::text, r.last_updated, r.deleted, v.interaction, v.content"
        " FROM resource r JOIN version v ON v.rid = r.rid AND v.version_id = r.version_id"
        f" WHERE r.type = '{type_}' AND r.project = %(project)s AND r.deleted = %(deleted)s"
        " AND (r.last_updated, r.rid) > (%(moment)s, %(rid)s)"
        f"{'' if terms is None else ' AND r.idx && %(terms)s::bigint[]'}"
        " ORDER BY r.last_updated, r.rid LIMIT %(count)s"
    )
    values = {"project": project, "deleted": deleted, "moment": after[0], "rid": after[1], "count": count}
    if terms is not None:
        values["terms"] = plain_array(terms)
    with database.connection() as connection:
        found = connection.execute(statement, values).fetchall()
    return [
        Current(rid, Stored(type_, id, version, updated, content.encode(), gone, interaction))
        for rid, id, version, updated, gone, interaction, content in found
    ]


def _versions(project: str, type_: str, id: str, tail: str, parameters: list[Any]) -> list[Stored]:
    if canonical_uuid(id) is None:
        return []
    with database.connection() as connection:
        found = connection.execute(
            _read_versions(type_, tail), [id, project, *parameters], prepare=True
        ).fetchall()
    return [
        Stored(type_, id, version_id, last_updated, content.encode(), interaction == "delete", interaction)
        for version_id, last_updated, interaction, content in found
    ]


@cache
def _read(type_: str) -> str:
    return (
        "SELECT r.rid, r.version_id::text, r.last_updated, r.deleted, v.interaction, v.content FROM resource r"
        " JOIN version v ON v.rid = r.rid AND v.version_id = r.version_id"
        f" WHERE r.type = '{type_}' AND r.id = %s AND r.project IS NOT DISTINCT FROM %s"
    )


@cache
def _read_type_versions(type_: str) -> str:
    since = "coalesce(%(since)s::timestamptz, '-infinity')"
    return (
        f"WITH latest AS MATERIALIZED (SELECT rid, id FROM resource WHERE type = '{type_}' AND project = %(project)s::uuid"
        f" AND last_updated >= {since} ORDER BY last_updated DESC, rid DESC LIMIT %(last)s)"
        " SELECT l.id::text, v.version_id::text, v.last_updated, v.interaction, v.content FROM latest l"
        f" CROSS JOIN LATERAL (SELECT * FROM version WHERE rid = l.rid AND last_updated >= {since}"
        " ORDER BY version_id DESC LIMIT %(last)s) v ORDER BY v.version_id DESC LIMIT %(count)s OFFSET %(offset)s"
    )


@cache
def _read_many(type_: str) -> str:
    return (
        "SELECT r.id::text, r.version_id::text, r.last_updated, v.interaction, v.content FROM resource r"
        " JOIN version v ON v.rid = r.rid AND v.version_id = r.version_id"
        f" WHERE r.type = '{type_}' AND r.id = ANY(%s::uuid[]) AND r.project IS NOT DISTINCT FROM %s AND NOT r.deleted"
    )


@cache
def _lock(type_: str) -> str:
    return f"SELECT FROM resource WHERE type = '{type_}' AND id = %s AND project IS NOT DISTINCT FROM %s FOR UPDATE"


@cache
def _read_versions(type_: str, tail: str) -> str:
    return (
        "SELECT v.version_id::text, v.last_updated, v.interaction, v.content FROM resource r"
        f" JOIN version v ON v.rid = r.rid WHERE r.type = '{type_}' AND r.id = %s AND r.project IS NOT DISTINCT FROM %s {tail}"
    )


# --- writing ------------------------------------------------------------------------------------------------

BEFORE_ALL: Final = (datetime(1, 1, 1, tzinfo=UTC), 0)
"""The position before the first resource."""

Position = tuple[datetime, int]
"""A resource's place in the order of last changes: the time and its ``rid``."""


def positions(project: str, type_: str, after: Position, count: int) -> list[Position]:
    """Return the positions of the next resources that are not deleted."""
    statement = (
        f"SELECT r.last_updated, r.rid FROM resource r WHERE r.type = '{type_}' AND r.project = %s"
        " AND NOT r.deleted AND (r.last_updated, r.rid) > (%s, %s) ORDER BY r.last_updated, r.rid LIMIT %s"
    )
    with database.connection() as connection:
        return connection.execute(statement, [project, *after, count], prepare=False).fetchall()


def reindex(
    project: str, type_: str, rids: Sequence[int], made: Callable[[Stored], Rows], *, wait: bool
) -> dict[int, bool]:
    """Write anew what resources are found by, in one transaction; see :mod:`fhirstore.reindex`.

    Args:
        rids: the resources; those that are deleted or gone meanwhile are left out.
        made: says what a resource is found by.
        wait: for writers that hold one of them; else those are left out too.

    Returns:
        The resources done, and whether their rows differed.
    """
    locked = f"""
        SELECT r.rid, r.id::text, r.version_id::text, r.last_updated, v.interaction, v.content,
            r.idx, r.ref_pid, r.ref_id::text[], r.sort_pid, r.sort_value
        FROM resource r JOIN version v ON v.rid = r.rid AND v.version_id = r.version_id
        WHERE r.type = '{type_}' AND r.rid = ANY(%(rids)s) AND r.project = %(project)s AND NOT r.deleted
        FOR NO KEY UPDATE OF r{"" if wait else " SKIP LOCKED"}"""
    done: dict[int, bool] = {}
    with database.transaction() as connection:
        found = connection.execute(locked, {"rids": list(rids), "project": project}, prepare=False).fetchall()
        stored_values = {name: _value_rows(connection, name, [row[0] for row in found]) for name in _TABLES}
        for rid, id_, version_id, updated, interaction, content, *held in found:
            new = made(Stored(type_, id_, version_id, updated, content.encode(), False, interaction))
            pids, ids = [pid for pid, _ in new.references], [target for _, target in new.references]
            wanted = [sorted(new.idx), pids, ids, list(new.sort), list(new.sort.values())]
            differs = held != wanted
            values = [
                name for name in _TABLES if set(getattr(new, name)) != stored_values[name].get(rid, set())
            ]
            done[rid] = differs or bool(values)
            if done[rid]:
                _rewrite(connection, type_, rid, new, values)
    return done


def _value_rows(
    connection: database.Connection, name: str, rids: Sequence[int]
) -> dict[int, set[tuple[Any, ...]]]:
    """The rows of a value table by resource."""
    columns = ", ".join(column for column, _ in _TABLES[name])
    statement = f"SELECT rid, {columns} FROM {_table(name)} WHERE rid = ANY(%s)"
    held: dict[int, set[tuple[Any, ...]]] = {}
    for rid, *row in connection.execute(statement, [list(rids)], prepare=False).fetchall():
        held.setdefault(rid, set()).add(tuple(row))
    return held


def _rewrite(connection: database.Connection, type_: str, rid: int, new: Rows, values: Sequence[str]) -> None:
    parameters: dict[str, Any] = {"rid": rid, **_columns(new)}
    connection.execute(
        f"UPDATE resource SET {', '.join(f'{name} = %({name})s::{cast}' for name, cast in _INDEX.items())}"
        f" WHERE type = '{type_}' AND rid = %(rid)s",
        parameters,
    )
    for name in values:
        connection.execute(f"DELETE FROM {_table(name)} WHERE rid = %s", [rid])
        columns = ", ".join(column for column, _ in _TABLES[name])
        places = ", ".join(["%s"] * (len(_TABLES[name]) + 1))
        connection.cursor().executemany(
            f"INSERT INTO {_table(name)} (rid, {columns}) VALUES ({places})",
            [(rid, *row) for row in getattr(new, name)],
        )


def _table(name: str) -> str:
    return f"value_{name.removesuffix('s')}"


def _columns(new: Rows) -> dict[str, str]:
    """What stands in the row itself."""
    return {
        "idx": plain_array(sorted(new.idx)),
        "ref_pid": plain_array(pid for pid, _ in new.references),
        "ref_id": plain_array(target for _, target in new.references),
        "sort_pid": plain_array(new.sort),
        "sort_value": _text_array(new.sort.values()),
    }


_INDEX: Final = {
    "idx": "bigint[]",
    "ref_pid": "integer[]",
    "ref_id": "uuid[]",
    "sort_pid": "integer[]",
    "sort_value": "text[]",
}
"""Columns of ``resource`` that it is found and ordered by."""

Column = tuple[str, str]

_TABLES: Final[dict[str, tuple[Column, ...]]] = {
    "strings": (("param", "bigint"), ("whole", "boolean"), ("value", "text"), ("tail", "text")),
    "dates": (("param", "bigint"), ("low", "bigint"), ("high", "bigint")),
    "numbers": (
        ("param", "bigint"),
        ("low", "numeric"),
        ("high", "numeric"),
        ("system", "text"),
        ("code", "text"),
        ("unit", "text"),
    ),
}
"""Columns of the value tables, by their name in Rows."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a Change says about where a write comes from; see :class:`fhirstore.changes.Change`."""

    author: str
    trace_id: str | None
    depth: int
    is_watched: bool = False
    """It leaves a Change whatever its type."""


Effect = tuple[str, Mapping[str, Any]]
"""An SQL expression that is evaluated in the statement of a write, for what it does (``pg_notify``), and its parameters."""


def write(
    project: str,
    stored: Stored,
    new: Rows,
    origin: Origin,
    current: Current | None = None,
    old: Rows | None = None,
    effect: Effect | None = None,
) -> None:
    """Make ``stored`` the current version, in one statement, and leave a Change.

    Args:
        new: what the version is found by.
        current: the version before, locked; None on create.
        old: what that is found by; rows that stay as they are are not touched.
        effect: what else the statement does.

    Raises:
        FhirError: 409 if the id of a new resource is taken.
    """
    is_stored = partial(_is_stored, project, stored)
    database.prove_by(is_stored)
    may_wait = current is None and effect is None and not origin.is_watched
    if may_wait and _held.creates is not None and database.may_hold_back():
        _held.creates.append(_Create(project, stored, new, origin))
        if len(_held.creates) >= HELD_BACK:
            _send_creates()
        return
    before = old or Rows()
    tables = tuple(table for table in _TABLES if getattr(new, table) != getattr(before, table))
    watched = origin.is_watched or stored.type not in changes.UNWATCHED
    parameters: dict[str, Any] = {
        "id": stored.id,
        "project": project,
        "version_id": stored.version_id,
        "last_updated": stored.last_updated,
        "interaction": stored.interaction,
        "content": stored.content.decode(),
        "deleted": stored.deleted,
        "rid": current.rid if current else None,
        "previous": current.stored.version_id if current else None,
        "author": origin.author,
        "trace_id": origin.trace_id,
        "depth": origin.depth,
        **_columns(new),
    }
    for table in tables:
        values = list(zip(*getattr(new, table), strict=True)) or [()] * len(_TABLES[table])
        for (name, type_), column in zip(_TABLES[table], values, strict=True):
            parameters[f"{table}_{name}"] = _text_array(column) if type_ == "text" else plain_array(column)
    statement = _write(stored.type, current is not None, tables, watched)
    if effect is not None:
        statement += f" RETURNING {effect[0]}"
        parameters |= effect[1]
    if not _execute(statement, parameters, is_stored):
        raise errors.conflict(f"The id {stored.id} is already taken")
    if watched:
        changes.ring()


def _execute(statement: str, parameters: dict[str, Any], is_stored: Callable[[], bool]) -> bool:
    try:
        with database.connection() as connection:
            return connection.execute(statement, parameters, prepare=True).rowcount > 0
    except database.DatabaseUnavailableError:  # outside of a transaction: before the commit or after it?
        if database.in_transaction() or not is_stored():
            raise
        return True


def _is_stored(project: str, stored: Stored) -> bool:
    return find_version(project, stored.type, stored.id, stored.version_id) is not None


@cache
def _write(type_: str, exists: bool, tables: tuple[str, ...], watched: bool) -> str:
    """The statement that stores a version; ``tables`` are the value tables whose rows differ from before."""
    columns = {
        "version_id": "uuid",
        "last_updated": "timestamptz",
        "deleted": "boolean",
        **_INDEX,
    }
    if exists:
        assignments = ", ".join(f"{name} = %({name})s::{cast}" for name, cast in columns.items())
        row = f"UPDATE resource SET {assignments} WHERE type = '{type_}' AND rid = %(rid)s RETURNING rid"
    else:
        columns |= {"id": "uuid", "project": "uuid"}
        values = ", ".join(f"%({name})s::{cast}" for name, cast in columns.items())
        row = (
            f"INSERT INTO resource (type, {', '.join(columns)}) VALUES ('{type_}', {values})"
            " ON CONFLICT (type, id) DO NOTHING RETURNING rid"
        )
    parts = [f"r AS ({row})"]
    for table in tables:
        target = _table(table)
        if exists:
            parts.append(f"old_{table} AS (DELETE FROM {target} WHERE rid = %(rid)s)")
        names = ", ".join(name for name, _ in _TABLES[table])
        arrays = ", ".join(f"%({table}_{name})s::{cast}[]" for name, cast in _TABLES[table])
        parts.append(
            f"new_{table} AS (INSERT INTO {target} (rid, {names})"
            f" SELECT r.rid, x.* FROM r, unnest({arrays}) x)"
        )
    if watched:
        parts.append(
            "new_change AS (INSERT INTO change (project, type, rid, resource_id, version_id, previous_version_id,"
            f" interaction, author, trace_id, depth, created) SELECT %(project)s::uuid, '{type_}', r.rid,"
            " %(id)s::uuid, %(version_id)s::uuid, %(previous)s::uuid, %(interaction)s::text, %(author)s::text,"
            " %(trace_id)s::text, %(depth)s::integer, %(last_updated)s::timestamptz FROM r)"
        )
    return (
        f"WITH {', '.join(parts)} INSERT INTO version (rid, version_id, last_updated, interaction, content)"
        " SELECT r.rid, %(version_id)s::uuid, %(last_updated)s::timestamptz, %(interaction)s::text,"
        " %(content)s::text FROM r"
    )


# --- several creates in one statement -------------------------------------------------------------------------

HELD_BACK: Final = 200
"""Creates that are sent together at most."""


@dataclass(frozen=True, slots=True)
class _Create:
    project: str
    stored: Stored
    new: Rows
    origin: Origin


class _Held(threading.local):
    """Creates of this thread's transaction that wait to be sent, and rows it has locked and not asked for yet."""

    creates: list[_Create] | None = None
    locked: dict[tuple[str, str, str], Current] = {}  # replaced by each transaction


_held = _Held()


@contextmanager
def creates_together() -> Iterator[None]:
    """Inside, new resources are sent in one statement, before anything else is asked of the database.

    Needs a transaction. That an id is taken may show later than at the resource itself.
    """
    _held.creates, _held.locked = [], {}
    try:
        with database.before_use(_send_creates):
            yield
    finally:
        _held.creates, _held.locked = None, {}


def lock_together(project: str, type_: str, ids: Iterable[str]) -> None:
    """Lock several resources in one order for all, and read them; :func:`find` with ``lock`` then has them at hand.

    Args:
        project, type_: of the resources.
        ids: UUIDs; those of no resource are of no matter.
    """
    key = [plain_array(ids), project]
    with database.connection() as connection:
        connection.execute(_lock_several(type_), key, prepare=True)
        found = connection.execute(_read_several(type_), key, prepare=True).fetchall()
    for id_, rid, version_id, last_updated, deleted, interaction, content in found:
        stored = Stored(type_, id_, version_id, last_updated, content.encode(), deleted, interaction)
        _held.locked[project, type_, id_] = Current(rid, stored)


@cache
def _lock_several(type_: str) -> str:
    return (
        f"SELECT FROM resource WHERE type = '{type_}' AND id = ANY(%s::uuid[]) AND project IS NOT DISTINCT FROM %s"
        " ORDER BY id FOR UPDATE"
    )


@cache
def _read_several(type_: str) -> str:
    return (
        "SELECT r.id::text, r.rid, r.version_id::text, r.last_updated, r.deleted, v.interaction, v.content"
        " FROM resource r JOIN version v ON v.rid = r.rid AND v.version_id = r.version_id"
        f" WHERE r.type = '{type_}' AND r.id = ANY(%s::uuid[]) AND r.project IS NOT DISTINCT FROM %s"
    )


def _send_creates() -> None:
    creates, _held.creates = _held.creates, None
    try:
        if creates and len(creates) == 1:
            only = creates[0]
            write(only.project, only.stored, only.new, only.origin)
        elif creates:
            _write_creates(creates)
    finally:
        _held.creates = []


def _write_creates(creates: Sequence[_Create]) -> None:
    parameters: dict[str, Any] = {
        "type": plain_array(each.stored.type for each in creates),
        "id": plain_array(each.stored.id for each in creates),
        "project": plain_array(each.project for each in creates),
        "version_id": plain_array(each.stored.version_id for each in creates),
        "last_updated": _text_array(each.stored.last_updated.isoformat() for each in creates),
        "content": _text_array(each.stored.content.decode() for each in creates),
        "author": _text_array(each.origin.author for each in creates),
        "trace_id": _text_array(each.origin.trace_id for each in creates),
        "depth": plain_array(each.origin.depth for each in creates),
        "idx": _text_array(plain_array(sorted(each.new.idx)) for each in creates),
        "ref_pid": _text_array(plain_array(pid for pid, _ in each.new.references) for each in creates),
        "ref_id": _text_array(plain_array(target for _, target in each.new.references) for each in creates),
        "sort_pid": _text_array(plain_array(each.new.sort) for each in creates),
        "sort_value": _text_array(_text_array(each.new.sort.values()) for each in creates),
        "unwatched": plain_array(changes.UNWATCHED),
    }
    for table, columns in _TABLES.items():
        rows = [(each.stored.id, *row) for each in creates for row in getattr(each.new, table)]
        values = list(zip(*rows, strict=True)) or [()] * (1 + len(columns))
        for (name, type_), column in zip((("id", "uuid"), *columns), values, strict=True):
            parameters[f"{table}_{name}"] = _text_array(column) if type_ == "text" else plain_array(column)
    with database.connection() as connection:
        written = connection.execute(_write_several(), parameters, prepare=True).rowcount
    if written < len(creates):
        raise errors.conflict("The id of a resource is already taken")
    if any(each.stored.type not in changes.UNWATCHED for each in creates):
        changes.ring()


@cache
def _write_several() -> str:
    """The statement that stores the first versions of several resources, of any types."""
    given = {
        "type": "text",
        "id": "uuid",
        "project": "uuid",
        "version_id": "uuid",
        "last_updated": "timestamptz",
        "content": "text",
        "author": "text",
        "trace_id": "text",
        "depth": "integer",
        "idx": "text",
        "ref_pid": "text",
        "ref_id": "text",
        "sort_pid": "text",
        "sort_value": "text",
    }
    arrays = {  # an array of arrays would have to be rectangular, so they come as texts
        "idx": "bigint[]",
        "ref_pid": "integer[]",
        "ref_id": "uuid[]",
        "sort_pid": "integer[]",
        "sort_value": "text[]",
    }
    columns = ["type", "id", "project", "version_id", "last_updated", *arrays]
    selected = ", ".join(f"x.{name}" + (f"::{arrays[name]}" if name in arrays else "") for name in columns)
    parts = [
        f"x AS (SELECT * FROM unnest({', '.join(f'%({name})s::{type_}[]' for name, type_ in given.items())})"
        f" WITH ORDINALITY AS x ({', '.join(given)}, place))",
        f"r AS (INSERT INTO resource ({', '.join(columns)}) SELECT {selected} FROM x ORDER BY x.place"
        " ON CONFLICT (type, id) DO NOTHING RETURNING rid, id)",
    ]
    for table, types in _TABLES.items():
        names = ", ".join(name for name, _ in types)
        unnested = ", ".join(f"%({table}_{name})s::{type_}[]" for name, type_ in types)
        parts.append(
            f"new_{table} AS (INSERT INTO value_{table.removesuffix('s')} (rid, {names})"
            f" SELECT r.rid, {', '.join(f's.{name}' for name, _ in types)} FROM r"
            f" JOIN unnest(%({table}_id)s::uuid[], {unnested}) AS s (id, {names}) USING (id))"
        )
    parts.append(
        "new_change AS (INSERT INTO change (project, type, rid, resource_id, version_id, interaction, author, trace_id,"
        " depth, created) SELECT x.project, x.type, r.rid, x.id, x.version_id, 'create', x.author, x.trace_id, x.depth,"
        " x.last_updated FROM r JOIN x USING (id) WHERE x.type <> ALL(%(unwatched)s::text[]) ORDER BY x.place)"
    )
    return (
        f"WITH {', '.join(parts)} INSERT INTO version (rid, version_id, last_updated, interaction, content)"
        " SELECT r.rid, x.version_id, x.last_updated, 'create', x.content FROM r JOIN x USING (id)"
    )


def _text_array(values: Iterable[str | None]) -> str:
    """A PostgreSQL array of texts."""
    return "{" + ",".join("NULL" if value is None else f'"{_quoted(value)}"' for value in values) + "}"


def _quoted(text: str) -> str:
    if "\\" in text or '"' in text:
        return text.replace("\\", "\\\\").replace('"', '\\"')
    return text


def erase(type_: str, rid: int) -> list[str]:
    """Remove a resource with all its versions, values and waiting changes; returns the ids of the versions."""
    with database.connection() as connection:
        for table in ("change", *(f"value_{name.removesuffix('s')}" for name in _TABLES)):
            connection.execute(f"DELETE FROM {table} WHERE rid = %s", [rid])
        found = connection.execute(
            "DELETE FROM version WHERE rid = %s RETURNING version_id::text", [rid]
        ).fetchall()
        connection.execute(f"DELETE FROM resource WHERE type = '{type_}' AND rid = %s", [rid])
    return [version_id for (version_id,) in found]


# --- what a process knows about the database ------------------------------------------------------------------


def fetch(statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Run a search. Unprepared: its plan has to follow the values.

    Raises:
        FhirError: 400, it takes too long. A narrower search helps, the same once more does not.
    """
    with database.connection() as connection:
        try:
            return connection.execute(statement, parameters, prepare=False).fetchall()
        except psycopg.errors.QueryCanceled as error:
            raise errors.too_costly(TOO_LONG) from error


TOO_LONG: Final = (
    "The search took too long and was stopped. Narrow it, for example by a code, a date or _lastUpdated."
)


def searching() -> Callable[[str, Mapping[str, Any]], list[tuple[Any, ...]]]:
    """:func:`fetch` for the statements of one search: together they may take as long as one, and the last of them as well."""
    end = time.monotonic() + settings.DATABASE_STATEMENT_TIMEOUT

    def run(statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        if time.monotonic() > end:
            raise errors.too_costly(TOO_LONG)
        return fetch(statement, parameters)

    return run


@cache
def hasher() -> Hasher:
    """Makes terms with the key of this installation."""
    found = fetch("SELECT value FROM installation WHERE name = 'index_key'", {})
    if not found:
        raise RuntimeError("The table installation has lost its index_key; without it no index can be read.")
    return Hasher(bytes(found[0][0]))


_statistics = StatisticsCache()


def statistics(type_: str) -> TermStatistics:
    """How often terms occur among the resources of ``type_``, as of a few minutes ago."""
    return _statistics.get(type_, lambda type_: read_statistics(fetch, type_))


def forget() -> None:
    """Forget what is known of the database: it is another one, or has changed much at once."""
    hasher.cache_clear()
    _statistics.clear()


database.follow(forget, forget)
