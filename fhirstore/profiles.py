"""Profiles: StructureDefinitions of a project that constrain a type, and what in a resource does not fit them.

A profile's elements form a :class:`Tree`, from its snapshot or differential; the same walk follows the tree and the resource.
Checked: cardinality, types and targets, ``fixed[x]`` and ``pattern[x]``, ``maxLength``, required bindings (against the
project's and the published ValueSets), invariants of severity ``error``, slicing by value, pattern, exists, type and
profile, and the profiles of extensions and of the profile's own base. ``mustSupport`` says nothing about a single resource.

Profiles are remembered for seconds; a change counts at once in the process that makes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fhirstore import database, errors, hooks
from fhirstore.definitions import registry
from fhirstore.fhirpath.evaluation import add_members
from fhirstore.fhirpath.values import FhirPathError, Node, is_type, known_type
from fhirstore.identity import system_identity
from fhirstore.invariants import Test, compile_invariant

if TYPE_CHECKING:
    from fhirstore.repository import Repository

Json = dict[str, Any]
Problem = dict[str, Any]
"""An issue of an OperationOutcome."""

AGE: Final = 2.0
"""Seconds until a profile or ValueSet of a project is read again."""
MOST_REMEMBERED: Final = 2_000
MAX_DEPTH: Final = 12
"""Profiles that refer to each other, and extensions inside each other, followed this far."""
PATIENCE: Final = 5.0
"""Seconds that all profiles of one resource may take."""
CORE: Final = "http://hl7.org/fhir/StructureDefinition/"


# --- the tree of a profile ------------------------------------------------------------------------------------


@dataclass
class Tree:
    """An element of a profile, with those below it.

    Attributes:
        name: last part of its path, with ``[x]``.
        slice: name of the slice, "" if it is none.
        definition: the ElementDefinition; empty where the profile says nothing of the element itself.
        children: by name.
        slices: of this element, in order.
    """

    name: str
    slice: str = ""
    definition: Json = field(default_factory=dict)
    children: dict[str, Tree] = field(default_factory=dict)
    slices: dict[str, Tree] = field(default_factory=dict)
    invariants: tuple[tuple[str, Test], ...] = ()

    @property
    def stem(self) -> str:
        """The name without ``[x]``."""
        return self.name.removesuffix("[x]")

    def required(self) -> tuple[str, Any] | None:
        """(``fixed`` or ``pattern``, the value) that the element must have, None without."""
        for key, value in self.definition.items():
            if key.startswith("fixed") or (key.startswith("pattern") and key != "pattern"):
                return ("fixed" if key.startswith("fixed") else "pattern"), value
        return None


def build_tree(profile: Json) -> Tree:
    """Read the elements of a StructureDefinition; those that are not below its type do not count."""
    elements = (profile.get("snapshot") or profile.get("differential") or {}).get("element") or []
    type_ = str(profile.get("type"))
    root = Tree(type_)
    for element in elements:
        path, names = str(element.get("path")), str(element.get("id") or "")
        if path.partition(".")[0] != type_:
            continue
        if ":" not in names and element.get("sliceName"):
            names = f"{path}:{element['sliceName']}"
        tree = root
        for part in (names or path).split(".")[1:]:
            name, _, slice_ = part.partition(":")
            tree = tree.children.setdefault(name, Tree(name))
            if slice_:
                tree = tree.slices.setdefault(slice_, Tree(name, slice_))
        tree.definition = element
        tree.invariants = tuple(_invariants(element, type_))
    return root


def _invariants(element: Json, type_: str) -> Iterator[tuple[str, Test]]:
    path = str(element.get("path"))
    own = {rule.key for rule in (*registry.invariants(path), *registry.invariants(type_))}
    codes = [each.get("code") for each in element.get("type") or ()]
    for code in codes:
        own |= {rule.key for rule in registry.invariants(str(code))}
    for rule in element.get("constraint") or ():
        key, expression = str(rule.get("key")), rule.get("expression")
        if (
            rule.get("severity") != "error"
            or not expression
            or key in own
            or key in ("ele-1", "ext-1", "dom-3")
        ):
            continue
        about = path if "." not in path or codes in ([], ["BackboneElement"], ["Element"]) else str(codes[0])
        try:
            test = compile_invariant(str(expression), about, steps=200_000)
        except FhirPathError:
            continue  # said when the profile is written
        yield f"Constraint {key} not met: {rule.get('human', '')}", test


# --- the walk ---------------------------------------------------------------------------------------------


class Walk:
    """One resource against profiles.

    Args:
        load: finds a StructureDefinition by its canonical URL, as a tree; None if there is none.
        bound: tells whether a code is in a ValueSet: (url, system, code); None where that cannot be told.
    """

    def __init__(
        self,
        load: Callable[[str], tuple[Json, Tree] | None],
        bound: Callable[[str, str | None, str], bool | None],
    ) -> None:
        self._load = load
        self._bound = bound
        self._depth = 0
        self._deadline = time.monotonic() + PATIENCE
        self.problems: list[Problem] = []

    def profile(self, url: str, node: Node, shown: str) -> bool:
        """Check an element or resource against a profile; False if there is no such profile."""
        found = self._load(url)
        if found is None:
            return False
        if self._depth >= MAX_DEPTH:
            return True
        profile, tree = found
        if node.type and node.type != profile.get("type"):
            self._add(shown, f"Invalid profile: {url} is one of {profile.get('type')}, not of {node.type}")
            return True
        self._depth += 1
        try:
            base = str(profile.get("baseDefinition") or "")
            if "snapshot" not in profile and not _is_core(base):
                self.profile(base, node, shown)
            self._element(tree, node, shown)
        finally:
            self._depth -= 1
        return True

    def _hurry(self) -> None:
        if time.monotonic() > self._deadline:
            raise errors.bad_request(
                "Comparing the resource with its profiles takes too long", "meta.profile"
            )

    def _add(self, shown: str, text: str, code: str = "structure") -> None:
        self.problems.append(errors.issue(text, code=code, expression=shown))

    def _element(self, tree: Tree, node: Node, shown: str) -> None:
        """One value against its definition, and what is below it."""
        self._hurry()
        definition = tree.definition
        required = tree.required()
        if required is not None and not _has(required, node.value):
            kind, value = required
            self._add(shown, f"Value did not match the {kind} value: {_short(value)}")
        length = definition.get("maxLength")
        if isinstance(length, int) and isinstance(node.value, str) and len(node.value) > length:
            self._add(shown, f"Value is longer than {length} characters")
        if node.parent is not None:
            self._type(definition, node, shown)
        self._binding(definition, node, shown)
        for text, holds in tree.invariants:
            if holds(node.value) is False:
                self._add(shown, text, "invariant")
        self._below(tree, node, shown)

    def _below(self, tree: Tree, node: Node, shown: str) -> None:
        for child in tree.children.values():
            values: list[Node] = []
            add_members(node, child.stem, values)
            self._values(child, values, f"{shown}.{child.name}")

    def _values(self, tree: Tree, values: list[Node], shown: str) -> None:
        """All values of an element."""
        self._count(tree.definition, len(values), shown)
        left = values
        for slice_ in tree.slices.values():
            fitting = [each for each in left if self._is_in(tree, slice_, each)]
            taken = set(map(id, fitting))
            left = [each for each in left if id(each) not in taken]
            self._count(slice_.definition, len(fitting), shown, slice_.slice)
            for value in fitting:
                self._element(slice_, value, _place(value, shown))
        if tree.slices and left and (tree.definition.get("slicing") or {}).get("rules") == "closed":
            for value in left:
                self._add(_place(value, shown), "Value is in none of the slices, and no others are allowed")
        for value in values:
            self._element(tree, value, _place(value, shown))

    def _count(self, definition: Json, count: int, shown: str, slice_: str = "") -> None:
        low, high = definition.get("min", 0), str(definition.get("max", "*"))
        if low <= count and (not high.isdecimal() or count <= int(high)):
            return
        if slice_:
            text = f"Incorrect number of values provided for slice '{slice_}': expected {low}..{high}, but found {count}"
        elif not count:
            text = "Missing required property"
        else:
            text = f"Invalid number of values: expected {low}..{high}, but found {count}"
        self._add(shown, text)

    def _type(self, definition: Json, node: Node, shown: str) -> None:
        types = [each for each in definition.get("type") or () if known_type(str(each.get("code")))]
        if not types or "." in node.type or not node.type:
            return
        fitting = [each for each in types if is_type(node, str(each["code"]))]
        if not fitting:
            expected = ", ".join(str(each["code"]) for each in types)
            self._add(shown, f"Invalid type: expected {expected}, but found {node.type}")
            return
        if node.type == "Reference":
            self._target(fitting, node, shown)
            return
        urls = [str(url) for each in fitting for url in each.get("profile") or ()]
        if len(urls) == 1 and not _is_type_url(urls[0]):
            self.profile(urls[0].partition("|")[0], node, shown)

    def _target(self, types: list[Json], node: Node, shown: str) -> None:
        reference = node.value.get("reference") if isinstance(node.value, dict) else None
        urls = [str(url) for each in types for url in each.get("targetProfile") or ()]
        allowed = {self._target_type(url) for url in urls}
        if not isinstance(reference, str) or not allowed or allowed & {"", "Resource"}:
            return
        name = reference.partition("?")[0].partition("/")[0]
        if registry.is_resource_type(name) and name not in allowed:
            expected = '", "'.join(sorted(allowed))
            self._add(shown, f'Invalid reference: got "{name}", expected "{expected}"')

    def _target_type(self, url: str) -> str:
        """The type a target profile is about, "" if that is not known."""
        url = url.partition("|")[0]
        if _is_type_url(url):
            return url.removeprefix(CORE)
        found = self._load(url)
        return str(found[0].get("type")) if found else ""

    def _binding(self, definition: Json, node: Node, shown: str) -> None:
        binding = definition.get("binding") or {}
        url = binding.get("valueSet")
        if binding.get("strength") != "required" or not isinstance(url, str):
            return
        codings = _codings(node.value)
        if codings is None:
            return
        answers = [self._bound(url, system, code) for system, code in codings]
        if None not in answers and not any(answers):
            code = codings[0][1] if codings else ""
            self._add(shown, f'Value "{code}" did not satisfy terminology binding {url.partition("|")[0]}')

    # --- slicing ------------------------------------------------------------------------------------------

    def _is_in(self, tree: Tree, slice_: Tree, node: Node) -> bool:
        """True if a value belongs to a slice."""
        self._hurry()
        slicing = tree.definition.get("slicing") or {}
        discriminators = slicing.get("discriminator") or _usual_discriminators(tree)
        return bool(discriminators) and all(
            self._discriminates(str(each.get("type")), str(each.get("path")), slice_, node)
            for each in discriminators
        )

    def _discriminates(self, kind: str, path: str, slice_: Tree, node: Node) -> bool:
        tree: Tree | None = slice_
        nodes = [node]
        resolves = path.endswith("resolve()")
        for name in path.removesuffix("resolve()").strip(".").split("."):
            if name in ("$this", "") or tree is None:
                continue
            if (
                name == "url"
                and tree.stem in ("extension", "modifierExtension")
                and name not in tree.children
            ):
                return self._has_url(tree, node)
            extension = name.startswith("extension(")
            name = "extension" if extension else name.partition("(")[0]
            below: list[Node] = []
            for each in nodes:
                add_members(each, name, below)
            nodes = below
            tree = tree.children.get(name) or tree.children.get(f"{name}[x]")
        match kind:
            case "exists":
                wanted = tree is None or str(tree.definition.get("max", "*")) != "0"
                return bool(nodes) is wanted
            case "type" | "profile":
                return tree is not None and any(self._is_of(tree, each, resolves) for each in nodes)
        return tree is not None and self._looks_like(tree, nodes)

    def _has_url(self, tree: Tree, node: Node) -> bool:
        urls = [str(url) for each in tree.definition.get("type") or () for url in each.get("profile") or ()]
        given = node.value.get("url") if isinstance(node.value, dict) else None
        return given in {url.partition("|")[0] for url in urls} or (not urls and given == tree.slice)

    def _is_of(self, tree: Tree, node: Node, resolves: bool) -> bool:
        types = tree.definition.get("type") or ()
        if resolves:
            reference = str((node.value or {}).get("reference") or "") if isinstance(node.value, dict) else ""
            allowed = {
                self._target_type(str(url)) for each in types for url in each.get("targetProfile") or ()
            }
            return reference.partition("/")[0] in allowed
        return any(known_type(str(each.get("code"))) and is_type(node, str(each["code"])) for each in types)

    def _looks_like(self, tree: Tree, nodes: list[Node]) -> bool:
        """True if one of the values has what the slice demands there or further below."""
        required = tree.required()
        if required is not None:
            return any(_has(required, each.value) for each in nodes)
        url = (tree.definition.get("binding") or {}).get("valueSet")
        if isinstance(url, str) and (tree.definition.get("binding") or {}).get("strength") == "required":
            return any(
                self._bound(url, system, code)
                for each in nodes
                for system, code in _codings(each.value) or ()
            )
        demands = [child for child in tree.children.values() if _demands(child)]
        if not demands:
            return False
        for node in nodes:
            met = True
            for child in demands:
                below: list[Node] = []
                add_members(node, child.stem, below)
                met = met and self._looks_like(child, below)
            if met:
                return True
        return False


def _demands(tree: Tree) -> bool:
    return tree.required() is not None or any(map(_demands, tree.children.values()))


def _usual_discriminators(tree: Tree) -> list[Json]:
    """What a differential may leave out, as the base type slices so already."""
    if tree.stem in ("extension", "modifierExtension"):
        return [{"type": "value", "path": "url"}]
    return [{"type": "type", "path": "$this"}] if tree.name.endswith("[x]") else []


def _place(node: Node, shown: str) -> str:
    return shown if node.index is None else f"{shown}[{node.index}]"


def _has(required: tuple[str, Any], value: Any) -> bool:
    kind, wanted = required
    return bool(value == wanted) if kind == "fixed" else _matches(wanted, value)


def _matches(pattern: Any, value: Any) -> bool:
    """True if a value has at least what the pattern has."""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(
            name in value and _matches(each, value[name]) for name, each in pattern.items()
        )
    if isinstance(pattern, list):
        return isinstance(value, list) and all(
            any(_matches(each, item) for item in value) for each in pattern
        )
    return bool(pattern == value)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        coding = (value.get("coding") or [value])[0]
        value = f"{coding.get('system', '')}|{coding.get('code')}" if "code" in coding else "an object"
    return str(value)[:200]


def _codings(value: Any) -> list[tuple[str | None, str]] | None:
    """The (system, code) of a coded value; None if it is none."""
    if isinstance(value, str):
        return [(None, value)]
    if not isinstance(value, dict):
        return None
    codings = value.get("coding", []) if "coding" in value or "text" in value else [value]
    return [(each.get("system"), each["code"]) for each in codings if isinstance(each.get("code"), str)]


def _is_core(url: str) -> bool:
    return not url or _is_type_url(url)


def _is_type_url(url: str) -> bool:
    return url.startswith(CORE) and known_type(url.removeprefix(CORE).partition("|")[0])


# --- the profiles of a project ----------------------------------------------------------------------------

_known: dict[tuple[str, str, str], tuple[float, Any]] = {}
_lock = threading.Lock()


def register() -> None:
    """Check profiles when they are written, and forget what was known before."""
    hooks.before_write(["StructureDefinition"], _check_profile)
    for types in (["StructureDefinition"], ["ValueSet", "CodeSystem"]):
        hooks.before_write(types, lambda repository, *_: _forget(repository.identity.project))
        hooks.before_delete(types, lambda repository, _: _forget(repository.identity.project))
    database.follow(_known.clear, _known.clear)


def _forget(project: str) -> None:
    def forget() -> None:
        with _lock:
            for key in [key for key in _known if key[0] == project]:
                _known.pop(key, None)

    database.on_commit(forget)


def _check_profile(repository: object, resource: Json, previous: object) -> None:
    """Refuse a profile that could not be checked.

    Raises:
        FhirError: 400 with the place.
    """
    if resource.get("derivation") != "constraint":
        return
    for part in ("snapshot", "differential"):
        elements = (resource.get(part) or {}).get("element") if isinstance(resource.get(part), dict) else None
        for place, element in enumerate(elements if isinstance(elements, list) else ()):
            path = element.get("path") if isinstance(element, dict) else None
            if isinstance(path, str) and path.partition(".")[0] != resource.get("type"):
                raise errors.bad_request(
                    f"{path} is no element of {resource.get('type')}",
                    f"StructureDefinition.{part}.element[{place}].path",
                )
            for rule in element.get("constraint") or () if isinstance(element, dict) else ():
                expression = rule.get("expression") if isinstance(rule, dict) else None
                if isinstance(expression, str) and rule.get("severity") == "error":
                    _check_expression(expression, f"StructureDefinition.{part}.element[{place}].constraint")


def _check_expression(expression: str, path: str) -> None:
    try:
        compile_invariant(expression, "Element")
    except FhirPathError as error:
        raise errors.bad_request(f"Invalid FHIRPath expression: {error}", path) from None


def _remembered(project: str, kind: str, url: str, read: Callable[[], Any]) -> Any:
    key = (project, kind, url)
    known = _known.get(key)
    if known is None or known[0] < time.monotonic():
        found = read()
        if database.in_transaction():
            return found  # what is not committed yet may never be
        with _lock:
            if len(_known) >= MOST_REMEMBERED:
                _known.clear()
            _known[key] = known = (time.monotonic() + AGE, found)
    return known[1]


def _system(project: str) -> Repository:
    from fhirstore.repository import Repository  # it needs this module to check what it writes

    return Repository(system_identity(project))


def _own(project: str, url: str) -> tuple[Json, Tree] | None:
    found = _system(project).search_all(
        "StructureDefinition", [("url", url.replace(",", "\\,")), ("_sort", "-_lastUpdated")]
    )
    resource = found[0].resource if found else None
    if resource is None or resource.get("derivation") != "constraint":
        return None
    return resource, build_tree(resource)


def _published(url: str) -> tuple[Json, Tree] | None:
    resource = registry.published().get("StructureDefinition", url)
    if resource is None or resource.get("derivation") != "constraint":
        return None
    return resource, build_tree(resource)


def _profile(project: str, published: bool, url: str) -> tuple[Json, Tree] | None:
    plain = url.partition("|")[0]
    own: tuple[Json, Tree] | None = _remembered(project, "profile", plain, partial(_own, project, plain))
    if own is not None or not published:
        return own
    other: tuple[Json, Tree] | None = _remembered("", "profile", plain, partial(_published, plain))
    return other


def _contains(project: str, url: str, system: str | None, code: str) -> bool | None:
    """True if a code is in a ValueSet; None if there is no such ValueSet, or it cannot be listed."""

    def read() -> frozenset[tuple[str | None, str]] | None:
        from fhirstore.terminology import Terminology

        terminology = Terminology(_system(project))
        value_set = terminology.find("ValueSet", url)
        try:
            concepts = terminology.expand(value_set) if value_set else None
        except errors.FhirError:
            return None
        if concepts is None:
            return None
        return frozenset(pair for each in concepts for pair in ((each.system, each.code), (None, each.code)))

    codes: frozenset[tuple[str | None, str]] | None = _remembered(project, "codes", url, read)
    return None if codes is None else (system, code) in codes


def profile_problems(
    project: str, resource: Mapping[str, Any], profiles: Iterable[str], *, published: bool = False
) -> tuple[list[Problem], list[str]]:
    """Compare a resource with profiles.

    Args:
        project: whose StructureDefinitions count.
        resource: valid by the definition of its type.
        profiles: canonical URLs.
        published: the profiles FHIR publishes count as well.

    Returns:
        Issues of severity ``error``, and those of the URLs that are no known profile.
    """
    walk = Walk(partial(_profile, project, published), partial(_contains, project))
    root = Node(dict(resource), str(resource["resourceType"]))
    unknown = [
        url
        for url in dict.fromkeys(profiles)
        if not _is_type_url(url) and not walk.profile(url, root, root.type)
    ]
    seen: dict[tuple[str, str], Problem] = {}
    for problem in walk.problems:
        seen.setdefault((problem["expression"][0], problem["details"]["text"]), problem)
    return list(seen.values()), unknown
