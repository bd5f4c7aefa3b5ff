"""How log lines look: one event a line, as text or as JSON, and never with patient data.

Messages are written by us and by libraries with ids at most. Texts of exceptions are another matter (PostgreSQL quotes rows,
parsers quote input), so an exception is shown by its type and the places in the code, without its text.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

import orjson

SHOWN = ("request_id", "trace_id", "view", "status_code")
"""Extra fields that are shown; others may hold whole requests (Django) or task arguments (Celery)."""


class LineFormatter(logging.Formatter):
    """Text for a terminal: time, level, logger, message, fields."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        """The places in the code and the types, from the first cause on."""
        parts: list[str] = []
        error: BaseException | None = ei[1]
        while error is not None:
            kind = type(error)
            frames = "".join(traceback.format_tb(error.__traceback__))
            parts.append(f"{frames}{kind.__module__}.{kind.__qualname__}")
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\n".join(reversed(parts))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """The line itself."""
        fields = "".join(f" {name}={value}" for name, value in shown_fields(record).items())
        time = self.formatTime(record)
        return f"{time} {record.levelname:7} {record.name}: {record.message}{fields}"

    def format(self, record: logging.LogRecord) -> str:
        """Format the record; Celery's lines on failed tasks lose the exception's text, which they carry in the message."""
        if record.name == "celery.app.trace" and isinstance(record.args, dict):
            record = logging.makeLogRecord(record.__dict__ | {"msg": "Task %(name)s[%(id)s] %(description)s"})
        return super().format(record)


class JsonFormatter(LineFormatter):
    """One JSON object a line, for log collectors."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """Nothing: what `format` of the base class makes is the exception alone."""
        return ""

    def format(self, record: logging.LogRecord) -> str:
        """The whole object."""
        exception = super().format(record).strip()
        event = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage() if record.name != "celery.app.trace" else self._task(record),
            **shown_fields(record),
        }
        return orjson.dumps(event | ({"exception": exception} if exception else {}), default=str).decode()

    def _task(self, record: logging.LogRecord) -> str:
        values = record.args if isinstance(record.args, dict) else {}
        return f"Task {values.get('name')}[{values.get('id')}] {values.get('description')}"


def shown_fields(record: logging.LogRecord) -> dict[str, Any]:
    """The extra fields of the record that may be shown."""
    return {name: value for name in SHOWN if (value := getattr(record, name, None)) is not None}
