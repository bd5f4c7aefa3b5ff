"""The generated form keeps what it cannot show and makes valid resources."""

from __future__ import annotations

import json
from typing import Any

import pytest

from console.forms.structure import StructureForm, control_name, without_empty
from fhirstore.api import FhirError, issue, outcome, validate
from tests.console.conftest import Person


def fields_of(form: StructureForm) -> dict[str, str]:
    """What a browser would send for a form as it stands."""
    data = {node.field: node.value for node in form.root.controls()}
    data |= {node.field: node.value for node in _choices(form.root)}
    return data | {"base": form.base, "mode": "form", "version": form.version}


def _choices(node: Any) -> list[Any]:
    return ([node] if node.kind == "choice" else []) + [c for part in node.nodes for c in _choices(part)]


def new(resource_type: str) -> StructureForm:
    return StructureForm(resource_type, {"resourceType": resource_type})


def press(form: StructureForm, button: str, value: str, **fields: str) -> StructureForm:
    data = fields_of(form) | {"r." + name.replace("__", "."): text for name, text in fields.items()}
    return StructureForm(form.type, {}, data | {button: value})


def test_a_patient_is_made_by_given_and_family() -> None:
    form = press(new("Patient"), "action", "save", name__0__given__0="Jane", name__0__family="Doe")
    assert form.is_submitted
    assert form.resource == {"resourceType": "Patient", "name": [{"given": ["Jane"], "family": "Doe"}]}
    assert validate(form.resource) == []


def test_controls_are_called_by_element_names() -> None:
    labels = [node.label for node in new("Patient").root.controls()]
    assert {"active", "given", "family", "gender", "birthDate"} <= set(labels)


def test_parts_are_added_and_removed() -> None:
    form = press(new("Patient"), "add", "telecom", name__0__family="Doe")
    assert not form.is_submitted
    form = press(form, "add", "telecom", telecom__0__value="1")
    form = press(form, "add", "contact", telecom__1__value="2")
    form = press(form, "add", "contact.0.name", contact__0__gender="female")
    form = press(form, "drop", "telecom.0", contact__0__name__family="Roe")
    assert form.resource == {
        "resourceType": "Patient",
        "name": [{"family": "Doe"}],
        "telecom": [{"value": "2"}],
        "contact": [{"gender": "female", "name": {"family": "Roe"}}],
    }


def test_only_offered_parts_can_be_added() -> None:
    form = press(new("Patient"), "add", "nonsense.0.what")
    assert form.resource == {"resourceType": "Patient"}


def test_a_choice_changes_its_type_and_keeps_one_value() -> None:
    form = StructureForm("Patient", {"resourceType": "Patient", "id": "x"})
    data = fields_of(form) | {"r.deceased[x]": "boolean", "action": "refresh"}
    form = StructureForm("Patient", {}, data)
    form = press(form, "action", "save", deceasedBoolean="true")
    assert form.resource["deceasedBoolean"] is True
    data = fields_of(form) | {"r.deceased[x]": "dateTime", "action": "refresh"}
    form = press(StructureForm("Patient", {}, data), "action", "save", deceasedDateTime="2024-05-01")
    assert form.resource["deceasedDateTime"] == "2024-05-01"
    assert "deceasedBoolean" not in form.resource


def test_numbers_become_numbers_and_nonsense_stays_for_validation() -> None:
    form = press(new("Patient"), "add", "telecom")
    assert press(form, "action", "save", telecom__0__rank="3").resource["telecom"] == [{"rank": 3}]
    wrong = press(form, "action", "save", telecom__0__rank="third")
    issues = validate(wrong.resource)
    wrong.refuse(FhirError(outcome(None, issues)))
    (node,) = [n for n in wrong.root.controls() if n.name == "telecom.0.rank"]
    assert node.error
    assert node.value == "third"


def test_what_has_no_control_is_kept() -> None:
    resource = {
        "resourceType": "Patient",
        "id": "x",
        "text": {"status": "generated", "div": "<div>x</div>"},
        "extension": [{"url": "http://example.com/x", "valueString": "kept"}],
        "name": [{"family": "Doe", "extension": [{"url": "http://example.com/y", "valueCode": "z"}]}],
    }
    form = StructureForm("Patient", resource)
    assert form.kept == ["text", "extension"]
    saved = press(form, "action", "save", name__0__family="Roe").resource
    assert saved["extension"] == resource["extension"]
    assert saved["text"] == resource["text"]
    assert saved["name"] == [
        {"family": "Roe", "extension": [{"url": "http://example.com/y", "valueCode": "z"}]}
    ]


def test_the_switch_to_json_and_back_keeps_unsaved_values() -> None:
    form = press(new("Patient"), "switch", "json", name__0__family="Doe")
    assert form.view == "json"
    assert json.loads(form.text)["name"] == [{"family": "Doe"}]
    edited = form.text.replace("Doe", "Roe")
    back = StructureForm("Patient", {}, {"mode": "json", "json": edited, "switch": "form"})
    assert back.view == "form"
    assert back.resource["name"] == [{"family": "Roe"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "The text is not valid JSON: unexpected end of data: line 1 column 2"),
        ("[1]", "A resource is a JSON object."),
        ("[" * 100_000, "nested too deeply"),
        ('{"item":' * 200 + "1" + "}" * 200, "nested too deeply"),
        (r'{"gender": "\ud800"}', "not valid JSON"),
        ('{"value": NaN}', "not valid JSON"),
    ],
)
def test_bad_json_is_refused_in_words_and_stays_in_the_box(text: str, said: str) -> None:
    form = StructureForm("Patient", {}, {"mode": "json", "json": text, "action": "save"})
    assert not form.is_submitted
    assert said in form.messages[0]
    assert form.text == text


