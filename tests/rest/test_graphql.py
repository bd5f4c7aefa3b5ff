"""``$graphql``: queries by id, by search, through references and back, with limits."""

from __future__ import annotations

from typing import Any

import pytest

from fhirstore.rest import graphql_engine
from tests.rest.conftest import Caller, new_caller, smith, text_of

READ = '{ Patient(id: "ID") { id } }'


@pytest.fixture(scope="module")
def clinic(database: None) -> Caller:
    """A project with a patient who has a doctor and three observations."""
    return new_caller()


@pytest.fixture(scope="module")
def record(clinic: Caller) -> dict[str, str]:
    """Ids by a word for each."""
    doctor = clinic.create({"resourceType": "Practitioner", "name": [{"family": "Gopher"}]})
    names = [
        {"use": "official", "family": "Smith", "given": ["Jane", "Joan"]},
        {"use": "nickname", "given": ["Janie"]},
    ]
    patient = clinic.create(
        {
            "resourceType": "Patient",
            "name": names,
            "birthDate": "1980-01-01",
            "multipleBirthInteger": 2,
            "contact": [{"name": {"family": "Doe"}}],
            "generalPractitioner": [{"reference": f"Practitioner/{doctor['id']}"}],
        }
    )
    made = {"doctor": doctor["id"], "patient": patient["id"]}
    for value in (1.5, 2, 3):
        made[f"observation {value}"] = clinic.create(
            {
                "resourceType": "Observation",
                "status": "final",
                "code": {"coding": [{"system": "x:y", "code": "c"}]},
                "subject": {"reference": f"Patient/{patient['id']}"},
                "valueQuantity": {"value": value, "unit": "kg"},
            }
        )["id"]
    return made


def ask(caller: Caller, query: str, variables: Any = None, operation: Any = None) -> Any:
    body = {"query": query, "operationName": operation, "variables": variables}
    return caller.send("POST", "$graphql", body, content_type="application/json")


def data(caller: Caller, query: str, variables: Any = None, operation: Any = None) -> Any:
    answer = ask(caller, query, variables, operation)
    assert answer.status_code == 200, answer.content
    assert answer["content-type"] == "application/json; charset=utf-8"
    body = answer.json()
    assert "errors" not in body, body
    return body["data"]


def test_a_resource_is_read_by_id(clinic: Caller, record: dict[str, str]) -> None:
    query = """query Read($id: ID!) {
        Patient(id: $id) {
            resourceType id birthDate multipleBirthInteger meta { versionId }
            name(use: "official") { given family }
            contact { name { family } }
        }
    }"""
    patient = data(clinic, query, {"id": record["patient"]}, "Read")["Patient"]
    assert patient.pop("meta")["versionId"]
    assert patient == {
        "resourceType": "Patient",
        "id": record["patient"],
        "birthDate": "1980-01-01",
        "multipleBirthInteger": 2,
        "name": [{"given": ["Jane", "Joan"], "family": "Smith"}],
        "contact": [{"name": {"family": "Doe"}}],
    }


def test_lists_are_searches(clinic: Caller, record: dict[str, str]) -> None:
    query = '{ ObservationList(code: "x:y|c", _sort: "-value_quantity", value_quantity: "ge2", _count: 5) { id } }'
    answer = ask(clinic, query).json()
    assert answer["data"]["ObservationList"] is None
    assert answer["errors"][0]["message"] == "Unknown search parameter: value_quantity"
    query = '{ ObservationList(code: "x:y|c", _sort: "-value-quantity", value_quantity: "ge2", _count: 1, _offset: 1) { id } }'
    assert data(clinic, query)["ObservationList"] == [{"id": record["observation 2"]}]
    aliased = data(clinic, '{ a: PatientList(name: "smith") { id } b: PatientList(name: "nobody") { id } }')
    assert aliased == {"a": [{"id": record["patient"]}], "b": []}


def test_connections_count_and_page(clinic: Caller, record: dict[str, str]) -> None:
    query = (
        "{ ObservationConnection(_count: 2) { count offset pageSize edges { mode resource { status } } } }"
    )
    assert data(clinic, query)["ObservationConnection"] == {
        "count": 3,
        "offset": 0,
        "pageSize": 2,
        "edges": [{"mode": "match", "resource": {"status": "final"}}] * 2,
    }


def test_references_are_followed_in_both_directions(clinic: Caller, record: dict[str, str]) -> None:
    query = """{
        PatientList(family: "smith") {
            generalPractitioner { resource { ...Doctor } }
            ObservationList(_reference: subject, _sort: "value-quantity", _count: 2) {
                valueQuantity { value }
                subject { resource { __typename ... on Patient { name(_count: 1) { family } } } }
            }
        }
    }
    fragment Doctor on Practitioner { name { family } }"""
    subject = {"resource": {"__typename": "Patient", "name": [{"family": "Smith"}]}}
    assert data(clinic, query)["PatientList"] == [
        {
            "generalPractitioner": [{"resource": {"name": [{"family": "Gopher"}]}}],
            "ObservationList": [
                {"valueQuantity": {"value": 1.5}, "subject": subject},
                {"valueQuantity": {"value": 2}, "subject": subject},
            ],
        }
    ]


