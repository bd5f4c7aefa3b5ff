"""Signing in and out, choosing the project, choosing light or dark."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth import login, logout
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_http_methods, require_POST

from console.access import MEMBERSHIP_KEY, PROJECT_NAME_KEY, visitor_of
from console.forms.signin import ForgottenForm, PasswordForm, SignInForm
from console.htmx import THEME_COOKIE, THEMES, render_page
from fhirstore.api import (
    FhirError,
    memberships_of_user,
    password_forgotten,
    password_link_user,
    password_set,
)

YEAR = 365 * 24 * 3600
SIGNED_OUT = "/signin?signed-out"
"""The page whose script forgets what this tab keeps for its person, unlike that of a session that has only expired."""


@require_http_methods(["GET", "HEAD", "POST"])
def signin(request: HttpRequest) -> HttpResponse:
    """Sign in; with several memberships the project is chosen in a second step."""
    visitor = visitor_of(request)
    if request.user.is_authenticated and (
        visitor is None or "switch" in request.GET or request.POST.get("membership")
    ):
        return _choose_project(request)
    if visitor is not None:
        return HttpResponseRedirect(_next(request))
    form = SignInForm(request, request.POST or None)
    if request.method == "POST" and form.is_valid():
        login(request, form.user, backend="django.contrib.auth.backends.ModelBackend")
        return _choose_project(request)
    context = {"form": form, "next": _next(request), "signed_out": "signed-out" in request.GET}
    return render_page(request, "account/signin.html", context, status=422 if form.errors else 200)


def _choose_project(request: HttpRequest) -> HttpResponse:
    user = request.user
    memberships = memberships_of_user(user) if user.is_authenticated else []
    wanted = request.POST.get("membership")
    chosen = [m for m in memberships if m.id == wanted] if wanted else memberships
    if len(chosen) == 1 and (wanted or "switch" not in request.GET):
        request.session[MEMBERSHIP_KEY] = chosen[0].id
        request.session[PROJECT_NAME_KEY] = chosen[0].project_name
        return HttpResponseRedirect(_next(request))
    if not memberships:
        logout(request)
        form = SignInForm(request, {})
        form.full_clean()
        form.errors.clear()
        form.add_error(None, "You are not a member of any project. Ask a project admin for an invitation.")
        return render_page(request, "account/signin.html", {"form": form, "next": _next(request)}, status=403)
    context = {"projects": memberships, "next": _next(request)}
    return render_page(request, "account/signin.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def signout(request: HttpRequest) -> HttpResponse:
    """Sign out by form; a mere link only asks."""
    if request.method == "POST":
        logout(request)
        messages.success(request, "You are signed out.")
        return HttpResponseRedirect(SIGNED_OUT)
    return render_page(request, "account/signout.html", {})


@require_http_methods(["GET", "HEAD", "POST"])
def reset_password(request: HttpRequest) -> HttpResponse:
    """Ask for a link to set a new password. The page does not tell who has an account."""
    form = ForgottenForm(request.POST if request.method == "POST" else None)
    sent = False
    if request.method == "POST" and form.is_valid():
        try:
            password_forgotten(request, form.cleaned_data["email"])
            sent = True
        except FhirError as error:
            form.add_error(None, f"{error}.")
    return render_page(
        request, "account/forgotten.html", {"form": form, "sent": sent}, status=422 if form.errors else 200
    )


@require_http_methods(["GET", "HEAD", "POST"])
def set_password(request: HttpRequest, id: str, secret: str) -> HttpResponse:
    """Choose a new password, with the link from the email."""
    user = password_link_user(id, secret)
    if user is None:
        return render_page(request, "account/set_password.html", {}, status=404)
    form = PasswordForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            password_set(user, form.cleaned_data["password"])
        except ValidationError as error:
            form.add_error("password", error)
        else:
            logout(request)
            messages.success(request, "Your password is set. Sign in with it.")
            return HttpResponseRedirect(SIGNED_OUT)
    return render_page(
        request, "account/set_password.html", {"form": form}, status=422 if form.errors else 200
    )


@require_POST
def theme(request: HttpRequest) -> HttpResponse:
    """Keep the choice of theme in a cookie, so that the server sends the right page at once."""
    response = HttpResponseRedirect(_next(request))
    chosen = request.POST.get("theme")
    if chosen in THEMES:
        response.set_cookie(THEME_COOKIE, chosen, max_age=YEAR, samesite="Lax", httponly=True)
    else:
        response.delete_cookie(THEME_COOKIE, samesite="Lax")
    return response


def _next(request: HttpRequest) -> str:
    """Where to go afterwards: only addresses of this site."""
    wanted = request.POST.get("next") or request.GET.get("next") or "/"
    safe = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
    return wanted if safe and not wanted.startswith("/signin") else "/"
