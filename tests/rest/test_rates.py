"""Rate limits: what the client is told, and how buckets fill."""

from __future__ import annotations

import re

import pytest
from django.http import HttpResponse
from pytest_django import Settings

from fhirstore import rates
from fhirstore.errors import FhirError
from fhirstore.rates import Limiter, points
from tests.rest.conftest import Caller, smith

ONE = r'"[A-Za-z]+";r=[0-9]+;t=[0-9]+'


def remaining(answer: HttpResponse) -> dict[str, int]:
    """What is left in each bucket, read as Medplum's client does: by comma, three parts each."""
    assert re.fullmatch(f"{ONE}(, {ONE})*", answer["ratelimit"])
    return {
        name.strip('" '): int(left.removeprefix("r="))
        for name, left, _ in (each.split(";") for each in answer["ratelimit"].split(","))
    }


@pytest.fixture(autouse=True)
def fresh_buckets(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """Buckets of this test's own size."""
    settings.RATE_LIMIT_REQUESTS, settings.RATE_LIMIT_POINTS = 100, 1000
    for name in ("requests", "interactions"):
        whole = getattr(rates, name)
        monkeypatch.setattr(rates, name, Limiter(whole.name, whole._amount, clock=lambda: 0.0))


def test_each_answer_says_what_is_left(home: Caller) -> None:
    assert remaining(home.send("GET", "Patient")) == {"requests": 99, "fhirInteractions": 980}
    assert remaining(home.send("POST", "Patient", smith())) == {"requests": 98, "fhirInteractions": 880}
    assert remaining(home.send("GET", "Patient/x")) == {"requests": 97, "fhirInteractions": 879}
    assert remaining(home.send("GET", "/auth/me")) == {"requests": 96}
    assert remaining(home.send("GET", "Patient", authorization="")) == {"requests": 95}


def test_who_uses_too_much_has_to_wait(home: Caller, foreign: Caller) -> None:
    bundle = {
        "resourceType": "Bundle",
        "type": "batch",
        "entry": [{"request": {"method": "POST", "url": "Patient"}, "resource": smith()}] * 9,
    }
    assert home.send("POST", "", bundle).status_code == 200
    refused = home.send("POST", "", bundle)
    assert (refused.status_code, refused.json()["id"]) == (429, "too-many-requests")
    assert refused.json()["issue"][0]["code"] == "throttled"
    # 900 of 1000 points are used, so 800 have to flow in again.
    assert refused["retry-after"] == "48"
    assert remaining(refused) == {"requests": 98, "fhirInteractions": 100}
    assert foreign.send("GET", "Patient").status_code == 200


def test_an_address_that_sends_too_much_has_to_wait(home: Caller) -> None:
    statuses = [home.send("GET", "metadata", authorization="").status_code for _ in range(101)]
    assert statuses == [200] * 100 + [429]
    refused = home.send("GET", "Patient")
    assert refused["retry-after"] == "1"
    assert refused["cache-control"].startswith("no-store")
    assert refused.json()["resourceType"] == "OperationOutcome"


def test_without_limits_nothing_is_said(home: Caller, settings: Settings) -> None:
    settings.RATE_LIMIT_REQUESTS = settings.RATE_LIMIT_POINTS = 0
    assert "ratelimit" not in home.send("GET", "Patient")


def test_a_bucket_fills_evenly() -> None:
    now = 0.0
    limiter = Limiter("x", lambda: 60, clock=lambda: now)
    assert limiter.use("a", 60) == '"x";r=0;t=60'
    with pytest.raises(FhirError) as refused:
        limiter.use("a", 10)
    assert refused.value.headers["Retry-After"] == "10"
    now = 10.0
    assert limiter.use("a", 10) == '"x";r=0;t=60'
    assert limiter.use("b") == '"x";r=59;t=1'
    now = 1000.0
    # More than a bucket holds is what is in a full one.
    assert limiter.use("a", 500) == '"x";r=0;t=60'


def test_full_buckets_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MANY", 10)
    now = 0.0
    limiter = Limiter("x", lambda: 60, clock=lambda: now)
    for number in range(10):
        limiter.use(str(number), 1)
    now = 30.0
    limiter.use("other", 60)
    assert list(limiter._buckets) == ["other"]
    for number in range(20):
        limiter.use(str(number), 60)
    assert len(limiter._buckets) <= 10


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "Patient/1", 1),
        ("GET", "Patient/1/_history/2", 1),
        ("GET", "Patient/1/_history", 10),
        ("GET", "Patient", 20),
        ("GET", "", 20),
        ("POST", "Patient/_search", 20),
        ("POST", "Patient", 100),
        ("DELETE", "Patient/1", 100),
        ("GET", "Bot/1/$execute", 100),
    ],
)
def test_points(method: str, path: str, expected: int) -> None:
    assert points(method, path, b"") == expected
