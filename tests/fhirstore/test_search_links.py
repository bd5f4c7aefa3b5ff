"""Searches that look at other resources: chains, ``_has``, ``_list`` and ``_filter``; in SQL, in memory, under a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fhirstore.errors import FhirError
from fhirstore.identity import Identity
from fhirstore.repository import Repository
from fhirstore.search import sql
from fhirstore.search.parse import parse

PLANS = pytest.mark.parametrize(("rare", "keys"), [(sql.RARE, 200), (-1, -1)], ids=["looked up", "checked"])


@pytest.fixture
def ward(repository: Repository) -> dict[str, str]:
    """A small hospital; names by reference and by id."""
    known: dict[str, str] = {}

    def make(name: str, type: str, /, **elements: Any) -> str:
        id_ = repository.create({"resourceType": type, **elements}).id
        known[id_] = name
        return f"{type}/{id_}"

    def to(reference: str) -> dict[str, str]:
        return {"reference": reference}

    def observe(name: str, subject: str, code: str, value: float, /, **elements: Any) -> str:
        quantity = {"value": value, "unit": "mg"}
        concept = {"coding": [{"system": "http://loinc.org", "code": code}]}
        given = {
            "status": "final",
            "code": concept,
            "subject": to(subject),
            "valueQuantity": quantity,
            **elements,
        }
        return make(name, "Observation", **given)

    head = make("head", "Organization", name="Head Office")
    clinic = make("clinic", "Organization", name="Clinic", partOf=to(head))
    doctor = make("doctor", "Practitioner", name=[{"family": "Hibbert", "given": ["Julius"]}])
    homer = make(
        "homer", "Patient", name=[{"family": "Simpson", "given": ["Homer"]}], gender="male",
        birthDate="1956-05-12", managingOrganization=to(clinic), generalPractitioner=[to(doctor)],
    )  # fmt: skip
    ned = make("ned", "Patient", name=[{"family": "Flanders"}], gender="male", birthDate="1960")
    crowd = make(
        "crowd", "Group", type="person", actual=True, code={"text": "all"}, member=[{"entity": to(ned)}]
    )
    observe("sugar", homer, "s", 9, performer=[to(doctor)])
    weight = observe("weight", homer, "w", 120)
    observe("mild", ned, "s", 4)
    observe("noise", crowd, "n", 80)
    make("list", "List", status="current", mode="working", entry=[{"item": to(weight)}])
    make(
        "note",
        "Provenance",
        target=[to(weight)],
        recorded="2024-01-01T00:00:00Z",
        agent=[{"who": to(doctor)}],
    )
    return known


def found(repository: Repository, known: dict[str, str], type: str, query: str) -> set[str]:
    result = repository.search(parse(type, f"{query}&_total=accurate"))
    assert result.total == len(result.entries)
    return {known[stored.id] for stored in result.entries}


LINKS: list[tuple[str, str, set[str]]] = [
    # chains: of one link, of one type among several, of several links
    ("Observation", "patient.family=simpson", {"sugar", "weight"}),
    ("Observation", "subject.family=simpson", {"sugar", "weight"}),
    ("Observation", "subject:Patient.family=simpson,flanders", {"sugar", "weight", "mild"}),
    ("Observation", "subject:Group.type=person", {"noise"}),
    ("Observation", "subject:Patient.family=nobody", set()),
    ("Observation", "subject._id={crowd}", {"noise"}),
    ("Observation", "patient.organization.name=clinic", {"sugar", "weight"}),
    ("Observation", "patient.organization.partof.name=head", {"sugar", "weight"}),
    ("Observation", "patient.organization.partof.name=clinic", set()),
    ("Observation", "patient.general-practitioner:Practitioner.name=hibbert", {"sugar", "weight"}),
    # with modifiers, prefixes and several values
    ("Observation", "patient.family:exact=Simpson", {"sugar", "weight"}),
    ("Observation", "patient.family:exact=simpson", set()),
    ("Observation", "patient.gender:not=female", {"sugar", "weight", "mild"}),
    ("Observation", "patient.organization:missing=true", {"mild"}),
    ("Observation", "patient.birthdate=lt1957", {"sugar", "weight"}),
    ("Observation", "patient.birthdate=sa1956,1956-05", {"sugar", "weight", "mild"}),
    ("Observation", "patient.family=simpson&code=s", {"sugar"}),
    ("Observation", "patient.family=simpson&patient.gender=male&value-quantity=gt100", {"weight"}),
    ("Observation", "patient.family=simpson&patient.family=flanders", set()),
    # _has, nested, behind a chain and before one
    ("Patient", "_has:Observation:patient:code=s", {"homer", "ned"}),
    ("Patient", "_has:Observation:subject:code=http://loinc.org|w", {"homer"}),
    ("Patient", "_has:Observation:patient:code=n", set()),
    ("Patient", "_has:Observation:patient:value-quantity=gt5", {"homer"}),
    ("Patient", "_has:Observation:patient:code=s&_has:Observation:patient:code=w", {"homer"}),
    ("Patient", "_has:Observation:patient:code=s&family=fl", {"ned"}),
    ("Patient", "_has:Observation:patient:code:not=s", {"homer"}),
    ("Patient", "_has:Observation:patient:performer:Practitioner.name=hibbert", {"homer"}),
    ("Patient", "_has:Group:member:type=person", {"ned"}),
    ("Patient", "_has:Observation:patient:_has:Provenance:target:recorded=2024", {"homer"}),
    ("Organization", "_has:Patient:organization:_has:Observation:patient:code=s", {"clinic"}),
    ("Observation", "patient._has:Group:member:type=person", {"mild"}),
    ("Practitioner", "_has:Patient:general-practitioner:organization.partof.name=head", {"doctor"}),
    # _list
    ("Observation", "_list={list}", {"weight"}),
    ("Patient", "_list={list}", set()),
    # _filter
    ("Patient", '_filter=family eq "simpson"', {"homer"}),
    ("Patient", "_filter=family eq simps", set()),
    ("Patient", "_filter=family ne simpson", {"ned"}),
    ("Patient", "_filter=family sw simps", {"homer"}),
    ("Patient", "_filter=family co lander", {"ned"}),
    ("Patient", "_filter=family ew SON", {"homer"}),
    ("Patient", "_filter=gender eq male and birthdate lt 1957", {"homer"}),
    ("Patient", "_filter=birthdate gt 1959 or family eq simpson", {"homer", "ned"}),
    ("Patient", "_filter=family eq x or family eq simpson and gender eq female", set()),
    ("Patient", "_filter=(family eq x or family eq simpson) and gender eq male", {"homer"}),
    ("Patient", "_filter=not(family eq simpson)", {"ned"}),
    ("Patient", "_filter=not(family eq simpson or not(gender eq female))", set()),
    ("Patient", "_filter=organization pr true", {"homer"}),
    ("Patient", "_filter=organization pr false", {"ned"}),
    ("Patient", "_filter=organization.name co lini", {"homer"}),
    ("Patient", "_filter=_has:Observation:patient:code eq w", {"homer"}),
    ("Patient", "_filter=organization re Organization/{clinic}", {"homer"}),
    ("Patient", "_filter=not(organization.name eq clinic)", {"ned"}),
    ("Observation", "_filter=value-quantity ge 80 and subject:Patient.family eq simpson", {"weight"}),
    ("Observation", "_filter=code eq http://loinc.org|s and value-quantity ap 4.2", {"mild"}),
    ("Observation", '_filter=code eq "http://loinc.org|w"', {"weight"}),
    ("Observation", "_filter=code ne s&value-quantity=lt100", {"noise"}),
]  # fmt: skip


@PLANS
def test_links_lead_to_what_they_say(
    ward: dict[str, str], repository: Repository, monkeypatch: pytest.MonkeyPatch, rare: int, keys: int
) -> None:
    monkeypatch.setattr(sql, "RARE", rare)
    monkeypatch.setattr(sql, "CHAIN_KEYS", keys)
    ids = {name: id_ for id_, name in ward.items()}
    wrong = [
        (type_, query, seen)
        for type_, query, expected in LINKS
        if (seen := found(repository, ward, type_, query.format(**ids))) != expected
    ]
    assert not wrong


def test_a_matcher_says_of_each_resource_what_the_search_says(
    ward: dict[str, str], repository: Repository
) -> None:
    ids = {name: id_ for id_, name in ward.items()}
    matchers: dict[str, dict[str, Any]] = {}
    for type_ in {type_ for type_, _, _ in LINKS}:
        stored = repository.search_all(type_, "")
        matchers[type_] = {ward[each.id]: repository.matcher(each.resource) for each in stored}
    for type_, query, expected in LINKS:
        request = parse(type_, query.format(**ids))
        assert {name for name, fits in matchers[type_].items() if fits(request)} == expected, query
    assert not matchers["Patient"]["homer"](parse("Observation", ""))


def test_a_matcher_judges_a_state_that_is_not_stored(ward: dict[str, str], repository: Repository) -> None:
    ids = {name: id_ for id_, name in ward.items()}
    draft = {
        "resourceType": "Observation",
        "id": "7d4d1c1e-0000-4000-8000-000000000000",
        "subject": {"reference": f"Patient/{ids['homer']}"},
    }
    assert repository.matcher(draft)(parse("Observation", "patient.family=simpson"))
    assert not repository.matcher(draft)(parse("Observation", "patient.family=flanders"))
    assert not repository.matcher(draft)(parse("Observation", "_has:Provenance:target:recorded=2024"))


def test_a_deleted_target_is_no_target(ward: dict[str, str], repository: Repository) -> None:
    ids = {name: id_ for id_, name in ward.items()}
    repository.delete("Patient", ids["homer"])
    assert found(repository, ward, "Observation", "patient.family=simpson") == set()
    repository.delete("Observation", ids["sugar"])
    assert found(repository, ward, "Patient", "_has:Observation:patient:code=s") == {"ned"}


def test_links_stay_inside_the_project(ward: dict[str, str], stranger: Repository) -> None:
    for type_, query, _ in LINKS:
        ids = {name: id_ for id_, name in ward.items()}
        assert found(stranger, ward, type_, query.format(**ids)) == set()


@PLANS
def test_links_do_not_pass_what_the_policy_hides(
    ward: dict[str, str],
    restricted: Callable[..., Repository],
    monkeypatch: pytest.MonkeyPatch,
    rare: int,
    keys: int,
) -> None:
    monkeypatch.setattr(sql, "RARE", rare)
    monkeypatch.setattr(sql, "CHAIN_KEYS", keys)
    limited = restricted(
        {"resourceType": "Observation"},
        {"resourceType": "Patient", "criteria": "Patient?family=flanders"},
        {"resourceType": "Provenance", "interaction": ["create"]},
    )
    for type_, query, expected in [
        ("Observation", "patient.family=flanders", {"mild"}),
        ("Observation", "patient.family=simpson", set()),
        ("Observation", "patient.gender=male", {"mild"}),
        ("Observation", "patient.organization.name=clinic", set()),
        ("Observation", "_filter=patient.gender eq male", {"mild"}),
        ("Observation", "_has:Provenance:target:recorded=2024", set()),
        ("Observation", "_list={list}", set()),
        ("Patient", "_has:Observation:patient:code=s", {"ned"}),
        ("Patient", "_has:Group:member:type=person", set()),
    ]:
        ids = {name: id_ for id_, name in ward.items()}
        assert found(limited, ward, type_, query.format(**ids)) == expected, query


def test_a_policy_may_use_links_itself(ward: dict[str, str], restricted: Callable[..., Repository]) -> None:
    ids = {name: id_ for id_, name in ward.items()}
    limited = restricted(
        {
            "resourceType": "Observation",
            "criteria": "Observation?patient.family=simpson",
            "hiddenFields": ["status"],
        },
        {"resourceType": "Observation", "criteria": "Observation?code=s"},
        {"resourceType": "Patient", "criteria": "Patient?_has:Group:member:type=person", "readonly": True},
    )
    # Patients of the observations stay hidden, though the policy's own chain passes them.
    assert found(limited, ward, "Observation", "") == {"sugar", "weight", "mild"}
    assert found(limited, ward, "Patient", "") == {"ned"}
    assert found(limited, ward, "Observation", "patient.gender=male") == {"mild"}
    shown = {ward[each.id]: each.resource for each in limited.search(parse("Observation", "")).entries}
    assert {name for name, resource in shown.items() if "status" in resource} == {"mild"}
    assert limited.read("Observation", ids["weight"])
    assert not limited.may_read("Observation", ids["noise"])
    with pytest.raises(FhirError) as refused:
        limited.create(
            {
                "resourceType": "Observation",
                "status": "final",
                "code": {"text": "x"},
                "subject": {"reference": f"Patient/{ids['ned']}"},
            }
        )
    assert refused.value.status == 403


def test_deleted_resources_are_found_when_asked_for(
    ward: dict[str, str], repository: Repository, restricted: Callable[..., Repository]
) -> None:
    ids = {name: id_ for id_, name in ward.items()}
    repository.delete("Observation", ids["noise"])
    assert found(repository, ward, "Observation", "_deleted=true") == {"noise"}
    assert found(repository, ward, "Observation", "_deleted=true&_lastUpdated=gt2020") == {"noise"}
    assert found(repository, ward, "Observation", "_deleted=false") == {"sugar", "weight", "mild"}
    limited = restricted({"resourceType": "Observation", "criteria": "Observation?code:not=x"})
    assert found(limited, ward, "Observation", "_deleted=true") == set()
    assert found(restricted({"resourceType": "*"}), ward, "Observation", "_deleted=true") == {"noise"}


def test_a_system_identity_sees_through_all_links(ward: dict[str, str], system: Repository) -> None:
    assert found(system, ward, "Observation", "patient.family=simpson") == {"sugar", "weight"}
    nobody = Repository(Identity(system.identity.project, "Practitioner/x", policy=None))
    assert found(nobody, ward, "Observation", "patient.family=simpson") == {"sugar", "weight"}
