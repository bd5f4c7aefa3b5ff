"""A Bot's code as a module, its handler, and what the handler answers. The same inside the sandbox and in tests outside."""

from __future__ import annotations

import dataclasses
import inspect
import json
import linecache
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import hl7

from fhirbots.transport import Response

Handler = Callable[[Any, Any], Any]
"""``handler(medplum, event)``, with ``async`` or without."""
Kind = Literal["undefined", "boolean", "number", "string", "object", "binary", "hl7", "response"]

MODULE_NAME = "bot"
GOOD_OUTCOMES = frozenset(("ok", "created", "not-modified", "accepted"))
_OWN_FOLDER = str(PurePath(__file__).parent)
_PLAIN_ERRORS = (Exception, RuntimeError, ValueError)
_STACK_CHARS = 16384


class NoHandlerError(Exception):
    """The code has no function ``handler`` that takes the client and the event."""

    line = 0


class Answer(NamedTuple):
    """What a handler returned: its kind, and the text of its JSON, or the bytes for ``binary``."""

    kind: Kind
    body: bytes
    outcome: bool = False
    """It is an OperationOutcome."""
    failed: bool = False
    """It is an OperationOutcome that tells of a failure."""
    response: Response | None = None
    """The whole HTTP answer, made by the Bot; ``body`` is its body."""


def load_handler(source: str, filename: str) -> Handler:
    """Run the code as a module and return its handler. Raises what the code raises, and :class:`NoHandlerError`."""
    code = compile(source, filename, "exec", dont_inherit=True)
    # Tracebacks then show the lines of the source, which is in no file.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = types.ModuleType(MODULE_NAME)
    module.__file__ = filename
    sys.modules[MODULE_NAME] = module
    exec(code, module.__dict__)  # noqa: S102 - running the Bot is what this is for
    handler = getattr(module, "handler", None)
    if not callable(handler):
        raise NoHandlerError("The code does not define a function named handler.")
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        error = NoHandlerError("The handler must take two arguments: handler(medplum, event).")
        error.line = getattr(getattr(handler, "__code__", None), "co_firstlineno", 0)
        raise error from None
    except ValueError:
        pass  # a callable without a signature
    return handler  # type: ignore[no-any-return]  # callable() does not tell mypy its type


def is_async(handler: Handler) -> bool:
    """Whether the handler is to be given the client whose methods are awaited."""
    return inspect.iscoroutinefunction(function_of(handler))


def function_of(handler: Handler) -> Any:
    """The function behind a handler, which may be decorated, or an object that can be called."""
    function = inspect.unwrap(handler)
    if not inspect.isroutine(function) and not isinstance(function, type):
        function = getattr(function, "__call__", function)  # noqa: B004 - the method is wanted, not whether there is one
    return function


def answer_of(value: Any) -> Answer:
    """What the value is as an answer. Raises :class:`ValueError` or :class:`TypeError` with a sentence if it cannot be sent."""
    if value is None:
        return Answer("undefined", b"")
    if isinstance(value, bytes | bytearray | memoryview):
        return Answer("binary", bytes(value))
    if isinstance(value, Response):
        return _own(value)
    if isinstance(value, hl7.Message | hl7.Batch | hl7.File):
        return Answer("hl7", _json(str(value)))
    body = _json(value)
    outcome = isinstance(value, Mapping) and value.get("resourceType") == "OperationOutcome"
    failed = outcome and value.get("id") not in GOOD_OUTCOMES
    return Answer(_kind_of(body), body, outcome, failed)


def _own(response: Response) -> Answer:
    body: Any = response.body  # written by hand: it may be anything
    status: Any = response.status
    if isinstance(body, str):
        body = body.encode()
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError("the body of a Response must be bytes or text")
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise ValueError("the status of a Response must be between 200 and 599")
    return Answer("response", bytes(body), response=response)


def _json(value: Any) -> bytes:
    try:
        text = _encoder.encode(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        reasons = {
            "Circular": "it contains itself",
            "Out of range": "it holds a number that is none (NaN or infinite)",
        }
        raise ValueError(
            next((reason for start, reason in reasons.items() if str(error).startswith(start)), str(error))
        ) from None
    return text.encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """JSON for what has none of its own."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and value.is_finite() else float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "model_dump"):  # pydantic, and the resource classes built on it
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "hex") and hasattr(value, "urn"):  # a UUID
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray):
        return list(value)
    raise TypeError(f"it holds a value of type {type(value).__name__}")


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain, allow_nan=False)


def _kind_of(text: bytes) -> Kind:
    start = text[:1]
    if start in (b"{", b"["):
        return "object"
    if start == b'"':
        return "string"
    return "boolean" if start in (b"t", b"f") else "number"


# Errors ---------------------------------------------------------------------------------------------------------------


def message_of(error: BaseException) -> str:
    """What an exception says, with the name of its type where the text alone says little (``KeyError: 'name'``)."""
    if isinstance(error, SystemExit):
        return "The Bot called sys.exit(): return from the handler, or raise an exception, to end the call."
    text = str(error)
    name = type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{name}: {error.msg}"
    if not text:
        return name
    if type(error).__module__ == "builtins" and type(error) not in _PLAIN_ERRORS:
        return f"{name}: {text}"
    return text


def outcome_of(error: BaseException) -> dict[str, Any] | None:
    """The OperationOutcome that an exception carries, if it does."""
    outcome = getattr(error, "outcome", None)
    if isinstance(outcome, Mapping) and outcome.get("resourceType") == "OperationOutcome":
        copy: dict[str, Any] = json.loads(_json(dict(outcome)))
        return copy
    return None


def stack_of(error: BaseException) -> str:
    """The traceback as Python prints it, without the lines of this package."""
    shown = traceback.TracebackException.from_exception(error, limit=-40, compact=True)
    seen: set[int] = set()

    def clean(part: traceback.TracebackException | None) -> None:
        if part is None or id(part) in seen:
            return
        seen.add(id(part))
        kept = [frame for frame in part.stack if not frame.filename.startswith(_OWN_FOLDER)]
        part.stack = traceback.StackSummary.from_list(kept)
        clean(part.__cause__)
        clean(part.__context__)

    clean(shown)
    return "".join(shown.format()).rstrip()[-_STACK_CHARS:]


def place_of(error: BaseException, filename: str) -> tuple[int, int]:
    """Line and column (in UTF-16 units) in the Bot's file where an exception arose; 0 where that is not known."""
    if isinstance(error, SyntaxError) and error.filename == filename:
        before = (error.text or "")[: max((error.offset or 1) - 1, 0)]
        return error.lineno or 0, len(before.encode("utf-16-le", "replace")) // 2 + 1
    if isinstance(error, NoHandlerError):
        return error.line, 1 if error.line else 0
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
    if not frames:
        return 0, 0
    frame = frames[-1]
    return frame.lineno or 0, _column(frame)


def _column(frame: traceback.FrameSummary) -> int:
    """Of the expression, counted in UTF-16 units from 1."""
    line = linecache.getline(frame.filename, frame.lineno or 0)
    before = line.encode()[: frame.colno or 0].decode("utf-8", "ignore") if frame.colno else ""
    return len(before.encode("utf-16-le", "replace")) // 2 + 1
