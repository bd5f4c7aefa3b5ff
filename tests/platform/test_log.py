"""Log lines hold no patient data, whatever fails."""

from __future__ import annotations

import logging
import sys

import orjson
import pytest

from console.log import JsonFormatter, LineFormatter

PATIENT = "Jane Doe, born 1980-02-03"


def failed(name: str, message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    """A record of an exception that quotes a patient, caused by another that does."""
    try:
        try:
            raise ValueError(PATIENT)
        except ValueError as error:
            raise KeyError(PATIENT) from error
    except KeyError:
        record = logging.LogRecord(name, logging.ERROR, __file__, 1, message, arguments, sys.exc_info())
    record.__dict__.update(extra)
    return record


@pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()])
def test_an_exception_is_shown_by_type_and_place_without_its_text(formatter: logging.Formatter) -> None:
    text = formatter.format(failed("fhirstore", "It failed."))
    assert "Jane" not in text
    assert "It failed." in text
    assert "test_log.py" in text
    assert text.index("ValueError") < text.index("builtins.KeyError")


@pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()])
def test_a_failed_task_is_shown_without_arguments_and_exception_text(formatter: logging.Formatter) -> None:
    context = {
        "name": "bots.tasks.deliver",
        "id": "4711",
        "description": "raised unexpected",
        "exc": "Jane Doe",
        "traceback": "… Jane Doe",
        "args": "Jane Doe",
    }
    message = "Task %(name)s[%(id)s] %(description)s: %(exc)s\n%(traceback)s"
    text = formatter.format(failed("celery.app.trace", message, context, data=context))
    assert "Jane" not in text
    assert "Task bots.tasks.deliver[4711] raised unexpected" in text


def test_only_known_fields_are_shown() -> None:
    record = failed("console", "A page failed.", request_id="ab12", request="/Patient?name=Jane")
    assert "request_id=ab12" in LineFormatter().format(record)
    assert "Jane" not in LineFormatter().format(record)
    event = orjson.loads(JsonFormatter().format(record))
    assert event["request_id"] == "ab12"
    assert event["level"] == "ERROR"
    assert set(event) == {"time", "level", "logger", "message", "request_id", "exception"}
