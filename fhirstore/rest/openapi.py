"""``GET /openapi.json``: the API as an OpenAPI 3.1 document, made from what `metadata` is made of, and from the site's URLs.

It says which paths there are, how they are called and what a search takes. What a resource may hold is said by the
StructureDefinitions: to repeat that here would make a document no tool can load.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any, Final

import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RegexPattern
from rest_framework import serializers

from fhirstore.operations import Operation, operations_of
from fhirstore.rest.http import endpoint
from fhirstore.rest.messages import JSON
from fhirstore.rest.metadata import capability_statement

Json = dict[str, Any]

FHIR: Final = "/fhir/R4"
PLAIN_JSON: Final = "application/json"
FHIR_JSON: Final = "application/fhir+json"
FORM: Final = "application/x-www-form-urlencoded"
_BESIDE: Final = re.compile(
    r"/(?:auth|oauth2|admin/projects|email|keyvalue|\.well-known|cds-services)(?:/|$)"
)
"""The paths beside FHIR that are part of the API."""
_FORMS: Final = frozenset({"/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"})
"""Whose bodies are forms, as OAuth has it."""
_FOR_READERS: Final = re.compile(r"[;:,]? [Rr]aises .*| \((?:shared|docs)/[^)]*\)|:\w+:(?=`)")
_CONVERTER: Final = re.compile(r"<(?:\w+:)?(\w+)>")
_GROUP: Final = re.compile(r"\(\?P<(\w+)>[^()]*\)")

_RESULT_PARAMETERS: Final = {
    "_count": "resources on a page",
    "_offset": "resources before the page",
    "_sort": "parameters, by comma; - before one turns its order round",
    "_total": "none, estimate or accurate",
    "_summary": "true, text, data, count or false",
    "_elements": "elements to answer with, by comma",
    "_include": "Type:parameter of resources that matches refer to",
    "_revinclude": "Type:parameter of resources that refer to matches",
}
_SCHEMAS: Final[Json] = {
    "Resource": {
        "type": "object",
        "required": ["resourceType"],
        "properties": {
            "resourceType": {"type": "string"},
            "id": {"type": "string"},
            "meta": {"type": "object"},
        },
    },
    "Patch": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["op", "path"],
            "properties": {
                "op": {"enum": ["add", "remove", "replace", "move", "copy", "test"]},
                "path": {"type": "string"},
                "from": {"type": "string"},
                "value": {},
            },
        },
    },
    **{
        kind: {"type": "string", "description": f"A search value of type {kind}"}
        for kind in (
            *("number", "date", "string", "token", "reference", "composite", "quantity", "uri", "special"),
        )
    },
}


@endpoint("GET", public=True)
def openapi(request: HttpRequest) -> HttpResponse:
    """``GET /openapi.json``: this document, which needs no login."""
    return HttpResponse(_document(settings.BASE_URL), headers={"content-type": JSON})


@functools.lru_cache(maxsize=8)
def _document(base_url: str) -> bytes:
    return orjson.dumps(describe(base_url))


def describe(base_url: str) -> Json:
    """Return the document of this process, after all operations have been registered."""
    (rest,) = capability_statement(base_url)["rest"]
    types: list[Json] = rest["resource"]
    paths: Json = dict(_system())
    for resource in types:
        paths |= _type(resource)
    for operation in operations_of("Basic"):
        if operation.types is None:  # on every type: told once
            _add_operation(paths, operation, "Every type", "{type}")
    paths |= dict(_beside())
    oauth = {
        name: f"{base_url}oauth2/{path}"
        for name, path in (("authorizationUrl", "authorize"), ("tokenUrl", "token"))
    }
    flows = {
        "authorizationCode": {**oauth, "scopes": {}},
        "clientCredentials": {"tokenUrl": oauth["tokenUrl"], "scopes": {}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fhirbots",
            "version": version("fhirbots"),
            "description": "FHIR R4, sign-in and administration. What resources hold is described by their StructureDefinitions.",
        },
        "servers": [{"url": base_url.rstrip("/")}],
        "security": [{"oauth2": []}, {"basic": []}],
        "tags": [
            {"name": name}
            for name in ("System", "Every type", *(each["type"] for each in types), "Beside FHIR")
        ],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "parameters": {
                "id": {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
                "type": {"name": "type", "in": "path", "required": True, "schema": {"type": "string"}},
                "version": {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}},
                **{name: _query(name, "string", text) for name, text in _RESULT_PARAMETERS.items()},
            },
            "requestBodies": {
                "Resource": {
                    "required": True,
                    "content": {FHIR_JSON: {"schema": _ref("schemas", "Resource")}},
                },
                "Patch": {
                    "required": True,
                    "content": {
                        "application/json-patch+json": {"schema": _ref("schemas", "Patch")},
                        FHIR_JSON: {"schema": _ref("schemas", "Resource")},
                    },
                },
                "Search": {"content": {FORM: {"schema": {"type": "object"}}}},
                "Input": {"content": {"*/*": {}}},
            },
            "responses": {
                "Resource": {
                    "description": "A resource: the one asked for, a Bundle, or an OperationOutcome",
                    "content": {FHIR_JSON: {"schema": _ref("schemas", "Resource")}},
                },
                "Any": {"description": "The answer", "content": {"*/*": {}}},
                "Error": {
                    "description": "An OperationOutcome that says what is wrong",
                    "content": {FHIR_JSON: {"schema": _ref("schemas", "Resource")}},
                },
            },
            "securitySchemes": {
                "oauth2": {"type": "oauth2", "flows": flows},
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "id and secret of a ClientApplication",
                },
            },
        },
    }


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _query(name: str, kind: str, text: str | None = None) -> Json:
    schema = {"type": "string"} if kind == "string" else _ref("schemas", kind)
    return {"name": name, "in": "query", "schema": schema, **({"description": text} if text else {})}


def _call(
    id: str, tag: str, summary: str, *, body: str | None = None, answer: str = "Resource", status: int = 200
) -> Json:
    return {
        "operationId": id,
        "tags": [tag],
        "summary": summary,
        **({"requestBody": _ref("requestBodies", body)} if body else {}),
        "responses": {str(status): _ref("responses", answer), "default": _ref("responses", "Error")},
    }


def _summary(documented: object) -> str:
    """The first line of a docstring, without what is for those who read the code."""
    line = (inspect.getdoc(documented) or "").partition("\n")[0].replace("``", "")
    return _FOR_READERS.sub("", line).replace("`", "").rstrip(".")


# --- FHIR ------------------------------------------------------------------------------------------------------------


def _system() -> Iterator[tuple[str, Json]]:
    common = [_ref("parameters", name) for name in _RESULT_PARAMETERS]
    public: Json = {"security": []}
    yield f"{FHIR}/metadata", {"get": _call("metadata", "System", "The CapabilityStatement") | public}
    yield (
        f"{FHIR}/$versions",
        {"get": _call("versions", "System", "The FHIR versions", answer="Any") | public},
    )
    yield (
        FHIR,
        {
            "get": {
                **_call("search", "System", "Search several types"),
                "parameters": [_query("_type", "string"), *common],
            },
            "post": _call(
                "batch", "System", "Carry out a Bundle of type batch or transaction", body="Resource"
            ),
        },
    )
    yield (
        f"{FHIR}/_search",
        {"post": _call("search_by_post", "System", "Search several types", body="Search")},
    )
    for operation in operations_of(None):
        yield f"{FHIR}/{operation.name}", _operation(operation, "System", "system")


def _type(resource: Json) -> Json:
    """The paths of a type: what its entry of the CapabilityStatement says."""
    type, codes = resource["type"], {each["code"] for each in resource["interaction"]}
    path = f"{FHIR}/{type}"
    instance = f"{path}/{{id}}"

    def call(code: str, summary: str, **more: Any) -> Json:
        return _call(f"{type}_{code.replace('-', '_')}", type, summary, **more)

    paths: Json = {path: {}, instance: {"parameters": [_ref("parameters", "id")]}}
    if "search-type" in codes:
        own = [_query(each["name"], each["type"]) for each in resource.get("searchParam", ())]
        common = [_ref("parameters", name) for name in _RESULT_PARAMETERS]
        paths[path]["get"] = {**call("search", f"Search {type}"), "parameters": [*own, *common]}
        which = f"the {type} that the search in the query finds"
        paths[path] |= {
            "put": call("conditional_update", f"Update {which}, or create it", body="Resource"),
            "patch": call("conditional_patch", f"Patch {which}", body="Patch"),
            "delete": call("conditional_delete", f"Delete {which}"),
        }
        paths[f"{path}/_search"] = {"post": call("search_by_post", f"Search {type}", body="Search")}
    body, answer = ("Input", "Any") if type == "Binary" else ("Resource", "Resource")
    paths[path]["post"] = call("create", f"Create a {type}", body=body, status=201)
    paths[instance] |= {
        "get": call("read", f"Read a {type}", answer=answer),
        "put": call("update", f"Update a {type}", body=body),
        "patch": call("patch", f"Patch a {type}", body="Patch"),
        "delete": call("delete", f"Delete a {type}"),
    }
    paths[f"{path}/_history"] = {"get": call("history_type", "The versions of all")}
    of_instance = {"parameters": [_ref("parameters", "id")]}
    paths[f"{instance}/_history"] = {**of_instance, "get": call("history", "The versions of one")}
    paths[f"{instance}/_history/{{version}}"] = {
        "parameters": [_ref("parameters", "id"), _ref("parameters", "version")],
        "get": call("vread", "Read a version", answer=answer),
    }
    for operation in operations_of(type):
        if operation.types is not None:
            _add_operation(paths, operation, type, type)
    return paths


def _add_operation(paths: Json, operation: Operation, tag: str, type: str) -> None:
    """Add the paths of an operation on a type and its instances; `type` may be ``{type}``."""
    parameters = [_ref("parameters", "type")] if type == "{type}" else []
    for level, path in (("type", f"{FHIR}/{type}"), ("instance", f"{FHIR}/{type}/{{id}}")):
        if level in operation.levels:
            more = [_ref("parameters", "id")] if level == "instance" else []
            item = paths.setdefault(f"{path}/{operation.name}", {})
            item |= {
                **({"parameters": [*parameters, *more]} if parameters or more else {}),
                **_operation(operation, tag, level),
            }


def _operation(operation: Operation, tag: str, level: str) -> Json:
    """An operation (``$name``) on a level, by its methods."""
    text, described = _summary(operation.handler) or operation.name, {}
    for method in operation.methods:
        id = f"{tag.replace(' ', '_')}_{operation.name.removeprefix('$').replace('-', '_')}_{level}_{method.lower()}"
        body = "Input" if method in ("POST", "PUT") else None
        described[method.lower()] = _call(id, tag, text, body=body, answer="Any")
    return described


# --- beside FHIR -----------------------------------------------------------------------------------------------------


def _beside() -> Iterator[tuple[str, Json]]:
    """The endpoints beside FHIR, of all apps, from the site's URLs."""
    for path, pattern in _routes(get_resolver().url_patterns):
        if not _BESIDE.match(path):
            continue
        view = pattern.callback
        view_class = getattr(view, "view_class", None)
        methods: Iterable[str] = getattr(view, "methods", ())
        is_public = getattr(view, "public", False)
        if view_class is not None:
            methods = [each.upper() for each in view_class.http_method_names if hasattr(view_class, each)]
            is_public = not view_class.authentication_classes
        described: Json = {}
        for method in methods:
            if method != "OPTIONS":
                described[method.lower()] = _endpoint(path, method, view_class or view, is_public=is_public)
        names = re.findall(r"\{(\w+)\}", path)
        if described:
            parameters = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
            yield path, {**({"parameters": parameters} if parameters else {}), **described}


