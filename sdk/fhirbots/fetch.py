"""Requests to other hosts than the own server.

In a Bot they leave through the server, which decides by its project's settings which hosts may be asked; outside they are
ordinary HTTP requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

from fhirbots.transport import Response, SyncTransport

current_transport: ContextVar[SyncTransport | None] = ContextVar("current_transport", default=None)
"""The way out of the running call of a Bot; None outside of the sandbox."""


async def fetch(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | str | None = None,
) -> Response:
    """Send a request; returns the answer, whatever its status.

    Raises :class:`~fhirbots.transport.TransportError` when the host does not answer, or may not be asked.
    """
    if current_transport.get() is not None:
        return fetch_sync(url, method=method, headers=headers, body=body)
    from fhirbots.http import HttpTransport  # not in the sandbox, which has no HTTP

    transport = HttpTransport()
    try:
        return await transport.send(method.upper(), url, _lower(headers), _bytes(body))
    finally:
        await transport.aclose()


def fetch_sync(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | str | None = None,
) -> Response:
    """:func:`fetch` for handlers that are plain functions."""
    transport = current_transport.get()
    if transport is not None:
        return transport.send(method.upper(), url, _lower(headers), _bytes(body))
    from fhirbots.http import SyncHttpTransport  # not in the sandbox, which has no HTTP

    outside = SyncHttpTransport()
    try:
        return outside.send(method.upper(), url, _lower(headers), _bytes(body))
    finally:
        outside.close()


def _lower(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}


def _bytes(body: bytes | str | None) -> bytes | None:
    return body.encode() if isinstance(body, str) else body
