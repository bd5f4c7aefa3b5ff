"""What Bots reach beyond this server: `fetch` under the rules of Project and Bot (docs/network.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bots.audit import RUN
from bots.egress import ALLOWED_HOST
from tests.bots.conftest import Project
from tests.bots.remote import Remote, running_remote
from tests.conftest import Server


@pytest.fixture(scope="module")
def remote() -> Iterator[Remote]:
    with running_remote() as server:
        yield server


@pytest.fixture(autouse=True)
def _fresh(remote: Remote) -> None:
    remote.seen.clear()
    remote.gate.clear()


def bot(project: Project, remote: Remote, body: str, *, allowed: bool = True, **elements: Any) -> str:
    """A Bot that may reach the remote server, with a function ``ask(path, init)``."""
    code = (
        f"const ask = (path, init) => fetch('{remote.rule}' + path, init);\n"
        f"export async function handler(medplum, event) {{ {body} }}\n"
    )
    extension = [{"url": ALLOWED_HOST, "valueString": remote.rule}]
    if allowed:
        elements["extension"] = extension
    return project.bot(code, **elements)


def exchanges(project: Project, bot_id: str) -> list[dict[str, Any]]:
    """What the last AuditEvent of a Bot says about its requests."""
    event = project.audit_events(f"Bot/{bot_id}", 1)[-1]
    (run,) = [each for each in event["extension"] if each["url"] == RUN]
    found = [part["extension"] for part in run["extension"] if part["url"] == "exchange"]
    return [
        {part["url"]: next(value for key, value in part.items() if key != "url") for part in parts}
        for parts in found
    ]


def test_nothing_is_allowed_until_somebody_says_so(project: Project, remote: Remote) -> None:
    id = bot(project, remote, "return (await ask('/')).status", allowed=False)
    answer = project.execute(id)
    assert answer.status_code == 400
    text = answer.json()["issue"][0]["details"]["text"]
    assert f"add {remote.rule} to the Project's setting botAllowedHosts" in text
    assert remote.seen == []
    assert [each["error"] for each in exchanges(project, id)] == ["refused"]


def test_a_projects_setting_allows_a_host_for_all_its_bots(project: Project, remote: Remote) -> None:
    id = bot(project, remote, "return await (await ask('/x?secret=1')).text()", allowed=False)
    path = f"/fhir/R4/Project/{project.id}"
    setting = {"name": "botAllowedHosts", "valueString": f"api.example.com {remote.rule}"}
    project.http.patch(path, json=[{"op": "add", "path": "/setting", "value": [setting]}]).raise_for_status()
    assert project.execute(id).text == "hello"
    project.http.patch(path, json=[{"op": "remove", "path": "/setting"}]).raise_for_status()
    assert project.execute(id).status_code == 400
    wrong = project.http.patch(path, json=[{"op": "add", "path": "/setting", "value": [setting | {"valueString": "a/b"}]}])  # fmt: skip
    assert wrong.status_code == 400
    assert "is not a host" in wrong.text


def test_a_bots_hosts_are_changed_by_admins_only(project: Project, remote: Remote) -> None:
    own = bot(project, remote, f"return await medplum.patchResource('Bot', event.bot.reference.slice(4), [{{op: 'add', path: '/extension', value: [{{url: '{ALLOWED_HOST}', valueString: 'evil.test'}}]}}])", allowed=False)  # fmt: skip
    answer = project.execute(own)
    assert answer.status_code == 403
    assert "Only a project admin" in answer.text
    wrong = project.http.patch(
        f"/fhir/R4/Bot/{own}",
        json=[{"op": "add", "path": "/extension", "value": [{"url": ALLOWED_HOST, "valueString": "a b"}]}],
    )
    assert wrong.status_code == 400


def test_the_record_of_a_run_holds_hosts_and_sizes_but_no_content(project: Project, remote: Remote) -> None:
    id = bot(project, remote, "const a = await ask('/echo?patient=Smith', {method: 'POST', body: 'Jane', headers: {authorization: 'Bearer t'}}); await a.text(); await ask('/status?404'); return 1")  # fmt: skip
    assert project.execute(id).text == "1"
    first, second = exchanges(project, id)
    assert first["host"] == "localhost"
    assert (first["method"], first["status"], first["sent"]) == ("POST", 200, 4)
    assert first["received"] > 0
    assert (second["method"], second["status"]) == ("GET", 404)
    event = str(project.audit_events(f"Bot/{id}")[-1])
    assert not any(word in event for word in ("Smith", "Jane", "Bearer", "/echo"))


@pytest.mark.parametrize("language", ["javascript", "python"])
def test_what_a_caller_has_shown_is_not_sent_to_other_servers(
    project: Project, remote: Remote, language: str
) -> None:
    """The Bot runs as its user: its client has the user's cookies, for this server alone."""
    elements = {"runAsUser": True, "extension": [{"url": ALLOWED_HOST, "valueString": remote.rule}]}
    if language == "python":
        code = (
            f"async def handler(medplum, event):\n    await medplum.get('{remote.rule}/echo')\n    return 1"
        )
        id = project.bot(code, filename="bot.py", **elements)
    else:
        code = f"""export async function handler(medplum) {{
            await medplum.get('{remote.rule}/echo');
            await medplum.get('{remote.rule}/redirect?302,{remote.rule}/echo');
            await medplum.get(new URL('{remote.rule}/echo'));
            await medplum.get('{remote.rule}/own', {{ headers: {{ cookie: 'own=1' }} }});
            return 1;
        }}"""
        id = project.bot(code, **elements)
    project.execute(id, Cookie="theirs=1; fhirbots_session=x").raise_for_status()
    assert remote.seen
    assert all("authorization" not in headers for _, _, headers, _ in remote.seen)
    cookies = {path: headers.get("cookie") for _, path, headers, _ in remote.seen}
    assert cookies.pop("/own", "own=1") == "own=1", "what the Bot itself says is sent"
    assert set(cookies.values()) == {None}


