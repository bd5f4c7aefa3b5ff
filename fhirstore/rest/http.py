"""Between Django and the router: headers, bodies, ids of requests, and what every answer of the API carries."""

from __future__ import annotations

import functools
import re
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Final

import orjson
from django.conf import settings
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt

from fhirstore.auth.identities import authenticate
from fhirstore.errors import (
    FhirError,
    bad_request,
    content_too_large,
    method_not_allowed,
    server_error,
    unauthorized,
    unsupported_media_type,
)
from fhirstore.repository import Repository
from fhirstore.rest.limits import CHUNK, MAX_MEMORY, binary_limit, json_limit
from fhirstore.rest.messages import JSON, FhirResponse
from fhirstore.rest.response import respond_error
from fhirstore.rest.router import log_failure

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_AMAZON_TRACE = re.compile(r"(?:^|;)Root=1-([0-9a-f]{8})-([0-9a-f]{24})(?:;|$)")
_BASIC_PROMPT: Final = "_medplum-prompt-basic-auth"


# --- requests ---------------------------------------------------------------------------------------------------------


def read_headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """The request's headers by lower-case name."""
    headers = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    if content_type := environ.get("CONTENT_TYPE"):
        headers["content-type"] = content_type
    return headers


def read_body(request: HttpRequest, headers: Mapping[str, str]) -> bytes:
    """Return the body, decompressed.

    Args:
        request: Django's request, nothing of whose body has been read.
        headers: of the request.

    Raises:
        FhirError: 413 for a body above the limit (before or after decompression), 415 for an unknown encoding, 400 for
            a damaged one, or one that ends early.
    """
    return b"".join(_chunks(request, headers, json_limit()))


def read_content(request: HttpRequest, headers: Mapping[str, str]) -> IO[bytes]:
    """Return the body, decompressed, as a file: in memory as long as it is small, else a nameless one on disk.

    Raises: as :func:`read_body`, but the limit is that of Binaries.
    """
    content: IO[bytes] = tempfile.SpooledTemporaryFile(MAX_MEMORY)  # noqa: SIM115  the caller closes it
    try:
        for chunk in _chunks(request, headers, binary_limit()):
            content.write(chunk)
    except BaseException:
        content.close()
        raise
    content.seek(0)
    return content


def _chunks(request: HttpRequest, headers: Mapping[str, str], limit: int) -> Iterator[bytes]:
    """The body in pieces, decompressed."""
    chunks = _decompressed(_sent(request, headers, limit), headers.get("content-encoding", "").lower())
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        yield chunk


def _sent(request: HttpRequest, headers: Mapping[str, str], limit: int) -> Iterator[bytes]:
    """The body in pieces, as it was sent."""
    length = str(request.META.get("CONTENT_LENGTH") or "0")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        # Django takes a request without Content-Length as one without body.
        source: Any = request.environ["wsgi.input"]  # type: ignore[attr-defined]
        expected = None
    elif not (length.isascii() and length.isdigit()):
        raise bad_request("Invalid Content-Length")
    elif int(length) > limit:
        raise _too_large(limit)
    else:
        source, expected = request, int(length)
    left = limit + 1 if expected is None else expected
    while left > 0:
        chunk: bytes = source.read(min(left, CHUNK))
        if not chunk:
            break
        left -= len(chunk)
        yield chunk
    if expected is not None and left:
        raise bad_request("The request body ended early")


def _decompressed(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    if encoding in ("", "identity"):
        yield from chunks
        return
    if encoding not in ("gzip", "deflate"):
        raise unsupported_media_type(f"Unsupported content encoding: {encoding}. Use gzip or deflate")
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32 if encoding == "gzip" else zlib.MAX_WBITS)
    empty = True
    try:
        for chunk in chunks:
            empty = False
            rest = chunk
            while rest and not decompressor.eof:
                yield decompressor.decompress(rest, CHUNK)
                rest = decompressor.unconsumed_tail
        yield decompressor.flush()
    except zlib.error:
        raise bad_request(f"The request body is not valid {encoding}") from None
    if not (decompressor.eof or empty):
        raise bad_request(f"The request body is not valid {encoding}")


