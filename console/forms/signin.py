"""Sign-in, and new passwords."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpRequest

from fhirstore.api import FhirError, password_check


class SignInForm(forms.Form):
    """E-mail and password. Unknown people and wrong passwords get the same sentence."""

    email = forms.EmailField(
        label="Email", widget=forms.EmailInput(attrs={"autocomplete": "username", "autofocus": True})
    )
    password = forms.CharField(
        label="Password",
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )

    def __init__(self, request: HttpRequest, data: Any = None) -> None:
        super().__init__(data)
        self.request = request
        self.user: Any = None

    def clean(self) -> dict[str, Any]:
        """Check the password; after several failures the address has to wait."""
        data = super().clean() or {}
        if self.errors:
            return data
        try:
            self.user = password_check(self.request, data["email"], data["password"])
        except FhirError as error:
            raise forms.ValidationError(f"{error}.") from None
        if self.user is None:
            raise forms.ValidationError("The email or the password is not right.")
        return data


class ForgottenForm(forms.Form):
    """Whose password was forgotten."""

    email = forms.EmailField(
        label="Email", widget=forms.EmailInput(attrs={"autocomplete": "username", "autofocus": True})
    )


class PasswordForm(forms.Form):
    """A new password."""

    password = forms.CharField(
        label="New password",
        strip=False,
        help_text="At least 8 characters.",
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "autofocus": True}),
    )
