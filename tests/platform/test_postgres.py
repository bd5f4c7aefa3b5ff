"""The embedded PostgreSQL: where it may lie, who may run it, what it survives."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from console import child
from console.postgres import ROLE, EmbeddedPostgres, PostgresError, socket_folder

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that nobody but its owner may enter."""
    folder = Path(tempfile.mkdtemp(prefix="fhirbots-pg-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def postgres(closed: Path) -> Iterator[EmbeddedPostgres]:
    """A running server with its data below the closed folder."""
    server = EmbeddedPostgres(closed)
    server.start()
    yield server
    server.stop()


def connect(server: EmbeddedPostgres) -> psycopg.Connection:
    return psycopg.connect(host=str(server.socket), user=ROLE, dbname=ROLE, autocommit=True)


def test_no_commit_is_lost_when_the_server_is_killed(postgres: EmbeddedPostgres) -> None:
    with connect(postgres) as connection:
        connection.execute("CREATE TABLE written (number int)")
    acknowledged: list[int] = []
    connected = threading.Event()

    def write() -> None:
        with connect(postgres) as connection:
            for number in range(1_000_000):
                connection.execute("INSERT INTO written VALUES (%s)", (number,))
                acknowledged.append(number)
                connected.set()

    def write_until_killed() -> None:
        try:
            write()
        except psycopg.OperationalError:
            return

    for _ in range(3):
        connected.clear()
        writer = threading.Thread(target=write_until_killed)
        writer.start()
        connected.wait(30)
        time.sleep(0.1)
        assert postgres.process is not None
        postgres.process.kill()
        writer.join(30)
        postgres.start()
    with connect(postgres) as connection:
        found = connection.execute("SELECT count(*) FROM written").fetchone()
    assert acknowledged
    assert found is not None
    assert found[0] >= len(acknowledged)


def test_a_process_id_that_now_belongs_to_another_process_does_not_keep_it_from_starting(
    postgres: EmbeddedPostgres,
) -> None:
    assert postgres.process is not None
    user = postgres.folder.stat()
    stranger = subprocess.Popen(["/bin/sleep", "60"], user=user.st_uid, group=user.st_gid, cwd="/")
    postgres.process.kill()
    postgres.process.wait()
    file = postgres.folder / "postmaster.pid"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
    postgres.start()
    assert postgres.is_alive()
    stranger.kill()
    stranger.wait()


def test_a_server_left_by_a_killed_supervisor_is_ended_first(
    closed: Path, postgres: EmbeddedPostgres
) -> None:
    left = postgres.process
    assert left is not None
    successor = EmbeddedPostgres(closed)
    successor.start()
    assert left.wait(10) == 0
    assert successor.is_alive()
    successor.stop()


def test_an_interrupted_first_start_is_made_anew(closed: Path) -> None:
    (closed / "postgres.new").mkdir()
    (closed / "postgres.new" / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(closed)
    server.start()
    assert server.is_alive()
    server.stop()


def test_a_damaged_database_is_refused_with_the_servers_own_reason(closed: Path) -> None:
    server = EmbeddedPostgres(closed)
    server.start()
    server.stop()
    (closed / "postgres" / "global" / "pg_control").write_bytes(b"")
    with pytest.raises(PostgresError, match=r"does not start: .*pg_control"):
        server.start()


def test_the_application_is_no_superuser_and_nobody_gets_in_by_network(postgres: EmbeddedPostgres) -> None:
    with connect(postgres) as connection:
        row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
        assert row == (False,)
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_a_path_too_long_for_a_socket_gets_a_private_folder_elsewhere(closed: Path) -> None:
    deep = closed / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    server = EmbeddedPostgres(deep)
    assert server.socket == socket_folder(deep)
    assert deep not in server.socket.parents
    server.start()
    assert server.is_alive()
    assert server.socket.stat().st_mode & 0o077 == 0
    server.stop()
    server.socket.rmdir()


SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from console.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[2]))
server.start()
print(os.geteuid(), server.is_alive(), (server.folder).stat().st_uid)
server.stop()
"""


def test_a_normal_user_runs_it_as_himself(closed: Path) -> None:
    uid, gid = os.geteuid(), os.getegid()
    command = [sys.executable, "-c", SCRIPT, str(ROOT), str(closed / "data")]
    if uid == 0:
        user = pwd.getpwnam("games")
        uid, gid = user.pw_uid, user.pw_gid
        needs = [option for path in (sys.executable, ROOT, closed) for option in ("--needs", str(path))]
        command = [
            sys.executable,
            child.__file__,
            "--parent",
            str(os.getpid()),
            "--user",
            f"{uid}:{gid}",
            *needs,
            "--",
            *command,
        ]
    (closed / "data").mkdir()
    os.chown(closed / "data", uid, gid)
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert ran.stdout.split() == [str(uid), "True", str(uid)], ran.stderr


def test_the_server_dies_with_the_process_that_started_it(closed: Path) -> None:
    script = SCRIPT.replace(
        "server.stop()", "print(server.process.pid, flush=True); import time; time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(ROOT), str(closed)], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    starter.stdout.readline()
    server = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    for _ in range(200):
        if not (closed / "postgres" / "postmaster.pid").exists():
            break
        time.sleep(0.05)
    assert "database system is shut down" in (closed / "log" / "postgres.log").read_text()
    assert server > 0
