"""The rules of requests to other servers: which hosts, which addresses, how much. Pure, and against servers on loopback."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from bots import egress
from bots.egress import (
    MAX_PARALLEL,
    EgressError,
    Fetch,
    HostRule,
    Outlet,
    Policy,
    check_address,
    parse_rules,
    policy_of,
    send,
)
from bots.sandbox.api import HostRequest, HostResponse
from tests.bots.remote import Remote, running_remote

URL = httpx.URL


@pytest.mark.parametrize(
    ("rule", "url", "allowed"),
    [
        ("api.example.com", "https://api.example.com/x?y", True),
        ("api.example.com", "https://API.example.com./", True),
        ("api.example.com", "https://api.example.com:443/", True),
        ("api.example.com", "https://api.example.com:8443/", False),
        ("api.example.com", "http://api.example.com/", False),
        ("api.example.com", "https://xapi.example.com/", False),
        ("api.example.com", "https://api.example.com.evil.test/", False),
        ("api.example.com", "https://evil.test/api.example.com", False),
        ("api.example.com", "https://evil.test#api.example.com", False),
        ("api.example.com:8443", "https://api.example.com:8443/", True),
        ("http://api.example.com", "http://api.example.com/", True),
        ("http://api.example.com", "https://api.example.com/", False),
        ("*.example.com", "https://a.b.example.com/", True),
        ("*.example.com", "https://example.com/", False),
        ("*.example.com", "https://evilexample.com/", False),
        ("*", "https://anything.test/", True),
        ("*", "http://anything.test/", False),
        ("http://[::1]:8080", "http://[::1]:8080/", True),
        ("xn--bcher-kva.example", "https://bücher.example/", True),
    ],
)
def test_a_rule_allows_its_host_and_no_other(rule: str, url: str, allowed: bool) -> None:
    assert HostRule.parse(rule).allows(URL(url)) is allowed


@pytest.mark.parametrize("text", ["", "a b", "https://", "*.*.example.com", "a*.example.com", "ftp://x", "x/path", "user@x", "x:0", "x:99999"])  # fmt: skip
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        HostRule.parse(text)


def test_rules_come_from_the_project_and_from_the_bot() -> None:
    project = {"setting": [{"name": "other", "valueString": "x.test"}, {"name": "botAllowedHosts", "valueString": "a.test, *.b.test"}]}  # fmt: skip
    bot = {"extension": [{"url": egress.ALLOWED_HOST, "valueString": "c.test"}]}
    policy = policy_of(project, bot)
    for host in ("a.test", "x.b.test", "c.test"):
        policy.check(URL(f"https://{host}/"))
    with pytest.raises(EgressError, match=r"add x\.test to the Project's setting botAllowedHosts"):
        policy.check(URL("https://x.test/"))
    with pytest.raises(EgressError, match="not allowed"):
        policy_of({}, {}).check(URL("https://a.test/"))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200",
        "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.0.192", "198.18.0.1", "168.63.129.16", "240.0.0.1", "192.0.2.1",
        "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:db8::1", "fec0::1",
        "64:ff9b:1::a00:1", "::7f00:1", "::ffff:0:a00:1", "3fff::1", "4000::1", "2001:0:53aa:64c::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not egress.is_public(ipaddress.ip_address(address))
    with pytest.raises(EgressError, match="not on the public internet"):
        check_address(address, 443)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111"])
def test_addresses_that_are_public(address: str) -> None:
    assert egress.is_public(ipaddress.ip_address(address))
    assert check_address(address, 443) == [address]


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "LOCALHOST.", "[::1]"]
)
def test_other_spellings_of_loopback_are_refused(host: str) -> None:
    with pytest.raises(EgressError, match=r"not on the public internet|not known"):
        check_address(host.strip("[]"), 80)


def test_the_operator_opens_names_ports_and_networks_but_never_metadata(settings: Any) -> None:
    settings.PRIVATE_HOSTS = ["localhost:81", "10.1.0.0/16", "169.254.0.0/16", "fd00::/8"]
    assert "127.0.0.1" in check_address("localhost", 81)
    assert check_address("10.1.2.3", 80) == ["10.1.2.3"]
    assert check_address("fd00::1", 80) == ["fd00::1"]
    for host, port in (("localhost", 82), ("10.2.0.1", 80), ("169.254.169.254", 80), ("fd00:ec2::254", 80), ("127.0.0.1", 81)):  # fmt: skip
        with pytest.raises(EgressError, match="not on the public internet"):
            check_address(host, port)


# --- against servers --------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(settings: Any) -> Iterator[Remote]:
    """A server on loopback that the operator has opened as ``localhost``."""
    settings.PRIVATE_HOSTS = ["localhost"]
    with running_remote() as server:
        yield server


def ask(remote: Remote, path: str, method: str = "GET", body: bytes = b"", *, rules: tuple[str, ...] | None = None, redirect: str = "follow", seconds: float = 20, **headers: str) -> HostResponse:  # fmt: skip
    allowed = parse_rules(rules if rules is not None else (remote.rule,))
    url = remote.rule + path if path.startswith("/") else path
    return send(HostRequest(method, url, headers, body, redirect), Policy(allowed), seconds=seconds)


def test_an_exchange(remote: Remote) -> None:
    answer = ask(remote, "/some/path?q=1", "POST", b"content", **{"x-own": "1", "connection": "close", "host": "evil.test", "proxy-authorization": "x"})  # fmt: skip
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["content-type"] == "text/plain"
    ((method, path, headers, body),) = remote.seen
    assert (method, path, body) == ("POST", "/some/path?q=1", b"content")
    assert headers["x-own"] == "1"
    assert headers["host"] == f"localhost:{remote.port}"
    assert "proxy-authorization" not in headers


def test_encoded_answers_are_decoded_and_limited(remote: Remote) -> None:
    for path in ("/gzip", "/deflate", "/headless", "/brotli"):
        assert ask(remote, path).body == b"packed " * 1000
    assert ask(remote, "/unknown").body == b"plain"
    assert "content-encoding" not in ask(remote, "/gzip").headers
    with pytest.raises(EgressError, match="larger than"):
        ask(remote, "/bomb")
    with pytest.raises(EgressError, match="damaged"):
        ask(remote, "/damaged")
    with pytest.raises(EgressError, match="more than once"):
        ask(remote, "/twice")


def test_a_small_answer_that_stands_for_gigabytes_is_never_decoded_as_a_whole(remote: Remote) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(EgressError, match="larger than"):
            ask(remote, "/brotli-bomb")
        assert (
            tracemalloc.get_traced_memory()[1] < 3 * egress.MAX_RESPONSE_BYTES
        )  # the bytes it may have, while they grow
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "GET /x HTTP/1.1\r\nx: y"])
def test_other_methods_are_refused(remote: Remote, method: str) -> None:
    with pytest.raises(EgressError, match="method"):
        ask(remote, "/", method)
    assert remote.seen == []


@pytest.mark.parametrize("headers", [{"x\r\ny": "z"}, {"x": "y\r\nz: 1"}, {"x": "ü\n"}, {"x": "y" * 70_000}])
def test_bad_headers_are_refused(remote: Remote, headers: dict[str, str]) -> None:
    with pytest.raises(EgressError):
        ask(remote, "/", **headers)
    assert remote.seen == []


def test_redirects(remote: Remote) -> None:
    assert ask(remote, "/redirect?302,/end", "POST", b"x", authorization="Bearer t").body == b"hello"
    assert [(method, path, body) for method, path, _, body in remote.seen] == [("POST", "/redirect?302,/end", b"x"), ("GET", "/end", b"")]  # fmt: skip
    assert remote.seen[1][2]["authorization"] == "Bearer t"
    remote.seen.clear()
    assert ask(remote, "/redirect?307,/end", "PUT", b"x").body == b"hello"
    assert remote.seen[1][0::3] == ("PUT", b"x")
    assert ask(remote, "/redirect?302,/end", redirect="manual").status == 302
    with pytest.raises(EgressError, match="redirect"):
        ask(remote, "/redirect?302,/end", redirect="error")
    with pytest.raises(EgressError, match="More than 10 redirects"):
        ask(remote, "/loop")


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/", "http://169.254.169.254/latest/", "https://localhost:{port}/", "file:///etc/passwd", "http://[::1]:{port}/", "//evil.test/"])  # fmt: skip
def test_every_hop_of_a_redirect_is_checked(remote: Remote, target: str) -> None:
    with pytest.raises(EgressError):
        ask(remote, "/redirect?302," + target.format(port=remote.port))
    assert len(remote.seen) == 1


def test_credentials_do_not_follow_to_another_host(remote: Remote, settings: Any) -> None:
    settings.PRIVATE_HOSTS = ["localhost", "127.0.0.1"]
    rules = (f"http://localhost:{remote.port}", f"http://127.0.0.1:{remote.port}")
    ask(remote, f"/redirect?302,http://127.0.0.1:{remote.port}/", rules=rules, **{"authorization": "Bearer t", "cookie": "c", "x-api-key": "k", "x-signature": "s"})  # fmt: skip
    assert not {"authorization", "cookie", "x-api-key", "x-signature"} & set(remote.seen[1][2])


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the second answer of the name server would be loopback."""
    real, asked = socket.getaddrinfo, []

    def rebinding(host: Any, *args: Any, **more: Any) -> Any:
        if host != "rebind.test":
            return real(host, *args, **more)
        asked.append(host)
        return real("203.0.113.1" if len(asked) == 1 else "127.0.0.1", *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with pytest.raises(EgressError, match="not on the public internet"):
        ask(remote, f"http://rebind.test:{remote.port}/", rules=(f"http://rebind.test:{remote.port}",))
    asked.clear()
    monkeypatch.setattr(egress, "is_public", lambda address: str(address) == "203.0.113.1")
    with pytest.raises(EgressError):  # there is nobody at that address
        ask(remote, f"http://rebind.test:{remote.port}/", rules=(f"http://rebind.test:{remote.port}",), seconds=0.5)  # fmt: skip
    assert asked == ["rebind.test"]
    assert remote.seen == []


def test_the_servers_proxies_are_not_used(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(remote, "/").status == 200


def test_a_server_that_drips_is_left_at_the_deadline(remote: Remote) -> None:
    begun = time.monotonic()
    with pytest.raises(EgressError, match="in time"):
        ask(remote, "/drip", seconds=0.3)
    assert time.monotonic() - begun < 60  # it would go on for ever


def test_who_cannot_be_reached(settings: Any) -> None:
    settings.PRIVATE_HOSTS = ["localhost"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        rules = parse_rules((f"http://localhost:{port}", "nowhere.invalid"))
        with pytest.raises(EgressError, match="could not be reached"):
            send(HostRequest("GET", f"http://localhost:{port}/", {}, b""), Policy(rules))
        with pytest.raises(EgressError, match="not known"):
            send(HostRequest("GET", "https://nowhere.invalid/", {}, b""), Policy(rules))


@pytest.mark.parametrize("url", ["ftp://a.test/", "https:///x", "https://user:pw@a.test/", "https://a.test:99999/", "x", "https://a b/"])  # fmt: skip
def test_addresses_that_cannot_be_asked(url: str) -> None:
    with pytest.raises(EgressError):
        send(HostRequest("GET", url, {}, b""), Policy(parse_rules(("a.test",))))


# --- the exchanges of a run ------------------------------------------------------------------------------------------


def test_a_run_sends_only_some_requests_at_the_same_time(remote: Remote) -> None:
    outlet = Outlet(Policy(parse_rules((remote.rule,))), 30)
    ended = threading.Semaphore(0)
    count = MAX_PARALLEL + 4
    for _ in range(count):
        fetch = outlet.fetch(HostRequest("GET", f"{remote.rule}/wait", {}, b""))
        assert isinstance(fetch, Fetch)
        fetch.begin(lambda fetch=fetch: [ended.release() for part in fetch.take() if part.end])  # type: ignore[misc]
    for _ in range(MAX_PARALLEL):
        assert remote.waiting.acquire(timeout=20)
    assert len(remote.seen) == MAX_PARALLEL
    remote.gate.set()
    for _ in range(count):
        assert ended.acquire(timeout=20)
    records = outlet.close()
    assert [(each.host, each.status, each.received, each.error) for each in records] == [("localhost", 200, 6, None)] * count  # fmt: skip


def test_what_still_runs_when_a_run_ends_is_ended(remote: Remote) -> None:
    outlet = Outlet(Policy(parse_rules((remote.rule,))), 30)
    for _ in range(MAX_PARALLEL + 2):
        fetch = outlet.fetch(HostRequest("GET", f"{remote.rule}/wait", {}, b""))
        assert isinstance(fetch, Fetch)
        fetch.begin(lambda: None)
    for _ in range(MAX_PARALLEL):
        assert remote.waiting.acquire(timeout=20)
    assert {each.error for each in outlet.close()} == {"aborted"}
    assert len(remote.seen) == MAX_PARALLEL


def test_a_run_sends_a_limited_number_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "MAX_EXCHANGES", 2)
    outlet = Outlet(Policy(()), 30)
    asked = HostRequest("GET", "https://a.test/", {}, b"")
    assert [isinstance(outlet.fetch(asked), Fetch) for _ in range(3)] == [True, True, False]
