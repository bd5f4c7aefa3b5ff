"""``manage.py start``: everything in one terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import sys
import time
import urllib.error
import urllib.request
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, connections
from django.db.migrations.executor import MigrationExecutor

from console.assets import AssetsError, build_assets
from console.postgres import EmbeddedPostgres, PostgresError
from console.supervisor import Supervisor, beat, web_server, worker
from fhirstore.api import bootstrap, close_connections

READY_WITHIN = 60.0
"""Seconds the processes get to become healthy."""


class Command(BaseCommand):
    """Prepare what is missing (assets, database, first project), then run and watch all processes until Ctrl-C."""

    help = "Run fhirbots: database, web server, worker and scheduler. Ctrl-C stops everything."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The fixed options; everything else comes from the environment (README.md)."""
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
        parser.add_argument(
            "--data", type=Path, default=Path("var"), help="folder for all data (default: ./var)"
        )

    def handle(self, *args: Any, host: str, port: int, data: Path, **options: Any) -> None:
        """Run until a signal comes; raises `CommandError` with one sentence when that is not possible."""
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        _check_platform()
        _check_port(host, port)
        try:
            if settings.DATABASE_URL:
                _check_services_settings()
                self._enter(host, port, {})
                self._run(host, port, None)
            else:
                data = data.absolute()
                _make_data_folder(data)
                with _locked(data):
                    _make_secret_key(data)
                    self._enter(host, port, {"FHIRBOTS_DATA": str(data)})
                    self._run(host, port, EmbeddedPostgres(data))
        except (AssetsError, PostgresError) as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:  # while it still prepares; later the supervisor handles signals
            raise CommandError("Stopped before it was ready.", returncode=130) from None

    def _enter(self, host: str, port: int, values: dict[str, str]) -> None:
        """Settings are read from the environment when Django starts: put the options there, and start over once."""
        shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104  compared, not bound
        address = f"[{shown}]" if ":" in shown else shown
        wanted = {"BASE_URL": os.environ.get("BASE_URL") or f"http://{address}:{port}", **values}
        if any(os.environ.get(name) != value for name, value in wanted.items()):
            os.environ.update(wanted)
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606

    def _run(self, host: str, port: int, postgres: EmbeddedPostgres | None) -> None:
        say = self._say
        build_assets(say)
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        services = [
            web_server(
                environment,
                host,
                port,
                settings.WEB_WORKERS,
                settings.WEB_THREADS,
                websockets=settings.WEBSOCKETS,
            ),
            worker(environment),
            beat(environment),
        ]
        with Supervisor(services, postgres, say) as supervisor:
            password = _prepare_database(say)
            supervisor.start_services()
            self._wait_until_healthy(supervisor, host, port)
            if supervisor.is_asked_to_stop():
                return
            say(f"fhirbots is running at {settings.BASE_URL}")
            if password:
                say(f"Sign in as {_admin_email()} with the password {password} (shown only this once).")
            say("Press Ctrl-C to stop.")
            supervisor.watch()

    def _say(self, line: str) -> None:
        with contextlib.suppress(
            OSError
        ):  # the terminal may have gone; what runs must stop cleanly all the same
            self.stdout.write(line)

    def _wait_until_healthy(self, supervisor: Supervisor, host: str, port: int) -> None:
        deadline, problem = time.monotonic() + READY_WITHIN, "the web server does not answer"
        while not supervisor.is_asked_to_stop():
            with contextlib.suppress(OSError):
                problem = _problem(host, port)
                if not problem:
                    return
            dead = supervisor.dead_service()
            if dead:
                raise CommandError(f"The {dead} process does not start; the lines above say why.")
            if time.monotonic() > deadline:
                raise CommandError(f"fhirbots does not become healthy: {problem}")
            supervisor.rest(0.05)


def _prepare_database(say: Any) -> str | None:
    """Migrate, and make what the environment asks for; returns the admin's password if it was made up here."""
    try:
        executor = MigrationExecutor(connections["default"])
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            say("Updating the database")
            call_command("migrate", interactive=False, verbosity=0)
        first = not get_user_model().objects.exists()
        if first:
            say("Creating the first project")
        if not first and not os.environ.get("FHIRBOTS_CLIENT_ID"):
            return None
        given = os.environ.get("FHIRBOTS_ADMIN_PASSWORD")
        password = given or secrets.token_urlsafe(12)
        made = bootstrap(
            email=_admin_email(),
            password=password,
            project_name=os.environ.get("FHIRBOTS_PROJECT_NAME") or "My project",
            client_id=os.environ.get("FHIRBOTS_CLIENT_ID") or None,
            client_secret=os.environ.get("FHIRBOTS_CLIENT_SECRET") or None,
        )
    except OperationalError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CommandError(f"The database cannot be used: {reason}") from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    finally:  # this process only watches from now on
        connections.close_all()
        close_connections()
    return password if made.created and not given else None


def _admin_email() -> str:
    return os.environ.get("FHIRBOTS_ADMIN_EMAIL") or "admin@example.com"


def _problem(host: str, port: int) -> str:
    """What /healthcheck says is wrong; empty when all is well; raises OSError while nothing answers."""
    target = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    request = urllib.request.Request(
        f"http://{target}:{port}/healthcheck", headers={"Host": settings.BASE_URL.split("/")[2]}
    )
    try:
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310  our own address
            return ""
    except urllib.error.HTTPError as error:
        try:
            parts = orjson.loads(error.read())["parts"]
        except (orjson.JSONDecodeError, KeyError):
            return f"/healthcheck answers {error.code}"
        return " ".join(sorted({state for state in parts.values() if state != "ok"}))


def _check_platform() -> None:
    if sys.platform not in {"linux", "darwin"}:
        raise CommandError(f"fhirbots runs on Linux and macOS, not on {sys.platform}.")


def _check_services_settings() -> None:
    if not os.environ.get("SECRET_KEY"):
        raise CommandError(
            "Set SECRET_KEY (50 random characters): it is required together with DATABASE_URL."
        )


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise CommandError(f"Port {port} cannot be used: ports are numbers from 1 to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise CommandError(f"{host} is not an address of this machine: {error.strerror}.") from error
    except OSError as error:
        raise CommandError(
            f"Port {port} of {host} cannot be used: {error.strerror}. Choose another with --port."
        ) from error


def _make_data_folder(data: Path) -> None:
    """Make the folder; others may pass it when root owns it, as PostgreSQL then runs as another user."""
    try:
        if not data.is_dir():
            data.mkdir(parents=True)
            data.chmod(0o711 if os.geteuid() == 0 else 0o700)
        if not os.access(data, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise CommandError(
            f"The data folder {data} cannot be used: {error.strerror}. Choose another with --data."
        ) from error


def _make_secret_key(data: Path) -> None:
    file = data / "secret_key"
    try:
        if not os.environ.get("SECRET_KEY") and not (file.exists() and file.read_text().strip()):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="ascii") as out:  # noqa: PTH123  the mode must be right from the start
                out.write(secrets.token_urlsafe(48) + "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"The secret key in {file} cannot be used: {error}.") from error


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Keep a second fhirbots off the folder. The lock ends with this process, however it ends."""
    try:
        lock = (data / "lock").open("a+")
    except OSError as error:
        raise CommandError(
            f"The data folder {data} cannot be used: {error.strerror}. Choose another with --data."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"Another fhirbots is running on the data folder {data}.") from None
        yield
