"""Messages between processes of one machine: what is sent is taken once, and what cannot be sent at once is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import bots.tasks
from bots.messages import send
from bots.shortcut import MAX_MESSAGE, Inlet, Outlet, meeting_place
from tests.bots.conftest import Project
from tests.conftest import Server


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_threads_that_wait_share_the_messages(folder: Path) -> None:
    inlet, outlet = Inlet(folder, "a", "bots"), Outlet(folder, "a")
    taken: list[bytes] = []

    def take() -> None:
        while body := inlet.take():
            taken.append(body)

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    sent = [f"{number}".encode() for number in range(500)]
    refused = [body for body in sent if not outlet.send("bots", body)]
    inlet.close()
    for thread in threads:
        thread.join()
    assert sorted([*taken, *refused]) == sorted(sent)
    assert taken


def test_what_has_come_is_taken_after_the_close_and_no_more(folder: Path) -> None:
    inlet, outlet = Inlet(folder, "a", "bots"), Outlet(folder, "a")
    assert outlet.send("bots", b"1")
    assert outlet.send("bots", b"2")
    inlet.close()
    assert not outlet.send("bots", b"3")
    assert [inlet.take() for _ in range(3)] == [b"1", b"2", b""]
    assert list(folder.iterdir()) == []


def test_workers_have_their_turns_and_a_full_one_is_left_out(folder: Path) -> None:
    first, second, outlet = Inlet(folder, "a", "bots"), Inlet(folder, "a", "bots"), Outlet(folder, "a")
    assert all(outlet.send("bots", b"x") for _ in range(4))
    assert [first.take(), first.take(), second.take(), second.take()] == [b"x"] * 4
    count = 0
    while outlet.send("bots", b"x" * 1000):  # nobody takes any
        count += 1
    assert count > 2
    assert second.take()
    assert outlet.send("bots", b"room for one")
    first.close()
    second.close()


def test_nothing_is_sent_to_others_or_too_long(folder: Path) -> None:
    inlet, outlet = Inlet(folder, "a", "bots"), Outlet(folder, "a")
    assert not outlet.send("system", b"x")
    assert not Outlet(folder, "b").send("bots", b"x")
    assert not outlet.send("bots", b"x" * (MAX_MESSAGE + 1))
    assert outlet.send("bots", b"x" * MAX_MESSAGE)
    assert inlet.take() == b"x" * MAX_MESSAGE
    inlet.close()


def test_the_socket_of_a_killed_worker_deceives_nobody(folder: Path) -> None:
    code = "import os, sys; from pathlib import Path; from bots.shortcut import Inlet; Inlet(Path(sys.argv[1]), 'a', 'bots'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, folder], check=False).returncode == -9
    assert len(list(folder.iterdir())) == 1
    assert not Outlet(folder, "a").send("bots", b"x")
    assert list(folder.iterdir()) == []


def test_the_place_is_the_folder_of_the_databases_socket_if_only_its_owner_may_write_there(
    folder: Path,
) -> None:
    assert meeting_place(os.fspath(folder)) == folder
    assert meeting_place("127.0.0.1") is None
    assert meeting_place("/nowhere") is None
    folder.chmod(0o777)
    assert meeting_place(os.fspath(folder)) is None


def test_messages_a_worker_does_not_understand_do_not_stop_it(server: Server, project: Project) -> None:
    bot = project.bot()
    send(bots.tasks.execute_bot, "bots", "too few arguments")
    for _ in range(12):  # more than it has threads, not so many that the socket would be full and be left out
        send(SimpleNamespace(name="bots.tasks.of_another_version"), "bots")
    assert project.execute(bot).status_code == 200
