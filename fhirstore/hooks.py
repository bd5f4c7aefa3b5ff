"""What other parts do with a resource inside its write transaction, before it is validated and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from fhirstore.errors import bad_request

if TYPE_CHECKING:
    from fhirstore.repository import Repository

BeforeWrite = Callable[["Repository", dict[str, Any], "dict[str, Any] | None"], None]
BeforeDelete = Callable[["Repository", dict[str, Any]], None]

Review = Callable[["Repository", dict[str, Any], "dict[str, Any] | None", str], "dict[str, Any] | None"]

_review: Review | None = None
_before_write: dict[str, list[BeforeWrite]] = {}
_before_delete: dict[str, list[BeforeDelete]] = {}


def before_write(types: Iterable[str], callback: BeforeWrite) -> None:
    """Call ``callback(repository, resource, previous)`` before a create or update of one of ``types``.

    It may change ``resource`` in place and raise FhirError to refuse; ``previous`` is the stored resource, None on
    create. ``id`` is set, ``meta`` still the client's. Whatever it writes shares the transaction.
    """
    for type_ in types:
        _before_write.setdefault(type_, []).append(callback)


def before_delete(types: Iterable[str], callback: BeforeDelete) -> None:
    """Call ``callback(repository, previous)`` before a resource of one of ``types`` is deleted."""
    for type_ in types:
        _before_delete.setdefault(type_, []).append(callback)


def review_writes(callback: Review) -> None:
    """Let one function review every write of every type just before it is stored; it must be quick to say that it does not care.

    ``callback(repository, resource, previous, interaction)`` gets the complete and valid version (for a delete the one that goes)
    and returns None, or another resource to store in its place; it raises FhirError to refuse. It is called inside the
    transaction of the write.
    """
    global _review
    _review = callback


def review(
    repository: Repository, resource: dict[str, Any], previous: dict[str, Any] | None, interaction: str
) -> dict[str, Any] | None:
    """Call the function of :func:`review_writes`, if there is one."""
    return _review(repository, resource, previous, interaction) if _review is not None else None


def write_hooks(type_: str) -> list[BeforeWrite]:
    """The callbacks for creates and updates of ``type_``."""
    return _before_write.get(type_, [])


def delete_hooks(type_: str) -> list[BeforeDelete]:
    """The callbacks for deletes of ``type_``."""
    return _before_delete.get(type_, [])


_under_review: ContextVar[frozenset[tuple[str, str]]] = ContextVar("under_review", default=frozenset())
"""Project and reference of the resources whose writers wait for what runs here."""


@contextmanager
def reviewing(project: str, reference: str) -> Iterator[None]:
    """Inside, in this thread and context, nothing may write a resource (``Type/id``): its writer holds it and waits for us."""
    token = _under_review.set(_under_review.get() | {(project, reference)})
    try:
        yield
    finally:
        _under_review.reset(token)


def check_not_under_review(project: str, type_: str, id: str) -> None:
    """Raise FhirError (400) for a write that would wait for its own end."""
    reference = f"{type_}/{id}"
    if (project, reference) in _under_review.get():
        raise bad_request(
            f"{reference} is being written, and that write waits for this Bot: the Bot cannot write it itself. Return the changed "
            "resource instead"
        )
