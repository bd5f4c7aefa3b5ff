"""The Bot editor: one form whose buttons save, deploy and execute. Works as a plain form and by htmx."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from typing import Any, Final

from csp.decorators import csp_update
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_http_methods, require_POST

from bots.api import ExecutionResult, bot_deploy, bot_execute, bot_save_code, deployment_current
from console import access, diffs, navigation
from console.forms.bot import ACTIONS, SAMPLE_INPUT, EditorForm
from console.htmx import is_fragment, render_page
from console.source import Problem, Source, problems_of, source_of
from console.templatetags.console import seconds
from console.timeline import FAILURES
from console.views.bot import policy_url
from fhirstore.api import FhirError, Repository

MAX_OUTPUT: Final = 200_000
"""Characters of output shown in the result panel; the rest is cut, and the panel says so."""

HL7: Final = "x-application/hl7-v2+er7"
DEFAULT_TIMEOUT: Final = 10


@dataclass(frozen=True, slots=True)
class Said:
    """What the page says about the last action."""

    tone: str
    text: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """Someone else has saved since the page was loaded."""

    text: str
    version_id: str
    rows: list[diffs.Row]


@dataclass(frozen=True, slots=True)
class Shown:
    """A finished run as the result panel shows it."""

    ok: bool
    headline: str
    status: int
    content_type: str
    output: str
    lines: list[dict[str, Any]]
    advice: str = ""
    differs: bool = False
    deployment_number: int | None = None
    audit_event_id: str | None = None


@dataclass
class Editor:
    """The state of one request to the editor: what is stored, what the person sent, what came of it."""

    repository: Repository
    bot: dict[str, Any]
    saved: Source
    deployment: Any
    code: str
    version: str
    """Version of the Bot that the text in the editor comes from."""
    said: Said | None = None
    conflict: Conflict | None = None
    problems: tuple[Problem, ...] | None = None
    result: Shown | None = None
    confirm_deploy: bool = False

    @classmethod
    def load(cls, repository: Repository, bot_id: str) -> Editor:
        """Read the Bot, its saved code and its current deployment."""
        stored, bot = access.read(repository, "Bot", bot_id)
        saved = source_of(repository, stored)
        return cls(
            repository, bot, saved, deployment_current(repository, bot_id), saved.text, saved.bot_version
        )

    @property
    def is_clean(self) -> bool:
        """The text in the editor is the saved one."""
        return self.code == self.saved.text

    @property
    def differs(self) -> bool:
        """The deployed code is not the saved one."""
        return self.deployment is not None and self.deployment.source != self.saved.text

    def reload(self) -> None:
        """Read again what a service has changed; the person's text stays."""
        fresh = Editor.load(self.repository, self.bot["id"])
        self.bot, self.saved, self.deployment = fresh.bot, fresh.saved, fresh.deployment

    def save(self, version: str) -> bool:
        """Store the text as a new version; on a conflict nothing is stored and `conflict` is set.

        Args:
            version: the version of the Bot that may be replaced.
        """
        try:
            bot_save_code(
                self.repository,
                bot_id=self.bot["id"],
                source=self.code,
                filename=self.saved.filename,
                if_match=version,
            )
        except FhirError as error:
            if error.status != 412:
                raise
            self.reload()
            return self._settle(version)
        self.reload()
        return True

    def _settle(self, version: str) -> bool:
        """After a 412: only a change of the code by someone else is a conflict."""
        if self.saved.text == self.code:
            return True
        loaded = self.repository.read_version("Bot", self.bot["id"], version).resource if version else {}
        if loaded.get("sourceCode", {}).get("url") == self.bot.get("sourceCode", {}).get("url"):
            return self.save(self.saved.bot_version)
        self.conflict = Conflict(
            text=f"{self.saved.author or 'Someone'} saved this code at {self.saved.moment:%H:%M} UTC while you were "
            "editing an older version. Your text has not been saved.",
            version_id=self.saved.bot_version,
            rows=diffs.text_diff(self.saved.text, self.code),
        )
        return False

    def deploy(self, note: str) -> None:
        """Deploy what is saved."""
        if self.deployment is not None and not self.differs:
            self.said = Said("info", f"Nothing to deploy: v{self.deployment.number} is the saved code.")
            return
        try:
            deployment = bot_deploy(
                self.repository,
                bot_id=self.bot["id"],
                code=self.saved.text,
                filename=self.saved.filename,
                note=note,
                via="console",
                source_version=self.saved.bot_version,
            )
        except FhirError as error:
            self.problems = problems_of(error)
            kept = f" v{self.deployment.number} keeps running." if self.deployment else ""
            self.said = Said("bad", f"Not deployed: {self.problems[0].sentence}.{kept}")
            return
        self.reload()
        self.problems = ()
        self.said = Said(
            "good", f"Deployed v{deployment.number}. Execute and all triggers now run this code."
        )

    def execute(self, content_type: str, text: str) -> None:
        """Run the deployed code with the Input pane."""
        if self.deployment is None:
            words = "This Bot has not been deployed yet. Save stores the code, Deploy makes it run."
            self.result = Shown(False, "Not run", 0, "", "", [], advice=words)
            return
        try:
            result = bot_execute(
                self.repository,
                self.bot["id"],
                content_type=content_type,
                body=_body(content_type, text),
                headers={"content-type": content_type},
            )
        except FhirError as error:
            words = f"{error}. Is the input really {content_type}?"
            self.result = Shown(False, "Not run", error.status, "", "", [], advice=words)
            return
        shown = show(result)
        self.result = replace(shown, differs=bool(shown.status) and self.deployment.source != self.code)


