"""`POST /email/v1/send` and `/keyvalue/v1/{key}`."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from django.core import mail

from fhirstore.rest import keyvalue
from tests.rest.conftest import Caller, new_caller, text_of

HELLO = {"to": "jane@example.com", "subject": "Hello", "text": "Hello Jane"}


@pytest.fixture(scope="module")
def mailer(database: None) -> Caller:
    """The admin client of a project with the feature."""
    caller = new_caller()
    caller.repository.patch(
        "Project", caller.project, [{"op": "add", "path": "/features/-", "value": "email"}]
    )
    return caller


def send(caller: Caller, body: Any, **more: Any) -> Any:
    return caller.send("POST", "/email/v1/send", body, **({"content_type": "application/json"} | more))


def test_a_message_is_sent(mailer: Caller) -> None:
    body = HELLO | {"cc": ["a@example.com", {"name": "B, Dr.", "address": "b@example.com"}], "bcc": "C <c@example.com>, d@example.com", "html": "<p>Hello</p>", "replyTo": "r@example.com"}  # fmt: skip
    answer = send(mailer, body)
    assert (answer.status_code, answer.json()["id"]) == (200, "ok")
    (message,) = mail.outbox
    assert (message.to, message.subject, message.body) == (["jane@example.com"], "Hello", "Hello Jane")
    assert message.cc == ["a@example.com", '"B, Dr." <b@example.com>']
    assert message.bcc == ["C <c@example.com>", "d@example.com"]
    assert message.reply_to == ["r@example.com"]
    assert message.alternatives[0][0] == "<p>Hello</p>"


def test_attachments_come_inline_and_from_binaries(mailer: Caller) -> None:
    binary = mailer.send("POST", "Binary?_filename=a.pdf", b"%PDF-1", content_type="application/pdf").json()
    attachments = [
        {"filename": "a.txt", "content": "plain"},
        {"filename": "b.bin", "content": base64.b64encode(b"\0\1").decode(), "encoding": "base64"},
        {"filename": "c.pdf", "path": binary["url"]},
        {"path": f"Binary/{binary['id']}"},
        {"filename": "e.bin", "content": {"type": "Buffer", "data": [1, 2]}},
    ]
    assert send(mailer, HELLO | {"attachments": attachments}).status_code == 200
    content = [(name, data, type_) for name, data, type_ in mail.outbox[-1].attachments]
    assert [name for name, _, _ in content] == ["a.txt", "b.bin", "c.pdf", "attachment-4", "e.bin"]
    assert content[1][1] == b"\0\1"
    assert content[2][1:] == (b"%PDF-1", "application/pdf")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"to": None}, "one recipient"),
        ({"to": "nobody"}, "no email address"),
        ({"to": "a@example.com\r\nBcc: x@example.com"}, "must hold addresses"),
        ({"to": {"address": "a@example.com", "name": "A\r\nBcc: x@example.com"}}, "no email address"),
        ({"to": [f"a{n}@example.com" for n in range(60)]}, "at most 50"),
        ({"subject": "a\nBcc: x@example.com"}, "one line"),
        ({"subject": ""}, "needs a subject"),
        ({"text": 5}, "must be a string"),
        ({"attachments": [{"path": "/etc/passwd"}]}, "must name a Binary"),
        ({"attachments": [{"path": "http://169.254.169.254/"}]}, "must name a Binary"),
        ({"attachments": [{"path": "Binary/00000000-0000-4000-8000-000000000000"}]}, "not there"),
        ({"attachments": [{"content": "?", "encoding": "base64"}]}, "not base64"),
        ({"attachments": [{}]}, "needs content or path"),
    ],
)
def test_what_cannot_be_sent(mailer: Caller, change: dict[str, Any], text: str) -> None:
    answer = send(mailer, HELLO | change)
    assert answer.status_code == 400, answer.content
    assert text in text_of(answer)
    assert mail.outbox == []


def test_another_projects_binary_is_not_attached(mailer: Caller, foreign: Caller) -> None:
    binary = foreign.send("POST", "Binary", b"x", content_type="text/plain").json()
    assert send(mailer, HELLO | {"attachments": [{"path": f"Binary/{binary['id']}"}]}).status_code == 400


def test_only_admins_of_projects_with_the_feature(mailer: Caller, home: Caller) -> None:
    assert send(home, HELLO).status_code == 403
    assert send(mailer, HELLO, authorization="").status_code == 401
    assert send(mailer, HELLO, content_type="text/plain").status_code == 415
    assert send(mailer, ["x"]).status_code == 400
    assert mail.outbox == []


def test_a_mail_server_that_is_away_is_told(mailer: Caller, settings: Any) -> None:
    settings.EMAIL_BACKEND, settings.EMAIL_HOST, settings.EMAIL_PORT = "django.core.mail.backends.smtp.EmailBackend", "127.0.0.1", 1  # fmt: skip
    answer = send(mailer, HELLO)
    assert answer.status_code == 400
    assert "EMAIL_URL" in text_of(answer)


def test_keys_and_values(home: Caller, foreign: Caller) -> None:
    url = "/keyvalue/v1/a/key%20with%20ü"
    assert home.send("GET", url).status_code == 404
    assert home.send("PUT", url, "first ü", content_type="text/plain").status_code == 204
    assert home.send("PUT", url, "second ü", content_type="text/plain").status_code == 204
    answer = home.send("GET", url)
    assert (answer.status_code, answer.content.decode()) == (200, "second ü")
    assert answer["content-type"].startswith("text/plain")
    assert foreign.send("GET", url).status_code == 404
    assert home.send("DELETE", url).status_code == 204
    assert home.send("GET", url).status_code == 404
    assert home.send("DELETE", url).status_code == 204
    assert home.send("PUT", url, b"\xff", content_type="text/plain").status_code == 400
    assert home.send("PUT", url, "a\0b", content_type="text/plain").status_code == 400
    assert home.send("PUT", url, "x" * 2_000_000, content_type="text/plain").status_code == 413
    assert home.send("GET", "/keyvalue/v1/%00").status_code == 400
    assert home.send("PUT", "/keyvalue/v1/" + "k" * 501, "x", content_type="text/plain").status_code == 400
    assert home.send("GET", url, authorization="").status_code == 401


def test_a_profile_keeps_so_many_keys(database: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyvalue, "MAX_KEYS", 2)
    own = new_caller()
    for key, status in (("a", 204), ("b", 204), ("c", 400), ("b", 204)):
        assert own.send("PUT", f"/keyvalue/v1/{key}", "x", content_type="text/plain").status_code == status
    assert own.send("DELETE", "/keyvalue/v1/a").status_code == 204
    assert own.send("PUT", "/keyvalue/v1/c", "x", content_type="text/plain").status_code == 204
