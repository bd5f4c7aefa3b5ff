"""Requests nobody would send, made of what the definitions know and of what they do not: for test_fuzz and tests/bench/fuzz."""

from __future__ import annotations

import base64
import gzip
import json
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from hypothesis import strategies as st

from fhirstore.api import client_create
from fhirstore.definitions import registry
from fhirstore.definitions.registry import Element
from tests.rest.conftest import FHIR_JSON, FORM, Caller, smith, text_of

Json = dict[str, Any]

COMMON = (
    "Patient",
    "Observation",
    "Task",
    "Encounter",
    "Questionnaire",
    "Organization",
    "Binary",
    "Subscription",
)
OWN = frozenset({"AccessPolicy", "ClientApplication", "Project", "ProjectMembership", "User", "Bot"})
"""Types whose change would take the fuzzer's own rights, or start Bots that nobody runs here."""
OPERATIONS = (
    "$validate", "$everything", "$csv", "$graphql", "$find", "$expand", "$validate-code", "$lookup", "$subsumes",
    "$translate", "$export", "$presigned-url", "$reindex", "$resend", "$set-accounts", "$cancel", "$nonsense", "$",
)  # fmt: skip
JUNK = (
    "", " ", "x", "'", '"', "\\", "%", "%zz", "\x00", "\ud7ff", "ü", "👩‍⚕️", "../..", "//", "null", "true", "-1", "0", "1e999",
    "9" * 30, "NaN", "2020", "2020-02-30", "ge2020-01", "lt1900-01-01T00:00:00Z", "ap5", "|", "a|b", "http://x|y", "a|b|c", ",", "a,b",
    "$", "a$b", "*", "Patient/", "/Patient", "Patient/1/2", "urn:uuid:1", "http://[", "a" * 300, "(", "name eq 'x'", "a or b",
    "status eq final and (code eq x or not (date gt 2020))", "{{}}", "; DROP TABLE resource", "{1,2}", "\\,", "\\|", "a\\",
)  # fmt: skip
MODIFIERS = ("exact", "contains", "missing", "not", "text", "in", "not-in", "above", "below", "of-type", "identifier", "iterate", "Patient", "x", "")  # fmt: skip
RESULT_PARAMETERS = (
    "_count", "_offset", "_sort", "_total", "_summary", "_elements", "_fields", "_include", "_revinclude", "_include:iterate",
    "_cursor", "_type", "_format", "_pretty", "_filter", "_has", "_id", "_lastUpdated", "_tag", "_profile", "_security", "_source",
    "_compartment", "_project", "_list", "_text", "_content", "_contained", "_deleted", "_account", "_query", "_",
)  # fmt: skip
RESULT_VALUES = (
    "0", "1", "5", "1000", "5000", "none", "accurate", "estimate", "count", "true", "data", "text", "_lastUpdated", "-_lastUpdated",
    "name,-birthdate", "Patient:organization", "Observation:subject:Patient", "Organization:partof", "Patient,Observation", "xml", "json",
    "Observation:patient:code=x", "id,name", "status,code.text",
)  # fmt: skip
PRIMITIVES: tuple[Any, ...] = (None, True, False, 0, -1, 1.5, 10**20, "", "x", "2020-01-01", "2020-13-01", "T", [], {}, [None], {"a": 1}, "\x00", "\ud800", "a" * 70)  # fmt: skip


@dataclass
class World:
    """Who asks, and what he must never see: what another project has, and what his AccessPolicy hides.

    Attributes:
        home: who asks.
        ids: references that are there, and of what he must not see.
        resources: what stands behind the first of them.
        secrets: texts that only stand where he must not see them.
    """

    home: Caller
    ids: list[str] = field(default_factory=list)
    resources: list[Json] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)