def show(result: ExecutionResult) -> Shown:
    """Prepare a finished run for the panel. Output and log are text, never markup."""
    if result.failure == "refused":
        return Shown(
            False, "Not run", 0, "", "", [], advice=result.log_text, audit_event_id=result.audit_event_id
        )
    took = seconds(result.duration_ms)
    if result.ok:
        headline = f"Success in {took}"
    else:
        headline = f"Failed after {took}: {FAILURES.get(result.failure or '', 'error')}"
    advice = ""
    if result.failure == "timeout":
        advice = f"Stopped after {took} (time limit). The log up to that point is below."
    lines = [{"text": line.text, "level": line.level, "offset": line.offset_ms} for line in result.log]
    return Shown(
        ok=result.ok,
        headline=headline,
        status=result.status,
        content_type=result.content_type,
        output=_output(result.body, result.content_type),
        lines=lines,
        advice=advice,
        deployment_number=result.deployment_number,
        audit_event_id=result.audit_event_id,
    )


# Monaco runs its languages in workers and writes style elements; nothing else on the site may (ux.md §12).
@csp_update({"worker-src": ["'self'"], "style-src": ["'self'", "'unsafe-inline'"]})  # type: ignore[arg-type]  # only knows views without arguments
@require_http_methods(["GET", "HEAD", "POST"])
def bot_editor(request: HttpRequest, id: str) -> HttpResponse:
    """The editor page; a POST carries the whole form and the name of the button."""
    repository = access.admin(request)
    editor = Editor.load(repository, id)
    data = request.POST if request.method == "POST" else None
    form = EditorForm(data, initial=_initial(editor))
    if data is not None and form.is_valid():
        editor.code, editor.version = form.cleaned_data["code"], form.cleaned_data["version"]
        _act(editor, data.get("action", ""), form.cleaned_data)
    elif data is not None:
        editor.code, editor.version = data.get("code", ""), data.get("version", "")
        editor.said = Said("bad", " ".join(str(text) for texts in form.errors.values() for text in texts))
    context = {
        "bot": editor.bot,
        "form": form,
        "saved": editor.saved,
        # Only a text that is the saved one may replace it: whoever saved in between must not be overwritten unseen.
        "version": editor.saved.bot_version if editor.is_clean else editor.version,
        "clean": editor.is_clean,
        "deployment": editor.deployment,
        "differs": editor.differs,
        "said": editor.said,
        "conflict": editor.conflict,
        "problems": editor.problems,
        "result": editor.result,
        "confirm_deploy": editor.confirm_deploy,
        "show_problems": editor.problems is not None,
        "show_result": editor.result is not None,
        "timeout": editor.bot.get("timeout") or DEFAULT_TIMEOUT,
        "runs_as": "the caller" if editor.bot.get("runAsUser") else "this Bot",
        "policy_url": "" if is_fragment(request) else policy_url(repository, editor.bot),
        "editor_url": f"/Bot/{id}/editor",
        "tabs": navigation.tabs("Bot", id, "Editor"),
        "crumbs": [("Bots", "/Bot"), (editor.bot.get("name") or "Bot", f"/Bot/{id}")],
    }
    status = 409 if editor.conflict and not is_fragment(request) else 200
    return render_page(request, "bot/editor.html", context, fragment="bot/_update.html", status=status)


