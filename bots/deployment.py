"""Deploying: what is saved becomes what runs, by an explicit step that checks it first.

1. The code is transpiled and loaded once in a sandbox; problems are reported with line and column, and nothing changes.
2. One transaction stores the code as a Binary, points ``Bot.executableCode`` to it and adds a :class:`~bots.models.Deployment`.
3. From the commit on, every new run uses it; runs that have begun end on the code they began with.

Rolling back is a deployment of old code: the history only grows.
"""

from __future__ import annotations

import difflib
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import orjson
from django.db.models import QuerySet

from bots import calls, execution, preparation, tasks
from bots.context import MAX_TIMEOUT, NOT_NATIVE, changed, may_run_native, wants_native
from bots.models import Deployment
from bots.preparation import MAX_CODE, PYTHON, Prepared
from bots.sandbox.api import Problem
from bots.wheels import wheels_of_project
from fhirstore.api import (
    FhirError,
    Repository,
    bad_request,
    content_too_large,
    issue,
    lock,
    membership_of_profile,
    not_found,
    outcome,
    transaction,
)

Via = Literal["api", "cli", "console"]

PYTHON_TYPE: Final = "text/x-python"
"""Content type of Python code in ``sourceCode`` and ``executableCode``."""

_ISSUE_LINE: Final = "http://hl7.org/fhir/StructureDefinition/operationoutcome-issue-line"
_ISSUE_COLUMN: Final = "http://hl7.org/fhir/StructureDefinition/operationoutcome-issue-col"

_INSERT = """
INSERT INTO bots_deployment (project, bot_id, number, source, source_filename, code, filename, language, module, binary_id,
    source_version_id, note, via, author, author_display, wheels, created)
VALUES (%(project)s::text, %(bot_id)s::text,
    1 + coalesce((SELECT max(number) FROM bots_deployment WHERE project = %(project)s::text AND bot_id = %(bot_id)s::text), 0),
    %(source)s, %(source_filename)s, %(code)s, %(filename)s, %(language)s, %(module)s, %(binary_id)s,
    %(source_version_id)s, %(note)s, %(via)s, %(author)s, %(author_display)s, %(wheels_json)s::jsonb, now())
RETURNING id, number, created
"""


# --- services --------------------------------------------------------------------------------------------------------


def bot_deploy(
    repository: Repository,
    *,
    bot_id: str,
    code: str | None = None,
    filename: str | None = None,
    note: str = "",
    via: Via = "api",
    source_version: str | None = None,
) -> Deployment:
    """Deploy a Bot.

    Args:
        repository: of the caller, who needs read and update on the Bot and create on Binary.
        code: what to deploy; None deploys the existing ``executableCode`` again and leaves the Bot as it is.
        filename: of the code; its suffix decides about the language. Default ``index.js``, or ``index.py`` where the Bot's
            ``sourceCode`` is Python.
        note: why, for the history.
        via: where from, for the history.
        source_version: version of the Bot whose saved code this is, for the history.

    Raises FhirError: 400 with one issue for each problem of the code, or with the reason why it cannot be deployed; what
    was deployed before keeps running.
    """
    bot = repository.read("Bot", bot_id).resource
    _check(repository, bot)
    binary_id = ""
    if code is None:
        code, filename, binary_id = _executable_code(repository, bot)
    filename = filename or _filename(bot.get("sourceCode"))
    project = repository.identity.project
    wheels = wheels_of_project(project) if filename.lower().endswith(PYTHON) else []
    prepared = _prepare(code, filename, project, native=wants_native(bot), wheels=wheels)
    with transaction():
        if not binary_id:
            binary_id = _publish(repository, bot_id, code, prepared)
        return _add(
            repository,
            Deployment(
                bot_id=bot_id,
                source=code,
                source_filename=filename,
                code=prepared.code,
                filename=prepared.filename,
                language=prepared.language,
                module=prepared.module,
                wheels=wheels,
                binary_id=binary_id,
                source_version_id=source_version,
                note=note,
                via=via,
            ),
        )


