"""``/keyvalue/v1/{key}``: a text per profile, as ``medplum.keyValue`` of the client reads and writes it."""

from __future__ import annotations

from typing import Final

from django.http import HttpRequest, HttpResponse

from fhirstore import database
from fhirstore.errors import bad_request, content_too_large
from fhirstore.repository import Repository
from fhirstore.rest.http import endpoint, read_body, read_headers

MAX_VALUE: Final = 1024 * 1024
MAX_KEY: Final = 500
MAX_KEYS: Final = 1000
"""Keys of a profile."""

_SET = """
INSERT INTO fhirstore_keyvalue (project, owner, key, value, updated) VALUES (%s, %s, %s, %s, now())
ON CONFLICT (project, owner, key) DO UPDATE SET value = EXCLUDED.value, updated = now()
"""
_OTHERS = "SELECT FROM fhirstore_keyvalue WHERE project = %s AND owner = %s AND key <> %s LIMIT %s"


@endpoint("GET", "PUT", "DELETE")
def keyvalue(request: HttpRequest, repository: Repository, key: str) -> HttpResponse:
    """GET: 200 with the text, or 404. PUT of a text: 204. DELETE: 204, whether or not it was there."""
    identity = repository.identity
    place = (identity.project, identity.profile, key)
    if len(key) > MAX_KEY:
        raise bad_request(f"The key is longer than {MAX_KEY} characters")
    if "\0" in key:
        raise bad_request("The key holds a NUL character")
    if request.method == "PUT":
        text = _text(request)
        with database.transaction() as session:
            database.lock(f"keyvalue {identity.project} {identity.profile}")
            if session.execute(_OTHERS, (*place, MAX_KEYS)).rowcount >= MAX_KEYS:
                raise bad_request(f"A profile may keep {MAX_KEYS} keys at most: delete one first")
            session.execute(_SET, (*place, text))
        return HttpResponse(status=204)
    if request.method == "DELETE":
        with database.transaction() as session:
            session.execute(
                "DELETE FROM fhirstore_keyvalue WHERE project = %s AND owner = %s AND key = %s", place
            )
        return HttpResponse(status=204)
    with database.connection() as session:
        row = session.execute(
            "SELECT value FROM fhirstore_keyvalue WHERE project = %s AND owner = %s AND key = %s", place
        ).fetchone()
    if row is None:
        return HttpResponse("Not found", status=404, content_type="text/plain")
    return HttpResponse(row[0], content_type="text/plain; charset=utf-8")


def _text(request: HttpRequest) -> str:
    body = read_body(request, read_headers(request.META))
    if len(body) > MAX_VALUE:
        raise content_too_large(f"The value is larger than {MAX_VALUE} bytes")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise bad_request("The value is not UTF-8 text") from None
    if "\0" in text:
        raise bad_request("The value holds a NUL character")
    return text
