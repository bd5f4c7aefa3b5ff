"""``Patient/{id}/$summary``: an International Patient Summary (https://hl7.org/fhir/uv/ips/), as the caller may see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Final
from uuid import uuid4

from fhirstore.errors import FhirError
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.repository import Repository, Stored
from fhirstore.rest.maintenance import display_of
from fhirstore.rest.parameters import read_input
from fhirstore.rest.response import resource_json
from fhirstore.search.parse import parse
from fhirstore.tables import Moment

Json = dict[str, Any]

MAX_ENTRIES: Final = 1000
"""Resources of one type; of more the latest ones."""

LOINC: Final = "http://loinc.org"
_AUTHORS: Final = frozenset(
    {"Device", "Organization", "Patient", "Practitioner", "PractitionerRole", "RelatedPerson"}
)


def register() -> None:
    """Register the operation; called once at start-up."""
    register_operation("$summary", patient_summary, types=["Patient"], instance=True)


# --- sections --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the document.

    Attributes:
        types: resource types that may stand in it.
        required: it stands there empty as well, saying so.
        accepts: tells whether a resource belongs in it.
    """

    code: str
    title: str
    types: frozenset[str]
    required: bool = False
    accepts: Callable[[Json], bool] = lambda resource: True


def _codes(concept: Any) -> set[str]:
    return {coding.get("code") for coding in (concept or {}).get("coding", ())}


def _is_current(resource: Json) -> bool:
    return not _codes(resource.get("clinicalStatus")) & {"inactive", "remission", "resolved"}


def _of_category(*codes: str) -> Callable[[Json], bool]:
    return lambda resource: bool(
        set(codes) & {code for each in resource.get("category", ()) for code in _codes(each)}
    )


def _is_pregnancy(resource: Json) -> bool:
    return bool(
        _codes(resource.get("code")) & {"82810-3", "11636-8", "11637-6", "11638-4", "11639-2", "11640-0"}
    )


def _is_under_way(resource: Json) -> bool:
    return resource.get("status") in ("active", "completed", "intended", "on-hold", "unknown")


SECTIONS: Final = (
    Section("11450-4", "Problems", frozenset({"Condition"}), required=True, accepts=_is_current),
    Section("48765-2", "Allergies", frozenset({"AllergyIntolerance"}), required=True, accepts=_is_current),
    Section(
        "10160-0",
        "Medications",
        frozenset({"MedicationRequest", "MedicationStatement"}),
        required=True,
        accepts=_is_under_way,
    ),
    Section("11369-6", "Immunizations", frozenset({"Immunization"})),
    Section("47519-4", "Procedures", frozenset({"Procedure"})),
    Section("46264-8", "Medical devices", frozenset({"DeviceUseStatement"})),
    Section("10162-6", "Pregnancies", frozenset({"Observation"}), accepts=_is_pregnancy),
    Section("8716-3", "Vital signs", frozenset({"Observation"}), accepts=_of_category("vital-signs")),
    Section("29762-2", "Social history", frozenset({"Observation"}), accepts=_of_category("social-history")),
    Section("30954-2", "Results", frozenset({"DiagnosticReport"})),
    Section("30954-2", "Results", frozenset({"Observation"}), accepts=_of_category("laboratory", "imaging")),
    Section("11348-0", "Past illnesses", frozenset({"Condition"})),
    Section("47420-5", "Functional status", frozenset({"ClinicalImpression"})),
    Section("18776-5", "Plan of care", frozenset({"CarePlan"})),
    Section("42348-3", "Advance directives", frozenset({"Consent"})),
)
"""In the order of the document; a resource stands in the first that accepts it. Same codes are one section."""


# --- the operation -----------------------------------------------------------------------------------------------------


