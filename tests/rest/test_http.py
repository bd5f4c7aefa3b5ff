"""What every answer of the API carries, and bodies of every encoding."""

from __future__ import annotations

import gzip
import io
import json
import zlib

import pytest
from django.test import RequestFactory
from pytest_django import Settings

from fhirstore.api import FhirError
from fhirstore.rest.http import read_body, read_headers
from fhirstore.rest.middleware import ApiMiddleware
from tests.rest.conftest import Caller, smith

OWN = "http://127.0.0.1:8000"


def test_answers_carry_security_headers_and_are_not_cached(home: Caller) -> None:
    for path in (
        "Patient",
        "/auth/me",
        f"/admin/projects/{home.project}",
        "/.well-known/jwks.json",
        "/fhir/nothing",
    ):
        answer = home.send("GET", path)
        assert answer["cache-control"] == "no-store, no-cache, must-revalidate", path
        assert answer["content-security-policy"].startswith("default-src 'none'")
        assert answer["x-content-type-options"] == "nosniff"
        assert answer["x-frame-options"] == "DENY"
        assert answer["content-length"] == str(len(answer.content))
        assert "set-cookie" not in answer


def test_pages_of_the_console_are_none_of_the_apis(home: Caller) -> None:
    for path in ("/healthcheck", "/signin", "/admin/project", "/Patient"):
        assert (
            not home.send("GET", path)
            .headers.get("content-security-policy", "")
            .startswith("default-src 'none'; base")
        )


def test_cors_lets_the_sites_own_origin_in_and_no_other(home: Caller) -> None:
    answer = home.send("GET", "Patient", origin=OWN)
    assert answer["access-control-allow-origin"] == OWN
    assert answer["access-control-allow-credentials"] == "true"
    assert "ETag" in answer["access-control-expose-headers"]
    assert answer["vary"] == "Origin"
    stranger = home.send("GET", "Patient", origin="https://evil.example")
    assert "access-control-allow-origin" not in stranger
    assert stranger["vary"] == "Origin"


def test_preflight_requests_need_no_login(home: Caller, settings: Settings) -> None:
    wanted = {
        "access_control_request_method": "PUT",
        "access_control_request_headers": "authorization,x-medplum",
    }
    answer = home.send("OPTIONS", "Patient/1", authorization="", origin=OWN, **wanted)
    assert (answer.status_code, answer["access-control-max-age"]) == (204, "600")
    assert "PUT" in answer["access-control-allow-methods"]
    assert answer["access-control-allow-headers"] == "authorization,x-medplum"
    settings.CORS_ALLOWED_ORIGINS = ["https://app.example"]
    factory = RequestFactory().options(
        "/fhir/R4/Patient", headers={"origin": "https://app.example", "access-control-request-method": "GET"}
    )
    allowed = ApiMiddleware(lambda request: pytest.fail("not asked"))(factory)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
)
def test_compressed_bodies_are_read(home: Caller, encoding: str, pack: type[bytes]) -> None:
    body = pack(json.dumps(smith()).encode())
    assert home.send("POST", "Patient", body, content_encoding=encoding).status_code == 201


def test_a_chunked_body_is_read_up_to_the_limit(settings: Settings) -> None:
    request = RequestFactory().post("/fhir/R4/Patient", headers={"transfer-encoding": "chunked"})
    request.environ["wsgi.input"] = io.BytesIO(b'{"a": 1}')
    assert read_body(request, read_headers(request.META)) == b'{"a": 1}'
    settings.MAX_JSON_BYTES = 5
    request.environ["wsgi.input"] = io.BytesIO(b'{"a": 1}')
    with pytest.raises(FhirError) as refused:
        read_body(request, read_headers(request.META))
    assert refused.value.status == 413


def test_a_bomb_is_refused_before_it_explodes(home: Caller) -> None:
    bomb = gzip.compress(b"x" * (64 * 2**20))
    assert home.send("POST", "Patient", bomb, content_encoding="gzip").status_code == 413


def test_lengths_that_are_no_number_are_refused(home: Caller) -> None:
    request = RequestFactory().post("/fhir/R4/Patient", b"{}", content_type="application/fhir+json")
    request.META["CONTENT_LENGTH"] = "many"
    with pytest.raises(FhirError):
        read_body(request, {})
