"""The ``fhirbots`` command as a person, or a CI job, runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fhirbots.testing import ServerAddress

from tests.bots.test_wheels import wheel

SDK = Path(__file__).resolve().parents[2] / "sdk"
HELLO = "def handler(medplum, event):\n    print('running')\n    return {'hello': event.input}\n"


class Terminal:
    """A folder with Bots, and the command in it."""

    def __init__(self, folder: Path, address: ServerAddress) -> None:
        self.folder = folder
        (folder / ".env").write_text(
            f"# who we are\nMEDPLUM_BASE_URL={address.base_url}\nexport MEDPLUM_CLIENT_ID='{address.client_id}'\n"
            f'MEDPLUM_CLIENT_SECRET="{address.client_secret}"  \n'
        )

    def run(self, *arguments: str, code: int = 0, stdin: str = "", **environment: str) -> str:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MEDPLUM_")}
        done = subprocess.run(
            [sys.executable, "-m", "fhirbots", *arguments],
            cwd=self.folder,
            env=inherited | {"PYTHONPATH": str(SDK)} | environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def terminal(tmp_path: Path, address: ServerAddress) -> Terminal:
    return Terminal(tmp_path, address)


def test_a_bot_from_its_creation_to_its_log(terminal: Terminal) -> None:
    (terminal.folder / "hello.py").write_text(HELLO)
    assert "Created Bot/" in terminal.run("bot", "create", "hello", "-", "hello.py")
    (entry,) = json.loads((terminal.folder / "medplum.config.json").read_text())["bots"]
    assert (entry["name"], entry["source"]) == ("hello", "hello.py")
    assert json.loads(terminal.run("bot", "execute", "hello", "--data", '{"a": 1}')) == {"hello": {"a": 1}}
    (terminal.folder / "hello.py").write_text(HELLO.replace("hello'", "bye'"))
    assert "Saved hello" in terminal.run("bot", "save", "hello")
    assert json.loads(terminal.run("bot", "execute", "hello", "--input", "-", stdin="[1]")) == {"hello": [1]}
    assert "Deployed hello" in terminal.run("bot", "deploy", "hello")
    assert json.loads(terminal.run("bot", "execute", "hello", "--data", "words")) == {"bye": "words"}
    log = terminal.run("bot", "logs", "hello")
    assert log.count("  ok  AuditEvent/") == 3
    assert log.count("    running") == 3
    assert "hello\t" in terminal.run("bot", "list")
    assert "Profile: ClientApplication/" in terminal.run("whoami")


def test_wheels_of_the_project(terminal: Terminal) -> None:
    (terminal.folder / "tools.whl").write_bytes(wheel())
    (terminal.folder / "not.whl").write_text("words")
    assert "Added some_tools-1.0-py3-none-any.whl." in terminal.run("wheel", "add", "tools.whl")
    assert terminal.run("wheel", "list").startswith("some-tools\tsome_tools-1.0-py3-none-any.whl\t")
    assert "it is not a ZIP archive" in terminal.run("wheel", "add", "not.whl", code=1)
    assert "Removed some.tools." in terminal.run("wheel", "remove", "some.tools")
    assert "no wheel named some.tools" in terminal.run("wheel", "remove", "some.tools", code=1)
    assert terminal.run("wheel", "list") == ""


def test_code_that_is_no_text_says_so(terminal: Terminal) -> None:
    (terminal.folder / "latin.py").write_bytes("# é\n".encode("latin-1"))
    assert "latin.py is not UTF-8 text" in terminal.run("bot", "create", "latin", "-", "latin.py", code=1)


def test_wildcards_and_languages(terminal: Terminal) -> None:
    (terminal.folder / "a.py").write_text(HELLO)
    (terminal.folder / "b.ts").write_text("export async function handler(): Promise<number> { return 2; }\n")
    (terminal.folder / "c.js").write_text("exports.handler = async () => 3;\n")
    for name in ("a.py", "b.ts", "c.js"):
        terminal.run("bot", "create", f"x-{name[0]}", "-", name)
    assert "3 matched, 3 deployed, 0 failed" in terminal.run("bot", "deploy", "x-*")
    assert terminal.run("bot", "execute", "x-b").strip() == "2"
    (terminal.folder / "a.py").write_text("def handler(medplum, event:\n    pass\n")
    said = terminal.run("bot", "deploy", "x-*", code=1)
    assert "3 matched, 2 deployed, 1 failed" in said
    assert "x-a: a.py:1:12: SyntaxError: '(' was never closed" in said
    assert "0 matched, 0 saved, 0 failed" in terminal.run("bot", "save", "y*")
    assert json.loads(terminal.run("bot", "execute", "x-a", "--data", "{}")) == {"hello": {}}


def test_what_fails_says_so_and_ends_with_1(terminal: Terminal) -> None:
    assert "There is no medplum.config.json here" in terminal.run("bot", "deploy", "hello", code=1)
    (terminal.folder / "medplum.config.json").write_text('{"bots": []}')
    assert "has no Bot named hello" in terminal.run("bot", "deploy", "hello", code=1)
    assert "No such file" in terminal.run("bot", "create", "hello", "-", "missing.py", code=1)
    (terminal.folder / "fails.py").write_text(
        "def handler(medplum, event):\n    raise ValueError('not today')\n"
    )
    terminal.run("bot", "create", "fails", "-", "fails.py", "--no-write-config")
    assert json.loads((terminal.folder / "medplum.config.json").read_text()) == {"bots": []}
    assert "Not found" in terminal.run("bot", "execute", "00000000-0000-4000-8000-000000000000", code=1)
    assert "Invalid secret" in terminal.run("whoami", code=1, MEDPLUM_CLIENT_SECRET="wrong")
    terminal.run("bot", "nonsense", code=2)
    (terminal.folder / ".env").unlink()
    assert "MEDPLUM_CLIENT_ID" in terminal.run("whoami", code=1)
