"""Packages that a project adds for its Python Bots."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bots.models import Wheel
from bots.wheels import MAX_PACKED, MAX_UNPACKED, read_wheel, wheel_add, wheels
from fhirstore.api import FhirError, Repository
from tests.bots.conftest import Project, new_project
from tests.bots.test_execute import text_of
from tests.bots.test_python import NATIVE
from tests.conftest import Server

PURE = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
PACKAGE = {
    "tools/__init__.py": 'from importlib.metadata import version\n\nfrom tools.inner.numbers import add\n\n__version__ = version("Some.Tools")\n',
    "tools/inner/numbers.py": "def add(a, b):\n    return a + b\n\n\ndef fail():\n    return 1 / 0\n",
    "tools/data/words.txt": "from a file\n",
    "single.py": "import pkgutil\n\nWORDS = pkgutil.get_data('tools', 'data/words.txt').decode()\n",
}
USES = """\
from importlib import resources

import single
import tools
from tools.inner import numbers


def handler(medplum, event):
    if event.input.get("fail"):
        numbers.fail()
    words = resources.files("tools").joinpath("data", "words.txt").read_text()
    return [tools.add(1, 2), tools.__version__, words, single.WORDS, tools.__file__]
"""


def wheel(
    files: dict[str, str] = PACKAGE, *, name: str = "Some.Tools", version: str = "1.0", facts: str = PURE
) -> bytes:
    """The bytes of a wheel."""
    folder = f"{name.replace('.', '_')}-{version}.dist-info"
    own = {
        f"{folder}/WHEEL": facts,
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nWords.\n",
    }
    with io.BytesIO() as out:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, text in (files | own).items():
                archive.writestr(path, text)
        return out.getvalue()


def add(project: Project, content: bytes, status: int = 201) -> Any:
    """POST a wheel."""
    answer = project.http.post(
        f"/admin/projects/{project.id}/wheels", content=content, headers={"content-type": "application/zip"}
    )
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.fixture
def other_project(server: Server) -> Iterator[Project]:
    """A project beside the module's."""
    with new_project(server) as made:
        yield made


