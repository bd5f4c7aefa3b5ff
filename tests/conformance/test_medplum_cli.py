"""The unmodified npm command line ``@medplum/cli``: the hello-patient Bot of the specification (spec s2), and every other command
that talks to a server, but those for agents, HL7 and AWS."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from deno import find_deno_bin
from playwright.sync_api import Browser, Page

from console.assets import install_packages
from fhirstore.bootstrap import bootstrap
from tests.bots.conftest import wait_until

if TYPE_CHECKING:
    from tests.conftest import Server

HERE = Path(__file__).parent / "cli"
SOURCE = """import { BotEvent, MedplumClient } from '@medplum/core';
import { Patient } from '@medplum/fhirtypes';

export async function handler(medplum: MedplumClient, event: BotEvent): Promise<any> {
  const patient = event.input as Patient;
  const firstName = patient.name?.[0]?.given?.[0];
  const lastName = patient.name?.[0]?.family;
  console.log(`Hello ${firstName} ${lastName}!`);
  return true;
}
"""
COMPILED = """"use strict";
Object.defineProperty(exports, "__esModule", { value: true });
exports.handler = handler;
async function handler(medplum, event) {
    const patient = event.input;
    const firstName = patient.name?.[0]?.given?.[0];
    const lastName = patient.name?.[0]?.family;
    console.log(`Hello ${firstName} ${lastName}!`);
    return true;
}
"""


@pytest.fixture(scope="module")
def deno_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Deno keeps what it has compiled of the command; each test's HOME is a new one."""
    install_packages(HERE)
    return tmp_path_factory.mktemp("deno")


@pytest.fixture
def medplum(server: Server, tmp_path: Path, deno_cache: Path) -> Iterator[Medplum]:
    cli = Medplum(server, tmp_path, deno_cache)
    yield cli
    cli.http.close()


