"""The second argument of a handler."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import hl7

if TYPE_CHECKING:
    from fhirbots.streaming import ResponseStream

HL7_V2 = "x-application/hl7-v2+er7"
"""Content type whose input is given as a message of the ``hl7`` library."""

_VALUES = ("valueString", "valueBoolean", "valueDecimal", "valueInteger")


class BotEvent(Mapping[str, Any]):
    """What a Bot is called with.

    Fields are attributes in snake_case and items under the names of the wire; both spellings work in both places::

        event.content_type == event["contentType"] == event["content_type"] == event.contentType

    A field that was not sent is None as an attribute and missing as an item. Iteration gives the names of the wire.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)

    @property
    def bot(self) -> dict[str, Any]:
        """Reference to the Bot: ``{"reference": "Bot/…", "display": …}``."""
        return self._fields.get("bot") or {}

    @property
    def input(self) -> Any:
        """JSON as dict or list, text, fields of a form as dict, or an :class:`hl7.Message`."""
        return self._fields.get("input")

    @property
    def content_type(self) -> str | None:
        """Content type of the request as received; None for GET and for runs that no request has caused."""
        return self._fields.get("contentType")

    @property
    def secrets(self) -> dict[str, dict[str, Any]]:
        """Secrets by name, each ``{"name": …, "valueString": …}``; :meth:`secret` gives the value."""
        return self._fields.get("secrets") or {}

    @property
    def headers(self) -> dict[str, Any]:
        """Headers of the request; empty where there was none."""
        return self._fields.get("headers") or {}

    @property
    def requester(self) -> dict[str, Any] | None:
        """Reference to the profile of who asked."""
        return self._fields.get("requester")

    @property
    def previous(self) -> dict[str, Any] | None:
        """The version before the change, where the Subscription asks for it; None on create."""
        return self._fields.get("previous")

    @property
    def trace_id(self) -> str | None:
        """Id that the run shares with everything it causes."""
        return self._fields.get("traceId")

    @property
    def response_stream(self) -> ResponseStream | None:
        """The answer in parts, while the Bot runs; None where the Bot or the caller does not stream."""
        return self._fields.get("responseStream")

    def secret(self, name: str, default: Any = None) -> Any:
        """Value of a secret, whatever its type; ``default`` where there is none of the name."""
        secret = self.secrets.get(name, {})
        return next((secret[kind] for kind in _VALUES if kind in secret), default)

    def __getitem__(self, name: str) -> Any:
        if name in self._fields:
            return self._fields[name]
        return self._fields[_wire_name(name)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The event has no field {name}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        shown = {
            name: "…" if name in ("secrets", "headers") else value for name, value in self._fields.items()
        }
        return f"BotEvent({shown!r})"


def parse_hl7(text: str) -> hl7.Message:
    """An HL7 v2 message; segments may end with any kind of line end. Raises :class:`ValueError`."""
    try:
        message = hl7.parse(re.sub(r"[\r\n]+", "\r", text.strip()))
    except (hl7.HL7Exception, IndexError, ValueError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(message, hl7.Message) or not text.strip().startswith("MSH"):
        raise ValueError("it does not begin with an MSH segment")
    return message


def _wire_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
