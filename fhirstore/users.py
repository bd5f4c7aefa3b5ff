"""Users as resources: what a project may know of the people who are its members.

A person is a row of `models.User`, with all that must never be readable beside it; what stands here is made for the reader
and written nowhere. It can be read, not searched, and has no versions.
"""

from __future__ import annotations

from datetime import datetime

import orjson

from fhirstore import database
from fhirstore.search.terms import canonical_uuid
from fhirstore.tables import Stored

_MEMBER = """
SELECT u.email, u.first_name, u.last_name, u.created, bool_or(m.id::text = %(membership)s) AS own
FROM fhirstore_user AS u JOIN fhirstore_membership AS m ON m."user" = 'User/' || u.id
WHERE u.id = %(id)s AND m.project = %(project)s GROUP BY u.id
"""


def find(project: str, id: str, membership: str | None) -> tuple[Stored, bool] | None:
    """Return a member of a project as a User, and whether a membership is his own; None for anybody else.

    Args:
        project: whose member.
        id: of the User.
        membership: id of the ProjectMembership of who asks.
    """
    if canonical_uuid(id) is None:
        return None
    with database.connection() as connection:
        row: tuple[str, str, str, datetime, bool] | None = connection.execute(
            _MEMBER, {"id": id, "project": project, "membership": membership}
        ).fetchone()
    if row is None:
        return None
    email, first, last, created, is_own = row
    names = {"firstName": first, "lastName": last}
    resource = {
        "resourceType": "User",
        "id": id,
        "meta": {
            "versionId": id,
            "lastUpdated": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "project": project,
        },
        **{name: value for name, value in names.items() if value},
        "email": email,
    }
    return Stored("User", id, id, created, orjson.dumps(resource)), is_own
