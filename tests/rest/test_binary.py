"""Binary: raw uploads and downloads, and presigned URLs."""

from __future__ import annotations

import base64
import gzip
from urllib.parse import urlsplit

import pytest
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from pytest_django import Settings

from fhirstore.api import handle_site_request
from tests.rest.conftest import Caller, smith, text_of

ORIGIN = "http://127.0.0.1:8000"


def content_of(answer: HttpResponseBase) -> bytes:
    """The body, streamed or not."""
    return b"".join(answer.streaming_content) if answer.streaming else answer.content  # type: ignore[attr-defined]


def upload(
    caller: Caller, content: bytes = b"hello", content_type: str = "text/plain", **headers: str
) -> HttpResponse:
    """Upload content; returns the answer."""
    answer = caller.send("POST", "Binary?_filename=a.txt", content, content_type=content_type, **headers)
    assert answer.status_code == 201, answer.content
    return answer


def test_an_upload_answers_the_binary_with_a_url(home: Caller) -> None:
    answer = upload(home)
    binary = answer.json()
    assert binary["resourceType"] == "Binary"
    assert binary["contentType"] == "text/plain"
    assert binary["url"].startswith(f"{ORIGIN}/storage/{binary['id']}/{binary['meta']['versionId']}?")
    assert answer["location"] == f"{ORIGIN}/fhir/R4/Binary/{binary['id']}"
    assert answer["etag"]


def test_reading_gives_the_resource_to_fhir_clients_and_the_bytes_to_others(home: Caller) -> None:
    binary = upload(home, b"\x00\xff", "application/x-odd").json()
    path = f"Binary/{binary['id']}"
    raw = home.send("GET", path, accept="*/*")
    assert (raw.content, raw["content-type"]) == (b"\x00\xff", "application/x-odd")
    assert "sandbox" in raw["content-security-policy"]
    resource = home.send("GET", path, accept="application/fhir+json, */*; q=0.1").json()
    assert resource["contentType"] == "application/x-odd"
    version = home.send("GET", f"{path}/_history/{binary['meta']['versionId']}", accept="*/*")
    assert version.content == b"\x00\xff"


def test_put_replaces_the_content_and_keeps_the_old_version(home: Caller) -> None:
    binary = upload(home, b"one").json()
    path = f"Binary/{binary['id']}"
    assert home.send("PUT", path, b"two", content_type="text/plain").status_code == 200
    assert home.send("GET", path).content == b"two"
    assert home.send("GET", f"{path}/_history/{binary['meta']['versionId']}").content == b"one"
    stale = home.send(
        "PUT", path, b"three", content_type="text/plain", if_match=f'W/"{binary["meta"]["versionId"]}"'
    )
    assert stale.status_code == 412


def test_a_binary_sent_as_json_is_decoded(home: Caller) -> None:
    resource = {
        "resourceType": "Binary",
        "contentType": "text/plain",
        "data": base64.b64encode(b"hi").decode(),
    }
    made = home.send("POST", "Binary", resource)
    assert made.status_code == 201
    assert made.json()["url"]
    assert home.send("GET", f"Binary/{made.json()['id']}").content == b"hi"
    broken = home.send("POST", "Binary", {**resource, "data": "!"})
    assert (broken.status_code, text_of(broken)) == (400, "Invalid base64 data")


def test_other_json_is_content(home: Caller) -> None:
    made = home.send("POST", "Binary", smith())
    assert home.send("GET", f"Binary/{made.json()['id']}").json() == smith()


def test_a_compressed_upload_is_stored_as_it_was_before(home: Caller) -> None:
    made = upload(home, gzip.compress(b"hello"), content_encoding="gzip").json()
    assert home.send("GET", f"Binary/{made['id']}").content == b"hello"


def test_the_security_context_is_kept(home: Caller) -> None:
    reference = f"Patient/{home.create(smith())['id']}"
    assert upload(home, x_security_context=reference).json()["securityContext"] == {"reference": reference}


