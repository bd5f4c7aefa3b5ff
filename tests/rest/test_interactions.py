"""Create, read, update, patch, delete, history, search and conditions over HTTP."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

import pytest

from tests.rest.conftest import FORM, Caller, smith, text_of


def test_create_answers_the_resource_with_location_etag_and_last_modified(home: Caller) -> None:
    answer = home.send("POST", "Patient", smith(id="mine", meta={"versionId": "mine"}))
    created = answer.json()
    assert answer.status_code == 201
    assert answer["content-type"] == "application/fhir+json; charset=utf-8"
    assert uuid.UUID(created["id"])
    assert answer["location"] == f"http://127.0.0.1:8000/fhir/R4/Patient/{created['id']}"
    assert answer["etag"] == f'W/"{created["meta"]["versionId"]}"'
    assert parsedate_to_datetime(answer["last-modified"])
    assert created["name"] == [{"family": "Smith", "given": ["Jane"]}]


def test_extended_meta_is_shown_only_where_it_is_asked_for(home: Caller) -> None:
    path = f"Patient/{home.create(smith())['id']}"
    extended = home.send("GET", path, x_medplum="extended").json()["meta"]
    assert extended["project"] == home.project
    assert extended["author"]["reference"] == f"ClientApplication/{home.client_id}"
    assert home.send("GET", path).json()["meta"].keys() == {"versionId", "lastUpdated"}
    found = home.send("GET", "Patient?_count=1").json()["entry"][0]["resource"]["meta"]
    assert found.keys() == {"versionId", "lastUpdated"}


def test_prefer_minimal_sends_headers_without_a_body(home: Caller) -> None:
    answer = home.send("POST", "Patient", smith(), prefer="return=minimal")
    assert (answer.status_code, answer.content) == (201, b"")
    assert answer["location"]


def test_pretty_indents(home: Caller) -> None:
    path = f"Patient/{home.create(smith())['id']}"
    assert b'\n  "id": ' in home.send("GET", f"{path}?_pretty=true").content


def test_head_is_a_get_without_body(home: Caller) -> None:
    path = f"Patient/{home.create(smith())['id']}"
    answer = home.send("HEAD", path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer["etag"]
    assert answer["content-length"] == str(len(home.send("GET", path).content))


def test_update_makes_a_version_and_no_change_makes_none(home: Caller) -> None:
    patient = home.create(smith())
    path = f"Patient/{patient['id']}"
    same = home.send("PUT", path, patient)
    assert (same.status_code, same["etag"]) == (200, f'W/"{patient["meta"]["versionId"]}"')
    changed = home.send("PUT", path, {**patient, "gender": "female"})
    assert changed.status_code == 200
    assert changed["etag"] != same["etag"]


def test_if_match_guards_update_and_patch(home: Caller) -> None:
    patient = home.create(smith())
    path, first = f"Patient/{patient['id']}", f'W/"{patient["meta"]["versionId"]}"'
    second = home.send("PUT", path, {**patient, "gender": "female"}, if_match=first)
    assert second.status_code == 200
    operations = [{"op": "replace", "path": "/gender", "value": "male"}]
    for refused in (
        home.send("PUT", path, {**patient, "gender": "other"}, if_match=first),
        home.send("PATCH", path, operations, if_match=first),
    ):
        assert refused.status_code == 412
        assert refused.json()["id"] == "precondition-failed"
    assert home.send("PATCH", path, operations, if_match=second["etag"]).json()["gender"] == "male"


def test_patch_appends_to_a_missing_array(home: Caller) -> None:
    path = f"Patient/{home.create(smith())['id']}"
    operations = [{"op": "add", "path": "/telecom/-", "value": {"system": "phone", "value": "555"}}]
    answer = home.send("PATCH", path, operations, content_type="application/json-patch+json")
    assert answer.json()["telecom"] == [{"system": "phone", "value": "555"}]


def test_a_deleted_resource_is_gone_and_comes_back_by_put(home: Caller) -> None:
    patient = home.create(smith())
    path = f"Patient/{patient['id']}"
    for _ in range(2):
        answer = home.send("DELETE", path)
        assert (answer.status_code, answer.json()["id"]) == (200, "ok")
    gone = home.send("GET", path)
    assert (gone.status_code, gone.json()["id"]) == (410, "gone")
    assert home.send("PUT", path, patient).status_code == 200
    assert home.send("GET", path).status_code == 200


def test_history_lists_versions_newest_first_with_deletions(home: Caller) -> None:
    patient = home.create(smith())
    path = f"Patient/{patient['id']}"
    home.send("PUT", path, {**patient, "gender": "female"})
    home.send("DELETE", path)
    bundle = home.send("GET", f"{path}/_history").json()
    assert (bundle["type"], bundle["total"]) == ("history", 3)
    assert [entry["request"]["method"] for entry in bundle["entry"]] == ["DELETE", "PUT", "POST"]
    deleted = bundle["entry"][0]
    assert "resource" not in deleted
    assert deleted["response"]["outcome"]["id"] == "gone"
    first = bundle["entry"][2]["resource"]["meta"]["versionId"]
    assert home.send("GET", f"{path}/_history/{first}").json()["name"] == patient["name"]


def test_history_pages(home: Caller) -> None:
    patient = home.create(smith())
    path = f"Patient/{patient['id']}"
    for gender in ("male", "female"):
        home.send("PUT", path, {**patient, "gender": gender})
    page = home.send("GET", f"{path}/_history?_count=2").json()
    links = {link["relation"]: link["url"] for link in page["link"]}
    assert len(page["entry"]) == 2
    rest = home.send("GET", links["next"].removeprefix("http://127.0.0.1:8000")).json()
    assert [entry["request"]["method"] for entry in rest["entry"]] == ["POST"]


def test_search_pages_by_links_that_can_be_fetched(home: Caller) -> None:
    family = uuid.uuid4().hex
    made = [home.create(smith(name=[{"family": family}]))["id"] for _ in range(5)]
    seen, url = [], f"/fhir/R4/Patient?family={family}&_count=2&_sort=_id"
    for _ in range(3):
        bundle = home.send("GET", url).json()
        seen += [entry["resource"]["id"] for entry in bundle["entry"]]
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        url = links.get("next", "").removeprefix("http://127.0.0.1:8000")
    assert seen == sorted(made)
    assert not url
    assert links["first"] == f"http://127.0.0.1:8000/fhir/R4/Patient?family={family}&_count=2&_sort=_id"
    assert links["previous"].endswith("&_offset=2")


def test_search_says_full_url_mode_and_total(home: Caller) -> None:
    family = uuid.uuid4().hex
    patient = home.create(smith(name=[{"family": family}]))
    bundle = home.send("GET", f"Patient?family={family}&_total=accurate").json()
    assert (bundle["type"], bundle["total"]) == ("searchset", 1)
    entry = bundle["entry"][0]
    assert entry["fullUrl"] == f"http://127.0.0.1:8000/fhir/R4/Patient/{patient['id']}"
    assert entry["search"] == {"mode": "match"}
    nothing = home.send("GET", f"Patient?family={uuid.uuid4().hex}").json()
    assert "entry" not in nothing


def test_search_by_post_joins_query_and_form(home: Caller) -> None:
    family = uuid.uuid4().hex
    home.create(smith(name=[{"family": family}], gender="male"))
    home.create(smith(name=[{"family": family}], gender="female"))
    answer = home.send("POST", "Patient/_search?gender=female", f"family={family}", content_type=FORM)
    assert [entry["resource"]["gender"] for entry in answer.json()["entry"]] == ["female"]


def test_fields_and_elements_send_parts_tagged_subsetted(home: Caller) -> None:
    family = uuid.uuid4().hex
    home.create(
        smith(name=[{"family": family}], gender="male", deceasedBoolean=False, birthDate="1980-01-02")
    )
    for query in ("_fields=birthDate,deceased,_lastUpdated", "_elements=birthDate,deceased"):
        resource = home.send("GET", f"Patient?family={family}&{query}").json()["entry"][0]["resource"]
        assert resource.keys() == {"resourceType", "id", "meta", "birthDate", "deceasedBoolean"}
        assert resource["meta"]["tag"][0]["code"] == "SUBSETTED"


def test_summary_count_sends_the_total_only(home: Caller) -> None:
    family = uuid.uuid4().hex
    home.create(smith(name=[{"family": family}]))
    bundle = home.send("GET", f"Patient?family={family}&_summary=count").json()
    assert bundle["total"] == 1
    assert "entry" not in bundle


def test_conditional_create_answers_the_one_that_is_there(home: Caller) -> None:
    family = uuid.uuid4().hex
    first = home.send("POST", "Patient", smith(name=[{"family": family}]), if_none_exist=f"family={family}")
    again = home.send("POST", "Patient", smith(name=[{"family": family}]), if_none_exist=f"family={family}")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    home.create(smith(name=[{"family": family}]))
    several = home.send("POST", "Patient", smith(), if_none_exist=f"family={family}")
    assert (several.status_code, several.json()["id"]) == (412, "multiple-matches")


def test_conditional_creates_at_the_same_time_make_one_resource(home: Caller) -> None:
    family = uuid.uuid4().hex

    def create(_: int) -> str:
        condition = f"family={family}"
        answer = home.send("POST", "Patient", smith(name=[{"family": family}]), if_none_exist=condition)
        return answer.json()["id"]

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(create, range(8)))) == 1


def test_conditional_update_patch_and_delete(home: Caller) -> None:
    family = uuid.uuid4().hex
    condition, patient = f"Patient?family={family}", smith(name=[{"family": family}])
    assert home.send("PATCH", condition, []).status_code == 404
    created = home.send("PUT", condition, patient)
    assert created.status_code == 201
    updated = home.send("PUT", condition, {**patient, "gender": "male"})
    assert (updated.status_code, updated.json()["id"]) == (200, created.json()["id"])
    patched = home.send("PATCH", condition, [{"op": "replace", "path": "/gender", "value": "female"}])
    assert patched.json()["gender"] == "female"
    other_id = home.send("PUT", condition, {**patient, "id": str(uuid.uuid4())})
    assert other_id.status_code == 400
    for _ in range(2):
        assert home.send("DELETE", condition).status_code == 200
    assert home.send("GET", f"Patient/{created.json()['id']}").status_code == 410


def test_the_same_paths_work_under_api_and_project(home: Caller) -> None:
    id = home.create(smith())["id"]
    for root in (
        "/api/fhir/R4",
        f"/projects/{home.project}/fhir/R4",
        f"/api/projects/{home.project}/fhir/R4",
    ):
        assert home.send("GET", f"{root}/Patient/{id}").status_code == 200
        next_page = home.send("GET", f"{root}/Patient?_count=1").json()["link"][0]["url"]
        assert next_page.startswith(f"http://127.0.0.1:8000{root}/Patient")


def test_metadata_says_what_is_there(home: Caller) -> None:
    statement = home.send("GET", "metadata").json()
    assert home.send("POST", "CapabilityStatement/$validate", statement).status_code == 200
    (rest,) = statement["rest"]
    resources = {each["type"]: each for each in rest["resource"]}
    assert resources["Bot"]["profile"] == "https://medplum.com/fhir/StructureDefinition/Bot"
    assert {"export", "graphql"} <= {each["name"] for each in rest["operation"]}
    assert {"everything", "expunge", "validate"} <= {
        each["name"] for each in resources["Patient"]["operation"]
    }
    for parameter in resources["Patient"]["searchParam"]:  # each that is named is taken
        answer = home.send("GET", f"Patient?{parameter['name']}:missing=true&_count=1")
        assert answer.status_code == 200, (parameter, answer.content)


def test_metadata_and_versions_need_no_login(home: Caller) -> None:
    statement = home.send("GET", "metadata", authorization="").json()
    patient = next(each for each in statement["rest"][0]["resource"] if each["type"] == "Patient")
    assert {"name": "family", "type": "string"} in patient["searchParam"]
    assert "validate" in {operation["name"] for operation in patient["operation"]}
    assert "Patient:general-practitioner" in patient["searchInclude"]
    assert "Observation:subject" in patient["searchRevInclude"]
    versions = home.send("GET", "$versions", authorization="").json()
    assert versions == {"versions": ["4.0"], "default": "4.0"}


def test_validate_takes_profiles_and_modes(home: Caller) -> None:
    home.create(
        {
            "resourceType": "StructureDefinition",
            "url": "https://example.com/born",
            "name": "Born",
            "status": "active",
            "kind": "resource",
            "abstract": False,
            "type": "Patient",
            "baseDefinition": "http://hl7.org/fhir/StructureDefinition/Patient",
            "derivation": "constraint",
            "differential": {"element": [{"id": "Patient.birthDate", "path": "Patient.birthDate", "min": 1}]},
        }
    )
    born = "Patient/$validate?profile=https://example.com/born"
    assert home.send("POST", born, smith(birthDate="2000-01-01")).status_code == 200
    refused = home.send("POST", born, smith())
    assert refused.status_code == 400
    assert refused.json()["issue"][0]["expression"] == ["Patient.birthDate"]
    given = [
        {"name": "resource", "resource": smith()},
        {"name": "profile", "valueUri": "https://example.com/born"},
    ]
    parameters = {"resourceType": "Parameters", "parameter": given}
    assert home.send("POST", "Patient/$validate", parameters).json()["issue"] == refused.json()["issue"]
    unknown = home.send("POST", "Patient/$validate?profile=https://example.com/nowhere", smith())
    assert text_of(unknown) == "Profile not found: https://example.com/nowhere"
    vital = "http://hl7.org/fhir/StructureDefinition/vitalsigns"
    observation = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
    paths = {
        each["expression"][0]
        for each in home.send("POST", f"Observation/$validate?profile={vital}", observation).json()["issue"]
    }
    assert {"Observation.category", "Observation.subject", "Observation.effective[x]"} <= paths, (
        "a published one"
    )
    stored = home.create(smith())
    assert home.send("POST", f"Patient/{stored['id']}/$validate?mode=update", stored).status_code == 200
    assert home.send("POST", f"Patient/{stored['id']}/$validate?mode=delete", smith()).status_code == 200
    assert home.send("POST", f"Patient/{uuid.uuid4()}/$validate?mode=delete", smith()).status_code == 404
    assert home.send("POST", "Patient/$validate?mode=update", smith()).status_code == 400
    assert home.send("POST", "Patient/$validate?mode=delete", smith()).status_code == 400
    assert home.send("POST", "Patient/$validate?mode=nonsense", smith()).status_code == 400
    assert home.send("POST", "Patient/$validate?mode=create", smith()).status_code == 200


def test_validate_says_ok_or_what_is_wrong_and_stores_nothing(home: Caller) -> None:
    family = uuid.uuid4().hex
    good = home.send("POST", "Patient/$validate", smith(name=[{"family": family}]))
    assert (good.status_code, good.json()["id"]) == (200, "ok")
    bad = home.send("POST", "Patient/$validate", smith(nmae=[]))
    assert bad.status_code == 400
    assert bad.json()["issue"][0]["expression"] == ["Patient.nmae"]
    in_parameters = {
        "resourceType": "Parameters",
        "parameter": [{"name": "resource", "resource": smith(nmae=1)}],
    }
    assert home.send("POST", "Patient/$validate", in_parameters).status_code == 400
    assert home.send("GET", f"Patient?family={family}&_summary=count").json()["total"] == 0


def test_nulls_are_taken_as_absent(home: Caller) -> None:
    answer = home.send("POST", "Patient", smith(gender=None))
    assert answer.status_code == 201
    assert "gender" not in answer.json()


def test_other_paths_of_the_api_answer_an_outcome(home: Caller) -> None:
    for path in (
        "/fhir/R5/Patient",
        "/auth/unheard-of",
        "/oauth2/unheard-of",
        "/admin/projects/x/y/z",
        "/fhir",
    ):
        answer = home.send("GET", path)
        assert (answer.status_code, text_of(answer)) == (404, "Not found"), path


def test_who_knows_the_version_is_told_so(home: Caller) -> None:
    patient = home.create(smith())
    path = f"Patient/{patient['id']}"
    answer = home.send("GET", path)
    for known in (
        {"if_none_match": answer["etag"]},
        {"if_none_match": f'"other", {answer["etag"]}'},
        {"if_modified_since": answer["last-modified"]},
    ):
        same = home.send("GET", path, **known)
        assert (same.status_code, same.content, same["etag"]) == (304, b"", answer["etag"])
    for unknown in (
        {"if_none_match": 'W/"other"'},
        {"if_modified_since": "Mon, 01 Jan 2001 00:00:00 GMT"},
        {"if_modified_since": "yesterday"},
        # The entity tag counts, not the less exact time.
        {"if_none_match": 'W/"other"', "if_modified_since": answer["last-modified"]},
    ):
        assert home.send("GET", path, **unknown).status_code == 200


def test_if_match_guards_delete(home: Caller) -> None:
    patient = home.create(smith())
    path = f"Patient/{patient['id']}"
    assert home.send("DELETE", path, if_match=f'W/"{uuid.uuid4()}"').status_code == 412
    assert home.send("DELETE", f"Patient?_id={patient['id']}", if_match='W/"x"').status_code == 412
    assert home.send("GET", path).status_code == 200
    assert home.send("DELETE", path, if_match=f'W/"{patient["meta"]["versionId"]}"').status_code == 200
    other = home.create(smith())
    assert (
        home.send("PUT", f"Patient/{other['id']}", {**other, "gender": "male"}, if_match="*").status_code
        == 200
    )


def test_prefer_chooses_the_body_of_a_write(home: Caller) -> None:
    created = home.send("POST", "Patient", smith(), prefer="return=OperationOutcome")
    assert (created.status_code, created.json()["id"]) == (201, "created")
    path = created["location"].partition("/fhir/R4/")[2]
    patient = home.send("GET", path, prefer="return=OperationOutcome").json()
    assert patient["resourceType"] == "Patient"
    changed = home.send("PUT", path, {**patient, "gender": "male"}, prefer="return=OperationOutcome")
    assert (changed.status_code, changed.json()["id"]) == (200, "ok")
    assert "etag" in changed
    patch = [{"op": "add", "path": "/active", "value": True}]
    whole = home.send("PATCH", path, patch, prefer="return=representation")
    assert whole.json()["active"] is True


def test_account_can_be_given_as_a_parameter(home: Caller) -> None:
    account = f"Organization/{uuid.uuid4()}"
    answer = home.send("POST", f"Patient?_account={account}", smith(), x_medplum="extended")
    assert answer.json()["meta"]["account"] == {"reference": account}
    assert {"reference": account} in answer.json()["meta"]["compartment"]
    refused = home.send("POST", "Patient?_account=nonsense", smith())
    assert refused.status_code == 400


@pytest.mark.parametrize(
    ("query", "accept", "status"),
    [
        ("", "application/fhir+json", 200),
        ("", "application/fhir+json, */*; q=0.1", 200),
        ("", "text/html,application/xhtml+xml,*/*;q=0.8", 200),
        ("", "application/*", 200),
        ("", "application/fhir+xml", 406),
        ("", "application/fhir+xml, application/json;q=0", 406),
        ("", "text/turtle", 406),
        ("?_format=json", "application/fhir+xml", 200),
        ("?_format=application/fhir%2Bjson", "", 200),
        ("?_format=application/fhir+json;fhirVersion=4.0", "", 200),
        ("?_format=xml", "", 406),
    ],
)
def test_answers_are_json_or_none(home: Caller, query: str, accept: str, status: int) -> None:
    answer = home.send("GET", f"Patient{query}", accept=accept)
    assert answer.status_code == status
    assert answer.json()["resourceType"] == ("Bundle" if status == 200 else "OperationOutcome")
    unwanted = home.send("POST", f"Patient{query}", smith(), accept=accept)
    assert unwanted.status_code == (201 if status == 200 else status)


def test_the_history_of_a_type_is_that_of_all_its_resources(foreign: Caller, home: Caller) -> None:
    made = [foreign.create({"resourceType": "Basic", "code": {"text": str(n)}}) for n in range(3)]
    foreign.send("PUT", f"Basic/{made[0]['id']}", {**made[0], "code": {"text": "changed"}})
    foreign.send("DELETE", f"Basic/{made[1]['id']}")
    whole = foreign.send("GET", "Basic/_history").json()
    assert [(each["request"]["method"], each["fullUrl"].rpartition("/")[2]) for each in whole["entry"]] == [
        ("DELETE", made[1]["id"]),
        ("PUT", made[0]["id"]),
        *(("POST", each["id"]) for each in made[::-1]),
    ]
    assert "resource" not in whole["entry"][0]
    pages, address = [], "Basic/_history?_count=2"
    while address:
        page = foreign.send("GET", address).json()
        pages.append(len(page["entry"]))
        following = [each["url"] for each in page["link"] if each["relation"] == "next"]
        address = following[0].removeprefix("http://127.0.0.1:8000") if following else ""
    assert pages == [2, 2, 1]
    since = whole["entry"][1]["response"]["lastModified"]
    assert len(foreign.send("GET", f"Basic/_history?_since={since}").json()["entry"]) == 2
    assert foreign.send("GET", "Basic/_history?_since=yesterday").status_code == 400
    assert foreign.send("POST", "Basic/_history", {}).status_code == 405
    assert made[0]["id"] not in home.send("GET", "Basic/_history").content.decode()