def test_an_answer_is_what_fetch_gives(project: Project, remote: Remote) -> None:
    id = bot(project, remote, """
        const r = await ask('/redirect?302,/bytes');
        const bytes = new Uint8Array(await r.arrayBuffer());
        const plain = await ask('/');
        const moved = await ask('/redirect?302,/', {redirect: 'manual'});
        return [r.ok, r.status, r.redirected, new URL(r.url).pathname, bytes.length, bytes[300], plain.headers.get('content-type'),
            plain.headers.getSetCookie(), moved.status, moved.headers.get('location')];
    """)  # fmt: skip
    assert project.execute(id).json() == [True, 200, True, "/bytes", 1 << 20, 44, "text/plain", ["a=1", "b=2"], 302, "/"]  # fmt: skip


def test_a_body_is_read_as_it_comes(project: Project, remote: Remote) -> None:
    """The first piece is there before the server has sent the second: the Bot itself lets it go on."""
    id = bot(project, remote, """
        const reader = (await ask('/slow')).body.getReader();
        const first = new TextDecoder().decode((await reader.read()).value);
        await ask('/go');
        return first;
    """)  # fmt: skip
    assert project.execute(id).text == "first"
    assert remote.seen[-1][1] == "/go"


def test_requests_run_at_the_same_time(project: Project, remote: Remote) -> None:
    id = bot(project, remote, """
        const waiting = [ask('/wait'), ask('/wait'), ask('/wait')];
        await ask('/go');
        const controller = new AbortController();
        const aborted = ask('/wait', {signal: controller.signal}).catch((error) => error.name);
        controller.abort();
        const late = await ask('/wait', {signal: AbortSignal.timeout(50)}).catch((error) => error.name);
        return [await aborted, late, (await medplum.search('Patient')).resourceType];
    """)  # fmt: skip
    assert project.execute(id).json() == ["AbortError", "TimeoutError", "Bundle"]
    assert [each.get("error") for each in exchanges(project, id)] == ["aborted", "aborted", "aborted", None, "aborted"]  # fmt: skip


