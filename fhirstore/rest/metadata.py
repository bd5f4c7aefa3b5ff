"""What this server can do: the CapabilityStatement (``GET /metadata``), made from what is registered."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

import orjson

from fhirstore.definitions import registry
from fhirstore.operations import operations_of
from fhirstore.rest.messages import FHIR_JSON, JSON, FhirResponse
from fhirstore.search.model import Kind, Parameter

VERSIONS: Final = b'{"versions":["4.0"],"default":"4.0"}'

INTERACTIONS: Final = (
    "create",
    "read",
    "vread",
    "history-instance",
    "history-type",
    "update",
    "patch",
    "delete",
)
DEFINITIONS: Final = "http://hl7.org/fhir"


def respond_metadata(base_url: str, name: str) -> FhirResponse:
    """Answer ``metadata`` or ``$versions``; needs nobody to be logged in."""
    if name == "$versions":
        return FhirResponse(200, VERSIONS, {"content-type": JSON})
    return FhirResponse(200, orjson.dumps(capability_statement(base_url)), {"content-type": FHIR_JSON})


@functools.lru_cache(maxsize=8)
def capability_statement(base_url: str) -> dict[str, Any]:
    """The CapabilityStatement of this process; made once, after all operations have been registered."""
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": "instance",
        "software": {"name": "fhirbots", "version": version("fhirbots")},
        "implementation": {"description": "fhirbots", "url": f"{base_url}fhir/R4"},
        "fhirVersion": "4.0.1",
        "format": ["json"],
        "patchFormat": ["application/json-patch+json", "application/fhir+json"],
        "rest": [
            {
                "mode": "server",
                "security": _security(base_url),
                "resource": [_resource(base_url, type) for type in _types()],
                "interaction": [{"code": code} for code in ("batch", "transaction", "search-system")],
                "operation": _operations(base_url, None),
            }
        ],
    }


def _security(base_url: str) -> dict[str, Any]:
    return {
        "cors": True,
        "service": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                        "code": "SMART-on-FHIR",
                    }
                ]
            }
        ],
        "extension": [
            {
                "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
                "extension": [
                    {"url": name, "valueUri": f"{base_url}oauth2/{path}"}
                    for name, path in (
                        ("authorize", "authorize"),
                        ("token", "token"),
                        ("introspect", "introspect"),
                        ("revoke", "revoke"),
                    )
                ],
            }
        ],
    }


def _types() -> list[str]:
    """The resource types a CapabilityStatement may name."""
    known = {
        coding.code for coding in registry.value_set_codes(f"{DEFINITIONS}/ValueSet/resource-types") or ()
    }
    return sorted(registry.resource_types() & known)


def _resource(base_url: str, type: str) -> dict[str, Any]:
    codes = INTERACTIONS if type == "Binary" else (*INTERACTIONS, "search-type")
    described = {
        "type": type,
        "profile": _profile(type),
        "interaction": [{"code": code} for code in codes],
        "versioning": "versioned-update",
        "readHistory": True,
        "updateCreate": False,
        "conditionalCreate": True,
        "conditionalRead": "full-support",
        "conditionalUpdate": True,
        "conditionalDelete": "single",
        "searchInclude": [f"{type}:{code}" for code in _reference_parameters(type)],
        "searchRevInclude": _reverse_includes()[type],
        "searchParam": [
            {"name": parameter.code, "type": Kind(parameter.kind).value}
            for parameter in sorted(registry.search_parameters(type).values(), key=lambda each: each.code)
            if type != "Binary" and is_searchable(parameter)
        ],
        "operation": _operations(base_url, type),
    }
    return {name: value for name, value in described.items() if value != []}


def _profile(type: str) -> str:
    """Where a type is defined: by FHIR, or by Medplum."""
    urls = registry.published().ids("StructureDefinition")
    return urls.get(type, f"{DEFINITIONS}/StructureDefinition/{type}")


def is_searchable(parameter: Parameter) -> bool:
    """True for a parameter that a search takes."""
    return bool(parameter.expression) or parameter.code in ("_id", "_lastUpdated")


def _reference_parameters(type: str) -> list[str]:
    parameters = registry.search_parameters(type).values()
    return sorted(
        each.code
        for each in parameters
        if each.kind is Kind.REFERENCE and each.expression and not each.code.startswith("_")
    )


@functools.cache
def _reverse_includes() -> dict[str, list[str]]:
    """``Type:parameter`` of the parameters that name a type among their targets, by that type."""
    found: dict[str, list[str]] = {type: [] for type in registry.resource_types()}
    for holder in sorted(found):
        for code in _reference_parameters(holder):
            for target in registry.search_parameters(holder)[code].targets:
                found[target].append(f"{holder}:{code}")
    return found


_STANDARD: Final = {
    "validate": "Resource-validate",
    "graphql": "Resource-graphql",
    "everything": "Patient-everything",
    "expand": "ValueSet-expand",
    "lookup": "CodeSystem-lookup",
    "subsumes": "CodeSystem-subsumes",
    "translate": "ConceptMap-translate",
    "graph": "Resource-graph",
}
"""OperationDefinitions of HL7; all other operations are this server's or Medplum's."""


def _operations(base_url: str, type: str | None) -> list[dict[str, str]]:
    names = sorted({operation.name.removeprefix("$") for operation in operations_of(type)})
    return [{"name": name, "definition": _definition(base_url, type, name)} for name in names]


def _definition(base_url: str, type: str | None, name: str) -> str:
    if name == "export":
        level = {None: "", "Patient": "patient-", "Group": "group-"}[type]
        return f"{DEFINITIONS}/uv/bulkdata/OperationDefinition/{level}export"
    if name == "summary":
        return f"{DEFINITIONS}/uv/ips/OperationDefinition/summary"
    if name == "validate-code":
        return f"{DEFINITIONS}/OperationDefinition/{type}-validate-code"
    if name in _STANDARD:
        return f"{DEFINITIONS}/OperationDefinition/{_STANDARD[name]}"
    return f"{base_url}fhir/R4/OperationDefinition/{type or 'System'}-{name}"
