"""The Bots' part of the site (the operations are part of the FHIR API)."""

from __future__ import annotations

from django.urls import URLPattern, path

from bots import views, websockets

urlpatterns: list[URLPattern] = [
    path("admin/projects/<str:project>/bot", views.create_bot),
    path("admin/projects/<str:project>/bot/<str:bot>/secrets", views.bot_secrets),
    path("admin/projects/<str:project>/bot/<str:bot>/env", views.bot_environment),
    path("admin/projects/<str:project>/wheels", views.project_wheels),
    path("admin/projects/<str:project>/wheels/<str:name>", views.project_wheel),
    path("webhook/<str:membership>", views.webhook),
    path(websockets.PATH.lstrip("/"), views.websocket),
    path("cds-services", views.discover_services),
    path("cds-services/<str:bot>", views.call_service),
]
