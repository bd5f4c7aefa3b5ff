"""The examples HL7 publishes with FHIR R4: stored, read back equal, found by their own values, refused when broken.

By default a few of each type, always the same; with ``FHIRBOTS_ALL_EXAMPLES=1`` all 5,306 (some minutes). Those that are
invalid by R4 stand in ``docs/validation.md``.
"""

from __future__ import annotations

import copy
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from django.conf import settings

from console.assets import install_packages
from fhirstore.access import SERVER_ONLY
from fhirstore.definitions import registry
from fhirstore.errors import FhirError
from fhirstore.identity import system_identity
from fhirstore.repository import Repository
from fhirstore.search.index import index
from fhirstore.search.model import IndexValues
from fhirstore.validation import validate

ALL = bool(os.environ.get("FHIRBOTS_ALL_EXAMPLES"))
PER_TYPE = 2
LARGEST = 200_000
"""Bytes of a file among the few."""

INVALID = {
    "ActivityDefinition-blood-tubes-supply",
    "ActivityDefinition-heart-valve-replacement",
    "Bundle-dataelements",
    "Bundle-v2-valuesets",
    "CodeSystem-v2-0550",
    "DeviceMetric-example",
    "DeviceUseStatement-example",
    "EventDefinition-example",
    "ImplementationGuide-fhir",
    "MedicationRequest-medrx0301",
    "Observation-clinical-gender",
    "Questionnaire-qs1",
    "Questionnaire-zika-virus-exposure-assessment",
    "SearchParameter-codesystem-extensions-CodeSystem-author",
    "SearchParameter-codesystem-extensions-CodeSystem-effective",
    "SearchParameter-codesystem-extensions-CodeSystem-end",
    "SearchParameter-codesystem-extensions-CodeSystem-keyword",
    "SearchParameter-codesystem-extensions-CodeSystem-workflow",
    "SearchParameter-questionnaireresponse-extensions-QuestionnaireResponse-item-subject",
    "SearchParameter-valueset-extensions-ValueSet-author",
    "SearchParameter-valueset-extensions-ValueSet-effective",
    "SearchParameter-valueset-extensions-ValueSet-end",
    "SearchParameter-valueset-extensions-ValueSet-keyword",
    "SearchParameter-valueset-extensions-ValueSet-workflow",
    "StructureDefinition-Definition",
    "StructureDefinition-Event",
    "StructureDefinition-FiveWs",
    "StructureDefinition-Request",
    "ig-r4",
}
"""Names of the files that R4 itself forbids."""

Json = dict[str, Any]


