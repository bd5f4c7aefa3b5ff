"""Packages of a project: wheels that its Python Bots may import."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_http_methods

from bots.api import MAX_WHEEL_BYTES, wheel_add, wheel_remove, wheels
from console import access
from console.forms.admin import PackageForm
from console.htmx import render_page
from fhirstore.api import FhirError, Repository

CRUMBS = [("Project", "/admin/project")]


@require_http_methods(["GET", "HEAD", "POST"])
def project_packages(request: HttpRequest) -> HttpResponse:
    """What Python Bots of the project may import besides what they have already: list, add, delete."""
    repository = access.admin(request)
    if request.method == "POST" and "delete" in request.POST:
        return _delete(request, repository, request.POST["delete"])
    form = PackageForm(request.POST, request.FILES) if request.method == "POST" else PackageForm()
    if request.method == "POST" and form.is_valid() and _add(request, repository, form):
        return HttpResponseRedirect("/admin/packages")
    found = [(wheel, wheel.filename.split("-")[1]) for wheel in wheels(repository)]
    context = {
        "form": form,
        "packages": found,
        "size": sum(wheel.size for wheel, _version in found),
        "limit": MAX_WHEEL_BYTES,
        "crumbs": CRUMBS,
    }
    return render_page(request, "admin/packages.html", context, status=422 if form.errors else 200)


def _add(request: HttpRequest, repository: Repository, form: PackageForm) -> bool:
    """Add the uploaded wheel; False if it was refused."""
    before = {wheel.name for wheel in wheels(repository)}
    upload: UploadedFile[Any] = form.cleaned_data["file"]
    try:
        facts = wheel_add(repository, upload.read(MAX_WHEEL_BYTES + 1))  # enough to see that it is too large
    except FhirError as error:
        form.add_error("file", f"{error}.")
        return False
    done = "replaced" if facts.name in before else "added"
    messages.success(request, f"{facts.filename} {done}. Bots have it from their next deployment on.")
    return True


def _delete(request: HttpRequest, repository: Repository, name: str) -> HttpResponse:
    try:
        wheel_remove(repository, name)
    except FhirError as error:
        messages.error(request, f"{error}.")
    else:
        messages.success(
            request, f"{name} deleted. Bots deployed with it keep it until their next deployment."
        )
    return HttpResponseRedirect("/admin/packages")
