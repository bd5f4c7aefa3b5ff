"""Running handlers in tests: against a throw-away server on this machine, or against any other."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fhirbots import handler as handlers
from fhirbots.client import MedplumClient
from fhirbots.deploying import create_bot, deploy_bot, save_bot
from fhirbots.event import HL7_V2, BotEvent, parse_hl7
from fhirbots.handler import Handler
from fhirbots.streaming import EVENT_STREAM, CollectedStream, written_out
from fhirbots.sync_client import SyncMedplumClient

START_SECONDS = 300.0
"""The first start of a server builds what Bots load."""


def make_event(
    input: Any = None,
    *,
    content_type: str = "application/json",
    secrets: Mapping[str, Any] | None = None,
    requester: str | None = None,
    headers: Mapping[str, str] | None = None,
    streaming: bool = False,
    previous: Mapping[str, Any] | None = None,
    bot: str = "Bot/00000000-0000-4000-8000-000000000000",
) -> BotEvent:
    """An event as the server makes it.

    Args:
        input: JSON values; text for HL7 v2, which becomes a message if ``content_type`` says so.
        secrets: values by name: ``{"API_KEY": "abc", "LIMIT": 5}``.
        requester: reference of who asks, such as ``Practitioner/123``.
        streaming: the Bot may stream: ``event.response_stream`` is there, and keeps the parts.
        previous: the version before the change.
    """
    # What goes over the wire is JSON, so that a test does not pass with what could not be sent.
    value = (
        parse_hl7(input)
        if content_type == HL7_V2 and isinstance(input, str)
        else json.loads(json.dumps(input))
    )
    fields: dict[str, Any] = {
        "bot": {"reference": bot},
        "input": {} if input is None else value,
        "contentType": content_type,
        "secrets": {name: {"name": name, **_secret(value)} for name, value in (secrets or {}).items()},
        "headers": {name.lower(): value for name, value in (headers or {}).items()},
        "traceId": str(uuid.uuid4()),
    }
    if requester:
        fields["requester"] = {"reference": requester}
    if previous is not None:
        fields["previous"] = json.loads(json.dumps(previous))
    if streaming:
        fields["responseStream"] = CollectedStream()
    return BotEvent(fields)


def _secret(value: Any) -> dict[str, Any]:
    kinds = ((bool, "valueBoolean"), (int, "valueInteger"), (float, "valueDecimal"))
    return {next((kind for of, kind in kinds if isinstance(value, of)), "valueString"): value}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A server, and a ClientApplication that is admin of a project on it."""

    base_url: str
    client_id: str
    client_secret: str = field(repr=False)  # pytest shows the values of fixtures

    def client(self) -> SyncMedplumClient:
        """A client without ``await``, signed in."""
        return SyncMedplumClient(self.base_url, client_id=self.client_id, client_secret=self.client_secret)

    def run(self, handler: Handler, event: BotEvent) -> Any:
        """Run a handler in this process, with a client that asks this server; raises what it raises.

        Returns what it returns; of an answer that it has streamed, the :class:`~fhirbots.transport.Response`.
        """
        options: dict[str, Any] = {"client_id": self.client_id, "client_secret": self.client_secret}
        handler = written_out(handler)
        if handlers.is_async(handler):

            async def run() -> Any:
                async with MedplumClient(self.base_url, **options) as medplum:
                    await medplum.get_profile_async()
                    return await handler(medplum, event)

            value = asyncio.run(run())
        else:
            with SyncMedplumClient(self.base_url, **options) as medplum:
                medplum.get_profile_now()
                value = handler(medplum, event)
        stream = event.response_stream
        if isinstance(stream, CollectedStream) and stream.is_started:
            return stream.response
        handlers.answer_of(value)  # what a caller could not be sent fails the test
        return value

    def deploy(self, path: str | Path, name: str | None = None, **elements: Any) -> DeployedBot:
        """Create a Bot from a file, in the language its name says, and deploy it to the server's real sandbox.

        ``elements`` are set on the Bot: ``timeout=60``, ``streamingEnabled=True``.
        """
        file = Path(path)
        with self.client() as medplum:
            medplum.get_profile_now()
            project = medplum.get_project()
            assert project is not None, "the server does not tell the project"
            bot = create_bot(medplum, project["id"], name or file.stem)
            if elements:
                medplum.update_resource(medplum.read_resource("Bot", bot["id"]) | elements)
            save_bot(medplum, bot["id"], file)
            deploy_bot(medplum, bot["id"], file)
        return DeployedBot(self, bot["id"])


@dataclass(frozen=True, slots=True)
class DeployedBot:
    """A Bot on the server."""

    server: ServerAddress
    id: str

    def execute(self, input: Any = None, content_type: str = "application/json") -> Any:
        """Run it with ``$execute``; returns its answer, raises :class:`~fhirbots.errors.OperationOutcomeError`."""
        with self.server.client() as medplum:
            return medplum.execute_bot(self.id, {} if input is None else input, content_type)

    @contextmanager
    def stream(self, input: Any = None) -> Iterator[httpx.Response]:
        """Run a Bot that streams: ``with bot.stream(…) as answer: for line in answer.iter_lines(): …``."""
        with httpx.stream(
            "POST",
            f"{self.server.base_url}fhir/R4/Bot/{self.id}/$execute",
            json={} if input is None else input,
            headers={"Accept": EVENT_STREAM},
            auth=(self.server.client_id, self.server.client_secret),
            timeout=None,  # noqa: S113 - the Bot has a time limit
        ) as answer:
            yield answer


class ServerError(Exception):
    """No server could be started; the text says why."""


class LocalServer:
    """A fhirbots server with a data folder of its own, run by the same Python. The server's package must be installed."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> ServerAddress:
        """Start it and wait until it is healthy; raises :class:`ServerError`."""
        spec = importlib.util.find_spec("console")
        root = Path(spec.origin).parent.parent if spec is not None and spec.origin else None
        if root is None or not (root / "manage.py").is_file():
            raise ServerError(
                "The fhirbots server is not installed here: run `pip install -e` on a checkout of it, or set FHIRBOTS_TEST_BASE_URL, "
                "FHIRBOTS_TEST_CLIENT_ID and FHIRBOTS_TEST_CLIENT_SECRET to use one that is running."
            )
        address = ServerAddress(f"http://127.0.0.1:{_free_port()}/", str(uuid.uuid4()), uuid.uuid4().hex)
        own = ("DATABASE_URL", "CELERY_BROKER_URL", "SECRET_KEY", "DJANGO_SETTINGS_MODULE", "BASE_URL")
        inherited = {name: value for name, value in os.environ.items() if name not in own}
        settings = {
            "FHIRBOTS_CLIENT_ID": address.client_id,
            "FHIRBOTS_CLIENT_SECRET": address.client_secret,
            "FHIRBOTS_PROJECT_NAME": "Tests",
        }
        port = address.base_url.rstrip("/").rpartition(":")[2]
        self._data.mkdir(parents=True, exist_ok=True)
        output = self._data / "output"
        with output.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "manage.py", "start", "--port", port, "--data", str(self._data / "data")],
                cwd=root,
                env=inherited | settings,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while not _is_healthy(address.base_url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ServerError(
                    "fhirbots did not start. It said:\n" + output.read_text(errors="replace")[-4000:]
                )
            time.sleep(0.1)
        return address

    def stop(self) -> None:
        """Stop it and wait until its processes are gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _is_healthy(base_url: str) -> bool:
    try:
        return bool(httpx.get(f"{base_url}healthcheck", timeout=10).json().get("ok"))
    except (httpx.HTTPError, ValueError):
        return False