def test_a_presigned_url_works_without_login_until_it_is_changed(home: Caller) -> None:
    binary = upload(home, b"<script>", "text/html").json()
    parameters = home.send("GET", f"Binary/{binary['id']}/$presigned-url").json()
    for url in (binary["url"], parameters["parameter"][0]["valueUri"]):
        path = url.removeprefix(ORIGIN)
        answer = home.send("GET", path, authorization="")
        assert (content_of(answer), answer["content-type"]) == (b"<script>", "text/html")
        assert "sandbox" in answer["content-security-policy"]
        assert answer["cache-control"].startswith("private, max-age=")
        for forged in (path[:-1] + "x", path.replace("Expires=", "Expires=9"), urlsplit(path).path):
            assert home.send("GET", forged, authorization="").status_code == 403


def test_bytes_are_uploaded_by_presigned_url_as_whoever_asked_for_it(home: Caller) -> None:
    binary = upload(home, b"old", x_security_context=f"Patient/{home.create(smith())['id']}").json()
    path = f"Binary/{binary['id']}"
    url = home.send("GET", f"{path}/$presigned-url?upload=true").json()["parameter"][0]["valueUri"]
    target = url.removeprefix(ORIGIN)
    assert home.send("PUT", target, b"new", content_type="image/png", authorization="").status_code == 200
    raw = home.send("GET", path, accept="*/*")
    assert (raw.content, raw["content-type"]) == (b"new", "image/png")
    resource = home.send("GET", path, accept="application/fhir+json", x_medplum="extended").json()
    assert resource["meta"]["author"]["reference"] == f"ClientApplication/{home.client_id}"
    assert resource["securityContext"] == binary["securityContext"]
    for forged in (target[:-1] + "x", target.replace("Membership=", "Membership=0"), urlsplit(target).path):
        assert home.send("PUT", forged, b"x", content_type="text/plain", authorization="").status_code == 403
    download = binary["url"].removeprefix(ORIGIN)
    assert home.send("PUT", download, b"x", content_type="text/plain", authorization="").status_code == 403
    assert home.send("GET", target, authorization="").status_code == 403
    assert home.send("DELETE", target, authorization="").status_code == 405


@pytest.mark.parametrize(
    ("range", "status", "expected", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-100", 206, b"56789", "bytes 5-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=3-1", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
    ],
)
def test_a_range_of_the_bytes(
    home: Caller, range: str, status: int, expected: bytes | None, content_range: str | None
) -> None:
    binary = upload(home, b"0123456789").json()
    for path, authorization in ((f"Binary/{binary['id']}", None), (binary["url"].removeprefix(ORIGIN), "")):
        answer = home.send("GET", path, range=range, accept="*/*", authorization=authorization)
        assert answer.status_code == status
        assert answer.get("content-range") == content_range
        if expected is not None:
            assert answer.content == expected
            assert answer["accept-ranges"] == "bytes"


def test_the_address_of_a_deleted_binary_gives_nothing(home: Caller) -> None:
    binary = upload(home).json()
    assert home.send("DELETE", f"Binary/{binary['id']}").status_code == 200
    assert home.send("GET", binary["url"].removeprefix(ORIGIN), authorization="").status_code == 410


def test_a_range_counts_only_for_the_version_it_is_about(home: Caller) -> None:
    binary = upload(home, b"0123456789").json()
    etag = f'W/"{binary["meta"]["versionId"]}"'
    path = f"Binary/{binary['id']}"
    assert home.send("GET", path, range="bytes=0-0", if_range=etag).content == b"0"
    assert home.send("GET", path, range="bytes=0-0", if_range='W/"other"').content == b"0123456789"
    same = home.send("GET", path, if_none_match=etag)
    assert (same.status_code, same.content) == (304, b"")