def patient_summary(request: OperationRequest) -> Json:
    """``GET`` or ``POST /Patient/{id}/$summary`` → a Bundle of type ``document``, the Composition first.

    Raises:
        FhirError: 404 or 410 for the patient.
    """
    assert request.id is not None
    read_input(request)
    repository = request.repository
    patient = repository.read("Patient", request.id)
    placed: dict[str, list[Stored]] = {section.code: [] for section in SECTIONS}
    titles = {section.code: section.title for section in SECTIONS}
    required = {section.code for section in SECTIONS if section.required}
    for type in dict.fromkeys(type for section in SECTIONS for type in sorted(section.types)):
        for stored in _of_patient(repository, type, patient.id):
            resource = stored.resource
            if resource.get("status") == "entered-in-error" or "entered-in-error" in _codes(
                resource.get("verificationStatus")
            ):
                continue
            section = next((each for each in SECTIONS if type in each.types and each.accepts(resource)), None)
            if section:
                placed[section.code].append(stored)
    composition: Json = {
        "resourceType": "Composition",
        "id": str(uuid4()),
        "status": "final",
        "type": {"coding": [{"system": LOINC, "code": "60591-5", "display": "Patient summary Document"}]},
        "subject": {"reference": f"Patient/{patient.id}"},
        "date": Moment.now().text,
        "author": [_author(request, patient)],
        "title": "Patient Summary",
        "section": [
            _section(code, titles[code], members)
            for code, members in placed.items()
            if members or code in required
        ],
    }
    included = [patient, *(stored for members in placed.values() for stored in members)]
    entries = [{"fullUrl": f"urn:uuid:{composition['id']}", "resource": composition}]
    entries += [
        {
            "fullUrl": f"{request.base_url}fhir/R4/{stored.type}/{stored.id}",
            "resource": resource_json(request, stored),
        }
        for stored in included
    ]
    return {
        "resourceType": "Bundle",
        "identifier": {"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{uuid4()}"},
        "type": "document",
        "timestamp": composition["date"],
        "entry": entries,
    }


def _of_patient(repository: Repository, type: str, patient_id: str) -> Iterable[Stored]:
    search = parse(type, [("_compartment", f"Patient/{patient_id}"), ("_sort", "-_lastUpdated")])
    try:
        return repository.search(replace(search, count=MAX_ENTRIES)).entries
    except FhirError as error:
        if error.status != 403:
            raise
        return ()


def _author(request: OperationRequest, patient: Stored) -> Json:
    """Who asks, where such a one may be an author; else the organization of the patient."""
    identity = request.repository.identity
    name = {"display": identity.profile_display} if identity.profile_display else {}
    if identity.profile.partition("/")[0] in _AUTHORS:
        return {"reference": identity.profile, **name}
    organization: Json | None = patient.resource.get("managingOrganization")
    return organization or name or {"display": identity.profile}


def _section(code: str, title: str, members: list[Stored]) -> Json:
    section: Json = {
        "title": title,
        "code": {"coding": [{"system": LOINC, "code": code}]},
        "text": {"status": "generated", "div": _narrative(title, members)},
    }
    if members:
        section["entry"] = [{"reference": f"{stored.type}/{stored.id}"} for stored in members]
    else:
        system = "http://terminology.hl7.org/CodeSystem/list-empty-reason"
        section["emptyReason"] = {"coding": [{"system": system, "code": "unavailable"}]}
    return section


def _narrative(title: str, members: list[Stored]) -> str:
    if members:
        rows = "".join(f"<li>{escape(_line(stored.resource))}</li>" for stored in members)
        content = f"<ul>{rows}</ul>"
    else:
        content = "<p>No information is available.</p>"
    return f'<div xmlns="http://www.w3.org/1999/xhtml"><h5>{escape(title)}</h5>{content}</div>'


def _line(resource: Json) -> str:
    """What a resource is about, its value and its date."""
    subject: Any = None
    for name in (
        "code",
        "medicationCodeableConcept",
        "vaccineCode",
        "category",
        "medicationReference",
        "device",
    ):
        if (value := resource.get(name)) is not None:
            value = value[0] if isinstance(value, list) else value
            subject = value.get("display") or display_of({"code": value})
            if subject:
                break
    parts = [subject or resource.get("description") or resource.get("title") or resource["resourceType"]]
    if quantity := resource.get("valueQuantity"):
        parts.append(
            f"{quantity.get('value', '')} {quantity.get('unit') or quantity.get('code') or ''}".strip()
        )
    elif resource.get("valueString"):
        parts.append(resource["valueString"])
    elif value := resource.get("valueCodeableConcept"):
        parts.append(display_of({"code": value}) or "")
    dates = (
        "onsetDateTime",
        "performedDateTime",
        "occurrenceDateTime",
        "effectiveDateTime",
        "authoredOn",
        "recordedDate",
    )
    when = next((resource[name] for name in dates if name in resource), None)
    return ": ".join(filter(None, parts[:2])) + (f" ({when[:10]})" if when else "")
