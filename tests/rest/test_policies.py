"""AccessPolicy through HTTP: what a policy hides makes no difference to any answer, and where a policy may be used from.

The first part is a test of non-interference: two projects hold the same visible data but differ in everything the policy
hides; no request may be answered differently in them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhirstore.api import client_create
from tests.rest.conftest import Caller, new_caller, text_of

POLICY = {
    "resourceType": "AccessPolicy",
    "resource": [
        {
            "resourceType": "Patient",
            "criteria": "Patient?gender=female",
            "hiddenFields": ["birthDate", "identifier", "contact.name", "deceased[x]"],
        },
        {
            "resourceType": "Observation",
            "criteria": "Observation?status=final",
            "hiddenFields": ["value[x]", "note"],
        },
        {"resourceType": "Practitioner", "interaction": ["search", "read"], "hiddenFields": ["telecom"]},
    ],
}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|\+00:00)|\w{3}, \d\d \w{3} \d{4} [0-9:]+ GMT")


@dataclass
class World:
    """A project, its restricted client, and the ids of what was made by name."""

    caller: Caller
    authorization: str = ""
    ids: dict[str, str] = field(default_factory=dict)

    def make(self, name: str, resource: dict[str, Any]) -> None:
        self.ids[name] = self.caller.create(resource)["id"]

    def ask(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Send a request, with ids in place of names; the answer with names in place of ids."""
        sent = json.dumps(body)
        for name, id in self.ids.items():
            path, sent = path.replace(f"<{name}>", id), sent.replace(f"<{name}>", id)
        answer = self.caller.send(
            method,
            path,
            None if body is None else sent,
            authorization=self.authorization,
            content_type="application/json-patch+json" if method == "PATCH" else "application/fhir+json",
            x_medplum="extended",
        )
        text = answer.content.decode()
        names = {id: name for name, id in self.ids.items()}
        text = UUID.sub(lambda found: names.get(found[0], "*"), text)
        return answer.status_code, _without_links(json.loads(MOMENT.sub("*", text))) if text[
            :1
        ] in "{[" else text


def _without_links(answer: Any) -> Any:
    """A Bundle's links without their addresses, which hold positions."""
    if isinstance(answer, dict) and isinstance(answer.get("link"), list):
        answer["link"] = sorted(each["relation"] for each in answer["link"])
    return answer


def _world(difference: int) -> World:
    world = World(new_caller())
    for number in range(3):
        world.make(f"woman{number}", _woman(number, difference))
    world.make("man", {"resourceType": "Patient", "gender": "male", "name": [{"family": f"Man{difference}"}]})
    doctor = {"resourceType": "Practitioner", "name": [{"family": "Gopher"}]}
    world.make("doctor", {**doctor, "telecom": [{"system": "phone", "value": f"{difference}"}]})
    for number, (status, subject) in enumerate(
        (("final", "woman0"), ("final", "woman1"), ("preliminary", "woman0"), ("final", "man"))
    ):
        world.make(
            f"observation{number}",
            {
                "resourceType": "Observation",
                "status": status,
                "code": {"text": "Weight" if status == "final" else f"Secret {difference}"},
                "subject": {"reference": f"Patient/{world.ids[subject]}"},
                "performer": [{"reference": f"Practitioner/{world.ids['doctor']}"}],
                "valueQuantity": {"value": difference + number, "unit": "kg"},
                "note": [{"text": f"note {difference}"}],
            },
        )
    for _ in range(difference):  # as many more hidden ones as the worlds differ
        world.caller.create({"resourceType": "Patient", "gender": "male", "name": [{"family": "Hidden"}]})
    policy = world.caller.repository.create(POLICY)
    client = client_create(
        world.caller.repository,
        name="restricted",
        secret="secret",
        membership={"accessPolicy": {"reference": f"AccessPolicy/{policy.id}"}},
    )
    limited = Caller(world.caller.project, client["id"], "secret", "", "")
    world.authorization = limited.basic
    world.ids["client"] = client["id"]
    return world


def _woman(number: int, difference: int) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "gender": "female",
        "active": number == 0,
        "name": [{"family": f"Woman{number}"}],
        "birthDate": f"19{50 + difference * 10 + number}-01-01",
        "identifier": [{"system": "urn:secret", "value": f"{difference}-{number}"}],
        "deceasedBoolean": difference > 1,
        "contact": [{"name": {"family": f"Contact{difference}"}, "gender": "other"}],
    }


@pytest.fixture(scope="module")
def worlds(database: None) -> tuple[World, World]:
    """Two projects that a restricted client cannot tell apart."""
    return _world(1), _world(3)


