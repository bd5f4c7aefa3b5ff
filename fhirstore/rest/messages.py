"""A FHIR request and its answer as plain values: what the HTTP view, batches and bots' clients hand to the router."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO

from fhirstore.repository import Repository

FHIR_JSON = "application/fhir+json; charset=utf-8"
JSON = "application/json; charset=utf-8"


@dataclass(slots=True)
class FhirRequest:
    """One FHIR interaction to carry out.

    Attributes:
        method: ``GET``, ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
        path: below ``fhir/R4/``, unquoted, no leading slash, for example ``Patient/123/_history``.
        query: the raw query string, without ``?``.
        headers: by lower-case name.
        body: the bytes as sent, already decompressed.
        repository: who acts, and in which project.
        base_url: address of the server, ends with a slash.
        prefix: path of the FHIR root as called, ends with a slash.
        request_id: names this request in outcomes and in the log.
        content: an upload that is too large to hold as `body`, which is empty then.
        streams: whoever asks can take an answer in chunks.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    repository: Repository
    base_url: str
    prefix: str = "fhir/R4/"
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    content: IO[bytes] | None = None
    streams: bool = False

    @property
    def root(self) -> str:
        """Address of the FHIR root as called."""
        return self.base_url + self.prefix


@dataclass(slots=True)
class FhirResponse:
    """An answer; `headers` include ``content-type`` wherever there is a body.

    Attributes:
        stream: the body in chunks instead of `body`, for a request that `streams`.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stream: Iterator[bytes] | None = None
