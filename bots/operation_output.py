"""From the run of a Bot to the answer of a custom operation (shared/medplum/custom-operations.md §4). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import orjson

from bots.request import ExecutionResult
from bots.results import FHIR_JSON, unrepeated
from fhirstore.api import FhirError, bad_request, is_resource_type, outcome, structure, validate

Json = dict[str, Any]

ALLOWED_TYPE: Final = "http://hl7.org/fhir/StructureDefinition/operationdefinition-allowed-type"

_ANY: Final = frozenset({"", "Any", "Resource", "DomainResource"})
"""Types of a parameter that stand for every resource."""


def answer_of(definition: Json, result: ExecutionResult) -> Json:
    """The answer to a run whose request said ``value_only``.

    Args:
        definition: the OperationDefinition; of it only ``parameter`` matters.

    Raises FhirError: what the Bot or its refusal says, and 400 for a result that does not fit.
    """
    if not result.ok:
        if result.content_type == FHIR_JSON:
            raise FhirError(orjson.loads(result.body), unrepeated(result.status, {}))
        raise bad_request(result.log_text)
    return output(definition, orjson.loads(result.body) if result.body else None, bool(result.body))


def as_parameters(answer: Json) -> list[Json]:
    """An answer as the parameters of an AsyncJob's output: those it has, or itself as ``return``."""
    if answer["resourceType"] == "Parameters":
        return answer.get("parameter") or []
    return [{"name": "return", "resource": answer}]


def output(definition: Json, value: Any, has_value: bool = True) -> Json:
    """Turn what a Bot returned into the answer its definition promises.

    Args:
        definition: the OperationDefinition.
        value: what was returned, as JSON.
        has_value: False if nothing (``undefined``) was returned.

    Raises FhirError: 400 for a result that does not fit.
    """
    wanted = [each for each in definition.get("parameter") or () if each.get("use") == "out"]
    if len(wanted) == 1 and wanted[0].get("name") == "return":
        parameter = wanted[0]
        if _is_resource_type(parameter.get("type")):
            return _returned_resource(parameter, value, has_value)
        answer = {"resourceType": "Parameters", "parameter": _entries(parameter, value)}
    elif isinstance(value, dict) and value.get("resourceType") == "Parameters" and wanted:
        answer = _checked_parameters(wanted, value)
    else:
        values = value if isinstance(value, dict) else {}
        entries = [entry for each in wanted for entry in _entries(each, values.get(each.get("name", "")))]
        answer = {"resourceType": "Parameters", "parameter": entries}
    if not answer["parameter"]:
        del answer["parameter"]
    _check(answer)
    return answer


def _returned_resource(parameter: Json, value: Any, has_value: bool) -> Json:
    type_ = parameter.get("type") or ""
    if value is None and parameter.get("min") == 0:
        return {"resourceType": "Parameters"}
    if isinstance(value, list) and parameter.get("max") not in ("0", "1"):
        answer = {"resourceType": "Parameters", "parameter": _entries(parameter, value)}
        _check(answer)
        return answer
    found = value.get("resourceType") if isinstance(value, dict) else None
    if not isinstance(value, dict) or found is None or (type_ not in _ANY and found != type_):
        raise bad_request(
            f"Expected {type_ or 'Resource'} output, but got unexpected {_typeof(value, has_value)}"
        )
    return value


def _checked_parameters(wanted: Iterable[Json], value: Json) -> Json:
    """A Parameters resource the Bot has made itself: counted, otherwise as it is."""
    given = value.get("parameter") or []
    entries = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    for parameter in wanted:
        _count(parameter, sum(each.get("name") == parameter.get("name") for each in entries))
    return {**value, "parameter": given}


def _entries(parameter: Json, value: Any) -> list[Json]:
    """The entries of Parameters for one output parameter."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    _count(parameter, len(values))
    return [_entry(parameter, each) for each in values]


def _count(parameter: Json, found: int) -> None:
    name, low, high = parameter.get("name"), parameter.get("min") or 0, parameter.get("max") or "*"
    if found < low:
        raise bad_request(f"Expected {low} or more values for output parameter '{name}', got {found}")
    if high.isdecimal() and found > int(high):
        raise bad_request(f"Expected at most {high} values for output parameter '{name}', got {found}")


def _entry(parameter: Json, value: Any) -> Json:
    name, type_ = parameter.get("name"), parameter.get("type")
    parts = parameter.get("part")
    if parts and isinstance(value, dict):
        entries = [entry for part in parts for entry in _entries(part, value.get(part.get("name", "")))]
        return {"name": name} | ({"part": entries} if entries else {})
    if type_ in (None, "Element"):
        type_, value = _chosen(parameter, value)
    if _is_resource_type(type_):
        if not isinstance(value, dict) or (type_ not in _ANY and value.get("resourceType") != type_):
            raise bad_request(
                f"Expected {type_} for output parameter '{name}', but got unexpected {_typeof(value)}"
            )
        return {"name": name, "resource": value}
    return {"name": name, f"value{type_[0].upper()}{type_[1:]}": value}


def _chosen(parameter: Json, value: Any) -> tuple[str, Any]:
    """Type and value of a parameter whose type the Bot chooses: it returns both; a resource names its type itself."""
    name = parameter.get("name")
    if isinstance(value, dict) and is_resource_type(str(value.get("resourceType"))):
        return str(value["resourceType"]), value
    if not (isinstance(value, dict) and isinstance(value.get("type"), str) and "value" in value):
        raise bad_request(f"Expected an object with type and value for output parameter '{name}'")
    allowed = [
        str(extension.get("valueUri")).rpartition("/")[2]
        for extension in parameter.get("extension") or ()
        if extension.get("url") == ALLOWED_TYPE
    ]
    chosen = value["type"]
    if (allowed and chosen not in allowed) or not chosen or structure(chosen) is None:
        raise bad_request(f"Type {chosen} is not allowed for output parameter '{name}'")
    return chosen, value["value"]


def _is_resource_type(type_: str | None) -> bool:
    return (type_ or "") in _ANY or is_resource_type(type_ or "")


def _check(parameters: Json) -> None:
    if issues := validate(parameters):
        raise FhirError(outcome(None, issues))


def _typeof(value: Any, has_value: bool = True) -> str:
    """The word of JavaScript's ``typeof``."""
    if not has_value:
        return "undefined"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "object"
