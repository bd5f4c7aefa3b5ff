"""How large bodies may be, and how much of them is held in memory."""

from __future__ import annotations

from typing import Final

from django.conf import settings

MAX_MEMORY: Final = 2**20
"""Bytes of an upload or a download that are held in memory; what is more goes to or comes from disk."""
CHUNK: Final = 64 * 2**10


def json_limit() -> int:
    """Largest body but for content of Binaries."""
    limit: int = settings.MAX_JSON_BYTES
    return limit


def binary_limit() -> int:
    """Largest content of a Binary."""
    limit: int = settings.MAX_BINARY_BYTES
    return limit
