"""``_include`` and ``_revinclude``: what is sent along with the matches of a search (search.html#include).

Everything is read through the caller's Repository, so what an AccessPolicy hides is not included, and a reference in an
element that it hides leads nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from fhirstore.definitions import registry
from fhirstore.errors import FhirError
from fhirstore.search.model import Clause, Include, Kind, ReferenceValue, SearchRequest, UriValue, Value
from fhirstore.search.sql import MAX_PAGE_BYTES
from fhirstore.search.terms import canonical_uuid
from fhirstore.tables import Stored

if TYPE_CHECKING:
    from fhirstore.repository import Repository

MAX_INCLUDED: Final = 1000
"""More is not sent along with one page."""
MAX_BYTES: Final = MAX_PAGE_BYTES
"""Nor more of them than this."""
MAX_ROUNDS: Final = 20
"""How often ``:iterate`` goes on from what it has found."""


def included(
    repository: Repository, includes: Sequence[Include], matches: Sequence[Stored]
) -> tuple[list[Stored], bool]:
    """Return what the includes add to the matches, without the matches themselves, and whether that is all of it."""
    seen = {(stored.type, stored.id) for stored in matches}
    found: list[Stored] = []
    size = 0
    latest: Sequence[Stored] = matches
    applied = includes
    for _ in range(MAX_ROUNDS):
        new: list[Stored] = []
        for include in applied:
            # What is found in this round is for the next.
            for stored in _follow(repository, include, latest):
                if (stored.type, stored.id) not in seen:
                    size += len(stored.content)
                    if len(found) + len(new) == MAX_INCLUDED or size > MAX_BYTES:
                        return found + new, False
                    seen.add((stored.type, stored.id))
                    new.append(stored)
        found += new
        latest, applied = new, [include for include in includes if include.iterate]
        if not new or not applied:
            return found, True
    return found, False


def _follow(repository: Repository, include: Include, resources: Iterable[Stored]) -> Iterator[Stored]:
    try:
        if include.reverse:
            yield from _holders(repository, include, resources)
        else:
            yield from _targets(repository, include, resources)
    except FhirError as error:
        # A type the caller may not search adds nothing, like resources he may not see.
        if error.status != 403:
            raise


def _targets(repository: Repository, include: Include, resources: Iterable[Stored]) -> Iterator[Stored]:
    """What the reference parameter of the resources points to."""
    ids: dict[str, dict[str, None]] = {}
    canonicals: dict[str, None] = {}
    for stored in resources:
        if stored.type != include.type:
            continue
        for reference in repository.index(stored.resource).references.get(include.parameter.code, ()):
            if reference.url is not None:
                canonicals[reference.url] = None
            elif reference.type and reference.id and include.target in (None, reference.type):
                ids.setdefault(reference.type, {})[reference.id] = None
    for type_, wanted in ids.items():
        if registry.is_resource_type(type_):
            yield from repository.read_many(type_, [id_ for id_ in wanted if canonical_uuid(id_)])
    if canonicals:
        for type_ in (include.target,) if include.target else include.parameter.targets:
            yield from _by_canonical(repository, type_, list(canonicals))


def _by_canonical(repository: Repository, type_: str, canonicals: Sequence[str]) -> Iterator[Stored]:
    """The resources of a type with one of these canonical URLs (``url`` or ``url|version``)."""
    parameter = registry.search_parameter(type_, "url")
    if parameter is None or parameter.kind is not Kind.URI:
        return
    urls = dict.fromkeys(canonical.partition("|")[0] for canonical in canonicals)
    clause = Clause(parameter, tuple(UriValue(url) for url in urls))
    for stored in repository.search(SearchRequest(type_, (clause,), count=MAX_INCLUDED)).entries:
        resource = stored.resource
        if (
            resource.get("url") in canonicals
            or f"{resource.get('url')}|{resource.get('version')}" in canonicals
        ):
            yield stored


def _holders(repository: Repository, include: Include, resources: Iterable[Stored]) -> Iterator[Stored]:
    """The resources whose reference parameter points to one of these."""
    possible = (include.target,) if include.target else include.parameter.targets
    values: list[Value] = []
    for stored in resources:
        if possible and stored.type not in possible:
            continue
        values.append(ReferenceValue(stored.type, stored.id))
        if registry.search_parameter(stored.type, "url") is not None:
            resource = stored.resource
            if isinstance(url := resource.get("url"), str):
                values.append(ReferenceValue(None, None, url))
                if "version" in resource:
                    values.append(ReferenceValue(None, None, f"{url}|{resource['version']}"))
    if values:
        clause = Clause(include.parameter, tuple(values))
        # One more than there is room for, so that it shows.
        yield from repository.search_up_to(SearchRequest(include.type, (clause,)), MAX_INCLUDED + 1)
