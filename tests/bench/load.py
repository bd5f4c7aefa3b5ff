"""A small HTTP load generator: keep-alive connections over one epoll loop, responses checked, latencies kept.

Its own cost is about 20 µs of CPU per request, on the same cores as the server: the figures include it.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run measured. ``rate`` in requests per second, times in milliseconds."""

    requests: int
    rate: float
    p50: float
    p95: float
    p99: float
    errors: int

    def row(self) -> str:
        failed = f"  {self.errors} ERRORS" if self.errors else ""
        return f"{self.rate:8.0f} req/s  p50 {self.p50:7.2f}  p95 {self.p95:7.2f}  p99 {self.p99:7.2f} ms{failed}"


class _Connection:
    """One keep-alive connection with one request under way."""

    __slots__ = ("address", "buffer", "need", "sent_at", "socket")

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.buffer = bytearray()
        self.need = -1
        self.sent_at = 0.0
        self.socket = socket.create_connection(address, timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, payload: bytes) -> None:
        self.buffer.clear()
        self.need = -1
        self.sent_at = time.perf_counter()
        self.socket.sendall(payload)

    def receive(self) -> int | None:
        """Read what is there; return the status when the response is whole, else None."""
        chunk = self.socket.recv(262144)
        if not chunk:
            raise ConnectionError("the server closed the connection")
        self.buffer += chunk
        if self.need < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = bytes(self.buffer[:end]).lower()
            at = head.find(b"content-length:")
            if at >= 0:
                self.need = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
            elif b"transfer-encoding: chunked" in head:
                if not self.buffer.endswith(b"0\r\n\r\n"):
                    return None
                self.need = len(self.buffer)
            else:
                self.need = end + 4
        if len(self.buffer) < self.need:
            return None
        return int(self.buffer[9:12])


def request(
    method: str, url: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[tuple[str, int], bytes]:
    """Encode one HTTP/1.1 request for ``http://host:port/path``. Returns the address and the bytes."""
    host_port, _, path = url.removeprefix("http://").partition("/")
    host, _, port = host_port.partition(":")
    lines = [f"{method} /{path} HTTP/1.1", f"Host: {host_port}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body or method in {"POST", "PUT", "PATCH"}:
        lines.append(f"Content-Length: {len(body)}")
    return (host, int(port or 80)), "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def run(
    make: Callable[[int], tuple[tuple[str, int], bytes]],
    *,
    clients: int,
    seconds: float = 3600,
    count: int | None = None,
    expect: Iterable[int] = (200, 201),
    warm_up: int = 20,
) -> Outcome:
    """Send requests from ``clients`` connections for ``seconds``, or exactly ``count`` of them.

    ``make(n)`` encodes the n-th request. Statuses outside ``expect`` count as errors.
    """
    good = frozenset(expect)
    address, _ = make(0)
    selector = selectors.DefaultSelector()
    connections = [_Connection(address) for _ in range(clients)]
    number = 0
    for _ in range(warm_up):
        connections[0].send(make(number)[1])
        number += 1
        while connections[0].receive() is None:
            pass
    latencies: list[float] = []
    errors = 0
    started = time.perf_counter()
    deadline = started + seconds
    left = count if count is not None else -1
    for connection in connections:
        left -= 1
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send(make(number)[1])
        number += 1
    waiting = clients
    while waiting:
        for key, _ in selector.select(timeout=60):
            connection = key.data
            status = connection.receive()
            if status is None:
                continue
            now = time.perf_counter()
            latencies.append((now - connection.sent_at) * 1000)
            errors += status not in good
            if now < deadline and left != 0:
                left -= 1
                connection.send(make(number)[1])
                number += 1
            else:
                waiting -= 1
                selector.unregister(connection.socket)
    elapsed = time.perf_counter() - started
    for connection in connections:
        connection.socket.close()
    latencies.sort()

    def at(share: float) -> float:
        return latencies[min(len(latencies) - 1, int(len(latencies) * share))]

    return Outcome(len(latencies), len(latencies) / elapsed, at(0.5), at(0.95), at(0.99), errors)
