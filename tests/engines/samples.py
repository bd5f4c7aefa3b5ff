"""Resources the engine tests share."""

from __future__ import annotations

from typing import Any

PATIENT: dict[str, Any] = {
    "resourceType": "Patient",
    "id": "8f5b4e6e-0d3c-4c52-9a5c-000000000001",
    "meta": {
        "versionId": "8f5b4e6e-0d3c-4c52-9a5c-000000000002",
        "lastUpdated": "2024-01-02T03:04:05.678Z",
        "profile": ["http://example.com/profile|1.0"],
        "tag": [{"system": "http://example.com/tags", "code": "vip"}],
        "security": [{"code": "R"}],
        "source": "urn:uuid:53fefa32-fcbb-4ff8-8a92-55ee120877b7",
        "project": "p1",
        "author": {"reference": "Practitioner/1"},
        "account": {"reference": "Organization/1"},
        "accounts": [{"reference": "Organization/1"}],
        "compartment": [{"reference": "Project/p1"}],
        "onBehalfOf": {"reference": "Practitioner/2"},
    },
    "identifier": [
        {
            "system": "http://hl7.org/fhir/sid/us-ssn",
            "value": "123-45-6789",
            "type": {"text": "Social Security"},
        },
        {"value": "MRN7"},
    ],
    "active": True,
    "name": [{"use": "official", "family": "van Buren", "given": ["José", "Q."], "prefix": ["Mr."]}],
    "telecom": [
        {"system": "phone", "value": "555-1234", "use": "home"},
        {"system": "email", "value": "Jose@Example.com"},
    ],
    "gender": "male",
    "birthDate": "1980-02-29",
    "deceasedBoolean": False,
    "address": [
        {"line": ["1 Main St"], "city": "São Paulo", "state": "SP", "postalCode": "62701", "country": "BR"}
    ],
    "managingOrganization": {"reference": "Organization/1/_history/3"},
    "generalPractitioner": [
        {"reference": "Practitioner/1", "display": "Dr"},
        {"identifier": {"system": "http://npi", "value": "42"}},
    ],
    "extension": [
        {
            "url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race",
            "extension": [
                {
                    "url": "ombCategory",
                    "valueCoding": {"system": "urn:oid:2.16.840.1.113883.6.238", "code": "2106-3"},
                }
            ],
        }
    ],
}

OBSERVATION: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "o1",
    "meta": {"lastUpdated": "2024-01-02T03:04:05.678Z"},
    "status": "final",
    "code": {
        "coding": [{"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}],
        "text": "Pulse",
    },
    "subject": {"reference": "Patient/1"},
    "effectivePeriod": {"start": "2024-01-01", "end": "2024-01-31T12:00:00Z"},
    "valueQuantity": {
        "value": 72.5,
        "unit": "beats/min",
        "system": "http://unitsofmeasure.org",
        "code": "/min",
    },
    "component": [
        {
            "code": {"coding": [{"code": "x"}]},
            "valueRange": {"low": {"value": 1, "unit": "mm"}, "high": {"value": 2, "unit": "mm"}},
        }
    ],
}
