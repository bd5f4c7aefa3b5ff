"""The functions FHIR adds to FHIRPath (https://hl7.org/fhir/R4/fhirpath.html#functions)."""

from __future__ import annotations

import re
from typing import Any, Final

from fhirstore.definitions import registry
from fhirstore.fhirpath.evaluation import EMPTY, Closure, Collection, Env, add_members, boolean, single
from fhirstore.fhirpath.functions import argument_text, function
from fhirstore.fhirpath.values import (
    FhirPathError,
    Node,
    Quantity,
    Value,
    is_type,
    known_type,
    root_node,
    system,
)


@function("extension", 1)
def _extension(env: Env, focus: Collection, url: Closure) -> Collection:
    wanted = argument_text(env, url(env), "extension")
    found: Collection = []
    for each in focus:
        if isinstance(each, Node):
            add_members(each, "extension", found)
    env.run.spend(len(found))
    return [each for each in found if isinstance(each.value, dict) and each.value.get("url") == wanted]


@function("hasValue")
def _has_value(env: Env, focus: Collection) -> Collection:
    if len(focus) != 1:
        return boolean(False)
    value = focus[0]
    return boolean(
        not isinstance(value, Node) or (value.value is not None and not isinstance(value.value, dict))
    )


@function("getValue")
def _get_value(env: Env, focus: Collection) -> Collection:
    if len(focus) != 1:
        return EMPTY
    value = system(focus[0])
    return EMPTY if isinstance(value, Node) else [value]


@function("resolve")
def _resolve(env: Env, focus: Collection) -> Collection:
    found: Collection = []
    for each in focus:
        raw = each.value if isinstance(each, Node) else each
        reference = raw.get("reference") if isinstance(raw, dict) else raw
        if isinstance(reference, str) and (target := _target(env, each, reference, raw)) is not None:
            found.append(target)
    env.run.spend(10 * len(focus))
    return found


def _target(env: Env, value: Value, reference: str, raw: Any) -> Value | None:
    """What a reference points to: in the same resource, in the same Bundle, or wherever the resolver looks.

    Without a resolver, a resource that has nothing but the type and id the reference names.
    """
    above = value if isinstance(value, Node) else None
    while above is not None:
        if isinstance(above.value, dict) and (found := _target_in(env, above, reference)) is not None:
            return found
        above = above.parent
    if reference.startswith("#"):
        return None
    if env.run.resolver is not None:
        resource = env.run.resolver(reference)
        return None if resource is None else root_node(resource)
    type_, _, id_ = reference.partition("/_history/")[0].rpartition("/")
    type_ = type_.rpartition("/")[2] or (raw.get("type", "") if isinstance(raw, dict) else "")
    if isinstance(type_, str) and registry.is_resource_type(type_):
        return Node({"resourceType": type_, "id": id_}, type_)
    return None


def _target_in(env: Env, holder: Node, reference: str) -> Value | None:
    """What a reference points to inside a resource: one contained in it, or an entry of a Bundle."""
    found: Collection = []
    if reference.startswith("#"):
        add_members(holder, "contained", found)
        for each in found:
            if isinstance(each.value, dict) and each.value.get("id") == reference[1:]:
                return each
        return holder if reference == "#" and holder.parent is None else None
    if holder.type != "Bundle":
        return None
    add_members(holder, "entry", found)
    env.run.spend(len(found))
    for each in found:
        if isinstance(each.value, dict) and _is_full_url(each.value.get("fullUrl"), reference):
            targets: Collection = []
            add_members(each, "resource", targets)
            return targets[0] if targets else None
    return None


def _is_full_url(full_url: object, reference: str) -> bool:
    return isinstance(full_url, str) and (full_url == reference or full_url.endswith(f"/{reference}"))


@function("memberOf", 1)
def _member_of(env: Env, focus: Collection, url: Closure) -> Collection:
    value = single(focus, "the value of memberOf()")
    wanted = argument_text(env, url(env), "memberOf")
    codes = registry.value_set_codes(wanted) if wanted else None
    if value is None or codes is None:
        return EMPTY
    pairs = {(coding.system, coding.code) for coding in codes}
    raw = value.value if isinstance(value, Node) else value
    if isinstance(raw, str):
        return boolean(any(code == raw for _, code in pairs))
    if not isinstance(raw, dict):
        return EMPTY
    codings = raw.get("coding", []) if "coding" in raw or "text" in raw else [raw]
    return boolean(any((each.get("system"), each.get("code")) in pairs for each in codings))


_HTML_ELEMENTS: Final = frozenset(
    [
        "a",
        "abbr",
        "acronym",
        "b",
        "bdo",
        "big",
        "blockquote",
        "br",
        "caption",
        "cite",
        "code",
        "col",
        "colgroup",
        "dd",
        "dfn",
        "div",
        "dl",
        "dt",
        "em",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "i",
        "img",
        "kbd",
        "li",
        "ol",
        "p",
        "pre",
        "q",
        "samp",
        "small",
        "span",
        "strong",
        "sub",
        "sup",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "tt",
        "ul",
        "var",
    ]
)
_TAG: Final = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)([^<>]*)>|<!--.*?-->|<", re.DOTALL)
_FORBIDDEN_ATTRIBUTE: Final = re.compile(r"\s(on[a-z]+)\s*=", re.IGNORECASE)


def is_safe_html(div: str) -> bool:
    """True for a narrative's ``div``: it has content, and only elements and attributes FHIR allows (txt-1, txt-2)."""
    if not div.lstrip().startswith("<div"):
        return False
    for found in _TAG.finditer(div):
        name = found[2]
        if name is None:
            if found[0] == "<":
                return False
            continue
        if name not in _HTML_ELEMENTS or _FORBIDDEN_ATTRIBUTE.search(found[3]):
            return False
    return bool(_TAG.sub("", div).strip()) or "<img" in div


@function("htmlChecks")
def _html_checks(env: Env, focus: Collection) -> Collection:
    value = argument_text(env, focus, "htmlChecks")
    if value is None:
        return EMPTY
    env.run.spend(len(value) // 20)
    return boolean(is_safe_html(value))


@function("comparable", 1)
def _comparable(env: Env, focus: Collection, other: Closure) -> Collection:
    left = system(single(focus, "the value of comparable()"))
    right = system(single(other(env), "the argument of comparable()"))
    if not isinstance(left, Quantity) or not isinstance(right, Quantity):
        return EMPTY
    return boolean(left.comparable(right) is not None)


_BASE: Final = "http://hl7.org/fhir/StructureDefinition/"


@function("conformsTo", 1)
def _conforms_to(env: Env, focus: Collection, url: Closure) -> Collection:
    """Only types are known here; profiles are validation's affair."""
    value = single(focus, "the value of conformsTo()")
    wanted = argument_text(env, url(env), "conformsTo")
    if value is None or wanted is None:
        return EMPTY
    name = wanted.removeprefix(_BASE)
    if name == wanted or not known_type(name):
        raise FhirPathError("conformsTo() knows only FHIR's types")
    return boolean(is_type(value, name))