def deployment_roll_back(
    repository: Repository, *, bot_id: str, number: int, note: str = "", via: Via = "console"
) -> Deployment:
    """Deploy the code of deployment `number` again, without a new check: it ran before.

    Raises FhirError: 404 for an unknown number; else as :func:`bot_deploy`.
    """
    _check(repository, repository.read("Bot", bot_id).resource)
    old = Deployment.objects.filter(project=repository.identity.project, bot_id=bot_id, number=number).first()
    if old is None:
        raise not_found(f"The Bot has no deployment v{number}")
    copied = {name: getattr(old, name) for name in _COPIED}
    with transaction():
        _point_to(repository, bot_id, old.binary_id, _executable_title(old.filename, old.module))
        return _add(
            repository, Deployment(bot_id=bot_id, note=note or f"Rolled back to v{number}", via=via, **copied)
        )


def deployments(repository: Repository, bot_id: str) -> list[Deployment]:
    """Return the deployments of a Bot the caller may read, newest (current) first; raises FhirError."""
    return list(_deployments(repository, bot_id))


def deployment_current(repository: Repository, bot_id: str) -> Deployment | None:
    """Return what runs, None before the first deployment; raises FhirError when the caller may not read the Bot."""
    return _deployments(repository, bot_id).first()


def _deployments(repository: Repository, bot_id: str) -> QuerySet[Deployment]:
    repository.read("Bot", bot_id)
    return Deployment.objects.filter(project=repository.identity.project, bot_id=bot_id).order_by("-number")


