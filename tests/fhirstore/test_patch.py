"""JSON Patch with the exact rules and texts bots rely on, and FHIRPath Patch."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fhirstore.errors import FhirError, outcome_text
from fhirstore.patch import apply_patch, read_patch
from fhirstore.repository import Repository
from tests.fhirstore.conftest import patient

Json = dict[str, Any]


def task(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Task", "status": "requested", "intent": "order", **elements}


@pytest.mark.parametrize(
    ("given", "operation", "expected"),
    [
        (task(), {"op": "add", "path": "/note/-", "value": {"text": "x"}}, task(note=[{"text": "x"}])),
        (task(note=[{"text": "a"}]), {"op": "add", "path": "/note/-", "value": {"text": "b"}},
         task(note=[{"text": "a"}, {"text": "b"}])),
        (task(note=[{"text": "a"}]), {"op": "add", "path": "/note/0", "value": {"text": "b"}},
         task(note=[{"text": "b"}, {"text": "a"}])),
        (task(), {"op": "add", "path": "/status", "value": "accepted"}, {**task(), "status": "accepted"}),
        (task(), {"op": "add", "path": "/code", "value": {"text": "x"}}, task(code={"text": "x"})),
        (task(), {"op": "replace", "path": "/status", "value": "accepted"}, {**task(), "status": "accepted"}),
        (task(code={"text": "x"}), {"op": "remove", "path": "/code"}, task()),
        (task(note=[{"text": "a"}]), {"op": "remove", "path": "/note/0"}, task()),
        (task(code={"text": "x"}), {"op": "remove", "path": "/code/text"}, task()),
        (task(description="x"), {"op": "copy", "from": "/description", "path": "/implicitRules"},
         task(description="x", implicitRules="x")),
        (task(description="x"), {"op": "move", "from": "/description", "path": "/implicitRules"},
         task(implicitRules="x")),
        (task(note=[{"text": "a"}]), {"op": "test", "path": "/note/0", "value": {"text": "a"}},
         task(note=[{"text": "a"}])),
        (task(**{"x/y~z": 1}), {"op": "remove", "path": "/x~1y~0z"}, task()),
    ],
)  # fmt: skip
def test_operations(given: dict[str, Any], operation: dict[str, Any], expected: dict[str, Any]) -> None:
    assert apply_patch(given, [operation]) == expected


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        ({"op": "remove", "path": "/recipient"}, "Value required at path: /recipient"),
        ({"op": "remove", "path": "/note/7"}, "Value required at path: /note/7"),
        ({"op": "remove", "path": "/note/-"}, "Value required at path: /note/-"),
        ({"op": "replace", "path": "/recipient", "value": 1}, "Value required at path: /recipient"),
        ({"op": "replace", "path": "/a/b/c", "value": 1}, "Value required at path: /a/b/c"),
        ({"op": "add", "path": "/a/b", "value": 1}, "Value required at path: /a/b"),
        ({"op": "add", "path": "/note/7", "value": {}}, "Value required at path: /note/7"),
        ({"op": "add", "path": "/status/-", "value": 1}, "Not an array at path: /status"),
        ({"op": "add", "path": "/code/-", "value": 1}, "Not an array at path: /code"),
        ({"op": "copy", "from": "/recipient", "path": "/x"}, "Value required at path: /recipient"),
        ({"op": "move", "from": "/recipient", "path": "/x"}, "Value required at path: /recipient"),
        ({"op": "move", "path": "/x"}, "Path required in from: move /x"),
        ({"op": "test", "path": "/status", "value": "draft"}, "Test failed: requested != draft"),
        ({"op": "test", "path": "/note/0/text", "value": 1}, "Test failed: a != 1"),
        ({"op": "test", "path": "/gone", "value": True}, "Test failed: undefined != true"),
        ({"op": "frobnicate", "path": "/status"}, "Invalid operation: frobnicate"),
        ({"path": "/status"}, "Invalid operation: None"),
        ({"op": "add", "path": "/status"}, "Value required for operation: add /status"),
        ({"op": "add", "path": "status", "value": 1}, "Value required at path: status"),
        (
            {"op": "replace", "path": "", "value": {}},
            "Invalid patch body: each operation needs the path of an element",
        ),
        ({"op": "remove"}, "Invalid patch body: each operation needs the path of an element"),
        ("remove", "Invalid patch body"),
    ],
)
def test_refusals(operation: Any, text: str) -> None:
    with pytest.raises(FhirError) as refused:
        apply_patch(task(note=[{"text": "a"}], code={"text": "x"}), [operation])
    assert refused.value.status == 400
    assert outcome_text(refused.value.outcome) == text


def test_a_patch_is_atomic_and_its_result_validated(repository: Repository) -> None:
    stored = repository.create(patient(active=True))
    with pytest.raises(FhirError):
        repository.patch(
            "Patient",
            stored.id,
            [{"op": "replace", "path": "/active", "value": False}, {"op": "remove", "path": "/gender"}],
        )
    with pytest.raises(FhirError, match="colour"):
        repository.patch("Patient", stored.id, [{"op": "add", "path": "/colour", "value": "red"}])
    with pytest.raises(FhirError, match="Invalid patch body"):
        repository.patch("Patient", stored.id, {"op": "remove"})  # type: ignore[arg-type]
    assert repository.read("Patient", stored.id) == stored


def test_a_patch_cannot_change_what_the_server_decides(repository: Repository) -> None:
    stored = repository.create(patient())
    patched = repository.patch(
        "Patient",
        stored.id,
        [
            {"op": "replace", "path": "/id", "value": "other"},
            {"op": "replace", "path": "/resourceType", "value": "Practitioner"},
            {"op": "replace", "path": "/meta/project", "value": "other"},
            {"op": "replace", "path": "/meta/versionId", "value": "other"},
            {"op": "add", "path": "/meta/tag", "value": [{"code": "kept"}]},
        ],
    )
    assert (patched.type, patched.id) == ("Patient", stored.id)
    resource = patched.resource
    assert (resource["resourceType"], resource["id"]) == ("Patient", stored.id)
    assert resource["meta"]["project"] == repository.identity.project
    assert resource["meta"]["versionId"] == patched.version_id
    assert resource["meta"]["tag"] == [{"code": "kept"}]


# --- FHIRPath Patch --------------------------------------------------------------------------------------------------


def operation(type: str, path: str, **parts: Any) -> Json:
    """A parameter: ``value`` is its part as it stands, numbers are valueInteger, texts valueString."""
    made: list[Json] = [{"name": "type", "valueCode": type}, {"name": "path", "valueString": path}]
    for name, value in parts.items():
        if name == "value":
            made.append({"name": "value", **value})
        else:
            made.append({"name": name, "valueInteger" if isinstance(value, int) else "valueString": value})
    return {"name": "operation", "part": made}


def fhirpath_patched(resource: Json, *operations: Json) -> Json:
    body = {"resourceType": "Parameters", "parameter": list(operations)}
    return read_patch(body)(copy.deepcopy(resource))


JANE: Json = {
    "resourceType": "Patient",
    "id": "x",
    "birthDate": "1990-01-01",
    "name": [{"family": "Smith", "given": ["Jane", "Q"]}, {"use": "maiden", "family": "Doe"}],
    "identifier": [
        {"system": "a", "value": "1"},
        {"system": "b", "value": "2"},
        {"system": "c", "value": "3"},
    ],
    "deceasedBoolean": False,
    "contact": [{"name": {"family": "Joe"}}],
}


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        (
            [operation("replace", "Patient.birthDate", value={"valueDate": "2000-01-01"})],
            {"birthDate": "2000-01-01"},
        ),
        ([operation("add", "Patient", name="gender", value={"valueCode": "female"})], {"gender": "female"}),
        ([operation("delete", "Patient.birthDate")], {"birthDate": None}),
        (
            [operation("add", "Patient", name="deceased", value={"valueDateTime": "2020"})],
            {"deceasedBoolean": None, "deceasedDateTime": "2020"},
        ),
        ([operation("delete", "Patient.photo")], {}),
        (
            [
                operation(
                    "add", "Patient.name.where(use = 'maiden')", name="given", value={"valueString": "J"}
                )
            ],
            {"name": [JANE["name"][0], {"use": "maiden", "family": "Doe", "given": ["J"]}]},
        ),
        (
            [operation("replace", "Patient.name[0].given[1]", value={"valueString": "R"})],
            {"name": [{"family": "Smith", "given": ["Jane", "R"]}, JANE["name"][1]]},
        ),
        (
            [operation("insert", "Patient.name[0].given", index=1, value={"valueString": "R"})],
            {"name": [{"family": "Smith", "given": ["Jane", "R", "Q"]}, JANE["name"][1]]},
        ),
        (
            [operation("insert", "Patient.telecom", index=0, value={"valueContactPoint": {"value": "5"}})],
            {"telecom": [{"value": "5"}]},
        ),
        (
            [operation("move", "Patient.identifier", source=2, destination=0)],
            {"identifier": [JANE["identifier"][2], *JANE["identifier"][:2]]},
        ),
        (
            [operation("delete", "Patient.identifier.where(system = 'b')")],
            {"identifier": [JANE["identifier"][0], JANE["identifier"][2]]},
        ),
        (
            [operation("replace", "Patient.deceased", value={"valueDateTime": "2020-01-01"})],
            {"deceasedBoolean": None, "deceasedDateTime": "2020-01-01"},
        ),
        (
            [operation("add", "Patient", name="multipleBirth", value={"valueInteger": 2})],
            {"multipleBirthInteger": 2},
        ),
        (
            [
                operation(
                    "add",
                    "Patient",
                    name="contact",
                    value={
                        "part": [
                            {"name": "name", "valueHumanName": {"family": "Ann"}},
                            {"name": "gender", "valueCode": "female"},
                            {"name": "telecom", "valueContactPoint": {"value": "1"}},
                        ]
                    },
                )
            ],
            {
                "contact": [
                    *JANE["contact"],
                    {"name": {"family": "Ann"}, "gender": "female", "telecom": [{"value": "1"}]},
                ]
            },
        ),
        (
            [operation("add", "Patient.contact[0]", name="gender", value={"valueCode": "male"})],
            {"contact": [{"name": {"family": "Joe"}, "gender": "male"}]},
        ),
        (
            [
                operation("delete", "Patient.name[0].given"[: -len(".given")]),
                operation("replace", "Patient.name[0].family", value={"valueString": "Roe"}),
            ],
            {"name": [{"use": "maiden", "family": "Roe"}]},
        ),
    ],
)
def test_fhirpath_patch(operations: list[Json], expected: Json) -> None:
    whole = {**JANE, **expected}
    assert fhirpath_patched(JANE, *operations) == {
        key: value for key, value in whole.items() if value is not None
    }


def test_lists_of_primitives_keep_their_extensions_beside_them() -> None:
    resource = {"resourceType": "Patient", "name": [{"given": ["A", "B"], "_given": [None, {"id": "b"}]}]}
    moved = fhirpath_patched(resource, operation("move", "Patient.name.given", source=1, destination=0))
    assert moved["name"] == [{"given": ["B", "A"], "_given": [{"id": "b"}, None]}]
    inserted = fhirpath_patched(
        resource, operation("insert", "Patient.name.given", index=0, value={"valueString": "C"})
    )
    assert inserted["name"] == [{"given": ["C", "A", "B"], "_given": [None, None, {"id": "b"}]}]
    deleted = fhirpath_patched(resource, operation("delete", "Patient.name.given[0]"))
    assert deleted["name"] == [{"given": ["B"], "_given": [{"id": "b"}]}]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (operation("explode", "Patient"), "Invalid operation: explode"),
        (operation("add", "Patient", value={"valueString": "x"}), "A FHIRPath Patch operation needs the part name"),
        (operation("add", "Patient", name="gender"), "A FHIRPath Patch operation needs the part value"),
        (operation("add", "Patient", name="nonsense", value={"valueString": "x"}), "Unknown element: nonsense"),
        (operation("add", "Patient.photo", name="url", value={"valueUri": "x"}), "The path of add must lead to one element, but Patient.photo leads to 0"),
        (operation("replace", "Patient.name", value={"valueString": "x"}), "The path of replace must lead to one element, but Patient.name leads to 2"),
        (operation("replace", "Patient", value={"valueString": "x"}), "The resource itself cannot be replaced by a patch"),
        (operation("delete", "Patient"), "The resource itself cannot be deleted by a patch"),
        (operation("delete", "Patient.identifier"), "The path of delete must lead to one element, but Patient.identifier leads to 3"),
        (operation("insert", "Patient.identifier", index=4, value={"valueIdentifier": {}}), "Invalid index for insert at Patient.identifier: 4"),
        (operation("insert", "Patient.birthDate", index=0, value={"valueDate": "2000"}), "The path of insert must lead to a list, but Patient.birthDate does not"),
        (operation("move", "Patient.identifier", source=0, destination=3), "Invalid destination for move at Patient.identifier: 3"),
        ({"name": "operation"}, "Invalid patch body: an operation is a parameter with parts"),
    ],
)  # fmt: skip
def test_what_is_no_fhirpath_patch_is_refused(wrong: Json, text: str) -> None:
    with pytest.raises(FhirError) as refused:
        fhirpath_patched(JANE, wrong)
    (issue,) = refused.value.outcome["issue"]
    assert (refused.value.status, issue["details"]["text"]) == (400, text)
    assert issue["expression"] == ["Parameters.parameter[0]"]
