"""Bad input everywhere: a clear page each time, never a broken one."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import pytest
from django.conf import settings

from console.timeline import RUN_EXTENSION
from tests.console.conftest import Person

ADDRESSES = (
    "/Bot?name=%00",
    "/Bot?name=%F0%9F%A4%96%27%22%3B--",
    "/Bot?_offset=-1",
    "/Bot?_offset=999999999999999999999",
    "/Bot?_offset=%C2%B2",
    "/Bot/%00",
    "/Bot/%F0%9F%A4%96/editor",
    "/Bot/new/editor",
    "/Subscription?status=a|b,c",
    "/Subscription?_offset=99999999",
    "/AuditEvent?entity=nonsense",
    "/AuditEvent?before=yesterday",
    "/AuditEvent?before=9999-12-31T23:59:59Z,%00",
    "/AuditEvent?before=0001-01-01T00:00:00%2B14:00,x",
    "/AuditEvent?outcome=nonsense",
    "/AuditEvent?_fields=",
    "/Patient?_fields=id&_count=abc",
    "/Patient?_fields=id&_count=-5",
    "/Patient?_fields=id&_offset=99999999999",
    "/Patient?_fields=id&_sort=nonsense",
    "/Patient?_fields=id&name=%00",
    "/Patient?_fields=%00",
    "/Patient?_fields=id&_add=&_value=",
    "/Patient?_fields=id&_fields=name",
    "/Patient/new?view=nonsense",
    "/admin/bots/new?created=nonsense",
    "/Subscription/new?criteria=%00&endpoint=%22%3E%3Cscript%3E",
    "/resources?q=%00",
    "/Binary",
    "/Binary/new",
    "/Login",
    "/User",
    "/Project",
    "/-/news/Bot/x?after=",
    "/-/news/Nonsense/x?after=2026-01-01T00:00:00Z",
    "/signin?next=%00",
)


def test_odd_addresses_get_a_page(alice: Person) -> None:
    for url in ADDRESSES:
        answer = alice.client.get(url)
        assert answer.status_code < 500, url
        assert b"<script>" not in answer.content, url


def test_odd_addresses_below_a_bot_get_a_page(alice: Person, bot: str) -> None:
    other = uuid.uuid4()
    for path in (
        "?before=nonsense",
        "/event?outcome=x&before=x",
        "/history?_offset=99999",
        "/history?old=x&new=y",
        f"/history/{other}",
        f"/history/{other}/diff/{other}",
        "/deployments/99999999999999999999/source",
        "/deployments/1/diff/2",
        "/deployments/1/diff/saved",
        "/deployments/1/roll-back",
    ):
        assert alice.client.get(f"/Bot/{bot}{path}").status_code < 500, path


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"action": "save"},
        {"action": "save", "mode": "form", "base": "nonsense"},
        {"action": "save", "mode": "form", "base": "[]"},
        {"action": "save", "mode": "json", "json": ""},
        {"action": "save", "mode": "json", "json": '{"resourceType": "Observation"}'},
        {"action": "save", "mode": "json", "json": json.dumps({"resourceType": "Patient", "name": "x"})},
        {"action": "save", "mode": "json", "json": '{"resourceType": "Patient", "gender": "\\u0000"}'},
        {"add": "name.0.0.0", "mode": "form", "base": '{"name": "x"}'},
        {"add": "name", "mode": "form", "base": '{"name": {"a": 1}}'},
        {"drop": "name.²", "mode": "form", "base": '{"name": [{}]}'},
        {
            "switch": "form",
            "mode": "json",
            "json": '{"resourceType": "Patient", "name": [{"family": "\\ud800"}]}',
        },
        {"drop": "name.99.x", "mode": "form", "base": '{"name": [{}]}'},
        {"action": "save", "mode": "form", "base": '{"name": [1, null, [2]]}', "r.name.0.family": "x"},
        {
            "action": "save",
            "mode": "form",
            "base": '{"deceasedBoolean": 1, "deceasedDateTime": 2}',
            "r.deceased[x]": "x",
        },
    ],
)
def test_odd_forms_get_a_page(alice: Person, data: dict[str, str]) -> None:
    assert alice.post("/Patient/new", data).status_code < 500


def test_odd_posts_to_the_editor_get_a_page(alice: Person, bot: str) -> None:
    for data in (
        {},
        {"action": "save", "code": "x", "content_type": "application/json"},
        {"action": "save", "code": "x", "content_type": "application/json", "version": "nonsense"},
        {"action": "overwrite", "code": "x", "content_type": "application/json", "sure": "nonsense"},
        {"action": "execute", "code": "x", "content_type": "nonsense/type"},
        {"action": "save", "code": "\x00", "content_type": "application/json", "version": "x"},
    ):
        assert alice.post(f"/Bot/{bot}/editor", data).status_code < 500, data


def test_a_form_that_is_too_large_says_how_much_is_allowed(alice: Person, bot: str) -> None:
    data = {
        "action": "save",
        "code": "x" * (settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1),
        "content_type": "application/json",
    }
    answer = alice.client.post(
        f"/Bot/{bot}/editor",
        "&".join(f"{k}={v}" for k, v in data.items()),
        content_type="application/x-www-form-urlencoded",
    )
    assert answer.status_code == 413
    assert "At most 10 MB" in answer.content.decode()


def test_a_form_with_too_many_fields_points_to_json(alice: Person) -> None:
    answer = alice.post("/Patient/new", {f"x.{n}": "" for n in range(2000)})
    assert answer.status_code == 413
    assert "as JSON" in answer.content.decode()


def test_wrong_methods_are_refused(alice: Person, bot: str) -> None:
    assert alice.post("/Bot").status_code == 405
    assert alice.client.get(f"/-/Bot/{bot}/deploy-diff").status_code == 405
    assert alice.client.put(f"/Bot/{bot}/editor").status_code == 405


@pytest.mark.parametrize(
    "part",
    [
        {"period": {"start": "2020", "end": "2021"}},
        {"period": {"start": "2020-01-01", "end": "2021-01-01T00:00:00Z"}},
        {"period": {"start": "2016-12-31T23:59:60Z", "end": "2021-01-01T00:00:00Z"}},
        {"period": {"start": "0001-01-01T00:00:00+14:00", "end": "2021-01-01T00:00:00Z"}},
        *(
            {"extension": [{"url": RUN_EXTENSION, "extension": [{"url": name, "valueString": "x"}]}]}
            for name in ("duration", "attempt", "deployment", "failure", "trigger")
        ),
    ],
)
def test_an_auditevent_that_somebody_has_written_breaks_no_page(
    alice: Person, bot: str, part: dict[str, Any]
) -> None:
    event = alice.repository.create(
        {
            "resourceType": "AuditEvent",
            "type": {"code": "execute"},
            "recorded": "2026-01-01T00:00:00Z",
            "agent": [{"requestor": True}],
            "source": {"observer": {"display": "x"}},
            "entity": [{"what": {"reference": f"Bot/{bot}"}}],
            **part,
        }
    )
    for url in ("/", "/Bot", "/AuditEvent", f"/Bot/{bot}", f"/Bot/{bot}/event", f"/AuditEvent/{event.id}"):
        alice.page(url)


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+14:00", "2016-12-31T23:59:60Z", "2020-05", "2020-99-99T99:99:99"]
)
def test_a_time_that_python_does_not_know_is_shown_as_it_is(alice: Person, moment: str) -> None:
    named = alice.repository.create({"resourceType": "Organization", "name": moment})
    assert moment in alice.page("/Organization?_fields=id,name")
    assert moment in alice.page(f"/Organization/{named.id}/details")


@pytest.mark.parametrize(
    "reference", ["//evil.example/x", "/\\evil.example", "https://evil.example/Patient/1"]
)
def test_references_lead_to_no_other_site(alice: Person, reference: str) -> None:
    seen = alice.repository.create(
        {
            "resourceType": "Observation",
            "status": "final",
            "code": {"text": "x"},
            "subject": {"reference": reference, "display": "Jane"},
        }
    )
    for url in ("/Observation?_fields=id,subject", f"/Observation/{seen.id}/details"):
        page = alice.page(url)
        assert "Jane" in page
        assert not re.search(r'href="[^"]*evil', page)