@pytest.fixture(scope="module")
def folder(assets: None) -> Path:
    """Where the examples are, installed from the lock file of this folder."""
    here = Path(__file__).parent
    with (settings.ASSETS_DIR / ".examples-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        install_packages(here)
    return here / "node_modules" / "hl7.fhir.r4.examples"


@pytest.fixture(scope="module")
def examples(folder: Path) -> dict[str, Json]:
    """The examples by name."""
    found: dict[str, Json] = {}
    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*.json")):
        type_ = file.stem.partition("-")[0]
        few = counts.get(type_, 0) < PER_TYPE and file.stat().st_size < LARGEST
        if file.stem in ("package", ".index") or not (ALL or few or file.stem in INVALID):
            continue
        resource = orjson.loads(file.read_bytes())
        if registry.is_resource_type(resource.get("resourceType", "")):
            found[file.stem] = resource
            counts[type_] = counts.get(type_, 0) + (file.stem not in INVALID)
    assert len(counts) > 140, "the types of R4"
    return found


@pytest.fixture(scope="module")
def valid(examples: dict[str, Json]) -> dict[str, Json]:
    """Those R4 allows."""
    return {name: resource for name, resource in examples.items() if name not in INVALID}


@pytest.fixture(scope="module")
def repository(database: None) -> Repository:
    """The server itself in a project of its own: the security context of an example Binary is nowhere."""
    return Repository(system_identity(str(uuid.uuid4())))


def test_exactly_the_known_ones_are_invalid(examples: dict[str, Json]) -> None:
    assert {name for name, resource in examples.items() if validate(resource)} == INVALID & examples.keys()


@pytest.mark.timeout(1800)
def test_examples_are_stored_read_back_equal_and_found_by_their_own_values(
    valid: dict[str, Json], repository: Repository
) -> None:
    refused, different, lost = [], [], []
    for name, resource in valid.items():
        if resource["resourceType"] in SERVER_ONLY:
            continue
        try:
            stored = repository.create(resource)
        except FhirError as error:
            refused.append((name, str(error)))
            continue
        if _content(repository.read(stored.type, stored.id).resource) != _content(resource):
            different.append(name)
        if stored.type != "Binary":
            for query in _queries(index(stored.resource)):
                found = repository.search_all(stored.type, f"_id={stored.id}&{query}")
                if [each.id for each in found] != [stored.id]:
                    lost.append((name, query))
    assert (refused, different, lost) == ([], [], [])


def _content(resource: Json) -> Json:
    """A resource without what the store writes, and without a Binary's data, which is content and not element."""
    meta = {
        name: value
        for name, value in (resource.get("meta") or {}).items()
        if name in ("profile", "tag", "security", "source", "extension")
    }
    ours = ("id", "meta", "data") if resource["resourceType"] == "Binary" else ("id", "meta")
    content = {name: value for name, value in resource.items() if name not in ours}
    return {**content, "meta": meta} if meta else content


def _queries(values: IndexValues) -> Iterator[str]:
    """A query for one value of each kind of parameter, where the resource has one."""
    choices = [
        (
            f"{code}={_text(token.system)}|{_text(token.value)}"
            if token.system
            else f"{code}={_text(token.value)}"
        )
        for code, (token, *_) in values.tokens.items()
        if token.value and code[0] != "_"
    ][:1]
    choices += [
        f"{code}:exact={_text(each)}"
        for code, (each, *_) in values.strings.items()
        if any(char.isalnum() for char in each[:100])
    ][:1]
    choices += [
        f"{code}={each.type}/{_text(each.id)}"
        for code, (each, *_) in values.references.items()
        if code[0] != "_" and each.type and each.id
    ][:1]
    choices += [f"{code}={_text(each)}" for code, (each, *_) in values.uris.items() if code[0] != "_"][:1]
    choices += [f"{code}:missing=false" for code in values.dates if code[0] != "_"][:1]
    choices += [
        f"{code}={each.low}"
        for code, (each, *_) in values.quantities.items()
        if each.low == each.high and each.low.is_finite()
    ][:1]
    yield from choices


def _text(value: str | None) -> str:
    return quote("".join(f"\\{char}" if char in "\\,|$" else char for char in value or ""), safe="")


def _mutations(resource: Json) -> Iterator[tuple[Json, str, str]]:
    """Broken copies of a resource, each with the expression and the beginning of the text that name the fault."""
    type_ = resource["resourceType"]
    structure = registry.structure(type_)
    assert structure is not None

    def broken(**elements: Any) -> Json:
        return {**copy.deepcopy(resource), **elements}

    yield broken(nonsense=1), f"{type_}.nonsense", "Invalid additional property"
    yield broken(id="not an id!"), f"{type_}.id", "Invalid id format"
    yield broken(language=["en"]), f"{type_}.language", "Expected single value"
    for element in structure.children():
        names = [element.property_name(each.code) for each in element.types] or [element.name]
        present = next((name for name in names if name in resource), None)
        shown = f"{type_}.{element.path.rpartition('.')[2]}"
        if present is None:
            continue
        if element.min:
            without = {
                name: value for name, value in resource.items() if name not in (present, f"_{present}")
            }
            yield without, shown, "Missing required property"
        if element.choice and len(names) > 1:
            other = next(name for name in names if name != present)
            yield broken(**{other: resource[present]}), shown, "Conflicting choice"
        elif element.array:
            yield broken(**{present: resource[present][0]}), shown, "Expected array of values"
        elif element.types and element.types[0].code in ("code", "string", "uri", "boolean", "dateTime"):
            yield broken(**{present: {"value": 1}}), shown, "Invalid JSON type"
        coded = element.binding == "required" and element.types[0].code == "code" and not element.array
        if coded and element.value_set and registry.value_set_codes(element.value_set):
            yield broken(**{present: "no-such-code"}), shown, 'Value "no-such-code"'


@pytest.mark.timeout(1800)
def test_broken_examples_are_refused_with_the_place_of_the_fault(valid: dict[str, Json]) -> None:
    count, missed = 0, []
    small = {name: each for name, each in valid.items() if len(orjson.dumps(each)) < LARGEST}
    for name, resource in small.items():
        for mutation, expression, text in _mutations(resource):
            count += 1
            issues = validate(mutation)
            if not any(
                issue["expression"] == [expression] and issue["details"]["text"].startswith(text)
                for issue in issues
            ):
                missed.append((name, expression, text, issues[:2]))
    assert missed == []
    assert count > 3000
