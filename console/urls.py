"""The map of the site: fhirstore's API, bots' API, console pages (URLs as shared/ux.md §5)."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, include, path

from console.health import healthcheck

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthcheck", healthcheck),
    path("", include("fhirstore.rest.urls")),
    path("", include("bots.urls")),
    path("", include("console.page_urls")),
]

handler400 = "console.views.errors.bad_request"
handler403 = "console.views.errors.permission_denied"
handler404 = "console.views.errors.page_not_found"
handler500 = "console.views.errors.server_error"
