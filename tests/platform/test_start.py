"""``manage.py start``, on a folder that only its user may enter: first start, recovery, refusals, the end."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from django.conf import settings

from tests.conftest import database_url, free_port
from tests.platform.installation import ROOT, Installation, descendants_of, is_alive, wait_for
from tests.tls import TLS

CLIENT, SECRET = str(uuid.uuid4()), uuid.uuid4().hex


@pytest.fixture(scope="module")
def installation(assets: None) -> Iterator[Installation]:
    """A fresh data folder below a folder with mode 0700, as it left its first start."""
    closed = Path(tempfile.mkdtemp(prefix="fhirbots-start-"))
    made = Installation(
        closed / "data", free_port(), FHIRBOTS_CLIENT_ID=CLIENT, FHIRBOTS_CLIENT_SECRET=SECRET
    )
    made.start()
    yield made
    if made.process is not None:
        made.signal(signal.SIGTERM)
    shutil.rmtree(closed)


@pytest.fixture
def running(installation: Installation) -> Installation:
    """The installation, started if it is not running, and healthy."""
    if installation.process is None:
        installation.start()
    installation.wait_until_healthy()
    return installation


def test_the_first_start_says_what_it_does_and_how_to_sign_in(installation: Installation) -> None:
    said = "\n".join(installation.lines)
    assert "Creating the database" in said
    assert f"fhirbots is running at {installation.base_url}/" in said
    assert "Sign in as admin@example.com with the password " in said
    health = installation.health()
    assert health["ok"] is True
    assert health["parts"] == {"database": "ok", "broker": "ok", "worker": "ok", "sandbox": "ok"}
    assert health["version"]


def test_the_data_belongs_to_its_owner_alone(installation: Installation) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((installation.data / name).stat().st_mode)

    assert mode("secret_key") == 0o600
    assert mode("postgres") == 0o700
    assert mode("socket") == 0o700
    assert mode(".") & 0o066 == 0
    assert stat.S_IMODE(installation.data.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("part", "mark"),
    [
        ("web server", "granian --interface"),
        ("worker", " console worker "),
        ("scheduler", " console beat "),
        ("database", "bin/postgres -D "),
    ],
)
def test_a_killed_process_comes_back(running: Installation, part: str, mark: str) -> None:
    def found() -> int | None:
        return min((pid for pid, command in running.descendants().items() if mark in command), default=None)

    before = found()
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: found() not in {None, before} and not is_alive(before))
    running.wait_until_healthy()
    wait_for(lambda: authenticates(running))


def authenticates(running: Installation) -> bool:
    """Whether the first client gets a token: the whole way through web server and database."""
    try:
        answer = httpx.post(
            f"{running.base_url}/oauth2/token",
            data={"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": SECRET},
            timeout=10,
            verify=TLS,
        )
    except httpx.TransportError:
        return False
    return answer.status_code == 200


def refusal(answer: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a refused start."""
    text = answer.stderr
    assert answer.returncode != 0
    assert "Traceback" not in answer.stdout + text
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


def test_a_second_instance_on_the_same_data_is_refused(running: Installation) -> None:
    answer = running.command("--port", str(free_port()), "--data", str(running.data))
    assert "Another fhirbots is running on the data folder" in refusal(answer)