def test_a_missing_reference_is_an_error_of_its_place_only(clinic: Caller) -> None:
    gone = clinic.create({"resourceType": "Organization", "name": "x"})
    clinic.send("DELETE", f"Organization/{gone['id']}")
    patient = clinic.create(smith(managingOrganization={"reference": f"Organization/{gone['id']}"}))
    query = '{ Patient(id: "ID") { id managingOrganization { resource ARGUMENTS { __typename } } } }'
    query = query.replace("ID", patient["id"])
    answer = ask(clinic, query.replace("ARGUMENTS", "")).json()
    assert answer["data"]["Patient"] == {"id": patient["id"], "managingOrganization": {"resource": None}}
    assert answer["errors"][0]["message"] == "Gone"
    assert answer["errors"][0]["path"] == ["Patient", "managingOrganization", "resource"]
    for argument in ("(optional: true)", '(type: "Patient")'):
        found = data(clinic, query.replace("ARGUMENTS", argument))
        assert found["Patient"]["managingOrganization"] == {"resource": None}
    clinic.send("DELETE", f"Patient/{patient['id']}")


def test_another_project_is_not_there(clinic: Caller, foreign: Caller, record: dict[str, str]) -> None:
    answer = ask(foreign, READ.replace("ID", record["patient"])).json()
    assert answer["data"] == {"Patient": None}
    assert answer["errors"][0]["message"] == "Not found"
    assert data(foreign, "{ ObservationList { id } }") == {"ObservationList": []}
    foreign.create(smith(generalPractitioner=[{"reference": f"Practitioner/{record['doctor']}"}]))
    answer = ask(foreign, "{ PatientList { generalPractitioner { resource { __typename } } } }").json()
    assert answer["errors"][0]["message"] == "Not found"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "Must provide query."),
        ({"query": 7}, "Must provide query."),
        ([], "Expected a JSON object with query, operationName and variables"),
        ({"query": "{"}, "GraphQL syntax error."),
        ({"query": "{" * 200}, "GraphQL syntax error."),
        (
            {"query": "{ PatientList { potion } }"},
            "Cannot query field 'potion' on type 'Patient'. Did you mean 'photo'?",
        ),
        (
            {"query": "{ PatientList { id } }", "variables": []},
            "operationName must be a text, variables an object",
        ),
        ({"query": f"{{ PatientList {{ {'id ' * 6000} }} }}"}, "GraphQL syntax error."),
        (
            {"query": "subscription { __typename }"},
            "Only queries and mutations are supported, no subscriptions",
        ),
        (
            {
                "query": "{ a: PatientList { ...F } } fragment F on Patient { link { other { resource { ...F } } } }"
            },
            "Cannot spread fragment 'F' within itself.",
        ),
    ],
)
def test_queries_that_are_not_valid_are_refused(clinic: Caller, body: Any, text: str) -> None:
    answer = clinic.send("POST", "$graphql", body, content_type="application/json")
    assert (answer.status_code, text_of(answer)) == (400, text)


def test_deep_queries_are_refused_also_through_fragments(clinic: Caller) -> None:
    inner = "__typename"
    for _ in range(6):
        inner = f"... on Patient {{ link {{ other {{ resource {{ {inner} }} }} }} }}"
    text = "The query exceeds max depth (depth=20, max=12)"
    assert text_of(ask(clinic, f"{{ PatientList {{ {inner} }} }}")) == text
    fragments = "".join(
        f"fragment F{level} on Patient {{ link {{ other {{ resource {{ ...F{level + 1} }} }} }} }} "
        for level in range(6)
    )
    query = fragments + "{ PatientList { ...F0 } } fragment F6 on Patient { active }"
    assert text_of(ask(clinic, query)) == "The query exceeds max depth (depth=20, max=12)"


