"""/healthcheck and the headers that every answer has."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from django.db import connection, transaction

from console.health import OK, check_parts
from tests.conftest import Server


@pytest.fixture
def workers(database: None) -> Iterator[None]:
    """The signs of life as a test writes them; what real workers wrote comes back afterwards."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM console_worker")
        yield
        transaction.set_rollback(True)


def sign(name: str, age: int, problem: str = "") -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO console_worker (name, seen, problem) VALUES (%s, now() - make_interval(secs => %s), %s)",
            [name, age, problem],
        )


@pytest.mark.usefixtures("workers")
def test_without_a_worker_that_is_alive_the_worker_is_what_fails() -> None:
    sign("long gone", age=3600)
    parts = check_parts()
    assert parts["database"] == OK
    assert parts["broker"] == OK
    assert parts["worker"] == "No worker is running."
    assert parts["sandbox"] != OK


@pytest.mark.usefixtures("workers")
def test_one_worker_with_a_sandbox_is_enough() -> None:
    sign("broken", age=1, problem="The sandbox cannot be started; the worker's log says why.")
    assert check_parts()["sandbox"] == "The sandbox cannot be started; the worker's log says why."
    assert check_parts()["worker"] == OK
    sign("sound", age=1)
    assert set(check_parts().values()) == {OK}


def test_the_running_server_is_healthy_and_says_its_version(server: Server) -> None:
    answer = httpx.get(f"{server.base_url}/healthcheck")
    assert answer.status_code == 200
    body = answer.json()
    assert body["ok"] is True
    assert body["parts"] == {"database": "ok", "broker": "ok", "worker": "ok", "sandbox": "ok"}
    assert answer.headers["cache-control"] == "no-store"


def test_pages_carry_the_security_headers(server: Server) -> None:
    headers = httpx.get(f"{server.base_url}/signin").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe-inline" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"


def test_a_host_that_is_not_ours_is_refused(server: Server) -> None:
    answer = httpx.get(f"{server.base_url}/signin", headers={"Host": "elsewhere.example"})
    assert answer.status_code == 400
