"""Answers queries and mutations in GraphQL (https://hl7.org/fhir/R4/graphql.html), in the shape Medplum gives them.

The schema is made from the definitions on first use: for each type ``T(id:)``, ``TList(…)`` and ``TConnection(…)``, their
arguments are search parameters with ``_`` for ``-``. References have ``resource``, resources the lists of those that refer
to them. Mutations are ``TCreate(res:)``, ``TUpdate(id:, res:)``, ``TPatch(id:, patch:)`` and ``TDelete(id:)``; each stands for
itself, one after the other. Everything goes through the request's Repository; depth, size and cost of a query are limited.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any, Final

import orjson
from graphql import (
    DocumentNode,
    ExecutionContext,
    ExecutionResult,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLArgument,
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLError,
    GraphQLField,
    GraphQLFloat,
    GraphQLID,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLInt,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLResolveInfo,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLString,
    GraphQLSyntaxError,
    GraphQLUnionType,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionNode,
    SelectionSetNode,
    execute_sync,
    parse,
    validate,
)
from graphql.pyutils import Path

from fhirstore import published
from fhirstore.definitions import registry
from fhirstore.definitions.registry import Element
from fhirstore.errors import FhirError, bad_request, forbidden, issue, outcome
from fhirstore.operations import OperationRequest
from fhirstore.repository import Repository, Stored
from fhirstore.rest.body import read_json
from fhirstore.rest.messages import JSON, FhirResponse
from fhirstore.rest.response import resource_json
from fhirstore.search.model import Kind, SearchRequest

Json = dict[str, Any]

MAX_TOKENS: Final = 5000
"""Words and signs of a query."""
MAX_DEPTH: Final = 12
"""Levels of fields, those inside fragments included."""
MAX_REMEMBERED: Final = 10_000
"""Characters of a query that is remembered parsed."""
MAX_SEARCHES: Final = 200
MAX_READS: Final = 2000
MAX_WRITES: Final = 100
MAX_BYTES: Final = 64 * 2**20
"""Of all resources that are read."""
MAX_FIELDS: Final = 200_000
"""Values in an answer."""

INTROSPECTION: Final = "graphql-introspection"
"""The Project's feature that allows to ask for the schema."""

_SCALARS: Final[Mapping[str, GraphQLScalarType]] = {
    "boolean": GraphQLBoolean,
    "decimal": GraphQLFloat,
    "id": GraphQLID,
    "integer": GraphQLInt,
    "positiveInt": GraphQLInt,
    "unsignedInt": GraphQLInt,
}
"""The scalar of each primitive type that is no text."""


def run_query(request: OperationRequest) -> FhirResponse:
    """Answer ``{query, operationName, variables}`` with ``{data, errors}``.

    Raises:
        FhirError: 400 for a query that is not valid or asks for too much, 403 for the schema without the Project's feature.
    """
    query, operation_name, variables = _read(request)
    document = _document(query) if len(query) < MAX_REMEMBERED else _document.__wrapped__(query)
    if _height(document, _is_introspection):
        if INTROSPECTION not in request.repository.identity.features:
            raise forbidden("Introspection needs the project feature graphql-introspection")
        _check_introspection(document)
        if not variables:
            return FhirResponse(200, _introspect(query, operation_name), {"content-type": JSON})
    context = Context(request)
    result = execute_sync(
        schema(),
        document,
        context_value=context,
        variable_values=variables,
        operation_name=operation_name,
        field_resolver=_member,
        execution_context_class=_Execution,
    )
    if context.failure:
        raise context.failure
    return FhirResponse(200, _serialized(result), {"content-type": JSON})


# --- the query ---------------------------------------------------------------------------------------------------------


def _read(request: OperationRequest) -> tuple[str, str | None, dict[str, Any]]:
    body = read_json(request)
    if not isinstance(body, dict):
        raise bad_request("Expected a JSON object with query, operationName and variables")
    query, operation_name, variables = (body.get(name) for name in ("query", "operationName", "variables"))
    if not query or not isinstance(query, str):
        raise bad_request("Must provide query.")
    if not isinstance(operation_name, str | None) or not isinstance(variables, dict | None):
        raise bad_request("operationName must be a text, variables an object")
    return query, operation_name or None, variables or {}


