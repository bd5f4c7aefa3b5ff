"""The only writer and the only reader of resources: tenancy and access policies live here and nowhere else.

A write is one statement in one transaction: the current row, the new version, the values it is found by, and the Change
that tells others. Every statement carries the project, so a resource of another project is not found, like a missing one.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from typing import IO, Any, BinaryIO, Final, Literal

import orjson

from fhirstore import binaries, database, errors, hooks, own_parameters, tables, users
from fhirstore.access import FULL, Access, Rule, hide, restore
from fhirstore.definitions import registry
from fhirstore.identity import Identity, system_identity
from fhirstore.includes import included
from fhirstore.patch import Change, apply_patch
from fhirstore.profiles import profile_problems
from fhirstore.scopes import Interaction
from fhirstore.search.expand import expand
from fhirstore.search.index import index_with, patient_references
from fhirstore.search.match import match
from fhirstore.search.model import (
    Clause,
    Condition,
    Cursor,
    IndexValues,
    Kind,
    Parameter,
    SearchRequest,
    TokenValue,
    relational,
)
from fhirstore.search.parse import parse
from fhirstore.search.sql import Alternatives, PageTooLargeError, Query, Store
from fhirstore.search.terms import Rows, canonical_uuid, rows
from fhirstore.tables import Current, Moment, Stored, uuid7
from fhirstore.validation import validate

__all__ = ["Repository", "SearchResult", "Stored"]

Json = dict[str, Any]

_CLIENT_META: Final = ("profile", "tag", "security", "source", "extension")
"""Elements of ``meta`` that belong to the client; all others are written here."""

_ACCOUNTS: Final = ("account", "accounts")
"""Elements of ``meta`` that project admins may set; otherwise a version inherits them from the one before."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A page of matches.

    Attributes:
        entries: the matches in order.
        total: number of all matches (an estimate where one was asked for), None if not asked for.
        has_next: there are matches behind this page.
        included: what ``_include`` and ``_revinclude`` add to the page.
        complete: that is all of it, and not only what there is room for.
    """

    entries: list[Stored]
    total: int | None = None
    has_next: bool = False
    included: list[Stored] = field(default_factory=list)
    complete: bool = True


MAX_LOOKED_AT: Final = 20_000
"""Versions that are compared with an AccessPolicy for a page of the history of a type."""
HISTORY_BATCH: Final = 500

MAX_DEPTH: Final = 100
"""Levels of objects and lists in a resource; deeper ones would exhaust the stack of whoever walks through them."""


_ID: Final = Parameter("_id", Kind.TOKEN)


class Repository:
    """The resources of one project as one identity may see and change them.

    All methods raise FhirError: 404 for what is not there or must not be seen, 403 for what is not allowed, 400 for
    invalid content, 503 when the database is away.

    Args:
        identity: who acts.
        trace_id: written to the Change of each write.
        depth: how many bot runs lie between a person's write and these, written to the Change as well.
        is_watched: writes leave a Change whatever their type, see :data:`fhirstore.changes.UNWATCHED`.
    """

    def __init__(
        self, identity: Identity, *, trace_id: str | None = None, depth: int = 0, is_watched: bool = False
    ) -> None:
        self.identity = identity
        self.trace_id = trace_id
        self.depth = depth
        self.is_watched = is_watched
        self.on_write: Callable[[Stored], None] | None = None
        """Called with each version this Repository has written, after its commit."""
        self.promised: frozenset[str] = frozenset()
        """What a Bundle in progress is going to make; references to it are good already."""
        self._access = Access(identity, self._exists_at_all, self.search_parameters, self._expanded_at_all)
        self._warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Tell whoever writes something that is accepted but worth a second look; for hooks."""
        self._warnings.append(text)

    def take_warnings(self) -> list[str]:
        """Return the warnings since the last call, for the answer of the API."""
        warnings, self._warnings = self._warnings, []
        return warnings

    # --- reading -------------------------------------------------------------------------------------------

    def read(self, type: str, id: str) -> Stored:
        """Return the current version; 404 if unknown, 410 if deleted."""
        if type == "User":
            return self._user(id)
        rules = self._rules(type, "read")
        stored = self._current(type, id).stored
        if stored.deleted:
            self._check_deleted(stored, rules)
            raise errors.gone()
        return self._visible(stored, rules)

    def _user(self, id: str) -> Stored:
        """A member of the project: admins read all of them, a person himself."""
        found = users.find(self.identity.project, id, self.identity.membership)
        if found is not None and found[1] and self.identity.scopes is None:
            return found[0]
        rules = self._rules("User", "read")
        if found is None:
            raise errors.not_found()
        return self._visible(found[0], rules)

    def read_reference(self, reference: str) -> Stored:
        """Return the current version of ``Type/id``; 400 if it is no such reference."""
        type_, _, id_ = reference.partition("/")
        if not id_ or "/" in id_:
            raise errors.bad_request(f"Not a reference to a resource: {reference}")
        return self.read(type_, id_)

    def may_read(self, type: str, id: str) -> bool:
        """True if :meth:`read` would return the resource."""
        try:
            self.read(type, id)
        except database.DatabaseUnavailableError:
            raise
        except errors.FhirError:
            return False
        return True

    def may_read_some(self, type: str) -> bool:
        """True if this identity may read resources of a type, be it only some of them."""
        return self._access.may(type, "read")

    def as_seen(self, stored: Stored) -> Stored | None:
        """Return a version this project has, read by somebody else, as this identity may see it; None if it may not."""
        if not self._access.may(stored.type, "read"):
            return None
        return self._seen(stored, self._rules(stored.type, "read"))

    def read_version(self, type: str, id: str, version_id: str) -> Stored:
        """Return one version; 404 if unknown, 410 if it is a deletion."""
        rules = self._rules(type, "vread")
        version = tables.find_version(self.identity.project, type, id, version_id)
        if version is None:
            raise errors.not_found()
        if version.deleted:
            self._check_deleted(version, rules)
            raise errors.gone()
        return self._visible(version, rules)

    def history(self, type: str, id: str, *, count: int = 100, offset: int = 0) -> tuple[list[Stored], int]:
        """Return versions, newest first and deletions included, and the number of all versions.

        Versions that the access policy hides are neither returned nor counted.
        """
        rules = self._rules(type, "history")
        project = self.identity.project
        if rules[0] is FULL:
            versions = tables.versions(project, type, id, count=count, offset=offset)
            complete = not offset and len(versions) < count
            total = len(versions) if complete else tables.count_versions(project, type, id)
        else:
            # Which versions may be seen depends on their content, so all have to be looked at.
            versions = self._visible_versions(tables.versions(project, type, id), rules)
            total = len(versions)
            versions = versions[offset : offset + count]
        if not total:
            raise errors.not_found()
        return versions, total

    def history_of_type(
        self, type: str, *, count: int = 100, offset: int = 0, since: datetime | None = None
    ) -> tuple[list[Stored], bool]:
        """Return the versions of all resources of a type, newest first, and whether there are older ones.

        Versions that the access policy hides are neither returned nor counted.

        Args:
            type: a resource type.
            count, offset: the page.
            since: only versions made then or later.

        Raises:
            FhirError: also 400 (``too-costly``) when too many versions have to be looked at.
        """
        rules = self._rules(type, "history")
        project = self.identity.project
        if rules[0] is FULL:
            found = tables.versions_of_type(project, type, count=count + 1, offset=offset, since=since)
            return found[:count], len(found) > count
        page: list[Stored] = []
        skip, looked_at = offset, 0
        while looked_at < MAX_LOOKED_AT:
            found = tables.versions_of_type(project, type, count=HISTORY_BATCH, offset=looked_at, since=since)
            looked_at += len(found)
            for version in found:
                seen = self._seen_in_history(version, rules)
                if seen is not None and skip:
                    skip -= 1
                elif seen is not None:
                    page.append(seen)
                    if len(page) > count:
                        return page[:count], True
            if len(found) < HISTORY_BATCH:
                return page, False
        raise errors.too_costly("Too many versions have to be looked at: narrow the history by _since")

    def _seen_in_history(self, version: Stored, rules: tuple[Rule, ...]) -> Stored | None:
        """The version as it may be seen; a deletion counts with the version before it."""
        if not version.deleted:
            return self._seen(version, rules)
        live = tables.last_live_version(self.identity.project, version.type, version.id)
        return version if live is not None and self._seen(live, rules) is not None else None

    def search(self, request: SearchRequest) -> SearchResult:
        """Return a page of the matches this identity may see.

        Raises:
            FhirError: also 400 for Binary, which is not searchable, and when the search takes too long (``too-costly``).
        """
        if request.type == "Binary" and not self.identity.system:
            raise errors.bad_request("Cannot search on Binary resource type")
        rules = self._rules(request.type, "search")
        self._access.check_search(request)
        request = replace(request, clauses=self._expanded(request.clauses))
        alternatives = self._access.alternatives(rules, request.type)
        if request.deleted and alternatives is not None:
            alternatives = []  # a deleted resource holds nothing that criteria could be compared with
        query = Query(self._store(), request, alternatives)
        found = query.page() if request.count else []
        has_next = len(found) > request.count
        page = [
            Stored(request.type, id, version_id, last_updated, content.encode(), request.deleted, interaction)
            for id, version_id, last_updated, content, interaction in found[: request.count]
        ]
        answers = self._answers(page, rules, request.type)
        entries = []
        for stored in page:
            # Compared in memory as well: a policy must not hang on hashes alone.
            known = {rule: stored.id in ids for rule, ids in answers.items()}
            if (seen := self._seen(stored, rules, known)) is not None:
                entries.append(seen)
        more, complete = included(self, request.includes, entries) if request.includes else ([], True)
        return SearchResult(entries, self._total(request, query, len(found)), has_next, more, complete)

    def search_types(self, requests: Sequence[SearchRequest]) -> SearchResult:
        """Return a page of the matches of several types, ordered by ``lastUpdated`` and then as the types are.

        Args:
            requests: one for each type, alike in all but the type and its clauses.

        Raises:
            FhirError: as :meth:`search`; 403 for a type that may not be searched.
        """
        first = requests[0]
        descending = not first.sort or first.sort[0].descending
        room = first.offset + first.count
        results = [
            self.search(replace(request, count=room if first.count else 0, offset=0, includes=()))
            for request in _with_cursors(requests, descending=descending)
        ]
        merged = [stored for result in results for stored in result.entries]
        merged.sort(key=lambda stored: stored.last_updated, reverse=descending)
        entries = merged[first.offset : room]
        totals = [result.total for result in results if result.total is not None]
        more, complete = included(self, first.includes, entries) if first.includes else ([], True)
        return SearchResult(
            entries,
            sum(totals) if totals else None,
            bool(first.count) and (len(merged) > room or any(result.has_next for result in results)),
            more,
            complete,
        )

    def read_many(self, type: str, ids: Sequence[str]) -> list[Stored]:
        """Return those of the resources that are there and may be read, in no particular order.

        Raises:
            FhirError: 403 if no resource of the type may be read.
        """
        rules = self._rules(type, "read")
        found = tables.find_many(self.identity.project, type, ids)
        return [seen for stored in found if (seen := self._seen(stored, rules)) is not None]

    def _answers(self, page: list[Stored], rules: tuple[Rule, ...], type: str) -> dict[Rule, set[str]]:
        """Which resources of a page fit the rules that look at other resources: one search per rule, not per resource."""
        answers: dict[Rule, set[str]] = {}
        ids = Clause(_ID, tuple(TokenValue(None, stored.id) for stored in page))
        for rule in rules if page else ():
            conditions = self._access.conditions(rule, type)
            if conditions and any(map(relational, conditions)):
                query = Query(
                    self._store(),
                    SearchRequest(type, (ids, *conditions), count=len(page)),
                    None,
                    trusted=True,
                )
                answers[rule] = set(query.ids(len(page)) or ())
        return answers

    def parse(
        self, type: str, query: str | Sequence[tuple[str, str]], *, base_url: str | None = None
    ) -> SearchRequest:
        """Parse a search as :func:`fhirstore.search.parse.parse` does, with the project's own parameters as well."""
        return parse(type, query, base_url=base_url, parameters=self.search_parameters)

    def search_parameters(self, type: str) -> Mapping[str, Parameter]:
        """What resources of a type can be searched by, by code: also the project's own SearchParameters."""
        own = self._own_parameters(type)
        return {**registry.search_parameters(type), **own} if own else registry.search_parameters(type)

    def index(self, resource: Json) -> IndexValues:
        """What a resource of this project is found by, see :func:`fhirstore.search.index.index`."""
        return index_with(resource, self._own_parameters(resource["resourceType"]))

    def _own_parameters(self, type: str) -> Mapping[str, Parameter]:
        # SearchParameters themselves, by which all others are found, take no part.
        return {} if type == "SearchParameter" else own_parameters.of_type(self.identity.project, type)

    def matcher(self, resource: Json) -> Callable[[SearchRequest], bool]:
        """Return a function that tells whether ``resource`` fits a search: what the search would say if it were stored so.

        The resource need not be stored, and its state may be an earlier one; what chains and ``_has`` ask about other
        resources is answered from those stored now, as far as this identity may search them. Whether the identity may see
        ``resource`` itself is not asked. Sorting, paging and fields do not matter.

        Args:
            resource: valid, with the ``meta`` it is stored with.
        """
        values = cache(lambda: self.index(resource))

        def fits(request: SearchRequest) -> bool:
            if request.type != resource["resourceType"] or self._access.reveals(request):
                return False
            request = replace(request, clauses=self._expanded(request.clauses))
            return match(request, values(), self._exists)

        return fits

    def _expanded(self, conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
        """Conditions with the values that ``:in``, ``:above`` and ``:below`` stand for, as this identity may see them."""
        from fhirstore.expansion import RepositoryLookup  # it looks up through a Repository

        return expand(conditions, RepositoryLookup(self))

    def _expanded_at_all(self, conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
        """The same for criteria of a policy, which are the project's."""
        return Repository(system_identity(self.identity.project))._expanded(conditions)

    def _store(self) -> Store:
        """What one search looks into."""
        return Store(
            tables.searching(),
            tables.hasher(),
            self.identity.project,
            tables.statistics,
            self._alternatives_of,
        )

    def _alternatives_of(self, type: str) -> Alternatives | None:
        """What this identity may search of a type; nothing where no rule allows it."""
        if not self._access.may(type, "search"):
            return []
        return self._access.alternatives(self._access.rules(type, "search"), type)

    def _exists(self, type: str, conditions: tuple[Condition, ...]) -> bool:
        """True if this identity can find such a resource."""
        return Query(self._store(), SearchRequest(type, conditions), self._alternatives_of(type)).exists()

    def _exists_at_all(self, type: str, conditions: tuple[Condition, ...]) -> bool:
        """True if the project has such a resource."""
        return Query(self._store(), SearchRequest(type, conditions), None, trusted=True).exists()

    def _total(self, request: SearchRequest, query: Query, found: int) -> int | None:
        """The number of all matches if it is wanted; ``found`` rows came back, at most one more than a page."""
        if request.total == "none" and request.count:
            return None
        if 0 < found <= request.count and request.cursor is None:
            return request.offset + found
        if request.total == "estimate" and found:
            return max(query.estimate(), request.offset + found)
        return query.total()

    def search_one(self, type: str, query: str | Sequence[tuple[str, str]]) -> Stored | None:
        """Return the first match, None without any."""
        entries = self.search(replace(self.parse(type, query), count=1)).entries
        return entries[0] if entries else None

    def search_all(self, type: str, query: str | Sequence[tuple[str, str]]) -> list[Stored]:
        """Return all matches, however many pages that takes."""
        return self.search_up_to(self.parse(type, query), None)

    def search_up_to(self, request: SearchRequest, limit: int | None) -> list[Stored]:
        """Return the first ``limit`` matches of a search, all without a limit, however many pages that takes."""
        count = 1000 if limit is None else min(limit, 1000)
        request = replace(request, count=count, offset=0, total="none")
        found: list[Stored] = []
        while True:
            try:
                result = self.search(request)
            except PageTooLargeError:
                if request.count == 1:
                    raise
                request = replace(request, count=request.count // 2)
                continue
            found += result.entries
            if not result.has_next or (limit is not None and len(found) >= limit):
                return found if limit is None else found[:limit]
            request = replace(request, offset=request.offset + request.count)

    def may_search(self, type: str) -> bool:
        """True if the identity may search resources of a type."""
        return self._access.may(type, "search")

    def may_search_compartment(self, type: str) -> bool:
        """True if nothing is hidden of what tells whose compartment resources of a type are in."""
        parameter = registry.search_parameters(type)["_compartment"]
        request = SearchRequest(type, (Clause(parameter, (), "missing", missing=False),))
        return self._access.reveals(request) is None

    def scan(
        self,
        type: str,
        *,
        since: datetime | None = None,
        patients: Iterable[str] | None = None,
        deleted: bool = False,
    ) -> Iterator[Stored]:
        """Go through all resources of a type that this identity may see, in the order of their last change.

        Inside a transaction with a snapshot that is consistent; otherwise a resource that changes meanwhile may come twice.

        Args:
            since: only what has changed after that moment.
            patients: only what is in the compartment of one of these (``Patient/…``).
            deleted: the deletions, as stubs, instead.

        Raises:
            FhirError: also 403 for ``patients`` where that would tell something hidden, see :meth:`may_search_compartment`.
        """
        rules = self._rules(type, "search")
        terms = None
        if patients is not None:
            if not self.may_search_compartment(type):
                raise errors.forbidden()
            terms = [
                tables.hasher().reference(self.identity.project, type, "_compartment", *patient.split("/", 1))
                for patient in patients
            ]
        after = (since or datetime(1, 1, 1, tzinfo=UTC), 0 if since is None else 2**63 - 1)
        while True:
            batch = tables.scan(self.identity.project, type, after, deleted=deleted, terms=terms)
            if not batch:
                return
            after = (batch[-1].stored.last_updated, batch[-1].rid)
            for current in batch:
                if deleted:
                    live = self._last_live(current.stored, rules)
                    if live is None or self._access.find(rules, type, partial(self.index, live)) is not None:
                        yield current.stored
                elif (seen := self._seen(current.stored, rules)) is not None:
                    yield seen

    # --- writing -------------------------------------------------------------------------------------------

    def create(self, resource: Json, *, id: str | None = None, effect: tables.Effect | None = None) -> Stored:
        """Store a new resource; its ``id`` and ``meta`` are ours, apart from what of ``meta`` belongs to clients.

        Args:
            resource: not changed.
            id: a UUID the server has chosen (entries of a Bundle, bootstrap); never one a client has chosen.
            effect: what else the statement that stores it does: a notice that goes out with the commit, a row of another
                table. Not for Binaries.

        Raises:
            FhirError: also 409 if ``id`` is taken.
        """
        resource, content = _split_data(resource)
        if content is not None:
            return self._create_binary(resource, content, id)
        return self._create(resource, id, effect=effect)

    def update(self, resource: Json, *, if_match: str | None = None) -> tuple[Stored, bool]:
        """Store a new version; a deleted resource is restored, the server itself may choose the id of a new one.

        Args:
            resource: with ``id``; not changed.
            if_match: the version id the caller has seen; 412 if it is not the current one.

        Returns:
            The current version, and whether it is a new one: without any difference nothing is written.
        """
        type_, id_ = _type_of(resource), resource.get("id")
        if not isinstance(id_, str) or canonical_uuid(id_) is None:
            raise errors.not_found()
        self._rules(type_, "update")
        with database.transaction():
            current = self._find(type_, id_, lock=True)
            if current is None:
                if not self.identity.system:
                    raise errors.not_found()
                return self.create(resource, id=id_), True
            resource, content = _split_data(resource)
            if content is not None:
                return self._replace_binary(current, resource, content, if_match), True
            return self._replace(current, lambda _: resource, if_match)

    def patch(
        self, type: str, id: str, operations: list[Json] | Change, *, if_match: str | None = None
    ) -> Stored:
        """Change the current version.

        Args:
            type, id: of the resource.
            operations: a JSON Patch (RFC 6902, see :func:`fhirstore.patch.apply_patch`), or what else changes a resource.
            if_match: as in :meth:`update`.
        """
        change = operations if callable(operations) else partial(apply_patch, operations=operations)
        self._rules(type, "update")
        self._rules(type, "read")  # what a patch tests, moves or copies could be read from its answer
        with database.transaction():
            current = self._current(type, id, lock=True)
            if current.stored.deleted:
                self._check_deleted(current.stored, self._rules(type, "read"))
                raise errors.gone()
            return self._replace(current, change, if_match)[0]

    def delete(self, type: str, id: str, *, if_match: str | None = None) -> None:
        """Delete the resource; deleting it again changes nothing, 404 if there never was one.

        Args:
            if_match: as in :meth:`update`.
        """
        rules = self._rules(type, "delete")
        with database.transaction():
            current = self._current(type, id, lock=True)
            if current.stored.deleted:
                self._check_deleted(current.stored, rules)
                return
            previous = current.stored.resource
            rule = self._rule_before(type, previous, rules)
            if if_match is not None and if_match != current.stored.version_id:
                raise errors.precondition_failed()
            Access.check_constraints((rule,), previous, None)
            for hook in hooks.delete_hooks(type):
                hook(self, previous)
            hooks.review(self, previous, previous, "delete")
            moment = Moment.after(current.stored.last_updated)
            stub = {"resourceType": type, "id": id, "meta": self._meta({}, previous["meta"], moment)}
            self._write(
                _stored(stub, moment, "delete"), Rows(), current, self._rows(type, self.index(previous))
            )

    def expunge(self, type: str, id: str) -> None:
        """Remove a resource for good, deleted or not: all versions, what it is found by, and the files of a Binary.

        Raises:
            FhirError: 404 if there never was one, 403 for whoever is no admin of the project or may not delete it, 400 for the
                Project itself.
        """
        if not self.identity.is_admin:
            raise errors.forbidden()
        if type == "Project":
            raise errors.bad_request("A Project cannot be expunged")
        rules = self._rules(type, "delete")
        with database.transaction():
            current = self._current(type, id, lock=True)
            if current.stored.deleted:
                self._check_deleted(current.stored, rules)
            else:
                previous = current.stored.resource
                self._rule_before(type, previous, rules)
                for hook in hooks.delete_hooks(type):
                    hook(self, previous)
            versions = tables.erase(type, current.rid)
            if type == "Binary":
                binaries.condemn(self.identity.project, id, versions)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All reads and writes inside are one transaction of this thread; any exception rolls them back."""
        with database.transaction():
            yield

    def lock(self, type: str, ids: Iterable[str]) -> None:
        """Inside of :meth:`bulk`: lock resources that will be changed. Tells nobody whether they are there."""
        if registry.is_resource_type(type):
            ids = list(ids)
            for id in ids:
                hooks.check_not_under_review(self.identity.project, type, id)
            tables.lock_together(self.identity.project, type, [id for id in ids if canonical_uuid(id)])

    @contextmanager
    def bulk(self) -> Iterator[None]:
        """The same, where resources that are created are written together as far as nothing is read in between."""
        with database.transaction(), tables.creates_together():
            yield

    # --- Binary --------------------------------------------------------------------------------------------

    def store_binary(
        self,
        content: bytes | IO[bytes],
        content_type: str,
        *,
        filename: str | None = None,
        security_context: str | None = None,
        id: str | None = None,
        if_match: str | None = None,
    ) -> Stored:
        """Store content as a new Binary, or as a new version of the Binary ``id``.

        Args:
            content: bytes, or a stream that is read in chunks.
            content_type: its media type.
            filename: the name it was uploaded under; not kept.
            security_context: reference of the resource that whoever reads the Binary must be able to read.
            id: an existing Binary.
            if_match: as in :meth:`update`.
        """
        resource: Json = {"resourceType": "Binary", "contentType": content_type}
        if security_context:
            resource["securityContext"] = {"reference": security_context}
        stream = io.BytesIO(content) if isinstance(content, bytes) else content
        if id is None:
            return self._create_binary(resource, stream, None)
        self._rules("Binary", "update")
        with database.transaction():
            current = self._current("Binary", id, lock=True)
            kept = None if current.stored.deleted else current.stored.resource.get("securityContext")
            if kept and not security_context:  # new bytes are as secret as the old ones
                resource["securityContext"] = kept
            return self._replace_binary(current, {**resource, "id": id}, stream, if_match)

    def open_binary(self, id: str, version_id: str | None = None) -> tuple[Stored, BinaryIO]:
        """Return a Binary and its content as a stream, which the caller closes."""
        stored = (
            self.read("Binary", id) if version_id is None else self.read_version("Binary", id, version_id)
        )
        return stored, binaries.open_content(self.identity.project, id, stored.version_id)

    def check_update(self, type: str, id: str) -> None:
        """Raise FhirError as :meth:`update` of the resource would: 404, 403 or 410."""
        stored = self._current(type, id).stored
        if stored.deleted:
            raise errors.gone()
        self._rule_before(type, stored.resource, self._rules(type, "update"))

    def _create_binary(self, resource: Json, content: IO[bytes], id: str | None) -> Stored:
        self._rules("Binary", "create")
        moment = Moment.now()
        id = id or uuid7(moment.milliseconds)
        with self._content(id, moment, content):
            return self._create(resource, id, moment)

    def _replace_binary(
        self, current: Current, resource: Json, content: IO[bytes], if_match: str | None
    ) -> Stored:
        moment = Moment.after(current.stored.last_updated)
        with self._content(current.stored.id, moment, content):
            return self._replace(current, lambda _: resource, if_match, moment)[0]

    @contextmanager
    def _content(self, id: str, moment: Moment, content: IO[bytes]) -> Iterator[None]:
        """Save the content before the resource that points to it; if that fails, the content goes as well."""
        project = self.identity.project
        binaries.announce(project, id, moment.version_id)
        try:
            with database.transaction():
                binaries.save(project, id, moment.version_id, content)
                yield
        except BaseException:
            binaries.discard(project, id, moment.version_id)
            raise

    # --- how a version comes into being ----------------------------------------------------------------------

    def _create(
        self,
        resource: Json,
        id: str | None = None,
        moment: Moment | None = None,
        effect: tables.Effect | None = None,
    ) -> Stored:
        type_ = _type_of(resource)
        rules = self._rules(type_, "create")
        moment = moment or Moment.now()
        cleaned = self._with_profile(_clean(resource))
        cleaned["id"] = id or uuid7(moment.milliseconds)
        if not hooks.write_hooks(type_):
            return self._insert(cleaned, rules, moment, effect)
        with database.transaction():
            for hook in hooks.write_hooks(type_):
                hook(self, cleaned, None)
            return self._insert(cleaned, rules, moment, effect)

    def _insert(
        self, resource: Json, rules: tuple[Rule, ...], moment: Moment, effect: tables.Effect | None
    ) -> Stored:
        type_ = resource["resourceType"]
        resource, values = self._complete(resource, None, moment)
        rule = Access.writable(self._access.find(rules, type_, lambda: values))
        if rule.readonly:
            restore(resource, {}, rule.readonly)
            resource, values = self._complete(resource, None, moment)
            rule = Access.writable(self._access.find(rules, type_, lambda: values))
        Access.check_constraints((rule,), None, resource)
        resource, values = self._reviewed(resource, values, None, rules, moment)
        self._check_references(resource, None)
        stored = _stored(resource, moment, "create")
        self._write(stored, self._rows(type_, values), effect=effect)
        return self._shown(stored, rule)

    def _replace(
        self,
        current: Current,
        change: Callable[[Json], Json],
        if_match: str | None,
        content_moment: Moment | None = None,
    ) -> tuple[Stored, bool]:
        """Make the next version of a locked resource.

        Args:
            current: the version there is.
            change: gets the resource as the identity sees it, returns what it shall be.
            if_match: the version id the caller has seen.
            content_moment: of a Binary whose content has been saved already: a new version in any case.
        """
        stored = current.stored
        type_ = stored.type
        rules = self._rules(type_, "update")
        previous = None if stored.deleted else stored.resource
        rule = self._rule_before(type_, previous or self._last_live(stored, rules), rules)
        if if_match is not None and if_match != stored.version_id:
            raise errors.precondition_failed()
        seen = {} if stored.deleted else stored.resource
        hide(seen, rule.hidden)
        resource = _clean(change(seen))
        resource |= {"resourceType": type_, "id": stored.id}
        resource = self._with_profile(resource)
        restore(resource, previous or {}, (*rule.hidden, *rule.readonly))
        for hook in hooks.write_hooks(type_):
            hook(self, resource, previous)
        if previous is not None and content_moment is None and self._unchanged(resource, previous):
            return self._shown(stored, rule), False
        moment = content_moment or Moment.after(stored.last_updated)
        resource, values = self._complete(resource, (previous or {}).get("meta"), moment)
        rule_after = Access.writable(self._access.find(rules, type_, lambda: values))
        Access.check_constraints((rule, rule_after), previous, resource)
        resource, values = self._reviewed(resource, values, previous, rules, moment)
        self._check_references(resource, previous)
        if type_ == "Binary" and previous is not None and content_moment is None:
            binaries.copy(self.identity.project, stored.id, stored.version_id, moment.version_id)
        made = _stored(resource, moment, "update")
        old = self._rows(type_, self.index(previous)) if previous is not None else None
        self._write(made, self._rows(type_, values), current, old)
        return self._shown(made, rule), True

    def _with_profile(self, resource: Json) -> Json:
        """A resource that names no profile with those the project has for its type."""
        for type_, profiles in self.identity.default_profiles:
            meta = resource.get("meta") or {}
            if type_ == resource["resourceType"] and isinstance(meta, dict) and not meta.get("profile"):
                return {**resource, "meta": {**meta, "profile": list(profiles)}}
        return resource

    def _check_references(self, resource: Json, previous: Json | None) -> None:
        """Refuse new references to resources of this server that are not there, where the project wants that.

        Raises:
            FhirError: 400 with the place of each.
        """
        if not self.identity.check_references or self.identity.system:
            return
        known = {reference for reference, _ in _references(previous or {}, "")} | self.promised
        given: dict[str, list[str]] = {}
        for reference, path in _references(resource, resource["resourceType"]):
            if reference not in known:
                given.setdefault(reference, []).append(path)
        wanted: dict[str, list[str]] = {}
        for reference in given:
            type_, _, id_ = reference.partition("/")
            wanted.setdefault(type_, []).append(id_)
        for type_, ids in wanted.items():
            found = self.read_many(type_, ids) if self._access.may(type_, "read") else []
            for stored in found:
                given.pop(f"{type_}/{stored.id}", None)
        if given:
            raise errors.invalid_structure(
                errors.issue("Invalid reference (Not found)", expression=path)
                for paths in given.values()
                for path in paths
            )

    def _reviewed(
        self,
        resource: Json,
        values: IndexValues,
        previous: Json | None,
        rules: tuple[Rule, ...],
        moment: Moment,
    ) -> tuple[Json, IndexValues]:
        """The version to store: what is about to be, or what the reviewer puts in its place."""
        interaction = "create" if previous is None else "update"
        other = hooks.review(self, resource, previous, interaction)
        if other is None:
            return resource, values
        type_ = resource["resourceType"]
        other = _clean(other) | {"resourceType": type_, "id": resource["id"]}
        completed, values = self._complete(other, (previous or {}).get("meta"), moment)
        rule = Access.writable(self._access.find(rules, type_, lambda: values))
        Access.check_constraints((rule,), previous, completed)
        return completed, values

    def problems(self, resource: Json, profiles: Sequence[str] = ()) -> list[Json]:
        """What is wrong with a resource by its type's definition, the project's profiles in ``meta.profile`` and others.

        Args:
            resource: with ``resourceType``.
            profiles: canonical URLs of further profiles, of the project or published ones; an unknown one is a problem.

        Returns:
            Issues of severity ``error``; none if the resource may be stored.
        """
        if issues := validate(resource):
            if self.identity.lenient:
                issues = [issue for issue in issues if issue["code"] != "invariant"]
            return issues
        project = self.identity.project
        if not self.identity.lenient and (named := (resource.get("meta") or {}).get("profile")):
            issues, _ = profile_problems(project, resource, named)
        if profiles:
            found, unknown = profile_problems(project, resource, profiles, published=True)
            issues += [issue for issue in found if issue not in issues]
            issues += [errors.issue(f"Profile not found: {url}", code="not-found") for url in unknown]
        return issues

    def check(
        self, interaction: Literal["create", "update", "delete"], type: str, id: str | None = None
    ) -> None:
        """Raise what a write would raise before it looks at the content: 403 without a rule, 404 or 410 without target."""
        rules = self._rules(type, interaction)
        if id is not None:
            stored = self._current(type, id).stored
            if stored.deleted and interaction == "delete":
                raise errors.gone()
            if not stored.deleted:
                self._rule_before(type, stored.resource, rules)

    def _complete(
        self, resource: Json, previous_meta: Json | None, moment: Moment
    ) -> tuple[Json, IndexValues]:
        """Add ``meta``, validate, index. The order of the keys is that of every stored resource."""
        given = resource.get("meta")
        if given is not None and not isinstance(given, dict):
            raise errors.bad_request(
                "Invalid JSON type: expected an object", f"{resource['resourceType']}.meta"
            )
        meta = self._meta(given or {}, previous_meta, moment)
        completed = {"resourceType": resource["resourceType"], "id": resource["id"], "meta": meta}
        completed |= {key: value for key, value in resource.items() if key not in completed}
        if issues := self.problems(completed):
            raise errors.invalid_structure(issues)
        # Whom the resource is about can only be read from a valid one.
        references = [f"Project/{self.identity.project}", *_accounts(meta), *patient_references(completed)]
        meta["compartment"] = [{"reference": reference} for reference in dict.fromkeys(references)]
        return completed, self.index(completed)

    def _meta(self, given: Json, previous: Json | None, moment: Moment) -> Json:
        """``meta`` of a new version: our elements first, then the client's."""
        identity = self.identity
        inherited = previous or {}
        author: Json = {"reference": identity.profile}
        if identity.profile_display:
            author["display"] = identity.profile_display
        if identity.is_admin and given.get("author") not in (None, inherited.get("author")):
            author = given["author"]
        meta: Json = {
            "versionId": moment.version_id,
            "lastUpdated": moment.text,
            "author": author,
            "project": identity.project,
        }
        if identity.on_behalf_of:
            meta["onBehalfOf"] = {"reference": identity.on_behalf_of}
        if previous is None and self._access.compartment:
            inherited = {"account": {"reference": self._access.compartment}}
            inherited["accounts"] = [inherited["account"]]
        for name in _ACCOUNTS:
            # An admin takes accounts away by an empty value; without any they stay.
            value = given[name] if identity.is_admin and name in given else inherited.get(name)
            if value:
                meta[name] = value
        return meta | {name: given[name] for name in _CLIENT_META if name in given}

    def _unchanged(self, resource: Json, previous: Json) -> bool:
        """True if a version with this content would differ in nothing the client decides about."""
        kept = (*_CLIENT_META, *_ACCOUNTS) if self.identity.is_admin else _CLIENT_META

        def essence(version: Json, *, inherit: Json) -> bytes:
            meta = {
                **{name: inherit[name] for name in _ACCOUNTS if name in inherit},
                **(version.get("meta") or {}),
            }
            essential = {**version, "meta": {name: meta[name] for name in kept if name in meta}}
            return orjson.dumps(essential, option=orjson.OPT_SORT_KEYS)

        if not isinstance(resource.get("meta", {}), dict):
            return False
        inherit = previous["meta"]
        try:
            return essence(resource, inherit=inherit) == essence(previous, inherit=inherit)
        except TypeError:
            return False  # not JSON; validation will say where

    # --- access --------------------------------------------------------------------------------------------

    def _rules(self, type_: str, interaction: Interaction) -> tuple[Rule, ...]:
        if not registry.is_resource_type(type_):
            raise errors.bad_request(f"Unknown resource type: {type_}")
        return self._access.rules(type_, interaction)

    def _visible(self, stored: Stored, rules: tuple[Rule, ...]) -> Stored:
        seen = self._seen(stored, rules)
        if seen is None:
            raise errors.not_found()
        return seen

    def _seen(
        self, stored: Stored, rules: tuple[Rule, ...], known: Mapping[Rule, bool] | None = None
    ) -> Stored | None:
        """The version without hidden elements, None if it must not be seen at all; ``known`` as in :meth:`Access.find`."""
        if rules[0] is FULL or stored.deleted:
            return stored
        resource = stored.resource
        rule = self._access.find(rules, stored.type, lambda: self.index(resource), known or {})
        if rule is None or not self._in_security_context(resource):
            return None
        return _without(stored, rule.hidden)

    def _in_security_context(self, resource: Json) -> bool:
        """True if a Binary has no security context, or one this identity may read."""
        if resource["resourceType"] != "Binary" or "securityContext" not in resource:
            return True
        type_, _, id_ = resource["securityContext"].get("reference", "").partition("/")
        if type_ == "AsyncJob":  # what a job has made is its caller's, whoever may read AsyncJobs
            author: str = resource["meta"]["author"]["reference"]
            return author == self.identity.profile
        # No chains of Binaries, which could be circles.
        return type_ != "Binary" and self.may_read(type_, id_)

    def _shown(self, stored: Stored, rule: Rule) -> Stored:
        """A version just written, as its writer may see it."""
        if rule is FULL:
            return stored
        if self._access.may(stored.type, "read"):
            seen = self._seen(stored, self._access.rules(stored.type, "read"))
            if seen is not None:
                return seen
        return _without(stored, rule.hidden)

    def _rule_before(self, type_: str, previous: Json | None, rules: tuple[Rule, ...]) -> Rule:
        """The rule under which an existing resource may be changed; 404 if it cannot be seen either, else 403.

        What is hidden from reading is hidden under that rule as well.
        """
        if rules[0] is FULL or previous is None:
            return rules[0]
        values = cache(lambda: self.index(previous))
        hidden: tuple[str, ...] = ()
        if self._access.may(type_, "read"):
            readable = self._access.find(self._access.rules(type_, "read"), type_, values)
            if readable is None or not self._in_security_context(previous):
                raise errors.not_found()
            hidden = readable.hidden
        rule = Access.writable(self._access.find(rules, type_, values))
        return replace(rule, hidden=tuple(dict.fromkeys((*rule.hidden, *hidden)))) if hidden else rule

    def _check_deleted(self, stored: Stored, rules: tuple[Rule, ...]) -> None:
        """Raise 404 if a deleted resource could not be seen before."""
        previous = self._last_live(stored, rules)
        if (
            previous is not None
            and self._access.find(rules, stored.type, lambda: self.index(previous)) is None
        ):
            raise errors.not_found()

    def _last_live(self, stored: Stored, rules: tuple[Rule, ...]) -> Json | None:
        """The content of a deleted resource before that; None where the rules do not ask for it."""
        if rules[0] is FULL:
            return None
        live = tables.last_live_version(self.identity.project, stored.type, stored.id)
        return live.resource if live else None

    def _visible_versions(self, versions: list[Stored], rules: tuple[Rule, ...]) -> list[Stored]:
        """The versions that may be seen; a deletion counts with the version before it."""
        visible: list[Stored] = []
        shown = False
        for version in reversed(versions):
            if version.deleted:
                seen = version if shown else None
            else:
                seen = self._seen(version, rules)
                shown = seen is not None
            if seen is not None:
                visible.append(seen)
        visible.reverse()
        return visible

    # --- tables --------------------------------------------------------------------------------------------

    def _current(self, type_: str, id: str, *, lock: bool = False) -> Current:
        current = self._find(type_, id, lock=lock)
        if current is None:
            raise errors.not_found()
        return current

    def _find(self, type_: str, id: str, *, lock: bool) -> Current | None:
        if lock:
            hooks.check_not_under_review(self.identity.project, type_, id)
        return tables.find(self.identity.project, type_, id, lock=lock)

    def _rows(self, type_: str, values: IndexValues) -> Rows:
        return rows(tables.hasher(), self.identity.project, type_, values)

    def _write(
        self,
        stored: Stored,
        new: Rows,
        current: Current | None = None,
        old: Rows | None = None,
        effect: tables.Effect | None = None,
    ) -> None:
        origin = tables.Origin(self.identity.profile, self.trace_id, self.depth, self.is_watched)
        tables.write(self.identity.project, stored, new, origin, current, old, effect)
        if self.on_write is not None:
            database.on_commit(partial(self.on_write, stored))


def _with_cursors(requests: Sequence[SearchRequest], *, descending: bool) -> list[SearchRequest]:
    """The requests, each with the cursor that says where its type goes on.

    Of the time the cursor names, types before that of the cursor are through, and those after it have not begun.
    """
    cursor = requests[0].cursor
    if cursor is None:
        return list(requests)
    placed = []
    passed = True
    for request in requests:
        if request.type == cursor.type:
            placed.append(request)
            passed = False
        else:
            step = (-1 if descending else 1) if passed else 0
            placed.append(replace(request, cursor=Cursor(cursor.milliseconds + step, request.type, None)))
    return placed


# --- resources as JSON --------------------------------------------------------------------------------------


def _type_of(resource: Json) -> str:
    type_ = resource.get("resourceType")
    if not isinstance(type_, str):
        raise errors.bad_request("Missing resource type")
    return type_


def _clean(value: Any, depth: int = 0) -> Any:
    """A copy without nulls (outside of lists, where FHIR pairs them) and with folded addresses of Binaries."""
    if depth > MAX_DEPTH:
        raise errors.bad_request(f"The resource is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        cleaned = {}
        for key, item in value.items():
            if isinstance(item, str):
                cleaned[key] = binaries.fold_url(item) if key in ("url", "path") else item
            elif item is not None:
                cleaned[key] = _clean(item, depth + 1)
        return cleaned
    if isinstance(value, list):
        return [_clean(item, depth + 1) for item in value]
    return value


def _without(stored: Stored, fields: Sequence[str]) -> Stored:
    if not fields:
        return stored
    resource = stored.resource
    hide(resource, fields)
    meta = resource.get("meta") or {}
    if "compartment" in meta:
        # Which patients it is about follows from its elements, so hidden ones must not show there.
        seen = {*_accounts(meta), *patient_references(resource)}
        meta["compartment"] = [
            each
            for each in meta["compartment"]
            if not each["reference"].startswith("Patient/") or each["reference"] in seen
        ]
    return replace(stored, content=orjson.dumps(resource))


def _references(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The references to resources of this server (``Type/id``) in a resource, with their paths; without ``meta``."""
    if isinstance(value, list):
        for place, each in enumerate(value):
            yield from _references(each, f"{path}[{place}]")
    elif isinstance(value, dict):
        reference = value.get("reference")
        if isinstance(reference, str):
            type_, _, id_ = reference.partition("/_history/")[0].partition("/")
            if registry.is_resource_type(type_) and canonical_uuid(id_) is not None:
                yield f"{type_}/{id_}", f"{path}.reference"
        for name, each in value.items():
            if isinstance(each, dict | list) and name != "meta":
                yield from _references(each, f"{path}.{name}")


def _accounts(meta: Mapping[str, Any]) -> list[str]:
    given = [meta.get("account"), *(meta.get("accounts") or ())]
    return [account["reference"] for account in given if account and "reference" in account]


def _split_data(resource: Json) -> tuple[Json, IO[bytes] | None]:
    """A Binary without its ``data``, and the content that was there in base64; else the resource as it is."""
    if resource.get("resourceType") != "Binary" or "data" not in resource:
        return resource, None
    try:
        # FHIR allows white space in it
        content = io.BytesIO(base64.b64decode("".join(resource["data"].split()), validate=True))
    except (AttributeError, TypeError, ValueError, binascii.Error):
        raise errors.bad_request("Invalid base64 data", "Binary.data") from None
    return {key: value for key, value in resource.items() if key != "data"}, content


def _stored(resource: Json, moment: Moment, interaction: Literal["create", "update", "delete"]) -> Stored:
    try:
        content = orjson.dumps(resource)
    except TypeError as error:
        raise errors.bad_request(f"Not JSON: {error}") from None
    return Stored(
        resource["resourceType"],
        resource["id"],
        moment.version_id,
        moment.last_updated,
        content,
        interaction == "delete",
        interaction,
    )