def test_large_content_goes_through_in_pieces(home: Caller) -> None:
    content = bytes(range(256)) * 20_000
    binary = upload(home, content, "application/octet-stream").json()
    path = f"Binary/{binary['id']}"
    for answer in (home.send("GET", path), home.send("GET", binary["url"].removeprefix(ORIGIN))):
        assert answer.streaming
        assert answer["content-length"] == str(len(content))
        assert content_of(answer) == content
    part = home.send("GET", path, range="bytes=1000-2000999")
    assert content_of(part) == content[1000:2001000]
    head = home.send("HEAD", path)
    assert (head.content, head["content-length"]) == (b"", str(len(content)))
    inside = handle_site_request("GET", f"fhir/R4/{path}", {}, b"", home.repository)
    assert inside.body == content


def test_too_much_content_is_refused_and_leaves_nothing(home: Caller, settings: Settings) -> None:
    settings.MAX_BINARY_BYTES = 2_000_000
    for body, headers in (
        (b"x" * 2_000_001, {}),
        (gzip.compress(b"x" * 2_000_001), {"content_encoding": "gzip"}),
    ):
        answer = home.send("POST", "Binary", body, content_type="text/plain", **headers)
        assert answer.status_code == 413
    settings.MAX_JSON_BYTES = 1000
    resource = {"resourceType": "Binary", "contentType": "text/plain", "data": "A" * 2000}
    assert "send its bytes as they are" in text_of(home.send("POST", "Binary", resource))


def test_a_security_context_must_be_a_reference(home: Caller) -> None:
    for context in ("garbage", "Nothing/1", "Patient/"):
        answer = home.send("POST", "Binary", b"x", content_type="text/plain", x_security_context=context)
        assert answer.status_code == 400


def test_new_bytes_are_as_secret_as_the_old_ones(home: Caller) -> None:
    reference = f"Patient/{home.create(smith())['id']}"
    binary = upload(home, x_security_context=reference).json()
    replaced = home.send("PUT", f"Binary/{binary['id']}", b"new", content_type="text/plain").json()
    assert replaced["securityContext"] == {"reference": reference}


def test_attachments_are_presigned_on_read_and_folded_on_write(home: Caller) -> None:
    binary = upload(home).json()
    media = home.create({"resourceType": "Media", "status": "completed", "content": {"url": binary["url"]}})
    stored = home.repository.read("Media", media["id"]).resource
    assert stored["content"]["url"] == f"Binary/{binary['id']}"
    path = f"Media/{media['id']}"
    searched = home.send("GET", f"Media?_id={media['id']}").json()["entry"][0]["resource"]
    for shown in (media, home.send("GET", path).json(), searched):
        assert (
            content_of(home.send("GET", shown["content"]["url"].removeprefix(ORIGIN), authorization=""))
            == b"hello"
        )
    home.send("PUT", path, home.send("GET", path).json() | {"height": 1})
    assert home.repository.read("Media", media["id"]).resource["content"]["url"] == f"Binary/{binary['id']}"


@pytest.mark.parametrize("said", ["text/html\nX-Evil: y", "t\u00e9xt/html"])
def test_what_no_header_can_say_is_not_said(home: Caller, said: str) -> None:
    binary = {"resourceType": "Binary", "contentType": said, "data": "PGI+"}
    made = home.send("POST", "Binary", binary).json()
    answer = home.send("GET", f"Binary/{made['id']}")
    assert (answer.status_code, answer["content-type"]) == (200, "application/octet-stream")


def test_pages_of_others_never_run_here(home: Caller) -> None:
    made = upload(home, b"<script>alert(1)</script>", "text/html").json()
    for address in (f"Binary/{made['id']}", made["url"].removeprefix(ORIGIN)):
        answer = home.send("GET", address)
        assert "default-src 'none'" in answer["content-security-policy"]
        assert answer["content-security-policy"].endswith("sandbox")
        assert answer["x-content-type-options"] == "nosniff"
