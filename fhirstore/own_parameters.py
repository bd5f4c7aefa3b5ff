"""The SearchParameters of each project, as every process has to know them: checked when written, remembered for seconds.

A change counts at once in the process that makes it and within :data:`AGE` in all others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fhirstore import database, errors, hooks
from fhirstore.identity import system_identity
from fhirstore.search import custom
from fhirstore.search.model import Parameter

if TYPE_CHECKING:
    from fhirstore.repository import Repository

AGE: Final = 2.0
"""Seconds until a project's SearchParameters are read again."""
MOST: Final = 200
"""Active SearchParameters of a project; more are refused."""

Parameters = Mapping[str, Mapping[str, Parameter]]

_known: dict[str, tuple[float, Parameters]] = {}
_lock = threading.Lock()


def of_type(project: str, type: str) -> Mapping[str, Parameter]:
    """The search parameters that a project has of its own for a type, by code."""
    known = _known.get(project)
    if known is None or known[0] < time.monotonic():
        read = custom.merge(_active(project))
        with _lock:
            _known[project] = known = (time.monotonic() + AGE, read)
    return custom.of_type(known[1], type) if known[1] else {}


def _active(project: str) -> list[dict[str, Any]]:
    from fhirstore.repository import Repository  # it needs this module to index and to search

    found = Repository(system_identity(project)).search_all(
        "SearchParameter", [("status", "active"), ("_sort", "_lastUpdated")]
    )
    return [stored.resource for stored in found]


def register() -> None:
    """Check SearchParameters when they are written, and forget what was known before."""
    hooks.before_write(["SearchParameter"], _check)
    hooks.before_delete(["SearchParameter"], lambda repository, _: _forget(repository.identity.project))
    database.follow(_known.clear, _known.clear)


def _check(repository: Repository, resource: dict[str, Any], _previous: dict[str, Any] | None) -> None:
    """Refuse an active SearchParameter that could not be searched by; drafts may say what they like."""
    project = repository.identity.project
    if resource.get("status") == "active":
        others = [other for other in _active(project) if other["id"] != resource["id"]]
        if len(others) >= MOST:
            raise errors.bad_request(f"A project may have {MOST} active SearchParameters at most")
        taken = custom.merge(others)
        for base, parameter in custom.compile_parameter(resource).items():
            if parameter.code in custom.of_type(taken, base):
                raise errors.bad_request(
                    f"SearchParameter.code {parameter.code} is taken by another active SearchParameter of {base}",
                    "SearchParameter.code",
                )
    _forget(project)


def _forget(project: str) -> None:
    def forget() -> None:
        with _lock:
            _known.pop(project, None)

    database.on_commit(forget)
