"""What a request's body becomes for the handler."""

from __future__ import annotations

import pytest

from bots.inputs import HL7, parse_input
from fhirstore.api import FhirError


@pytest.mark.parametrize(
    ("content_type", "body", "kind", "value"),
    [
        ("application/json", b'{"a": 1}', "json", {"a": 1}),
        ("application/json; charset=utf-8", b"[1, 2]", "json", [1, 2]),
        ("application/fhir+json", b'{"resourceType": "Patient"}', "json", {"resourceType": "Patient"}),
        ("application/scim+json", b'{"input": {"foo": "bar"}}', "json", {"input": {"foo": "bar"}}),
        (
            "application/x-www-form-urlencoded",
            b"a=1&b=x+y&b=z&a%5Bb%5D=",
            "json",
            {"a": "1", "b": ["x y", "z"], "a[b]": ""},
        ),
        ("text/plain", "grüß".encode(), "text", "grüß"),
        (HL7, b"MSH|^~\\&|", "hl7", "MSH|^~\\&|"),
        (HL7 + "; charset=utf-8", b"MSH|^~\\&|", "text", "MSH|^~\\&|"),
        ("application/octet-stream", b"\x00\x01", "json", {}),
        (None, b"anything", "json", {}),
        ("application/json", b"", "json", {}),
        (HL7, b"", "json", {}),
    ],
)
def test_body_becomes_input(content_type: str | None, body: bytes, kind: str, value: object) -> None:
    assert parse_input(method="POST", content_type=content_type, body=body, query="q=ignored") == (
        kind,
        value,
    )


def test_query_is_the_input_of_a_get() -> None:
    found = parse_input(
        method="GET", content_type="text/plain", body=b"ignored", query="identifier=s%7Cv&n=1&n=2"
    )
    assert found == ("json", {"identifier": "s|v", "n": ["1", "2"]})


@pytest.mark.parametrize("body", [b"{", b'"text"', b"42", b"null", b"\xff\xfe", b"{'a': 1}"])
def test_malformed_json_is_refused(body: bytes) -> None:
    with pytest.raises(FhirError, match="Content could not be parsed") as refused:
        parse_input(method="POST", content_type="application/json", body=body, query="")
    assert refused.value.status == 400


def test_raw_body_keeps_the_text_of_json() -> None:
    text = b'{ "a":1 }'
    assert parse_input(
        method="POST", content_type="application/json", body=text, query="", raw_body=True
    ) == (
        "text",
        text.decode(),
    )
