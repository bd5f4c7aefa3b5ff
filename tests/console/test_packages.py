"""The page of packages for Python Bots."""

from __future__ import annotations

import re

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from bots.api import MAX_WHEEL_BYTES, wheels
from tests.bots.test_wheels import wheel
from tests.console.conftest import Person

URL = "/admin/packages"


def upload(person: Person, content: bytes, name: str = "x.whl") -> tuple[int, str]:
    """Send a file as the page's form does; status and text of the page that follows."""
    answer = person.client.post(URL, {"file": SimpleUploadedFile(name, content)}, follow=True)
    return answer.status_code, answer.content.decode().replace("&#x27;", "'")


def test_a_package_is_added_replaced_and_deleted(alice: Person) -> None:
    assert "No packages yet." in alice.page(URL)
    assert f'href="{URL}"' in alice.page("/admin/project")
    content = wheel()
    status, page = upload(alice, content)
    assert status == 200
    assert "some_tools-1.0-py3-none-any.whl added. Bots have it from their next deployment on." in page
    cells = re.findall(r"<t[hd][^>]* data-label=\"([^\"]+)\"[^>]*>(?:<span>)?([^<]*)", page)
    shown = dict(cells)
    assert (shown["Name"], shown["Version"]) == ("some-tools", "1.0")
    assert shown["Size"] == f"{len(content)} bytes".replace(" ", "\xa0") or "KB" in shown["Size"]
    assert shown["Added by"] == "Project Admin"
    assert "<time datetime=" in page

    assert "some_tools-2.0-py3-none-any.whl replaced." in upload(alice, wheel(version="2.0"))[1]
    assert [each.filename for each in wheels(alice.repository)] == ["some_tools-2.0-py3-none-any.whl"]

    page = alice.client.post(URL, {"delete": "some-tools"}, follow=True).content.decode()
    assert "some-tools deleted. Bots deployed with it keep it until their next deployment." in page
    assert "No packages yet." in page
    page = alice.client.post(URL, {"delete": "some-tools"}, follow=True).content.decode()
    assert "The project has no wheel named some-tools." in page


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no archive", "The wheel cannot be added: it is not a ZIP archive, or a damaged one."),
        (b"", "The file is empty."),
        (wheel({"json.py": "x = 1"}), "The wheel cannot be added: Bots have a module named json already."),
        (wheel({"a.so": "x", "a.py": ""}), "The wheel cannot be added: it is not pure Python: a.so is compiled code."),
        (b"x" * (MAX_WHEEL_BYTES + 2), "The wheel is larger than 16 MB."),
    ],
)  # fmt: skip
def test_a_refusal_says_why_at_the_field(alice: Person, content: bytes, reason: str) -> None:
    status, page = upload(alice, content)
    assert status == 422
    assert f'id="id_file_error">{reason}</div>' in page
    assert wheels(alice.repository) == []


def test_a_file_has_to_be_chosen(alice: Person) -> None:
    answer = alice.post(URL)
    assert answer.status_code == 422
    assert "Choose a file." in answer.content.decode()


def test_only_admins_of_the_project_see_and_change_its_packages(
    alice: Person, bob: Person, charlie: Person
) -> None:
    upload(alice, wheel())
    bob.page(URL, 403)
    assert upload(bob, wheel(name="Other"))[0] == 403
    assert bob.post(URL, {"delete": "some-tools"}).status_code == 403
    assert "some-tools" not in charlie.page(URL)
    assert (
        "no wheel named" in charlie.client.post(URL, {"delete": "some-tools"}, follow=True).content.decode()
    )
    assert [each.name for each in wheels(alice.repository)] == ["some-tools"]
