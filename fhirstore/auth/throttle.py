"""Guessing passwords and secrets is made slow, for everybody on every process: failures are counted in the database.

What is counted are failures of one account from one address, of one account from anywhere, and from one address for any
account. Whoever signs in rightly is never delayed by his own success; the counts of his pair are forgotten.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Final

from fhirstore import database
from fhirstore.auth import keys
from fhirstore.errors import FhirError, issue, outcome

WINDOW: Final = 300
"""Seconds after the last failure until the count begins anew."""

PAIR, ACCOUNT, ADDRESS = 10, 200, 200
"""Failures after which the next try has to wait: of an account from an address, of an account, from an address. The last two are
high, since an attacker must not be able to lock people out, and many people share an address."""


def check(account: str, address: str) -> None:
    """Let a try pass, or refuse it.

    Args:
        account: an email address or a client id, however written.
        address: where the try comes from.

    Raises:
        FhirError: 429 with ``Retry-After`` after too many failures.
    """
    with database.connection() as connection:
        row = connection.execute(
            "SELECT ceil(extract(epoch FROM max(last) + make_interval(secs => %(window)s) - now()))::integer"
            " FROM fhirstore_failure AS f JOIN unnest(%(keys)s::bytea[], %(limits)s::integer[]) AS t (key, most)"
            " ON f.key = t.key AND f.count >= t.most WHERE f.last > now() - make_interval(secs => %(window)s)",
            {"keys": _keys(account, address), "limits": [PAIR, ACCOUNT, ADDRESS], "window": WINDOW},
        ).fetchone()
    if row and row[0]:
        text = f"Too many failed attempts. Try again in {row[0]} seconds"
        raise FhirError(
            outcome("too-many-requests", [issue(text, code="throttled")]), {"Retry-After": str(row[0])}
        )


def failed(account: str, address: str) -> None:
    """Count a failure."""
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO fhirstore_failure AS f (key, count, last) SELECT key, 1, now() FROM unnest(%(keys)s::bytea[]) AS key"
            " ORDER BY key ON CONFLICT (key) DO UPDATE SET last = now(),"
            " count = CASE WHEN f.last > now() - make_interval(secs => %(window)s) THEN f.count + 1 ELSE 1 END",
            {"keys": _keys(account, address), "window": WINDOW},
        )


def succeeded(account: str, address: str) -> None:
    """Forget the failures of an account from an address, and what is too old to count."""
    with database.connection() as connection:
        connection.execute(
            "DELETE FROM fhirstore_failure WHERE key = %s OR last < now() - make_interval(secs => %s)",
            (_keys(account, address)[0], WINDOW),
        )


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 the first 64 bits, for one customer has all the others to himself."""
    try:
        given = ip_address(address)
    except ValueError:
        return address
    if given.version == 4:
        return address
    return str(given.ipv4_mapped or ip_network((given, 64), strict=False))


def _keys(account: str, address: str) -> list[bytes]:
    """The three counters, by digests: the table holds no email addresses."""
    account, address = account.strip().lower(), network_of(address)
    return [
        keys.digest(f"failure {name}")
        for name in (f"{account} {address}", f"account {account}", f"from {address}")
    ]
