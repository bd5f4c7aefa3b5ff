"""Filling terminology in bulk (``CodeSystem/$import``, ``ConceptMap/$import``), and ``StructureDefinition/$expand-profile``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from fhirstore import database, published
from fhirstore.errors import bad_request, not_found
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.repository import Stored
from fhirstore.rest.parameters import read_input
from fhirstore.search.parse import escape

Json = dict[str, Any]

MAX_PROFILES: Final = 200

_HIERARCHY: Final = frozenset({"parent", "child"})
"""Properties every code system has (https://hl7.org/fhir/R4/codesystem-concept-properties.html)."""

_EQUIVALENCES: Final = {
    "related-to": "relatedto",
    "source-is-narrower-than-target": "wider",
    "source-is-broader-than-target": "narrower",
    "not-related-to": "disjoint",
}
"""R4's words for those of R5."""


def register() -> None:
    """Register the operations; called once at start-up."""
    register_operation(
        "$import", import_codes, types=["CodeSystem"], type=True, instance=True, methods=["POST"]
    )
    register_operation(
        "$import", import_mappings, types=["ConceptMap"], type=True, instance=True, methods=["POST"]
    )
    register_operation("$expand-profile", expand_profile, types=["StructureDefinition"], type=True)


def import_codes(request: OperationRequest) -> Stored:
    """``CodeSystem/$import``: add codes to a stored code system, or change them; answers the CodeSystem.

    Parameters: ``system`` (canonical URL, or call it on an instance), ``concept`` (Coding, repeated), ``property`` (repeated, parts
    ``code``, ``property`` and ``value``: of a code known then, a property the code system declares, or ``parent``, ``child``).

    Raises:
        FhirError: 400 for parameters that cannot be used, 404 for a code system that is not stored in the project, 403.
    """
    given = read_input(request)
    concepts = [_coding(each, "concept") for each in given.all("concept")]
    properties = [_parts(each, "property") for each in given.all("property")]
    if not concepts and not properties:
        raise bad_request("Missing parameter concept")

    def fill(resource: Json) -> None:
        known = {each["code"]: each for each in _all_concepts(resource.get("concept", ()))}
        for coding in concepts:
            if coding["code"] not in known:
                known[coding["code"]] = {"code": coding["code"]}
                resource.setdefault("concept", []).append(known[coding["code"]])
            if coding.get("display"):
                known[coding["code"]]["display"] = coding["display"]
        kinds = {each["code"]: each["type"] for each in resource.get("property", ())}
        for each in properties:
            code, name, value = (_text(each, "code"), _text(each, "property"), each.get("value"))
            if code not in known:
                raise bad_request(f"Unknown code: {code}")
            kind = "code" if name in _HIERARCHY else kinds.get(str(name))
            if kind is None:
                raise bad_request(f"Unknown property: {name}")
            key = "value" + kind[0].upper() + kind[1:]
            entry = {"code": name, key: _typed(kind, value)}
            listed = known[code].setdefault("property", [])
            if entry not in listed:
                listed.append(entry)

    return _change(request, "CodeSystem", given.text("system") or given.text("url"), fill)


def import_mappings(request: OperationRequest) -> Stored:
    """``ConceptMap/$import``: add mappings to a stored concept map; answers the ConceptMap.

    Parameters: ``url`` (or call it on an instance), ``mapping`` (repeated, parts ``source`` and ``target`` (Coding),
    ``relationship`` (R5's or R4's words, ``equivalent`` without it), ``comment``).

    Raises:
        FhirError: as :func:`import_codes`.
    """
    given = read_input(request)
    mappings = [_parts(each, "mapping") for each in given.all("mapping")]
    if not mappings:
        raise bad_request("Missing parameter mapping")

    def fill(resource: Json) -> None:
        groups = {(each.get("source"), each.get("target")): each for each in resource.get("group", ())}
        for mapping in mappings:
            source, target = (_coding(mapping.get(name), name) for name in ("source", "target"))
            key = (source.get("system"), target.get("system"))
            if key not in groups:
                made: Json = {
                    name: system for name, system in zip(("source", "target"), key, strict=True) if system
                }
                groups[key] = {**made, "element": []}
                resource.setdefault("group", []).append(groups[key])
            elements = groups[key]["element"]
            element = next((each for each in elements if each.get("code") == source["code"]), None)
            if element is None:
                element = {name: source[name] for name in ("code", "display") if source.get(name)}
                elements.append(element)
            relation = str(mapping.get("relationship") or mapping.get("equivalence") or "equivalent")
            entry = {name: target[name] for name in ("code", "display") if target.get(name)}
            entry["equivalence"] = _EQUIVALENCES.get(relation, relation)
            if mapping.get("comment"):
                entry["comment"] = mapping["comment"]
            others = [each for each in element.get("target", ()) if each.get("code") != target["code"]]
            element["target"] = [*others, entry]

    return _change(request, "ConceptMap", given.text("url"), fill)


def _change(request: OperationRequest, type: str, url: str | None, fill: Callable[[Json], None]) -> Stored:
    """Change the resource on which the operation is called, or the stored one with a canonical URL."""
    repository = request.repository
    with repository.transaction():
        database.lock(f"{repository.identity.project} import {type} {request.id or url}")
        if request.id is not None:
            stored: Stored | None = repository.read(type, request.id)
        elif url:
            stored = repository.search_one(type, [("url", escape(url))])
        else:
            raise bad_request("Missing parameter " + ("system" if type == "CodeSystem" else "url"))
        if stored is None:
            raise not_found(f"{type} {url} is not stored in this project")
        resource = stored.resource
        fill(resource)
        return repository.update(resource, if_match=stored.version_id)[0]


def _all_concepts(concepts: Iterable[Json]) -> Iterator[Json]:
    for concept in concepts:
        yield concept
        yield from _all_concepts(concept.get("concept", ()))


def _coding(value: Any, name: str) -> Json:
    if not isinstance(value, dict) or not isinstance(value.get("code"), str):
        raise bad_request(f"{name} must be a Coding with a code")
    if not isinstance(value.get("system"), str | None):
        raise bad_request(f"The system of {name} must be a text")
    return value


def _text(parts: Json, name: str) -> str:
    text = parts.get(name)
    if not isinstance(text, str):
        raise bad_request(f"A property must have a {name}, which is a text")
    return text


def _parts(value: Any, name: str) -> dict[str, Any]:
    """The parts of a parameter by name."""
    if not isinstance(value, list) or not all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in value
    ):
        raise bad_request(f"{name} must have parts")
    return {
        each["name"]: next((item for key, item in each.items() if key.startswith("value")), None)
        for each in value
    }