def test_a_bot_that_waits_for_a_server_is_stopped_in_time(project: Project, remote: Remote) -> None:
    id = bot(project, remote, "return (await ask('/wait')).status", timeout=1)
    answer = project.execute(id)
    assert answer.status_code == 400
    assert "time limit of 1 s" in answer.text
    assert remote.waiting.acquire(timeout=20)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://[::1]:{port}/", "http://169.254.169.254/latest/meta-data/"])  # fmt: skip
def test_addresses_inside_stay_closed_whatever_a_project_allows(
    project: Project, remote: Remote, url: str
) -> None:
    target = url.format(port=remote.port)
    host = {"url": ALLOWED_HOST, "valueString": target.removesuffix("/latest/meta-data/").removesuffix("/")}
    id = project.bot(f"export const handler = async () => (await fetch('{target}')).status", extension=[host])
    answer = project.execute(id)
    assert "not on the public internet" in answer.text
    assert remote.seen == []


def test_headers_do_not_choose_who_a_bot_is(project: Project) -> None:
    """Neither a login nor `on behalf of` in a request of a Bot changes whose request it is."""
    id = project.bot("""
        export async function handler(medplum, event) {
          const base = medplum.getBaseUrl();
          const found = [];
          for (const headers of [{}, { Authorization: 'Bearer x' }, { Authorization: 'Basic ' + btoa('a:b') }, { 'X-Medplum-On-Behalf-Of': event.input.admin }, { Cookie: 'fhirbots_session=x' }]) {
            found.push((await (await fetch(base + 'auth/me', { headers })).json()).profile.id);
          }
          const token = await fetch(base + 'oauth2/token', { method: 'POST', body: new URLSearchParams({ grant_type: 'client_credentials' }) });
          const outside = await Promise.all(['oauth2/../admin/projects', '..%2fetc/passwd', 'signin', 'Bot', 'healthcheck'].map(async (path) => (await fetch(base + path)).status));
          return [new Set(found).size, found[0] === event.bot.reference.slice(4), token.status, outside];
        }""")  # fmt: skip
    assert project.execute(id, {"admin": f"ProjectMembership/{project.admin.identity.membership}"}).json() == [1, True, 400, [404] * 5]  # fmt: skip


LOG_IN = """
const { MedplumClient } = require('@medplum/core');
exports.handler = async (medplum, event) => {
  const [id, secret] = event.input;
  const own = new MedplumClient({ baseUrl: medplum.getBaseUrl(), clientId: id, clientSecret: secret });
  await own.startClientLogin(id, secret);
  const made = await own.createResource({ resourceType: 'Basic', code: { text: 'x' } });
  const mine = await medplum.createResource({ resourceType: 'Basic', code: { text: 'y' } });
  return [own.getProfile().id, made.meta.author.reference, mine.meta.author.reference];
};"""


def test_bot_logs_in_as_another_client_only_where_its_own_server_is_an_allowed_host(
    project: Project, server: Server
) -> None:
    client = project.post(f"/admin/projects/{project.id}/client", {"name": "Another"})
    credentials = [client["id"], client["secret"]]
    refused = project.execute(project.bot(LOG_IN, filename="a.cjs"), credentials)
    assert refused.status_code == 400
    assert "A Bot does not log in to its own server" in refused.text
    everybody = {"url": ALLOWED_HOST, "valueString": "*"}
    wild = project.bot(LOG_IN, filename="a.cjs", extension=[everybody])
    assert "A Bot does not log in to its own server" in project.execute(wild, credentials).text
    named = {"url": ALLOWED_HOST, "valueString": server.base_url}
    allowed = project.bot(LOG_IN, filename="a.cjs", extension=[named], timeout=60)
    other = f"ClientApplication/{client['id']}"
    answer = project.execute(allowed, credentials)
    assert answer.json() == [client["id"], other, f"Bot/{allowed}"], answer.text
    assert [each["method"] for each in exchanges(project, allowed)] == ["POST", "GET", "POST"]
    wrong = project.execute(allowed, [client["id"], "wrong"])
    assert wrong.status_code == 400
    assert "A Bot does not log in" not in wrong.text
