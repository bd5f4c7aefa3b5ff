"""Bulk data export: ``$export`` of a project, its patients or a Group as ndjson files (https://hl7.org/fhir/uv/bulkdata/export.html).

The job reads everything in one snapshot of the database, as its caller may see it, into temporary files, and stores them as
Binaries, which go after a week. The manifest stands in the AsyncJob; whoever asks for it gets addresses that work for an hour.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import IO, Any, Final

import orjson

from fhirstore import binaries, database, jobs
from fhirstore.definitions import registry
from fhirstore.errors import FhirError, accepted, bad_request, issue, not_found, outcome
from fhirstore.identity import system_identity
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.repository import Repository, Stored
from fhirstore.rest.jobs import is_open, request_url, respond_accepted, respond_json
from fhirstore.rest.messages import FhirRequest, FhirResponse
from fhirstore.rest.parameters import Input, read_input, read_instant
from fhirstore.rest.response import EXTENDED_META, respond_outcome
from fhirstore.search.model import SearchRequest
from fhirstore.tables import Moment

Json = dict[str, Any]

KIND: Final = "export"
FORMATS: Final = frozenset({"application/fhir+ndjson", "application/ndjson", "ndjson"})
NDJSON: Final = "application/fhir+ndjson"
NEVER: Final = frozenset({"Binary", "AsyncJob"})
"""Types that are not exported: files by the addresses in what refers to them, and the export itself."""

MAX_LINES: Final = 200_000
"""Resources in a file; the next ones go into another."""

CHECK: Final = 1000
"""Resources between two looks at whether the job shall go on."""


def register() -> None:
    """Register operation and job; called once at start-up."""
    register_operation("$export", export, system=True)
    register_operation("$export", export, types=["Patient"], type=True)
    register_operation("$export", export, types=["Group"], instance=True)
    jobs.register_job(KIND, run)


# --- the request -----------------------------------------------------------------------------------------------------


def export(request: OperationRequest) -> FhirResponse:
    """``$export``, ``Patient/$export`` and ``Group/{id}/$export``, GET or POST: start the job, answer 202.

    Parameters: ``_type`` and ``_typeFilter`` (lists by comma, or repeated), ``_since`` (instant), ``_outputFormat`` (ndjson).

    Raises:
        FhirError: 400 for parameters that cannot be understood, 404 for a Group that cannot be seen.
    """
    given = read_input(request)
    known = ("_type", "_since", "_typeFilter", "_outputFormat", "_format", "_pretty")
    for name, _ in given.values:
        if name not in known:
            raise bad_request(f"Unknown parameter of $export: {name}")
    chosen = given.text("_outputFormat")
    if chosen is not None and chosen.replace(" ", "+") not in FORMATS:
        raise bad_request(f"Unsupported _outputFormat: use {NDJSON}")
    types = _types(given)
    filters = _filters(given, request)
    since = given.text("_since")
    if since is not None:
        since = read_instant("_since", since).isoformat()
    if request.id is not None:
        request.repository.read("Group", request.id)
    level = {None: "system", "Patient": "patient", "Group": "group"}[request.type]
    parameters = {
        "level": level,
        "group": request.id,
        "types": types,
        "filters": filters,
        "since": since,
        "extended": request.headers.get("x-medplum") == "extended",
    }
    job = jobs.start_job(request.repository, KIND, parameters, request_url(request))
    return respond_accepted(request, f"bulkdata/export/{job.id}")


def _types(given: Input) -> list[str]:
    found = [name.strip() for text in given.texts("_type") for name in text.split(",") if name.strip()]
    for name in found:
        if not registry.is_resource_type(name):
            raise bad_request(f"Unknown resource type in _type: {name}")
        if name in NEVER:
            raise bad_request(f"{name} cannot be exported")
    return list(dict.fromkeys(found))


def _filters(given: Input, request: OperationRequest) -> list[list[str]]:
    """``_typeFilter`` as pairs of type and query; a query may hold commas itself."""
    found = []
    for text in given.texts("_typeFilter"):
        for each in re.split(r",(?=[A-Z][A-Za-z]*\?)", text):
            type, _, query = each.partition("?")
            if not registry.is_resource_type(type) or not query:
                raise bad_request(f"Invalid _typeFilter: expected Type?query, found {type or 'nothing'}")
            if not request.repository.parse(type, query, base_url=f"{request.base_url}fhir/R4/").clauses:
                raise bad_request("A _typeFilter must name a search parameter")
            found.append([type, query])
    return found


# --- the job ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _File:
    """A file of the export while it is written."""

    type: str
    kind: str
    stream: IO[bytes]
    count: int = 0


class _Files:
    """The files of an export: one for each type, more where there is much."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.files: list[_File] = []
        self._open: dict[tuple[str, str], _File] = {}

    def add(self, kind: str, type: str, line: bytes) -> None:
        """Write a line to the output, deleted or error file of a type."""
        file = self._open.get((kind, type))
        if file is None or file.count >= MAX_LINES:
            # A nameless file: nothing stays behind, however the process ends.
            stream = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  the stack closes it
            file = self._open[kind, type] = _File(type, kind, stream)
            self.files.append(file)
        file.stream.write(line)
        file.stream.write(b"\n")
        file.count += 1


