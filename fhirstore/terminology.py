"""Code systems, value sets and concept maps: the project's own resources first, then those FHIR and Medplum publish.

Meaning: https://hl7.org/fhir/R4/terminology-module.html. What cannot be known here (a code system that is neither stored
nor published, or whose codes are not) is refused with words, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Final, Literal

import psycopg

from fhirstore import database
from fhirstore.definitions import registry
from fhirstore.errors import FhirError, bad_request
from fhirstore.repository import Repository
from fhirstore.search.parse import escape, parse

Json = dict[str, Any]
Type = Literal["CodeSystem", "ValueSet", "ConceptMap"]

MAX_NESTING: Final = 20
"""Value sets inside value sets; deeper ones are refused."""

MAX_LEVELS: Final = 40
"""Levels of a tree of concepts; what is further below is listed behind it."""

_ABSTRACT: Final = frozenset({"notSelectable", "abstract"})
_INACTIVE: Final = frozenset({"retired", "inactive"})


@dataclass(frozen=True, slots=True)
class Concept:
    """A code of a code system, or of a value set.

    Attributes:
        designations: other words for it, as in FHIR.
        properties: as in CodeSystem.concept.property.
        definition: what it means.
    """

    system: str
    code: str
    display: str | None = None
    version: str | None = None
    designations: Sequence[Json] = ()
    properties: Sequence[Json] = ()
    definition: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """System and code: what makes it this concept."""
        return self.system, self.code

    @property
    def abstract(self) -> bool:
        """It only groups others and is not meant to be chosen."""
        return any(
            each.get("valueBoolean") is True and each.get("code") in _ABSTRACT for each in self.properties
        )

    @property
    def inactive(self) -> bool:
        """It is no longer meant to be used."""
        return any(
            (each.get("code") == "inactive" and each.get("valueBoolean") is True)
            or (each.get("code") == "status" and _value(each) in _INACTIVE)
            for each in self.properties
        )

    def in_language(self, language: str) -> Concept:
        """The concept with its display in a language (``de``, also for ``de-CH``), itself if it has none there."""
        wanted = language.casefold()
        for each in self.designations:
            spoken = str(each.get("language", "")).casefold()
            if each.get("value") and (
                spoken == wanted or spoken.partition("-")[0] == wanted.partition("-")[0]
            ):
                return replace(self, display=each["value"])
        return self

    def is_called(self, display: str) -> bool:
        """True if `display` is one of its words, whatever the case."""
        names = [self.display, *(each.get("value") for each in self.designations)]
        return display.casefold() in (name.casefold() for name in names if name)


class CodeSystem:
    """The concepts of a CodeSystem resource and how they are arranged."""

    def __init__(self, resource: Json) -> None:
        self.resource = resource
        self.url: str = resource.get("url", "")
        self.version: str | None = resource.get("version")
        self.concepts: dict[str, Concept] = {}
        self._parents: dict[str, set[str]] = {}
        self._add(resource.get("concept", ()), None)

    def _add(self, concepts: Iterable[Json], parent: str | None) -> None:
        for raw in concepts:
            code = raw["code"]
            parents = self._parents.setdefault(code, set())
            if parent is not None:
                parents.add(parent)
            for each in raw.get("property", ()):
                if each["code"] in ("parent", "subsumedBy"):
                    parents.add(str(_value(each)))
                elif each["code"] == "child":
                    self._parents.setdefault(str(_value(each)), set()).add(code)
            self.concepts[code] = Concept(
                self.url,
                code,
                raw.get("display"),
                self.version,
                raw.get("designation", ()),
                raw.get("property", ()),
                raw.get("definition"),
            )
            self._add(raw.get("concept", ()), code)

    def find(self, code: str) -> Concept | None:
        """The concept with a code, by the rules of the code system about upper and lower case."""
        found = self.concepts.get(code)
        if found is None and self.resource.get("caseSensitive") is False:
            return self._folded.get(code.casefold())
        return found

    def check(self, code: str) -> Concept | None:
        """The same; raises FhirError (400) for a code that is not here while others of the code system are missing as well."""
        found = self.find(code)
        if found is None and self.resource.get("content") not in ("complete", None):
            raise bad_request(
                f"The codes of CodeSystem {self.url} are not all present here: {code} cannot be checked"
            )
        return found

    @cached_property
    def _folded(self) -> Mapping[str, Concept]:
        return {code.casefold(): concept for code, concept in self.concepts.items()}

    def parents(self, code: str) -> set[str]:
        """The codes directly above."""
        return {parent for parent in self._parents.get(code, ()) if parent in self.concepts}

    def children(self, code: str) -> set[str]:
        """The codes directly below."""
        return set(self._children.get(code, ()))

    @cached_property
    def _children(self) -> Mapping[str, set[str]]:
        children: dict[str, set[str]] = {}
        for code in self.concepts:
            for parent in self.parents(code):
                children.setdefault(parent, set()).add(code)
        return children

    def descendants(self, code: str) -> set[str]:
        """All codes below."""
        return _reach(code, self.children)

    def ancestors(self, code: str) -> set[str]:
        """All codes above."""
        return _reach(code, self.parents)


def _reach(code: str, step: Callable[[str], set[str]]) -> set[str]:
    """All codes that can be reached from `code` by steps, without itself; circles do no harm."""
    seen: set[str] = set()
    ahead = step(code)
    while ahead:
        seen |= ahead
        ahead = {further for each in ahead for further in step(each)} - seen
    return seen - {code}


@lru_cache(maxsize=256)
def _published_system(url: str) -> CodeSystem | None:
    resource = registry.library().get("CodeSystem", url)
    return CodeSystem(resource) if resource else None


# --- finding -----------------------------------------------------------------------------------------------------------


@dataclass
class Terminology:
    """The terminology of a project as its `repository` may see it; made for one request, as it remembers what it found."""

    repository: Repository
    _systems: dict[str, CodeSystem | None] = field(default_factory=dict)
    _expansions: dict[str, dict[tuple[str, str], Concept]] = field(default_factory=dict)

    def find(self, type: Type, url: str) -> Json | None:
        """The resource with a canonical URL, ``url`` or ``url|version``; of several own ones the latest."""
        plain, _, version = url.partition("|")
        for own in self._own(type, plain):
            if not version or own.get("version") == version:
                return own
        published = registry.library().get(type, plain)
        if published and (not version or published.get("version") in (version, None)):
            return published
        return None

    def _own(self, type: Type, url: str) -> list[Json]:
        query = [("url", escape(url)), ("_sort", "-_lastUpdated"), ("_count", "20")]
        try:
            return [stored.resource for stored in self.repository.search_all(type, query)] if url else []
        except FhirError as error:
            if error.status != 403:
                raise
            return []

    def system(self, url: str) -> CodeSystem | None:
        """The code system with a canonical URL; None if there is none here."""
        if url not in self._systems:
            resource = self.find("CodeSystem", url)
            plain = url.partition("|")[0]
            published = resource is not None and "meta" not in resource  # what is stored has it
            self._systems[url] = (
                _published_system(plain) if published else CodeSystem(resource) if resource else None
            )
        return self._systems[url]

    def known_system(self, url: str) -> CodeSystem:
        """The same; raises FhirError (400) without one."""
        system = self.system(url)
        if system is None:
            raise bad_request(f"CodeSystem not found: {url}")
        return system

    def value_set(self, url: str) -> Json:
        """The value set with a canonical URL; raises FhirError (400) without one."""
        resource = self.find("ValueSet", url)
        if resource is None:
            raise bad_request("ValueSet not found")
        return resource

    # --- value sets ---

    def expand(self, value_set: Json) -> list[Concept]:
        """All concepts of a value set in order.

        Raises:
            FhirError: 400 if it cannot be listed; the text says why.
        """
        return list(self._expand(value_set, ()).values())

    def nested(self, concepts: Iterable[Concept]) -> list[tuple[Concept, Any]]:
        """Arrange concepts as their code systems do: (concept, the same of those directly below), none twice."""
        listed = {concept.key: concept for concept in concepts}
        below: dict[tuple[str, str] | None, list[Concept]] = {}
        for concept in listed.values():
            system = self.system(concept.system) if concept.system else None
            parents = system.parents(concept.code) if system else set()
            above = next(
                ((concept.system, each) for each in sorted(parents) if (concept.system, each) in listed), None
            )
            below.setdefault(above, []).append(concept)
        placed: set[tuple[str, str]] = set()

        def tree(above: tuple[str, str] | None, level: int) -> list[tuple[Concept, Any]]:
            branches = []
            for concept in below.get(above, ()) if level < MAX_LEVELS else ():
                if concept.key not in placed:
                    placed.add(concept.key)
                    branches.append((concept, tree(concept.key, level + 1)))
            return branches

        roots = tree(None, 0)
        # Those in a circle, or too far below, hang on nothing.
        return roots + [(concept, []) for key, concept in listed.items() if key not in placed]

    def find_in(self, value_set: Json, system: str | None, code: str) -> Concept | None:
        """The concept of a value set with this code; without `system` of any.

        Raises:
            FhirError: 400 if that cannot be told.
        """
        return self._find_in(value_set, system, code, ())

    def _find_in(
        self, value_set: Json, system: str | None, code: str, path: tuple[str, ...]
    ) -> Concept | None:
        compose = value_set.get("compose")
        if compose is None or compose.get("exclude"):
            concepts = self._expand(value_set, path).values()
            return next(
                (each for each in concepts if each.code == code and system in (None, each.system)), None
            )
        path = _deeper(value_set, path)
        unknown: FhirError | None = None
        for include in compose.get("include", ()):
            # Parts about other code systems need not be known to tell.
            if system is not None and include.get("system", system) != system:
                continue
            try:
                found = self._find_in_part(include, system, code, path)
            except FhirError as error:
                if error.status != 400:
                    raise
                unknown = error
                continue
            if found:
                return found
        if unknown:
            raise unknown
        return None

    def _find_in_part(
        self, include: Json, system: str | None, code: str, path: tuple[str, ...]
    ) -> Concept | None:
        nested = [self._nested(url) for url in include.get("valueSet", ())]
        found = None
        if "system" in include:
            found = self._in_system(include, code)
        elif nested:
            found = self._find_in(nested[0], system, code, path)
        if found and all(self._find_in(each, found.system, found.code, path) for each in nested):
            return found
        return None

    def _in_system(self, include: Json, code: str) -> Concept | None:
        if "concept" in include:
            system = self.system(_versioned(include))
            exact = system.find(code) if system else None
            wanted = exact.code if exact else code
            return next((each for each in self._listed(include) if each.code == wanted), None)
        concept = self.known_system(_versioned(include)).check(code)
        if concept and "filter" in include:
            return next((each for each in self._listed(include) if each.code == concept.code), None)
        return concept

    def _expand(self, value_set: Json, path: tuple[str, ...]) -> dict[tuple[str, str], Concept]:
        url = value_set.get("url", "")
        if url and path and url in self._expansions:
            return self._expansions[url]
        compose = value_set.get("compose")
        deeper = _deeper(value_set, path)
        if compose is None:
            contained = _contained((value_set.get("expansion") or {}).get("contains", ()))
            found = {concept.key: concept for concept in contained}
        else:
            found = {}
            for include in compose.get("include", ()):
                for key, concept in self._include(include, deeper).items():
                    found.setdefault(key, concept)
            for exclude in compose.get("exclude", ()):
                for key in self._include(exclude, deeper):
                    found.pop(key, None)
            if compose.get("inactive") is False:
                found = {key: concept for key, concept in found.items() if not concept.inactive}
        self._expansions[url] = found
        return found

    def _include(self, include: Json, path: tuple[str, ...]) -> dict[tuple[str, str], Concept]:
        """What one include means: what its system and its value sets have in common."""
        parts = [self._expand(self._nested(url), path) for url in include.get("valueSet", ())]
        if "system" in include:
            parts.insert(0, {concept.key: concept for concept in self._listed(include)})
        if not parts:
            return {}
        first, *others = parts
        return {key: concept for key, concept in first.items() if all(key in other for other in others)}

    def _nested(self, url: str) -> Json:
        plain = url.partition("|")[0]
        found = self.find("ValueSet", url) or self.find("ValueSet", plain)
        if found is None:
            raise bad_request(f"ValueSet not found: {url}")
        return found

    def _listed(self, include: Json) -> Iterator[Concept]:
        """The concepts an include takes from its code system."""
        url = _versioned(include)
        if "concept" in include:
            system = self.system(url)
            for each in include["concept"]:
                known = system.find(each["code"]) if system else None
                yield replace(
                    known or Concept(include["system"], each["code"]),
                    display=each.get("display") or (known.display if known else None),
                    designations=each.get("designation") or (known.designations if known else ()),
                )
            return
        system = self.known_system(url)
        if not system.concepts and system.resource.get("content") == "not-present":
            raise bad_request(f"The codes of CodeSystem {url} are not present here")
        wanted: set[str] | None = None
        for rule in include.get("filter", ()):
            matches = _matches(system, rule)
            wanted = matches if wanted is None else wanted & matches
        yield from (concept for code, concept in system.concepts.items() if wanted is None or code in wanted)

    # --- concept maps ---

    def concept_maps(self, systems: Sequence[str], *, reverse: bool = False, limit: int) -> list[Json]:
        """Concept maps, at most `limit` own ones, that start (with `reverse`: end) at one of these code systems."""
        side = "target" if reverse else "source"
        query = [(f"{side}-system", ",".join(map(escape, systems))), ("_count", str(limit))]
        found = [stored.resource for stored in self.repository.search(parse("ConceptMap", query)).entries]
        library = registry.library()
        for url in library.urls("ConceptMap"):
            published = library.get("ConceptMap", url) or {}
            if any(group.get(side) in systems for group in published.get("group", ())):
                found.append(published)
        return found

    def translate(
        self,
        concept_map: Json,
        system: str | None,
        code: str,
        target: str | None = None,
        *,
        reverse: bool = False,
    ) -> list[Json]:
        """What a code of `system` becomes in other code systems.

        Args:
            concept_map: a ConceptMap.
            system: None for any.
            code: the code.
            target: take only this target code system.
            reverse: read the map backwards.

        Returns:
            ``{equivalence, concept, source}`` of each match; `source` is the URL of the map.
        """
        return list(self._translate(concept_map, system, code, target, reverse, ()))

    def _translate(
        self,
        concept_map: Json,
        system: str | None,
        code: str,
        target: str | None,
        reverse: bool,
        path: tuple[str, ...],
    ) -> Iterator[Json]:
        path = _deeper(concept_map, path)
        source, wanted = ("target", "source") if reverse else ("source", "target")
        for group in concept_map.get("group", ()):
            if system not in (None, group.get(source)) or target not in (None, group.get(wanted)):
                continue
            found = list(_mapped(group, code, reverse))
            if not found and not reverse:
                if other := (group.get("unmapped") or {}).get("url"):
                    other_map = self.find("ConceptMap", other)
                    if other_map is None:
                        raise bad_request(f"ConceptMap not found: {other}")
                    yield from self._translate(other_map, system, code, target, reverse, path)
                    continue
                found = list(_unmapped(group, code))
            for equivalence, coding in found:
                match: Json = {"equivalence": equivalence}
                if coding:
                    match["concept"] = {"system": group[wanted], **coding} if wanted in group else coding
                if concept_map.get("url"):
                    match["source"] = concept_map["url"]
                yield match


def _mapped(group: Json, code: str, reverse: bool) -> Iterator[tuple[str, Json]]:
    for element in group.get("element", ()):
        for target in element.get("target", ()):
            here, there = (target, element) if reverse else (element, target)
            if here.get("code") == code:
                yield target.get("equivalence", "equivalent"), _coding(there)
        if not reverse and element.get("code") == code and not element.get("target"):
            yield "unmatched", {}


def _unmapped(group: Json, code: str) -> Iterator[tuple[str, Json]]:
    unmapped = group.get("unmapped") or {}
    if unmapped.get("mode") == "provided":
        yield "equal", {"code": code}
    elif unmapped.get("mode") == "fixed":
        yield "inexact", _coding(unmapped)


def _coding(element: Json) -> Json:
    return {name: element[name] for name in ("code", "display") if name in element}


def _deeper(resource: Json, path: tuple[str, ...]) -> tuple[str, ...]:
    """`path` with this resource; raises FhirError (400) for a circle, or too many levels."""
    url = resource.get("url", "")
    if (url and url in path) or len(path) >= MAX_NESTING:
        raise bad_request(f"{resource['resourceType']} includes itself, or is nested too deeply: {url}")
    return (*path, url)


def _versioned(include: Json) -> str:
    return f"{include['system']}|{include['version']}" if include.get("version") else include["system"]


def _contained(contains: Iterable[Json]) -> Iterator[Concept]:
    for each in contains:
        if "code" in each:
            properties = [
                {"code": name, "valueBoolean": True} for name in ("abstract", "inactive") if each.get(name)
            ]
            yield Concept(
                each.get("system", ""),
                each["code"],
                each.get("display"),
                each.get("version"),
                each.get("designation", ()),
                properties,
            )
        yield from _contained(each.get("contains", ()))


# --- filters -----------------------------------------------------------------------------------------------------------


def _matches(system: CodeSystem, rule: Json) -> set[str]:
    """The codes a filter of a value set lets through (https://hl7.org/fhir/R4/valueset-filter-operator.html)."""
    property, operator, value = rule.get("property", ""), rule.get("op", ""), rule.get("value", "")
    everything = set(system.concepts)
    match operator:
        case "is-a":
            return (system.descendants(value) | {value}) & everything
        case "descendent-of":
            return system.descendants(value)
        case "is-not-a":
            return everything - system.descendants(value) - {value}
        case "generalizes":
            return (system.ancestors(value) | {value}) & everything
    values = {code: _values(system, concept, property) for code, concept in system.concepts.items()}
    match operator:
        case "=":
            return {code for code, each in values.items() if value in each}
        case "in" | "not-in":
            listed = {part.strip() for part in value.split(",")}
            inside = {code for code, each in values.items() if listed & each}
            return inside if operator == "in" else everything - inside
        case "exists":
            return {code for code, each in values.items() if bool(each) == (value == "true")}
        case "regex":
            fitting = _fitting(value, {text for each in values.values() for text in each})
            return {code for code, each in values.items() if each & fitting}
    raise bad_request(f"Unknown filter operator: {operator}")


def _values(system: CodeSystem, concept: Concept, property: str) -> set[str]:
    """The values a concept has of a property, as texts."""
    match property:
        case "code" | "concept":
            return {concept.code}
        case "display":
            return {concept.display} if concept.display else set()
        case "parent":
            return system.parents(concept.code)
        case "child":
            return system.children(concept.code)
    return {_text(each) for each in concept.properties if each.get("code") == property}


def _fitting(pattern: str, texts: Iterable[str]) -> set[str]:
    """The texts a regular expression describes as a whole.

    PostgreSQL looks for them, as a search there is stopped when it takes too long: a pattern from outside may take forever.
    """
    statement = "SELECT text FROM unnest(%(texts)s::text[]) AS t(text) WHERE text ~ %(pattern)s"
    if "\0" in pattern or not _is_pattern(pattern):
        raise bad_request(f"Invalid regular expression in a value set: {pattern}")
    listed = [text for text in texts if "\0" not in text]
    try:
        with (
            database.connection() as connection,
            connection.transaction(),
        ):  # inside a Bundle's it is a savepoint
            rows = connection.execute(statement, {"texts": listed, "pattern": f"^(?:{pattern})$"})
            return {row[0] for row in rows}
    except psycopg.errors.InvalidRegularExpression:
        raise bad_request(f"Invalid regular expression in a value set: {pattern}") from None


def _is_pattern(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _value(property: Json) -> Any:
    return next((value for name, value in property.items() if name.startswith("value")), None)


def _text(property: Json) -> str:
    value = _value(property)
    if isinstance(value, dict):
        return str(value.get("code", ""))
    return str(value).lower() if isinstance(value, bool) else str(value)
