"""Answers in parts, while the Bot runs: ``event.response_stream``, and handlers that yield."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, closing
from typing import Any, Literal

from fhirbots.handler import Handler, function_of
from fhirbots.transport import Response

Part = Literal["start", "write", "end"]
Chunk = str | bytes | bytearray | memoryview

EVENT_STREAM = "text/event-stream"
_CHUNK_BYTES = 256 * 1024


class ResponseStream:
    """The answer of a Bot, sent while it runs. There is one as ``event.response_stream`` where the Bot has
    ``streamingEnabled`` and the caller accepts ``text/event-stream``; else that is None.

    Names and order of calls are those of Medplum's ``event.responseStream``. Writing waits until the server has taken it.
    """

    def __init__(self) -> None:
        self._state: Literal["new", "started", "ended"] = "new"

    @property
    def is_started(self) -> bool:
        """Whether the answer has begun, so that what the handler returns is of no account any more."""
        return self._state != "new"

    def start_streaming(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Begin the answer; without a ``Content-Type`` it is ``text/event-stream``.

        Raises :class:`RuntimeError` if it has begun before, :class:`ValueError` if ``status`` is not between 200 and 599.
        """
        if self._state != "new":
            raise RuntimeError("The response has been started before.")
        code: Any = status
        if not isinstance(code, int) or not 200 <= code <= 599:
            raise ValueError("The status of a response must be between 200 and 599.")
        pairs = [(str(name), str(value)) for name, value in (headers or {}).items()]
        self._state = "started"
        self._send("start", status, pairs)

    def write(self, chunk: Chunk) -> None:
        """Send text or bytes, starting with status 200 if nothing has been started.

        Raises :class:`RuntimeError` after the end, :class:`TypeError` for anything else.
        """
        if self._state == "ended":
            raise RuntimeError("The response has been ended before.")
        if isinstance(chunk, str):
            chunk = chunk.encode("utf-8", "replace")
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise TypeError(f"A chunk must be text or bytes, not {type(chunk).__name__}.")
        if self._state == "new":
            self.start_streaming()
        body = bytes(chunk)
        for start in range(0, len(body), _CHUNK_BYTES):
            self._send("write", body=body[start : start + _CHUNK_BYTES])

    def end(self, chunk: Chunk | None = None) -> None:
        """End the answer; the Bot may go on, unseen. Further calls do nothing."""
        if self._state == "ended":
            return
        if chunk is not None:
            self.write(chunk)
        if self._state == "new":
            self.start_streaming()
        self._state = "ended"
        self._send("end")

    def _put(self, part: Any) -> None:
        """Write what a handler has yielded."""
        if isinstance(part, Response):
            self.start_streaming(part.status, part.headers)
            part = part.body
        self.write(part)

    def _send(
        self, part: Part, status: int = 200, headers: list[tuple[str, str]] | None = None, body: bytes = b""
    ) -> None:
        raise NotImplementedError


class CollectedStream(ResponseStream):
    """Keeps the parts: for tests, and for callers who take the answer in one piece."""

    def __init__(self) -> None:
        super().__init__()
        self._status = 200
        self._headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        """What was written, piece by piece."""

    @property
    def response(self) -> Response:
        """The whole answer, names of headers in lower case."""
        return Response(self._status, {"content-type": EVENT_STREAM} | self._headers, b"".join(self.chunks))

    def _send(
        self, part: Part, status: int = 200, headers: list[tuple[str, str]] | None = None, body: bytes = b""
    ) -> None:
        if part == "start":
            self._status, self._headers = status, {name.lower(): value for name, value in headers or []}
        elif part == "write":
            self.chunks.append(body)


def written_out(handler: Handler) -> Handler:
    """A handler that yields its answer, as one that writes it; any other handler as it is.

    What it yields is text or bytes; the first may be a :class:`~fhirbots.transport.Response`, for status and headers. Where
    nothing is streamed, the whole is returned as a ``Response``.
    """
    function = function_of(handler)
    if inspect.isasyncgenfunction(function):

        async def write(medplum: Any, event: Any) -> Response | None:
            stream = event.response_stream or CollectedStream()
            parts: AsyncIterator[Any] = handler(medplum, event)
            async with aclosing(parts):  # type: ignore[type-var]  # it is a generator
                async for part in parts:
                    stream._put(part)
            return _ended(stream)

        return write
    if inspect.isgeneratorfunction(function):

        def write_now(medplum: Any, event: Any) -> Response | None:
            stream = event.response_stream or CollectedStream()
            with closing(handler(medplum, event)) as parts:
                for part in parts:
                    stream._put(part)
            return _ended(stream)

        return write_now
    return handler


def _ended(stream: ResponseStream) -> Response | None:
    stream.end()
    return stream.response if isinstance(stream, CollectedStream) else None
