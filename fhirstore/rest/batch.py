"""Batches and transactions: ``POST /`` with a Bundle (https://hl7.org/fhir/R4/http.html#transaction).

Every entry is a request of its own to the router. A transaction is all or nothing, whatever the project's features; what
its entries create is written together. With ``Prefer: respond-async`` the Bundle is carried out in the background.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import orjson

from fhirstore import database
from fhirstore.definitions import registry
from fhirstore.errors import FhirError, bad_request, content_too_large
from fhirstore.jobs import Job, register_job, store_file
from fhirstore.rest import interactions, jobs
from fhirstore.rest.body import read_resource
from fhirstore.rest.entries import (
    CONDITIONAL_REFERENCE,
    RANKS,
    Condition,
    Entry,
    answer,
    located,
    read_entry,
    replace_urls,
    url_key,
)
from fhirstore.rest.messages import FHIR_JSON, FhirRequest, FhirResponse
from fhirstore.rest.response import respond_error, respond_resource
from fhirstore.tables import new_id

MAX_ENTRIES: Final = 10_000
"""Larger Bundles are refused."""

MAX_ANSWER: Final = 128 * 2**20
"""Bytes of all answers; what would only be read once there are more is refused."""

JOB: Final = "batch"

Handler = Callable[[FhirRequest], FhirResponse]
Json = dict[str, Any]


def execute(request: FhirRequest, route: Handler, handle: Handler) -> FhirResponse:
    """Carry out a Bundle.

    Args:
        request: with the Bundle as body.
        route: carries out one entry and raises its failure.
        handle: carries out one entry and answers its failure.

    Raises:
        FhirError: 400 for anything but a Bundle of type batch or transaction with entries, 413 for too many; of a
            transaction the failure of its first failing entry, after everything has been rolled back.
    """
    bundle = read_resource(request)
    kind, raw = _read_bundle(bundle)
    if jobs.wants_async(request):
        headers = {name: request.headers.get(name, "") for name in ("x-medplum",)}
        given = {"bundle": bundle, "headers": headers, "base_url": request.base_url, "prefix": request.prefix}
        return jobs.start(request, JOB, given)
    if kind == "transaction":
        with request.repository.bulk():
            answers = Run(request, route, atomic=True).answers(raw)
    else:
        answers = Run(request, handle, atomic=False).answers(raw)
    body = b'{"resourceType":"Bundle","type":"%b-response","entry":[%b]}' % (
        kind.encode(),
        b",".join(answers),
    )
    return FhirResponse(200, body, {"content-type": FHIR_JSON})


def _read_bundle(bundle: Json) -> tuple[str, list[Any]]:
    """Return the Bundle's type and entries."""
    interactions.check_type(bundle, "Bundle")
    kind = bundle.get("type")
    if kind not in ("batch", "transaction"):
        raise bad_request(f"Unrecognized bundle type: {kind}", "Bundle.type")
    raw = bundle.get("entry")
    if not isinstance(raw, list) or not raw:
        raise bad_request("Missing bundle entries", "Bundle.entry")
    if len(raw) > MAX_ENTRIES:
        raise content_too_large(f"The Bundle has {len(raw)} entries; the limit is {MAX_ENTRIES}")
    return kind, raw