class Medplum:
    """``npx medplum …`` in a folder with a Bot's source, its compiled file and an empty configuration."""

    def __init__(self, server: Server, folder: Path, deno_cache: Path) -> None:
        self.server = server
        self.folder = folder
        (folder / "src").mkdir()
        (folder / "dist").mkdir()
        (folder / "src/my-first-bot.ts").write_text(SOURCE)
        (folder / "dist/my-first-bot.js").write_text(COMPILED)
        (folder / "medplum.config.json").write_text('{"bots": []}')
        self.http = httpx.Client(
            base_url=f"{server.base_url}/", auth=(server.client_id, server.client_secret), timeout=30
        )

        self.environment = {
            "HOME": str(folder),
            "DENO_DIR": str(deno_cache),
            "NO_COLOR": "1",
            "MEDPLUM_BASE_URL": server.base_url,
            "MEDPLUM_CLIENT_ID": server.client_id,
            "MEDPLUM_CLIENT_SECRET": server.client_secret,
        }

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        with self.started(*arguments) as running:
            told, _ = running.communicate(timeout=60)
        assert (running.returncode != 0) is fails, told
        return told

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        """The command, running; errors stand between the rest of what it prints."""
        return subprocess.Popen(
            [
                find_deno_bin(),
                "run",
                "--allow-all",
                "--no-prompt",
                HERE / "node_modules/@medplum/cli/dist/cjs/index.cjs",
                *arguments,
            ],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def without_credentials(self) -> None:
        """From now on the commands know the server, and whoever has logged in."""
        del self.environment["MEDPLUM_CLIENT_ID"], self.environment["MEDPLUM_CLIENT_SECRET"]

    def log_in(self, page: Page, person: Person, project: str) -> str:
        """``medplum login`` by browser; returns what the browser shows at the end.

        The command opens the address with ``xdg-open``, which is a script here that only writes it down.
        """
        opened, tools = self.folder / "opened", self.folder / "bin"
        opened.unlink(missing_ok=True)
        tools.mkdir(exist_ok=True)
        (tools / "xdg-open").write_text(
            f'#!/bin/sh\nprintf %s "$1" > {opened}.new && mv {opened}.new {opened}\n'
        )
        (tools / "xdg-open").chmod(0o755)
        self.environment["PATH"] = f"{tools}:{os.environ['PATH']}"
        with self.started("login") as running:
            wait_until(lambda: opened.exists() or running.poll() is not None)
            assert running.poll() is None, running.communicate()[0]
            page.goto(opened.read_text())
            email = page.get_by_label("Email", exact=True)
            if email.is_visible():
                email.fill(person.email)
                page.get_by_label("Password", exact=True).fill(person.password)
                page.get_by_role("button", name="Sign in", exact=True).click()
            page.get_by_role("button", name=project, exact=True).click()
            page.wait_for_url(re.compile("^http://localhost:9615/"))
            shown = page.locator("body").inner_text()
            told, _ = running.communicate(timeout=60)
        assert running.returncode == 0, told
        return shown

    @property
    def bots(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads((self.folder / "medplum.config.json").read_text())["bots"]
        return found


def test_the_cli_creates_saves_and_deploys_a_bot_that_runs(medplum: Medplum) -> None:
    assert "ClientApplication/" in medplum("whoami")
    project = medplum.http.get("auth/me").json()["project"]["id"]

    created = medplum("bot", "create", "my-first-bot", project, "src/my-first-bot.ts", "dist/my-first-bot.js")
    assert "Success! Bot created" in created
    (bot,) = medplum.bots
    jane = {"resourceType": "Patient", "name": [{"given": ["Jane"], "family": "Doe"}]}
    assert medplum.http.post(f"fhir/R4/Bot/{bot['id']}/$execute", json=jane).text == "true"
    events = medplum.http.get(f"fhir/R4/AuditEvent?entity=Bot/{bot['id']}").json()["entry"]
    assert [entry["resource"]["outcomeDesc"] for entry in events] == ["Hello Jane Doe!"]

    (medplum.folder / "dist/my-first-bot.js").write_text(COMPILED.replace("return true", "return 'second'"))
    assert "Number of bots deployed: 1" in medplum("bot", "deploy", "my-*")
    assert medplum.http.post(f"fhir/R4/Bot/{bot['id']}/$execute", json=jane).text == "second"

    assert "Number of bots saved: 1" in medplum("bot", "save", "my-first-bot")
    assert '"resourceType": "Bot"' in medplum("get", f"Bot/{bot['id']}")


def test_the_cli_is_told_when_code_cannot_be_deployed(medplum: Medplum) -> None:
    project = medplum.http.get("auth/me").json()["project"]["id"]
    medplum("bot", "create", "my-first-bot", project, "src/my-first-bot.ts", "dist/my-first-bot.js")
    (medplum.folder / "dist/my-first-bot.js").write_text("exports.handler = async function (medplum {")
    assert "Number of errors: 1" in medplum("bot", "deploy", "my-first-bot", fails=True)
    (bot,) = medplum.bots
    assert medplum.http.post(f"fhir/R4/Bot/{bot['id']}/$execute", json={}).text == "true"


def test_the_cli_exports_and_imports_in_bulk(medplum: Medplum) -> None:
    family = f"Bulk{uuid.uuid4().hex}"
    patients = [{"resourceType": "Patient", "name": [{"family": family}]} for _ in range(30)]
    (medplum.folder / "patients.ndjson").write_text("\n".join(map(json.dumps, patients)))
    told = medplum("bulk", "import", "patients.ndjson")
    assert told.count('"status": "201"') == 30  # an id may have 201 in it
    query = f"fhir/R4/Patient?family={family}&_summary=count"
    assert medplum.http.get(query).json()["total"] == 30

    medplum("bulk", "export", "-t", "Patient")
    (file,) = medplum.folder.glob("Patient*.ndjson")
    exported = [json.loads(line) for line in file.read_text().splitlines()]
    assert len([each for each in exported if each["name"][0].get("family") == family]) == 30


def test_the_cli_reads_and_writes_resources(medplum: Medplum) -> None:
    patient = {"resourceType": "Patient", "name": [{"family": "Cli"}]}
    created = _json_in(medplum("post", "Patient", json.dumps(patient)))
    path = f"Patient/{created['id']}"
    assert _json_in(medplum("get", path))["name"] == [{"family": "Cli"}]
    changed = {**created, "gender": "female"}
    assert _json_in(medplum("put", path, json.dumps(changed)))["gender"] == "female"
    operations = [{"op": "add", "path": "/birthDate", "value": "2000-01-02"}]
    assert _json_in(medplum("patch", path, json.dumps(operations)))["birthDate"] == "2000-01-02"
    medplum("delete", path)
    assert "Gone" in medplum("get", path, fails=True)


def test_the_cli_logs_in_and_knows_its_project(medplum: Medplum) -> None:
    credentials = ("--client-id", medplum.server.client_id, "--client-secret", medplum.server.client_secret)
    address = ("--base-url", medplum.server.base_url)
    medplum("login", "--auth-type", "client-credentials", *address, *credentials)
    project = medplum.http.get("auth/me").json()["project"]
    for command in (("whoami",), ("project", "current"), ("project", "list")):
        assert project["id"] in medplum(*command)
    assert medplum("token").count(".") >= 2


@dataclass(frozen=True)
class Person:
    """An admin of two projects."""

    email: str
    password: str
    projects: dict[str, str]
    """Ids by name."""


@pytest.fixture
def person(medplum: Medplum) -> Person:
    """Somebody with a project of his own, who was invited to the first project too."""
    email, password, own = f"{uuid.uuid4()}@example.com", uuid.uuid4().hex, f"Own {uuid.uuid4().hex[:6]}"
    made = bootstrap(email=email, password=password, project_name=own)
    first = medplum.http.get("auth/me").json()["project"]
    invitation = {
        "resourceType": "Practitioner",
        "firstName": "Alice",
        "lastName": "Smith",
        "email": email,
        "admin": True,
        "sendEmail": False,
    }
    medplum.http.post(f"admin/projects/{first['id']}/invite", json=invitation).raise_for_status()
    return Person(email, password, {own: made.project, first["name"]: first["id"]})


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    yield context.new_page()
    context.close()


def test_a_person_logs_in_by_browser_and_switches_projects(
    medplum: Medplum, person: Person, page: Page
) -> None:
    medplum.without_credentials()
    (own, own_id), (first, first_id) = person.projects.items()
    assert "Not logged in" in medplum("whoami")
    assert medplum.log_in(page, person, own).startswith("Signed in as ")
    assert f"{own} (Project/{own_id})" in medplum("whoami")
    assert medplum("token").count(".") >= 2

    assert medplum.log_in(page, person, first).startswith("Signed in as Alice Smith")  # still signed in there
    told = medplum("whoami")
    assert f"Server:  {medplum.server.base_url}/" in told
    assert "Profile: Alice Smith (Practitioner/" in told
    assert f"Project: {first} (Project/{first_id})" in told
    listed = medplum("project", "list")
    assert own_id in listed
    assert first_id in listed

    assert f"Switched to project {own_id}" in medplum("project", "switch", own_id)
    assert own_id in medplum("project", "current")
    created = medplum("bot", "create", "mine", own_id, "src/my-first-bot.ts", "dist/my-first-bot.js")
    assert "Success! Bot created" in created
    (bot,) = medplum.bots
    assert _json_in(medplum("get", f"Bot/{bot['id']}"))["meta"]["project"] == own_id
    assert (
        medplum.http.get(f"fhir/R4/Bot/{bot['id']}").status_code == 404
    )  # the first project does not have it
    assert "not found" in medplum("project", "switch", str(uuid.uuid4()), fails=True)


def test_the_browser_tells_when_a_login_is_refused(medplum: Medplum, person: Person, page: Page) -> None:
    medplum.without_credentials()
    own = next(iter(person.projects))
    page.route(
        re.compile("^http://localhost:9615/"),
        lambda route: route.continue_(url="http://localhost:9615/?code=guessed"),
    )
    assert medplum.log_in(page, person, own) == "Error: Failed to fetch tokens"
    assert "Not logged in" in medplum("whoami")


def test_the_cli_invites_people(medplum: Medplum, mail_folder: Path) -> None:
    project = medplum.http.get("auth/me").json()["project"]["id"]
    email = f"{uuid.uuid4()}@example.com"
    assert "See your users" in medplum("project", "invite", "Bob", "Builder", email, "--admin")
    members = medplum.http.get("fhir/R4/ProjectMembership?_count=1000&_sort=-_lastUpdated").json()["entry"]
    (bob,) = (
        each["resource"] for each in members if each["resource"]["profile"].get("display") == "Bob Builder"
    )
    assert bob["admin"] is True
    assert bob["profile"]["reference"].startswith("Practitioner/")
    assert bob["project"]["reference"] == f"Project/{project}"
    again = medplum("project", "invite", "Bob", "Builder", email, fails=True)
    assert "User is already a member of this project" in again

    email = f"{uuid.uuid4()}@example.com"
    assert "Email sent" in medplum("project", "invite", "Pat", "Ient", email, "-r", "Patient", "--send-email")
    assert any(email in each.read_text() for each in mail_folder.iterdir())
    assert medplum.http.get(f"fhir/R4/Patient?email={email}&_summary=count").json()["total"] == 1


def test_the_cli_keeps_profiles(medplum: Medplum) -> None:
    client, secret = medplum.server.client_id, medplum.server.client_secret
    medplum.without_credentials()
    address = medplum.environment.pop("MEDPLUM_BASE_URL")
    medplum("profile", "set", "work", "--base-url", address, "--client-id", client, "--client-secret", secret)
    medplum("profile", "set", "plain", "--base-url", address, "--client-id", client, "--client-secret", secret, "--auth-type", "basic")  # fmt: skip
    listed = medplum("profile", "list")
    assert 'profileName: "work"' in listed
    assert 'profileName: "plain"' in listed
    assert address in medplum("profile", "describe", "work")
    assert f"ClientApplication/{client}" in medplum("whoami", "-p", "work")
    assert "Bundle" in medplum("get", "Patient?_count=1", "-p", "plain")  # by Basic, without a login
    medplum("profile", "remove", "plain")
    assert 'profileName: "plain"' not in medplum("profile", "list")
    assert 'Profile "plain" does not exist' in medplum("whoami", "-p", "plain", fails=True)


def test_wildcards_stand_anywhere_in_a_name(medplum: Medplum) -> None:
    project = medplum.http.get("auth/me").json()["project"]["id"]
    for name in ("intake-staging", "intake-production", "labs-staging-1", "labs.staging"):
        medplum("bot", "create", name, project, "src/my-first-bot.ts", "dist/my-first-bot.js")
    for pattern, count in (
        ("*staging*", 3),
        ("intake-*", 2),
        ("*-production", 1),
        ("labs.staging", 1),
        ("*", 4),
        ("staging", 0),
    ):
        assert f"Number of bots saved: {count}\n" in medplum("bot", "save", pattern), pattern
    assert "Number of bots deployed: 3\n" in medplum("bot", "deploy", "*staging*")


def test_former_names_of_the_bot_commands_work(medplum: Medplum) -> None:
    project = medplum.http.get("auth/me").json()["project"]["id"]
    created = medplum("create-bot", "old", project, "src/my-first-bot.ts", "dist/my-first-bot.js")
    bot = created.partition("Bot created: ")[2].split()[0]
    entry = {"name": "old", "id": bot, "source": "src/my-first-bot.ts", "dist": "dist/my-first-bot.js"}
    (medplum.folder / "medplum.config.json").write_text(json.dumps({"bots": [entry]}))
    assert "Number of bots saved: 1" in medplum("save-bot", "old")
    assert "Number of bots deployed: 1" in medplum("deploy-bot", "old")
    runtime = ("--runtime-version", "awslambda", "--no-write-config")
    medplum("bot", "create", "lambda", project, "src/my-first-bot.ts", "dist/my-first-bot.js", *runtime)
    assert [bot["name"] for bot in medplum.bots] == ["old"]


def test_credentials_may_stand_in_a_file(medplum: Medplum) -> None:
    """``.env``, as the template repository has it, and a base URL that ends with a slash."""
    names = [name for name in medplum.environment if name.startswith("MEDPLUM_")]
    lines = [f"{name}={medplum.environment.pop(name)}" for name in names]
    (medplum.folder / ".env").write_text(
        "\n".join(lines).replace(medplum.server.base_url, f"{medplum.server.base_url}/")
    )
    assert medplum.server.client_id in medplum("whoami")


def test_the_cli_goes_on_after_a_bot_that_fails(medplum: Medplum) -> None:
    project = medplum.http.get("auth/me").json()["project"]["id"]
    for name in ("good", "bad"):
        (medplum.folder / f"dist/{name}.js").write_text(COMPILED)
        medplum("bot", "create", name, project, "src/my-first-bot.ts", f"dist/{name}.js")
    (medplum.folder / "dist/bad.js").write_text("exports.handler = async function (medplum {")
    (medplum.folder / "dist/good.js").write_text(COMPILED.replace("return true", "return 'second'"))
    told = medplum("bot", "deploy", "*", fails=True)
    assert "Number of bots deployed: 1" in told
    assert "Number of errors: 1" in told
    bots = {bot["name"]: bot["id"] for bot in medplum.bots}
    assert medplum.http.post(f"fhir/R4/Bot/{bots['good']}/$execute", json={}).text == "second"
    assert medplum.http.post(f"fhir/R4/Bot/{bots['bad']}/$execute", json={}).text == "true"
    assert "Number of bots deployed: 0" in medplum("bot", "deploy", "nosuch")
    history = medplum.http.get(f"fhir/R4/Bot/{bots['good']}/$deployments").json()["deployments"]
    assert [each["number"] for each in history] == [2, 1]


def test_the_cli_runs_a_bot_asynchronously(medplum: Medplum) -> None:
    project = medplum.http.get("auth/me").json()["project"]["id"]
    medplum("bot", "create", "my-first-bot", project, "src/my-first-bot.ts", "dist/my-first-bot.js")
    (bot,) = medplum.bots
    job = medplum("post", f"Bot/{bot['id']}/$execute", "{}", "--prefer-async")
    assert "valueBoolean" in job or "job/" in job


def _json_in(text: str) -> dict[str, Any]:
    """The JSON object the command has printed."""
    found: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return found