def make_world(home: Caller, foreign: Caller) -> World:
    """Fill both projects alike."""
    world = World(home)
    for caller in (home, foreign):
        word = uuid.uuid4().hex
        organization = caller.create({"resourceType": "Organization", "name": word, "alias": [word]})
        reference = {"reference": f"Organization/{organization['id']}", "display": word}
        patient = caller.create(
            smith(name=[{"family": word}], birthDate="1990-01-01", managingOrganization=reference)
        )
        subject = {"reference": f"Patient/{patient['id']}", "display": word}
        made = [
            organization,
            patient,
            caller.create({"resourceType": "Observation", "status": "final", "code": {"text": word}, "subject": subject, "valueQuantity": {"value": 5, "unit": word}}),
            caller.create({"resourceType": "Task", "status": "draft", "intent": "order", "for": subject, "description": word}),
            caller.create({"resourceType": "Encounter", "status": "planned", "class": {"code": word}, "subject": subject}),
            caller.create({"resourceType": "Questionnaire", "status": "active", "url": f"http://x/{word}", "title": word}),
            caller.create({"resourceType": "ValueSet", "status": "active", "url": f"http://v/{word}", "name": word}),
            caller.create({"resourceType": "Schedule", "actor": [subject]}),
        ]  # fmt: skip
        binary = caller.send("POST", "Binary", word.encode(), content_type="text/plain").json()
        world.ids += [f"{each['resourceType']}/{each['id']}" for each in [*made, binary]]
        if caller is home:
            world.resources = made
        else:
            world.secrets.append(word)
    return world


def limit(world: World) -> None:
    """Have somebody ask whom an AccessPolicy lets see women, but not their telecom, final Observations, and no organisations."""
    home, word = world.home, uuid.uuid4().hex
    rules = [
        {"resourceType": "Patient", "criteria": "Patient?gender=female", "hiddenFields": ["telecom"]},
        {"resourceType": "Observation", "criteria": "Observation?status=final"},
        {"resourceType": "Questionnaire", "readonly": True},
        *({"resourceType": type} for type in ("Encounter", "Task", "Schedule", "Binary")),
    ]
    policy = home.repository.create({"resourceType": "AccessPolicy", "name": "p", "resource": rules})
    membership = {"accessPolicy": {"reference": f"AccessPolicy/{policy.id}"}}
    made = client_create(home.repository, name="Limited", membership=membership)
    organization = home.create({"resourceType": "Organization", "name": word})
    man = home.create(smith(gender="male", birthDate="1990-01-01", name=[{"family": word}]))
    woman = home.create(
        smith(
            gender="female",
            birthDate="1990-01-01",
            telecom=[{"system": "phone", "value": word}],
            managingOrganization={"reference": f"Organization/{organization['id']}"},
            link=[{"type": "seealso", "other": {"reference": f"Patient/{man['id']}"}}],
        )
    )
    subject = {"reference": f"Patient/{woman['id']}"}
    weight = home.create(
        {"resourceType": "Observation", "status": "preliminary", "code": {"text": word}, "subject": subject}
    )
    context = {"subject": {"reference": f"Patient/{man['id']}"}}
    visit = home.create({"resourceType": "Encounter", "status": "planned", "class": {"code": "x"}, **context})
    hidden = home.send(
        "POST", "Binary", word.encode(), content_type="text/plain", x_security_context=f"Patient/{man['id']}"
    ).json()
    # Once a man, and deleted: the history must not tell.
    home.send(
        "DELETE",
        f"Observation/{home.create({'resourceType': 'Observation', 'status': 'preliminary', 'code': {'text': word}})['id']}",
    )
    world.ids += [
        f"{each['resourceType']}/{each['id']}" for each in (organization, man, woman, weight, visit, hidden)
    ] * 2
    world.resources.append(visit)
    world.home = Caller(home.project, made["id"], made["secret"], "", "")
    world.secrets.append(word)


@dataclass(frozen=True)
class Shot:
    """One request."""

    method: str
    path: str
    body: Any
    content_type: str
    headers: tuple[tuple[str, str], ...]


def fire(world: World, shot: Shot) -> tuple[int, str | None]:
    """Send a request; return the status and what is wrong with the answer, None for nothing."""
    answer = world.home.send(
        shot.method, shot.path, shot.body, content_type=shot.content_type, **dict(shot.headers)
    )
    content, status = answer.getvalue(), answer.status_code
    if status >= 500:
        return status, f"{status} {content[:500]!r}"
    if status >= 400 and "/fhir/R4" in shot.path and shot.method != "HEAD" and not text_of(answer):
        return status, f"{status} without a word"
    seen = content + repr(dict(answer.headers)).encode()
    if any(secret.encode() in seen for secret in world.secrets):
        return status, f"bytes nobody here may see: {seen[:500]!r}"
    return status, None


# --- parts -----------------------------------------------------------------------------------------------------------