@lru_cache(maxsize=32)
def _document(query: str) -> DocumentNode:
    """Parse and validate a query; raises FhirError (400)."""
    try:
        document = parse(query, max_tokens=MAX_TOKENS)
    except (GraphQLSyntaxError, RecursionError) as error:
        said = getattr(error, "message", "nested too deeply")
        raise FhirError(outcome(None, [issue("GraphQL syntax error.", diagnostics=said)])) from None
    try:
        errors = validate(schema(), document, max_errors=10)
    except RecursionError:
        raise bad_request("The query is nested too deeply") from None
    if errors:
        raise FhirError(outcome(None, [issue(error.message) for error in errors]))
    if any(node.operation is OperationType.SUBSCRIPTION for node in _operations(document)):
        raise bad_request("Only queries and mutations are supported, no subscriptions")
    if (depth := _height(document, lambda _: 1)) > MAX_DEPTH and not _height(document, _is_introspection):
        raise bad_request(f"The query exceeds max depth (depth={depth}, max={MAX_DEPTH})")
    return document


def _height(document: DocumentNode, weight: Callable[[str], int]) -> int:
    """The greatest weight of field names on a way down through a valid query, in and out of fragments."""
    fragments = {
        node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)
    }

    @cache
    def of_fragment(name: str) -> int:
        return of(fragments[name].selection_set)

    def of(selections: SelectionSetNode | None) -> int:
        return max((of_node(node) for node in selections.selections), default=0) if selections else 0

    def of_node(node: SelectionNode) -> int:
        match node:
            case FragmentSpreadNode():
                return of_fragment(node.name.value)
            case FieldNode():
                return weight(node.name.value) + of(node.selection_set)
            case InlineFragmentNode():
                return of(node.selection_set)
        return 0

    return max((of(node.selection_set) for node in _operations(document)), default=0)


def _operations(document: DocumentNode) -> list[OperationDefinitionNode]:
    return [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]


def _is_introspection(name: str) -> int:
    return name in ("__schema", "__type")


def _check_introspection(document: DocumentNode) -> None:
    """Refuse questions about the schema that are mixed with others. (Their depth is limited by a rule of the library.)

    Raises:
        FhirError: 400.
    """
    roots = [node for operation in _operations(document) for node in operation.selection_set.selections]
    if len(roots) > 1 or not all(isinstance(node, FieldNode) for node in roots):
        raise bad_request("Ask for __schema or __type alone, and only once")


@lru_cache(maxsize=2)
def _introspect(query: str, operation_name: str | None) -> bytes:
    """The answer to a question about the schema; remembered, as it is large and always the same."""
    return _serialized(execute_sync(schema(), _document(query), operation_name=operation_name))


def _serialized(result: ExecutionResult) -> bytes:
    answer: Json = {"data": result.data}
    if result.errors:
        answer["errors"] = [error.formatted for error in result.errors]
    return orjson.dumps(answer)


# --- execution ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Context:
    """What a query may still cost, and what it has read."""

    request: OperationRequest
    searches: int = MAX_SEARCHES
    reads: int = MAX_READS
    writes: int = MAX_WRITES
    fields: int = MAX_FIELDS
    bytes: int = field(default_factory=lambda: MAX_BYTES)
    read_before: dict[tuple[str, str], Json] = field(default_factory=dict)
    failure: Exception | None = None
    """Why the query was given up."""

    def spend(self, what: str, amount: int = 1) -> None:
        """Count a search, a read, a write, a field or bytes; raises TooExpensiveError when there were too many."""
        left = getattr(self, what) - amount
        setattr(self, what, left)
        if left < 0:
            raise TooExpensiveError(bad_request(f"The query is too expensive: too many {what}").outcome)

    def read(self, type: str, id: str) -> Json:
        """A resource; raises FhirError as Repository.read."""
        if (type, id) not in self.read_before:
            self.spend("reads")
            repository = self.request.repository
            stored = published.read(repository, type, id) or repository.read(type, id)
            self.spend("bytes", len(stored.content))
            self.read_before[type, id] = resource_json(self.request, stored)
        return self.read_before[type, id]

    def search(self, search: SearchRequest) -> list[Json]:
        """The matches of a search."""
        self.spend("searches")
        entries = published.search(self.request.repository, search).entries
        self.spend("bytes", sum(len(stored.content) for stored in entries))
        return [resource_json(self.request, stored) for stored in entries]

    def write(self, work: Callable[[Repository], Stored]) -> Json:
        """Write a resource; returns it as it is then."""
        self.spend("writes")
        stored = work(self.request.repository)
        self.read_before.clear()
        return resource_json(self.request, stored)

    def count(self, search: SearchRequest) -> int | None:
        """The number of all matches of a search."""
        self.spend("searches")
        counted = replace(search, count=0, total="accurate")
        return published.search(self.request.repository, counted).total


