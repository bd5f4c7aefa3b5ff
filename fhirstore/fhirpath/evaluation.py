"""FHIRPath trees compiled to closures, and the budget that ends what would not end by itself.

A closure gets an :class:`Env` and returns a collection, a list of values (:mod:`.values`) that nobody changes. Every
element looked at costs a step of the :class:`Run`; an expression that needs more steps than it has is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, DecimalException
from typing import Any, Final

from fhirstore.fhirpath.parser import (
    Call,
    Index,
    Literal,
    Member,
    Operation,
    Special,
    Tree,
    TypeTest,
    Variable,
)
from fhirstore.fhirpath.values import (
    UCUM,
    FhirPathError,
    Node,
    Quantity,
    Temporal,
    Value,
    children_of,
    in_range,
    is_primitive,
    is_type,
    known_type,
    root_node,
    system,
)

Collection = list[Value]
Resolver = Callable[[str], "dict[str, Any] | None"]
"""Finds the resource a reference points to."""

STEPS: Final = 200_000
"""Elements one evaluation may look at: about a quarter of a second."""

MAX_TEXT: Final = 4 * 1024 * 1024
"""Characters of a text an expression may build."""

CHARS: Final = 100
"""Characters of a text that are read or built for one step; twenty times as many are compared."""


class Run:
    """One evaluation of one expression.

    Attributes:
        root: the resource it began with; `container` the one that resource is contained in.
        variables: values of ``%name``.
        resolver: finds what references point to; None where nothing can be looked up.
    """

    __slots__ = ("container", "resolver", "root", "steps", "variables")

    def __init__(
        self,
        root: Collection,
        variables: Mapping[str, Any],
        resolver: Resolver | None,
        container: Value | None = None,
    ) -> None:
        self.root = root
        self.container = container
        self.variables = variables
        self.resolver = resolver
        self.steps = STEPS

    def spend(self, steps: int) -> None:
        """Take steps from the budget.

        Raises:
            FhirPathError: it is used up.
        """
        self.steps -= steps
        if self.steps < 0:
            raise FhirPathError("it takes too long")


class Env:
    """Where an expression is evaluated: what ``$this``, ``$index`` and ``$total`` are."""

    __slots__ = ("index", "run", "this", "total")

    def __init__(self, run: Run, this: Collection, index: int = 0, total: Collection | None = None) -> None:
        self.run = run
        self.this = this
        self.index = index
        self.total = total


Closure = Callable[[Env], Collection]

TRUE: Final[Collection] = [True]
FALSE: Final[Collection] = [False]
EMPTY: Final[Collection] = []


def compile_tree(tree: Tree) -> Closure:
    """Compile an expression.

    Raises:
        FhirPathError: it calls a function that does not exist, or with the wrong number of arguments, or names a type
            that does not exist.
    """
    match tree:
        case Literal(values):
            constant = list(values)
            return lambda env: constant
        case Variable(name):
            return _variable(name)
        case Special(name):
            return _special(name)
        case Member(base, name):
            return _member(base, name)
        case Index(base, position):
            return _index(compile_tree(base), compile_tree(position))
        case Call(base, name, arguments):
            return _call(base, name, arguments)
        case TypeTest(operator, base, name):
            return _type_test(operator, compile_tree(base), name)
        case Operation(operator, left, right):
            return _OPERATORS[operator](compile_tree(left), compile_tree(right))


def _special(name: str) -> Closure:
    if name == "$this":
        return lambda env: env.this
    if name == "$index":
        return lambda env: [env.index]
    return lambda env: env.total or EMPTY


# --- paths --------------------------------------------------------------------------------------------------

_CONSTANTS: Final = {"ucum": UCUM, "sct": "http://snomed.info/sct", "loinc": "http://loinc.org"}


def _variable(name: str) -> Closure:
    def variable(env: Env) -> Collection:
        run = env.run
        if name in run.variables:
            given = run.variables[name]
            if given is None:
                return EMPTY
            return [root_node(each) for each in given] if isinstance(given, list) else [root_node(given)]
        match name:
            case "context":
                return run.root
            case "resource":
                return [_resource_of(each) for each in run.root[:1]]
            case "rootResource":
                return [run.container] if run.container is not None else [_top(each) for each in run.root[:1]]
        if name in _CONSTANTS:
            return [_CONSTANTS[name]]
        if name.startswith("vs-"):
            return ["http://hl7.org/fhir/ValueSet/" + name[3:]]
        if name.startswith("ext-"):
            return ["http://hl7.org/fhir/StructureDefinition/" + name[4:]]
        raise FhirPathError(f"%{name} has no value here")

    return variable


def _resource_of(value: Value) -> Value:
    """The resource an element belongs to."""
    while isinstance(value, Node) and value.parent is not None and not _is_resource(value):
        value = value.parent
    return value


def _is_resource(node: Node) -> bool:
    return isinstance(node.value, dict) and isinstance(node.value.get("resourceType"), str)


def _top(value: Value) -> Value:
    """The resource that contains the one an element belongs to, if it is a contained one."""
    value = _resource_of(value)
    while isinstance(value, Node) and value.key == "contained" and value.parent is not None:
        value = _resource_of(value.parent)
    return value


def _member(base: Tree | None, name: str) -> Closure:
    if base is None:
        if name[:1].isupper():

            def type_or_member(env: Env) -> Collection:
                found = [each for each in env.this if isinstance(each, Node) and is_type(each, name)]
                return found or _members(env.run, env.this, name)

            return type_or_member
        return lambda env: _members(env.run, env.this, name)
    if isinstance(base, Member) and base.base is None and base.name in ("FHIR", "System"):
        return lambda env: [each for each in env.this if is_type(each, f"{base.name}.{name}")]
    inner = compile_tree(base)
    return lambda env: _members(env.run, inner(env), name)


def _members(run: Run, focus: Collection, name: str) -> Collection:
    found: Collection = []
    for each in focus:
        if isinstance(each, Node):
            add_members(each, name, found)
        elif isinstance(each, Quantity) and name in ("value", "unit", "code"):
            found.append(each.value if name == "value" else each.unit)
    run.spend(len(focus) + len(found))
    return found


def add_members(node: Node, name: str, found: Collection) -> None:
    """Append the children of an element with a name to ``found``."""
    value = node.value
    if not isinstance(value, dict):
        if node.companion is not None:
            _add(node, node.companion, name, "Extension" if name == "extension" else "string", found)
        return
    if name == "resourceType":  # no element, but many take it for one
        if isinstance(value.get(name), str):
            found.append(value[name])
        return
    members = children_of(node.type).by_name
    if not members:
        _add_untyped(node, value, name, found)
        return
    for property_, type_ in members.get(name, ()):
        if property_ in value or f"_{property_}" in value:
            _add(node, value, property_, type_, found)


def _add_untyped(node: Node, value: dict[str, Any], name: str, found: Collection) -> None:
    if name in value or f"_{name}" in value:
        _add(node, value, name, "", found)
        return
    for property_ in value:
        if property_.startswith(name) and property_[len(name) : len(name) + 1].isupper():
            type_ = property_[len(name) :]
            if not known_type(type_):
                type_ = type_[:1].lower() + type_[1:]
            if known_type(type_):
                _add(node, value, property_, type_, found)


def _add(node: Node, holder: dict[str, Any], property_: str, type_: str, found: Collection) -> None:
    """Append the values of one JSON property."""
    value = holder.get(property_)
    companion = holder.get(f"_{property_}") if not type_ or is_primitive(type_) else None
    if isinstance(value, list) or isinstance(companion, list):
        values = value if isinstance(value, list) else []
        companions = companion if isinstance(companion, list) else []
        for index in range(max(len(values), len(companions))):
            each = values[index] if index < len(values) else None
            twin = companions[index] if index < len(companions) else None
            if each is not None or twin is not None:
                found.append(_node(each, type_, twin, node, property_, index))
    elif value is not None or companion is not None:
        found.append(_node(value, type_, companion, node, property_, None))


def _node(value: Any, type_: str, twin: Any, parent: Node, key: str, index: int | None) -> Node:
    if isinstance(value, dict):
        resource_type = value.get("resourceType")
        if isinstance(resource_type, str) and type_ in ("Resource", ""):
            type_ = resource_type
    return Node(value, type_, twin if isinstance(twin, dict) else None, parent, key, index)


def add_children(node: Node, found: Collection) -> None:
    """Append all children of an element to ``found``."""
    value = node.value
    if not isinstance(value, dict):
        if node.companion is not None:
            for name in ("id", "extension"):
                add_members(node, name, found)
        return
    types = children_of(node.type).by_property
    for property_ in value:
        plain = property_.removeprefix("_")
        if plain == "resourceType" or (plain != property_ and plain in value):
            continue
        _add(node, value, plain, types.get(plain, ""), found)


def descendants(run: Run, focus: Collection) -> Collection:
    """All elements below those of ``focus``, each once."""
    found: Collection = []
    level = focus
    while level:
        below: Collection = []
        for each in level:
            if isinstance(each, Node):
                add_children(each, below)
        run.spend(len(level) + len(below))
        found += below
        level = below
    return found


def _index(base: Closure, position: Closure) -> Closure:
    def index(env: Env) -> Collection:
        values = base(env)
        at = single(position(env), "a position")
        if at is None:
            return EMPTY
        at = system(at)
        if type(at) is not int:
            raise FhirPathError("a position is an Integer")
        return values[at : at + 1] if at >= 0 else EMPTY

    return index


def _type_test(operator: str, base: Closure, name: str) -> Closure:
    if not known_type(name):
        raise FhirPathError(f"unknown type {name}")
    if operator == "as":
        return lambda env: [each for each in base(env) if is_type(each, name)]

    def test(env: Env) -> Collection:
        value = single(base(env), "the left side of 'is'")
        return EMPTY if value is None else boolean(is_type(value, name))

    return test


# --- single values --------------------------------------------------------------------------------------------


def single(values: Collection, what: str) -> Value | None:
    """The only value of a collection, None if it is empty.

    Raises:
        FhirPathError: there are several.
    """
    if not values:
        return None
    if len(values) > 1:
        raise FhirPathError(f"{what} has {len(values)} values instead of one")
    return values[0]


def boolean(value: bool | None) -> Collection:
    """A truth value as a collection, None as the empty one."""
    return EMPTY if value is None else TRUE if value else FALSE


def truth(values: Collection) -> bool | None:
    """The truth of a collection: of its one Boolean; one value of another type is true; empty is None.

    Raises:
        FhirPathError: there are several values.
    """
    value = single(values, "a condition")
    if value is None:
        return None
    if isinstance(value, Node):
        value = value.value
    return value if isinstance(value, bool) else True


# --- operators --------------------------------------------------------------------------------------------

Binary = Callable[[Closure, Closure], Closure]


def _and(left: Closure, right: Closure) -> Closure:
    def evaluate(env: Env) -> Collection:
        first = truth(left(env))
        if first is False:
            return FALSE
        second = truth(right(env))
        if second is False:
            return FALSE
        return EMPTY if first is None or second is None else TRUE

    return evaluate


def _or(left: Closure, right: Closure) -> Closure:
    def evaluate(env: Env) -> Collection:
        first = truth(left(env))
        if first:
            return TRUE
        second = truth(right(env))
        if second:
            return TRUE
        return EMPTY if first is None or second is None else FALSE

    return evaluate


def _xor(left: Closure, right: Closure) -> Closure:
    def evaluate(env: Env) -> Collection:
        first, second = truth(left(env)), truth(right(env))
        return EMPTY if first is None or second is None else boolean(first != second)

    return evaluate


def _implies(left: Closure, right: Closure) -> Closure:
    def evaluate(env: Env) -> Collection:
        first = truth(left(env))
        if first is False:
            return TRUE
        second = truth(right(env))
        if second or (first is None and second is None):
            return boolean(second)
        return boolean(None if first is None else second)

    return evaluate


def equal(run: Run, left: Value, right: Value) -> bool | None:
    """``=`` of two values; None where the precisions of dates or the units of quantities do not let one tell."""
    left, right = system(left), system(right)
    if isinstance(left, Node) or isinstance(right, Node):
        if not (isinstance(left, Node) and isinstance(right, Node)):
            return False
        run.spend(20)
        return _same_json(run, left.value, right.value) and _same_json(run, left.companion, right.companion)
    _spend_comparing(run, left)
    left, right = _alike(left, right)
    if isinstance(left, Temporal) and isinstance(right, Temporal):
        order = left.compare(right)
        if order is None and (left.kind == "Time") != (right.kind == "Time"):
            return False
        return None if order is None else order == 0
    if isinstance(left, Quantity) and isinstance(right, Quantity):
        pair = left.comparable(right)
        return None if pair is None else pair[0] == pair[1]
    if isinstance(left, bool) != isinstance(right, bool):
        return False
    return bool(left == right)


def _same_json(run: Run, left: Any, right: Any) -> bool:
    """Equality of the JSON of elements, which may be large."""
    run.spend(1)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same_json(run, left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(lambda *each: _same_json(run, *each), left, right))
    _spend_comparing(run, left)
    return bool(left == right)


def _spend_comparing(run: Run, value: Value) -> None:
    if isinstance(value, str):
        run.spend(len(value) // (20 * CHARS))


def _alike(left: Value, right: Value) -> tuple[Value, Value]:
    """Both values with a number beside a Quantity, or a text beside a date, read as such."""
    if isinstance(left, Quantity) and isinstance(right, int | Decimal) and not isinstance(right, bool):
        return left, Quantity(Decimal(right), "1")
    if isinstance(right, Quantity) and isinstance(left, int | Decimal) and not isinstance(left, bool):
        return Quantity(Decimal(left), "1"), right
    # the elements of untyped variables are plain texts
    if isinstance(left, Temporal) and isinstance(right, str):
        return left, Temporal.read(right, "Time" if left.kind == "Time" else None) or right
    if isinstance(right, Temporal) and isinstance(left, str):
        return Temporal.read(left, "Time" if right.kind == "Time" else None) or left, right
    return left, right


def equal_collections(run: Run, left: Collection, right: Collection) -> bool | None:
    """``=`` of two collections: same length, same order; None if either is empty."""
    if not left or not right:
        return None
    if len(left) != len(right):
        return False
    run.spend(len(left))
    answer: bool | None = True
    for mine, theirs in zip(left, right, strict=True):
        same = equal(run, mine, theirs)
        if same is False:
            return False
        if same is None:
            answer = None
    return answer


def equivalent(run: Run, left: Value, right: Value) -> bool:
    """``~`` of two values: texts whatever their case and white space, decimals to the coarser precision."""
    left, right = system(left), system(right)
    if isinstance(left, str) and isinstance(right, str):
        return _alike_text(run, left, right)
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | Decimal) and isinstance(right, int | Decimal):
        return _rounded_equal(Decimal(left), Decimal(right))
    if isinstance(left, Quantity) and isinstance(right, Quantity):
        pair = left.comparable(right)
        return (
            pair is not None
            and (left.unit != right.unit or _rounded_equal(*pair))
            and (left.unit == right.unit or pair[0] == pair[1])
        )
    if isinstance(left, Node) and isinstance(right, Node):
        run.spend(20)
        return _alike_json(run, left.value, right.value)
    return equal(run, left, right) is True


def _rounded_equal(left: Decimal, right: Decimal) -> bool:
    # zeros at the end say nothing about precision
    places = min(max(0, -int(number.normalize().as_tuple().exponent)) for number in (left, right))
    step = Decimal(1).scaleb(-places)
    try:
        return left.quantize(step) == right.quantize(step)
    except DecimalException:
        return left == right


def _alike_json(run: Run, left: Any, right: Any) -> bool:
    """Equivalence below complex elements; ids and order do not count."""
    run.spend(1)
    if isinstance(left, dict) and isinstance(right, dict):
        names = {name for name in (*left, *right) if name != "id"}
        return all(
            name in left and name in right and _alike_json(run, left[name], right[name]) for name in names
        )
    if isinstance(left, list) and isinstance(right, list):
        rest = list(right)
        for each in left:
            found = next((place for place, other in enumerate(rest) if _alike_json(run, each, other)), None)
            if found is None:
                return False
            del rest[found]
        return not rest
    if isinstance(left, str) and isinstance(right, str):
        return _alike_text(run, left, right)
    return bool(left == right)


def _alike_text(run: Run, left: str, right: str) -> bool:
    run.spend((len(left) + len(right)) // CHARS)
    return " ".join(left.split()).casefold() == " ".join(right.split()).casefold()


def equivalent_collections(run: Run, left: Collection, right: Collection) -> bool:
    """``~`` of two collections: the same values in any order; two empty ones are equivalent."""
    if len(left) != len(right):
        return False
    rest = list(right)
    for each in left:
        run.spend(len(rest) + 1)
        found = next((place for place, other in enumerate(rest) if equivalent(run, each, other)), None)
        if found is None:
            return False
        del rest[found]
    return True


def _equals(left: Closure, right: Closure) -> Closure:
    return lambda env: boolean(equal_collections(env.run, left(env), right(env)))


def _differs(left: Closure, right: Closure) -> Closure:
    def evaluate(env: Env) -> Collection:
        same = equal_collections(env.run, left(env), right(env))
        return EMPTY if same is None else boolean(not same)

    return evaluate


def compare(run: Run, left: Value, right: Value) -> int | None:
    """-1, 0 or 1; None where one cannot tell.

    Raises:
        FhirPathError: the values are of types without a common order.
    """
    left, right = _alike(system(left), system(right))
    _spend_comparing(run, left)
    if isinstance(left, Temporal) and isinstance(right, Temporal):
        return left.compare(right)
    if isinstance(left, Quantity) and isinstance(right, Quantity):
        pair = left.comparable(right)
        if pair is None:
            return None
        left, right = pair
    numbers = all(isinstance(each, int | Decimal) and not isinstance(each, bool) for each in (left, right))
    if numbers or (isinstance(left, str) and isinstance(right, str)):
        return 0 if left == right else -1 if left < right else 1
    if isinstance(left, Node) or isinstance(right, Node):
        raise FhirPathError("elements that are not primitive have no order")
    raise FhirPathError("values of different types have no order")


def _ordered(holds: Callable[[int], bool]) -> Binary:
    def build(left: Closure, right: Closure) -> Closure:
        def evaluate(env: Env) -> Collection:
            mine = single(left(env), "a side of a comparison")
            theirs = single(right(env), "a side of a comparison")
            if mine is None or theirs is None:
                return EMPTY
            order = compare(env.run, mine, theirs)
            return EMPTY if order is None else boolean(holds(order))

        return evaluate

    return build


def identity(value: Value) -> object:
    """A key that is the same for equal values, for those types where there is one; else the value itself."""
    plain = system(value)
    if isinstance(plain, Node):
        return None
    if isinstance(plain, bool):
        return (bool, plain)
    if isinstance(plain, int | Decimal):
        return (Decimal, plain)
    if isinstance(plain, str):
        return (str, plain)
    return None


class Seen:
    """A set of values under ``=``."""

    def __init__(self, run: Run, values: Collection = EMPTY) -> None:
        self._run = run
        self._keys: set[object] = set()
        self._others: Collection = []
        for each in values:
            self.add(each)

    def __contains__(self, value: Value) -> bool:
        key = identity(value)
        if key is not None:
            return key in self._keys
        self._run.spend(len(self._others) + 1)
        return any(equal(self._run, value, other) for other in self._others)

    def add(self, value: Value) -> bool:
        """Add a value; False if it was there."""
        if value in self:
            return False
        key = identity(value)
        if key is not None:
            self._keys.add(key)
        else:
            self._others.append(value)
        return True


def distinct(run: Run, values: Collection) -> Collection:
    """The values without repetitions."""
    run.spend(len(values))
    seen = Seen(run)
    return [each for each in values if seen.add(each)]


def _union(left: Closure, right: Closure) -> Closure:
    return lambda env: distinct(env.run, left(env) + right(env))


def _in(left: Closure, right: Closure) -> Closure:
    def evaluate(env: Env) -> Collection:
        value = single(left(env), "the value looked for")
        if value is None:
            return EMPTY
        values = right(env)
        env.run.spend(len(values))
        return boolean(any(equal(env.run, value, each) for each in values))

    return evaluate


def _contains(left: Closure, right: Closure) -> Closure:
    return _in(right, left)


def _numbers(left: Value, right: Value, operator: str) -> tuple[Value, Value]:
    """Both sides of an arithmetic operation.

    Raises:
        FhirPathError: they are no numbers.
    """
    left, right = system(left), system(right)
    for each in (left, right):
        if isinstance(each, bool) or not isinstance(each, int | Decimal):
            raise FhirPathError(f"{operator} takes numbers")
    return left, right


def number(value: Value) -> Collection:
    """A computed number as a collection; one that is out of range is empty."""
    return [value] if in_range(value) else EMPTY


def _arithmetic(operator: str, work: Callable[[Value, Value], Collection]) -> Binary:
    def build(left: Closure, right: Closure) -> Closure:
        def evaluate(env: Env) -> Collection:
            mine = single(left(env), f"a side of {operator}")
            theirs = single(right(env), f"a side of {operator}")
            if mine is None or theirs is None:
                return EMPTY
            try:
                found = work(mine, theirs)
            except DecimalException:
                return EMPTY
            for each in found:
                if isinstance(each, str):
                    text(env.run, each)
                elif not in_range(each):
                    return EMPTY
            return found

        return evaluate

    return build


def _plus(left: Value, right: Value) -> Collection:
    left, right = system(left), system(right)
    if isinstance(left, str) and isinstance(right, str):
        return [left + right]
    return _sum(left, right, 1)


def _minus(left: Value, right: Value) -> Collection:
    return _sum(system(left), system(right), -1)


def _sum(left: Value, right: Value, sign: int) -> Collection:
    if isinstance(left, Temporal) and isinstance(right, Quantity):
        moved = left.plus(right, sign)
        return EMPTY if moved is None else [moved]
    if isinstance(left, Quantity) and isinstance(right, Quantity):
        if left.unit == right.unit:
            return [Quantity(left.value + sign * right.value, left.unit, left.calendar)]
        pair = left.comparable(right)
        if pair is None:
            return EMPTY
        factor = pair[0] / left.value if left.value else Decimal(1)
        return [Quantity(left.value + sign * pair[1] / factor, left.unit, left.calendar)]
    left, right = _numbers(left, right, "+" if sign == 1 else "-")
    return number(left + sign * right)


def _times(left: Value, right: Value) -> Collection:
    left, right = system(left), system(right)
    if isinstance(right, Quantity):
        left, right = right, left
    if isinstance(left, Quantity) and not isinstance(right, Quantity):
        factor, _ = _numbers(right, 1, "*")
        return [Quantity(left.value * factor, left.unit)]
    left, right = _numbers(left, right, "*")
    return number(left * right)


def _divided(left: Value, right: Value) -> Collection:
    left, right = system(left), system(right)
    if isinstance(left, Quantity):
        if isinstance(right, Quantity):
            pair = left.comparable(right)
            return EMPTY if pair is None or not pair[1] else [Quantity(pair[0] / pair[1], "1")]
        divisor, _ = _numbers(right, 1, "/")
        return [Quantity(left.value / divisor, left.unit)] if divisor else EMPTY
    left, right = _numbers(left, right, "/")
    return number(Decimal(left) / Decimal(right)) if right else EMPTY


def _whole(left: Value, right: Value) -> Collection:
    left, right = _numbers(left, right, "div")
    if not right:
        return EMPTY
    return number(int(Decimal(left) / Decimal(right)))


def _rest(left: Value, right: Value) -> Collection:
    left, right = _numbers(left, right, "mod")
    if not right:
        return EMPTY
    if isinstance(left, int) and isinstance(right, int):
        rest = abs(left) % abs(right)
        return [-rest if left < 0 else rest]
    return number(Decimal(left) % Decimal(right))


def _joined(left: Closure, right: Closure) -> Closure:
    """``&``: empty counts as the empty text."""

    def evaluate(env: Env) -> Collection:
        parts = []
        for side in (left, right):
            value = system(single(side(env), "a side of &"))
            if value is None:
                value = ""
            if not isinstance(value, str):
                raise FhirPathError("& takes texts")
            parts.append(value)
        return [text(env.run, "".join(parts))]

    return evaluate


def text(run: Run, value: str) -> str:
    """A computed text, which costs steps by its length: an expression could keep any number of them.

    Raises:
        FhirPathError: it is too long.
    """
    if len(value) > MAX_TEXT:
        raise FhirPathError("a text becomes too long")
    run.spend(len(value) // CHARS)
    return value


def _negate(operand: Closure, _: Closure) -> Closure:
    def evaluate(env: Env) -> Collection:
        value = system(single(operand(env), "the operand of -"))
        if value is None:
            return EMPTY
        if isinstance(value, Quantity):
            return [Quantity(-value.value, value.unit, value.calendar)]
        value, _ = _numbers(value, 0, "-")
        return [-value]

    return evaluate


_OPERATORS: Final[dict[str, Binary]] = {
    "negate": _negate,
    "and": _and,
    "or": _or,
    "xor": _xor,
    "implies": _implies,
    "=": _equals,
    "!=": _differs,
    "~": lambda left, right: lambda env: boolean(equivalent_collections(env.run, left(env), right(env))),
    "!~": lambda left, right: lambda env: boolean(not equivalent_collections(env.run, left(env), right(env))),
    "<": _ordered(lambda order: order < 0),
    ">": _ordered(lambda order: order > 0),
    "<=": _ordered(lambda order: order <= 0),
    ">=": _ordered(lambda order: order >= 0),
    "|": _union,
    "in": _in,
    "contains": _contains,
    "+": _arithmetic("+", _plus),
    "-": _arithmetic("-", _minus),
    "*": _arithmetic("*", _times),
    "/": _arithmetic("/", _divided),
    "div": _arithmetic("div", _whole),
    "mod": _arithmetic("mod", _rest),
    "&": _joined,
}


# --- functions --------------------------------------------------------------------------------------------


def _call(base: Tree | None, name: str, arguments: tuple[Tree, ...]) -> Closure:
    # they need this module, and this one their table
    from fhirstore.fhirpath import fhir  # noqa: F401 -- adds FHIR's functions to the table
    from fhirstore.fhirpath.functions import FUNCTIONS, type_argument

    function = FUNCTIONS.get(name)
    if function is None:
        raise FhirPathError(f"unknown function {name}()")
    low, high = function.arity
    if not low <= len(arguments) <= high:
        expected = str(low) if low == high else f"{low} to {high}"
        raise FhirPathError(f"{name}() takes {expected} arguments, not {len(arguments)}")
    focus: Closure = (lambda env: env.this) if base is None else compile_tree(base)
    if function.takes_type:
        type_name = type_argument(arguments[0])
        return lambda env: function.work(env, focus(env), type_name)
    closures = [compile_tree(argument) for argument in arguments]
    work = function.work
    return lambda env: work(env, focus(env), *closures)


def each_of(env: Env, values: Collection) -> Iterator[Env]:
    """The environment for each value, to evaluate the argument of ``where`` and its like in."""
    run = env.run
    run.spend(len(values))
    for index, value in enumerate(values):
        yield Env(run, [value], index, env.total)
