"""How pages are sent: the whole page, or the fragment that htmx asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.cache import patch_vary_headers

from console import navigation
from console.access import visitor_of

if TYPE_CHECKING:
    from django_htmx.middleware import HtmxDetails

THEMES = ("light", "dark")
THEME_COOKIE = "theme"


def is_fragment(request: HttpRequest) -> bool:
    """True if htmx wants a part of a page."""
    htmx: HtmxDetails | None = getattr(request, "htmx", None)
    return bool(htmx) and not (htmx and htmx.boosted)


def render_page(
    request: HttpRequest,
    template: str,
    context: dict[str, Any],
    *,
    fragment: str | None = None,
    status: int = 200,
) -> HttpResponse:
    """Render a page inside the shell.

    Args:
        request: the request.
        template: the page.
        context: its values.
        fragment: template to send instead when htmx asks.
        status: HTTP status.
    """
    if fragment is not None and is_fragment(request):
        template = fragment
    visitor = visitor_of(request)
    theme = request.COOKIES.get(THEME_COOKIE)
    shell = {
        "visitor": visitor,
        "person": request.user.pk if visitor else "",
        "theme": theme if theme in THEMES else "",
        "menu": navigation.menu(request.path, is_admin=visitor.is_admin) if visitor else [],
    }
    response = render(request, template, {**shell, **context}, status=status)
    patch_vary_headers(response, ["HX-Request"])
    return response