class TooExpensiveError(FhirError):
    """A query has used up what it may cost."""


class _Execution(ExecutionContext):
    """Gives up a query for failures that are not about one value only."""

    def handle_field_error(self, error: GraphQLError, return_type: GraphQLOutputType, path: Path) -> None:
        cause = error.original_error
        context: Context = self.context_value
        if isinstance(cause, TooExpensiveError) or (cause is not None and not _concerns_value(cause)):
            context.failure = cause
        if context.failure:
            raise error
        super().handle_field_error(error, return_type, path)


def _concerns_value(cause: Exception) -> bool:
    """True for a refusal the client shall read in ``errors``; all else is a failure of the whole request."""
    return isinstance(cause, GraphQLError) or (isinstance(cause, FhirError) and cause.status < 500)


def _member(source: Any, info: GraphQLResolveInfo, **arguments: Any) -> Any:
    """An element; of a list with arguments those that have the given values, ``_count`` of them from ``_offset`` on."""
    info.context.spend("fields")
    value = source.get(info.field_name)
    if not arguments or not isinstance(value, list):
        return value
    start, count = max(arguments.pop("_offset", 0) or 0, 0), arguments.pop("_count", None)
    wanted = {name: given for name, given in arguments.items() if given is not None}
    found = [
        each for each in value if each and all(str(each.get(name)) == given for name, given in wanted.items())
    ]
    return found[start:] if count is None else found[start : start + max(count, 0)]


def _read_one(_: Any, info: GraphQLResolveInfo, *, id: str) -> Json:
    resource: Json = info.context.read(info.field_name, id)
    return resource


def _search_list(type: str, source: Any, info: GraphQLResolveInfo, **arguments: Any) -> list[Json]:
    matches: list[Json] = info.context.search(_search(type, source, info, arguments))
    return matches


def _search_connection(type: str, source: Any, info: GraphQLResolveInfo, **arguments: Any) -> Json:
    search = _search(type, source, info, arguments)
    return {"search": search, "offset": search.offset, "pageSize": search.count}


def _search(type: str, source: Any, info: GraphQLResolveInfo, arguments: dict[str, Any]) -> SearchRequest:
    names = _parameter_names(type)
    pairs = []
    if reference := arguments.pop("_reference", None):
        pairs.append((reference, f"{source['resourceType']}/{source['id']}"))
    pairs += [(names.get(name, name), str(value)) for name, value in arguments.items() if value is not None]
    request = info.context.request
    search: SearchRequest = request.repository.parse(type, pairs, base_url=f"{request.base_url}fhir/R4/")
    return search


def _edges(source: Json, info: GraphQLResolveInfo) -> list[Json]:
    return [{"mode": "match", "resource": match} for match in info.context.search(source["search"])]


def _count(source: Json, info: GraphQLResolveInfo) -> int | None:
    total: int | None = info.context.count(source["search"])
    return total