def junk() -> st.SearchStrategy[str]:
    """Texts for anywhere."""
    return st.sampled_from(JUNK) | st.text(max_size=20)


def types() -> st.SearchStrategy[str]:
    """Mostly names of resource types."""
    return st.sampled_from(COMMON) | st.sampled_from(sorted(registry.resource_types())) | st.sampled_from(
        ("Nonsense", "patient", "Resource", "DomainResource", "$x", "_history", "job", "")
    )  # fmt: skip


@st.composite
def queries(draw: st.DrawFn, world: World, type: str) -> str:
    """Query strings, some of which are searches."""
    pairs = []
    known = sorted(registry.search_parameters(type)) if registry.is_resource_type(type) else ["name"]
    ids = [*world.ids, *(each.partition("/")[2] for each in world.ids)]
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.integers(0, 9))
        value = draw(st.sampled_from(ids) | junk())
        if kind < 5:
            name = draw(st.sampled_from(known))
            if draw(st.booleans()):
                name += f":{draw(st.sampled_from(MODIFIERS))}"
        elif kind == 5:
            holder = draw(st.sampled_from(COMMON))
            code = draw(st.sampled_from(sorted(registry.search_parameters(holder))))
            name = (
                f"_has:{holder}:{draw(st.sampled_from(('subject', 'patient', 'organization', 'x')))}:{code}"
            )
        elif kind == 6:
            name = f"{draw(st.sampled_from(known))}.{draw(st.sampled_from(('name', 'identifier', 'x', 'organization.name')))}"
        elif kind == 7:
            name = draw(junk())
        else:
            name = draw(st.sampled_from(RESULT_PARAMETERS))
            value = draw(st.sampled_from(RESULT_VALUES) | st.just(value))
        pairs.append((name, value))
    encoded = urlencode(pairs, errors="replace")
    return (
        encoded
        if draw(st.integers(0, 9)) != 4
        else encoded + draw(st.sampled_from(("&", "&&=", "%", "%ff", "&=%00", "#x", "?")))
    )


@st.composite
def elements(draw: st.DrawFn, element: Element, depth: int) -> Any:
    """A value for an element, as often wrong as right."""
    if draw(st.integers(0, 3)) == 2:
        value = draw(st.sampled_from(PRIMITIVES))
    else:
        type = draw(st.sampled_from(element.types)).code if element.types else "string"
        structure = registry.structure(type)
        if structure is not None and structure.kind == "complex-type" and depth < 3:
            inner = structure.children() if type not in ("BackboneElement", "Element") else ()
            chosen = draw(st.lists(st.sampled_from(inner), max_size=3)) if inner else []
            value = {
                each.property_name(each.types[0].code if each.types else ""): draw(elements(each, depth + 1))
                for each in chosen
            }
        else:
            value = draw(
                st.sampled_from(
                    ("x", "2020-01-01", "2020-01-01T10:00:00Z", "http://x", True, 5, 1.25, "active", "final")
                )
            )
    return [value] if element.array and draw(st.booleans()) else value


@st.composite
def resources(draw: st.DrawFn, world: World, type: str) -> Any:
    """Resources, right ones that were changed among them."""
    if draw(st.booleans()):
        alike = [each for each in world.resources if each["resourceType"] == type]
        resource = dict(draw(st.sampled_from(alike or world.resources)))
        for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
            resource[draw(st.sampled_from(sorted(resource)) | junk())] = draw(st.sampled_from(PRIMITIVES))
        return resource
    structure = registry.structure(type)
    made: Json = {"resourceType": type}
    if structure is not None:
        for element in draw(st.lists(st.sampled_from(structure.children() or (None,)), max_size=4)):
            if element is not None:
                code = element.types[0].code if element.types else ""
                made[element.property_name(code)] = draw(elements(element, 0))
    return made


