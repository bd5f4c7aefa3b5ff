"""A Bot's environment variables and allowed hosts on its page."""

from __future__ import annotations

from bots.api import bot_hosts, secrets_shown
from tests.console.conftest import Person


def test_variables_are_written_as_lines(alice: Person, bot: str) -> None:
    url = f"/Bot/{bot}/environment"
    alice.post(url, {"action": "variables", "variables": "REGION=north\n\nURL=https://a.test/?b=c\n"})
    assert secrets_shown(alice.repository, bot, "env") == [{"name": "REGION", "valueString": "north"}, {"name": "URL", "valueString": "https://a.test/?b=c"}]  # fmt: skip
    assert "REGION=north" in alice.page(url)
    for wrong, text in (("no sign", "no equals sign"), ("A-B=c", "letters, digits")):
        answer = alice.post(url, {"action": "variables", "variables": wrong})
        assert (answer.status_code, text in answer.content.decode()) == (422, True)


def test_hosts_are_written_as_lines(alice: Person, bot: str) -> None:
    url = f"/Bot/{bot}/environment"
    alice.post(url, {"action": "hosts", "hosts": "api.example.com\n*.example.org"})
    assert bot_hosts(alice.repository.read("Bot", bot).resource) == ["api.example.com", "*.example.org"]
    assert "*.example.org" in alice.page(url)
    answer = alice.post(url, {"action": "hosts", "hosts": "not/a/host"})
    assert (answer.status_code, "is not a host" in answer.content.decode()) == (422, True)
    alice.post(url, {"action": "hosts", "hosts": ""})
    assert "extension" not in alice.repository.read("Bot", bot).resource


def test_other_projects_see_no_such_bot(charlie: Person, bot: str) -> None:
    assert charlie.client.get(f"/Bot/{bot}/environment").status_code == 404
