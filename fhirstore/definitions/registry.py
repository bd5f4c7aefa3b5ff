"""The compiled FHIR definitions at run time: types, elements, search parameters, value sets.

``manage.py assets`` makes the artefacts (:mod:`fhirstore.definitions.compile`); here they are loaded once per process,
on first use, in a few milliseconds. Descriptions of single types are built when they are asked for.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import orjson

from fhirstore.search.model import Kind, Parameter

ARTEFACTS: Final = ("structures", "parameters", "valuesets", "invariants")
"""Names of the JSON files in the artefact folder; without the suffix they are :class:`Definitions`' arguments."""

TERMINOLOGY: Final = "terminology.bin"
"""Name of the file with all published code systems, value sets and concept maps."""

PUBLISHED: Final = "published.bin"
"""Name of the file with all published StructureDefinitions and SearchParameters."""


class Invariant(NamedTuple):
    """A rule about the values of an element.

    Attributes:
        key: ``pat-1``.
        severity: ``error`` or ``warning``.
        text: the rule in words.
        expression: the rule as FHIRPath.
    """

    key: str
    severity: str
    text: str
    expression: str


class Coding(NamedTuple):
    """A code of a value set."""

    system: str | None
    code: str
    display: str | None


@dataclass(frozen=True, slots=True)
class ElementType:
    """One type an element may have.

    Attributes:
        code: name of the data type, ``BackboneElement`` for a group of elements written in place.
        targets: resource types a Reference or canonical may point to; empty for any.
    """

    code: str
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a type.

    Attributes:
        path: as in the ElementDefinition: ``Patient.contact.name``, ``Observation.value[x]``.
        types: the types it may have; several only in a choice.
        min: smallest number of values.
        max: largest number of values, None without limit.
        array: it is a list in JSON.
        short: a few words about it.
        binding: strength of the binding to a value set (``required``, ``extensible``, ``preferred``, ``example``).
        value_set: canonical URL of that value set, without version.
        content: path of the element whose children this one shares (``contentReference``).
    """

    path: str
    types: tuple[ElementType, ...]
    min: int
    max: int | None
    array: bool
    short: str = ""
    binding: str | None = None
    value_set: str | None = None
    content: str | None = None

    @property
    def name(self) -> str:
        """Last part of the path without ``[x]``."""
        return self.path.rpartition(".")[2].removesuffix("[x]")

    @property
    def choice(self) -> bool:
        """It is a choice of types, written ``value[x]``."""
        return self.path.endswith("[x]")

    def property_name(self, type_code: str) -> str:
        """Name in JSON when the element has the given type: ``valueQuantity``, or just the name without choice."""
        return self.name + type_code[0].upper() + type_code[1:] if self.choice else self.name


@dataclass(frozen=True)
class Structure:
    """A resource type or data type.

    Attributes:
        elements: its elements and, behind each group, those of the group, as in the snapshot; without the root.
        summary: names of a resource's elements that belong to its summary; empty where none are declared.
    """

    type: str
    kind: Literal["resource", "complex-type", "primitive-type"]
    elements: tuple[Element, ...]
    summary: tuple[str, ...] = ()

    @cached_property
    def groups(self) -> Mapping[str, tuple[Element, ...]]:
        """Direct children by path: of the type itself and of each group in it."""
        groups: dict[str, list[Element]] = {self.type: []}
        for element in self.elements:
            groups.setdefault(element.path.rpartition(".")[0], []).append(element)
        return {path: tuple(children) for path, children in groups.items()}

    def children(self, path: str | None = None) -> tuple[Element, ...]:
        """Return the direct children of the type, or of the group at ``path``; nothing if it has none in place."""
        return self.groups.get(path or self.type, ())

    def element(self, path: str) -> Element | None:
        """Return the element with this path."""
        return next((element for element in self.elements if element.path == path), None)


class Definitions:
    """All definitions, from the parsed artefacts. Safe for use by several threads: what is built is only ever added."""

    def __init__(self, structures: Any, parameters: Any, valuesets: Any, invariants: Any) -> None:
        self._raw_invariants: dict[str, list[list[str]]] = invariants
        self.invariant_paths = frozenset(self._raw_invariants)
        self._raw_structures: dict[str, Any] = structures
        self._raw_parameters: dict[str, Any] = parameters["types"]
        self._value_sets: dict[str, list[list[str | None]]] = valuesets
        self._structures: dict[str, Structure] = {}
        self._parameters: dict[str, Mapping[str, Parameter]] = {}
        self.resource_types = frozenset(
            name for name, raw in structures.items() if raw["kind"] == "resource" and not raw.get("abstract")
        )
        self.medplum_types = frozenset(name for name, raw in structures.items() if raw.get("medplum"))
        self.patient_compartment: dict[str, tuple[str, ...]] = {
            name: tuple(codes) for name, codes in parameters["patient_compartment"].items()
        }
        self.uncompiled: tuple[tuple[str, str, str], ...] = tuple(map(tuple, parameters["uncompiled"]))

    def structure(self, name: str) -> Structure | None:
        built = self._structures.get(name)
        if built is None:
            raw = self._raw_structures.get(name)
            if raw is None:
                return None
            elements = tuple(_element(name, entry) for entry in raw["elements"])
            built = Structure(name, raw["kind"], elements, tuple(raw.get("summary", ())))
            self._structures[name] = built
        return built

    def search_parameters(self, name: str) -> Mapping[str, Parameter]:
        built = self._parameters.get(name)
        if built is None:
            raw = self._raw_parameters.get(name, {})
            built = {code: _parameter(code, *entry) for code, entry in raw.items()}
            self._parameters[name] = built
        return built

    def value_set_codes(self, url: str) -> Sequence[Coding] | None:
        raw = self._value_sets.get(url.partition("|")[0])
        return None if raw is None else [Coding(system, code or "", display) for system, code, display in raw]

    def invariants(self, path: str) -> tuple[Invariant, ...]:
        return tuple(Invariant(*raw) for raw in self._raw_invariants.get(path, ()))


class Library:
    """Published resources, read from a file one by one as they are asked for."""

    def __init__(self, file: Path) -> None:
        # The mapping keeps this very file, also when newer assets take its place.
        with file.open("rb") as opened:
            self._content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._start = self._content.find(b"\n") + 1
        self._index: dict[str, dict[str, tuple[int, int, str]]] = orjson.loads(self._content[: self._start])

    def urls(self, type: str) -> Iterable[str]:
        """The canonical URLs of a type, without versions."""
        return self._index.get(type, {}).keys()

    def ids(self, type: str) -> Mapping[str, str]:
        """The canonical URLs of a type by the ids of its resources."""
        return {id: url for url, (_, _, id) in self._index.get(type, {}).items() if id}

    def get(self, type: str, url: str) -> dict[str, Any] | None:
        """The resource with a canonical URL (without version), parsed anew; None if it is not published."""
        place = self._index.get(type, {}).get(url)
        if place is None:
            return None
        start = self._start + place[0]
        resource: dict[str, Any] = orjson.loads(self._content[start : start + place[1]])
        return resource


def _parameter(
    code: str, kind: str, targets: list[str], expression: str, composite: Mapping[str, Any] | None = None
) -> Parameter:
    """Build a Parameter from its compact form; only composites have a fourth part."""
    parts = composite or {}
    return Parameter(
        code,
        Kind(kind),
        tuple(targets),
        expression,
        tuple(_parameter(*component) for component in parts.get("components", ())),
        bool(parts.get("grouped")),
        tuple(parts.get("either", ())),
    )


def _element(name: str, entry: list[Any]) -> Element:
    """Build an Element from its compact form; what is missing at the end of ``entry`` has its default."""
    path, types, low, high, array, *rest = entry
    return Element(
        f"{name}.{path}",
        tuple(ElementType(code, tuple(targets)) for code, *targets in types),
        low,
        high,
        array,
        *rest,
    )


_lock = threading.Lock()
_definitions: Definitions | None = None


class DefinitionsMissingError(RuntimeError):
    """The artefacts are not there."""


def load(folder: Path) -> Definitions:
    """Load the artefacts of ``folder`` for this process, in place of any loaded before.

    Raises:
        DefinitionsMissingError: a file is missing; the message says how to make it.
    """
    global _definitions
    try:
        parsed = [orjson.loads((folder / f"{name}.json").read_bytes()) for name in ARTEFACTS]
    except FileNotFoundError as error:
        raise _missing(folder) from error
    _definitions = Definitions(*parsed)
    return _definitions


def get() -> Definitions:
    """Return the definitions, loaded from ``settings.ASSETS_DIR / "definitions"`` on first use.

    Raises:
        DefinitionsMissingError: see :func:`load`.
    """
    return _definitions or _load_default()


def _load_default() -> Definitions:
    with _lock:
        return _definitions or load(default_folder())


def library() -> Library:
    """The published terminology: CodeSystem, ValueSet, ConceptMap. Opened on first use.

    Raises:
        DefinitionsMissingError: see :func:`load`.
    """
    return _library(TERMINOLOGY)


def published() -> Library:
    """The published StructureDefinitions and SearchParameters, opened on first use.

    Raises:
        DefinitionsMissingError: see :func:`load`.
    """
    return _library(PUBLISHED)


@cache
def _library(name: str) -> Library:
    folder = default_folder()
    try:
        return Library(folder / name)
    except FileNotFoundError as error:
        raise _missing(folder) from error


def _missing(folder: Path) -> DefinitionsMissingError:
    return DefinitionsMissingError(
        f"The compiled FHIR definitions are missing in {folder}. Run: python manage.py assets"
    )


def default_folder() -> Path:
    """The folder ``manage.py assets`` makes."""
    from django.conf import settings  # the engines work without Django; only this default place needs it

    return Path(settings.ASSETS_DIR) / "definitions"


def resource_types() -> frozenset[str]:
    """Names of all concrete resource types: FHIR R4's and Medplum's own (Bot, Project, AccessPolicy, …)."""
    return get().resource_types


def is_resource_type(name: str) -> bool:
    """True for the name of a concrete resource type."""
    return name in get().resource_types


def search_parameters(type: str) -> Mapping[str, Parameter]:
    """All search parameters of a resource type by code, the common ones (``_id``, ``_tag``, …) included."""
    return get().search_parameters(type)


def search_parameter(type: str, code: str) -> Parameter | None:
    """A search parameter of a resource type, or None."""
    return get().search_parameters(type).get(code)


def structure(type: str) -> Structure | None:
    """The elements of a resource type or data type, or None if there is no such type."""
    return get().structure(type)


def value_set_codes(url: str) -> Sequence[Coding] | None:
    """The codes of a value set that some element is bound to as required; None if it cannot be listed."""
    return get().value_set_codes(url)


def invariants(path: str) -> tuple[Invariant, ...]:
    """The invariants of an element by its path, of a type by its name; without those every element has."""
    return get().invariants(path)


def patient_compartment(type: str) -> tuple[str, ...]:
    """Codes of the reference parameters that put a resource of this type into a patient's compartment."""
    return get().patient_compartment.get(type, ())


def uncompiled_parameters() -> tuple[tuple[str, str, str], ...]:
    """(type, code, reason) of each search parameter that is defined but cannot be searched by."""
    return get().uncompiled
