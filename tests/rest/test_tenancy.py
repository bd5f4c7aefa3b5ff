"""A resource of another project looks exactly like none at all, on every route."""

from __future__ import annotations

import re

import pytest

from tests.rest.conftest import Caller, smith

UNKNOWN = "01a1fd14-b27a-7128-8fbc-2e3291bd94df"
VERSION = "01a1fd14-b27a-73c7-b46b-53b959aef34c"

# method and path with {type}, {id}, {version}; body with the same
ROUTES = [
    ("GET", "{type}/{id}", None),
    ("HEAD", "{type}/{id}", None),
    ("GET", "{type}/{id}/_history", None),
    ("GET", "{type}/{id}/_history/{version}", None),
    ("PUT", "{type}/{id}", '{{"resourceType":"{type}","id":"{id}"}}'),
    ("PATCH", "{type}/{id}", "[]"),
    ("DELETE", "{type}/{id}", None),
    ("POST", "{type}/{id}/$unheard", "{{}}"),
    ("GET", "{type}?_id={id}", None),
    ("DELETE", "{type}?_id={id}", None),
    ("PATCH", "{type}?_id={id}", "[]"),
    ("GET", "Binary/{id}", None),
    ("GET", "Binary/{id}/_history/{version}", None),
    ("GET", "Binary/{id}/$presigned-url", None),
    ("PUT", "Binary/{id}", "content"),
    ("POST", "ClientApplication/{id}/$rotate-secret", '{{"secret":"x"}}'),
    ("POST", "Bot/{id}/$execute", "{{}}"),
    ("POST", "Bot/{id}/$deploy", "{{}}"),
    ("GET", "/projects/{id}/fhir/R4/Patient", None),
    ("GET", "/admin/projects/{id}", None),
    ("POST", "/admin/projects/{id}/client", '{{"name":"x"}}'),
    ("POST", "/admin/projects/{id}/bot", '{{"name":"x"}}'),
    ("POST", "/admin/projects/{id}/invite", '{{"resourceType":"Practitioner","firstName":"A","lastName":"B","email":"a@b.de"}}'),
    ("GET", "/admin/projects/{own}/members/{id}", None),
    ("DELETE", "/admin/projects/{own}/members/{id}", None),
    ("POST", "/admin/projects/{own}/members/{id}", '{{"resourceType":"ProjectMembership","id":"{id}"}}'),
    ("POST", "", '{{"resourceType":"Bundle","type":"batch","entry":[{{"request":{{"method":"GET","url":"{type}/{id}"}}}}]}}'),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=[f"{row[0]} {row[1]}" for row in ROUTES])
def test_a_foreign_id_and_an_unknown_one_get_the_same_answer(
    home: Caller, foreign: Caller, method: str, path: str, body: str | None
) -> None:
    for resource in foreign_resources(foreign):
        answers = []
        ids = (resource["id"], resource["meta"]["versionId"]), (UNKNOWN, VERSION)
        for id, version in ids:
            words = {"type": resource["resourceType"], "id": id, "version": version, "own": home.project}
            answer = home.send(method, path.format(**words), body and body.format(**words), accept="*/*")
            content = re.sub(rb'"valueId":"[^"]+"', b'"valueId":""', answer.content)
            headers = {name: value for name, value in answer.headers.items() if name != "RateLimit"}
            answers.append((answer.status_code, content.replace(id.encode(), b"{id}"), headers))
        assert answers[0] == answers[1]
        assert answers[0][0] in (200, 400, 403, 404)


def foreign_resources(foreign: Caller) -> list[dict]:
    """What the other project holds: of each protected kind one."""
    server = foreign.repository
    return [
        foreign.create(smith()),
        server.read("Project", foreign.project).resource,
        server.read("ClientApplication", foreign.client_id).resource,
        server.search_all("ProjectMembership", "")[0].resource,
        server.store_binary(b"theirs", "text/plain").resource,
    ]


def test_a_reference_into_another_project_cannot_be_followed(home: Caller, foreign: Caller) -> None:
    patient = foreign.create(smith())
    observation = home.create(
        {
            "resourceType": "Observation",
            "status": "final",
            "code": {"text": "x"},
            "subject": {"reference": f"Patient/{patient['id']}"},
        }
    )
    assert home.send("GET", f"Patient/{patient['id']}").status_code == 404
    assert "theirs" not in str(observation)


def test_an_attachment_of_another_project_gets_no_presigned_url(home: Caller, foreign: Caller) -> None:
    binary = foreign.repository.store_binary(b"theirs", "text/plain")
    media = home.create(
        {"resourceType": "Media", "status": "completed", "content": {"url": f"Binary/{binary.id}"}}
    )
    shown = home.send("GET", f"Media/{media['id']}").json()
    assert shown["content"]["url"] == f"Binary/{binary.id}"


def test_a_membership_cannot_be_written_into_another_project(home: Caller, foreign: Caller) -> None:
    stored = home.repository.search_all("ProjectMembership", "")[0].resource
    stored["project"] = {"reference": f"Project/{foreign.project}"}
    answer = home.send("PUT", f"ProjectMembership/{stored['id']}", stored)
    kept = home.repository.read("ProjectMembership", stored["id"]).resource
    assert answer.status_code in (200, 400)
    assert kept["project"]["reference"] == f"Project/{home.project}"