def _resolve_reference(
    source: Json, info: GraphQLResolveInfo, *, optional: bool = False, type: str | None = None
) -> Json | None:
    """The resource a Reference points to; with `optional` null instead of an error, with `type` only of that type."""
    found, _, id = str(source.get("reference", "")).partition("/")
    if not registry.is_resource_type(found) or not id or "/" in id or type not in (None, found):
        return None
    try:
        resource: Json = info.context.read(found, id)
    except FhirError as error:
        if optional and error.status < 500 and not isinstance(error, TooExpensiveError):
            return None
        raise
    return resource


# --- mutations ---------------------------------------------------------------------------------------------------------


def _create(type: str, _: Any, info: GraphQLResolveInfo, *, res: Json) -> Json:
    made: Json = info.context.write(lambda repository: repository.create(_typed(type, res)))
    return made


def _update(type: str, _: Any, info: GraphQLResolveInfo, *, id: str, res: Json) -> Json:
    resource = _typed(type, res)
    if resource.setdefault("id", id) != id:
        raise bad_request("Incorrect resource ID")
    made: Json = info.context.write(lambda repository: repository.update(resource)[0])
    return made


def _patch(type: str, _: Any, info: GraphQLResolveInfo, *, id: str, patch: list[Json]) -> Json:
    made: Json = info.context.write(lambda repository: repository.patch(type, id, patch))
    return made


def _delete(type: str, _: Any, info: GraphQLResolveInfo, *, id: str) -> Json:
    """Delete a resource; returns it as it was."""

    def work(repository: Repository) -> Stored:
        with repository.transaction():
            stored = repository.read(type, id)
            repository.delete(type, id)
        return stored

    deleted: Json = info.context.write(work)
    return deleted


def _typed(type: str, resource: Json) -> Json:
    if resource.setdefault("resourceType", type) != type:
        raise bad_request(f"Incorrect resource type: expected {type}, but found {resource['resourceType']}")
    return resource


_ANYTHING: Final = GraphQLScalarType(
    "JSON", description="Any JSON value; a text without quotes is one too.", specified_by_url=None
)


# --- the schema --------------------------------------------------------------------------------------------------------


@cache
def schema() -> GraphQLSchema:
    """The schema of all resource types; made on first use."""
    return _Builder().schema()


def _graphql_name(code: str) -> str:
    return code.replace("-", "_")


@cache
def _parameter_names(type: str) -> Mapping[str, str]:
    """The search parameters of a type by the name of their argument."""
    names = {_graphql_name(code): code for code in registry.search_parameters(type)}
    return {name: code for name, code in names.items() if re.fullmatch(r"[_A-Za-z]\w*", name)}


