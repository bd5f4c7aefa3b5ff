"""RSGI entry point: ``granian --interface rsgi console.rsgi:application`` answers HTTP and WebSockets on one port.

HTTP goes to the WSGI application, in threads as under ``--interface wsgi``: Django's own asynchronous handler takes twice as long.
What this costs nevertheless, and when to use it, tells docs/decisions/0010.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

from console.wsgi import application as wsgi_application  # first: it sets Django up

# isort: split
from django.conf import settings

from bots.api import WEBSOCKET_PATH, serve_websocket

SMALL: Final = 1024 * 1024
"""Bytes of a body that are waited for before a thread is given to the request; longer ones are read by the thread."""

_ENVIRON: Final = {
    "SCRIPT_NAME": "",
    "SERVER_SOFTWARE": "Granian",
    "wsgi.errors": sys.stderr,
    "wsgi.input_terminated": True,
    "wsgi.multiprocess": True,
    "wsgi.multithread": True,
    "wsgi.run_once": False,
    "wsgi.version": (1, 0),
}

_CONTENT: Final = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}


class Headers(Protocol):
    """RSGI's headers; names are in lower case, one that was sent twice is there twice."""

    def get(self, key: str, default: Any = None) -> Any: ...
    def items(self) -> list[tuple[str, str]]: ...


class Scope(Protocol):
    """RSGI's connection scope (https://github.com/emmett-framework/granian/blob/master/docs/spec/RSGI.md)."""

    proto: str
    http_version: str
    server: str
    client: str
    scheme: str
    method: str
    path: str
    query_string: str

    @property
    def headers(self) -> Headers: ...


class _Body(io.RawIOBase):
    """A request's body, read by a thread while the event loop receives it."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._chunks, self._loop = chunks, loop
        self._rest = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for the next bytes; 0 at the end."""
        while not self._rest:
            try:
                self._rest = asyncio.run_coroutine_threadsafe(_next(self._chunks), self._loop).result()
            except StopAsyncIteration:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks)


class _Socket:
    """A WebSocket as `bots` uses it."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    async def receive(self) -> str | None:
        """The next message; None when the peer has gone."""
        message = await self._transport.receive()
        if message.kind == 0:
            return None
        return message.data if isinstance(message.data, str) else message.data.decode(errors="replace")

    async def send(self, text: str) -> None:
        """Send a message."""
        await self._transport.send_str(text)


class Application:
    """What granian calls for each request and each WebSocket."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(settings.WEB_THREADS, thread_name_prefix="web")

    async def __rsgi__(self, scope: Scope, protocol: Any) -> None:
        """Answer a request, or serve a WebSocket to its end."""
        if scope.proto == "ws":
            if scope.path != WEBSOCKET_PATH:
                protocol.close(404)
                return
            socket = _Socket(await protocol.accept())
            # a task of its own: granian's are no tasks of asyncio, which time limits need
            await asyncio.create_task(serve_websocket(socket))
            return
        loop = asyncio.get_running_loop()
        body = await _body(scope, protocol, loop)
        answered = loop.create_future()

        def work() -> None:
            try:
                _answer(scope, protocol, body, loop)
            finally:
                loop.call_soon_threadsafe(answered.set_result, None)

        self._threads.submit(work)
        await answered


async def _body(scope: Scope, protocol: Any, loop: asyncio.AbstractEventLoop) -> io.BufferedIOBase:
    length = scope.headers.get("content-length")
    if length is None and scope.headers.get("transfer-encoding") is None:
        return io.BytesIO()
    if length is not None and length.isdigit() and int(length) <= SMALL:
        return io.BytesIO(await protocol())
    return io.BufferedReader(_Body(aiter(protocol), loop))


def _answer(scope: Scope, protocol: Any, body: io.BufferedIOBase, loop: asyncio.AbstractEventLoop) -> None:
    """Call the WSGI application and send its answer; in a thread."""
    started: list[tuple[int, list[tuple[str, str]]]] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], _error: Any = None
    ) -> Callable[[bytes], object]:
        started.append((int(status[:3]), headers))
        return lambda _chunk: None

    answer: Iterable[bytes] = wsgi_application(_environ(scope, body), start_response)
    try:
        status, headers = started[0]
        if not getattr(answer, "streaming", True):
            protocol.response_bytes(status, headers, b"".join(answer))
            return
        transport = protocol.response_stream(status, headers)
        for chunk in answer:
            asyncio.run_coroutine_threadsafe(_send(transport, chunk), loop).result()
    finally:
        if close := getattr(answer, "close", None):
            close()


async def _send(transport: Any, chunk: bytes) -> None:
    await transport.send_bytes(chunk)


def _environ(scope: Scope, body: io.BufferedIOBase) -> dict[str, Any]:
    """The request as PEP 3333 wants it."""
    host, port = _address(scope.server)
    environ: dict[str, Any] = {
        **_ENVIRON,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "SERVER_NAME": host,
        "SERVER_PORT": port,
        "REMOTE_ADDR": _address(scope.client)[0],
        "REQUEST_METHOD": scope.method,
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": body,
    }
    for name, value in scope.headers.items():
        if "_" in name:  # could pass for a header that a proxy sets
            continue
        key = _CONTENT.get(name) or f"HTTP_{name.upper().replace('-', '_')}"
        if key in environ:
            value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
        environ[key] = value
    return environ


def _address(text: str) -> tuple[str, str]:
    """Host and port of ``host:port`` or ``[host]:port``."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), port


application = Application()
