"""Fixtures every test may use. Tests are separated by project, as tenants are: each test makes its own.

`database` gives a migrated database, `server` the real processes (granian, Celery worker, beat) on it, `browser` a Chromium.
Without DATABASE_URL an embedded PostgreSQL is started for the run.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from django.conf import settings
from django.db import connections
from playwright.sync_api import Browser, sync_playwright
from psycopg import sql
from pytest_django import DjangoDbBlocker

from console.assets import build_assets
from console.celery import app
from console.postgres import ROLE, EmbeddedPostgres
from console.supervisor import Service, beat, web_server, worker
from tests.browser.chromium import FLAGS, find_chromium
from tests.tls import TLS

SPEED = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
"""Tests need no durability from the embedded database; what is durable is tested in `tests/platform`."""


def pytest_configure(config: pytest.Config) -> None:
    """Give this run its secret key and its own data folder before anything reads them."""
    os.environ["SECRET_KEY"] = settings.SECRET_KEY = uuid.uuid4().hex
    # most tests need people, hardly any their passwords; the server's processes hash as ever
    settings.PASSWORD_HASHERS = ["tests.passwords.QuickScrypt", *settings.PASSWORD_HASHERS]
    logging.getLogger("httpx").setLevel(logging.WARNING)  # or a failed test shows every request it made


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the running server come last: before it starts, no worker takes what other tests put down."""
    items.sort(key=lambda item: "server" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session", autouse=True)
def assets() -> None:
    """Assets are built once, as `manage.py start` would."""
    build_assets()


@pytest.fixture(scope="session")
def data_folder() -> Iterator[Path]:
    """A folder for the data of this run."""
    folder = Path(tempfile.mkdtemp(prefix="fhirbots-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(data_folder: Path, assets: None) -> Iterator[None]:
    """Without DATABASE_URL, start an embedded PostgreSQL and point Django at it."""
    if settings.DATABASE_URL:
        yield
        return
    embedded = EmbeddedPostgres(data_folder, SPEED)
    embedded.start()
    embedded.execute(f"ALTER ROLE {ROLE} CREATEDB")
    settings.DATABASES["default"]["HOST"] = str(embedded.socket)
    connections["default"].settings_dict["HOST"] = str(embedded.socket)
    yield
    embedded.stop()


@pytest.fixture(scope="session")
def django_db_setup(django_db_modify_db_settings: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Make the test database afresh; at the end it goes, whoever is still connected (pools, listeners)."""
    with django_db_blocker.unblock():
        connection = connections["default"]
        _drop_database(f"test_{connection.settings_dict['NAME']}")
        name = connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
        yield
        app.close()
        connections.close_all()
        _drop_database(name)


def _drop_database(name: str) -> None:
    parameters = connections["default"].get_connection_params() | {"dbname": "postgres", "autocommit": True}
    del parameters["cursor_factory"]
    with psycopg.connect(**parameters) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def database(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """A migrated database, open for the whole session (the store has its own connection pool)."""
    from bots.workers import lease
    from fhirstore.database import close

    with django_db_blocker.unblock():
        yield
    lease.drop()
    close()


@dataclass
class Server:
    """The running processes and the first project's accounts."""

    base_url: str
    admin_email: str
    admin_password: str
    client_id: str
    client_secret: str
    bot_log: Path
    services: dict[str, Service] = field(default_factory=dict)

    def kill(self, name: str) -> None:
        """`kill -9` of "web", "worker" or "beat"; a killed worker leaves no sign of life that would look like health."""
        self.services[name].kill()
        if name == "worker":
            with connections["default"].cursor() as cursor:
                cursor.execute("DELETE FROM console_worker")

    def start(self, name: str) -> None:
        """Start a killed process again and wait until the server is healthy."""
        self.services[name].start()
        self.wait_until_healthy()

    def wait_until_healthy(self, patience: float = 60) -> None:
        """Wait for /healthcheck; fails with the logs of all processes."""
        deadline, answer = time.monotonic() + patience, "no answer"
        while time.monotonic() < deadline:
            try:
                response = httpx.get(f"{self.base_url}/healthcheck", timeout=5, verify=TLS)
                answer = response.text
                if response.status_code == 200:
                    return
            except httpx.TransportError as error:
                answer = repr(error)
            time.sleep(0.05)
        pytest.fail(f"The server is not healthy: {answer}\n{self.logs()}")

    def logs(self) -> str:
        """The ends of what the processes have printed."""
        found = []
        for name, service in self.services.items():
            if service.output is not None:
                text = Path(service.output.name).read_text(errors="replace")
                found.append(f"--- {name}\n{text[-4000:]}")
        return "\n".join(found)


@pytest.fixture(scope="session")
def server(database: None, data_folder: Path) -> Iterator[Server]:
    """The real processes against the test database, with a first project, its admin and its client."""
    from fhirstore.bootstrap import bootstrap

    port = free_port()
    running = Server(
        base_url=f"http://127.0.0.1:{port}",
        admin_email="admin@example.com",
        admin_password=uuid.uuid4().hex,
        client_id=str(uuid.uuid4()),
        client_secret=uuid.uuid4().hex,
        bot_log=data_folder / "bots.jsonl",
    )
    bootstrap(
        email=running.admin_email,
        password=running.admin_password,
        project_name="Test project",
        client_id=running.client_id,
        client_secret=running.client_secret,
    )
    environment = process_environment(running.base_url) | {
        "FHIRBOTS_BOT_LOG": str(running.bot_log),
        "FHIRBOTS_NATIVE_PYTHON": "*",
        "FHIRBOTS_WEBSOCKETS": "1",  # by a process of its own: websocket_url
        "EMAIL_URL": f"file://{data_folder / 'mail'}",
    }
    for service in (
        web_server(environment, "127.0.0.1", port, 1, 8),
        worker(environment),
        beat(environment),
    ):
        service.output = (data_folder / f"{service.name}.log").open("wb")
        running.services[service.name] = service
        service.start()
    running.wait_until_healthy()
    yield running
    for service in running.services.values():
        service.ask_to_stop()
    for service in running.services.values():
        service.wait()
        if service.output is not None:
            service.output.close()


@pytest.fixture(scope="session")
def websocket_url(server: Server, data_folder: Path) -> Iterator[str]:
    """Base URL of a web server process that speaks WebSocket too, beside the running server."""
    port = free_port()
    environment = process_environment(server.base_url) | {"FHIRBOTS_WEBSOCKETS": "1"}
    service = web_server(environment, "127.0.0.1", port, 1, 8, websockets=True)
    with (data_folder / "websockets.log").open("wb") as service.output:
        service.start()
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert service.is_running(), (data_folder / "websockets.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        service.ask_to_stop()
        service.wait()


@pytest.fixture(scope="session")
def mail_folder(server: Server, data_folder: Path) -> Path:
    """Where the running server's mail goes: a file for each message."""
    return data_folder / "mail"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; a machine without one gets it from npm."""
    binary, environment = find_chromium()
    # Playwright leaves its event loop marked as running in this thread; Django would refuse all database work beside it
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=binary, args=FLAGS, env=environment)
        yield chromium
        chromium.close()


def process_environment(base_url: str) -> dict[str, str]:
    """The environment of processes that shall work on this run's database."""
    return os.environ | {
        "DATABASE_URL": database_url(),
        "BASE_URL": base_url,
        "PYTHONUNBUFFERED": "1",
        # servers of tests are called localhost by Bots; 127.0.0.1 stays closed, but for this server itself
        "FHIRBOTS_PRIVATE_HOSTS": f"localhost,{urlsplit(base_url).netloc}",
    }


def database_url() -> str:
    """The test database as a URL."""
    values = connections["default"].settings_dict
    account = values["USER"] + (f":{values['PASSWORD']}" if values["PASSWORD"] else "")
    host = str(values["HOST"]).replace("/", "%2F")
    port = f":{values['PORT']}" if values["PORT"] else ""
    return f"postgresql://{account}@{host}{port}/{values['NAME']}"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