@pytest.mark.parametrize(("limit", "value"), [("searches", 2), ("reads", 0), ("fields", 5)])
def test_expensive_queries_are_given_up(
    clinic: Caller, record: dict[str, str], monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    class Tight(graphql_engine.Context):
        """A budget for little."""

        def __init__(self, request: Any) -> None:
            super().__init__(request)
            setattr(self, limit, value)

    monkeypatch.setattr(graphql_engine, "Context", Tight)
    query = """{
        PatientList { id generalPractitioner { resource { __typename } } }
        a: ObservationList { id code { text } } b: ObservationList { id status }
    }"""
    answer = ask(clinic, query)
    assert (answer.status_code, text_of(answer)) == (400, f"The query is too expensive: too many {limit}")


@pytest.fixture
def curious(database: None) -> Caller:
    """A project that may ask for the schema."""
    caller = new_caller()
    project = caller.repository.read("Project", caller.project).resource
    project["features"] = [*project.get("features", ()), graphql_engine.INTROSPECTION]
    caller.repository.update(project)
    return caller


def test_the_schema_is_told_to_projects_with_the_feature(clinic: Caller, curious: Caller) -> None:
    query = "{ __schema { queryType { name } types { name } } }"
    refused = ask(clinic, query)
    assert (refused.status_code, text_of(refused)) == (
        403,
        "Introspection needs the project feature graphql-introspection",
    )
    assert (
        ask(
            clinic, '{ a: PatientList { id } ...F } fragment F on QueryType { __type(name: "Bot") { name } }'
        ).status_code
        == 403
    )
    told = {each["name"] for each in data(curious, query)["__schema"]["types"]}
    assert {"Patient", "PatientContact", "Bot", "PatientConnection", "ResourceList", "HumanName"} <= told
    asked = data(curious, '{ __type(name: "Patient") { name fields { name type { name } } } }')["__type"]
    fields = {field["name"]: field["type"]["name"] for field in asked["fields"]}
    assert fields["deceasedBoolean"] == "Boolean"
    assert fields["maritalStatus"] == "CodeableConcept"
    assert {"name", "ObservationList", "resourceType"} <= fields.keys()
    mixed = ask(curious, '{ __type(name: "Bot") { name } PatientList { id } }')
    assert text_of(mixed) == "Ask for __schema or __type alone, and only once"


def test_the_capability_statement_lists_it(clinic: Caller) -> None:
    operations = clinic.send("GET", "metadata").json()["rest"][0]["operation"]
    assert "graphql" in {each["name"] for each in operations}


def test_mutations_create_update_patch_and_delete(clinic: Caller) -> None:
    made = data(
        clinic,
        """mutation {
            PatientCreate(res: {resourceType: "Patient", gender: "male", name: [{given: "Homer"}]}) {
                id gender name { given }
            }
        }""",
    )["PatientCreate"]
    assert (made["gender"], made["name"]) == ("male", [{"given": ["Homer"]}])
    changed = data(
        clinic,
        """mutation Change($id: ID!, $res: PatientUpdate!) {
            PatientUpdate(id: $id, res: $res) { gender }
            again: PatientPatch(id: $id, patch: [{op: "add", path: "/active", value: true}]) { active gender }
        }""",
        {"id": made["id"], "res": {"resourceType": "Patient", "gender": "female", "multipleBirthInteger": 2}},
    )
    assert changed == {"PatientUpdate": {"gender": "female"}, "again": {"active": True, "gender": "female"}}
    stored = clinic.send("GET", f"Patient/{made['id']}", x_medplum="extended").json()
    assert (stored["multipleBirthInteger"], stored["active"]) == (2, True)
    assert stored["meta"]["author"]["reference"] == f"ClientApplication/{clinic.client_id}"
    gone = data(clinic, f'mutation {{ PatientDelete(id: "{made["id"]}") {{ id }} }}')
    assert gone == {"PatientDelete": {"id": made["id"]}}
    assert clinic.send("GET", f"Patient/{made['id']}").status_code == 410


def test_a_refused_mutation_says_why_and_the_others_stand(clinic: Caller, foreign: Caller) -> None:
    theirs = foreign.create(smith())["id"]
    answer = ask(
        clinic,
        f"""mutation {{
            wrong: PatientCreate(res: {{gender: "unknowable"}}) {{ id }}
            foreign: PatientUpdate(id: "{theirs}", res: {{gender: "male"}}) {{ id }}
            other: PatientUpdate(id: "{theirs}", res: {{id: "x"}}) {{ id }}
            right: PatientCreate(res: {{gender: "male"}}) {{ gender }}
        }}""",
    ).json()
    assert answer["data"] == {"wrong": None, "foreign": None, "other": None, "right": {"gender": "male"}}
    texts = {error["path"][0]: error["message"] for error in answer["errors"]}
    assert "gender" in texts["wrong"]
    assert texts["foreign"] == "Not found"
    assert texts["other"] == "Incorrect resource ID"
    unknown = ask(clinic, 'mutation { PatientCreate(res: {nmae: "x"}) { id } }')
    assert unknown.status_code == 400
    assert "nmae" in text_of(unknown)


def test_what_a_query_reads_has_a_limit(database: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphql_engine, "MAX_BYTES", 5000)
    own = new_caller()
    id = own.create({"resourceType": "Basic", "code": {"text": "x" * 2000}})["id"]

    def ask(times: int) -> int:
        query = " ".join(f'a{number}: BasicList(_id: "{id}") {{ id }}' for number in range(times))
        return own.send("POST", "$graphql", {"query": f"{{ {query} }}"}).status_code

    assert (ask(2), ask(3)) == (200, 400)
