"""AccessPolicy: who sees, finds and changes what."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from fhirstore import binaries
from fhirstore import repository as repository_module
from fhirstore.access import SERVER_ONLY, Policy
from fhirstore.errors import FhirError
from fhirstore.identity import Identity
from fhirstore.repository import Repository
from fhirstore.scopes import parse_scopes
from fhirstore.search.parse import parse
from tests.fhirstore.conftest import patient

Restricted = Callable[..., Repository]


def status(call: Callable[[], object]) -> int:
    try:
        call()
    except FhirError as refused:
        return refused.status
    return 200


def observation(subject: str, text: str = "Weight", **elements: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": text},
        "subject": {"reference": subject},
        **elements,
    }


def test_only_listed_types_are_reachable(repository: Repository, restricted: Restricted) -> None:
    stored, other = repository.create(patient()), repository.create(observation(f"Patient/{uuid.uuid4()}"))
    limited = restricted({"resourceType": "Patient"})
    assert limited.read("Patient", stored.id) == stored
    for call in (
        lambda: limited.read("Observation", other.id),
        lambda: limited.search_all("Observation", ""),
        lambda: limited.history("Observation", other.id),
        lambda: limited.read_version("Observation", other.id, other.version_id),
        lambda: limited.create(other.resource),
        lambda: limited.update(other.resource),
        lambda: limited.patch("Observation", other.id, []),
        lambda: limited.delete("Observation", other.id),
        lambda: restricted().read("Patient", stored.id),
    ):
        assert status(call) == 403


def test_criteria_filter_reads_searches_and_histories(repository: Repository, restricted: Restricted) -> None:
    seen = repository.create(patient("Smith", gender="female"))
    unseen = repository.create(patient("Smith", gender="male"))
    gone = repository.create(patient("Smith", gender="male"))
    repository.delete("Patient", gone.id)
    limited = restricted({"resourceType": "Patient", "criteria": "Patient?gender=female"})
    assert limited.read("Patient", seen.id) == seen
    assert limited.read_version("Patient", seen.id, seen.version_id) == seen
    assert limited.history("Patient", seen.id) == ([seen], 1)
    assert status(lambda: limited.read("Patient", unseen.id)) == 404
    assert status(lambda: limited.read_version("Patient", unseen.id, unseen.version_id)) == 404
    assert status(lambda: limited.history("Patient", unseen.id)) == 404
    assert status(lambda: limited.read("Patient", gone.id)) == 404
    assert status(lambda: limited.delete("Patient", gone.id)) == 404
    assert [found.id for found in limited.search_all("Patient", "name=smith")] == [seen.id]
    assert limited.search_all("Patient", "gender=male") == []
    assert limited.search_all("Patient", f"_id={unseen.id}") == []
    repository.update({**patient("Smith", gender="male"), "id": seen.id})
    assert limited.history("Patient", seen.id) == ([seen], 1), "only versions that fit are shown"


def test_writes_must_fit_before_and_after(repository: Repository, restricted: Restricted) -> None:
    mine = repository.create(patient(gender="female"))
    other = repository.create(patient(gender="male"))
    limited = restricted({"resourceType": "Patient", "criteria": "Patient?gender=female"})
    assert limited.update({**mine.resource, "active": True})[1]
    assert status(lambda: limited.update({**mine.resource, "gender": "male"})) == 403
    assert status(lambda: limited.update({**other.resource, "gender": "female"})) == 404
    assert status(lambda: limited.delete("Patient", other.id)) == 404
    assert status(lambda: limited.create(patient(gender="male"))) == 403
    assert status(lambda: limited.create(patient(gender="female"))) == 200
    patch = [{"op": "replace", "path": "/gender", "value": "male"}]
    assert status(lambda: limited.patch("Patient", mine.id, patch)) == 403
    repository.delete("Patient", other.id)
    assert status(lambda: limited.update({**other.resource, "gender": "female"})) == 404, "nor by restoring"
    assert status(lambda: limited.delete("Patient", mine.id)) == 200
    assert status(lambda: limited.update({**mine.resource})) == 200, "his own he may restore"


def test_readonly_and_interactions(repository: Repository, restricted: Restricted) -> None:
    stored = repository.create(patient())
    reader = restricted({"resourceType": "*", "readonly": True})
    assert reader.read("Patient", stored.id) == stored
    assert status(lambda: reader.update({**stored.resource, "active": True})) == 403
    assert status(lambda: reader.create(patient())) == 403
    assert status(lambda: reader.delete("Patient", stored.id)) == 403
    writer = restricted({"resourceType": "Patient", "interaction": ["create", "search"]})
    assert status(lambda: writer.create(patient())) == 200
    assert status(lambda: writer.search_all("Patient", "")) == 200
    assert status(lambda: writer.read("Patient", stored.id)) == 403
    assert status(lambda: writer.history("Patient", stored.id)) == 403


def test_several_entries_are_alternatives_and_the_first_that_fits_counts(
    repository: Repository, restricted: Restricted
) -> None:
    women, men, others = (repository.create(patient(gender=gender)) for gender in ("female", "male", "other"))
    limited = restricted(
        {"resourceType": "Patient", "criteria": "Patient?gender=female", "hiddenFields": ["name"]},
        {"resourceType": "Patient", "criteria": "Patient?gender=male,female", "readonly": True},
    )
    found = {stored.id: stored.resource for stored in limited.search_all("Patient", "")}
    assert found.keys() == {women.id, men.id}
    assert "name" not in found[women.id]
    assert "name" in found[men.id]
    assert status(lambda: limited.update({**men.resource, "active": True})) == 403, "seen, but not writable"
    assert status(lambda: limited.update({**women.resource, "active": True})) == 200
    assert status(lambda: limited.read("Patient", others.id)) == 404


def test_pages_and_totals_count_only_what_may_be_seen(repository: Repository, restricted: Restricted) -> None:
    from fhirstore.search.parse import parse

    for number in range(6):
        repository.create(patient(gender="female" if number % 2 else "male"))
    limited = restricted({"resourceType": "Patient", "criteria": "Patient?gender=female"})
    result = limited.search(parse("Patient", "_count=2&_total=accurate"))
    assert (len(result.entries), result.total, result.has_next) == (2, 3, True)
    assert limited.search(parse("Patient", "_count=0")).total == 3


def test_hidden_fields_are_never_shown_and_survive_writes(
    repository: Repository, restricted: Restricted
) -> None:
    stored = repository.create(
        patient(
            gender="female",
            birthDate="2000-01-01",
            _birthDate={"extension": [{"url": "https://example.com", "valueString": "x"}]},
            deceasedBoolean=False,
            contact=[{"name": {"family": "Secret"}, "gender": "male"}],
        )
    )
    limited = restricted(
        {"resourceType": "Patient", "hiddenFields": ["birthDate", "deceased[x]", "contact.name", "photo"]}
    )

    def shown(resource: dict[str, Any]) -> None:
        assert resource.keys().isdisjoint({"birthDate", "_birthDate", "deceasedBoolean"})
        assert resource["contact"] == [{"gender": "male"}]

    shown(limited.read("Patient", stored.id).resource)
    shown(limited.search_all("Patient", "gender=female")[0].resource)
    shown(limited.history("Patient", stored.id)[0][0].resource)
    shown(limited.read_version("Patient", stored.id, stored.version_id).resource)
    seen = limited.read("Patient", stored.id).resource
    updated, made = limited.update(seen)
    assert not made, "sending back what was shown changes nothing"
    shown(updated.resource)
    updated, made = limited.update({**seen, "active": True, "birthDate": "1900-01-01"})
    assert made
    shown(updated.resource)
    shown(
        limited.patch("Patient", stored.id, [{"op": "replace", "path": "/gender", "value": "other"}]).resource
    )
    kept = repository.read("Patient", stored.id).resource
    assert (kept["birthDate"], kept["deceasedBoolean"], kept["gender"]) == ("2000-01-01", False, "other")
    assert kept["contact"] == [{"name": {"family": "Secret"}, "gender": "male"}]
    assert (
        "name"
        not in limited.create(patient(contact=[{"name": {"family": "X"}, "gender": "male"}])).resource[
            "contact"
        ][0]
    )


def test_readonly_fields_are_silently_restored(repository: Repository, restricted: Restricted) -> None:
    stored = repository.create(patient(active=True))
    limited = restricted({"resourceType": "Patient", "readonlyFields": ["active", "gender"]})
    updated, _ = limited.update({**patient("New"), "id": stored.id, "active": False, "gender": "male"})
    assert updated.resource["active"] is True
    assert "gender" not in updated.resource
    assert updated.resource["name"][0]["family"] == "New"
    assert "active" not in limited.create(patient(active=True)).resource


def test_variables(repository: Repository, restricted: Restricted) -> None:
    subject = repository.create(patient())
    mine = repository.create(observation(f"Patient/{subject.id}"))
    other = repository.create(observation(f"Patient/{uuid.uuid4()}"))
    entries = (
        {"resourceType": "Observation", "criteria": "Observation?subject=%patient"},
        {"resourceType": "Patient", "criteria": "Patient?_id=%patient.id"},
        {"resourceType": "Encounter", "criteria": "Encounter?service-provider=%facility"},
    )
    limited = restricted(*entries, patient=f"Patient/{subject.id}")
    assert [found.id for found in limited.search_all("Observation", "")] == [mine.id]
    assert status(lambda: limited.read("Observation", other.id)) == 404
    assert [found.id for found in limited.search_all("Patient", "")] == [subject.id]
    assert limited.search_all("Encounter", "") == [], "a variable without value fits nothing"
    assert status(lambda: limited.create(observation(f"Patient/{subject.id}"))) == 200
    assert status(lambda: limited.create(observation(f"Patient/{uuid.uuid4()}"))) == 403


def test_the_value_of_a_variable_cannot_add_conditions(
    repository: Repository, restricted: Restricted
) -> None:
    repository.create(patient("Smith"))
    limited = restricted({"resourceType": "Patient", "criteria": "Patient?name=%name"}, name="zzz&name=Smith")
    assert limited.search_all("Patient", "") == []


def test_percent_escapes_in_criteria_stay(repository: Repository, restricted: Restricted) -> None:
    stored = repository.create(patient("Æble Smith"))
    limited = restricted({"resourceType": "Patient", "criteria": "Patient?name=%C3%A6ble%20smith"})
    assert [found.id for found in limited.search_all("Patient", "")] == [stored.id]


@pytest.mark.parametrize(
    "criteria", ["Patient?nonsense=1", "Observation?status=final", "Patient?birthdate=never"]
)
def test_criteria_that_cannot_be_understood_grant_nothing(
    criteria: str, repository: Repository, restricted: Restricted
) -> None:
    stored = repository.create(patient())
    limited = restricted({"resourceType": "Patient", "criteria": criteria})
    assert limited.search_all("Patient", "") == []
    assert status(lambda: limited.read("Patient", stored.id)) == 404
    assert status(lambda: limited.create(patient())) == 403


def constrained(*expressions: str, **elements: Any) -> dict[str, Any]:
    constraints = [{"language": "text/fhirpath", "expression": each} for each in expressions]
    return {"resourceType": "Task", "writeConstraint": constraints, **elements}


def task(status: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Task", "status": status, "intent": "order", **elements}


def test_write_constraints_compare_before_and_after(repository: Repository, restricted: Restricted) -> None:
    limited = restricted(
        constrained(
            "%before.exists() implies %before.status != 'completed'",
            "%after.status != 'cancelled' or note.exists()",
        )
    )
    draft, completed = repository.create(task("draft")), repository.create(task("completed"))
    assert limited.read("Task", completed.id) == completed
    assert limited.update({**draft.resource, "status": "ready"})[1]
    assert status(lambda: limited.create(task("draft"))) == 200
    assert status(lambda: limited.create(task("cancelled"))) == 403
    assert status(lambda: limited.create(task("cancelled", note=[{"text": "why"}]))) == 200
    assert status(lambda: limited.update({**draft.resource, "status": "cancelled"})) == 403
    assert status(lambda: limited.update({**completed.resource, "status": "ready"})) == 403
    patch = [{"op": "replace", "path": "/status", "value": "cancelled"}]
    assert status(lambda: limited.patch("Task", draft.id, patch)) == 403
    assert status(lambda: limited.delete("Task", completed.id)) == 403
    assert status(lambda: limited.delete("Task", draft.id)) == 200


def test_write_constraints_know_the_policys_variables(repository: Repository, restricted: Restricted) -> None:
    limited = restricted(
        constrained("owner.reference = %owner and for.reference.endsWith(%owner.id).not()"),
        owner="Practitioner/1",
    )
    assert status(lambda: limited.create(task("draft", owner={"reference": "Practitioner/1"}))) == 403, (
        "no for"
    )
    mine = {"owner": {"reference": "Practitioner/1"}, "for": {"reference": "Patient/2"}}
    assert status(lambda: limited.create(task("draft", **mine))) == 200
    assert status(lambda: limited.create(task("draft", **{**mine, "for": {"reference": "Patient/1"}}))) == 403


@pytest.mark.parametrize(
    "expression", ["", "status =", "%nobody.exists()", "(1 | 2).repeat($this + 1).exists()", "{}"]
)
def test_a_write_constraint_that_cannot_be_evaluated_allows_nothing(
    expression: str, restricted: Restricted
) -> None:
    limited = restricted(constrained(expression))
    assert status(lambda: limited.create(task("draft"))) == 403


def test_what_is_hidden_cannot_be_searched(repository: Repository, restricted: Restricted) -> None:
    person = repository.create(patient("Secret", birthDate="1980-01-01", gender="female"))
    about = repository.create(observation(f"Patient/{person.id}"))
    limited = restricted(
        {"resourceType": "Patient", "hiddenFields": ["name", "birthDate", "deceased[x]", "contact.name"]},
        {"resourceType": "Observation", "hiddenFields": ["subject"]},
        {"resourceType": "Encounter"},
    )
    for type_, query in (
        ("Patient", "name=secret"),
        ("Patient", "family:missing=false"),
        ("Patient", "birthdate=1980-01-01"),
        ("Patient", "death-date:missing=true"),
        ("Patient", "deceased=true"),
        ("Patient", "_sort=birthdate"),
        ("Patient", '_filter=name co "sec"'),
        ("Patient", "_has:Observation:subject:status=final"),
        ("Patient", "_revinclude=Observation:subject"),
        ("Observation", f"subject=Patient/{person.id}"),
        ("Observation", "subject:Patient.gender=female"),
        ("Observation", f"_compartment=Patient/{person.id}"),
        ("Encounter", "subject:Patient.name=secret"),
    ):
        assert status(lambda: limited.search_all(type_, query)) == 403, query  # noqa: B023
    assert [found.id for found in limited.search_all("Patient", "gender=female&_sort=gender")] == [person.id]
    shown = limited.read("Observation", about.id).resource
    assert {"reference": f"Patient/{person.id}"} not in shown["meta"]["compartment"]
    assert not limited.matcher(person.resource)(parse("Patient", "name=secret")), "nor by a Subscription"
    assert limited.matcher(person.resource)(parse("Patient", "gender=female"))


def test_a_policy_may_itself_ask_for_what_it_hides(repository: Repository, restricted: Restricted) -> None:
    seen = repository.create(patient(gender="female"))
    repository.create(patient(gender="male"))
    limited = restricted(
        {"resourceType": "Patient", "criteria": "Patient?gender=female", "hiddenFields": ["gender"]}
    )
    assert [found.id for found in limited.search_all("Patient", "")] == [seen.id]


def test_patches_tell_nothing_that_reading_would_not(repository: Repository, restricted: Restricted) -> None:
    person = repository.create(patient(birthDate="1980-01-01"))
    reading = {"resourceType": "Patient", "interaction": ["read"], "hiddenFields": ["birthDate"]}
    writing = {"resourceType": "Patient", "interaction": ["update"]}
    copy = [{"op": "copy", "from": "/birthDate", "path": "/name/0/family"}]
    assert status(lambda: restricted(writing).patch("Patient", person.id, copy)) == 403
    assert status(lambda: restricted(reading, writing).patch("Patient", person.id, copy)) == 400
    tested = [{"op": "test", "path": "/birthDate", "value": "1980-01-01"}]
    assert status(lambda: restricted(reading, writing).patch("Patient", person.id, tested)) == 400
    assert repository.read("Patient", person.id) == person


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.1.2.3", True),
        ("10.9.9.9", False),
        ("192.168.0.7", True),
        ("2001:db8::1", True),
        ("8.8.8.8", False),
        ("", False),
    ],
)
def test_the_first_ip_rule_about_an_address_decides(address: str, allowed: bool) -> None:
    rules = [
        ("10.9.0.0/16", "block"),
        ("10.", "allow"),
        ("192.168.0.7", "allow"),
        ("2001:db8::/32", "allow"),
        ("*", "block"),
    ]
    policy = Policy.compile(
        {"ipAccessRule": [{"value": value, "action": action} for value, action in rules]}, {}
    )
    assert policy.allows_address(address) is allowed
    assert Policy.compile({}, {}).allows_address(address)


def test_scopes_take_away_from_what_a_policy_allows(
    project: str, repository: Repository, restricted: Restricted
) -> None:
    person, other = repository.create(patient(gender="female")), repository.create(patient(gender="male"))
    mine, theirs = (repository.create(observation(f"Patient/{each.id}")) for each in (person, other))
    doctor = repository.create({"resourceType": "Practitioner"})

    def scoped(
        scope: str, policy: Policy | None = None, profile: str = "Practitioner/x", **more: Any
    ) -> Repository:
        return Repository(Identity(project, profile, policy=policy, scopes=parse_scopes(scope), **more))

    reader = scoped("openid user/Patient.read user/Observation.rs")
    assert reader.read("Patient", person.id) == person
    assert len(reader.search_all("Observation", "")) == 2
    assert status(lambda: reader.update({**person.resource, "active": True})) == 403
    assert status(lambda: reader.read("Practitioner", doctor.id)) == 403
    searcher = scoped("system/*.s")
    assert len(searcher.search_all("Patient", "")) == 2
    assert status(lambda: searcher.read("Patient", person.id)) == 403
    assert status(lambda: scoped("user/*.cruds", is_admin=True).search_all("AccessPolicy", "")) == 403
    assert scoped("user/AccessPolicy.rs", is_admin=True).search_all("AccessPolicy", "") == []
    assert status(lambda: scoped("user/*.*").delete("Practitioner", doctor.id)) == 200
    women = Policy.compile(
        {"resource": [{"resourceType": "Patient", "criteria": "Patient?gender=female"}]}, {}
    )
    assert [each.id for each in scoped("user/*.read", women).search_all("Patient", "")] == [person.id]
    assert status(lambda: scoped("user/*.read", women).search_all("Observation", "")) == 403
    patient_app = scoped("patient/*.read", profile=f"Patient/{person.id}")
    assert [each.id for each in patient_app.search_all("Patient", "")] == [person.id]
    assert [each.id for each in patient_app.search_all("Observation", "")] == [mine.id]
    assert status(lambda: patient_app.read("Observation", theirs.id)) == 404
    assert status(lambda: scoped("patient/*.read").search_all("Observation", "")) == 403, "no Patient"
    fine = scoped("user/Observation.rs?code:text=weight")
    assert len(fine.search_all("Observation", "")) == 2
    assert scoped("user/Observation.rs?status=draft").search_all("Observation", "") == []
    assert scoped("openid offline_access").update({**person.resource, "active": True})[1], (
        "no SMART scope, no limit"
    )


def test_the_older_compartment_of_a_rule_is_a_criterion(
    repository: Repository, restricted: Restricted
) -> None:
    person, other = repository.create(patient()), repository.create(patient())
    limited = restricted(
        {"resourceType": "Patient", "compartment": {"reference": "%patient"}}, patient=f"Patient/{person.id}"
    )
    assert [each.id for each in limited.search_all("Patient", "")] == [person.id]
    assert status(lambda: limited.read("Patient", other.id)) == 404


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        (
            {"resource": [{"resourceType": "Patient", "criteria": "Patient?nonsense=1"}]},
            "AccessPolicy.resource[0].criteria",
        ),
        (
            {
                "resource": [
                    {"resourceType": "Patient"},
                    {"resourceType": "Patient", "criteria": "Task?code=1"},
                ]
            },
            "AccessPolicy.resource[1].criteria",
        ),
        ({"resource": [constrained("status = ")]}, "AccessPolicy.resource[0].writeConstraint"),
        ({"ipAccessRule": [{"value": "localhost", "action": "allow"}]}, "AccessPolicy.ipAccessRule[0].value"),
    ],
)
def test_policies_that_cannot_work_are_refused_when_written(
    admin: Repository, entry: dict[str, Any], path: str
) -> None:
    with pytest.raises(FhirError) as refused:
        admin.create({"resourceType": "AccessPolicy", **entry})
    assert refused.value.status == 400
    assert refused.value.outcome["issue"][0]["expression"] == [path]
    for criteria in (
        "Patient?organization.name=x",
        "Patient?_compartment=%patient",
        "Patient?_has:Task:patient:status=draft",
    ):
        rule = {"resourceType": "Patient", "criteria": criteria}
        assert admin.create({"resourceType": "AccessPolicy", "resource": [rule]})


def test_policies_are_joined_and_stamp_their_compartment(project: str, system: Repository) -> None:
    compartment = f"Organization/{uuid.uuid4()}"
    first = Policy.compile(
        {"resource": [{"resourceType": "Patient"}], "compartment": {"reference": "%organization"}},
        {"organization": compartment},
    )
    second = Policy.compile({"resource": [{"resourceType": "Observation"}]}, {})
    both = Repository(Identity(project, "Practitioner/x", policy=Policy.join([first, second])))
    created = both.create(patient())
    assert created.resource["meta"]["account"] == {"reference": compartment}
    assert {"reference": compartment} in created.resource["meta"]["compartment"]
    assert both.search_all("Observation", "") == []
    assert [found.id for found in system.search_all("Patient", f"_compartment={compartment}")] == [created.id]


def test_types_that_hold_access_are_for_admins(
    system: Repository, admin: Repository, repository: Repository, restricted: Restricted
) -> None:
    policy = system.create(
        {"resourceType": "AccessPolicy", "name": "x", "resource": [{"resourceType": "Patient"}]}
    )
    everything = restricted(
        {"resourceType": "*"}, {"resourceType": "AccessPolicy"}, {"resourceType": "Project"}
    )
    for nobody in (repository, everything):
        assert status(lambda: nobody.read("AccessPolicy", policy.id)) == 403  # noqa: B023
        assert status(lambda: nobody.search_all("ProjectMembership", "")) == 403  # noqa: B023
        assert status(lambda: nobody.search_all("Project", "")) == 403  # noqa: B023
        assert status(lambda: nobody.create(policy.resource)) == 403  # noqa: B023
    assert admin.read("AccessPolicy", policy.id) == policy
    assert status(lambda: admin.create(policy.resource)) == 200
    for type_ in SERVER_ONLY & {"Login", "JsonWebKey"}:
        assert status(lambda: admin.search_all(type_, "")) == 403  # noqa: B023


def test_admins_change_the_project_but_not_its_features(system: Repository, admin: Repository) -> None:
    id = admin.identity.project
    system.create(
        {
            "resourceType": "Project",
            "name": "Old",
            "features": ["bots"],
            "systemSecret": [{"name": "x", "valueString": "y"}],
        },
        id=id,
    )
    seen = admin.read("Project", id).resource
    assert "systemSecret" not in seen
    changed, _ = admin.update({**seen, "name": "New", "features": ["bots", "cron"], "superAdmin": True})
    assert "systemSecret" not in changed.resource
    kept = system.read("Project", id).resource
    assert (kept["name"], kept["features"]) == ("New", ["bots"])
    assert [each["name"] for each in kept["systemSecret"]] == ["x"], (
        "its value is kept elsewhere, and masked here"
    )
    assert "superAdmin" not in kept
    assert status(lambda: admin.delete("Project", id)) == 403
    assert status(lambda: admin.create({"resourceType": "Project", "name": "Another"})) == 403


def test_terminology_is_readable_without_a_rule(repository: Repository, restricted: Restricted) -> None:
    stored = repository.create(
        {"resourceType": "ValueSet", "status": "active", "url": "https://example.com/vs"}
    )
    limited = restricted({"resourceType": "Patient"})
    assert limited.read("ValueSet", stored.id) == stored
    assert len(limited.search_all("ValueSet", "url=https://example.com/vs")) == 1
    assert status(lambda: limited.update({**stored.resource, "name": "X"})) == 403


def test_a_binary_is_as_visible_as_its_security_context(
    repository: Repository, restricted: Restricted
) -> None:
    subject = repository.create(patient(gender="female"))
    free = repository.store_binary(b"free", "text/plain")
    bound = repository.store_binary(b"bound", "text/plain", security_context=f"Patient/{subject.id}")
    rules = [{"resourceType": "Binary", "criteria": "Binary?_id=ignored"}, {"resourceType": "Patient"}]
    limited = restricted(*rules)
    assert limited.read("Binary", free.id) == free
    assert limited.read("Binary", bound.id) == bound
    limited = restricted(rules[0], {"resourceType": "Patient", "criteria": "Patient?gender=male"})
    assert limited.read("Binary", free.id) == free
    assert status(lambda: limited.read("Binary", bound.id)) == 404
    assert status(lambda: limited.open_binary(bound.id)) == 404
    assert status(lambda: limited.store_binary(b"new", "text/plain", id=bound.id)) == 404
    carrier = repository.create(
        patient(gender="male", photo=[{"url": f"Binary/{each.id}"} for each in (free, bound)])
    )
    assert binaries.presign_urls(carrier.content, repository).count(b"Signature") == 2
    assert binaries.presign_urls(carrier.content, limited).count(b"Signature") == 1


def test_included_resources_are_those_that_may_be_seen(
    repository: Repository, restricted: Restricted
) -> None:
    clinic, practice = (
        repository.create({"resourceType": "Organization", "name": name, "active": name == "Clinic"})
        for name in ("Clinic", "Practice")
    )
    doctor = repository.create({"resourceType": "Practitioner"})
    person = repository.create(
        patient(
            managingOrganization={"reference": f"Organization/{practice.id}"},
            generalPractitioner=[
                {"reference": f"{each.type}/{each.id}"} for each in (clinic, practice, doctor)
            ],
        )
    )
    weight = repository.create(observation(f"Patient/{person.id}"))
    request = parse(
        "Patient",
        f"_id={person.id}&_include=Patient:general-practitioner&_include=Patient:organization"
        "&_revinclude=Observation:subject",
    )

    def seen_by(repository: Repository) -> set[str]:
        return {stored.id for stored in repository.search(request).included}

    assert seen_by(repository) == {clinic.id, practice.id, doctor.id, weight.id}
    everything = {"resourceType": "Patient"}
    active = {"resourceType": "Organization", "criteria": "Organization?active=true"}
    assert seen_by(restricted(everything, active)) == {clinic.id}
    unsearchable = {"resourceType": "Observation", "interaction": ["read"]}
    assert seen_by(restricted(everything, unsearchable)) == set()
    blind = {"resourceType": "Patient", "hiddenFields": ["generalPractitioner"]}
    assert seen_by(restricted(blind, {"resourceType": "Organization"})) == {practice.id}


def test_the_history_of_a_type_shows_what_may_be_seen(repository: Repository, restricted: Restricted) -> None:
    seen = repository.create(patient(gender="female"))
    unseen = repository.create(patient(gender="male"))
    gone = repository.create(patient(gender="female"))
    lost = repository.create(patient(gender="male"))
    for each in (gone, lost):
        repository.delete("Patient", each.id)
    limited = restricted(
        {"resourceType": "Patient", "criteria": "Patient?gender=female", "hiddenFields": ["name"]}
    )
    versions, more = limited.history_of_type("Patient")
    assert ([each.id for each in versions], more) == ([gone.id, gone.id, seen.id], False)
    assert versions[0].deleted
    assert "name" not in versions[2].resource
    assert unseen.id not in {each.id for each in versions}
    # neither the length of a page nor what follows it tells of hidden versions
    assert [limited.history_of_type("Patient", count=1, offset=each)[1] for each in range(3)] == [
        True,
        True,
        False,
    ]
    pages = [limited.history_of_type("Patient", count=2, offset=each)[0] for each in (0, 2)]
    assert [[each.id for each in page] for page in pages] == [[gone.id, gone.id], [seen.id]]
    assert status(lambda: restricted().history_of_type("Patient")) == 403


def test_the_history_of_a_type_looks_at_so_many_versions(
    repository: Repository, restricted: Restricted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository_module, "HISTORY_BATCH", 2)
    monkeypatch.setattr(repository_module, "MAX_LOOKED_AT", 5)
    seen = repository.create(patient(gender="female"))
    limited = restricted({"resourceType": "Patient", "criteria": "Patient?gender=female"})
    for _ in range(3):
        repository.create(patient(gender="male"))
    assert [each.id for each in limited.history_of_type("Patient", count=1)[0]] == [seen.id]
    for _ in range(2):
        repository.create(patient(gender="male"))
    with pytest.raises(FhirError, match="narrow the history by _since"):
        limited.history_of_type("Patient", count=1)