class Run:
    """One Bundle while it is carried out.

    Args:
        request: of the Bundle.
        execute_one: carries out one entry.
        atomic: it ends at the first failure, and its conditions are looked up first, once and under lock.
    """

    def __init__(self, request: FhirRequest, execute_one: Handler, *, atomic: bool) -> None:
        self._request = request
        self._execute_one = execute_one
        self._atomic = atomic
        self._references: dict[bytes, bytes] = {}
        self._conditions: dict[tuple[str, str], Condition] = {}
        self._found: dict[tuple[str, str], str] = {}
        self._answers: list[bytes] = []
        self._size = 0

    def answers(self, raw: list[Any]) -> list[bytes]:
        """Carry out the entries in their order; return the answers in the Bundle's."""
        self._answers = [b""] * len(raw)
        entries: list[Entry] = []
        for index, each in enumerate(raw):
            try:
                entries.append(read_entry(self._request, index, each))
            except FhirError as error:
                self._fail(index, error)
        if self._atomic:
            self._lock(entries)
        for entry in entries:
            try:
                self._choose_id(entry)
            except FhirError as error:
                self._fail(entry.index, error)
        repository = self._request.repository
        if self._atomic:  # each of them will be there, or nothing at all
            repository.promised = frozenset(f"{each.type}/{each.new_id}" for each in entries if each.new_id)
        try:
            for entry in sorted(entries, key=lambda each: each.rank):
                if not self._answers[entry.index]:
                    self._execute(entry)
        finally:
            repository.promised = frozenset()
        return self._answers

    def _fail(self, index: int, error: FhirError) -> None:
        if self._atomic:
            raise located(error, index)
        request = self._request
        self._answers[index] = answer(respond_error(error, request.request_id, request.repository.trace_id))

    def _execute(self, entry: Entry) -> None:
        try:
            if self._size > MAX_ANSWER and RANKS[entry.rank] in ("GET", "operation"):
                raise content_too_large(f"The answers of this Bundle have more than {MAX_ANSWER} bytes")
            replace_urls(entry, self._references)
            self._resolve_conditional_references(entry)
            response = self._carry_out(entry)
            if self._atomic and response.status >= 400:
                raise FhirError(orjson.loads(response.body), response.headers)
            self._answers[entry.index] = answer(response)
            self._size += len(self._answers[entry.index])
        except FhirError as error:
            self._fail(entry.index, error)

    def _carry_out(self, entry: Entry) -> FhirResponse:
        """Carry out an entry, as its condition was found where that has been looked up under lock."""
        request, condition = entry.request, entry.condition
        if condition is None or not self._atomic:
            if entry.creates and entry.new_id is not None:
                return interactions.create(request, entry.type, entry.new_id)
            if entry.condition_text is not None and request.method == "PUT":
                return interactions.conditional_update(request, entry.type, entry.new_id)
            return self._execute_one(request)
        if condition.created:
            # By another entry with the same condition.
            condition.existing = request.repository.read(entry.type, condition.id)
        if request.method == "PUT":
            response = interactions.update_or_create(request, entry.type, condition.existing, condition.id)
        elif condition.existing is not None:
            return respond_resource(request, condition.existing)
        else:
            response = interactions.create_new(request, entry.type, condition.id)
        condition.created = True
        return response

    # --- what entries are called by ---------------------------------------------------------------------------

    def _lock(self, entries: list[Entry]) -> None:
        """Lock what is changed, and keep others with the same conditions waiting.

        In one order for all: two transactions that each wait for the other would both be of no use.
        """
        targets: dict[str, list[str]] = {}
        for entry in entries:
            if entry.changes is not None:
                type, id = entry.changes
                targets.setdefault(type, []).append(id)
        for type in sorted(targets):
            self._request.repository.lock(type, targets[type])
        project = self._request.repository.identity.project
        names = {
            interactions.condition_lock(project, entry.type, entry.condition_text)
            for entry in entries
            if entry.condition_text is not None
        }
        if names:
            database.lock(*names)

    def _choose_id(self, entry: Entry) -> None:
        """Choose the id of what an entry creates, so that other entries may refer to it in any order."""
        text = entry.condition_text
        if text is not None and (self._atomic or entry.full_url):
            key = (entry.type, text)
            if key not in self._conditions:
                existing = interactions.find_single(entry.request, entry.type, text)
                self._conditions[key] = Condition(existing, existing.id if existing else new_id())
            entry.condition = self._conditions[key]
            entry.new_id = entry.condition.id
        elif entry.creates:
            entry.new_id = new_id()
        if entry.full_url:
            path = f"{entry.type}/{entry.new_id}" if entry.new_id else entry.request.path
            # The address of another server's resource stays what it is unless this entry makes it ours.
            if entry.full_url.startswith("urn:") or entry.new_id:
                self._references[url_key(entry.full_url)] = path.encode()

    def _resolve_conditional_references(self, entry: Entry) -> None:
        """Replace references like ``Patient?identifier=…`` in the body."""
        request = entry.request
        if b"?" not in request.body or request.method == "PATCH":
            return

        def search(found: re.Match[bytes]) -> bytes:
            type, query = found[1].decode(), found[2].decode()
            if not registry.is_resource_type(type):
                return found[0]
            if (type, query) not in self._found:
                match = interactions.find_single(request, type, query)
                if match is None:
                    raise bad_request(f"Conditional reference has no match: {type}")
                self._found[type, query] = match.id
            return f'"reference":"{type}/{self._found[type, query]}"'.encode()

        request.body = CONDITIONAL_REFERENCE.sub(search, request.body)


# --- in the background -----------------------------------------------------------------------------------------------


def register(handle: Handler) -> None:
    """Register the job that carries out Bundles in the background; called once at start-up."""
    register_job(JOB, lambda job: run_job(job, handle))


def run_job(job: Job, handle: Handler) -> list[Json]:
    """Carry out the Bundle of a job; its answer is kept as a Binary, a failure of the whole ends the job."""
    if "results" not in job.progress:
        job.check()
        if job.parameters["bundle"]["type"] == "transaction":
            # With its answer: an attempt that is cut off has done nothing.
            with job.repository.transaction():
                _answer_job(job, handle)
        elif job.attempt > 1:
            raise bad_request(
                "The server stopped while the batch ran: some of its entries may have been carried out"
            )
        else:
            _answer_job(job, handle)
    return [{"name": "results", "valueReference": {"reference": job.progress["results"]}}]


def _answer_job(job: Job, handle: Handler) -> None:
    given = job.parameters
    request = FhirRequest(
        method="POST",
        path="",
        query="",
        headers={"content-type": FHIR_JSON, **given["headers"]},
        body=orjson.dumps(given["bundle"]),
        repository=job.repository,
        base_url=given["base_url"],
        prefix=given["prefix"],
    )
    response = handle(request)
    if response.status >= 400:
        raise FhirError(orjson.loads(response.body))
    results = store_file(job, response.body, FHIR_JSON)
    job.save({"results": f"Binary/{results.id}"})