class _Builder:
    """Makes the types; their fields are made when they are needed, as types refer to each other in circles."""

    def __init__(self) -> None:
        self._types: dict[str, GraphQLObjectType] = {}
        self._inputs: dict[str, GraphQLInputObjectType] = {}
        self._arguments: dict[str, dict[str, GraphQLArgument]] = {}
        self._any = GraphQLUnionType(
            "ResourceList",
            lambda: [self._object(name) for name in sorted(registry.resource_types())],
            resolve_type=lambda value, *_: value["resourceType"],
        )

    def schema(self) -> GraphQLSchema:
        fields: dict[str, GraphQLField] = {}
        for type in sorted(registry.resource_types()):
            shape = self._object(type)
            fields[type] = GraphQLField(
                shape, {"id": GraphQLArgument(GraphQLNonNull(GraphQLID))}, resolve=_read_one
            )
            if type != "Binary":
                arguments = self._search_arguments(type)
                fields[f"{type}List"] = GraphQLField(
                    GraphQLList(shape), arguments, resolve=partial(_search_list, type)
                )
                fields[f"{type}Connection"] = GraphQLField(
                    self._connection(type), arguments, resolve=partial(_search_connection, type)
                )
        return GraphQLSchema(
            GraphQLObjectType("QueryType", fields), GraphQLObjectType("MutationType", self._mutations())
        )

    def _mutations(self) -> dict[str, GraphQLField]:
        id = GraphQLArgument(GraphQLNonNull(GraphQLID))
        operation = GraphQLInputObjectType(
            "PatchOperation",
            {
                "op": GraphQLInputField(GraphQLNonNull(_ANYTHING)),
                "path": GraphQLInputField(GraphQLNonNull(GraphQLString)),
                "value": GraphQLInputField(_ANYTHING),
                "from": GraphQLInputField(GraphQLString),
            },
        )
        patch = GraphQLArgument(GraphQLNonNull(GraphQLList(GraphQLNonNull(operation))))
        fields: dict[str, GraphQLField] = {}
        for type in sorted(registry.resource_types() - {"Binary"}):
            shape = self._object(type)
            for action, resolve, arguments in (
                ("Create", _create, {"res": GraphQLArgument(GraphQLNonNull(self._input(type, "Create")))}),
                (
                    "Update",
                    _update,
                    {"id": id, "res": GraphQLArgument(GraphQLNonNull(self._input(type, "Update")))},
                ),
                ("Patch", _patch, {"id": id, "patch": patch}),
                ("Delete", _delete, {"id": id}),
            ):
                resolver = partial(resolve, type)
                fields[f"{type}{action}"] = GraphQLField(shape, arguments, resolve=resolver)
        return fields

    def _input(self, name: str, suffix: str, path: str | None = None) -> GraphQLInputObjectType:
        """The input type of a structure, or of a group of elements written in place at `path`."""
        title = "".join(part[0].upper() + part[1:] for part in (path or name).split(".")) + suffix
        if title not in self._inputs:
            self._inputs[title] = GraphQLInputObjectType(title, partial(self._input_fields, name, path))
        return self._inputs[title]

    def _input_fields(self, name: str, path: str | None) -> dict[str, GraphQLInputField]:
        structure = registry.structure(name)
        fields: dict[str, GraphQLInputField] = {}
        if structure is None:
            return fields
        for element in structure.children(path):
            for type in element.types or (None,):
                key = element.property_name(type.code) if type else element.name
                shape, primitive = self._input_shape(name, element, type.code if type else None)
                fields[key] = GraphQLInputField(GraphQLList(shape) if element.array else shape)
                if primitive and element.name != "id":  # its id and extensions stand beside it
                    twin = self._input("Element", "InputValue")
                    fields[f"_{key}"] = GraphQLInputField(GraphQLList(twin) if element.array else twin)
        if path is None and structure.kind == "resource":
            fields["resourceType"] = GraphQLInputField(GraphQLString)
        return fields

    def _input_shape(self, owner: str, element: Element, code: str | None) -> tuple[GraphQLInputType, bool]:
        """The input type of an element of one type, and whether that is a primitive one."""
        structure = registry.structure(code) if code else None
        group = element.content or (element.path if code in ("BackboneElement", "Element") else None)
        owner_structure = registry.structure(owner)
        if group and owner_structure and owner_structure.children(group):
            return self._input(owner, "InputValue", group), False
        if code == "Resource":
            return _ANYTHING, False
        if structure is None or structure.kind == "primitive-type":
            return _SCALARS.get(code or "", GraphQLString), structure is not None
        return self._input(structure.type, "InputValue"), False

    def _object(self, name: str, path: str | None = None) -> GraphQLObjectType:
        """The type of a structure, or of a group of elements written in place at `path`."""
        key = path or name
        if key not in self._types:
            title = "".join(part[0].upper() + part[1:] for part in key.split("."))
            self._types[key] = GraphQLObjectType(title, partial(self._fields, name, path))
        return self._types[key]

    def _fields(self, name: str, path: str | None) -> dict[str, GraphQLField]:
        structure = registry.structure(name)
        fields: dict[str, GraphQLField] = {}
        if structure is None:
            return fields
        for element in structure.children(path):
            for type in element.types or (None,):
                fields[element.property_name(type.code) if type else element.name] = self._field(
                    name, element, type.code if type else None
                )
        if path is None and name == "Reference":
            arguments = {"optional": GraphQLArgument(GraphQLBoolean), "type": GraphQLArgument(GraphQLString)}
            fields["resource"] = GraphQLField(self._any, arguments, resolve=_resolve_reference)
        if path is None and structure.kind == "resource":
            fields["resourceType"] = GraphQLField(GraphQLNonNull(GraphQLString))
            fields |= self._reverse(name)
        return fields

    def _field(self, owner: str, element: Element, code: str | None) -> GraphQLField:
        arguments: dict[str, GraphQLArgument] = {}
        output: GraphQLOutputType
        children: Iterable[Element] = ()
        structure = registry.structure(code) if code else None
        group = element.content or (element.path if code in ("BackboneElement", "Element") else None)
        owner_structure = registry.structure(owner)
        if group and owner_structure and owner_structure.children(group):
            output, children = self._object(owner, group), owner_structure.children(group)
        elif code == "Resource":
            output = self._any
        elif structure is None or structure.kind == "primitive-type":
            output = _SCALARS.get(code or "", GraphQLString)
        else:
            output, children = self._object(structure.type), structure.children()
        if element.array:
            output = GraphQLList(output)
            arguments = {name: GraphQLArgument(GraphQLInt) for name in ("_count", "_offset")}
            arguments |= {
                child.name: GraphQLArgument(GraphQLString)
                for child in children
                if not child.array and not child.choice and all(_is_text(type.code) for type in child.types)
                and child.types
            }  # fmt: skip
        return GraphQLField(output, arguments)

    def _reverse(self, target: str) -> dict[str, GraphQLField]:
        """The lists of resources that refer to a resource, ``TList(_reference: parameter, …)``."""
        fields: dict[str, GraphQLField] = {}
        for type in _referring_types().get(target, ()):
            key = f"{type}?_reference"
            if key not in self._arguments:
                values = _reference_parameters(type)
                choice = GraphQLEnumType(f"{type}_reference", values)
                self._arguments[key] = {
                    **self._search_arguments(type),
                    "_reference": GraphQLArgument(GraphQLNonNull(choice)),
                }
            fields[f"{type}List"] = GraphQLField(
                GraphQLList(self._object(type)), self._arguments[key], resolve=partial(_search_list, type)
            )
        return fields

    def _search_arguments(self, type: str) -> dict[str, GraphQLArgument]:
        if type not in self._arguments:
            arguments = {name: GraphQLArgument(GraphQLString) for name in _parameter_names(type)}
            arguments |= {name: GraphQLArgument(GraphQLInt) for name in ("_count", "_offset")}
            arguments |= {name: GraphQLArgument(GraphQLString) for name in ("_sort", "_filter")}
            self._arguments[type] = arguments
        return self._arguments[type]

    def _connection(self, type: str) -> GraphQLObjectType:
        edge = GraphQLObjectType(
            f"{type}ConnectionEdge",
            {
                "mode": GraphQLField(GraphQLString),
                "score": GraphQLField(GraphQLFloat),
                "resource": GraphQLField(self._object(type)),
            },
        )
        return GraphQLObjectType(
            f"{type}Connection",
            {
                "count": GraphQLField(GraphQLInt, resolve=_count),
                "offset": GraphQLField(GraphQLInt),
                "pageSize": GraphQLField(GraphQLInt),
                "edges": GraphQLField(GraphQLList(edge), resolve=_edges),
            },
        )


def _is_text(code: str) -> bool:
    structure = registry.structure(code)
    return (
        structure is not None
        and structure.kind == "primitive-type"
        and _SCALARS.get(code) in (None, GraphQLID)
    )


@cache
def _referring_types() -> Mapping[str, list[str]]:
    """For each resource type the types whose reference parameters name it as a target."""
    referring: dict[str, list[str]] = {}
    for type in sorted(registry.resource_types() - {"Binary"}):
        targets = {
            target
            for parameter in registry.search_parameters(type).values()
            if parameter.kind is Kind.REFERENCE and parameter.expression
            for target in parameter.targets
        }
        for target in targets:
            referring.setdefault(target, []).append(type)
    return referring


def _reference_parameters(type: str) -> dict[str, str]:
    parameters = registry.search_parameters(type)
    return {
        name: code
        for name, code in _parameter_names(type).items()
        if parameters[code].kind is Kind.REFERENCE and parameters[code].expression
    }
