"""Addresses of the pages (shared/ux.md §5). No trailing slash; what is no page stands under `/-/`."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, re_path

from console import access
from console.views import (
    admin,
    auditevent,
    bot,
    deployment,
    editor,
    environment,
    history,
    overview,
    package,
    resource,
    schedule,
    secret,
    signin,
    subscription,
)

_TYPE = r"^(?P<type>[A-Z][A-Za-z]+)"
_ID = rf"{_TYPE}/(?P<id>[A-Za-z0-9.-]{{1,64}})"


def bot_new_alias(request: HttpRequest) -> HttpResponse:
    """`/Bot/new`, as in Medplum."""
    access.admin(request)
    return HttpResponseRedirect("/admin/bots/new")


urlpatterns: list[URLPattern] = [
    path("", overview.overview, name="overview"),
    path("help", overview.help_page, name="help_page"),
    path("signin", signin.signin, name="signin"),
    path("signout", signin.signout, name="signout"),
    path("resetpassword", signin.reset_password, name="reset_password"),
    path("setpassword/<str:id>/<str:secret>", signin.set_password, name="set_password"),
    path("-/theme", signin.theme, name="theme"),
    path("-/health", overview.health_part, name="health_part"),
    path("resources", resource.resource_types_page, name="resource_types_page"),
    # Bot
    path("Bot", bot.bot_list, name="bot_list"),
    path("Bot/new", bot_new_alias, name="bot_new_alias"),
    path("Bot/<str:id>", bot.bot_page, name="bot_page"),
    path("Bot/<str:id>/timeline", bot.bot_page),
    path("Bot/<str:id>/editor", editor.bot_editor, name="bot_editor"),
    path("Bot/<str:id>/source", editor.bot_source, name="bot_source"),
    path("-/Bot/<str:id>/deploy-diff", editor.deploy_diff, name="deploy_diff"),
    path("Bot/<str:id>/subscriptions", bot.bot_subscriptions, name="bot_subscriptions"),
    path("Bot/<str:id>/event", bot.bot_events, name="bot_events"),
    path("Bot/<str:id>/deployments", deployment.bot_deployments, name="bot_deployments"),
    path("Bot/<str:id>/deployments/<int:old>/diff/saved", deployment.deployment_diff, {"new": "saved"}),
    path(
        "Bot/<str:id>/deployments/<int:old>/diff/<int:new>",
        deployment.deployment_diff,
        name="deployment_diff",
    ),
    path(
        "Bot/<str:id>/deployments/<int:number>/source", deployment.deployment_source, name="deployment_source"
    ),
    path(
        "Bot/<str:id>/deployments/<int:number>/roll-back",
        deployment.deployment_restore,
        name="deployment_restore",
    ),
    path("Bot/<str:id>/schedule", schedule.bot_schedule, name="bot_schedule"),
    path("Bot/<str:id>/environment", environment.bot_environment, name="bot_environment"),
    path("Bot/<str:id>/secrets", secret.bot_secrets, name="bot_secrets"),
    path("-/preview/cron", schedule.cron_preview, name="cron_preview"),
    # Subscription
    path("Subscription", subscription.subscription_list, name="subscription_list"),
    path("Subscription/new", subscription.subscription_new, name="subscription_new"),
    path("Subscription/<str:id>", subscription.subscription_page, name="subscription_page"),
    path("Subscription/<str:id>/timeline", subscription.subscription_page),
    path(
        "Subscription/<str:id>/deliveries",
        subscription.subscription_deliveries,
        name="subscription_deliveries",
    ),
    path("Subscription/<str:id>/status", subscription.subscription_status, name="subscription_status"),
    # AuditEvent
    path("AuditEvent", auditevent.auditevent_list, name="auditevent_list"),
    path("AuditEvent/<str:id>", auditevent.auditevent_page, name="auditevent_page"),
    path("AuditEvent/<str:id>/replay", auditevent.run_replay, name="run_replay"),
    path("-/run/<str:id>/input", auditevent.run_input, name="run_input"),
    path("-/news/<str:type>/<str:id>", auditevent.news, name="news"),
    # Project
    path("admin/project", admin.project_page, name="project_page"),
    path("admin/settings", admin.project_settings, name="project_settings"),
    path("admin/packages", package.project_packages, name="project_packages"),
    path("admin/secrets", secret.project_secrets, name="project_secrets"),
    path("admin/bots", admin.project_bots, name="project_bots"),
    path("admin/bots/new", bot.bot_new, name="bot_new"),
    path("admin/users", admin.project_users, name="project_users"),
    path("admin/invite", admin.project_invite, name="project_invite"),
    path("admin/clients", admin.project_clients, name="project_clients"),
    path("admin/clients/new", admin.project_client_new, name="project_client_new"),
    # Any resource
    re_path(rf"{_TYPE}$", resource.resource_list, name="resource_list"),
    re_path(rf"{_TYPE}/new$", resource.resource_new, name="resource_new"),
    re_path(rf"{_ID}(?:/timeline)?$", resource.resource_page, name="resource_page"),
    re_path(rf"{_ID}/details$", resource.resource_details, name="resource_details"),
    re_path(rf"{_ID}/edit$", resource.resource_edit, name="resource_edit"),
    re_path(rf"{_ID}/json$", resource.resource_json, name="resource_json"),
    re_path(rf"{_ID}/delete$", resource.resource_delete, name="resource_delete"),
    re_path(rf"{_ID}/history$", history.resource_history, name="resource_history"),
    re_path(rf"{_ID}/history/(?P<version>[\w-]+)$", history.resource_version, name="resource_version"),
    re_path(rf"{_ID}/history/(?P<version>[\w-]+)/restore$", history.version_restore, name="version_restore"),
    re_path(
        rf"{_ID}/history/(?P<old>[\w-]+)/diff/(?P<new>[\w-]+)$", history.version_diff, name="version_diff"
    ),
    re_path(rf"{_ID}/_history(?:/(?P<version>[\w-]+))?$", history.history_alias, name="history_alias"),
]
