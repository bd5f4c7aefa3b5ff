"""What the modifiers ``:in``, ``:above`` and ``:below`` stand for, looked up for one identity (see :mod:`.search.expand`)."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Final

from fhirstore import errors
from fhirstore.repository import Repository
from fhirstore.search.expand import MAX_VALUES, Direction
from fhirstore.search.model import Clause, Kind, ReferenceValue, SearchRequest, TokenValue
from fhirstore.search.terms import canonical_uuid
from fhirstore.terminology import Terminology

_PART_OF: Final = ("partof", "part-of")
"""Codes of the parameters that make a hierarchy of resources."""
_STEP: Final = 200
"""Resources asked about at a time."""


class RepositoryLookup:
    """Looks up through a Repository: terminology of its project and of the definitions, hierarchies as it may see them."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    @cached_property
    def _terminology(self) -> Terminology:
        return Terminology(self._repository)

    def codes(self, value_set: str) -> Collection[tuple[str, str]]:
        """System and code of all in a ValueSet."""
        if value_set.startswith("ValueSet/"):
            resource = self._repository.read_reference(value_set).resource
        else:
            resource = self._terminology.find("ValueSet", value_set) or {}
        if not resource:
            raise errors.bad_request(f"ValueSet not found: {value_set}")
        return [concept.key for concept in self._terminology.expand(resource)]

    def related_codes(self, system: str, code: str, direction: Direction) -> Collection[str]:
        """The codes above or below a code."""
        found = self._terminology.known_system(system)
        concept = found.check(code)
        if concept is None:
            raise errors.bad_request(f"Code not found in CodeSystem {system}: {code}")
        return found.descendants(concept.code) if direction == "below" else found.ancestors(concept.code)

    def related_resources(self, type: str, id: str, direction: Direction) -> Collection[str]:
        """The ids of what a resource is part of, or what is part of it."""
        parameters = self._repository.search_parameters(type)
        parameter = next((parameters[code] for code in _PART_OF if code in parameters), None)
        if parameter is None or parameter.kind is not Kind.REFERENCE or type not in parameter.targets:
            raise errors.bad_request(f"{type} has no hierarchy that :{direction} could follow")
        seen = {id}
        latest = [id]
        while latest:
            if len(seen) > MAX_VALUES:
                raise errors.too_costly(f"More than {MAX_VALUES} resources are {direction} {type}/{id}")
            step, latest = latest[:_STEP], latest[_STEP:]
            if direction == "below":
                clause = Clause(parameter, tuple(ReferenceValue(type, each) for each in step))
            else:
                ids = tuple(TokenValue(None, each) for each in step if canonical_uuid(each))
                clause = Clause(parameters["_id"], ids)
            for stored in self._repository.search_up_to(SearchRequest(type, (clause,)), None):
                references = self._repository.index(stored.resource).references.get(parameter.code, ())
                wholes = [each.id for each in references if each.type == type and each.id]
                found = [stored.id] if direction == "below" else wholes
                latest += [each for each in found if each not in seen]
                seen.update(found)
        return seen - {id}