NAMES = ("woman0", "woman1", "man", "observation0", "observation2", "observation3", "doctor")
TYPES = {"woman": "Patient", "man": "Patient", "observation": "Observation", "doctor": "Practitioner"}
targets = st.sampled_from(NAMES).map(
    lambda name: f"{next(type_ for start, type_ in TYPES.items() if name.startswith(start))}/<{name}>"
)
conditions = st.sampled_from(
    [
        "gender=female",
        "gender=male",
        "name=man",
        "name=wom",
        "active=true",
        "birthdate=1960-01-01",
        "birthdate=gt1965",
        "birthdate:missing=true",
        "identifier=urn:secret|1-0",
        "identifier:missing=false",
        "deceased=true",
        "_id=<man>",
        "_id=<woman0>,<man>",
        "status=final",
        "status=preliminary",
        "status:not=final",
        "code:text=weight",
        "code:text=secret",
        "value-quantity=gt2",
        "value-quantity=1",
        "combo-value-quantity=gt2",
        "subject=Patient/<man>",
        "subject=Patient/<woman0>",
        "subject:Patient.birthdate=gt1965",
        "subject:Patient.gender=male",
        "subject:Patient.name=man",
        "performer:Practitioner.phone=1",
        "telecom=1",
        "phone=3",
        "_has:Observation:subject:status=preliminary",
        "_has:Observation:subject:value-quantity=gt2",
        "_has:Observation:subject:code:text=secret",
        "_filter=birthdate gt 1965-01-01",
        "_filter=gender eq male or active eq true",
        "_include=Observation:subject",
        "_include=Observation:performer",
        "_revinclude=Observation:subject",
        "_revinclude=Observation:performer",
        "_sort=birthdate",
        "_sort=-value-quantity",
        "_sort=name",
        "_sort=status",
        "_total=accurate",
        "_count=1",
        "_count=0",
        "_offset=1",
        "_elements=birthDate,value",
        "_fields=birthDate,id",
        "_summary=true",
        "_compartment=Patient/<man>",
        "_compartment=Patient/<woman0>",
    ]
)
queries = st.lists(conditions, max_size=3, unique=True).map("&".join)
types = st.sampled_from(["Patient", "Observation", "Practitioner"])
fields = st.sampled_from(
    ["birthDate", "identifier", "deceasedBoolean", "valueQuantity", "note", "contact/0/name", "telecom"]
)
patches = st.tuples(
    st.sampled_from(["test", "copy", "move", "remove"]), fields, st.sampled_from([True, "1960-01-01", "1"])
).map(
    lambda given: [
        {"op": given[0], "path": f"/{given[1]}", "value": given[2]}
        if given[0] in ("test", "remove")
        else {"op": given[0], "from": f"/{given[1]}", "path": "/language"}
    ]
)
Request = tuple[str, str, Any]


def _entry(request: Request) -> dict[str, Any]:
    return {"request": {"method": request[0], "url": request[1]}}


