"""The saved code of a Bot as the console handles it, and what a compiler said about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fhirstore.api import FhirError, Repository, Stored

LANGUAGES: Final = {
    "ts": "typescript",
    "mts": "typescript",
    "cts": "typescript",
    "js": "javascript",
    "mjs": "javascript",
    "cjs": "javascript",
    "py": "python",
}


@dataclass(frozen=True, slots=True)
class Source:
    """What *Save* last stored.

    Attributes:
        text: the code, with LF line ends.
        filename: the attachment's title.
        bot_version: version of the Bot it was read with; goes into `If-Match`.
        moment: when the code was saved.
        author: display name of who saved it, empty if unknown.
    """

    text: str
    filename: str
    bot_version: str
    moment: datetime
    author: str = ""

    @property
    def language(self) -> str:
        """Monaco's name of the language, by the suffix of the file name."""
        return LANGUAGES.get(self.filename.rpartition(".")[2].lower(), "javascript")

    @property
    def safe_filename(self) -> str:
        """The file name without anything that could leave its header."""
        return re.sub(r"[^\w.-]", "_", self.filename) or "index.js"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the code. `line` and `column` count from 1; None where the place is unknown."""

    text: str
    line: int | None = None
    column: int | None = None

    @property
    def sentence(self) -> str:
        """Place and text in one line, without a final stop."""
        text = self.text.rstrip(".")
        return f"line {self.line}: {text}" if self.line else text


def source_of(repository: Repository, stored: Stored) -> Source:
    """Read the saved code of a Bot: the Binary of `sourceCode`, else the deprecated inline `code`."""
    bot = stored.resource
    attachment = bot.get("sourceCode") or {}
    author = ((bot.get("meta") or {}).get("author") or {}).get("display") or ""
    filename = attachment.get("title") or "index.ts"
    url = attachment.get("url") or ""
    if not url.startswith("Binary/"):
        return Source(bot.get("code") or "", filename, stored.version_id, stored.last_updated, author)
    binary, content = repository.open_binary(url.removeprefix("Binary/"))
    with content:
        text = content.read().decode("utf-8", "replace").replace("\r\n", "\n")
    who = ((binary.resource.get("meta") or {}).get("author") or {}).get("display") or author
    return Source(text, filename, stored.version_id, binary.last_updated, who)


ISSUE_LINE: Final = "http://hl7.org/fhir/StructureDefinition/operationoutcome-issue-line"
ISSUE_COLUMN: Final = "http://hl7.org/fhir/StructureDefinition/operationoutcome-issue-col"


def problems_of(error: FhirError) -> tuple[Problem, ...]:
    """Turn the issues of a refused deployment into problems; extensions of an issue name its place."""
    problems = []
    for issue in error.outcome.get("issue") or []:
        places = {part["url"]: part.get("valueInteger") for part in issue.get("extension") or []}
        line, column = places.get(ISSUE_LINE), places.get(ISSUE_COLUMN)
        text = (issue.get("details") or {}).get("text") or str(error)
        # The text repeats the place as `index.ts:2:11: …`, for those who see nothing else.
        problems.append(
            Problem(text.partition(f":{line}")[2].partition(": ")[2] or text if line else text, line, column)
        )
    return tuple(problems) or (Problem(str(error)),)
