"""The archive of runs: what it keeps, who may look, repeating a run, forgetting."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from bots import runs
from fhirstore.api import connection
from tests.bots.conftest import Project, wait_until
from tests.conftest import Server

CODE = """
exports.handler = async (medplum, event) => {
  console.info('hello', event.input.name);
  console.warn('careful');
  const made = await medplum.createResource({resourceType: 'Basic', code: {text: 'x'}});
  await medplum.updateResource({...made, code: {text: 'y'}});
  return {made: made.id, name: event.input.name, signature: event.headers?.['x-signature']};
};"""


def runs_of(project: Project, bot: str, query: str = "") -> list[dict[str, Any]]:
    """What ``$runs`` shows."""
    answer = project.http.get(f"/fhir/R4/Bot/{bot}/$runs{query}")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["runs"]
    return found


def run_of(project: Project, bot: str, run: str) -> dict[str, Any]:
    """What ``$runs/{run}`` shows."""
    answer = project.http.get(f"/fhir/R4/Bot/{bot}/$runs/{run}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def settings_of_project(project: Project) -> Iterator[Any]:
    """Sets ``Project.setting`` for one test."""
    stored = project.repository.read("Project", project.id).resource

    def change(**values: Any) -> None:
        setting = [
            {"name": name, "valueString" if isinstance(value, str) else "valueInteger": value}
            for name, value in values.items()
        ]
        project.repository.update(stored | {"setting": setting})

    yield change
    project.repository.update(stored)


def test_a_run_is_kept_with_log_input_and_what_it_wrote(project: Project) -> None:
    bot = project.bot(CODE, filename="a.cjs")
    trace = str(uuid.uuid4())
    made = project.execute(bot, {"name": "Ann"}, **{"x-trace-id": trace, "x-signature": "s"}).json()["made"]
    (listed,) = runs_of(project, bot)
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert listed["id"] == event["id"]
    assert (listed["ok"], listed["status"], listed["trigger"], listed["attempt"]) == (True, 200, "execute", 1)
    assert (listed["deployment"], listed["traceId"], listed["runAs"]) == (1, trace, f"Bot/{bot}")
    assert listed["requester"].startswith("ClientApplication/")
    assert listed["durationMs"] > 0
    assert listed["memory"] > 1_000_000
    writes = [(each["interaction"], each["reference"]) for each in listed["writes"]]
    assert writes == [("create", f"Basic/{made}"), ("update", f"Basic/{made}")]
    run = run_of(project, bot, listed["id"])
    assert [(line["level"], line["text"]) for line in run["log"]] == [
        ("info", "hello Ann"),
        ("warn", "careful"),
    ]
    assert listed["started"] <= run["log"][0]["time"] <= run["log"][1]["time"] <= listed["ended"]
    assert run["input"] == {"name": "Ann"}
    assert run["headers"]["x-signature"] == "s"
    assert "authorization" not in run["headers"]


def test_the_input_is_encrypted_in_the_database(project: Project) -> None:
    bot = project.bot(CODE, filename="a.cjs")
    project.execute(bot, {"name": "Geheim", "padding": "Geheim" * 10})
    with connection() as session:
        row = session.execute("SELECT request FROM bots_run WHERE bot_id = %s", (bot,)).fetchone()
    assert row is not None
    assert b"Geheim" not in base64.urlsafe_b64decode(bytes(row[0]))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("throw new Error('broken');", "code"),
        ("for (;;) {}", "timeout"),
        ("const a = []; for (;;) a.push(new Array(1e6).fill(1.5));", "memory"),
        ("return () => 1;", "output"),
        ("return {resourceType: 'OperationOutcome', id: 'conflict', issue: []};", "code"),
        ("await medplum.createResource({resourceType: 'Project', name: 'x'});", "access"),
        (None, "not-deployed"),
    ],
)
def test_kind_of_failure_is_told(project: Project, code: str | None, kind: str) -> None:
    bot = project.bot(
        code and f"exports.handler = async (medplum) => {{ {code} }};", filename="a.cjs", timeout=3
    )
    project.execute(bot)
    (run,) = runs_of(project, bot)
    assert (run["ok"], run["failure"]) == (False, kind)
    if code is None or "Error" in code:
        text = "broken" if code else "has not been deployed"
        (line,) = run_of(project, bot, run["id"])["log"]
        assert (line["level"], text in line["text"]) == ("error", True)


def test_runs_are_listed_by_page_and_by_what_is_asked(project: Project) -> None:
    bot = project.bot(
        "exports.handler = async (medplum, event) => { if (event.input.fail) throw 1; };", filename="a.cjs"
    )
    for number in range(5):
        project.execute(bot, {"fail": number == 2})
    first = project.http.get(f"/fhir/R4/Bot/{bot}/$runs?count=3").json()
    second = project.http.get(first["next"]).json()
    assert [len(first["runs"]), len(second["runs"]), "next" in second] == [3, 2, False]
    ids = [run["id"] for run in first["runs"] + second["runs"]]
    assert ids == sorted(ids, reverse=True)
    assert [run["id"] for run in runs_of(project, bot, "?failure=any")] == [ids[2]]
    assert [run["id"] for run in runs_of(project, bot, f"?after={ids[3]}&count=2")] == ids[1:3]
    assert len(runs_of(project, bot, "?failure=none&trigger=execute")) == 4
    assert runs_of(project, bot, "?trigger=cron") == []
    for query in ("?count=0", "?count=x", "?before=x"):
        assert project.http.get(f"/fhir/R4/Bot/{bot}/$runs{query}").status_code == 400


def test_logs_can_be_followed(project: Project) -> None:
    bot = project.bot(CODE, filename="a.cjs")
    project.execute(bot, {"name": "one"})
    first = project.http.get(f"/fhir/R4/Bot/{bot}/$logs").json()
    assert [line["text"] for line in first["lines"]] == ["hello one", "careful"]
    project.execute(bot, {"name": "two"})
    second = project.http.get(f"/fhir/R4/Bot/{bot}/$logs?after={first['last']}").json()
    assert [line["text"] for line in second["lines"]] == ["hello two", "careful"]
    third = project.http.get(f"/fhir/R4/Bot/{bot}/$logs?after={second['last']}").json()
    assert third == {"lines": [], "last": second["last"]}


def test_log_is_kept_whole_where_the_audit_event_keeps_its_end(project: Project) -> None:
    bot = project.bot(
        "exports.handler = async () => { for (let i = 0; i < 900; i++) console.log('line ' + i + ' ' + 'x'.repeat(40)); };",
        filename="a.cjs",
    )
    project.execute(bot)
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert len(event["outcomeDesc"]) <= 10_240
    log = run_of(project, bot, event["id"])["log"]
    assert (len(log), log[0]["text"][:6], log[-1]["text"][:8]) == (900, "line 0", "line 899")


def test_a_run_can_be_repeated(project: Project) -> None:
    bot = project.bot(CODE, filename="a.cjs")
    project.execute(bot, {"name": "Ann"}, **{"x-signature": "s"})
    (old,) = runs_of(project, bot)
    project.deploy(bot, CODE.replace("name: event", "again: event"), "a.cjs")
    answer = project.http.post(f"/fhir/R4/Bot/{bot}/$replay", json={"run": old["id"]})
    assert (answer.json()["again"], answer.json()["signature"]) == ("Ann", "s")
    new = runs_of(project, bot)[0]
    assert (new["replayOf"], new["deployment"]) == (old["id"], 2)
    assert project.http.post(f"/fhir/R4/Bot/{bot}/$replay", json={}).status_code == 400
    unknown = project.http.post(f"/fhir/R4/Bot/{bot}/$replay", json={"run": str(uuid.uuid4())})
    assert unknown.status_code == 404


def test_run_of_a_subscription_is_kept_and_can_be_repeated(project: Project) -> None:
    code = "exports.handler = async (medplum, event) => event.input.birthDate;"
    bot = project.bot(code, filename="a.cjs")
    subscription = project.subscribe(bot, "Patient?birthdate=1999-01-02")
    patient = project.post("/fhir/R4/Patient", {"resourceType": "Patient", "birthDate": "1999-01-02"})
    wait_until(lambda: len(runs_of(project, bot)) == 1)
    (run,) = runs_of(project, bot)
    assert (run["trigger"], run["subscription"]) == ("subscription", subscription["id"])
    assert (run["resource"], run["interaction"]) == (f"Patient/{patient['id']}", "create")
    answer = project.http.post(f"/fhir/R4/Bot/{bot}/$replay", json={"run": run["id"]})
    assert answer.text == "1999-01-02"


def test_run_of_a_schedule_is_repeated_as_the_bot_itself(project: Project) -> None:
    bot = project.bot("exports.handler = async () => 1;", filename="a.cjs")
    project.http.post(f"/fhir/R4/Bot/{bot}/$run-now").raise_for_status()
    wait_until(lambda: len(runs_of(project, bot)) == 1)
    (run,) = runs_of(project, bot)
    assert (run["trigger"], run["runAs"]) == ("cron", f"Bot/{bot}")
    project.http.post(f"/fhir/R4/Bot/{bot}/$replay", json={"run": run["id"]}).raise_for_status()
    assert runs_of(project, bot)[0]["runAs"] == f"Bot/{bot}"


def test_streamed_run_is_repeated_to_its_end(project: Project) -> None:
    code = """exports.handler = async (medplum, {responseStream}) => {
        for (let i = 0; i < 30; i++) responseStream.write(new Uint8Array(100000));
        responseStream.end();
    };"""
    bot = project.bot(code, filename="a.cjs", streamingEnabled=True)
    headers = {"Accept": "text/event-stream"}
    project.http.post(f"/fhir/R4/Bot/{bot}/$execute", json={}, headers=headers).raise_for_status()
    wait_until(lambda: len(runs_of(project, bot)) == 1)
    (run,) = runs_of(project, bot)
    project.http.post(f"/fhir/R4/Bot/{bot}/$replay", json={"run": run["id"]})
    new = runs_of(project, bot)[0]
    assert (new["replayOf"], new["ok"]) == (run["id"], True), new


def test_who_may_not_change_the_bot_does_not_see_its_runs(project: Project) -> None:
    bot = project.bot(CODE, filename="a.cjs")
    project.execute(bot, {"name": "x"})
    policy = project.post(
        "/fhir/R4/AccessPolicy",
        {
            "resourceType": "AccessPolicy",
            "name": "Reader",
            "resource": [{"resourceType": "Bot", "readonly": True}],
        },
    )
    client = project.post(
        f"/admin/projects/{project.id}/client",
        {"name": "Reader", "accessPolicy": {"reference": f"AccessPolicy/{policy['id']}"}},
    )
    reader = httpx.Client(base_url=project.http.base_url, auth=(client["id"], client["secret"]))
    (run,) = runs_of(project, bot)
    with reader:
        assert reader.get(f"/fhir/R4/Bot/{bot}").status_code == 200
        for path in ("$runs", f"$runs/{run['id']}", "$logs"):
            assert reader.get(f"/fhir/R4/Bot/{bot}/{path}").status_code == 403
        assert reader.post(f"/fhir/R4/Bot/{bot}/$replay", json={"run": run["id"]}).status_code == 403
    assert project.http.get(f"/fhir/R4/Bot/{uuid.uuid4()}/$runs").status_code == 404


def test_project_decides_what_is_kept(project: Project, settings_of_project: Any) -> None:
    bot = project.bot(CODE, filename="a.cjs")
    for kept, has_log, has_input in (("none", False, False), ("log", True, False), ("all", True, True)):
        settings_of_project(botRunData=kept)
        project.execute(bot, {"name": "Ann"})
        run = run_of(project, bot, runs_of(project, bot)[0]["id"])
        assert (bool(run["log"]), "input" in run) == (has_log, has_input)
        answer = project.http.post(f"/fhir/R4/Bot/{bot}/$replay", json={"run": run["id"]})
        assert (answer.status_code == 200) is has_input
    with pytest.raises(Exception, match="botRunData must be one of"):
        settings_of_project(botRunData="some")
    with pytest.raises(Exception, match="botRunDays must be"):
        settings_of_project(botRunDays=0)


def test_old_runs_are_forgotten(project: Project, settings_of_project: Any) -> None:
    bot = project.bot(CODE, filename="a.cjs")
    project.execute(bot, {"name": "new"})
    old = uuid.UUID(int=int((datetime.now(UTC) - timedelta(days=3)).timestamp() * 1000) << 80 | 1)
    with connection() as session:
        session.execute(
            "INSERT INTO bots_run SELECT %s, project, bot_id, ended, trigger, kind, status, duration_ms, deployment, attempt,"
            " trace_id, details, log, request FROM bots_run WHERE bot_id = %s",
            (old, bot),
        )
    runs.forget_old()
    assert len(runs_of(project, bot)) == 2
    settings_of_project(botRunDays=2)
    runs.forget_old()
    assert [run["id"] == str(old) for run in runs_of(project, bot)] == [False]


def test_bot_that_wants_no_audit_event_still_has_its_runs(project: Project) -> None:
    for trigger, events in (("never", 0), ("on-error", 0), ("on-output", 1)):
        bot = project.bot(CODE, filename="a.cjs", auditEventTrigger=trigger)
        project.execute(bot, {"name": "x"})
        assert len(runs_of(project, bot)) == 1
        assert len(project.audit_events(f"Bot/{bot}")) == events


def test_destination_log_writes_a_json_line(project: Project, server: Server) -> None:
    bot = project.bot(CODE, filename="a.cjs", auditEventDestination=["log"])
    project.execute(bot, {"name": "logged"})
    (run,) = runs_of(project, bot)
    lines = [json.loads(line) for line in server.bot_log.read_text().splitlines()]
    (found,) = [line for line in lines if line["bot"] == bot]
    assert (found["run"], found["ok"], found["text"]) == (run["id"], True, "hello logged\ncareful")
    assert project.audit_events(f"Bot/{bot}") == []