reads: st.SearchStrategy[Request] = st.one_of(
    st.tuples(st.just("GET"), targets, st.none()),
    st.tuples(st.just("GET"), targets.map("{}/_history".format), st.none()),
    st.tuples(st.just("GET"), st.builds("{}?{}".format, types, queries), st.none()),
    st.tuples(st.just("GET"), targets.map("{}/$everything".format), st.none()),
)
requests: st.SearchStrategy[Request] = st.one_of(
    reads,
    st.tuples(st.just("GET"), queries.map("?_type=Patient,Observation&{}".format), st.none()),
    st.tuples(
        st.just("GET"),
        st.builds("{}/$csv?_fields=id,birthDate,name,value,code,telecom&{}".format, types, queries),
        st.none(),
    ),
    st.tuples(st.just("PATCH"), targets, patches),
    st.tuples(
        st.just("DELETE"),
        st.builds("{}?{}".format, types, conditions.filter(lambda text: "_" not in text[:1])),
    ).map(lambda given: ("GET", given[1], None)),
    st.lists(reads, min_size=1, max_size=3).map(
        lambda several: (
            "POST",
            "",
            {"resourceType": "Bundle", "type": "batch", "entry": list(map(_entry, several))},
        )
    ),
    st.sampled_from(
        [
            "{ PatientList { id birthDate identifier { value } contact { name { family } } ObservationList(_reference: "
            "subject) { id code { text } valueQuantity { value } } } }",
            '{ PatientList(birthdate: "gt1965") { id } }',
            '{ PatientList(gender: "male") { id } }',
            '{ ObservationList(status: "preliminary") { id code { text } } }',
            "{ ObservationList { id subject { resource { ... on Patient { id birthDate gender } } } } }",
            '{ Patient(id: "<man>") { id gender } }',
            "{ PractitionerList { telecom { value } } }",
        ]
    ).map(lambda query: ("POST", "$graphql", {"query": query})),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(requests)
def test_what_a_policy_hides_makes_no_difference_to_any_answer(
    worlds: tuple[World, World], request: Request
) -> None:
    first, second = (world.ask(*request) for world in worlds)
    assert first == second
    assert first[0] < 500, first


def test_an_export_holds_no_more_than_may_be_searched(worlds: tuple[World, World]) -> None:
    for world in worlds:
        project = world.caller.project
        limited = Caller(project, world.ids["client"], "secret", "", "")
        from fhirstore.auth.identities import authenticate
        from fhirstore.repository import Repository

        repository = Repository(authenticate(limited.basic, {}))
        shown = [stored.resource for type_ in TYPES.values() for stored in repository.scan(type_)]
        assert {each.get("gender") for each in shown if each["resourceType"] == "Patient"} == {"female"}
        assert not any(
            each.keys() & {"birthDate", "identifier", "valueQuantity", "note", "telecom"} for each in shown
        )
        assert "Secret" not in json.dumps(shown)


def test_ip_rules_hold_for_basic_and_for_tokens(home: Caller) -> None:
    policy = home.create(
        {
            "resourceType": "AccessPolicy",
            "resource": [{"resourceType": "Patient"}],
            "ipAccessRule": [{"value": "127.0.0.0/8", "action": "block"}],
        }
    )
    client = client_create(
        home.repository,
        name="elsewhere",
        secret="secret",
        membership={"accessPolicy": {"reference": f"AccessPolicy/{policy['id']}"}},
    )
    elsewhere = Caller(home.project, client["id"], "secret", "", "")
    form = f"grant_type=client_credentials&client_id={client['id']}&client_secret=secret"
    token = home.send(
        "POST", "/oauth2/token", form, content_type="application/x-www-form-urlencoded", authorization=""
    )
    for authorization in (elsewhere.basic, f"Bearer {token.json()['access_token']}"):
        answer = home.send("GET", "Patient", authorization=authorization)
        assert (answer.status_code, text_of(answer)) == (403, "IP address not allowed")
    policy["ipAccessRule"].insert(0, {"value": "127.0.0.1", "action": "allow"})
    assert home.send("PUT", f"AccessPolicy/{policy['id']}", policy).status_code == 200
    assert home.send("GET", "Patient", authorization=elsewhere.basic).status_code == 200


def test_scopes_of_a_token_limit_it(home: Caller) -> None:
    form = f"grant_type=client_credentials&client_id={home.client_id}&client_secret={home.secret}&scope=system/Patient.read"
    token = home.send(
        "POST", "/oauth2/token", form, content_type="application/x-www-form-urlencoded", authorization=""
    )
    bearer = f"Bearer {token.json()['access_token']}"
    assert home.send("GET", "Patient", authorization=bearer).status_code == 200
    assert home.send("GET", "Practitioner", authorization=bearer).status_code == 403
    assert home.send("POST", "Patient", {"resourceType": "Patient"}, authorization=bearer).status_code == 403


def test_new_members_get_the_projects_default_policy(database: None) -> None:
    place = new_caller()
    policy = place.create(
        {"resourceType": "AccessPolicy", "resource": [{"resourceType": "Patient", "readonly": True}]}
    )
    reference = {"reference": f"AccessPolicy/{policy['id']}"}
    project = place.send("GET", f"Project/{place.project}", x_medplum="extended").json()
    project["defaultAccessPolicies"] = [{"profileType": "Practitioner", "accessPolicy": reference}]
    project["defaultPatientAccessPolicy"] = reference
    assert place.send("PUT", f"Project/{place.project}", project).status_code == 200

    def invited(resource_type: str, **more: Any) -> dict[str, Any]:
        body = {
            "resourceType": resource_type,
            "firstName": "A",
            "lastName": "B",
            "externalId": resource_type,
            **more,
        }
        answer = place.send(
            "POST", f"/admin/projects/{place.project}/invite", body, content_type="application/json"
        )
        assert answer.status_code == 200, answer.content
        return answer.json()

    assert invited("Practitioner")["accessPolicy"] == reference
    assert invited("Patient")["accessPolicy"] == reference
    assert "accessPolicy" not in invited("RelatedPerson", patient={"reference": f"Patient/{policy['id']}"})
    assert "accessPolicy" not in invited("Practitioner", externalId="admin", membership={"admin": True})


def test_default_profiles_of_a_project_count_for_its_clients(database: None) -> None:
    place = new_caller()
    project = place.send("GET", f"Project/{place.project}", x_medplum="extended").json()
    project["defaultProfile"] = [{"resourceType": "Patient", "profile": ["https://example.com/usual"]}]
    assert place.send("PUT", f"Project/{place.project}", project).status_code == 200
    assert place.create({"resourceType": "Patient"})["meta"]["profile"] == ["https://example.com/usual"]
