"""The way out: what Bots, and Subscriptions with a URL, send to other servers (docs/network.md).

A bot process has no network. Its ``fetch`` asks this module, which sends the request itself, under rules:

* **Who may be asked.** A Bot reaches the hosts that its Project allows (setting ``botAllowedHosts``) or the Bot itself
  (extension :data:`ALLOWED_HOST`), and nobody else. https unless a rule says ``http://``.
* **Which machine that is.** A name is resolved once, every address it has is checked, and the connection goes to a checked
  address: no second look-up that could answer differently (DNS rebinding). Addresses that are not public (private, loopback,
  link-local with the metadata services of clouds, …) are refused unless the operator names the host or network in
  ``FHIRBOTS_PRIVATE_HOSTS``. Each hop of a redirect is checked like the first.
* **How much.** Time, size and number are limited; proxies of the server's environment are not used.

:func:`exchange` is one request with a streamed answer, :func:`send` one with the whole answer; :class:`Outlet` is what one run
sends, in threads of its own, with a record of each exchange that holds neither path nor content.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import itertools
import re
import socket
import ssl
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import brotli
import httpcore
import httpx
from django.conf import settings

from bots.sandbox.api import HostPart, HostRequest, HostResponse
from fhirstore.api import Repository, bad_request, forbidden

ALLOWED_HOST: Final = "urn:fhirbots:allowed-host"
"""Extension of a Bot (valueString, repeats): a further host it may reach."""
SETTING: Final = "botAllowedHosts"
"""``Project.setting`` (valueString) with the hosts all Bots of the Project may reach, by comma or space."""

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_RESPONSE_BYTES: Final = 32 * 1024 * 1024
"""Decoded bytes of an answer."""
MAX_HEADER_CHARS: Final = 64 * 1024
MAX_HEADERS: Final = 200
MAX_REDIRECTS: Final = 10
MAX_EXCHANGES: Final = 1000
"""Requests of one run."""
MAX_PARALLEL: Final = 8
"""Requests of one run at the same time; more wait."""
CONNECT_SECONDS: Final = 10.0
CHUNK: Final = 64 * 1024
"""Decoded bytes that are made at once, however much an encoded piece stands for."""
_CHUNKS_WAITING: Final = 4

_NOT_OURS: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that the connection decides, not the sender."""
_SECRET_HEADERS: Final = frozenset(
    {"authorization", "cookie", "proxy-authorization", "x-api-key", "x-signature"}
)
_RULE = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?/?",
    re.IGNORECASE,
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_UNICAST: Final = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is handed out for the internet; what Python calls global beside it is local (fec0::/10, 64:ff9b:1::/48) or old."""
_DOCUMENTATION: Final = ipaddress.ip_network("3fff::/20")
_PROTOCOL_ASSIGNMENTS: Final = ipaddress.ip_network("192.0.0.0/24")
"""Oracle's metadata service is there; older Pythons call a part of it global."""
_PUBLIC_BUT_METADATA: Final = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Azure's wire server has a public address."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class EgressError(Exception):
    """A request that was refused, or got no answer; the message is for the author of the Bot.

    ``kind`` is ``refused`` (by a rule of ours), ``unreachable``, ``timeout``, ``too-large``, or ``aborted``.
    """

    def __init__(self, message: str, kind: str = "refused") -> None:
        super().__init__(message)
        self.kind = kind


