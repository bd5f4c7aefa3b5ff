"""What can go wrong when a server is asked, as one exception."""

from __future__ import annotations

import json
from typing import Any

Outcome = dict[str, Any]
"""A FHIR OperationOutcome as JSON."""


class OperationOutcomeError(Exception):
    """The server refused a request; or, raised by a Bot, what the Bot answers its caller.

    ``outcome`` is the OperationOutcome. Its ``id`` decides about the HTTP status when a Bot raises the error:
    ``not-found`` is 404, ``forbidden`` 403, anything unknown 400.

    >>> raise OperationOutcomeError.of("The patient has no phone number", code="business-rule")
    Traceback (most recent call last):
    fhirbots.errors.OperationOutcomeError: The patient has no phone number
    """

    def __init__(self, outcome: Outcome, status: int | None = None) -> None:
        super().__init__(text_of(outcome))
        self.outcome = outcome
        self.status = status
        """HTTP status of the answer; None where there was none."""

    @classmethod
    def of(
        cls, text: str, *, code: str = "invalid", id: str | None = None, status: int | None = None
    ) -> OperationOutcomeError:
        """An error with one issue that says ``text``."""
        issue = {"severity": "error", "code": code, "details": {"text": text}}
        outcome: Outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
        return cls(outcome | ({"id": id} if id else {}), status)


def text_of(outcome: Outcome) -> str:
    """The issues of an OperationOutcome as one text, as MedplumClient words it: ``text (expression); text``."""
    texts = []
    for issue in outcome.get("issue") or ():
        text = (issue.get("details") or {}).get("text") or issue.get("diagnostics") or issue.get("code") or ""
        expressions = issue.get("expression")
        texts.append(f"{text} ({', '.join(expressions)})" if expressions else text)
    return "; ".join(text for text in texts if text) or "Unknown error"


def error_of(status: int, content_type: str, body: bytes) -> OperationOutcomeError:
    """The error for an answer with a status of 400 or more, worded as MedplumClient does."""
    text = body.decode("utf-8", "replace")
    if "json" in content_type:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict) and value.get("resourceType") == "OperationOutcome":
            return OperationOutcomeError(value, status)
    elif status == 404:
        return OperationOutcomeError.of("Not found", code="not-found", id="not-found", status=status)
    return OperationOutcomeError.of(text or f"HTTP status {status}", status=status)
