"""The way of requests outside of the sandbox: HTTP, by httpx."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from fhirbots.transport import RefusedError, Response, TransportError

TIMEOUT_SECONDS = 60.0
_UNSENDABLE = (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeError)


def _unsendable(error: Exception) -> str:
    """Why a request cannot even be sent; not in the library's words, which may hold a token."""
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return f"This is no address of a server: {error}"
    return "A header has a character that cannot be sent; look for line ends in tokens, ids and secrets."


class HttpTransport:
    """Requests of one :class:`~fhirbots.client.MedplumClient`. The connection belongs to one event loop."""

    def __init__(self, client: httpx.AsyncClient | None = None) -> None:
        self._client = client or httpx.AsyncClient(timeout=TIMEOUT_SECONDS)

    async def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        """See :class:`~fhirbots.transport.AsyncTransport`."""
        try:
            answer = await self._client.request(method, url, headers=headers, content=body)
        except _UNSENDABLE as error:
            raise RefusedError(_unsendable(error)) from None
        except httpx.HTTPError as error:
            raise TransportError(str(error) or type(error).__name__) from error
        return Response(answer.status_code, dict(answer.headers), answer.content)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class SyncHttpTransport:
    """Requests of one :class:`~fhirbots.sync_client.SyncMedplumClient`."""

    def __init__(self, client: httpx.Client | None = None) -> None:
        self._client = client or httpx.Client(timeout=TIMEOUT_SECONDS)

    def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        """See :class:`~fhirbots.transport.SyncTransport`."""
        try:
            answer = self._client.request(method, url, headers=headers, content=body)
        except _UNSENDABLE as error:
            raise RefusedError(_unsendable(error)) from None
        except httpx.HTTPError as error:
            raise TransportError(str(error) or type(error).__name__) from error
        return Response(answer.status_code, dict(answer.headers), answer.content)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