# --- rules -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostRule:
    """A host that may be asked: ``api.example.com``, ``*.example.com``, ``*``, with ``http://`` and ``:port`` if wanted."""

    host: str
    scheme: str = "https"
    port: int | None = None
    """None is the usual one of the scheme."""

    @classmethod
    def parse(cls, text: str) -> HostRule:
        """Read a rule; raises ValueError with a sentence."""
        found = _RULE.fullmatch(text.strip())
        port = int(found["port"]) if found and found["port"] else None
        if found is None or port == 0 or (port or 0) > 65535:
            raise ValueError(
                f"{text!r} is not a host. Write api.example.com, *.example.com, api.example.com:8443, or http://host for a "
                "server without TLS"
            )
        host = found["host"].lower().strip("[]")
        return cls(host, (found["scheme"] or "https").lower(), port)

    def allows(self, url: httpx.URL) -> bool:
        """Is this the host of a URL? ``*.example.com`` are all names below, not ``example.com`` itself."""
        port = self.port or (443 if self.scheme == "https" else 80)
        if url.scheme != self.scheme or _port(url) != port:
            return False
        host = _host(url)
        if self.host == "*":
            return True
        return host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may be asked: the rules' hosts, or with None any host that is public."""

    rules: tuple[HostRule, ...] | None = None

    def check(self, url: httpx.URL) -> None:
        """Raises EgressError unless the URL may be asked, as far as its text tells."""
        if url.scheme not in ("http", "https") or not url.host:
            raise EgressError(
                f"fetch to {url.scheme or 'this'}: addresses is not possible: only http and https are"
            )
        if url.userinfo:
            raise EgressError(
                "The address holds a user name or password: send an Authorization header instead"
            )
        if self.rules is None or any(rule.allows(url) for rule in self.rules):
            return
        rule = _rule_text(url)
        raise EgressError(
            f"fetch to {_host(url)} is not allowed. A project admin can allow it: add {rule} to the Project's setting "
            f"{SETTING}, or to this Bot's allowed hosts (extension {ALLOWED_HOST})"
        )

    def names(self, url: httpx.URL) -> bool:
        """True if a rule names the very host of a URL, not by ``*``."""
        return any(rule.host == _host(url) and rule.allows(url) for rule in self.rules or ())


def parse_rules(texts: Iterable[str]) -> tuple[HostRule, ...]:
    """Read rules; raises ValueError for the first that is none."""
    return tuple(HostRule.parse(text) for text in texts)


def policy_of(project: Mapping[str, Any], bot: Mapping[str, Any]) -> Policy:
    """Return what a Bot may ask: the rules of its Project and its own. What is no rule allows nothing."""
    rules = []
    for text in (*project_hosts(project), *bot_hosts(bot)):
        with contextlib.suppress(ValueError):
            rules.append(HostRule.parse(text))
    return Policy(tuple(rules))


def project_hosts(project: Mapping[str, Any]) -> list[str]:
    """The rules of a Project as written."""
    found: list[str] = []
    for setting in project.get("setting") or ():
        if setting.get("name") == SETTING:
            found += re.split(r"[\s,]+", str(setting.get("valueString") or "").strip())
    return [text for text in found if text]


def bot_hosts(bot: Mapping[str, Any]) -> list[str]:
    """The rules of a Bot as written."""
    extensions = bot.get("extension") or ()
    return [str(each.get("valueString") or "") for each in extensions if each.get("url") == ALLOWED_HOST]


def with_bot_hosts(bot: Mapping[str, Any], rules: Sequence[str]) -> dict[str, Any]:
    """The Bot with other rules."""
    kept = [each for each in bot.get("extension") or () if each.get("url") != ALLOWED_HOST]
    kept += [{"url": ALLOWED_HOST, "valueString": rule} for rule in rules]
    changed = {name: value for name, value in bot.items() if name != "extension"}
    return changed | ({"extension": kept} if kept else {})


def check_project(_repository: Repository, project: dict[str, Any], _previous: dict[str, Any] | None) -> None:
    """Hook before a Project is written: raises FhirError for a host rule that is none."""
    _check_rules(project_hosts(project), "Project.setting")


def check_bot(repository: Repository, bot: dict[str, Any], previous: dict[str, Any] | None) -> None:
    """Hook before a Bot is written: its hosts are an admin's business. Raises FhirError, 403 or 400."""
    hosts = bot_hosts(bot)
    if hosts == bot_hosts(previous or {}):
        return
    if not repository.identity.is_admin:
        raise forbidden("Only a project admin may change the hosts a Bot may reach")
    _check_rules(hosts, "Bot.extension")


def _check_rules(texts: list[str], expression: str) -> None:
    try:
        parse_rules(texts)
    except ValueError as error:
        raise bad_request(str(error), expression) from None


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii").lower().strip("[]").rstrip(".")


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _rule_text(url: httpx.URL) -> str:
    host = f"[{_host(url)}]" if ":" in _host(url) else _host(url)
    port = f":{url.port}" if url.port else ""
    return f"{'http://' if url.scheme == 'http' else ''}{host}{port}"


# --- addresses -------------------------------------------------------------------------------------------------------


def is_public(address: Address) -> bool:
    """Is this an address of the public internet, also as far as it carries another one inside?"""
    if not address.is_global or address.is_multicast or address in _PUBLIC_BUT_METADATA:
        return False
    if address.version == 4 and address in _PROTOCOL_ASSIGNMENTS:
        return False
    inside = _embedded(address)
    if address.version == 6 and not inside and (address not in _UNICAST or address in _DOCUMENTATION):
        return False
    return all(is_public(inner) for inner in inside)


