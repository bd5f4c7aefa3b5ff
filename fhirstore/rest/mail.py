"""``POST /email/v1/send``: mail through Django's back end, as ``medplum.sendEmail`` asks for it.

The body is nodemailer's: addresses as text, ``{name, address}``, or lists of them; attachments with base64 or plain ``content``, or with
``path``/``href`` naming a Binary of the project (``Binary/{id}``, its FHIR address, or a presigned one). Other addresses are not fetched.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import smtplib
from collections.abc import Iterator
from email.errors import MessageError
from email.headerregistry import Address
from email.utils import getaddresses
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import EmailMultiAlternatives
from django.core.validators import validate_email
from django.http import HttpRequest, HttpResponse

from fhirstore.binaries import fold_url
from fhirstore.errors import FhirError, all_ok, bad_request, forbidden, unsupported_media_type
from fhirstore.repository import Repository
from fhirstore.rest.body import parse_json
from fhirstore.rest.http import endpoint, json_response, read_body, read_headers

MAX_RECIPIENTS: Final = 50
MAX_ATTACHMENTS: Final = 20
MAX_BYTES: Final = 25 * 1024 * 1024
"""Of all attachments together: what mail servers take."""

_log = logging.getLogger(__name__)


@endpoint("POST")
def send_email(request: HttpRequest, repository: Repository) -> HttpResponse:
    """Send a message. Needs the feature ``email`` of the project and an admin's membership; 200 with an ok outcome."""
    if "email" not in repository.identity.features:
        raise forbidden("Email is not enabled: the Project needs the feature email")
    if not repository.identity.is_admin:
        raise forbidden("Only members with admin may send email")
    headers = read_headers(request.META)
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise unsupported_media_type("Unsupported content type. Send application/json")
    body = parse_json(read_body(request, headers))
    if not isinstance(body, dict):
        raise bad_request("The request body must be a JSON object")
    message = _message(repository, body)
    try:
        message.send()
    except (MessageError, ValueError):  # a header that is none
        raise bad_request("The email cannot be made: an address or a file name is not valid") from None
    except (OSError, smtplib.SMTPException) as error:
        _log.warning("An email could not be sent: %s", type(error).__name__)
        raise bad_request(
            "The mail server did not take the message; the operator sets it with EMAIL_URL"
        ) from None
    return json_response(all_ok())


def _message(repository: Repository, body: dict[str, Any]) -> EmailMultiAlternatives:
    recipients = {name: _addresses(body.get(name), name) for name in ("to", "cc", "bcc")}
    count = sum(map(len, recipients.values()))
    if not recipients["to"] or count > MAX_RECIPIENTS:
        raise bad_request(
            f"An email needs one recipient in to, and has at most {MAX_RECIPIENTS} in all", "to"
        )
    sender = _addresses(body.get("from"), "from")
    text, html, subject = (_text(body, name) for name in ("text", "html", "subject"))
    if not subject:
        raise bad_request("An email needs a subject", "subject")
    if re.search(r"[\r\n]", subject):
        raise bad_request("The subject is one line", "subject")
    try:
        message = EmailMultiAlternatives(
            subject,
            text,
            settings.DEFAULT_FROM_EMAIL,
            reply_to=_addresses(body.get("replyTo"), "replyTo") or sender or None,
            to=recipients["to"],
            cc=recipients["cc"],
            bcc=recipients["bcc"],
        )
        if html:
            message.attach_alternative(html, "text/html")
        for name, content, content_type in _attachments(repository, body.get("attachments")):
            message.attach(name, content, content_type)
    except (MessageError, ValueError) as error:  # a header that is none
        raise bad_request("The email cannot be made: an address or a file name is not valid") from error
    return message


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise bad_request(f"{name} must be a string", name)
    return value or ""


def _addresses(value: Any, name: str) -> list[str]:
    """Addresses in any of nodemailer's forms, each checked."""
    found: list[str] = []
    for item in value if isinstance(value, list) else [value] if value else []:
        match item:
            case str() if not re.search(r"[\r\n\0]", item):
                pairs = getaddresses([item])
            case {"address": str(address)}:
                pairs = [(str(item.get("name") or ""), address)]
            case _:
                raise bad_request(f"{name} must hold addresses", name)
        for display, address in pairs:
            try:
                validate_email(address)
                found.append(str(Address(display, addr_spec=address)))
            except (ValidationError, ValueError):
                raise bad_request(f"{name} holds something that is no email address", name) from None
    return found


def _attachments(repository: Repository, value: Any) -> Iterator[tuple[str, bytes, str]]:
    if value is not None and not isinstance(value, list):
        raise bad_request("attachments must be an array", "attachments")
    if len(value or ()) > MAX_ATTACHMENTS:
        raise bad_request(f"An email has at most {MAX_ATTACHMENTS} attachments", "attachments")
    size = 0
    for number, item in enumerate(value or ()):
        if not isinstance(item, dict):
            raise bad_request("attachments must hold objects", "attachments")
        content_type, content = _content(repository, item)
        size += len(content)
        if size > MAX_BYTES:
            raise bad_request(f"The attachments are larger than {MAX_BYTES} bytes", "attachments")
        given = item.get("contentType")
        name = str(item.get("filename") or f"attachment-{number + 1}")
        yield name, content, str(given or content_type or "application/octet-stream")


def _content(repository: Repository, item: dict[str, Any]) -> tuple[str | None, bytes]:
    """Content type, where it is known, and bytes of an attachment."""
    path = item.get("path") or item.get("href")
    if isinstance(path, str) and path:
        url = fold_url(path)
        if not url.startswith("Binary/"):
            raise bad_request("An attachment's path must name a Binary of this project", "attachments.path")
        try:
            stored, opened = repository.open_binary(url.removeprefix("Binary/"))
        except FhirError:
            raise bad_request("An attachment names a Binary that is not there", "attachments.path") from None
        with opened:
            return stored.resource.get("contentType"), opened.read(MAX_BYTES + 1)
    content = item.get("content")
    if (
        isinstance(content, dict)
        and content.get("type") == "Buffer"
        and isinstance(content.get("data"), list)
    ):
        try:
            return None, bytes(content["data"])  # how a Buffer of Node looks in JSON
        except (TypeError, ValueError):
            raise bad_request("An attachment's content is no Buffer", "attachments.content") from None
    if not isinstance(content, str):
        raise bad_request("An attachment needs content or path", "attachments")
    if item.get("encoding") != "base64":
        return None, content.encode()
    try:
        return None, base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request("An attachment's content is not base64", "attachments.content") from None
