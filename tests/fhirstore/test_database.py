"""Connections, transactions and notices."""

from __future__ import annotations

import select
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Queue

import psycopg
import pytest
from django.db import connections
from pytest_django import Settings

from fhirstore import database, notices
from fhirstore.errors import FhirError
from fhirstore.repository import Repository
from tests.fhirstore.conftest import patient

pytestmark = pytest.mark.usefixtures("database")


def end_all_connections() -> None:
    """Let the server close every connection of the store, as a restart would."""
    with psycopg.connect(**database.connection_parameters()) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'fhirstore' AND pid <> pg_backend_pid()"
        )


def test_callbacks_run_after_the_outermost_commit() -> None:
    called: list[str] = []
    with database.transaction():
        with database.transaction():
            database.on_commit(lambda: called.append("inner"))
        database.on_commit(_fail)
        database.on_commit(lambda: called.append("outer"))
        assert called == []
    assert called == ["inner", "outer"]
    database.on_commit(lambda: called.append("at once"))
    assert called[-1] == "at once"


def _fail() -> None:
    raise ValueError("a callback that fails")


def test_callbacks_of_a_rolled_back_transaction_are_dropped() -> None:
    called: list[str] = []

    def fail() -> None:
        with database.transaction():
            database.on_commit(lambda: called.append("never"))
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    with database.transaction():
        pass
    assert called == []


def test_a_transaction_belongs_to_its_thread(repository: Repository) -> None:
    with database.transaction():
        stored = repository.create(patient())
        with ThreadPoolExecutor(1) as other, pytest.raises(FhirError) as unseen:
            other.submit(repository.read, "Patient", stored.id).result()
        assert unseen.value.status == 404
    assert repository.read("Patient", stored.id) == stored


def test_a_swallowed_error_does_not_look_like_a_commit() -> None:
    def swallow() -> None:
        with database.transaction() as connection, suppress(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        swallow()


def test_the_store_survives_a_restart_of_the_database(repository: Repository) -> None:
    stored = repository.create(patient())
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: repository.read("Patient", stored.id), range(20)))
        end_all_connections()
        assert set(threads.map(lambda _: repository.read("Patient", stored.id), range(20))) == {stored}
    end_all_connections()
    assert repository.create(patient())


def test_a_connection_that_breaks_in_between_is_a_clear_error(repository: Repository) -> None:
    def work() -> None:
        with repository.transaction():
            repository.create(patient())
            end_all_connections()
            repository.create(patient())

    with pytest.raises(database.DatabaseUnavailableError) as away:
        work()
    assert away.value.status == 503
    assert away.value.outcome["issue"][0]["code"] == "transient"
    assert not database.in_transaction()
    assert repository.search_all("Patient", "") == []


class CuttingProxy:
    """Stands between the store and PostgreSQL: once told to, it lets a statement through and cuts the line before its answer.

    So breaks a connection whose server dies just after a commit.
    """

    def __init__(self, address: str | tuple[str, int]) -> None:
        self._address = address
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.cut_after = b""
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._server.accept()[0]
                family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
                upstream = socket.socket(family)
                upstream.connect(self._address)
                threading.Thread(target=self._serve, args=(client, upstream), daemon=True).start()

    def _serve(self, client: socket.socket, upstream: socket.socket) -> None:
        is_cut = False
        with client, upstream, suppress(OSError):
            while True:
                for ready in select.select([client, upstream], [], [])[0]:
                    data = ready.recv(65536)
                    if not data or (is_cut and ready is upstream):
                        self.cuts += is_cut
                        return
                    if ready is client and self.cut_after and self.cut_after in data:
                        self.cut_after, is_cut = b"", True
                    (upstream if ready is client else client).sendall(data)


@pytest.fixture
def proxy(database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    """The store's connections lead through this one."""
    from fhirstore.database import close

    given = connections["default"].settings_dict
    host, port = str(given["HOST"] or "127.0.0.1"), int(given["PORT"] or 5432)
    made = CuttingProxy(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
    close()
    monkeypatch.setitem(given, "HOST", "127.0.0.1")
    monkeypatch.setitem(given, "PORT", made.port)
    yield made
    monkeypatch.undo()
    close()
    made.close()


def test_a_write_whose_answer_is_lost_is_not_reported_as_failed(
    repository: Repository, proxy: CuttingProxy
) -> None:
    """Otherwise MedplumClient, which repeats what gets a 503, writes it twice."""
    called: list[str] = []
    repository.create(patient("Jones"))

    proxy.cut_after = b"Smith"
    created = repository.create(patient("Smith"))
    assert proxy.cuts == 1
    assert [each.id for each in repository.search_all("Patient", "family=Smith")] == [created.id]

    proxy.cut_after = b"COMMIT"
    with repository.transaction():
        updated, _ = repository.update({**created.resource, "active": True})
        database.on_commit(lambda: called.append("committed"))
    assert proxy.cuts == 2
    assert called == ["committed"]
    assert repository.read("Patient", created.id) == updated

    proxy.cut_after = b"Miller"
    with pytest.raises(database.DatabaseUnavailableError), repository.transaction():
        repository.create(patient("Miller"))
    assert repository.search_all("Patient", "family=Miller") == []


def test_an_absent_database_is_a_clear_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT", 0.5)
    monkeypatch.setitem(connections.settings["default"], "NAME", f"missing_{uuid.uuid4().hex}")

    def use() -> None:
        with database.connection():
            pass

    with pytest.raises(database.DatabaseUnavailableError):
        use()
    monkeypatch.undo()
    with database.connection() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_deadlocks_are_conflicts(repository: Repository) -> None:
    first, second = repository.create(patient()), repository.create(patient())
    both_hold = threading.Barrier(2)

    def work(ids: tuple[str, str]) -> int:
        try:
            with repository.transaction():
                repository.patch("Patient", ids[0], [{"op": "add", "path": "/active", "value": True}])
                both_hold.wait()
                repository.patch("Patient", ids[1], [{"op": "add", "path": "/gender", "value": "male"}])
        except FhirError as refused:
            return refused.status
        return 200

    with ThreadPoolExecutor(2) as threads:
        outcomes = sorted(threads.map(work, [(first.id, second.id), (second.id, first.id)]))
    assert outcomes == [200, 409]


def test_locks_are_exclusive_until_the_transaction_ends() -> None:
    name, entered = uuid.uuid4().hex, threading.Event()

    def wait() -> None:
        with database.transaction():
            database.lock(name)
            entered.set()

    with ThreadPoolExecutor(1) as other:
        with database.transaction():
            database.lock(name)
            waiting = other.submit(wait)
            assert not entered.wait(0.1)
        waiting.result()
    assert entered.is_set()
    with pytest.raises(RuntimeError):
        database.lock(name)


def test_notices_arrive_after_the_commit_and_after_a_restart() -> None:
    channel, heard, resets = f"test_{uuid.uuid4().hex}", Queue[str](), Queue[bool]()
    notices.listen(channel, heard.put, lambda: resets.put(True))
    notices.listen(channel, lambda payload: _fail())
    assert resets.get(timeout=10)
    with database.transaction():
        notices.notify(channel, "one")
        assert heard.empty()
    assert heard.get(timeout=10) == "one"
    end_all_connections()
    assert resets.get(timeout=10), "whoever caches is told that something may have been missed"
    notices.notify(channel, "two")
    assert heard.get(timeout=10) == "two"
