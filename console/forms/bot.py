"""Forms of Bots: creating one, and the editor."""

from __future__ import annotations

from typing import Any, Final

from django import forms

CONTENT_TYPES: Final = (
    ("application/fhir+json", "FHIR JSON"),
    ("application/json", "JSON"),
    ("text/plain", "Text"),
    ("x-application/hl7-v2+er7", "HL7 v2"),
    ("application/x-www-form-urlencoded", "Form"),
)
"""What `$execute` understands (shared/medplum/execute.md §3)."""

LANGUAGES: Final = (("typescript", "TypeScript"), ("javascript", "JavaScript"), ("python", "Python"))

SAMPLE_INPUT: Final = """{
  "resourceType": "Patient",
  "name": [{ "given": ["Jane"], "family": "Doe" }]
}"""

DASH: Final = "\N{EN DASH}"

ACTIONS: Final = frozenset({"save", "deploy", "save-and-deploy", "execute", "overwrite", "keep"})


class BotForm(forms.Form):
    """A new Bot."""

    name = forms.CharField(
        label="Name", max_length=200, widget=forms.TextInput(attrs={"autocomplete": "off"})
    )
    description = forms.CharField(label="Description", required=False, max_length=2000)
    access_policy = forms.ChoiceField(
        label="Access Policy",
        required=False,
        help_text="No access policy: this Bot can read and write everything in the project.",
    )
    language = forms.ChoiceField(label="Language", choices=LANGUAGES)

    def __init__(self, policies: list[tuple[str, str]], data: Any = None) -> None:
        super().__init__(data)
        field = self.fields["access_policy"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [("", f"None {DASH} full access to the project"), *policies]
        field.error_messages["invalid_choice"] = "There is no such access policy in this project."


class EditorForm(forms.Form):
    """The editor page is one form, so that no button loses what stands in another field."""

    code = forms.CharField(
        label="Code",
        required=False,
        strip=False,
        widget=forms.Textarea(
            attrs={
                "id": "code",
                "class": "code",
                "rows": 24,
                "spellcheck": "false",
                "autocapitalize": "off",
                "autocomplete": "off",
                "aria-describedby": "code-hint",
            }
        ),
    )
    version = forms.CharField(required=False)
    input = forms.CharField(
        label="Input",
        required=False,
        strip=False,
        widget=forms.Textarea(
            attrs={
                "id": "input",
                "class": "code",
                "rows": 7,
                "spellcheck": "false",
                "autocomplete": "off",
                "aria-describedby": "input-hint",
            }
        ),
    )
    content_type = forms.ChoiceField(
        label="Content type",
        choices=[(value, f"{label} ({value})") for value, label in CONTENT_TYPES],
        widget=forms.Select(attrs={"id": "content-type"}),
    )
    note = forms.CharField(
        label="Note",
        required=False,
        max_length=200,
        help_text="What has changed, for the list of deployments. Optional.",
        widget=forms.TextInput(attrs={"id": "note", "form": "editor", "autocomplete": "off"}),
    )
    sure = forms.CharField(required=False)

    def clean_code(self) -> str:
        """Browsers send CRLF; code is kept with LF, so that saving unchanged text changes nothing."""
        return str(self.cleaned_data["code"]).replace("\r\n", "\n")

    def clean_input(self) -> str:
        """As for the code."""
        return str(self.cleaned_data["input"]).replace("\r\n", "\n")