def _embedded(address: Address) -> list[Address]:
    """IPv4 addresses that a version 6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]


def _is_never_allowed(address: Address) -> bool:
    """Link-local addresses (with them the clouds' metadata), and those that are no machine: no setting opens them."""
    inner = _embedded(address)
    if inner:
        return any(map(_is_never_allowed, inner))
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in _PUBLIC_BUT_METADATA
        or address == ipaddress.ip_address("fd00:ec2::254")
    )


@functools.lru_cache(maxsize=8)
def _private_rules(
    entries: tuple[str, ...],
) -> tuple[frozenset[str], tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]]:
    """FHIRBOTS_PRIVATE_HOSTS as names (with a port or without) and networks."""
    names, networks = set(), []
    for entry in entries:
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            names.add(entry.lower())
    return frozenset(names), tuple(networks)


def _is_opened(host: str, port: int, address: Address) -> bool:
    """Has the operator named the host, or a network with the address, in FHIRBOTS_PRIVATE_HOSTS?"""
    if _is_never_allowed(address):
        return False
    names, networks = _private_rules(tuple(settings.PRIVATE_HOSTS))
    if host in names or f"{host}:{port}" in names:
        return True
    return any(address.version == network.version and address in network for network in networks)


def check_address(host: str, port: int) -> list[str]:
    """Resolve a host and return its addresses, all of which may be connected to.

    Raises EgressError: ``unreachable`` when the name does not resolve, ``refused`` when any of its addresses is not public
    and not opened by the operator.
    """
    host = host.rstrip(".").lower()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise EgressError(f"The host {host} is not known", "unreachable") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not is_public(address) and not _is_opened(host, port, address):
            raise EgressError(
                f"fetch to {host} is not allowed: its address is not on the public internet. The operator of the server can "
                "open it with FHIRBOTS_PRIVATE_HOSTS"
            )
    return addresses


# --- connections -----------------------------------------------------------------------------------------------------


