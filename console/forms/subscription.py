"""A Subscription, with the fields of the tutorial in its order."""

from __future__ import annotations

from typing import Any, Final

from django import forms

from bots.api import INTERACTION_URL

CHANNELS: Final = (("rest-hook", "Rest Hook"),)
STATUSES: Final = (("active", "Active"), ("off", "Off"), ("requested", "Requested"))
INTERACTIONS: Final = (("create", "Created"), ("update", "Updated"), ("delete", "Deleted"))

FIELD_BY_ELEMENT: Final = {
    "status": "status",
    "reason": "reason",
    "criteria": "criteria",
    "channel": "endpoint",
    "channel.type": "channel_type",
    "channel.endpoint": "endpoint",
    "channel.payload": "payload",
    "extension": "interactions",
}


class SubscriptionForm(forms.Form):
    """Fields of a Subscription; `to_resource` makes the JSON."""

    status = forms.ChoiceField(label="Status", choices=STATUSES, initial="active")
    reason = forms.CharField(
        label="Reason", max_length=500, help_text="Why this Subscription exists, for people."
    )
    criteria = forms.CharField(
        label="Criteria",
        max_length=2000,
        help_text="A resource type or a search: Patient, or Observation?status=final.",
        widget=forms.TextInput(attrs={"class": "mono", "autocomplete": "off", "spellcheck": "false"}),
    )
    channel_type = forms.ChoiceField(label="Channel type", choices=CHANNELS)
    endpoint = forms.CharField(
        label="Endpoint",
        max_length=2000,
        help_text="The Bot to run, as Bot/id.",
        widget=forms.TextInput(
            attrs={"class": "mono", "autocomplete": "off", "spellcheck": "false", "list": "bots"}
        ),
    )
    payload = forms.CharField(
        label="Payload",
        required=False,
        initial="application/fhir+json",
        widget=forms.TextInput(attrs={"class": "mono", "autocomplete": "off"}),
    )
    interactions = forms.MultipleChoiceField(
        label="On",
        choices=INTERACTIONS,
        required=False,
        initial=[name for name, _label in INTERACTIONS],
        widget=forms.CheckboxSelectMultiple,
        help_text="No tick means all three.",
    )

    def to_resource(self) -> dict[str, Any]:
        """The Subscription as FHIR JSON."""
        data = self.cleaned_data
        chosen = data["interactions"]
        resource: dict[str, Any] = {
            "resourceType": "Subscription",
            "status": data["status"],
            "reason": data["reason"],
            "criteria": data["criteria"],
            "channel": {"type": data["channel_type"], "endpoint": data["endpoint"]},
        }
        if data["payload"]:
            resource["channel"]["payload"] = data["payload"]
        if chosen and len(chosen) < len(INTERACTIONS):
            resource["extension"] = [{"url": INTERACTION_URL, "valueCode": name} for name in chosen]
        return resource

    def refuse(self, outcome: dict[str, Any]) -> None:
        """Put the issues of a refusal at their fields, the rest on top."""
        for issue in outcome.get("issue") or []:
            text = (issue.get("details") or {}).get("text") or "Not accepted"
            element = (issue.get("expression") or [""])[0].partition(".")[2].split("[")[0]
            self.add_error(FIELD_BY_ELEMENT.get(element), text)
