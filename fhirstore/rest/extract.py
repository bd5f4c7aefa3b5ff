"""``QuestionnaireResponse/$extract``: resources made of the answers of a form (https://hl7.org/fhir/uv/sdc/extraction.html).

Two ways of the Structured Data Capture guide: templates contained in the Questionnaire, whose elements say by FHIRPath what is put
into them, and items whose answers are Observations. The answer is a transaction Bundle; storing it is up to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final
from uuid import uuid4

from fhirstore import fhirpath
from fhirstore.definitions import registry
from fhirstore.errors import bad_request, invalid_structure
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.rest.parameters import read_input
from fhirstore.search.parse import escape
from fhirstore.validation import validate

Json = dict[str, Any]

_SDC: Final = "http://hl7.org/fhir/uv/sdc/StructureDefinition/sdc-questionnaire-"
TEMPLATE: Final = f"{_SDC}templateExtract"
BUNDLE: Final = f"{_SDC}templateExtractBundle"
CONTEXT: Final = f"{_SDC}templateExtractContext"
VALUE: Final = f"{_SDC}templateExtractValue"
ALLOCATE: Final = f"{_SDC}extractAllocateId"
OBSERVATION: Final = f"{_SDC}observationExtract"

MAX_RESOURCES: Final = 500
MAX_EXPRESSION: Final = 10_000
"""Characters of an expression with the contexts it stands in."""

_CONDITIONS: Final = ("ifNoneMatch", "ifModifiedSince", "ifMatch", "ifNoneExist")


def register() -> None:
    """Register the operation; called once at start-up."""
    register_operation("$extract", extract, types=["QuestionnaireResponse"], type=True, instance=True)


def extract(request: OperationRequest) -> Json:
    """``QuestionnaireResponse/{id}/$extract``, or on the type with ``questionnaire-response``; ``questionnaire`` where it is not stored.

    Raises:
        FhirError: 400 without response or Questionnaire, for a template that is not there or an expression that is none.
    """
    given = read_input(request, bare="questionnaire-response")
    if request.id is not None:
        response = request.repository.read("QuestionnaireResponse", request.id).resource
    else:
        response = _checked(given.object("questionnaire-response"), "QuestionnaireResponse")
    questionnaire = given.object("questionnaire")
    if questionnaire is None:
        questionnaire = _questionnaire(request, response.get("questionnaire"))
    extraction = _Extraction(response, _checked(questionnaire, "Questionnaire"))
    entries = list(extraction.entries())
    bundle: Json = {"resourceType": "Bundle", "type": "transaction"}
    if entries:
        bundle["entry"] = entries
    return bundle


def _checked(resource: Json | None, type: str) -> Json:
    if resource is None:
        raise bad_request("Missing parameter questionnaire-response")
    if resource.get("resourceType") != type:
        raise bad_request(f"Incorrect resource type: expected {type}")
    if issues := validate(resource):
        raise invalid_structure(issues)
    return resource


def _questionnaire(request: OperationRequest, canonical: str | None) -> Json:
    if not canonical:
        raise bad_request("The QuestionnaireResponse names no Questionnaire")
    type, _, id = canonical.partition("/")
    if type == "Questionnaire" and id:
        return request.repository.read("Questionnaire", id).resource
    url, _, version = canonical.partition("|")
    query = [("url", escape(url)), *([("version", escape(version))] if version else [])]
    found = request.repository.search_one("Questionnaire", query)
    if found is None:
        raise bad_request("Questionnaire not found")
    return found.resource


def _extension(element: Json, url: str) -> Iterator[Json]:
    return (each for each in element.get("extension", ()) if each.get("url") == url)


def _text(element: Json, url: str) -> str | None:
    """The text of an extension that stands there once."""
    return next((each.get("valueString") for each in _extension(element, url)), None)


@dataclass(slots=True)
class _Extraction:
    """One extraction."""

    response: Json
    questionnaire: Json
    _given: list[tuple[str, Json]] = field(init=False)
    """The items of the response, each with the expression that leads to exactly this one."""

    def __post_init__(self) -> None:
        self._given = list(_items(self.response, "%resource"))

    def entries(self) -> Iterator[Json]:
        """The entries of the Bundle."""
        root = "%resource"
        variables = _allocated(self.questionnaire)
        items = self._of_items(
            self.questionnaire.get("item", ()), variables, self._observes(self.questionnaire, False), root
        )
        for number, entry in enumerate(chain(self._of_element(self.questionnaire, root, variables), items)):
            if number >= MAX_RESOURCES:
                raise bad_request(f"More than {MAX_RESOURCES} resources would be extracted")
            yield entry

    def _of_items(
        self, items: Any, variables: Mapping[str, Any], observes: bool, within: str
    ) -> Iterator[Json]:
        """What the items of a Questionnaire give, for each time they were answered inside `within`."""
        for item in items:
            inner = self._observes(item, observes)
            for place, given in self._given:
                if given["linkId"] != item["linkId"] or not place.startswith(f"{within}."):
                    continue
                known = {**variables, **_allocated(item)}
                yield from self._of_element(item, place, known)
                if inner and item.get("code"):
                    yield from self._observations(item, given)
                yield from self._of_items(item.get("item", ()), known, inner, place)

    def _of_element(self, element: Json, at: str, variables: Mapping[str, Any]) -> Iterator[Json]:
        """What the templates named by a Questionnaire or one of its items give, with the answers at `at`."""
        for each in _extension(element, BUNDLE):
            for bundle in self._fill(self._template(each), at, variables):
                yield from bundle.get("entry", ())
        for each in _extension(element, TEMPLATE):
            parts = {part["url"]: part for part in each.get("extension", ())}
            if "template" not in parts:
                raise bad_request("A templateExtract extension needs a template")
            for resource in self._fill(self._template(parts["template"]), at, variables):
                yield self._entry(resource, parts, at, variables)

    def _entry(self, resource: Json, parts: Json, at: str, variables: Mapping[str, Any]) -> Json:
        def said(name: str) -> Any:
            expression = parts.get(name, {}).get("valueString")
            return (
                next(iter(self._evaluate(f"({at}).select({expression})", variables)), None)
                if expression
                else None
            )

        id = said("resourceId")
        type = resource["resourceType"]
        entry: Json = {"fullUrl": said("fullUrl") or f"urn:uuid:{uuid4()}"}
        if id is not None:
            resource = {"resourceType": type, "id": str(id), **resource}
            entry["request"] = {"method": "PUT", "url": f"{type}/{id}"}
        else:
            entry["request"] = {"method": "POST", "url": type}
        for name in _CONDITIONS:
            if (value := said(name)) is not None:
                entry["request"][name] = value
        return {"fullUrl": entry["fullUrl"], "resource": resource, "request": entry["request"]}

    def _template(self, extension: Json) -> Json:
        """A copy-ready template: the contained resource that an extension refers to, without its local id."""
        reference = extension.get("valueReference", {}).get("reference", "")
        for contained in self.questionnaire.get("contained", ()):
            if reference == f"#{contained.get('id')}":
                return {key: value for key, value in contained.items() if key != "id"}
        raise bad_request(f"The Questionnaire contains no template {reference}")

    # --- templates ---

    def _fill(self, node: Json, at: str, variables: Mapping[str, Any]) -> list[Any]:
        """What becomes of an object of a template: none, one, or several values."""
        filled: list[Any] = []
        for context in self._contexts(node, at, variables):
            if expression := _text(node, VALUE):
                filled += self._evaluate(f"({context}).select({expression})", variables)
            else:
                made = self._members(node, context, variables)
                if made.keys() - {"resourceType"}:
                    filled.append(made)
        return filled

    def _contexts(self, node: Json, at: str, variables: Mapping[str, Any]) -> list[str]:
        expression = _text(node, CONTEXT)
        if expression is None:
            return [at]
        inner = f"({at}).select({expression})"
        return [f"{inner}.skip({k}).take(1)" for k in range(len(self._evaluate(inner, variables)))]

    def _members(self, node: Json, at: str, variables: Mapping[str, Any]) -> Json:
        made: Json = {}
        for key, child in node.items():
            if key == "extension":
                kept = [each for each in child if each.get("url") not in (CONTEXT, VALUE)]
                value: Any = self._list(kept, at, variables)
            elif key.startswith("_"):
                value = self._primitive(child, node.get(key[1:]), at, variables)
                key = key[1:]
            elif f"_{key}" in node:
                continue  # as its twin says
            elif isinstance(child, list):
                value = self._list(child, at, variables)
            elif isinstance(child, dict):
                value = next(iter(self._fill(child, at, variables)), None)
            else:
                value = child
            if value not in (None, []):
                made[key] = value
        return made

    def _list(self, children: list[Any], at: str, variables: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = []
        for child in children:
            found += self._fill(child, at, variables) if isinstance(child, dict) else [child]
        return found

    def _primitive(self, twin: Any, literal: Any, at: str, variables: Mapping[str, Any]) -> Any:
        """The value of a primitive element, or the values of a list of them, beside which `twin` stands."""
        if isinstance(twin, list):
            literals = literal if isinstance(literal, list) else []
            found: list[Any] = []
            for number, each in enumerate(twin):
                plain = literals[number] if number < len(literals) else None
                found += self._values(each, plain, at, variables)
            return found
        return next(iter(self._values(twin, literal, at, variables)), None)

    def _values(self, twin: Any, literal: Any, at: str, variables: Mapping[str, Any]) -> list[Any]:
        plain = [] if literal is None else [literal]
        if not isinstance(twin, dict):
            return plain
        contexts = self._contexts(twin, at, variables)
        expression = _text(twin, VALUE)
        if expression is None:
            return plain * len(contexts)
        return [
            value
            for context in contexts
            for value in self._evaluate(f"({context}).select({expression})", variables)
        ]

    def _evaluate(self, expression: str, variables: Mapping[str, Any]) -> list[Any]:
        if len(expression) > MAX_EXPRESSION:
            raise bad_request("The expressions of a template are nested too deeply")
        return fhirpath.evaluate(expression, self.response, variables)

    # --- observations ---

    @staticmethod
    def _observes(element: Json, inherited: bool) -> bool:
        return next((bool(each.get("valueBoolean")) for each in _extension(element, OBSERVATION)), inherited)

    def _observations(self, item: Json, given: Json) -> Iterator[Json]:
        """An Observation for each answer to an item."""
        response = self.response
        for answer in given.get("answer", ()):
            key = next((key for key in answer if key.startswith("value")), None)
            if key is None:
                continue
            observation: Json = {
                "resourceType": "Observation",
                "status": "final",
                "code": {"coding": item["code"], "text": item.get("text", item["linkId"])},
                **_observed(key, answer[key]),
            }
            if "id" in response:
                observation["derivedFrom"] = [{"reference": f"QuestionnaireResponse/{response['id']}"}]
            if "authored" in response:
                observation |= {"effectiveDateTime": response["authored"]}
            for name, source in (("subject", "subject"), ("encounter", "encounter"), ("basedOn", "basedOn")):
                if source in response:
                    observation[name] = response[source]
            if "author" in response:
                observation["performer"] = [response["author"]]
            request = {"method": "POST", "url": "Observation"}
            yield {"fullUrl": f"urn:uuid:{uuid4()}", "resource": observation, "request": request}


def _observed(key: str, value: Any) -> Json:
    """An answer as the value of an Observation, which has fewer types."""
    match key:
        case "valueCoding":
            return {"valueCodeableConcept": {"coding": [value]}}
        case "valueDecimal":
            return {"valueQuantity": {"value": value}}
        case "valueDate":
            return {"valueDateTime": value}
        case "valueUri":
            return {"valueString": value}
    structure = registry.structure("Observation")
    element = structure.element("Observation.value[x]") if structure else None
    if element and key in {element.property_name(type.code) for type in element.types}:
        return {key: value}
    raise bad_request(f"An answer of type {key.removeprefix('value')} cannot be the value of an Observation")


def _allocated(element: Json) -> dict[str, str]:
    """New ids by the names an element gives them."""
    names = (each.get("valueString") for each in _extension(element, ALLOCATE))
    return {name: f"urn:uuid:{uuid4()}" for name in names if name}


def _items(holder: Json, place: str) -> Iterator[tuple[str, Json]]:
    """All items below a response, an item or an answer, in their order."""
    for number, item in enumerate(holder.get("item", ())):
        here = f"{place}.item[{number}]"
        yield here, item
        yield from _items(item, here)
        for position, answer in enumerate(item.get("answer", ())):
            yield from _items(answer, f"{here}.answer[{position}]")
