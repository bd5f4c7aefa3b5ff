"""The entries of a batch or transaction as the requests they describe."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import format_datetime
from typing import Any, Final
from urllib.parse import unquote

import orjson

from fhirstore.definitions import registry
from fhirstore.errors import FhirError, bad_request
from fhirstore.repository import Stored
from fhirstore.rest.messages import FHIR_JSON, FhirRequest

RANKS: Final = ("DELETE", "POST", "PUT", "PATCH", "operation", "GET")
"""The order in which entries are carried out; answers come in the order of the Bundle."""

URN: Final = re.compile(rb"urn:uuid:[0-9a-fA-F-]{36}")
CONDITIONAL_REFERENCE: Final = re.compile(rb'"reference":"([A-Z][A-Za-z]+)\?([^"\\]+)"')
_ABSOLUTE_REFERENCE: Final = re.compile(rb'"reference":"((?:https?://|urn:oid:)[^"\\]+)"')

_HEADERS: Final = {"ifMatch": "if-match", "ifNoneMatch": "if-none-match", "ifNoneExist": "if-none-exist"}


@dataclass(slots=True)
class Condition:
    """What the condition of a conditional create or update stands for.

    Attributes:
        existing: the match there is.
        id: its id, or the one chosen for what is created.
        created: an entry has created or updated it meanwhile.
    """

    existing: Stored | None
    id: str
    created: bool = False


@dataclass(slots=True)
class Entry:
    """One entry.

    Attributes:
        index: its place in the Bundle.
        request: what it asks for.
        type: the first part of its path.
        full_url: what other entries call it by.
        new_id: the id chosen for what it creates.
        condition: what its condition stands for, where that has been looked up.
    """

    index: int
    request: FhirRequest
    type: str
    full_url: str | None = None
    new_id: str | None = None
    condition: Condition | None = None

    @property
    def rank(self) -> int:
        """Its place in the order of execution."""
        return RANKS.index("operation" if "$" in self.request.path else self.request.method)

    @property
    def creates(self) -> bool:
        """It is a create."""
        return self.request.method == "POST" and registry.is_resource_type(self.request.path)

    @property
    def changes(self) -> tuple[str, str] | None:
        """Type and id of the resource that it updates, patches or deletes by id."""
        type, _, id = self.request.path.partition("/")
        return (type, id) if self.request.method in ("PUT", "PATCH", "DELETE") and id else None

    @property
    def condition_text(self) -> str | None:
        """The search of a conditional create or update."""
        if self.creates:
            return self.request.headers.get("if-none-exist", "").removeprefix("?") or None
        if self.request.method == "PUT" and registry.is_resource_type(self.request.path):
            return self.request.query or None
        return None


def read_entry(request: FhirRequest, index: int, raw: Any) -> Entry:
    """Make the request an entry describes.

    Args:
        request: of the Bundle.
        index: of the entry.
        raw: the entry as JSON.

    Raises:
        FhirError: 400 for an entry that describes none.
    """
    where = f"Bundle.entry[{index}]"
    asked = raw.get("request") if isinstance(raw, dict) else None
    if not isinstance(asked, dict):
        raise bad_request("Missing Bundle entry request", where)
    method, url = asked.get("method"), asked.get("url")
    if method not in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        raise bad_request("Missing or unknown Bundle entry request method", f"{where}.request.method")
    if not isinstance(url, str):
        raise bad_request("Missing Bundle entry request URL", f"{where}.request.url")
    path, _, query = url.removeprefix(request.root).removeprefix("/").partition("?")
    path = unquote(path)
    if path in ("", "_search") and method == "POST":
        raise bad_request("A Bundle entry cannot hold another batch", f"{where}.request.url")
    resource = raw.get("resource")
    if method == "PATCH":
        resource = _patch_of(resource, where)
    full_url = raw.get("fullUrl")
    asking = replace(
        request,
        method=method,
        path=path,
        query=query,
        headers=_headers(request, asked, where),
        body=b"" if resource is None else orjson.dumps(resource),
    )
    return Entry(index, asking, path.split("/")[0], full_url if isinstance(full_url, str) else None)


def _headers(request: FhirRequest, asked: dict[str, Any], where: str) -> dict[str, str]:
    headers = {"content-type": FHIR_JSON, "x-medplum": request.headers.get("x-medplum", "")}
    wanted = re.search("return=[A-Za-z]+", request.headers.get("prefer", ""))
    if wanted:
        headers["prefer"] = wanted[0]
    for element, name in _HEADERS.items():
        if isinstance(value := asked.get(element), str):
            headers[name] = value
    if isinstance(since := asked.get("ifModifiedSince"), str):
        try:
            headers["if-modified-since"] = format_datetime(datetime.fromisoformat(since))
        except ValueError:
            raise bad_request("Invalid instant", f"{where}.request.ifModifiedSince") from None
    return headers


def _patch_of(resource: Any, where: str) -> Any:
    """Return the body of a PATCH: the JSON Patch in a Binary, or Parameters as they are."""
    match resource:
        case {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": str(data)}:
            try:
                return orjson.loads(base64.b64decode(data, validate=True))
            except (binascii.Error, orjson.JSONDecodeError):
                pass
        case {"resourceType": "Parameters"}:
            return resource
    raise bad_request(
        "A PATCH entry needs a Binary with contentType application/json-patch+json, or Parameters with the parts of a"
        " patch",
        f"{where}.resource",
    )


def replace_urls(entry: Entry, references: dict[bytes, bytes]) -> None:
    """Replace what other entries are called by with their references, in the body and in conditions."""
    if not references:
        return

    def reference(found: re.Match[bytes]) -> bytes:
        return references.get(found[0].lower(), found[0])

    def absolute(found: re.Match[bytes]) -> bytes:
        known = references.get(found[1])
        return found[0] if known is None else b'"reference":"%b"' % known

    request = entry.request
    request.body = _ABSOLUTE_REFERENCE.sub(absolute, URN.sub(reference, request.body))
    request.query = URN.sub(reference, request.query.encode()).decode()
    condition = request.headers.get("if-none-exist")
    if condition is not None:
        request.headers = {
            **request.headers,
            "if-none-exist": URN.sub(reference, condition.encode()).decode(),
        }


def url_key(full_url: str) -> bytes:
    """The key of a fullUrl among the references that :func:`replace_urls` takes; UUIDs are compared without case."""
    return (full_url.lower() if full_url.startswith("urn:uuid:") else full_url).encode()


def answer(response: Any) -> bytes:
    """The response entry: outcomes stand in ``response.outcome``, resources in ``resource``, other bodies as Binary."""
    head = {"status": str(response.status)}
    for element, name in (("location", "location"), ("etag", "etag")):
        if name in response.headers:
            head[element] = response.headers[name]
    text = orjson.dumps(head)
    if not response.body:
        return b'{"response":%b}' % text
    if not response.headers.get("content-type", "").startswith("application/fhir+json"):
        binary = {
            "resourceType": "Binary",
            "contentType": response.headers.get("content-type", "application/octet-stream"),
            "data": base64.b64encode(response.body).decode(),
        }
        return b'{"response":%b,"resource":%b}' % (text, orjson.dumps(binary))
    if response.status >= 400 or response.body.startswith(b'{"resourceType":"OperationOutcome"'):
        return b'{"response":%b,"outcome":%b}}' % (text[:-1], response.body)
    return b'{"response":%b,"resource":%b}' % (text, response.body)


def located(error: FhirError, index: int) -> FhirError:
    """The failure of an entry as that of its transaction: each issue says which entry it is about."""
    for issue in error.outcome["issue"]:
        issue.setdefault("diagnostics", f"Bundle.entry[{index}]")
    return error