@require_POST
def deploy_diff(request: HttpRequest, id: str) -> HttpResponse:
    """What Deploy would change: the deployed code against the text in the editor."""
    repository = access.admin(request)
    repository.read("Bot", id)
    deployment = deployment_current(repository, id)
    code = request.POST.get("code", "").replace("\r\n", "\n")
    rows = diffs.text_diff(deployment.source, code) if deployment else []
    added, removed = diffs.counts(rows)
    context = {"deployment": deployment, "rows": rows, "added": added, "removed": removed}
    return render_page(request, "bot/_deploy_diff.html", context)


@require_http_methods(["GET", "HEAD"])
def bot_source(request: HttpRequest, id: str) -> HttpResponse:
    """The saved code as a file."""
    repository = access.admin(request)
    saved = source_of(repository, repository.read("Bot", id))
    response = HttpResponse(saved.text, content_type="text/plain; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{saved.safe_filename}"'
    return response


def _initial(editor: Editor) -> dict[str, str]:
    return {
        "code": editor.saved.text,
        "version": editor.saved.bot_version,
        "input": SAMPLE_INPUT,
        "content_type": "application/fhir+json",
    }


def _act(editor: Editor, action: str, data: dict[str, Any]) -> None:
    """Do what the button says. An unknown or missing action (Enter in a field) does nothing."""
    if action not in ACTIONS or action == "keep":
        return
    if action == "execute":
        editor.execute(data["content_type"], data["input"])
        return
    if action == "deploy" and not editor.is_clean:
        editor.confirm_deploy = True
        editor.said = Said(
            "warn", "The text in the editor differs from the saved code. Deploy publishes what is saved."
        )
        return
    sure = data["sure"] if action == "overwrite" else ""
    if action == "overwrite" and not sure:
        editor.said = Said("warn", "Tick “Replace their code” to overwrite it.")
    if not editor.is_clean and not editor.save(sure or editor.version):
        return
    if action in ("save", "overwrite"):
        editor.said = Said("good", f"Saved. {_deployed(editor)}")
    else:
        editor.deploy(data["note"])


def _deployed(editor: Editor) -> str:
    if editor.deployment is None:
        return "Not deployed yet."
    if editor.differs:
        return f"v{editor.deployment.number} runs until you deploy."
    return f"v{editor.deployment.number} is this code."


def _body(content_type: str, text: str) -> bytes:
    # HL7 v2 segments end with a carriage return; text areas only know line feeds.
    return (text.strip("\n").replace("\n", "\r") if content_type == HL7 else text).encode()


def _output(body: bytes, content_type: str) -> str:
    text = body.decode("utf-8", "replace")
    if "json" in content_type:
        with contextlib.suppress(ValueError):  # a Bot may call any text JSON; then it is shown as it is
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    if content_type == HL7:
        text = text.replace("\r", "\n")
    if len(text) > MAX_OUTPUT:
        return f"{text[:MAX_OUTPUT]}\n… {len(text) - MAX_OUTPUT:,} more characters are not shown."
    return text
