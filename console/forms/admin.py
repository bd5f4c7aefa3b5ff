"""Forms of the project's pages."""

from __future__ import annotations

from typing import Any

from django import forms


class ClientForm(forms.Form):
    """A client application."""

    name = forms.CharField(
        label="Name", max_length=200, widget=forms.TextInput(attrs={"autocomplete": "off"})
    )
    description = forms.CharField(label="Description", required=False, max_length=2000)
    admin = forms.BooleanField(
        label="Project admin",
        required=False,
        help_text="Needed to create and deploy Bots, for example by the command line.",
    )


class PackageForm(forms.Form):
    """A wheel to add."""

    file = forms.FileField(
        label="Wheel",
        widget=forms.FileInput(attrs={"accept": ".whl"}),
        error_messages={"required": "Choose a file.", "empty": "The file is empty."},
        help_text="A file …-py3-none-any.whl: pure Python, at most 16 MB for all wheels of the project. It replaces one of the same name.",
    )


class InviteForm(forms.Form):
    """A person who becomes a member of the project."""

    first_name = forms.CharField(label="First name", max_length=200)
    last_name = forms.CharField(label="Last name", max_length=200)
    email = forms.EmailField(label="Email")
    role = forms.ChoiceField(label="Role", choices=[("Practitioner", "Practitioner"), ("Patient", "Patient")])
    password = forms.CharField(
        label="First password",
        required=False,
        strip=False,
        help_text="For a person who has no account yet. At least 8 characters.",
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    send_email = forms.BooleanField(
        label="Send email",
        required=False,
        help_text="With a link to choose a password. Without email and first password the person asks for the link on the sign-in page.",
    )
    admin = forms.BooleanField(label="Project admin", required=False)

    def refuse(self, outcome: dict[str, Any]) -> None:
        """Put the issues of a refusal at their fields, the rest on top."""
        fields = {
            "firstName": "first_name",
            "lastName": "last_name",
            "email": "email",
            "password": "password",
        }
        for issue in outcome.get("issue") or []:
            text = (issue.get("details") or {}).get("text") or "Not accepted"
            self.add_error(fields.get((issue.get("expression") or [""])[0]), text)
