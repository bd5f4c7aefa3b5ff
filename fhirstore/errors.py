"""Everything that can go wrong in the store, and the OperationOutcome that says so.

A :class:`FhirError` carries the outcome a client receives. The HTTP status follows from the outcome's id, by
Medplum's table (``shared/medplum/execute.md`` §6, ``fhir-api.md`` §5), so one place decides both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

Outcome = dict[str, Any]
"""A FHIR OperationOutcome as plain JSON."""

STATUS_BY_ID: Final[dict[str, int]] = {
    "ok": 200,
    "created": 201,
    "accepted": 202,
    "found": 302,
    "not-modified": 304,
    "unauthorized": 401,
    "forbidden": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "not-acceptable": 406,
    "conflict": 409,
    "gone": 410,
    "precondition-failed": 412,
    "multiple-matches": 412,
    "content-too-large": 413,
    "unsupported-media-type": 415,
    "upgrade-required": 426,
    "range-not-satisfiable": 416,
    "business-rule": 422,
    "too-many-requests": 429,
    "server-timeout": 504,
}

OK_IDS: Final = frozenset({"ok", "created", "not-modified", "accepted"})


class FhirError(Exception):
    """A refusal with the OperationOutcome to send.

    Attributes:
        outcome: the OperationOutcome as JSON.
        headers: extra response headers, for example ``WWW-Authenticate``.
    """

    def __init__(self, outcome: Outcome, headers: dict[str, str] | None = None) -> None:
        super().__init__(outcome_text(outcome))
        self.outcome = outcome
        self.headers = headers or {}

    @property
    def status(self) -> int:
        """The HTTP status that belongs to the outcome."""
        return status_of(self.outcome)


def outcome_text(outcome: Outcome) -> str:
    """Return the texts of all issues as one line, each followed by its expression in brackets."""
    parts = []
    for issue in outcome.get("issue") or []:
        text = (issue.get("details") or {}).get("text") or issue.get("diagnostics") or issue.get("code") or ""
        where = ", ".join(issue.get("expression") or [])
        parts.append(f"{text} ({where})" if where else text)
    return "; ".join(parts)


def status_of(outcome: Outcome) -> int:
    """Return the HTTP status of an OperationOutcome: by its id, else 500 for ``exception`` and 400 for the rest."""
    status = STATUS_BY_ID.get(outcome.get("id") or "")
    if status is not None:
        return status
    issues = outcome.get("issue") or [{}]
    return 500 if issues[0].get("code") == "exception" else 400


def is_ok(outcome: Outcome) -> bool:
    """True if Medplum's client would take this outcome as success."""
    return outcome.get("id") in OK_IDS


def issue(
    text: str,
    *,
    code: str = "invalid",
    severity: str = "error",
    expression: str | Sequence[str] | None = None,
    diagnostics: str | None = None,
) -> dict[str, Any]:
    """Build one OperationOutcome issue.

    Args:
        text: the sentence for ``details.text``.
        code: FHIR IssueType code.
        severity: ``fatal``, ``error``, ``warning`` or ``information``.
        expression: FHIRPath of the element at fault, or several.
        diagnostics: technical addition; never patient data.
    """
    built: dict[str, Any] = {"severity": severity, "code": code, "details": {"text": text}}
    if diagnostics is not None:
        built["diagnostics"] = diagnostics
    if expression:
        built["expression"] = [expression] if isinstance(expression, str) else list(expression)
    return built


def outcome(outcome_id: str | None, issues: Iterable[dict[str, Any]]) -> Outcome:
    """Build an OperationOutcome from ready issues."""
    built: Outcome = {"resourceType": "OperationOutcome"}
    if outcome_id:
        built["id"] = outcome_id
    built["issue"] = list(issues)
    return built


def all_ok(*extra: dict[str, Any]) -> Outcome:
    """The outcome ``All OK``, with further issues (warnings) behind it."""
    return outcome("ok", [issue("All OK", code="informational", severity="information"), *extra])