def run(job: jobs.Job) -> Iterable[Json]:
    """Export, and return the manifest as parameters of the AsyncJob."""
    with ExitStack() as stack:
        files = _Files(stack)
        with database.transaction() as connection:
            # One moment for everything that is read; nothing is written in here.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            moment = Moment.now().text
            _read(job, files)
        job.check()
        output: list[Json] = [
            {"name": "transactionTime", "valueInstant": moment},
            {"name": "request", "valueUri": job.request_url},
            {"name": "requiresAccessToken", "valueBoolean": False},
        ]
        with job.repository.transaction():
            for file in files.files:
                file.stream.seek(0)
                stored = jobs.store_file(job, file.stream, NDJSON)
                output.append(
                    {
                        "name": file.kind,
                        "part": [
                            {"name": "type", "valueCode": file.type},
                            {"name": "url", "valueUri": f"Binary/{stored.id}"},
                            {"name": "count", "valueInteger": file.count},
                        ],
                    }
                )
            job.check()
        return output


def _read(job: jobs.Job, files: _Files) -> None:
    parameters = job.parameters
    patients = _members(job) if parameters["level"] == "group" else None
    since = datetime.fromisoformat(parameters["since"]) if parameters["since"] else None
    filters: dict[str, list[SearchRequest]] = {}
    for type, query in parameters["filters"]:
        filters.setdefault(type, []).append(job.repository.parse(type, query))
    written = read = 0
    for type in _wanted(job, files):
        for stored in job.repository.scan(type, since=since, patients=patients):
            if read % CHECK == 0:
                job.check({"exported": written})
            read += 1
            line = _line(job, stored, filters.get(type, ()))
            if line is not None:
                files.add("output", type, line)
                written += 1
        if since is not None and patients is None:
            for stored in job.repository.scan(type, since=since, deleted=True):
                files.add("deleted", "Bundle", _deletion(stored))


def _line(job: jobs.Job, stored: Stored, filters: Sequence[SearchRequest]) -> bytes | None:
    """The resource as it is exported, None if it is not wanted."""
    level, extended = job.parameters["level"], job.parameters["extended"]
    if level == "system" and extended and not filters:
        return stored.content
    resource = stored.resource
    if level == "patient" and not _is_of_patient(resource):
        return None
    if filters and not any(map(job.repository.matcher(resource), filters)):
        return None
    if extended:
        return stored.content
    for name in EXTENDED_META:
        resource["meta"].pop(name, None)
    return orjson.dumps(resource)


def _is_of_patient(resource: Json) -> bool:
    if resource["resourceType"] == "Patient":
        return True
    compartments = resource["meta"].get("compartment", ())
    return any(each.get("reference", "").startswith("Patient/") for each in compartments)


def _deletion(stored: Stored) -> bytes:
    request = {"method": "DELETE", "url": f"{stored.type}/{stored.id}"}
    return orjson.dumps({"resourceType": "Bundle", "type": "transaction", "entry": [{"request": request}]})


def _members(job: jobs.Job) -> list[str]:
    group = job.repository.read("Group", job.parameters["group"]).resource
    references = [
        member["entity"].get("reference", "")
        for member in group.get("member", ())
        if not member.get("inactive") and "entity" in member
    ]
    return [each for each in references if each.startswith("Patient/")]


