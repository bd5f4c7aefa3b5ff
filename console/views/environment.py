"""What surrounds a Bot: its environment variables, and the hosts it may reach."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_http_methods

from bots.api import bot_hosts, project_hosts, secrets_set, secrets_shown, with_bot_hosts
from console import access
from console.forms.environment import HostsForm, VariablesForm
from console.htmx import render_page
from console.views.bot import bot_context
from fhirstore.api import FhirError, outcome_text


@require_http_methods(["GET", "HEAD", "POST"])
def bot_environment(request: HttpRequest, id: str) -> HttpResponse:
    """Show and change the variables and hosts of a Bot."""
    repository = access.admin(request)
    stored, bot = access.read(repository, "Bot", id)
    action = request.POST.get("action")
    text = "\n".join(f"{item['name']}={item['valueString']}" for item in secrets_shown(repository, id, "env"))
    variables = VariablesForm(request.POST if action == "variables" else None, initial={"variables": text})
    hosts = HostsForm(
        request.POST if action == "hosts" else None, initial={"hosts": "\n".join(bot_hosts(bot))}
    )
    form = {"variables": variables, "hosts": hosts}.get(action or "")
    if form is not None and form.is_valid():
        try:
            if form is hosts:
                repository.update(with_bot_hosts(bot, hosts.lines()), if_match=stored.version_id)
            else:
                secrets_set(repository, id, "env", variables.cleaned_data["variables"])
        except FhirError as error:
            form.add_error(None, outcome_text(error.outcome))
        else:
            messages.success(request, "Saved. The next runs have it so.")
            return HttpResponseRedirect(f"/Bot/{id}/environment")
    project = repository.read("Project", repository.identity.project).resource
    context = bot_context(repository, bot, "Environment") | {
        "variables": variables,
        "hosts": hosts,
        "inherited": project_hosts(project),
    }
    return render_page(
        request, "bot/environment.html", context, status=422 if variables.errors or hosts.errors else 200
    )
