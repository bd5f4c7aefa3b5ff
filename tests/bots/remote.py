"""A server that Bots of tests talk to, as somebody else's on the internet would be."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import brotli

Seen = tuple[str, str, dict[str, str], bytes]
"""Method, path, headers by lower-case name, body."""


class Remote(ThreadingHTTPServer):
    """Listens on loopback and does what the path of a request says; any other path answers ``hello``."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[Seen] = []
        self.over = threading.Event()
        self.gate = threading.Event()
        """``/wait`` answers once this is set."""
        self.waiting = threading.Semaphore(0)
        """Counts up when somebody waits at ``/wait`` or reads ``/slow``."""
        self.port = int(self.server_address[1])
        self.rule = f"http://localhost:{self.port}"
        """Both its address and the rule that allows it."""


_FIXED: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "/loop": (302, b"", {"location": "/loop"}),
    "/gzip": (200, gzip.compress(b"packed " * 1000), {"content-encoding": "gzip"}),
    "/bomb": (200, gzip.compress(bytes(40 << 20)), {"content-encoding": "gzip"}),
    "/deflate": (200, zlib.compress(b"packed " * 1000), {"content-encoding": "deflate"}),
    "/headless": (200, zlib.compress(b"packed " * 1000)[2:-4], {"content-encoding": "deflate"}),
    "/brotli": (200, brotli.compress(b"packed " * 1000), {"content-encoding": "br"}),
    "/brotli-bomb": (200, brotli.compress(bytes(256 << 20), quality=5), {"content-encoding": "br"}),
    "/twice": (200, gzip.compress(gzip.compress(bytes(1 << 20))), {"content-encoding": "gzip, gzip"}),
    "/unknown": (200, b"plain", {"content-encoding": "none"}),
    "/damaged": (200, b"not gzip", {"content-encoding": "gzip"}),
    "/bytes": (200, bytes(range(256)) * 4096, {"content-type": "application/octet-stream"}),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Remote

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.command, self.path, headers, body))
        path, _, query = self.path.partition("?")
        match path:
            case "/redirect":
                status, _, target = query.partition(",")
                self._answer(int(status), b"moved", {"location": target})
            case _ if path in _FIXED:
                self._answer(*_FIXED[path])
            case "/echo":
                said = {"method": self.command, "headers": headers, "body": body.decode("latin-1")}
                self._answer(200, json.dumps(said).encode(), {"content-type": "application/json"})
            case "/status":
                self._answer(int(query), b'{"status": true}', {"content-type": "application/json"})
            case _:
                self._respond_slowly(path)

    def _respond_slowly(self, path: str) -> None:
        match path:
            case "/wait":
                self.server.waiting.release()
                self.server.gate.wait(30)
                self._answer(200, b"waited", {})
            case "/drip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not self.server.over.wait(0.02):
                    self.wfile.write(b"x: y\r\n")
            case "/slow":
                self.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
                self.server.waiting.release()
                self.server.gate.wait(30)
                self.wfile.write(b"6\r\nsecond\r\n0\r\n\r\n")
            case _:
                self._answer(200, b"hello", {"content-type": "text/plain"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("set-cookie", "a=1")
        self.send_header("set-cookie", "b=2")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = _respond  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the other side may have had enough
            super().handle()


@contextlib.contextmanager
def running_remote() -> Iterator[Remote]:
    """A running :class:`Remote`. Only who may reach ``localhost`` (FHIRBOTS_PRIVATE_HOSTS) reaches it."""
    server = Remote()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.gate.set()
        server.shutdown()
        server.server_close()