def created() -> Outcome:
    """The outcome ``Created``."""
    return outcome("created", [issue("Created", code="informational", severity="information")])


def accepted(location: str) -> Outcome:
    """The outcome of an asynchronous request; ``location`` is its status URL."""
    return outcome(
        "accepted", [issue("Accepted", code="informational", severity="information", diagnostics=location)]
    )


def bad_request(text: str, expression: str | Sequence[str] | None = None) -> FhirError:
    """400, issue code ``invalid``."""
    return FhirError(outcome(None, [issue(text, expression=expression)]))


def too_costly(text: str) -> FhirError:
    """400, issue code ``too-costly``: no 5xx, for which clients would send the same again at once."""
    return FhirError(outcome(None, [issue(text, code="too-costly")]))


def invalid_structure(issues: Iterable[dict[str, Any]]) -> FhirError:
    """400 with the validation issues as given (issue code ``structure`` and friends)."""
    return FhirError(outcome(None, issues))


def unauthorized(text: str = "Unauthorized", *, diagnostics: str | None = None) -> FhirError:
    """401; the HTTP layer adds ``WWW-Authenticate``."""
    return FhirError(outcome("unauthorized", [issue(text, code="login", diagnostics=diagnostics)]))


def forbidden(text: str = "Forbidden", expression: str | None = None) -> FhirError:
    """403."""
    return FhirError(outcome("forbidden", [issue(text, code="forbidden", expression=expression)]))


def not_found(text: str = "Not found") -> FhirError:
    """404; a resource of another project must look exactly like a missing one."""
    return FhirError(outcome("not-found", [issue(text, code="not-found")]))


def method_not_allowed(allowed: Iterable[str]) -> FhirError:
    """405 with an ``Allow`` header."""
    methods = ", ".join(allowed)
    return FhirError(
        outcome(
            "method-not-allowed", [issue(f"Method not allowed. Allowed: {methods}", code="not-supported")]
        ),
        {"Allow": methods},
    )


def gone() -> FhirError:
    """410: deleted."""
    return FhirError(outcome("gone", [issue("Gone", code="deleted")]))


def conflict(text: str = "Resource conflict") -> FhirError:
    """409."""
    return FhirError(outcome("conflict", [issue(text, code="conflict")]))


def precondition_failed(text: str = "Precondition Failed") -> FhirError:
    """412: ``If-Match`` does not name the current version."""
    return FhirError(outcome("precondition-failed", [issue(text, code="processing")]))


def multiple_matches() -> FhirError:
    """412: a conditional request matches several resources."""
    return FhirError(
        outcome(
            "multiple-matches",
            [issue("Multiple resources found matching condition", code="multiple-matches")],
        )
    )


def content_too_large(text: str = "Request body too large") -> FhirError:
    """413."""
    return FhirError(outcome("content-too-large", [issue(text, code="too-long")]))


def not_acceptable(text: str) -> FhirError:
    """406."""
    return FhirError(outcome("not-acceptable", [issue(text, code="not-supported")]))


def unsupported_media_type(text: str) -> FhirError:
    """415."""
    return FhirError(outcome("unsupported-media-type", [issue(text, code="not-supported")]))


def business_rule(text: str) -> FhirError:
    """422."""
    return FhirError(outcome("business-rule", [issue(text, code="business-rule")]))


def too_many_requests(wait: int, header: str) -> FhirError:
    """429 with ``Retry-After``: try again in ``wait`` seconds; ``header`` is the limiter's value of ``RateLimit``."""
    return FhirError(
        outcome(
            "too-many-requests",
            [issue("Too Many Requests", code="throttled", diagnostics=f"Try again in {wait} seconds")],
        ),
        {"Retry-After": str(wait), "RateLimit": header},
    )


def server_error(request_id: str) -> FhirError:
    """500 with the request id only: what broke is in the server's log, never in the answer."""
    return FhirError(
        outcome(
            None, [issue("Internal server error", code="exception", diagnostics=f"Request id {request_id}")]
        )
    )