@st.composite
def patches(draw: st.DrawFn) -> Any:
    """JSON Patches and FHIRPath Patches."""
    path = draw(st.sampled_from(("/name", "/name/-", "/name/0/family", "/x/y/z", "/", "", "/meta", "/id", "/resourceType", "/name/99", "/~2", "/name/-1")) | junk())  # fmt: skip
    if draw(st.booleans()):
        verbs = ("add", "remove", "replace", "move", "copy", "test", "explode")
        return [
            {
                "op": draw(st.sampled_from(verbs)),
                "path": path,
                "from": draw(st.sampled_from(("/name", "/gender", "x"))),
                "value": draw(st.sampled_from(PRIMITIVES)),
            }
            for _ in range(draw(st.integers(0, 3)))
        ]
    where = draw(st.sampled_from(("Patient", "Patient.name", "Patient.name[0]", "name.where(family='x')", "Patient.birthDate", "$this", "%x", "1/0")) | junk())  # fmt: skip
    part = [
        {"name": "type", "valueCode": draw(st.sampled_from(("add", "insert", "delete", "replace", "move", "x")))},
        {"name": "path", "valueString": where},
        {"name": "name", "valueString": draw(st.sampled_from(("gender", "name", "contact", "deceased", "x")))},
        draw(st.sampled_from(({"name": "value", "valueString": "x"}, {"name": "value", "part": [{"name": "name", "valueHumanName": {"text": "x"}}]}, {"name": "value"}))),
        {"name": "index", "valueInteger": draw(st.integers(-1, 3))},
        {"name": "source", "valueInteger": 0},
        {"name": "destination", "valueInteger": draw(st.integers(0, 3))},
    ]  # fmt: skip
    return {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": part}]}


@st.composite
def bundles(draw: st.DrawFn, world: World) -> Any:
    """Batches and transactions of a few requests."""
    entries = []
    for _ in range(draw(st.integers(0, 4))):
        shot = draw(shots(world, nested=True))
        resource = shot.body if isinstance(shot.body, (dict, list)) else None
        if shot.method == "PATCH" and draw(st.booleans()):
            data = base64.b64encode(json.dumps(resource).encode()).decode()
            resource = {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": data}
        urn = f"urn:uuid:{draw(st.sampled_from(('0', '1')))}0000000-0000-4000-8000-000000000000"
        entry: Json = {
            "fullUrl": draw(st.sampled_from((urn, "http://x/y", 5))),
            "request": {
                "method": shot.method,
                "url": shot.path.removeprefix("/fhir/R4/"),
                **dict(shot.headers),
            },
            "resource": resource,
        }
        if draw(st.integers(0, 5)) == 2:
            entry[draw(st.sampled_from(sorted(entry)))] = draw(st.sampled_from(PRIMITIVES))
        entries.append(entry)
    kind = draw(st.sampled_from(("batch", "transaction", "batch", "transaction", "collection", None)))
    return {"resourceType": "Bundle", "type": kind, "entry": entries}


@st.composite
def graphql(draw: st.DrawFn, world: World) -> Any:
    """GraphQL requests."""
    id = draw(st.sampled_from(world.ids)).partition("/")[2]
    query = draw(
        st.sampled_from(
            (
                f'{{ Patient(id: "{id}") {{ id name {{ family }} managingOrganization {{ resource {{ ... on Organization {{ name }} }} }} }} }}',
                '{ PatientList(name: "x", _count: 3) { id } }',
                '{ ObservationList(_filter: "code eq x") { id subject { resource { __typename } } } }',
                "{ __schema { types { name } } }",
                "{ Nonsense }",
                "{",
                "mutation { x }",
            )
        )
        | junk()
    )
    return {"query": query, "variables": draw(st.sampled_from(PRIMITIVES))}


BROKEN = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"a":' * 200,
    b"1",
    b'{"resourceType":"Patient","id":NaN}',
)


@st.composite
def bodies(draw: st.DrawFn, world: World, method: str, path: str, type: str) -> tuple[Any, str]:
    """A body that might belong to the request, and its content type."""
    content_type = draw(st.sampled_from((FHIR_JSON,) * 40 + (FORM, "text/plain", "application/json; charset=utf-16", "application/fhir+xml", "x", "application/json-patch+json")))  # fmt: skip
    if path == "" and method == "POST":
        return draw(bundles(world)), content_type
    if path.endswith("_search"):
        return draw(queries(world, type)), FORM
    if path.endswith("$graphql"):
        return draw(graphql(world)), content_type
    if method == "PATCH":
        return draw(patches() | resources(world, type)), content_type
    return draw(resources(world, type)), content_type


NESTED_HEADERS = [
    [("ifMatch", 'W/"1"')],
    [("ifNoneExist", "name=x")],
    [("ifNoneExist", "_id=urn:uuid:00000000-0000-4000-8000-000000000000")],
    [("ifNoneMatch", "*")],
    [("ifModifiedSince", "2020")],
]
HEADERS = [
    *([[("x_medplum", "extended")]] * 8),
    [("if_match", 'W/"1"')],
    [("if_match", "*")],
    [("if_none_exist", "name=x")],
    [("if_none_exist", "?")],
    [("if_none_exist", "birthdate=1990-01-01")],
    [("if_none_match", 'W/"1", *')],
    [("if_modified_since", "Mon, 01 Jan 2029 00:00:00 GMT")],
    [("if_modified_since", "\xff")],
    [("prefer", "return=minimal")],
    [("prefer", "return=OperationOutcome, respond-async")],
    [("accept", "application/fhir+xml")],
    [("accept", "text/html;q=0.9, */*;q=x, ,")],
    [("content_encoding", "gzip")],
    [("content_encoding", "br")],
    [("range", "bytes=0-1")],
    [("range", "bytes=5-1,x")],
    [("x_trace_id", "x" * 5000)],
    [("x_security_context", "Patient/x")],
    [("x_medplum_on_behalf_of", "Patient/x")],
    [("authorization", "Bearer x.y.z")],
    [("authorization", "Basic ====")],
]

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def _methods(path: str) -> tuple[str, ...]:
    """The methods a path might take."""
    if path.endswith("_search"):
        return ("POST",)
    if "$" in path or path == "":
        return ("GET", "POST")
    if "_history" in path or path.startswith(("metadata", "job/")):
        return ("GET",)
    return (
        ("GET", "PUT", "PATCH", "DELETE") if "/" in path else ("GET", "GET", "POST", "POST", "PUT", "DELETE")
    )


@st.composite
def shots(draw: st.DrawFn, world: World, *, nested: bool = False) -> Shot:
    """Requests to the FHIR API, now and then to what lies beside it."""
    type = draw(types())
    id = draw(
        st.sampled_from(world.ids) | st.builds("{}/{}".format, st.just(type), junk() | st.uuids().map(str))
    )
    operation = draw(st.sampled_from(OPERATIONS))
    path = draw(
        st.sampled_from(
            (type, type, id, id, f"{id}/_history", f"{id}/_history/{uuid.UUID(int=1)}", f"{type}/_search", f"{type}/{operation}",
             f"{id}/{operation}", operation, "" if not nested else type, "_search", "metadata", f"job/{id.partition('/')[2]}/status", f"{id}/x")
        )
    )  # fmt: skip
    method = draw(st.sampled_from(_methods(path) if draw(st.integers(0, 9)) != 4 else METHODS))
    if not nested and draw(st.integers(0, 30)) == 7:
        method = draw(st.sampled_from(("HEAD", "OPTIONS", "TRACE", "LINK", "get")))
    if method != "GET" and path.partition("/")[0] in OWN:
        method = "GET"
    query = draw(queries(world, type))
    body, content_type = None, FHIR_JSON
    if method in ("POST", "PUT", "PATCH", "DELETE"):
        body, content_type = draw(bodies(world, method, path, type))
        if not nested and draw(st.integers(0, 12)) == 7:
            body = draw(st.sampled_from(BROKEN))
    headers = draw(st.sampled_from(NESTED_HEADERS if nested else HEADERS) | st.just([]))
    if ("content_encoding", "gzip") in headers and isinstance(body, dict):
        body = gzip.compress(json.dumps(body).encode())
    prefix = "/fhir/R4/" if nested else draw(st.sampled_from(("/fhir/R4/",) * 8 + ("/api/fhir/R4/", f"/projects/{world.home.project}/fhir/R4/", f"/projects/{uuid.UUID(int=2)}/fhir/R4/")))  # fmt: skip
    if not nested and draw(st.integers(0, 60)) == 7:
        prefix, path = "/", draw(st.sampled_from(("auth/me", "oauth2/token", "oauth2/userinfo", f"admin/projects/{world.home.project}", ".well-known/jwks.json", "storage/a/b", "email/v1/send", "keyvalue/v1/x")))  # fmt: skip
        method, body = (
            draw(st.sampled_from((("GET", None), ("PUT", b"x"))))
            if path != "oauth2/token"
            else ("POST", draw(queries(world, type)))
        )
    encoded = quote(path, safe="/$", errors="replace")
    return Shot(
        method, f"{prefix}{encoded}" + (f"?{query}" if query else ""), body, content_type, tuple(headers)
    )
