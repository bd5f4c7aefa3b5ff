"""Secrets of a Project: encrypted apart from the resource, masked wherever they are read, and written as Medplum's clients do."""

from __future__ import annotations

import json
import uuid
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from fhirstore import secrets
from fhirstore.auth.keys import key_ring
from fhirstore.secrets import MASK
from tests.rest.conftest import Caller, text_of

VALUE = "s3cr3t-ünd-länger"


def write(home: Caller, items: Any, kind: str = "secrets") -> Any:
    return home.send("POST", f"/admin/projects/{home.project}/{kind}", items, content_type="application/json")


def stored(home: Caller) -> dict[str, Any]:
    """The secrets in clear, by name."""
    return secrets.of_project(home.project).get(("Project", "secret"), {})


def test_values_are_never_read_again_and_lie_encrypted(home: Caller) -> None:
    items = [{"name": "KEY", "valueString": VALUE}, {"name": "FLAG", "valueBoolean": True}, {"name": "RATE", "valueDecimal": 1.5}]  # fmt: skip
    answer = write(home, items)
    assert answer.status_code == 200
    assert [(each["name"], each["valueString"]) for each in answer.json()["secret"]] == [(each["name"], MASK) for each in items]  # fmt: skip
    assert stored(home) == {each["name"]: each for each in items}
    seen = [home.send("GET", path).content.decode() for path in (f"Project/{home.project}", f"Project/{home.project}/_history", f"/admin/projects/{home.project}", "/auth/me")]  # fmt: skip
    assert not any(VALUE in text or json.dumps(VALUE)[1:-1] in text for text in seen)
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT value FROM fhirstore_secret WHERE project = %s", [home.project])
        assert not any(VALUE.encode() in bytes(value) for (value,) in cursor.fetchall())


def test_a_list_that_was_read_is_written_back(home: Caller) -> None:
    """What Medplum's app does: read the project, change one entry, send all."""
    write(home, [{"name": "A", "valueString": "first value"}, {"name": "B", "valueString": "second value"}])
    read = home.send("GET", f"/admin/projects/{home.project}").json()["project"]["secret"]
    read[1]["valueString"] = "third value"
    assert write(home, [*read, {"name": "C", "valueInteger": 7}]).status_code == 200
    assert {name: item.get("valueString", item.get("valueInteger")) for name, item in stored(home).items()} == {"A": "first value", "B": "third value", "C": 7}  # fmt: skip
    assert write(home, read[:1]).status_code == 200
    assert list(stored(home)) == ["A"]
    project = home.send("GET", f"Project/{home.project}").json()
    assert home.send("PUT", f"Project/{home.project}", project).status_code == 200
    assert stored(home)["A"]["valueString"] == "first value"
    patch = [{"op": "add", "path": "/secret/-", "value": {"name": "D", "valueString": "fourth value"}}]
    assert home.send("PATCH", f"Project/{home.project}", patch, content_type="application/json-patch+json").status_code == 200  # fmt: skip
    assert list(stored(home)) == ["A", "D"]


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([{"name": "NEW", "valueString": MASK}], "The value of NEW is not known"),
        ([{"name": "A", "valueString": "x"}, {"name": "A", "valueString": "y"}], "The name A is there twice"),
        ([{"name": "A"}], "needs one value"),
        ([{"name": "A", "valueString": "x", "valueInteger": 1}], "needs one value"),
        ([{"name": "A", "valueInteger": True}], "of another type"),
        ([{"name": "A", "valueString": 5}], "of another type"),
        ([{"valueString": "x"}], "needs a name"),
        (["x"], "needs a name"),
        ([{"name": "A", "valueString": "x" * 70_000}], "longer than"),
    ],
)
def test_what_is_no_secret_is_refused_and_changes_nothing(home: Caller, items: Any, text: str) -> None:
    write(home, [{"name": "KEPT", "valueString": VALUE}])
    answer = write(home, items)
    assert answer.status_code == 400
    assert text in text_of(answer)
    assert list(stored(home)) == ["KEPT"]


def test_system_secrets_are_sealed_too(home: Caller) -> None:
    home.repository.patch("Project", home.project, [{"op": "add", "path": "/systemSecret", "value": [{"name": "S", "valueString": VALUE}]}])  # fmt: skip
    assert "systemSecret" not in home.send("GET", f"Project/{home.project}").json()
    assert secrets.of_project(home.project)["Project", "systemSecret"]["S"]["valueString"] == VALUE
    write(home, [])
    assert secrets.of_project(home.project)["Project", "systemSecret"]["S"]["valueString"] == VALUE


def test_another_project_sees_nothing(home: Caller, foreign: Caller) -> None:
    write(home, [{"name": "KEY", "valueString": VALUE}])
    assert foreign.send("GET", f"/admin/projects/{home.project}").status_code == 404
    assert secrets.of_project(foreign.project) == {}


def test_keys_are_rotated(home: Caller, settings: Any) -> None:
    write(home, [{"name": "KEY", "valueString": VALUE}])
    key_ring.signing_key()
    old = settings.SECRET_KEY
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = uuid.uuid4().hex, [old]
    assert stored(home)["KEY"]["valueString"] == VALUE
    out = StringIO()
    call_command("rotate_keys", stdout=out)
    assert "secrets and" in out.getvalue()
    settings.SECRET_KEY_FALLBACKS = []
    assert stored(home)["KEY"]["valueString"] == VALUE
    settings.SECRET_KEY = uuid.uuid4().hex
    assert stored(home) == {}
    with pytest.raises(CommandError, match="were encrypted with a key"):
        call_command("rotate_keys", stdout=StringIO())
    settings.SECRET_KEY_FALLBACKS = []
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = old, [*_former(settings)]
    key_ring.forget()


def _former(settings: Any) -> list[str]:
    """Leave no secret behind that the next test's key cannot open."""
    with connections["default"].cursor() as cursor:
        cursor.execute("DELETE FROM fhirstore_secret")
        cursor.execute("DELETE FROM fhirstore_signingkey")
    return []