class Deadline:
    """When an exchange must be over, and a way to end it at once from another thread."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.aborted = False

    def left(self, at_most: float | None = None) -> float:
        """Seconds left; raises httpcore.ReadTimeout when there are none."""
        left = self._end - time.monotonic()
        if left <= 0 or self.aborted:
            raise httpcore.ReadTimeout
        return left if at_most is None else min(left, at_most)

    def watch(self, connection: socket.socket | None) -> None:
        with self._lock:
            self._socket = connection

    def abort(self) -> None:
        self.aborted = True
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it


class _Stream(httpcore.NetworkStream):
    """A connection whose every step ends by the deadline, however slowly the other side drips."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline
        deadline.watch(inner.get_extra_info("socket"))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._deadline.watch(None)
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        tls = self._inner.start_tls(ssl_context, server_hostname, self._deadline.left(timeout))
        return _Stream(tls, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Connects to checked addresses only."""

    def __init__(self, deadline: Deadline) -> None:
        self._inner = httpcore.SyncBackend()
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError("no address")
        for address in check_address(host, port):
            try:
                left = self._deadline.left(CONNECT_SECONDS)
                return _Stream(self._inner.connect_tcp(address, port, left), self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise EgressError("no sockets of the machine")


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class _Transport(httpx.BaseTransport):
    """httpx over connections of :class:`_Backend`, each used once."""

    def __init__(self, deadline: Deadline) -> None:
        self._pool = httpcore.ConnectionPool(
            _ssl_context(), max_connections=1, max_keepalive_connections=0, network_backend=_Backend(deadline)
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        response = self._pool.handle_request(
            httpcore.Request(
                request.method,
                url,
                headers=request.headers.raw,
                content=request.read(),
                extensions=request.extensions,
            )
        )
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response))

    def close(self) -> None:
        self._pool.close()


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    # SSL_CERT_FILE and SSL_CERT_DIR name an operator's own authorities
    return httpx.create_ssl_context()


# --- one exchange ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Incoming:
    """An answer whose content is still on its way."""

    status: int
    headers: list[tuple[str, str]]
    """As received, without those that describe the transport; lower-case names, set-cookie may repeat."""
    url: str
    redirected: bool
    chunks: Iterator[bytes]
    """The decoded content. Raises EgressError when it breaks off, takes too long, or is too large."""


@contextlib.contextmanager
def exchange(request: HostRequest, policy: Policy, deadline: Deadline) -> Iterator[Incoming]:
    """Send a request and follow its redirects as ``request.redirect`` says; the answer is read inside the block.

    Raises EgressError for all that keeps it from being sent or answered.
    """
    with _as_egress_error(deadline), contextlib.ExitStack() as stack:
        hop = _prepared(request)
        client = stack.enter_context(
            httpx.Client(transport=_Transport(deadline), trust_env=False, timeout=deadline.left())
        )
        for number in range(MAX_REDIRECTS + 1):
            policy.check(hop.url)
            response = client.send(hop, stream=True)
            stack.callback(response.close)
            _check_headers(response)
            target = _redirect(hop, response)
            if target is None or request.redirect == "manual":
                yield Incoming(
                    response.status_code,
                    _kept(response),
                    str(hop.url),
                    number > 0,
                    _limited(response, hop, deadline),
                )
                return
            if request.redirect == "error":
                raise EgressError(f"{_host(hop.url)} answered with a redirect", "unreachable")
            if hop.url.scheme == "https" and target.url.scheme == "http":
                raise EgressError(f"{_host(hop.url)} redirects to an address without encryption")
            response.close()
            hop = target
        raise EgressError(f"More than {MAX_REDIRECTS} redirects", "unreachable")


def send(
    request: HostRequest, policy: Policy, *, seconds: float = 30.0, max_bytes: int = MAX_RESPONSE_BYTES
) -> HostResponse:
    """Send a request and return the whole answer; raises EgressError."""
    content = bytearray()
    with exchange(request, policy, Deadline(seconds)) as incoming:
        for chunk in incoming.chunks:
            content += chunk
            if len(content) > max_bytes:
                raise EgressError(f"The answer is larger than {max_bytes} bytes", "too-large")
        return HostResponse(incoming.status, dict(incoming.headers), bytes(content))


@contextlib.contextmanager
def _as_egress_error(deadline: Deadline) -> Iterator[None]:
    try:
        yield
    except EgressError:
        raise
    except (httpx.TimeoutException, httpcore.TimeoutException):
        kind = "aborted" if deadline.aborted else "timeout"
        raise EgressError("The server did not answer in time", kind) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise EgressError("The address of the request is not valid") from None
    except (zlib.error, brotli.error):
        raise EgressError("The answer is damaged: its content encoding does not fit", "unreachable") from None
    except (httpx.HTTPError, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        kind = "aborted" if deadline.aborted else "unreachable"
        raise EgressError(f"The server could not be reached ({_reason(error)})", kind) from None


def _reason(error: BaseException) -> str:
    """What went wrong, without anything of the request."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _prepared(request: HostRequest) -> httpx.Request:
    if request.method not in METHODS:
        raise EgressError(
            f"The method {request.method[:20]} is not possible; {', '.join(sorted(METHODS))} are"
        )
    headers = {name: value for name, value in request.headers.items() if not _is_ours(name)}
    if (
        len(headers) > MAX_HEADERS
        or sum(len(name) + len(value) for name, value in headers.items()) > MAX_HEADER_CHARS
    ):
        raise EgressError(
            f"The request has more than {MAX_HEADERS} headers or {MAX_HEADER_CHARS} characters of them"
        )
    headers.setdefault("user-agent", "fhirbots")
    headers.setdefault("accept", "*/*")
    headers.setdefault("accept-encoding", "gzip, deflate, br")
    try:
        return httpx.Request(request.method, request.url, headers=headers, content=request.body or None)
    except (ValueError, TypeError) as error:  # a header that is no ASCII, a host that is no name
        raise EgressError("The address or a header of the request is not valid") from error


def _is_ours(name: str) -> bool:
    return name in _NOT_OURS or name.startswith("proxy-")


def _check_headers(response: httpx.Response) -> None:
    raw = response.headers.raw
    if len(raw) > MAX_HEADERS or sum(len(name) + len(value) for name, value in raw) > MAX_HEADER_CHARS:
        raise EgressError("The answer has too many headers", "too-large")


def _redirect(hop: httpx.Request, response: httpx.Response) -> httpx.Request | None:
    """The request that follows a redirect (Fetch standard, HTTP-redirect fetch); None where there is none to follow."""
    location = response.headers.get("location")
    if response.status_code not in (301, 302, 303, 307, 308) or location is None:
        return None
    url = hop.url.join(location)
    if not url.fragment:
        url = url.copy_with(fragment=hop.url.fragment or None)
    drop = {"content-length", "host", "transfer-encoding"}
    if (url.scheme, url.host, _port(url)) != (hop.url.scheme, hop.url.host, _port(hop.url)):
        drop |= _SECRET_HEADERS
    method, content = hop.method, hop.read()
    becomes_get = (response.status_code == 303 and method != "HEAD") or (
        response.status_code in (301, 302) and method == "POST"
    )
    if becomes_get:
        method, content = "GET", b""
        drop |= {"content-type", "content-encoding", "content-language", "content-location"}
    headers = [(name, value) for name, value in hop.headers.multi_items() if name not in drop]
    return httpx.Request(method, url, headers=headers, content=content or None)


def _kept(response: httpx.Response) -> list[tuple[str, str]]:
    decoded = {"content-encoding", "content-length"} if "content-encoding" in response.headers else set()
    return [
        (name, value)
        for name, value in response.headers.multi_items()
        if name not in decoded and (name == "content-length" or not _is_ours(name))
    ]


def _limited(response: httpx.Response, hop: httpx.Request, deadline: Deadline) -> Iterator[bytes]:
    """The content; the connection is of use only until the exchange's block ends."""
    size = 0
    if hop.method == "HEAD":
        return
    with _as_egress_error(deadline):
        for chunk in filter(None, _decoded(response)):
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                raise EgressError(f"The answer is larger than {MAX_RESPONSE_BYTES} bytes", "too-large")
            yield chunk


def _decoded(response: httpx.Response) -> Iterator[bytes]:
    """The content without its encoding; an unknown encoding stays, as browsers leave it.

    httpx would decode each piece as a whole, and a few kilobytes can stand for gigabytes.
    """
    names = [name.strip().lower() for name in response.headers.get("content-encoding", "").split(",")]
    decoders = [_DECODERS[name] for name in names if name in _DECODERS]
    if len(decoders) > 1:
        raise EgressError("The answer is encoded more than once", "too-large")
    return decoders[0](response.iter_raw()) if decoders else response.iter_raw()


def _inflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """gzip, or deflate as it should be, or as some servers misunderstand it: without a head."""
    first = next(chunks, b"")
    headed = first[:1] == b"\x1f" or (len(first) > 1 and int.from_bytes(first[:2]) % 31 == 0)
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32 if headed else -zlib.MAX_WBITS)
    for chunk in itertools.chain((first,), chunks):
        rest = chunk
        while rest and not decompressor.eof:
            yield decompressor.decompress(rest, CHUNK)
            rest = decompressor.unconsumed_tail
    yield decompressor.flush()


