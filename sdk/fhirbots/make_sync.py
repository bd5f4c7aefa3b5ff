"""Makes ``sync_client.py`` from ``client.py``: ``python -m fhirbots.make_sync``. A test keeps the file up to date."""

from __future__ import annotations

import re
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("client.py")
TARGET = Path(__file__).with_name("sync_client.py")

_WORDS = {
    "AsyncTransport": "SyncTransport",
    "AsyncIterator": "Iterator",
    "HttpTransport": "SyncHttpTransport",
    "MedplumClient": "SyncMedplumClient",
    "KeyValue": "SyncKeyValue",
    "ResourceList": "ResourceList",
    "aclose": "close",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "get_profile_async": "get_profile_now",
}
_HEAD = '''"""The client for handlers that are plain functions: :mod:`fhirbots.client` without ``await``.

Made from ``client.py`` by ``python -m fhirbots.make_sync``; change that one.
"""
'''


def sync_source() -> str:
    """The text that ``sync_client.py`` has to have."""
    text = SOURCE.read_text(encoding="utf-8")
    text = _HEAD + text[text.index("from __future__") - 1 :]
    text = text.replace("Medplum's MedplumClient", "Medplum's client")
    text = re.sub(r"\basync (def|for|with)\b", r"\1", text)
    text = re.sub(r"\bawait ", "", text)
    text = text.replace(
        "import AsyncTransport, RefusedError, Response,", "import RefusedError, Response, AsyncTransport,"
    )
    text = text.replace("asyncio.sleep(", "time.sleep(").replace("import asyncio\n", "")
    text = re.sub(r"\b(" + "|".join(_WORDS) + r")\b", lambda found: _WORDS[found[0]], text)
    # the same classes, so that both clients' lists are alike
    start, end = text.index("class ResourceList"), text.index("class SyncMedplumClient")
    text = text[:start] + text[end:]
    text = re.sub(r"(?m)^(Resource|Bundle|Query|Body) = .*\n\"\"\"(?:.|\n)*?\"\"\"\n", "", text)
    text = text.replace(
        "from fhirbots.errors import",
        "from fhirbots.client import Body, Bundle, Query, Resource, ResourceList\nfrom fhirbots.errors import",
    )
    return text.replace(
        "import AsyncIterator, Iterable, Mapping", "import Iterable, Iterator, Mapping"
    ).replace("import Iterator, Iterable, Mapping", "import Iterable, Iterator, Mapping")


def main() -> None:
    """Write the file."""
    TARGET.write_text(sync_source(), encoding="utf-8")
    sys.stderr.write(f"{TARGET} written; run ruff format on it.\n")


if __name__ == "__main__":
    main()