def _endpoint(path: str, method: str, view: Any, *, is_public: bool) -> Json:
    id = re.sub(r"\W+", "_", f"{path}_{method.lower()}").strip("_")
    described = _call(id, "Beside FHIR", _summary(view) or path, answer="Any")
    if method in ("POST", "PUT"):
        body = getattr(view, "body", None)
        content = {PLAIN_JSON: {"schema": _schema(body())}} if body else {"*/*": {}}
        described["requestBody"] = {
            "content": {FORM: {"schema": {"type": "object"}}} if path in _FORMS else content
        }
    return described | ({"security": []} if is_public else {})


def _routes(
    patterns: Iterable[URLPattern | URLResolver], before: str = "/"
) -> Iterator[tuple[str, URLPattern]]:
    for each in patterns:
        text = str(each.pattern)
        if isinstance(each.pattern, RegexPattern):
            text = _GROUP.sub(r"{\1}", text.removeprefix("^").removesuffix("$"))
            if re.search(r"[()\[\]?|*\\]", text):
                continue  # the FHIR API, described from the definitions
        path = before + _CONVERTER.sub(r"{\1}", text)
        if isinstance(each, URLResolver):
            yield from _routes(each.url_patterns, path)
        else:
            yield path, each


def _schema(field: serializers.Field[Any, Any, Any, Any]) -> Json:
    """What a serializer, or a field of one, reads as JSON."""
    match field:
        case serializers.Serializer():
            required = [name for name, each in field.fields.items() if each.required]
            return {
                "type": "object",
                "properties": {name: _schema(each) for name, each in field.fields.items()},
                **({"required": required} if required else {}),
            }
        case serializers.ListField():
            return {"type": "array", "items": _schema(field.child)}
        case serializers.DictField():
            return {"type": "object"}
        case serializers.BooleanField():
            return {"type": "boolean"}
        case serializers.ChoiceField():
            return {"type": "string", "enum": list(field.choices)}
        case serializers.EmailField():
            return {"type": "string", "format": "email"}
    return {"type": "string"}