def test_a_busy_port_is_refused(running: Installation, tmp_path: Path) -> None:
    answer = running.command("--port", str(running.port), "--data", str(tmp_path))
    assert f"Port {running.port} of 127.0.0.1 cannot be used: Address already in use" in refusal(answer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_cleanly(running: Installation, number: signal.Signals) -> None:
    processes = running.descendants()
    assert len(processes) > 5
    assert running.signal(number) == 0
    assert [command for pid, command in processes.items() if is_alive(pid)] == []
    log = (running.data / "log" / "postgres.log").read_text()
    assert "database system is shut down" in log


def test_the_second_start_makes_nothing_anew_and_keeps_the_data(installation: Installation) -> None:
    if installation.process is not None:
        installation.signal(signal.SIGTERM)
    said = "\n".join(installation.start())
    assert "Creating" not in said
    assert "password" not in said
    assert authenticates(installation)


def test_a_start_right_after_the_kill_finds_the_data_whole(running: Installation) -> None:
    running.signal(signal.SIGKILL)
    running.start()  # what the killed one left is still ending
    running.wait_until_healthy()
    assert authenticates(running)


def test_nothing_outlives_the_command_even_when_it_is_killed(running: Installation) -> None:
    processes = running.descendants()
    assert running.signal(signal.SIGKILL) == -signal.SIGKILL
    wait_for(lambda: not any(is_alive(pid) for pid in processes))


def test_the_services_form_runs_on_a_given_database(database: None, assets: None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fhirbots-services-"))
    broker = {"CELERY_BROKER_URL": settings.CELERY_BROKER_URL}
    services = Installation(
        folder / "unused", free_port(), DATABASE_URL=database_url(), SECRET_KEY=settings.SECRET_KEY, **broker
    )
    services.start()
    services.wait_until_healthy()
    processes = services.descendants()
    assert services.signal(signal.SIGTERM) == 0
    assert [command for pid, command in processes.items() if is_alive(pid)] == []
    assert not services.data.exists()
    shutil.rmtree(folder)


def test_a_port_that_is_none_is_refused(installation: Installation, tmp_path: Path) -> None:
    answer = installation.command("--port", "70000", "--data", str(tmp_path))
    assert "Port 70000" in refusal(answer)


def test_a_folder_that_cannot_be_made_is_refused(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    answer = installation.command("--port", str(free_port()), "--data", str(tmp_path / "file" / "data"))
    assert "cannot be used: Not a directory" in refusal(answer)


def test_a_broken_database_is_refused_with_its_reason(installation: Installation, tmp_path: Path) -> None:
    options = ("--port", str(free_port()), "--data", str(tmp_path))
    (tmp_path / "postgres").mkdir()
    assert "holds no database" in refusal(installation.command(*options))
    (tmp_path / "postgres" / "PG_VERSION").write_text("9.6\n")
    assert "is of PostgreSQL 9.6" in refusal(installation.command(*options))


def test_services_without_a_secret_key_are_refused(installation: Installation) -> None:
    answer = installation.command(
        "--port", str(free_port()), DATABASE_URL="postgresql://nobody@127.0.0.1:1/none"
    )
    assert "Set SECRET_KEY" in refusal(answer)


def test_a_database_server_out_of_reach_is_named_as_the_reason(installation: Installation) -> None:
    answer = installation.command(
        "--port", str(free_port()), DATABASE_URL="postgresql://nobody@127.0.0.1:1/none", SECRET_KEY="k" * 50
    )
    assert "The database cannot be used" in refusal(answer)


def test_an_impatient_ctrl_c_during_the_first_start_leaves_no_process_and_no_half_database(
    installation: Installation, tmp_path: Path
) -> None:
    early = Installation(tmp_path / "data", free_port())
    process = subprocess.Popen(
        [sys.executable, "manage.py", "start", "--port", str(early.port), "--data", str(early.data)],
        cwd=ROOT,
        env=early.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Updating the database" in line:
            break
    processes = descendants_of(process.pid)
    process.send_signal(signal.SIGINT)
    said = process.stdout.read()
    assert process.wait() == 0
    process.stdout.close()
    assert "is running" not in said
    assert "Traceback" not in said
    assert [command for pid, command in processes.items() if is_alive(pid)] == []
    early.start()
    early.wait_until_healthy()
    early.signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("DATABASE_URL", "mysql://me:hidden@127.0.0.1/x", "runs on PostgreSQL only"),
        ("DATABASE_URL", "postgresql://me:hidden@127.0.0.1:port/x", "is no database address"),
        ("BASE_URL", "ftp://example.com", "must be an http or https address"),
        ("FHIRBOTS_WEB_THREADS", "many", "must be a whole number"),
        ("DEBUG", "perhaps", "must be 1 or 0"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    installation: Installation, name: str, value: str, reason: str
) -> None:
    said = refusal(installation.command(**{name: value}))
    assert name in said
    assert reason in said
    assert "hidden" not in said
