"""Terminology operations (https://hl7.org/fhir/R4/terminology-service.html) on :mod:`fhirstore.terminology`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from fhirstore.errors import bad_request, invalid_structure, not_found
from fhirstore.operations import Handler, OperationRequest, register_operation
from fhirstore.rest.parameters import Input, output, read_input
from fhirstore.search.index import normalize
from fhirstore.terminology import CodeSystem, Concept, Terminology, Type
from fhirstore.validation import validate

Json = dict[str, Any]

MAX_EXPANSION: Final = 1000
MAX_MAPS: Final = 100
"""Concept maps of a project that are tried when none is named."""


def register() -> None:
    """Register the operations; called once at start-up."""
    operations: tuple[tuple[str, Type, Handler, bool], ...] = (
        ("$expand", "ValueSet", expand, True),
        ("$validate-code", "ValueSet", validate_code_in_value_set, True),
        ("$lookup", "CodeSystem", lookup, False),
        ("$validate-code", "CodeSystem", validate_code_in_system, True),
        ("$subsumes", "CodeSystem", subsumes, True),
        ("$translate", "ConceptMap", translate, True),
    )
    for name, type, handler, instance in operations:
        register_operation(name, handler, types=[type], type=True, instance=instance)


# --- ValueSet ----------------------------------------------------------------------------------------------------------


def expand(request: OperationRequest) -> Json:
    """``ValueSet/$expand``: the value set with its codes.

    Parameters: ``url`` (with ``|version`` or ``valueSetVersion``), ``valueSet`` or an instance; ``filter`` (words that a
    display or code contains), ``offset``, ``count`` (10 with a filter, else and at most 1000), ``excludeNotForUI``,
    ``activeOnly``, ``includeDesignations``, ``displayLanguage``; ``excludeNested=false`` for a tree instead of a list, whose
    pages are made of its roots.

    Raises:
        FhirError: 400 if the value set is not there or cannot be listed.
    """
    given = read_input(request, bare="valueSet")
    terminology = Terminology(request.repository)
    value_set = _value_set(request, terminology, given)
    text = given.text("filter")
    offset = given.whole_number("offset", 0, highest=10**9)
    count = given.whole_number("count", 10 if text else MAX_EXPANSION, highest=MAX_EXPANSION)
    concepts: Iterable[Concept] = terminology.expand(value_set)
    if given.boolean("excludeNotForUI"):
        concepts = [each for each in concepts if not each.abstract]
    if given.boolean("activeOnly"):
        concepts = [each for each in concepts if not each.inactive]
    if language := given.text("displayLanguage"):
        concepts = [each.in_language(language) for each in concepts]
    found = _filtered(concepts, text) if text else list(concepts)
    branches: list[tuple[Concept, Any]] = [(each, ()) for each in found]
    if given.boolean("excludeNested") is False and not text:
        branches = terminology.nested(found)
    expansion: Json = {
        "identifier": f"urn:uuid:{uuid4()}",
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "total": len(found),
        "offset": offset,
    }
    designations = bool(given.boolean("includeDesignations"))
    if contains := [_contained(each, designations) for each in branches[offset : offset + count]]:
        expansion["contains"] = contains
    kept = ("resourceType", "id", "url", "version", "name", "title", "status")
    return {**{name: value_set[name] for name in kept if name in value_set}, "expansion": expansion}


def _filtered(concepts: Iterable[Concept], text: str) -> list[Concept]:
    """Concepts whose display or code has all words of a text; those that begin with it come first."""
    wanted = normalize(text)
    words = wanted.split()
    ranked = []
    for concept in concepts:
        display, code = normalize(concept.display or ""), normalize(concept.code)
        if code.startswith(wanted) or all(word in display for word in words):
            ranked.append((0 if display.startswith(wanted) or code == wanted else 1, concept))
    return [concept for _, concept in sorted(ranked, key=lambda each: each[0])]


def _contained(branch: tuple[Concept, Any], designations: bool) -> Json:
    concept, below = branch
    contained: Json = {"system": concept.system} if concept.system else {}
    if concept.abstract:
        contained["abstract"] = True
    if concept.inactive:
        contained["inactive"] = True
    contained["code"] = concept.code
    if concept.display:
        contained["display"] = concept.display
    if designations and concept.designations:
        contained["designation"] = list(concept.designations)
    if below:
        contained["contains"] = [_contained(each, designations) for each in below]
    return contained


def validate_code_in_value_set(request: OperationRequest) -> Json:
    """``ValueSet/$validate-code``: is a code in a value set?

    Parameters: the value set as for :func:`expand`; ``code`` with ``system`` (without it any system will do), ``coding``
    or ``codeableConcept``, ``display``.
    """
    given = read_input(request, bare="valueSet")
    terminology = Terminology(request.repository)
    value_set = _value_set(request, terminology, given)
    codings = _codings(given)
    for coding in codings:
        if found := terminology.find_in(value_set, coding.get("system"), coding["code"]):
            return _validated(found, coding.get("display"))
    listed = ", ".join(_shown(coding) for coding in codings)
    name = value_set.get("url") or "the value set"
    return _invalid(f"{listed} is not in {name}" if len(codings) == 1 else f"None of {listed} is in {name}")


def _value_set(request: OperationRequest, terminology: Terminology, given: Input) -> Json:
    if request.id is not None:
        return request.repository.read("ValueSet", request.id).resource
    if inline := given.object("valueSet"):
        return _checked(inline, "ValueSet")
    url = given.text("url")
    if url is None:
        raise bad_request("Missing parameter url")
    version = given.text("valueSetVersion")
    return terminology.value_set(f"{url}|{version}" if version and "|" not in url else url)


# --- CodeSystem --------------------------------------------------------------------------------------------------------


def lookup(request: OperationRequest) -> Json:
    """``CodeSystem/$lookup``: what is known about a code; ``code`` with ``system``, or ``coding``; ``version``, ``property``,
    ``displayLanguage``.

    Raises:
        FhirError: 400 for an unknown code system, 404 for an unknown code.
    """
    given = read_input(request)
    terminology = Terminology(request.repository)
    coding = _codings(given)[0]
    system = _named_system(terminology, coding.get("system"), given.text("version") or coding.get("version"))
    concept = system.find(coding["code"])
    if concept is None:
        raise not_found(f"Code {coding['code']} not found in {system.url}")
    if language := given.text("displayLanguage"):
        concept = concept.in_language(language)
    wanted = given.texts("property")
    shown: list[Json | None] = [
        {
            "name": "name",
            "valueString": system.resource.get("name") or system.resource.get("title") or system.url,
        },
        _text_parameter("version", system.version),
        _text_parameter("display", concept.display),
        _text_parameter("definition", concept.definition),
    ]
    for designation in concept.designations:
        kinds = {"language": "valueCode", "use": "valueCoding", "value": "valueString"}
        parts = [
            {"name": name, kind: designation[name]} for name, kind in kinds.items() if name in designation
        ]
        shown.append({"name": "designation", "part": parts})
    properties = [(each["code"], _value_of(each)) for each in concept.properties]
    arranged = [("parent", system.parents(concept.code)), ("child", system.children(concept.code))]
    for name, codes in arranged:
        known = {value.get("valueCode") for code, value in properties if code == name}
        properties += [(name, {"valueCode": code}) for code in sorted(codes - known)]
    for name, value in properties:
        if value and (not wanted or name in wanted):
            parts = [{"name": "code", "valueCode": name}, {"name": "value", **value}]
            shown.append({"name": "property", "part": parts})
    return output(*shown)


def validate_code_in_system(request: OperationRequest) -> Json:
    """``CodeSystem/$validate-code``: is a code in a code system? ``url`` (or an instance), ``code`` or ``coding``, ``display``."""
    given = read_input(request, bare="codeSystem")
    terminology = Terminology(request.repository)
    codings = _codings(given)
    url = given.text("url") or given.text("system")
    for coding in codings:
        system = _system(request, terminology, given, url or coding.get("system"))
        if coding.get("system", system.url) != system.url:
            continue
        if found := system.check(coding["code"]):
            return _validated(found, coding.get("display"))
    return _invalid(f"Code not found: {', '.join(_shown(coding) for coding in codings)}")


def subsumes(request: OperationRequest) -> Json:
    """``CodeSystem/$subsumes``: how two codes are related; ``codeA`` and ``codeB`` with ``system``, ``codingA`` and ``codingB``.

    Raises:
        FhirError: 400 for an unknown code system or code.
    """
    given = read_input(request)
    codings = [given.object(f"coding{which}") or {"code": given.required(f"code{which}")} for which in "AB"]
    systems = {coding["system"] for coding in codings if "system" in coding}
    if len(systems) > 1:
        raise bad_request("Both codes must be of the same code system")
    named = given.text("system") or next(iter(systems), None)
    system = _system(request, Terminology(request.repository), given, named)
    found = [system.find(str(coding.get("code"))) for coding in codings]
    for coding, concept in zip(codings, found, strict=True):
        if concept is None:
            raise bad_request(f"Code {coding.get('code')} not found in {system.url}")
    a, b = (concept.code for concept in found if concept)
    if a == b:
        relation = "equivalent"
    elif a in system.ancestors(b):
        relation = "subsumes"
    else:
        relation = "subsumed-by" if b in system.ancestors(a) else "not-subsumed"
    return output({"name": "outcome", "valueCode": relation})


def _system(request: OperationRequest, terminology: Terminology, given: Input, url: str | None) -> CodeSystem:
    if request.id is not None:
        return CodeSystem(request.repository.read("CodeSystem", request.id).resource)
    if inline := given.object("codeSystem"):
        return CodeSystem(_checked(inline, "CodeSystem"))
    return _named_system(terminology, url, given.text("version"))


def _named_system(terminology: Terminology, url: str | None, version: str | None) -> CodeSystem:
    if not url:
        raise bad_request("Missing parameter system")
    return terminology.known_system(f"{url}|{version}" if version and "|" not in url else url)


# --- ConceptMap --------------------------------------------------------------------------------------------------------


def translate(request: OperationRequest) -> Json:
    """``ConceptMap/$translate``: what a code is called in another code system.

    Parameters: ``url``, ``conceptMap`` or an instance, or none of them for all maps of the code's system; ``code`` with
    ``system``, ``coding`` or ``codeableConcept``; ``targetsystem``; ``reverse``.
    """
    given = read_input(request, bare="conceptMap")
    terminology = Terminology(request.repository)
    reverse = bool(given.boolean("reverse"))
    target = given.text("targetsystem") or given.text("targetSystem")
    codings = _codings(given)
    matches: list[Json] = []
    for concept_map in _concept_maps(request, terminology, given, codings, reverse):
        for coding in codings:
            for match in terminology.translate(
                concept_map, coding.get("system"), coding["code"], target, reverse=reverse
            ):
                if match not in matches:
                    matches.append(match)
    success = any(match["equivalence"] not in ("unmatched", "disjoint") for match in matches)
    kinds = {"equivalence": "valueCode", "concept": "valueCoding", "source": "valueUri"}
    return output(
        {"name": "result", "valueBoolean": success},
        None if success else {"name": "message", "valueString": "No translation found"},
        *(
            {
                "name": "match",
                "part": [{"name": name, kind: match[name]} for name, kind in kinds.items() if name in match],
            }
            for match in matches
        ),
    )


def _concept_maps(
    request: OperationRequest, terminology: Terminology, given: Input, codings: list[Json], reverse: bool
) -> list[Json]:
    if request.id is not None:
        return [request.repository.read("ConceptMap", request.id).resource]
    if inline := given.object("conceptMap"):
        return [_checked(inline, "ConceptMap")]
    if url := given.text("url"):
        found = terminology.find("ConceptMap", url)
        if found is None:
            raise bad_request("ConceptMap not found")
        return [found]
    systems = [coding["system"] for coding in codings if "system" in coding]
    if not systems:
        raise bad_request("Missing parameter url: without a ConceptMap the system of the code is needed")
    return terminology.concept_maps(systems, reverse=reverse, limit=MAX_MAPS)


# --- parts of requests and answers -------------------------------------------------------------------------------------


def _codings(given: Input) -> list[Json]:
    """The codings asked about; raises FhirError (400) without any, or for one without code."""
    display = given.text("display")
    if concept := given.object("codeableConcept"):
        codings = concept.get("coding")
    elif coding := given.object("coding"):
        codings = [coding]
    else:
        code, system = given.text("code"), given.text("system")
        codings = [{"code": code, **({"system": system} if system else {})}] if code else None
    if not codings:
        raise bad_request("Missing parameter code, coding or codeableConcept")
    if issues := validate({"resourceType": "Basic", "code": {"coding": codings}}):
        raise invalid_structure(issues)
    for coding in codings:
        if "code" not in coding:
            raise bad_request("A coding must have a code")
        if display:
            coding.setdefault("display", display)
    return codings  # type: ignore[no-any-return]  # validated


def _checked(resource: Json, type: Type) -> Json:
    """A resource given as a parameter; raises FhirError (400) if it is not valid."""
    if resource.get("resourceType") != type:
        raise bad_request(f"Incorrect resource type: expected {type}")
    if issues := validate(resource):
        raise invalid_structure(issues)
    return resource


def _validated(concept: Concept, display: str | None) -> Json:
    right = display is None or not concept.display or concept.is_called(display)
    return output(
        {"name": "result", "valueBoolean": right},
        None if right else {"name": "message", "valueString": f"The display should be: {concept.display}"},
        _text_parameter("display", concept.display),
        {"name": "code", "valueCode": concept.code},
        {"name": "system", "valueUri": concept.system} if concept.system else None,
    )


def _invalid(message: str) -> Json:
    return output({"name": "result", "valueBoolean": False}, {"name": "message", "valueString": message})


def _shown(coding: Json) -> str:
    return f"{coding['system']}|{coding['code']}" if "system" in coding else str(coding["code"])


def _text_parameter(name: str, text: str | None) -> Json | None:
    return {"name": name, "valueString": text} if text else None


def _value_of(property: Json) -> Json:
    return {name: value for name, value in property.items() if name.startswith("value")}
