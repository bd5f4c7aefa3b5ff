"""Binary content and the addresses it travels under.

Content lies in a Django storage, ``STORAGES["binary"]``, one file per version. In resources an attachment always says ``Binary/{id}``; clients read a presigned URL instead, which works
without a login for an hour, and whatever form they write comes back as ``Binary/{id}``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import urlencode

import orjson
import psycopg
from django.conf import settings
from django.core.files.base import File
from django.core.files.storage import Storage, storages
from django.utils.crypto import constant_time_compare, salted_hmac

from fhirstore import database, errors, tables
from fhirstore.definitions import registry
from fhirstore.search.terms import canonical_uuid

if TYPE_CHECKING:
    from fhirstore.repository import Repository

EXPIRY: Final = 3600
"""Seconds a presigned URL works."""

PENDING: Final = timedelta(hours=6)
"""How long a file may wait for the commit of its resource."""

_UUID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_SALT: Final = "fhirstore.binaries"


# --- content ------------------------------------------------------------------------------------------------


def storage() -> Storage:
    """Where content lies."""
    return storages["binary"]


def _name(project: str, id: str, version_id: str) -> str:
    # Ids begin with their time, so their end spreads evenly over the folders.
    return f"{project}/{id[-2:]}/{id}/{version_id}"


def announce(project: str, id: str, version_id: str) -> None:
    """Write down that a file is going to be made, so that it is found if its resource never comes (:func:`sweep`).

    Committed at once, on another connection if this thread is in a transaction.
    """
    statement, values = "INSERT INTO pending_file (name) VALUES (%s)", [_name(project, id, version_id)]
    if database.in_transaction():
        with psycopg.connect(**database.connection_parameters()) as apart:
            apart.execute(statement, values)
    else:
        with database.connection() as connection:
            connection.execute(statement, values)


def save(project: str, id: str, version_id: str, content: IO[bytes]) -> None:
    """Store the content of a version, read in chunks; inside the transaction that stores the version, after :func:`announce`."""
    if not database.in_transaction():
        raise RuntimeError("save() needs a transaction")
    name = _name(project, id, version_id)
    storage().save(name, File(content))
    with database.connection() as connection:
        connection.execute("DELETE FROM pending_file WHERE name = %s", [name])


def condemn(project: str, id: str, version_ids: Iterable[str]) -> None:
    """Remove the content of versions once the current transaction is committed, even if this process dies then."""
    names = [_name(project, id, version_id) for version_id in version_ids]
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO pending_file (name) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", [names]
        )

    def remove() -> None:
        for name in names:
            with suppress(FileNotFoundError):
                storage().delete(name)
        with database.connection() as connection:
            connection.execute("DELETE FROM pending_file WHERE name = ANY(%s)", [names])

    database.on_commit(remove)


def sweep() -> int:
    """Remove files whose resource was never committed; returns how many."""
    removed = 0
    with database.transaction() as connection:
        # A name that a transaction is about to delete is locked, and skipped.
        names = connection.execute(
            "SELECT name FROM pending_file WHERE created < clock_timestamp() - %s LIMIT 100"
            " FOR UPDATE SKIP LOCKED",
            [PENDING],
        ).fetchall()
        for (name,) in names:
            with suppress(FileNotFoundError):
                storage().delete(name)
            connection.execute("DELETE FROM pending_file WHERE name = %s", [name])
            removed += 1
    return removed


def copy(project: str, id: str, version_id: str, new_version_id: str) -> None:
    """Give a new version of a Binary the content of an older one, if that has any."""
    with suppress(errors.FhirError), open_content(project, id, version_id) as content:
        announce(project, id, new_version_id)
        save(project, id, new_version_id, content)


def discard(project: str, id: str, version_id: str) -> None:
    """Remove the content of a version that was not stored after all."""
    with suppress(OSError):
        storage().delete(_name(project, id, version_id))


def open_content(project: str, id: str, version_id: str) -> BinaryIO:
    """Open the content of a version.

    Raises:
        FhirError: 404 if there is none.
    """
    try:
        opened: Any = storage().open(_name(project, id, version_id), "rb")
    except FileNotFoundError:
        raise errors.not_found() from None
    return opened  # type: ignore[no-any-return]  # Django's File reads like a BinaryIO


# --- presigned URLs -----------------------------------------------------------------------------------------


def _signature(secret: str, path: str, project: str, expires: int) -> str:
    message = f"{path} {project} {expires}"
    return salted_hmac(_SALT, message, secret=secret, algorithm="sha256").hexdigest()


def presigned_url(binary_id: str, version_id: str, project: str) -> str:
    """An absolute URL that gives the content of a version without login until it expires."""
    expires = int(time.time()) + EXPIRY
    path = f"{binary_id}/{version_id}"
    query = {
        "Expires": expires,
        "Project": project,
        "Signature": _signature(settings.SECRET_KEY, path, project, expires),
    }
    return f"{settings.BASE_URL}storage/{path}?{urlencode(query)}"


def presigned_upload(binary_id: str, version_id: str, project: str, membership: str) -> str:
    """An absolute URL to PUT new content of a Binary to, without login, as a member, until it expires."""
    expires = int(time.time()) + EXPIRY
    query = {
        "Expires": expires,
        "Project": project,
        "Membership": membership,
        "Signature": _signature(
            settings.SECRET_KEY, _upload_path(binary_id, version_id, membership), project, expires
        ),
    }
    return f"{settings.BASE_URL}storage/{binary_id}/{version_id}?{urlencode(query)}"


def _upload_path(binary_id: str, version_id: str, membership: str) -> str:
    return f"PUT {binary_id}/{version_id} {membership}"


def verify_upload(binary_id: str, version_id: str, query: Mapping[str, str]) -> str:
    """Return the membership a presigned URL for an upload was made for.

    Raises:
        FhirError: 403 if it is forged or has expired.
    """
    membership = query.get("Membership", "")
    _verify(_upload_path(binary_id, version_id, membership), query)
    return membership


def verify(binary_id: str, version_id: str, query: Mapping[str, str]) -> str:
    """Check a presigned URL; returns the project.

    Args:
        binary_id: from the path.
        version_id: from the path.
        query: its parameters ``Expires``, ``Project`` and ``Signature``.

    Raises:
        FhirError: 403 if it is forged or has expired.
    """
    return _verify(f"{binary_id}/{version_id}", query)


def _verify(path: str, query: Mapping[str, str]) -> str:
    project, signature = query.get("Project", ""), query.get("Signature", "")
    try:
        expires = int(query.get("Expires", ""))
    except ValueError:
        raise errors.forbidden("The address is incomplete") from None
    secrets = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    if not any(
        constant_time_compare(_signature(secret, path, project, expires), signature) for secret in secrets
    ):
        raise errors.forbidden("The address is not signed by this server")
    if expires < time.time():
        raise errors.forbidden("The address has expired; read the resource again for a new one")
    return project


# --- attachments in resources -------------------------------------------------------------------------------


@cache
def _foldable(base_url: str) -> re.Pattern[str]:
    base = re.escape(base_url)
    return re.compile(rf"(?:{base}storage/({_UUID})/{_UUID}(?:\?.*)?|(?:{base}fhir/R4/)?Binary/({_UUID}))")


def fold_url(url: str) -> str:
    """``Binary/{id}`` for any address of a Binary of this server, other addresses unchanged."""
    if "storage/" not in url and "Binary/" not in url:
        return url
    found = _foldable(settings.BASE_URL).fullmatch(url)
    return f"Binary/{found[1] or found[2]}" if found else url


def fold_urls(resource: Any) -> None:
    """Fold the values of all ``url`` and ``path`` elements in place."""
    if isinstance(resource, dict):
        for key, value in resource.items():
            if isinstance(value, str):
                if key in ("url", "path"):
                    resource[key] = fold_url(value)
            else:
                fold_urls(value)
    elif isinstance(resource, list):
        for item in resource:
            fold_urls(item)


_STORED: Final = re.compile(rf'"(url|path)":"Binary/({_UUID})"'.encode())


def presign_urls(content: bytes, repository: Repository | None = None) -> bytes:
    """Replace ``Binary/{id}`` in the ``url`` and ``path`` elements of a resource by presigned URLs.

    Args:
        content: the resource as JSON. Ids of other projects and unknown ones stay as they are; without any id the same
            object is returned.
        repository: of whoever will see the result: Binaries he may not read stay as they are. Without it ``content`` has
            to be exactly a stored version, which tells the project; anything else could claim to be of any project.
    """
    if b'"Binary/' not in content:
        return content
    ids = {found[2].decode() for found in _STORED.finditer(content)}
    project = _project_of(content) if repository is None else repository.identity.project
    if not ids or project is None:
        return content
    versions = current_versions(project, ids)
    if repository is not None and (repository.identity.policy or repository.identity.scopes):
        versions = {id: version for id, version in versions.items() if repository.may_read("Binary", id)}

    def signed(found: re.Match[bytes]) -> bytes:
        id = found[2].decode()
        if id not in versions:
            return found[0]
        return b'"%b":%b' % (found[1], orjson.dumps(presigned_url(id, versions[id], project)))

    return _STORED.sub(signed, content)


def _project_of(content: bytes) -> str | None:
    """The project of a stored version; None if ``content`` is none."""
    match orjson.loads(content):
        case {
            "resourceType": str(type_),
            "id": str(id),
            "meta": {"project": str(project), "versionId": str(version_id)},
        } if registry.is_resource_type(type_) and canonical_uuid(project):
            stored = tables.find_version(project, type_, id, version_id)
            return project if stored is not None and stored.content == content else None
        case _:
            return None


def current_versions(project: str, ids: Iterable[str]) -> dict[str, str]:
    """The version ids of Binaries by id; unknown and deleted ones have none."""
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT id::text, version_id::text FROM resource"
            " WHERE type = 'Binary' AND id = ANY(%s::uuid[]) AND project IS NOT DISTINCT FROM %s AND NOT deleted",
            [list(ids), project],
            prepare=True,
        )
        return dict(rows.fetchall())
