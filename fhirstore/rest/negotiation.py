"""The formats of answers: FHIR is spoken in JSON here, and who asks for anything else alone is told so."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

from fhirstore.errors import not_acceptable
from fhirstore.rest.messages import FhirRequest

_JSON: Final = re.compile(r"(json|text/json|application/([a-z.+-]*\+)?json)(;.*)?")
_RANGE: Final = re.compile(r"(\*/\*|application/\*|application/([a-z.+-]*\+)?json|text/json)")
_ZERO: Final = re.compile(r";\s*q=0(\.0*)?\s*(;|$)")


def check_acceptable(request: FhirRequest) -> None:
    """Raise FhirError (406) if ``_format``, or without it ``Accept``, takes no JSON.

    Binaries and operations have formats of their own and are not asked.
    """
    accept = request.headers.get("accept", "")
    if (
        "_format" not in request.query
        and (not accept or "json" in accept or "*/*" in accept)
        and "q=0" not in accept
    ):
        return
    if request.path.startswith("Binary") or "$" in request.path:
        return
    wanted = dict(parse_qsl(request.query)).get("_format")
    if wanted is not None:
        # A plus sign that was not percent-encoded arrives as a blank.
        if not _JSON.fullmatch(wanted.replace(" ", "+").lower()):
            raise not_acceptable(f"Unsupported _format: {wanted}. Answers are application/fhir+json")
    elif not any(_RANGE.match(each.strip().lower()) and not _ZERO.search(each) for each in accept.split(",")):
        raise not_acceptable("None of the formats in Accept is supported. Answers are application/fhir+json")