def form_too_large() -> FhirError:
    """For what Django itself reads: forms, and the JSON of the endpoints beside FHIR."""
    limits = (
        f"{settings.DATA_UPLOAD_MAX_MEMORY_SIZE} bytes and {settings.DATA_UPLOAD_MAX_NUMBER_FIELDS} fields"
    )
    return content_too_large(f"Request body too large: the limit is {limits}")


def _too_large(limit: int) -> FhirError:
    return content_too_large(f"Request body too large: the limit is {limit} bytes")


def trace_id(headers: Mapping[str, str]) -> str:
    """The trace a request belongs to: ``X-Trace-Id`` (a UUID), the trace of ``traceparent`` or ``X-Amzn-Trace-Id``, else a new one."""
    given = headers.get("x-trace-id")
    if given and _UUID.fullmatch(given):
        return given.lower()
    parent = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if parent:
        return str(uuid.UUID(parent[1]))
    amazon = _AMAZON_TRACE.search(headers.get("x-amzn-trace-id", ""))
    return str(uuid.UUID(amazon[1] + amazon[2]) if amazon else uuid.uuid4())


def repository_of(request: HttpRequest, headers: Mapping[str, str], trace: str) -> Repository:
    """The Repository of whoever sends the request; a call from inside the process (`site.py`) has brought its own.

    Raises:
        FhirError: 401 with ``WWW-Authenticate``.
    """
    known: Repository | None = getattr(request, "repository", None)
    if known is not None:
        return known
    authorization, address = headers.get("authorization", ""), request.META.get("REMOTE_ADDR", "")
    try:
        if not authorization:
            raise unauthorized()
        return Repository(authenticate(authorization, headers, address), trace_id=trace)
    except FhirError as error:
        if error.status == 401:
            basic = authorization[:6].lower() == "basic " or _BASIC_PROMPT in request.META.get(
                "QUERY_STRING", ""
            )
            error.headers["WWW-Authenticate"] = (
                f'{"Basic" if basic else "Bearer"} realm="{settings.BASE_URL}"'
            )
        raise


# --- answers ----------------------------------------------------------------------------------------------------------


def to_django(answer: FhirResponse) -> HttpResponseBase:
    """The answer as Django's response."""
    if answer.stream is not None:
        return StreamingHttpResponse(answer.stream, status=answer.status, headers=answer.headers)
    return HttpResponse(answer.body, status=answer.status, headers=answer.headers)


def json_response(value: Any, status: int = 200) -> HttpResponse:
    """Plain JSON, as the endpoints beside FHIR answer."""
    return HttpResponse(orjson.dumps(value), status=status, headers={"content-type": JSON})


def refusing(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Make every failure of a view an OperationOutcome; it is called with `headers`, `request_id` and `trace` besides."""

    @csrf_exempt
    @functools.wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        headers = read_headers(request.META)
        request_id, trace = str(uuid.uuid4()), trace_id(headers)
        try:
            return view(request, *args, headers=headers, request_id=request_id, trace=trace, **kwargs)
        except FhirError as error:
            return to_django(respond_error(error, request_id, trace))
        except (RequestDataTooBig, TooManyFieldsSent):
            return to_django(respond_error(form_too_large(), request_id, trace))
        except Exception as error:  # noqa: BLE001  (the border of the API: a client never sees a bare failure)
            log_failure(request_id, error)
            return to_django(respond_error(server_error(request_id), request_id, trace))

    return wrapped


def endpoint(
    *methods: str, public: bool = False
) -> Callable[[Callable[..., HttpResponseBase]], Callable[..., HttpResponseBase]]:
    """Make a view an endpoint beside FHIR.

    Args:
        methods: the HTTP methods it takes.
        public: it needs no login. Otherwise its second argument is the caller's Repository.
    """

    def decorate(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        @refusing
        @functools.wraps(view)
        def wrapped(
            request: HttpRequest, *, headers: dict[str, str], request_id: str, trace: str, **kwargs: Any
        ) -> HttpResponseBase:
            if request.method not in methods and not (request.method == "HEAD" and "GET" in methods):
                raise method_not_allowed(methods)
            if public:
                return view(request, **kwargs)
            return view(request, repository_of(request, headers, trace), **kwargs)

        # what openapi.py tells of it
        wrapped.methods, wrapped.public = methods, public  # type: ignore[attr-defined]
        return wrapped

    return decorate
