"""Forms of a project's settings and secrets."""

from __future__ import annotations

from typing import Any, Final

from django import forms

FEATURES: Final = (
    ("bots", "Bots run"),
    ("cron", "Schedules run Bots"),
    ("email", "Bots and admins send email"),
    ("websocket-subscriptions", "Subscriptions over WebSocket"),
    ("graphql-introspection", "GraphQL tells its schema"),
)
"""Features with an effect here; others of the Project stay as they are."""

MONO: Final = {"class": "mono", "autocomplete": "off", "spellcheck": "false"}


class ProjectForm(forms.Form):
    """What a project admin decides for the whole project. An empty field means the default."""

    name = forms.CharField(label="Name", max_length=200)
    features = forms.MultipleChoiceField(
        label="Features", choices=FEATURES, required=False, widget=forms.CheckboxSelectMultiple
    )
    timeZone = forms.CharField(  # noqa: N815  (called as the setting)
        label="Time zone of schedules",
        required=False,
        max_length=64,
        help_text="An IANA name such as Europe/Berlin. Empty: UTC.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "list": "zones"}),
    )
    botAllowedHosts = forms.CharField(  # noqa: N815
        label="Hosts that Bots may call",
        required=False,
        max_length=4000,
        help_text="Separated by commas: api.example.com, *.example.org. Empty: none.",
        widget=forms.TextInput(attrs=MONO),
    )
    subscriptionMaxAttempts = forms.IntegerField(  # noqa: N815
        label="Attempts of a delivery",
        required=False,
        min_value=1,
        max_value=18,
        help_text="Until it is given up. Empty: 4.",
    )
    botRunData = forms.ChoiceField(  # noqa: N815
        label="What is kept of runs",
        required=False,
        choices=[
            ("", "Log and input"),
            ("log", "Log, but no input"),
            ("none", "Only outcome and duration"),
        ],
    )
    botRunDays = forms.IntegerField(  # noqa: N815
        label="Days until a run is forgotten",
        required=False,
        min_value=1,
        max_value=3650,
        help_text="Empty: 30. AuditEvents stay.",
    )

    SETTINGS = ("timeZone", "botAllowedHosts", "subscriptionMaxAttempts", "botRunData", "botRunDays")

    @classmethod
    def of(cls, project: dict[str, Any], data: Any = None) -> ProjectForm:
        """The form with what a Project says."""
        initial: dict[str, Any] = {
            "name": project.get("name", ""),
            "features": project.get("features") or [],
        }
        for setting in project.get("setting") or ():
            if setting.get("name") in cls.SETTINGS:
                initial[setting["name"]] = next(
                    (value for key, value in setting.items() if key.startswith("value")), None
                )
        return cls(data, initial=initial)

    def to_resource(self, project: dict[str, Any]) -> dict[str, Any]:
        """The Project with what the form says; what the form does not know stays."""
        data = self.cleaned_data
        shown = [code for code, _label in FEATURES]
        features = [code for code in project.get("features") or () if code not in shown] + data["features"]
        settings = [each for each in project.get("setting") or () if each.get("name") not in self.SETTINGS]
        for name in self.SETTINGS:
            if data[name] not in (None, ""):
                kind = "valueInteger" if isinstance(data[name], int) else "valueString"
                settings.append({"name": name, kind: data[name]})
        changed = {**project, "name": data["name"], "features": features, "setting": settings}
        return {
            name: value for name, value in changed.items() if value or name not in ("features", "setting")
        }


class SecretForm(forms.Form):
    """A secret to add or to replace. Its value never comes back to a browser."""

    name = forms.RegexField(
        r"^[A-Za-z_][A-Za-z0-9_.-]*$",
        label="Name",
        max_length=100,
        error_messages={"invalid": "Letters, digits, _ . and - only, beginning with a letter."},
        widget=forms.TextInput(attrs=MONO),
    )
    value = forms.CharField(
        label="Value",
        strip=False,
        max_length=65536,
        widget=forms.Textarea(attrs={**MONO, "rows": 3}),
        help_text="Write-only: it cannot be read again, here or by API.",
    )
