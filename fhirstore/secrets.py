"""Secrets of Projects and of what belongs to them: encrypted in a table of their own, never in a resource.

``Project.secret`` and ``Project.systemSecret`` keep their names, as Medplum has them, but every value is :data:`MASK`: in the stored
JSON, its history, and all that is read. Whoever writes a list back with the mask in it leaves those values as they are, so
Medplum's app and client work unchanged: they read the list, change an entry, and send all of it.

The key is derived from SECRET_KEY (`auth/keys.py`). Values under a former key (SECRET_KEY_FALLBACKS) still open;
``manage.py rotate_keys`` puts everything under the present one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import orjson
from cryptography.fernet import InvalidToken, MultiFernet

from fhirstore import database, hooks
from fhirstore.auth import keys
from fhirstore.errors import bad_request
from fhirstore.repository import Repository

MASK: Final = "********"
"""What is read in place of a value."""

Kind = Literal["secret", "systemSecret", "env"]
Item = dict[str, Any]
"""``{name, valueString | valueBoolean | valueDecimal | valueInteger}``, as in ``Project.secret``."""

MAX_VALUE: Final = 64 * 1024
"""Characters of a value."""

_VALUES: Final = ("valueString", "valueBoolean", "valueDecimal", "valueInteger")
_FIELDS: Final[tuple[Kind, ...]] = ("secret", "systemSecret")
_PROJECT: Final = "Project"

_STORE = """
INSERT INTO fhirstore_secret (project, owner, kind, name, value, updated) VALUES (%s, %s, %s, %s, %s, now())
ON CONFLICT (project, owner, kind, name) DO UPDATE SET value = EXCLUDED.value, updated = now()
"""


def register() -> None:
    """Seal the secrets of Projects when they are written; forget those of Bots that are deleted."""
    hooks.before_write([_PROJECT], _seal_project)
    hooks.before_delete(["Bot"], _forget)


def replace(project: str, owner: str, kind: Kind, items: Iterable[Any]) -> None:
    """Make these the secrets of an owner; those not among them go.

    Args:
        owner: ``Project``, or the reference of a Bot of it.
        items: with values, or with :data:`MASK` for values that stay.

    Raises FhirError: 400 for an item that is none, twice the same name, or a mask without a value behind it.
    """
    given = [_checked(item) for item in items]
    names = [item["name"] for item in given]
    if len(set(names)) < len(names):
        raise bad_request(
            f"The name {next(name for name in names if names.count(name) > 1)} is there twice", kind
        )
    with database.transaction() as session:
        session.execute(
            "DELETE FROM fhirstore_secret WHERE project = %s AND owner = %s AND kind = %s AND NOT name = ANY(%s)",
            (project, owner, kind, names),
        )
        kept = session.execute(
            "SELECT name FROM fhirstore_secret WHERE project = %s AND owner = %s AND kind = %s",
            (project, owner, kind),
        )
        known = {name for (name,) in kept.fetchall()}
        for item in given:
            if item.get("valueString") != MASK:
                session.execute(
                    _STORE, (project, owner, kind, item["name"], _cipher().encrypt(orjson.dumps(item)))
                )
            elif item["name"] not in known:
                raise bad_request(
                    f"The value of {item['name']} is not known: send it instead of {MASK}", kind
                )


def of_project(project: str) -> dict[tuple[str, str], dict[str, Item]]:
    """All secrets of a project in clear: by owner and kind, then by name.

    One that no key opens is left out: what needs it says that it is missing.
    """
    with database.connection() as session:
        rows = session.execute(
            "SELECT owner, kind, name, value FROM fhirstore_secret WHERE project = %s ORDER BY name",
            (project,),
        ).fetchall()
    found: dict[tuple[str, str], dict[str, Item]] = {}
    cipher = _cipher() if rows else None
    for owner, kind, name, value in rows:
        if cipher and (item := _opened(cipher, bytes(value))) is not None:
            found.setdefault((owner, kind), {})[name] = item
    return found


def rotate() -> tuple[int, int]:
    """Encrypt everything anew with the present SECRET_KEY; returns how many there are, and how many no key opens."""
    cipher, lost = _cipher(), 0
    with database.transaction() as session:
        rows = session.execute("SELECT id, value FROM fhirstore_secret FOR UPDATE").fetchall()
        for id, value in rows:
            try:
                session.execute(
                    "UPDATE fhirstore_secret SET value = %s WHERE id = %s", (cipher.rotate(bytes(value)), id)
                )
            except InvalidToken:
                lost += 1
    return len(rows), lost


def _seal_project(repository: Repository, project: dict[str, Any], _previous: Any) -> None:
    """Hook before a Project is written: put its secrets away."""
    for kind in _FIELDS:
        items = project.get(kind)
        if isinstance(items, list | None):  # else the validation says what it should be
            replace(project["id"], _PROJECT, kind, items or ())
            if items:
                project[kind] = [masked(item) for item in items]


def _forget(repository: Repository, previous: dict[str, Any]) -> None:
    """Hook before a Bot is deleted."""
    with database.transaction() as session:
        session.execute(
            "DELETE FROM fhirstore_secret WHERE project = %s AND owner = %s",
            (repository.identity.project, f"Bot/{previous['id']}"),
        )


def masked(item: Mapping[str, Any]) -> Item:
    """The item as everybody may see it."""
    return {"name": item["name"], "valueString": MASK}


def _checked(item: Any) -> Item:
    """An item that is one; raises FhirError."""
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise bad_request("Every secret needs a name", "secret")
    values = {key: item[key] for key in _VALUES if item.get(key) is not None}
    types: dict[str, tuple[type, ...]] = {
        "valueString": (str,),
        "valueBoolean": (bool,),
        "valueDecimal": (int, float),
        "valueInteger": (int,),
    }
    if len(values) != 1:
        raise bad_request(
            f"The secret {name} needs one value: valueString, valueBoolean, valueDecimal or valueInteger"
        )
    ((key, value),) = values.items()
    if not isinstance(value, types[key]) or (isinstance(value, bool) and key != "valueBoolean"):
        raise bad_request(f"The {key} of the secret {name} is of another type")
    if isinstance(value, str) and len(value) > MAX_VALUE:
        raise bad_request(f"The value of the secret {name} is longer than {MAX_VALUE} characters")
    return {"name": name, key: value}


def _cipher() -> MultiFernet:
    return keys.encryption("project secrets")


def _opened(cipher: MultiFernet, value: bytes) -> Item | None:
    try:
        item: Item = orjson.loads(cipher.decrypt(value))
    except InvalidToken:
        return None
    return item
