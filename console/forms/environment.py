"""Environment variables and allowed hosts of a Bot."""

from __future__ import annotations

import re
from typing import Any

from django import forms

from console.forms.project import MONO


class HostsForm(forms.Form):
    """Hosts that the Bot may reach besides those of the project."""

    hosts = forms.CharField(
        label="Allowed hosts",
        required=False,
        help_text="One on each line: api.example.com, *.example.com, api.example.com:8443, or http://host for a server without TLS.",
        widget=forms.Textarea(attrs={**MONO, "rows": 4}),
    )

    def lines(self) -> list[str]:
        """The rules."""
        return [text for text in re.split(r"[\s,]+", self.cleaned_data["hosts"]) if text]


class VariablesForm(forms.Form):
    """Environment variables of the Bot."""

    variables = forms.CharField(
        label="Environment variables",
        required=False,
        help_text="One on each line: NAME=value. Every project admin sees them: secrets belong on the tab Secrets.",
        widget=forms.Textarea(attrs={**MONO, "rows": 4}),
    )

    def clean_variables(self) -> list[dict[str, Any]]:
        """The variables as items."""
        items = []
        for line in self.cleaned_data["variables"].splitlines():
            name, equals, value = line.partition("=")
            if line.strip() and not equals:
                raise forms.ValidationError(f"The line {line.strip()} has no equals sign.")
            if line.strip():
                items.append({"name": name.strip(), "valueString": value})
        return items