def deployment_diff(old: Deployment, new: Deployment) -> str:
    """What differs between the uploaded code of two deployments, as a unified diff; empty if nothing does."""
    lines = difflib.unified_diff(
        old.source.splitlines(keepends=True),
        new.source.splitlines(keepends=True),
        f"v{old.number}/{old.source_filename}",
        f"v{new.number}/{new.source_filename}",
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def deployment_warnings(repository: Repository, bot_id: str) -> list[dict[str, Any]]:
    """Issues to show beside a successful deployment: a Bot without a membership cannot act for Subscriptions."""
    bot = repository.read("Bot", bot_id).resource
    if bot.get("runAsUser") or membership_of_profile(repository.identity.project, f"Bot/{bot_id}"):
        return []
    return [issue("Could not find ProjectMembership for Bot", code="business-rule", severity="warning")]


# --- steps -----------------------------------------------------------------------------------------------------------

_COPIED: Final = (
    "source",
    "source_filename",
    "code",
    "filename",
    "language",
    "module",
    "binary_id",
    "source_version_id",
    "wheels",
)


def _check(repository: Repository, bot: dict[str, Any]) -> None:
    """Refuse what cannot be deployed, whatever the code is."""
    if "bots" not in repository.identity.features:
        raise bad_request("Bots not enabled")
    if wants_native(bot) and not may_run_native(repository.identity.project):
        raise bad_request(NOT_NATIVE, "Bot.extension")
    timeout = bot.get("timeout") or 0
    if timeout > MAX_TIMEOUT:
        raise bad_request(f"Bot timeout exceeds allowed maximum of {MAX_TIMEOUT} seconds", "Bot.timeout")


def _executable_code(repository: Repository, bot: dict[str, Any]) -> tuple[str, str, str]:
    """Text, file name and Binary id of what ``Bot.executableCode`` points to."""
    attachment = bot.get("executableCode")
    if not attachment:
        raise bad_request("Bot missing executable code")
    resource_type, _, binary_id = str(attachment.get("url", "")).partition("/")
    if resource_type != "Binary" or not binary_id:
        raise bad_request("Executable code is not a Binary", "Bot.executableCode.url")
    return read_code(repository, binary_id), attachment.get("title") or _filename(attachment), binary_id


def _filename(attachment: dict[str, Any] | None) -> str:
    """A name for code that came without one."""
    content_type = str((attachment or {}).get("contentType", "")).partition(";")[0].strip().lower()
    return "index.py" if content_type == PYTHON_TYPE else "index.js"


def read_code(repository: Repository, binary_id: str) -> str:
    """Return the text of a Binary; raises FhirError when it cannot be read or is no text."""
    _, content = repository.open_binary(binary_id)
    with content:
        data = content.read(MAX_CODE + 1)
    if len(data) > MAX_CODE:
        raise _too_large()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise bad_request(f"Binary/{binary_id} is not UTF-8 text") from None


def _prepare(
    code: str, filename: str, project: str, *, native: bool, wheels: list[dict[str, str]]
) -> Prepared:
    """Let a worker transpile and check the code; raises FhirError with its problems."""
    if len(code.encode()) > MAX_CODE:
        raise _too_large()
    if execution.is_inside_run():
        prepared = preparation.prepare(code, filename, project, native, wheels)
    else:
        upload = orjson.dumps(
            {"source": code, "filename": filename, "project": project, "native": native, "wheels": wheels}
        )
        try:
            prepared = Prepared.decode(
                calls.ask(tasks.prepare_code, upload, what="The code was not deployed", project=project)
            )
        except calls.NoAnswerError as error:
            raise bad_request(str(error)) from None
    if prepared.problems:
        raise FhirError(outcome(None, [_problem(filename, problem) for problem in prepared.problems]))
    return prepared


def _too_large() -> FhirError:
    return content_too_large(f"The code is larger than {MAX_CODE // 1024 // 1024} MB")


def _problem(filename: str, problem: Problem) -> dict[str, Any]:
    """An issue whose text names the place for people, and whose extensions name it for editors."""
    if not problem.line:
        return issue(f"{filename}: {problem.text}", expression="code")
    place = f"{filename}:{problem.line}:{problem.column}" if problem.column else f"{filename}:{problem.line}"
    return issue(f"{place}: {problem.text}", expression="code") | {
        "extension": [
            {"url": _ISSUE_LINE, "valueInteger": problem.line},
            {"url": _ISSUE_COLUMN, "valueInteger": problem.column},
        ]
    }


def _publish(repository: Repository, bot_id: str, source: str, prepared: Prepared) -> str:
    """Store what was deployed, TypeScript as JavaScript so that the Bot also runs elsewhere; returns the Binary's id."""
    is_written = PurePosixPath(prepared.filename).suffix in {".js", ".mjs", ".cjs"}
    title = _executable_title(prepared.filename, prepared.module)
    content = source if is_written else prepared.code
    binary = repository.store_binary(
        content.encode(), _executable_type(title), filename=title, security_context=f"Bot/{bot_id}"
    )
    _point_to(repository, bot_id, binary.id, title)
    return binary.id


def _executable_title(filename: str, module: str) -> str:
    path = PurePosixPath(filename)
    if path.suffix in {".js", ".mjs", ".cjs"} or path.suffix.lower() == PYTHON:
        return filename
    return path.with_suffix(".cjs" if module == "commonjs" else ".mjs").name


def _executable_type(title: str) -> str:
    return PYTHON_TYPE if title.lower().endswith(PYTHON) else "text/javascript"


def _point_to(repository: Repository, bot_id: str, binary_id: str, title: str) -> None:
    attachment = {"contentType": _executable_type(title), "url": f"Binary/{binary_id}", "title": title}
    repository.patch("Bot", bot_id, [{"op": "add", "path": "/executableCode", "value": attachment}])


def _add(repository: Repository, deployment: Deployment) -> Deployment:
    """Add a row to the history, in the current transaction; from the commit on it is current."""
    identity = repository.identity
    deployment.project = identity.project
    deployment.author = identity.profile
    deployment.author_display = identity.profile_display or ""
    lock(f"deployment {deployment.bot_id}")
    with transaction() as session:
        values = deployment.__dict__ | {"wheels_json": orjson.dumps(deployment.wheels).decode()}
        row = session.execute(_INSERT, values).fetchone()
    assert row is not None  # an INSERT … RETURNING of one row
    deployment.id, deployment.number, deployment.created = row
    changed(identity.project)
    return deployment