def _wanted(job: jobs.Job, files: _Files) -> Iterator[str]:
    """The types to read; what was asked for and cannot be exported goes into the error file."""
    named = job.parameters["types"]
    for type in named or sorted(registry.resource_types() - NEVER):
        problem = None
        if (
            job.parameters["level"] != "system"
            and type != "Patient"
            and not registry.patient_compartment(type)
        ):
            problem = f"{type} is not part of a patient's compartment"
        elif not job.repository.may_search(type):
            problem = f"{type} may not be read"
        elif job.parameters["level"] == "group" and not job.repository.may_search_compartment(type):
            problem = f"What says whose {type} it is, is hidden"
        if problem is None:
            yield type
        elif named:
            error = outcome(None, [issue(problem, code="not-supported", severity="warning")])
            files.add("error", "OperationOutcome", orjson.dumps(error))


# --- status ----------------------------------------------------------------------------------------------------------


def status(request: FhirRequest, id: str) -> FhirResponse:
    """``GET bulkdata/export/{id}``: 202 while the job is open, the manifest when it is done, its outcome if it failed.

    404 once the files are gone; ``Expires`` says when.
    """
    job = _job(request, id)
    if is_open(job):
        location = f"{request.root}bulkdata/export/{job.id}"
        headers = {"content-location": location, "retry-after": "1"}
        if (exported := (jobs.progress(job.id) or {}).get("exported")) is not None:
            headers["x-progress"] = f"{exported} resources exported"
        return respond_outcome(request, accepted(location), headers)
    if (resource := job.resource)["status"] == "cancelled":
        raise not_found("The export was cancelled")
    parameters = resource.get("output", {}).get("parameter", [])
    if resource["status"] == "error":
        failed = next((each["resource"] for each in parameters if each["name"] == "outcome"), None)
        raise FhirError(failed or outcome(None, [issue("The export failed", code="exception")]))
    expires = job.last_updated.astimezone(UTC) + jobs.KEPT
    if expires < datetime.now(UTC):
        raise not_found("The files of the export have expired")
    manifest: Json = {"output": [], "deleted": [], "error": []}
    for parameter in parameters:
        name = parameter["name"]
        if name in ("output", "deleted", "error"):
            manifest[name].append(_file_entry(request, job, parameter.get("part", [])))
        else:
            manifest[name] = next(
                (value for key, value in parameter.items() if key.startswith("value")), None
            )
    order = ("transactionTime", "request", "requiresAccessToken", "output", "deleted", "error")
    return respond_json(
        {name: manifest[name] for name in order if name in manifest},
        headers={"expires": format_datetime(expires, usegmt=True)},
    )


def delete(request: FhirRequest, id: str) -> FhirResponse:
    """``DELETE bulkdata/export/{id}``: cancel the job, or remove the files of a finished one; answered with 202."""
    job = _job(request, id)
    if is_open(job):
        jobs.cancel_job(request.repository, id)
    else:
        for parameter in job.resource.get("output", {}).get("parameter", ()):
            for part in parameter.get("part", ()):
                if part.get("name") == "url" and (file := _file_of(request, job, part)) is not None:
                    jobs.remove_file(request.repository.identity.project, file.id)
    return respond_outcome(request, accepted(f"{request.root}bulkdata/export/{id}"))


def _file_of(request: FhirRequest, job: Stored, part: Json) -> Stored | None:
    """The file a part of the manifest names; None if it is gone, or no file of this job: AsyncJobs can be written by others."""
    id = str(part.get("valueUri", "")).removeprefix("Binary/")
    try:
        stored = Repository(system_identity(request.repository.identity.project)).read("Binary", id)
    except FhirError as error:
        if error.status >= 500:
            raise
        return None
    context = stored.resource.get("securityContext", {}).get("reference")
    same = stored.resource["meta"]["author"] == job.resource["meta"]["author"]
    return stored if same and context == f"AsyncJob/{job.id}" else None


def _job(request: FhirRequest, id: str) -> Stored:
    """The export, for whoever started it and whoever may read everything of the project anyway."""
    job = jobs.find_job(request.repository, id)
    identity = request.repository.identity
    unlimited = identity.policy is None and identity.scopes is None
    author = job.resource["meta"]["author"]["reference"]
    if "$export" not in job.resource.get("request", "") or not (unlimited or author == identity.profile):
        raise not_found()
    return job


def _file_entry(request: FhirRequest, job: Stored, parts: list[Json]) -> Json:
    values = {
        part["name"]: next((v for k, v in part.items() if k.startswith("value")), None) for part in parts
    }
    project = request.repository.identity.project
    file = _file_of(request, job, {"valueUri": values.get("url")})
    if file is None:
        return values
    return {**values, "url": binaries.presigned_url(file.id, file.version_id, project)}
