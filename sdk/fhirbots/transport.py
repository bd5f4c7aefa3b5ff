"""How requests of the client leave: over HTTP outside, over a pipe inside the sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class TransportError(Exception):
    """No answer came: the network failed, or the sandbox refused the request. The text says why."""

    is_final = False
    """Trying again is of no use."""


class RefusedError(TransportError):
    """The sandbox does not let the request out, or it is none that could be sent."""

    is_final = True


class Response(NamedTuple):
    """An HTTP answer: of a server, with the names of headers in lower case; or the Bot's own, which a handler returns::

    return Response(201, {"Content-Type": "application/json"}, b'{"id": 42}')
    """

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""

    @property
    def content_type(self) -> str:
        """Of the body, with parameters; empty where it is not told."""
        return self.headers.get("content-type", "")

    @property
    def text(self) -> str:
        """The body as UTF-8 text."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON; raises :class:`ValueError` if it is none."""
        return json.loads(self.body)


class AsyncTransport(Protocol):
    """Sends the requests of :class:`~fhirbots.client.MedplumClient`."""

    async def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        """Return the answer, whatever its status; raises :class:`TransportError` where there is none."""
        ...

    async def aclose(self) -> None:
        """Give back what the transport holds."""
        ...


class SyncTransport(Protocol):
    """Sends the requests of :class:`~fhirbots.sync_client.SyncMedplumClient`."""

    def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        """Return the answer, whatever its status; raises :class:`TransportError` where there is none."""
        ...

    def close(self) -> None:
        """Give back what the transport holds."""
        ...
