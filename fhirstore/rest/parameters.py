"""The input of operations: a query string, a Parameters resource, or both (https://hl7.org/fhir/R4/operations.html)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from fhirstore.errors import FhirError, bad_request
from fhirstore.operations import OperationRequest
from fhirstore.rest.body import media_type, read_form, read_resource

Json = dict[str, Any]

MAX_PARAMETERS = 1000


@dataclass(frozen=True, slots=True)
class Input:
    """What an operation was called with, in the order given: (name, value); values of a query are texts."""

    values: tuple[tuple[str, Any], ...]

    def all(self, name: str) -> list[Any]:
        """All values of a parameter."""
        return [value for each, value in self.values if each == name]

    def texts(self, name: str) -> list[str]:
        """All values of a parameter, which must be texts, numbers or booleans; as texts.

        Raises:
            FhirError: 400 for an object or an array.
        """
        return [_text(name, value) for value in self.all(name)]

    def text(self, name: str) -> str | None:
        """The one value of a parameter as text, None without it or when it is empty.

        Raises:
            FhirError: 400 if there are several, or it is no text.
        """
        found = self.texts(name)
        if len(found) > 1:
            raise bad_request(f"Parameter {name} may be given only once")
        return (found[0] or None) if found else None

    def required(self, name: str) -> str:
        """The one value of a parameter that must be there; raises FhirError (400) as :meth:`text` and without it."""
        value = self.text(name)
        if value is None:
            raise bad_request(f"Missing parameter {name}")
        return value

    def whole_number(self, name: str, default: int, *, lowest: int = 0, highest: int) -> int:
        """A whole number, `default` without it, cut to `highest`.

        Raises:
            FhirError: 400 for anything else, or a number below `lowest`.
        """
        text = self.text(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and int(text[:18]) >= lowest):
            raise bad_request(f"Invalid {name}: expected a whole number from {lowest} to {highest}")
        return min(int(text[:18]), highest)

    def instant(self, name: str) -> datetime:
        """A point in time that must be there, with its offset from UTC.

        Raises:
            FhirError: 400 without it, or for a text that is no instant (a day without time, or without offset).
        """
        return read_instant(name, self.required(name))

    def boolean(self, name: str) -> bool | None:
        """A boolean, None without it; raises FhirError (400) for anything but true and false."""
        text = self.text(name)
        if text not in (None, "true", "false"):
            raise bad_request(f"Invalid {name}: expected true or false")
        return None if text is None else text == "true"

    def object(self, name: str) -> Json | None:
        """A resource or a value of a complex type, None without it; raises FhirError (400) for anything else."""
        found = self.all(name)
        if len(found) > 1:
            raise bad_request(f"Parameter {name} may be given only once")
        if found and not isinstance(found[0], dict):
            raise bad_request(f"Parameter {name} must be an object")
        return found[0] if found else None


def read_input(request: OperationRequest, bare: str | None = None) -> Input:
    """Read the input of an operation: the query, and with POST the body (Parameters, or a form).

    Args:
        request: the call.
        bare: name of the parameter that a body of another resource type is, where the operation takes one.

    Raises:
        FhirError: 400 or 415 for a body that is none of these.
    """
    try:
        values: list[tuple[str, Any]] = list(
            parse_qsl(request.query, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
        )
    except ValueError:
        raise bad_request(f"Too many parameters (max {MAX_PARAMETERS})") from None
    if request.method == "POST" and request.body and not request.body.isspace():
        if media_type(request) == "application/x-www-form-urlencoded":
            values += read_form(request)
        else:
            values += _parameters(read_resource(request), bare)
    return Input(tuple(values))


def output(*parameters: Json | None) -> Json:
    """Parameters as an answer, without those that are None."""
    return {"resourceType": "Parameters", "parameter": [each for each in parameters if each is not None]}


def read_instant(name: str, text: str) -> datetime:
    """Read a FHIR instant; raises FhirError (400) naming the parameter."""
    # a plus sign that was not percent-encoded arrives as a blank
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+").replace("t", "T"))
    except ValueError:
        raise _no_instant(name) from None
    if moment.tzinfo is None or "T" not in text:
        raise _no_instant(name)
    return moment


def _no_instant(name: str) -> FhirError:
    return bad_request(f"Invalid {name}: expected an instant such as 2026-03-01T09:00:00Z")


def _parameters(resource: Json, bare: str | None) -> Iterable[tuple[str, Any]]:
    if resource.get("resourceType") != "Parameters":
        if bare is not None and resource.get("resourceType"):
            return [(bare, resource)]
        raise bad_request("The body must be a Parameters resource", "resourceType")
    given = resource.get("parameter") or []
    if not isinstance(given, list) or len(given) > MAX_PARAMETERS:
        raise bad_request(f"Expected an array of at most {MAX_PARAMETERS} parameters", "Parameters.parameter")
    return [_parameter(position, each) for position, each in enumerate(given)]


def _parameter(position: int, given: Any) -> tuple[str, Any]:
    where = f"Parameters.parameter[{position}]"
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise bad_request("A parameter must be an object with a name", where)
    values = [value for key, value in given.items() if key in ("resource", "part") or key.startswith("value")]
    if len(values) != 1:
        raise bad_request(f"Parameter {given['name']} must have one value", where)
    return given["name"], values[0]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise bad_request(f"Parameter {name} must be a simple value")