def _typed(kind: str, value: Any) -> Any:
    """A property's value of the type its code system declares; texts are read as what they shall be."""
    if value is None:
        raise bad_request("A property must have a value")
    if kind == "Coding":
        return _coding(value, "value")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        match kind:
            case "boolean" if text in ("true", "false"):
                return text == "true"
            case "integer":
                return int(text)
            case "decimal":
                return float(text)
            case "code" | "string" | "dateTime":
                return text
    except ValueError:
        pass
    raise bad_request(f"Invalid value of a property of type {kind}")


# --- profiles --------------------------------------------------------------------------------------------------------


def expand_profile(request: OperationRequest) -> Json:
    """``StructureDefinition/$expand-profile?url=``: a profile, and the profiles its elements refer to, as a searchset Bundle.

    Raises:
        FhirError: 400 without ``url``, 404 for a profile that is neither stored nor published.
    """
    url = read_input(request).required("url")
    first = _profile(request, url)
    if first is None:
        raise not_found("Profile not found")
    found, waiting = {url: first}, [first]
    while waiting and len(found) < MAX_PROFILES:
        for each in _profiles_in(waiting.pop(0)):
            if each not in found and (nested := _profile(request, each)):
                found[each] = nested
                waiting.append(nested)
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        "entry": [
            {
                "fullUrl": f"{request.base_url}fhir/R4/StructureDefinition/{profile['id']}",
                "resource": profile,
            }
            for profile in found.values()
        ],
    }


def _profile(request: OperationRequest, url: str) -> Json | None:
    query = [("url", escape(url.partition("|")[0])), ("_sort", "-_lastUpdated")]
    stored = request.repository.search_one("StructureDefinition", query)
    return stored.resource if stored else published.find("StructureDefinition", url)


def _profiles_in(profile: Json) -> Iterator[str]:
    for element in (profile.get("snapshot") or {}).get("element", ()):
        for type in element.get("type", ()):
            yield from type.get("profile", ())
