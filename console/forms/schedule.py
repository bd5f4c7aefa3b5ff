"""When a Bot runs by itself."""

from __future__ import annotations

from typing import Any, Final
from zoneinfo import available_timezones

from django import forms

from bots.api import ScheduleState, plan_of_expression
from fhirstore.api import FhirError

EXAMPLES: Final = (
    ("*/15 * * * *", "every 15 minutes"),
    ("0 * * * *", "every hour"),
    ("0 9 * * *", "every day at nine"),
    ("0 9 * * 1-5", "weekdays at nine"),
    ("0 6 1 * *", "on the first of the month at six"),
)


class ScheduleForm(forms.Form):
    """A cron expression, its time zone, and what happens when things go wrong."""

    cron = forms.CharField(
        label="Cron expression",
        max_length=200,
        help_text="Minute, hour, day, month, weekday: 0 9 * * 1-5 is weekdays at nine.",
        widget=forms.TextInput(
            attrs={"class": "mono", "autocomplete": "off", "spellcheck": "false", "list": "examples"}
        ),
    )
    zone = forms.CharField(
        label="Time zone",
        required=False,
        max_length=64,
        widget=forms.TextInput(attrs={"autocomplete": "off", "list": "zones"}),
    )
    overlap = forms.ChoiceField(
        label="When the run before has not ended",
        choices=[
            ("skip", "Leave this one out"),
            ("queue", "Run it afterwards"),
            ("allow", "Run both at the same time"),
        ],
    )
    missed = forms.ChoiceField(
        label="After fhirbots was down",
        choices=[("once", "Run once, late"), ("skip", "Leave out what was missed")],
    )

    def __init__(self, state: ScheduleState, data: Any = None) -> None:
        plan = state.plan
        initial = (
            {"cron": plan.expression, "zone": plan.zone, "overlap": plan.overlap, "missed": plan.missed}
            if plan
            else {}
        )
        super().__init__(data, initial=initial)
        self.fields[
            "zone"
        ].help_text = "An IANA name such as Europe/Berlin. Empty: the time zone of the project."

    def clean(self) -> dict[str, Any]:
        """Refuse what makes no sense, at its field."""
        data = super().clean() or {}
        if not self.errors:
            try:
                plan_of_expression(data["cron"], data["zone"])
            except FhirError as error:
                expression = error.outcome["issue"][0].get("expression") or [""]
                text = error.outcome["issue"][0]["details"]["text"]
                self.add_error("zone" if expression[0] == "timezone" else "cron", text)
        return data


def zones() -> list[str]:
    """The names of all time zones."""
    return sorted(available_timezones())