def test_issues_stand_at_their_controls_and_the_rest_on_top() -> None:
    form = press(new("Patient"), "action", "save", birthDate="never", name__0__given__0="Jane")
    issues = [
        issue("Invalid date", expression="Patient.birthDate"),
        issue("Too odd", expression="Patient.name[0].given"),
        issue("Everything is wrong", expression="Patient"),
    ]
    form.refuse(FhirError(outcome(None, issues)))
    errors = {node.name: node.error for node in form.root.controls() if node.error}
    assert errors == {"birthDate": "Invalid date", "name.0.given.0": "Too odd"}
    assert form.messages == ["Everything is wrong (Patient)"]
    assert not form.is_submitted


def test_required_parts_are_open_from_the_start() -> None:
    form = new("Observation")
    labels = {node.name for node in form.root.controls() if node.required}
    assert "status" in labels
    assert any(node.name.startswith("code.") for node in form.root.controls())


@pytest.mark.parametrize(
    "resource_type", ["Bot", "Questionnaire", "Bundle", "ValueSet", "AccessPolicy", "StructureDefinition"]
)
def test_a_form_can_be_made_for_any_type(resource_type: str) -> None:
    form = new(resource_type)
    again = press(form, "action", "save")
    assert again.resource["resourceType"] == resource_type


def test_control_names_follow_expressions() -> None:
    assert control_name("Patient.name[0].given[1]") == "name.0.given.1"
    assert control_name("Patient") == ""


def test_empty_parts_disappear() -> None:
    assert without_empty({"a": "", "b": [{}, {"c": [None, ""]}], "d": False, "e": 0}) == {"d": False, "e": 0}


def risk(value: str, button: str = "action", name: str = "save") -> StructureForm:
    """A RiskAssessment whose probability was typed."""
    form = press(new("RiskAssessment"), "add", "prediction")
    form = press(form, "add", "action", **{"prediction__0__probability[x]": "decimal"})
    return press(form, button, name, prediction__0__probabilityDecimal=value)


def probability(form: StructureForm) -> str:
    return next(node.value for node in form.root.controls() if node.name.endswith("probabilityDecimal"))


@pytest.mark.parametrize(
    "typed", ["1.10", "0.1000000000000000055", "0.0000001", "1E3", "123456789012345678901.5"]
)
def test_a_number_stays_as_typed_while_the_form_is_open(typed: str) -> None:
    form = risk(typed, "add", "prediction")
    assert probability(form) == typed
    as_json = press(form, "switch", "json")
    assert f'"probabilityDecimal": {typed}' in as_json.text
    back = {"mode": "json", "json": as_json.text, "switch": "form"}
    assert probability(StructureForm("RiskAssessment", {}, back)) == typed


@pytest.mark.parametrize("typed", ["0.1000000000000000055", "1e400", "12345678901234567890.5"])
def test_a_number_that_would_be_stored_as_another_is_refused_at_its_control(typed: str) -> None:
    form = risk(typed)
    assert not form.is_submitted
    assert "more digits than the server keeps" in form.errors["prediction.0.probabilityDecimal"]
    assert probability(form) == typed
    text = f'{{"resourceType": "RiskAssessment", "prediction": [{{"probabilityDecimal": {typed}}}]}}'
    as_json = StructureForm("RiskAssessment", {}, {"mode": "json", "json": text, "action": "save"})
    assert not as_json.is_submitted
    said = "infinity" if typed == "1e400" else "(RiskAssessment.prediction[0].probabilityDecimal)"
    assert said in as_json.messages[0]
    assert as_json.text == text


def test_zeros_at_the_end_of_a_number_do_not_go_unsaid(alice: Person) -> None:
    assert risk("0.25").shortened == []
    assert risk("72.0").shortened == []
    form = risk("0.10")
    assert form.is_submitted
    assert form.shortened == ["RiskAssessment.prediction[0].probabilityDecimal"]
    text = {"resourceType": "Basic", "code": {"text": "x"}, "extension": [{"url": "a:b", "valueDecimal": 0}]}
    sent = {"mode": "json", "action": "save", "json": json.dumps(text).replace(": 0}", ": 1.10}")}
    page = alice.client.post("/Basic/new", sent, follow=True).content.decode()
    assert (
        "Basic created. Zeros at the end of numbers are not kept (Basic.extension[0].valueDecimal)." in page
    )


@pytest.mark.parametrize("typed", ["1_000", "\uff11", "+1", ".5", "NaN", "1,5"])
def test_what_is_no_number_in_fhir_stays_text_that_validation_refuses(typed: str) -> None:
    form = risk(typed)
    assert probability(form) == typed
    assert validate(form.resource)


def test_what_is_too_large_for_a_form_is_edited_as_json(alice: Person) -> None:
    items = [{"linkId": str(number), "type": "string"} for number in range(200)]
    questionnaire = {"resourceType": "Questionnaire", "status": "active", "item": items}
    stored = alice.repository.create(questionnaire)
    page = alice.page(f"/Questionnaire/{stored.id}/edit")
    assert "Too large for a form." in page
    assert 'name="json"' in page
    sent = {"mode": "form", "action": "save", "base": json.dumps({**questionnaire, "item": items * 10})}
    assert "too large for a form" in alice.post("/Questionnaire/new", sent).content.decode()
    nested: dict[str, Any] = {"linkId": "0", "type": "string", "text": "x"}
    for number in range(45):
        nested = {"linkId": f"g{number}", "type": "group", "text": "x", "item": [nested]}
    deep = alice.repository.create({**questionnaire, "item": [nested]})
    for tab in ("", "/details", "/edit", "/json"):
        alice.page(f"/Questionnaire/{deep.id}{tab}")