@pytest.fixture(params=[(), NATIVE], ids=["pyodide", "cpython"])
def elements(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Elements of a Bot that runs in either Python."""
    return {"extension": request.param} if request.param else {}


def test_bots_import_what_the_project_adds_and_keep_what_they_were_deployed_with(
    project: Project, elements: dict[str, Any]
) -> None:
    assert add(project, wheel()) == {"name": "some-tools", "filename": "some_tools-1.0-py3-none-any.whl"}
    id = project.bot(USES, filename="index.py", **elements)
    first = [3, "1.0", "from a file\n", "from a file\n", "/wheels/tools/__init__.py"]
    assert project.execute(id).json() == first
    failed = project.execute(id, {"fail": True})
    assert (failed.status_code, text_of(failed)) == (400, "ZeroDivisionError: division by zero")
    (*_, event) = project.audit_events(f"Bot/{id}", 2)
    assert 'File "/wheels/tools/inner/numbers.py", line 6, in fail\n    return 1 / 0' in event["outcomeDesc"]

    changed = PACKAGE | {"tools/inner/numbers.py": "def add(a, b):\n    return 'changed'\n"}
    add(project, wheel(changed, version="2.0"))
    assert project.execute(id).json() == first
    project.deploy(id, USES, "index.py")
    assert project.execute(id).json()[:2] == ["changed", "2.0"]
    gone = project.http.delete(f"/admin/projects/{project.id}/wheels/Some_Tools")
    assert gone.status_code == 200, gone.text
    assert project.execute(id).json()[:2] == ["changed", "2.0"]
    project.post(f"/fhir/R4/Bot/{id}/$rollback", {"deployment": 1}, 200)
    assert project.execute(id).json() == first
    shown = project.http.get(f"/fhir/R4/Bot/{id}/$deployments").json()["deployments"]
    assert [each["wheels"] for each in shown] == [
        ["some_tools-1.0-py3-none-any.whl"],
        ["some_tools-2.0-py3-none-any.whl"],
        ["some_tools-1.0-py3-none-any.whl"],
    ]


def test_a_missing_module_is_told_with_its_line_and_what_to_do(
    project: Project, other_project: Project, elements: dict[str, Any]
) -> None:
    add(other_project, wheel({"elsewhere.py": "x = 1\n"}, name="elsewhere"))
    outcome = project.deploy(
        project.bot(None, **elements),
        "import json\nimport elsewhere\n\n\ndef handler(m, e): ...\n",
        "a.py",
        400,
    )
    text = outcome["issue"][0]["details"]["text"]
    assert text.startswith("a.py:2:1: ModuleNotFoundError: No module named 'elsewhere': Bots import ")
    assert "`fhirbots wheel add FILE`" in text


def test_wheels_are_listed_replaced_and_removed_by_admins_of_the_project(
    project: Project, other_project: Project
) -> None:
    mine = {"mine.py": ""}
    add(project, wheel(mine, name="mine"))
    add(project, wheel(mine, name="Mine", version="1.1"))
    add(project, wheel(mine, name="mine", version="1.0"))  # back again
    found = project.http.get(f"/admin/projects/{project.id}/wheels").json()
    assert [each["filename"] for each in found if each["name"] == "mine"] == ["mine-1.0-py3-none-any.whl"]
    assert other_project.http.get(f"/admin/projects/{other_project.id}/wheels").json() == []
    url = f"/admin/projects/{project.id}/wheels"
    assert other_project.http.get(url).status_code == 404
    assert other_project.http.post(url, content=wheel(mine)).status_code == 404
    assert other_project.http.delete(f"{url}/mine").status_code == 404
    assert project.http.delete(f"{url}/mine").status_code == 200
    assert project.http.delete(f"{url}/mine").status_code == 404
    member = Repository(replace(project.admin.identity, is_admin=False))
    with pytest.raises(FhirError, match="Only a project admin"):
        wheel_add(member, wheel())
    with pytest.raises(FhirError, match="Only a project admin"):
        wheels(member)


def test_a_wheel_does_not_stand_before_what_bots_have(project: Project, elements: dict[str, Any]) -> None:
    """The check refuses it; this is what happens if it did not."""
    add(project, wheel({"first.py": "x = 1\n"}, name="shadow"))
    content = wheel(
        {"json/__init__.py": "raise SystemExit", "fhirbots/evil.py": "x = 1", "first.py": "x = 2"}
    )
    Wheel.objects.filter(project=project.id, name="shadow").update(content=content)
    code = """\
import importlib.util, json, fhirbots.event, first


def handler(medplum, event):
    return [json.dumps([]), first.x, json.__file__.startswith("/wheels"), hasattr(fhirbots, "evil")]
"""
    assert project.execute(project.bot(code, filename="a.py", **elements)).json() == ["[]", 2, False, False]


def entries(*files: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    """A wheel with entries that ``wheel`` does not make."""
    with io.BytesIO(wheel()) as out:
        with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                archive.writestr(name, content)
        return out.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


def damaged() -> bytes:
    content = bytearray(wheel({"a.py": "x = 1\n" * 50}))
    at = content.index(b"a.py") + len("a.py")
    content[at + 4] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: b"PK not a zip", "not a ZIP archive"),
        (lambda: b"", "not a ZIP archive"),
        (damaged, "damaged"),
        (lambda: wheel()[:-30], "not a ZIP archive"),
        (lambda: wheel(facts=PURE.replace("py3-none-any", "cp314-cp314-linux_x86_64")), "made for cp314-cp314-linux_x86_64"),
        (lambda: wheel(facts=PURE.replace("py3", "py2")), "made for py2-none-any"),
        (lambda: wheel(facts=PURE.replace("true", "false")), "not pure Python"),
        (lambda: wheel({"a.py": "", "a/_speed.cpython-314.so": "\x7fELF"}), "a/_speed.cpython-314.so is compiled code"),
        (lambda: wheel({"json.py": ""}), "have a module named json already"),
        (lambda: wheel({"fhirbots/__init__.py": ""}), "have a module named fhirbots already"),
        (lambda: wheel({"readme.txt": ""}), "no modules"),
        (lambda: wheel(name="!"), "no usable Name"),
        (lambda: entries(("../../etc/x.py", b"")), "'../../etc/x.py' is no path inside of it"),
        (lambda: entries(("/etc/x.py", b"")), "is no path inside of it"),
        (lambda: entries(("a\\..\\x.py", b"")), "is no path inside of it"),
        (lambda: entries((link("tools/secret.py"), b"/etc/passwd")), "tools/secret.py is a link"),
        (lambda: entries(("tools/zeros.py", bytes(MAX_UNPACKED))), "its files have more than 64 MB"),
        (lambda: entries(*((f"tools/{n}.txt", b"") for n in range(10_000))), "more than 10000 files"),
        (lambda: entries(("Other-1.dist-info/WHEEL", b"")), "holds no file *.dist-info/WHEEL"),
        (lambda: bytes(MAX_PACKED + 1), "larger than 16 MB"),
    ],
)  # fmt: skip
def test_what_is_no_wheel_for_bots_is_refused_with_the_reason(content: Any, reason: str) -> None:
    with pytest.raises(FhirError) as caught:
        read_wheel(content())
    assert reason in str(caught.value)


def test_a_refusal_is_a_400_and_changes_nothing(project: Project) -> None:
    before = project.http.get(f"/admin/projects/{project.id}/wheels").json()
    outcome = add(project, wheel(facts=PURE.replace("true", "false")), 400)
    assert "The wheel cannot be added: it is not pure Python" in outcome["issue"][0]["details"]["text"]
    assert project.http.get(f"/admin/projects/{project.id}/wheels").json() == before


def test_a_zip_that_lies_about_its_size_is_refused() -> None:
    content = bytearray(wheel({"a.py": "x = 1\n" * 1_000_000}))
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"a.py"))
    content[at + 24 : at + 28] = (100).to_bytes(4, "little")
    with pytest.raises(FhirError, match="damaged"):
        read_wheel(bytes(content))


def test_wheels_of_a_project_have_a_limit_together(other_project: Project) -> None:
    big = wheel({"big.py": "", "big.bin": os.urandom(9_000_000).decode("latin-1")}, name="big")
    assert len(big) < MAX_PACKED
    add(other_project, big)
    outcome = add(
        other_project,
        wheel({"big2.py": "", "big2.bin": os.urandom(9_000_000).decode("latin-1")}, name="big2"),
        413,
    )
    assert "at most 16 MB together" in outcome["issue"][0]["details"]["text"]
    found = other_project.http.get(f"/admin/projects/{other_project.id}/wheels").json()
    assert [each["name"] for each in found] == ["big"]


def test_a_real_package_works(project: Project, elements: dict[str, Any]) -> None:
    """`packaging`, which every pip brings, as a wheel made from what is installed here."""
    import packaging

    folder = Path(packaging.__file__).parent
    files = {f"packaging/{path.relative_to(folder)}": path.read_text() for path in folder.rglob("*.py")}
    add(project, wheel(files, name="packaging", version=packaging.__version__))
    code = "from packaging.version import Version\n\n\ndef handler(m, e):\n    return str(max(map(Version, e.input)))\n"
    assert project.execute(project.bot(code, filename="a.py", **elements), ["1.9", "1.10"]).text == "1.10"
