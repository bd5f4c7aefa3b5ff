"""The pytest plugin, in a pytest of its own as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fhirbots.testing import LocalServer, ServerAddress, make_event

SDK = Path(__file__).resolve().parents[2] / "sdk"
BOT = """\
from fhirbots import BotEvent, MedplumClient


async def handler(medplum: MedplumClient, event: BotEvent):
    patient = await medplum.create_resource({"resourceType": "Patient", "name": [{"family": event.input["family"]}]})
    return {"id": patient["id"], "key": event.secret("KEY")}
"""
STREAM = """\
async def handler(medplum, event):
    for number in range(event.input["to"]):
        yield f"data: {number}\\n\\n"
"""
TESTS = """\
import pytest
from fhirbots import OperationOutcomeError

from count import handler as count
from welcome import handler


def test_in_this_process(medplum, run_bot):
    answer = run_bot(handler, {"family": "Tested"}, secrets={"KEY": "abc"})
    assert answer["key"] == "abc"
    assert medplum.read_resource("Patient", answer["id"])["name"] == [{"family": "Tested"}]


def test_what_it_raises(run_bot):
    with pytest.raises(KeyError):
        run_bot(handler, {})


def test_a_stream_in_this_process(run_bot):
    answer = run_bot(count, {"to": 2}, streaming=True)
    assert (answer.status, answer.content_type, answer.text) == (200, "text/event-stream", "data: 0\\n\\ndata: 1\\n\\n")
    assert run_bot(count, {"to": 2}) == answer  # in one piece


def test_a_stream_in_the_sandbox(deploy_bot):
    with deploy_bot("count.py", streamingEnabled=True).stream({"to": 2}) as answer:
        assert list(answer.iter_lines()) == ["data: 0", "", "data: 1", ""]


def test_in_the_sandbox(medplum, deploy_bot):
    bot = deploy_bot("welcome.py")
    answer = bot.execute({"family": "Deployed"})
    assert medplum.read_resource("Patient", answer["id"])["meta"]["author"]["reference"] == f"Bot/{bot.id}"
    with pytest.raises(OperationOutcomeError, match="KeyError"):
        bot.execute({})
"""


def run_tests(folder: Path, **environment: str) -> str:
    (folder / "welcome.py").write_text(BOT)
    (folder / "count.py").write_text(STREAM)
    (folder / "test_welcome.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider -p no:django\n")
    inherited = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    plugin = [] if has_entry_point() else ["-p", "fhirbots.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(SDK)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def has_entry_point() -> bool:
    """Whether the package is installed, and not only on the path of these tests."""
    from importlib.metadata import entry_points

    return any(point.value == "fhirbots.pytest_plugin" for point in entry_points(group="pytest11"))


def test_the_fixtures_use_a_running_server(tmp_path: Path, address: ServerAddress) -> None:
    said = run_tests(
        tmp_path,
        FHIRBOTS_TEST_BASE_URL=address.base_url,
        FHIRBOTS_TEST_CLIENT_ID=address.client_id,
        FHIRBOTS_TEST_CLIENT_SECRET=address.client_secret,
    )
    assert "5 passed" in said, said


def test_an_address_without_credentials_is_told(tmp_path: Path) -> None:
    said = run_tests(tmp_path, FHIRBOTS_TEST_BASE_URL="http://127.0.0.1:9/", FHIRBOTS_TEST_CLIENT_ID="a")
    assert "FHIRBOTS_TEST_BASE_URL is set, but not FHIRBOTS_TEST_CLIENT_SECRET" in said


def test_a_throw_away_server_is_started_and_stopped(tmp_path: Path) -> None:
    server = LocalServer(tmp_path)
    address = server.start()
    try:
        with address.client() as medplum:
            assert medplum.create_resource({"resourceType": "Patient"})["id"]
    finally:
        server.stop()
    assert server._process is not None
    assert server._process.poll() is not None


def test_events_are_what_the_server_makes_of_them() -> None:
    event = make_event(
        "MSH|^~\\&|A\nPID|1", content_type="x-application/hl7-v2+er7", secrets={"A": 1, "B": "b", "C": True}
    )
    assert event.input["PID"][0][1][0] == "1"
    assert (event.secret("A"), event.secret("B"), event.secret("C"), event.secret("D", 4)) == (
        1,
        "b",
        True,
        4,
    )
    assert event.secrets["C"] == {"name": "C", "valueBoolean": True}
    assert event["contentType"] == event["content_type"] == event.content_type == event.contentType
    assert set(event) >= {"bot", "input", "contentType", "secrets", "traceId"}
    assert event.requester is None
    assert "requester" not in event
    assert event.previous is None
    assert make_event({}, previous={"resourceType": "Patient"}).previous == {"resourceType": "Patient"}
