"""The operations fhirstore brings itself."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from fhirstore.auth import accounts
from fhirstore.errors import all_ok, bad_request, invalid_structure
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.rest import binary
from fhirstore.rest.body import read_resource
from fhirstore.rest.interactions import check_type


def register() -> None:
    """Register them; called once at start-up."""
    register_operation("$validate", validate_resource, type=True, instance=True, methods=["POST"])
    register_operation(
        "$presigned-url", binary.presigned_url, types=["Binary"], instance=True, methods=["GET"]
    )
    register_operation(
        "$rotate-secret", rotate_secret, types=["ClientApplication"], instance=True, methods=["POST"]
    )


def validate_resource(request: OperationRequest) -> dict[str, Any]:
    """``POST /T/$validate``: would this resource be accepted? The body is the resource, or Parameters holding it.

    ``profile`` names a profile of the project or one FHIR publishes, besides those in ``meta.profile``; ``mode`` is
    ``create``, ``update`` or ``delete`` (https://hl7.org/fhir/R4/resource-operation-validate.html).

    Raises:
        FhirError: 400 with the issues; 404 and 403 as the interaction of ``mode`` would.
    """
    assert request.type is not None
    given = read_resource(request)
    query = dict(parse_qsl(request.query))
    mode, named = query.get("mode"), query.get("profile")
    resource: Any = given
    if given.get("resourceType") == "Parameters" and request.type != "Parameters":
        mode = _optional(given, "mode") or mode
        named = _optional(given, "profile") or named
        if mode != "delete":
            resource = _parameter(given, "resource", "resource")
    if mode not in (None, "create", "update", "delete", "profile"):
        raise bad_request(f"Unknown mode: {mode}. Known are create, update, delete and profile")
    if mode == "delete":
        if request.id is None:
            raise bad_request("$validate with mode delete is called on an instance")
        request.repository.check("delete", request.type, request.id)
        return all_ok()
    check_type(resource, request.type)
    if mode == "update" or (mode is None and request.id is not None):
        id_ = resource.get("id") or request.id
        if not isinstance(id_, str) or (request.id or id_) != id_:
            raise bad_request("An update needs the id of the resource", f"{request.type}.id")
        request.repository.check("update", request.type, id_)
    elif mode == "create":
        request.repository.check("create", request.type)
    if issues := request.repository.problems(resource, [named] if named else []):
        raise invalid_structure(issues)
    return all_ok()


def _optional(parameters: dict[str, Any], name: str) -> str | None:
    """The text of a parameter, whatever its type; None without."""
    for each in parameters.get("parameter") or ():
        if isinstance(each, dict) and each.get("name") == name:
            value = next((value for key, value in each.items() if key.startswith("value")), None)
            if isinstance(value, str):
                return value
            raise bad_request(f"Parameter {name} is a text", "Parameters.parameter")
    return None


def rotate_secret(request: OperationRequest) -> dict[str, Any]:
    """``POST /ClientApplication/{id}/$rotate-secret`` with ``secret`` or ``retiringSecret``, plain or as Parameters."""
    assert request.id is not None
    given = read_resource(request)
    if given.get("resourceType") == "Parameters":
        given = {
            name: _parameter(given, name, "valueString")
            for name in ("secret", "retiringSecret")
            if any(each.get("name") == name for each in given.get("parameter", ()))
        }
    secrets = {name: given.get(name) for name in ("secret", "retiringSecret")}
    if not all(value is None or isinstance(value, str) for value in secrets.values()):
        raise bad_request("secret and retiringSecret are texts")
    return accounts.client_rotate_secret(
        request.repository, request.id, secret=secrets["secret"], retiring_secret=secrets["retiringSecret"]
    )


def _parameter(parameters: dict[str, Any], name: str, element: str) -> Any:
    given = parameters.get("parameter")
    for each in given if isinstance(given, list) else ():
        if isinstance(each, dict) and each.get("name") == name and each.get(element) is not None:
            return each[element]
    raise bad_request(f"Missing parameter {name}", "Parameters.parameter")