def _unbrotlied(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decompressor = brotli.Decompressor()
    for chunk in chunks:
        yield decompressor.process(chunk, output_buffer_limit=CHUNK)
        while not decompressor.can_accept_more_data():
            yield decompressor.process(b"", output_buffer_limit=CHUNK)


_DECODERS: Final[dict[str, Callable[[Iterator[bytes]], Iterator[bytes]]]] = {
    "gzip": _inflated,
    "x-gzip": _inflated,
    "deflate": _inflated,
    "br": _unbrotlied,
}


# --- the exchanges of a run ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is kept of a request to another server: never its path, query, headers or content."""

    host: str
    method: str
    status: int | None
    """None where there was no answer."""
    duration_ms: float
    sent: int
    """Bytes of the request's body."""
    received: int
    """Decoded bytes of the answer."""
    error: str | None = None
    """None, or the ``kind`` of the EgressError."""


class Outlet:
    """What one run sends to other servers."""

    def __init__(self, policy: Policy, seconds: float) -> None:
        """``seconds`` is the longest an exchange may take."""
        self._policy = policy
        self._seconds = seconds
        self._lock = threading.Lock()
        self._waiting: deque[Fetch] = deque()
        self._running = 0
        self._fetches: list[Fetch] = []
        self._over = False

    def fetch(self, asked: HostRequest) -> HostResponse | Fetch:
        """Answer a request of the Bot: a refusal, or an answer that comes in parts."""
        with self._lock:
            if len(self._fetches) >= MAX_EXCHANGES:
                return HostResponse(error=f"A run may send at most {MAX_EXCHANGES} requests to other servers")
            made = Fetch(self, asked, self._policy, self._seconds)
            self._fetches.append(made)
            return made

    def names(self, url: str) -> bool:
        """True if a rule names the very host of a URL, not by ``*``."""
        with contextlib.suppress(httpx.InvalidURL, ValueError):
            return self._policy.names(httpx.URL(url))
        return False

    def close(self) -> tuple[Exchange, ...]:
        """End what is still running; returns the record of all exchanges, in the order they were asked for."""
        with self._lock:
            self._over = True
            self._waiting.clear()
            fetches = list(self._fetches)
        for fetch in fetches:
            fetch.cancel()
        return tuple(fetch.record() for fetch in fetches)

    def schedule(self, fetch: Fetch) -> None:
        """Run an exchange as soon as fewer than :data:`MAX_PARALLEL` of this run are under way."""
        with self._lock:
            if self._over:
                return
            if self._running >= MAX_PARALLEL:
                self._waiting.append(fetch)
                return
            self._running += 1
        _threads().submit(self._work, fetch)

    def _work(self, fetch: Fetch | None) -> None:
        while fetch is not None:
            fetch.run()
            with self._lock:
                fetch = self._waiting.popleft() if self._waiting else None
                self._running -= fetch is None


class Fetch:
    """An exchange of a Bot, made by a thread of its own: a :class:`~bots.sandbox.model.HostStream`."""

    def __init__(self, outlet: Outlet, request: HostRequest, policy: Policy, seconds: float) -> None:
        self._outlet = outlet
        self._request = request
        self._policy = policy
        self._seconds = seconds
        self._changed = threading.Condition()
        self._parts: deque[HostPart] = deque()
        self._ready: Callable[[], None] = lambda: None
        self._deadline: Deadline | None = None
        self._cancelled = False
        self._started = self._ended = time.monotonic()
        self._is_over = False
        self._status: int | None = None
        self._received = 0
        self._error: str | None = None

    def begin(self, ready: Callable[[], None]) -> None:
        """Start; ``ready`` is called by another thread whenever there is something to :meth:`take`."""
        self._ready = ready
        self._started = time.monotonic()
        self._outlet.schedule(self)

    def take(self) -> Sequence[HostPart]:
        """Return the parts that have come since the last call."""
        with self._changed:
            taken = tuple(self._parts)
            self._parts.clear()
            self._changed.notify_all()
            return taken

    def cancel(self) -> None:
        """End it: nobody waits for the answer any more."""
        with self._changed:
            self._cancelled = True
            deadline = self._deadline
            self._changed.notify_all()
        if deadline is not None:
            deadline.abort()

    def record(self) -> Exchange:
        """What is kept of it."""
        try:
            host = _host(httpx.URL(self._request.url))
        except (httpx.InvalidURL, ValueError):
            host = ""
        with self._changed:
            ended = self._ended if self._is_over else time.monotonic()
            return Exchange(
                host=host[:255],
                method=self._request.method[:20],
                status=self._status,
                duration_ms=round((ended - self._started) * 1000, 3),
                sent=len(self._request.body),
                received=self._received,
                error=self._error if self._is_over else "aborted",
            )

    def run(self) -> None:
        """Make the exchange, in the calling thread."""
        error: EgressError | None = None
        try:
            with self._changed:
                if self._cancelled:
                    raise EgressError("aborted", "aborted")
                self._deadline = Deadline(self._seconds)
            with exchange(self._request, self._policy, self._deadline) as incoming:
                self._status = incoming.status
                self._put(HostPart(head=incoming.status, headers=incoming.headers, url=incoming.url,
                                   redirected=incoming.redirected))  # fmt: skip
                for chunk in incoming.chunks:
                    self._received += len(chunk)
                    self._put(HostPart(body=chunk))
        except EgressError as failed:
            error = failed
        except Exception:  # noqa: BLE001  (the Bot waits for an answer, whatever a library does not say that it raises)
            error = EgressError("The request could not be sent", "unreachable")
        with self._changed:
            self._is_over = True
            self._ended = time.monotonic()
            self._error = error.kind if error else None
            self._parts.append(HostPart(end=True, error=str(error) if error else None))
        self._ready()

    def _put(self, part: HostPart) -> None:
        with self._changed:
            while len(self._parts) >= _CHUNKS_WAITING and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise EgressError("aborted", "aborted")
            self._parts.append(part)
        self._ready()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads for the exchanges of all runs of this process: enough that one project's slow server keeps nobody waiting."""
    return ThreadPoolExecutor(settings.WORKER_THREADS * MAX_PARALLEL, thread_name_prefix="egress")
