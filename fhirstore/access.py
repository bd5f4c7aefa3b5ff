"""AccessPolicy: what an identity may do with which resources. Compiled here, enforced in the Repository only.

The rules for a type and an interaction are looked at in order; the first one whose criteria fit the resource counts,
with its hidden and read-only fields. No rule at all is 403, no fitting one 404, so that nobody learns of a resource he
may not see.

What a rule hides must not be found out by searching either: a search by a parameter that reads a hidden element is
refused with 403, as a condition, in a chain, in ``_has``, as an order and as ``_revinclude``
(:meth:`Access.check_search`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any, Final
from urllib.parse import quote

from fhirstore import errors, fhirpath
from fhirstore.definitions import registry
from fhirstore.identity import Identity
from fhirstore.scopes import Interaction, Scope
from fhirstore.search.match import Exists, match
from fhirstore.search.model import (
    AllOf,
    AnyOf,
    Chain,
    Clause,
    Condition,
    Has,
    IndexValues,
    Kind,
    Not,
    Parameter,
    Parameters,
    SearchRequest,
)
from fhirstore.search.parse import parse

READING: Final = frozenset[Interaction]({"read", "vread", "history", "search"})
EVERY: Final = READING | frozenset[Interaction]({"create", "update", "delete"})

SERVER_ONLY: Final = frozenset({"DomainConfiguration", "Enterprise", "JsonWebKey", "Login"})
"""Types nobody reaches through a Repository but the server itself."""

ADMIN_ONLY: Final = frozenset(
    {
        "AccessPolicy",
        "Cron",
        "Package",
        "PackageInstallation",
        "PackageRelease",
        "Project",
        "ProjectMembership",
        "User",
        "UserSecurityRequest",
    }
)
"""Types that ``*`` does not cover and only project admins reach, by the rules below."""

PUBLIC: Final = frozenset(
    {"CodeSystem", "ConceptMap", "OperationDefinition", "SearchParameter", "StructureDefinition", "ValueSet"}
)
"""Definitions and terminology, readable without a rule."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A condition on writes: FHIRPath with ``%before``, ``%after`` and the policy's own variables (name, value)."""

    expression: str
    variables: tuple[tuple[str, str], ...] = ()

    def holds(self, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> bool:
        """True if the write may be done. One that cannot be evaluated allows nothing.

        A deletion has no ``%after``; a condition about it says nothing about deletions, one that is false refuses them.
        """
        subject = after if after is not None else before
        variables = {**dict(self.variables), "before": before, "after": after}
        try:
            if after is None:
                return fhirpath.evaluate(self.expression, dict(subject or {}), variables) != [False]
            return fhirpath.is_true(self.expression, dict(after), variables)
        except errors.FhirError:
            return False


@dataclass(frozen=True, slots=True)
class IpRule:
    """One entry of ``AccessPolicy.ipAccessRule``: an address, a network (``10.0.0.0/8``), a beginning (``10.``) or ``*``."""

    value: str
    allow: bool

    def covers(self, address: str) -> bool:
        """True if the rule is about this address."""
        if self.value in ("*", address):
            return True
        try:
            return ip_address(address) in ip_network(self.value, strict=False)
        except ValueError:
            return self.value.endswith((".", ":")) and address.startswith(self.value)


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of ``AccessPolicy.resource``.

    Attributes:
        type: a resource type or ``*``.
        criteria: search parameters as a query string, None for all resources of the type.
        interactions: what the rule allows.
        hidden: elements left out of answers and kept on write.
        readonly: elements that writes leave as they are.
        constraints: FHIRPath of its ``writeConstraint``, with the variables its expressions may name.
        never: the rule refers to a variable that has no value and so fits nothing.
    """

    type: str
    criteria: str | None = None
    interactions: frozenset[Interaction] = EVERY
    hidden: tuple[str, ...] = ()
    readonly: tuple[str, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    never: bool = False

    def covers(self, type_: str) -> bool:
        """True if the rule is about ``type_``."""
        return self.type in (type_, "*")


FULL: Final = Rule("*")

_ADMIN_RULES: Final[dict[str, Rule]] = {
    "AccessPolicy": Rule("AccessPolicy"),
    "Cron": Rule("Cron"),
    "Project": Rule(
        "Project",
        interactions=READING | {"update"},
        hidden=("superAdmin", "systemSecret", "strictMode"),
        readonly=("features", "link", "systemSetting"),
    ),
    "ProjectMembership": Rule(
        "ProjectMembership",
        interactions=READING | {"update", "delete"},
        readonly=("project", "user"),
    ),
    "User": Rule("User", interactions=READING),
}


@dataclass(frozen=True, eq=False)
class Policy:
    """A compiled AccessPolicy.

    Attributes:
        rules: in order.
        compartment: reference stamped on the resources created under it, None for none.
        ip_rules: from which addresses it may be used, in order.
    """

    rules: tuple[Rule, ...]
    compartment: str | None = None
    ip_rules: tuple[IpRule, ...] = ()
    _clauses: dict[tuple[str, str], tuple[Condition, ...] | None] = field(default_factory=dict, repr=False)

    @classmethod
    def compile(cls, resource: Mapping[str, Any], variables: Mapping[str, str]) -> Policy:
        """Compile an AccessPolicy resource.

        Args:
            resource: the AccessPolicy.
            variables: values of ``%name`` by name: ``profile`` and ``patient`` as references, and the parameters of
                ``ProjectMembership.access``. ``%name.id`` is the id in a reference.
        """
        rules = tuple(_rule(entry, variables) for entry in resource.get("resource") or ())
        compartment = (resource.get("compartment") or {}).get("reference")
        if compartment is not None:
            compartment = _substitute(compartment, variables, quoted=False)
        ip_rules = (
            IpRule(str(entry.get("value")), entry.get("action") == "allow")
            for entry in resource.get("ipAccessRule") or ()
        )
        return cls(rules, compartment, tuple(ip_rules))

    @classmethod
    def join(cls, policies: Iterable[Policy]) -> Policy:
        """One policy with the rules of several, one behind the other (several ``ProjectMembership.access``)."""
        joined = list(policies)
        compartments = [policy.compartment for policy in joined if policy.compartment]
        return cls(
            tuple(rule for policy in joined for rule in policy.rules),
            compartments[0] if compartments else None,
            tuple(rule for policy in joined for rule in policy.ip_rules),
        )

    def allows_address(self, address: str) -> bool:
        """True if the first IP rule about an address allows it, or none is about it."""
        return next((rule.allow for rule in self.ip_rules if rule.covers(address)), True)

    def clauses(self, rule: Rule, type_: str, parameters: Parameters) -> tuple[Condition, ...] | None:
        """The rule's criteria as conditions for ``type_``; None if it can fit no resource of that type.

        A rule whose criteria cannot be understood grants nothing.
        """
        if rule.never:
            return None
        if rule.criteria is None:
            return ()
        key = (type_, rule.criteria)
        if key not in self._clauses:
            try:
                self._clauses[key] = parse(type_, rule.criteria, parameters=parameters).clauses
            except errors.FhirError:
                self._clauses[key] = None
        return self._clauses[key]


NO_POLICY: Final = Policy((FULL,))


def _rule(entry: Mapping[str, Any], variables: Mapping[str, str]) -> Rule:
    if entry.get("interaction") is not None:
        interactions = frozenset(entry["interaction"]) & EVERY
    else:
        interactions = READING if entry.get("readonly") else EVERY
    type_ = str(entry.get("resourceType") or "")
    given = entry.get("criteria")
    criteria, never = None, False
    if given:
        # "Patient?gender=male"; for "*" the type in front is "*" or missing.
        about, _, query = str(given).partition("?")
        substituted = _substitute(query, variables, quoted=True)
        criteria, never = substituted, substituted is None or about not in (type_, "*", "")
    if reference := (entry.get("compartment") or {}).get("reference"):  # the older way to say it
        substituted = _substitute(reference, variables, quoted=True)
        criteria = _both(criteria, f"_compartment={substituted}")
        never = never or substituted is None
    return Rule(
        type_,
        criteria,
        interactions,
        tuple(entry.get("hiddenFields") or ()),
        tuple(entry.get("readonlyFields") or ()),
        tuple(_constraint(each, variables) for each in entry.get("writeConstraint") or ()),
        never,
    )


def _both(criteria: str | None, others: str | None) -> str | None:
    """Criteria that demand both."""
    return f"{criteria}&{others}" if criteria and others else criteria or others


_ID_OF_VARIABLE: Final = re.compile(r"%([A-Za-z_][A-Za-z0-9_]*)\.id\b")


def _constraint(given: Mapping[str, Any], variables: Mapping[str, str]) -> Constraint:
    values = {**variables, **{f"{name}.id": value.rpartition("/")[2] for name, value in variables.items()}}
    expression = str(given.get("expression") or "")
    # "%patient.id" is the id in the reference, as in criteria
    expression = _ID_OF_VARIABLE.sub(
        lambda found: f"%`{found[1]}.id`" if found[1] in variables else found[0], expression
    )
    return Constraint(expression, tuple(values.items()))


def check_policy(repository: object, resource: Mapping[str, Any], previous: object) -> None:
    """Hook before an AccessPolicy is written: refuse what could only ever grant nothing, or refuse everything.

    Raises:
        FhirError: 400, a criterion, expression or address cannot be understood; with its place.
    """
    entries = resource.get("resource")
    for place, entry in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(entry, dict):
            continue  # validation says so
        path = f"AccessPolicy.resource[{place}]"
        criteria, type_ = entry.get("criteria"), entry.get("resourceType")
        if isinstance(criteria, str) and isinstance(type_, str):
            _check_criteria(type_, criteria, f"{path}.criteria")
        constraints = entry.get("writeConstraint")
        for constraint in constraints if isinstance(constraints, list) else ():
            if isinstance(constraint, dict) and isinstance(expression := constraint.get("expression"), str):
                try:
                    fhirpath.compile_expression(expression)
                except errors.FhirError as error:
                    raise errors.bad_request(str(error), f"{path}.writeConstraint") from None
    ip_rules = resource.get("ipAccessRule")
    for place, entry in enumerate(ip_rules if isinstance(ip_rules, list) else ()):
        if isinstance(entry, dict) and not _IP_RULE.fullmatch(str(entry.get("value"))):
            raise errors.bad_request(
                "Not an address, a network such as 10.0.0.0/8, the beginning of one such as 10., or *",
                f"AccessPolicy.ipAccessRule[{place}].value",
            )


_IP_RULE: Final = re.compile(r"\*|[0-9A-Fa-f:.]+(/[0-9]{1,3})?")


def _check_criteria(type_: str, criteria: str, path: str) -> None:
    about, _, query = criteria.partition("?")
    if about not in (type_, "*", ""):
        raise errors.bad_request(f"The criteria of a rule for {type_} begin with {type_}?", path)
    if type_ == "*" or "%" in query:
        return  # what a type has no parameter for grants nothing there; values of variables are not known here
    if type_ != "Binary":
        try:
            parse(type_, query)
        except errors.FhirError as error:
            raise errors.bad_request(str(error), path) from None


_VARIABLE: Final = re.compile(r"%([A-Za-z_][A-Za-z0-9_-]*)(\.id)?")
_ESCAPE: Final = re.compile(r"[0-9A-Fa-f]{2}")


def _substitute(text: str, variables: Mapping[str, str], *, quoted: bool) -> str | None:
    """Replace ``%name`` and ``%name.id``; None if a variable has no value. Percent escapes stay as they are."""
    missing = False

    def value(found: re.Match[str]) -> str:
        nonlocal missing
        name = found[1]
        if name not in variables:
            if _ESCAPE.match(name):
                return found[0]
            missing = True
            return ""
        text = variables[name].rpartition("/")[2] if found[2] else variables[name]
        return quote(text, safe="/|,:") if quoted else text

    substituted = _VARIABLE.sub(value, text)
    return None if missing else substituted


Values = Callable[[], IndexValues]
"""Computes the index values of the resource in question, if a criterion has to be compared with them."""


_NOTHING_KNOWN: Final[Mapping[Rule, bool]] = {}


class Access:
    """All access decisions of one identity.

    Args:
        identity: who acts.
        exists: answers what criteria with chains and ``_has`` ask about other resources: all of the project's, as
            criteria are the policy's and not the identity's.
        parameters: what criteria may search by.
        expand: replaces what stands for many values, see :mod:`fhirstore.search.expand`.
    """

    def __init__(
        self,
        identity: Identity,
        exists: Exists,
        parameters: Parameters,
        expand: Callable[[tuple[Condition, ...]], tuple[Condition, ...]],
    ) -> None:
        self._identity = identity
        self._exists = exists
        self._parameters = parameters
        self._expand = expand
        self._conditions: dict[tuple[Rule, str], tuple[Condition, ...] | None] = {}
        self._policy = identity.policy or NO_POLICY
        if identity.scopes is not None and identity.policy is None:
            self._policy = Policy((FULL,))  # criteria of scopes are not remembered for everybody

    @property
    def compartment(self) -> str | None:
        """The reference to stamp on created resources."""
        return self._policy.compartment

    def rules(self, type_: str, interaction: Interaction) -> tuple[Rule, ...]:
        """The rules that allow ``interaction`` on some resources of ``type_``.

        Raises:
            FhirError: 403 if there is none.
        """
        allowed = tuple(rule for rule in self._rules(type_) if interaction in rule.interactions)
        if not allowed:
            raise errors.forbidden()
        return allowed

    def may(self, type_: str, interaction: Interaction) -> bool:
        """True if ``interaction`` is allowed on some resources of ``type_``."""
        return any(interaction in rule.interactions for rule in self._rules(type_))

    def _rules(self, type_: str) -> Sequence[Rule]:
        if self._identity.system:
            return (FULL,)
        if self._identity.scopes is None:
            return self._policy_rules(type_)
        return [
            scoped
            for rule in self._policy_rules(type_)
            for scope in self._identity.scopes
            if (scoped := self._scoped(rule, type_, scope)) is not None
        ]

    def _scoped(self, rule: Rule, type_: str, scope: Scope) -> Rule | None:
        """What of a rule a scope lets through, None for nothing. ``*`` does not cover what only admins reach."""
        if scope.type != type_ and (scope.type != "*" or type_ in ADMIN_ONLY):
            return rule if type_ in PUBLIC and not rule.criteria and rule.interactions == READING else None
        criteria = _both(rule.criteria, scope.criteria)
        profile = self._identity.on_behalf_of or self._identity.profile
        if scope.patient and (type_ == "Patient" or registry.patient_compartment(type_)):
            if not profile.startswith("Patient/"):
                return None
            criteria = _both(criteria, f"_compartment={profile}")
        return replace(rule, criteria=criteria, interactions=rule.interactions & scope.interactions)

    def _policy_rules(self, type_: str) -> Sequence[Rule]:
        identity = self._identity
        if type_ in SERVER_ONLY:
            return ()
        if type_ in ADMIN_ONLY:
            return (_ADMIN_RULES[type_],) if identity.is_admin and type_ in _ADMIN_RULES else ()
        rules = [rule for rule in self._policy.rules if rule.covers(type_)]
        if type_ == "Binary":
            # Whoever may see its security context may see a Binary; its own criteria do not count.
            rules = [replace(rule, criteria=None, never=False) for rule in rules]
        elif type_ in PUBLIC:
            rules.append(Rule(type_, interactions=READING))
        return rules

    def find(
        self, rules: Iterable[Rule], type_: str, values: Values, known: Mapping[Rule, bool] = _NOTHING_KNOWN
    ) -> Rule | None:
        """The first of ``rules`` whose criteria the resource fits.

        Args:
            rules: in order.
            type_: of the resource.
            values: of the resource.
            known: of which rules it is known already whether it fits.
        """
        for rule in rules:
            clauses = self.conditions(rule, type_)
            if clauses is None:
                continue
            if rule in known:
                if known[rule]:
                    return rule
            elif not clauses or match(SearchRequest(type_, clauses), values(), self._exists):
                return rule
        return None

    def conditions(self, rule: Rule, type_: str) -> tuple[Condition, ...] | None:
        """What a resource of ``type_`` has to fit under a rule; None if no resource does."""
        key = (rule, type_)
        if key not in self._conditions:
            conditions = self._policy.clauses(rule, type_, self._parameters)
            if conditions:
                try:
                    conditions = self._expand(conditions)
                except errors.FhirError as error:
                    if error.status >= 500:
                        raise
                    conditions = None  # cannot be understood, like criteria that cannot be parsed
            self._conditions[key] = conditions
        return self._conditions[key]

    def alternatives(self, rules: Iterable[Rule], type_: str) -> list[tuple[Condition, ...]] | None:
        """The criteria of ``rules`` for a search, one of which has to fit; None if all resources fit."""
        found = []
        for rule in rules:
            clauses = self.conditions(rule, type_)
            if clauses is not None:
                if not clauses:
                    return None
                found.append(clauses)
        return found

    @staticmethod
    def writable(rule: Rule | None) -> Rule:
        """``rule`` itself.

        Raises:
            FhirError: 403 if there is none.
        """
        if rule is None:
            raise errors.forbidden()
        return rule

    @staticmethod
    def check_constraints(
        rules: Iterable[Rule], before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
    ) -> None:
        """Ask the write constraints of the rules under which a write happens.

        Args:
            rules: those that fit the resource before and after.
            before: what is there, None on create.
            after: what shall be there, None on delete.

        Raises:
            FhirError: 403 if one does not hold.
        """
        for constraint in dict.fromkeys(each for rule in rules for each in rule.constraints):
            if not constraint.holds(before, after):
                raise errors.forbidden("A writeConstraint of the AccessPolicy does not allow this write")

    # --- what searches could find out -------------------------------------------------------------------

    def check_search(self, request: SearchRequest) -> None:
        """Refuse a search that would tell something about hidden elements.

        Raises:
            FhirError: 403 with the name of the parameter.
        """
        found = self.reveals(request)
        if found is not None:
            type_, parameter = found
            raise errors.forbidden(
                f"Cannot search {type_} by {parameter}: it reads an element that is hidden"
            )

    def reveals(self, request: SearchRequest) -> tuple[str, str] | None:
        """A type and parameter of a search that read hidden elements, None if there is none."""
        if self._identity.system or all(not rule.hidden for rule in self._policy.rules):
            return None
        asked = [
            *_asked(request.type, request.clauses),
            *((request.type, sort.parameter) for sort in request.sort),
            # _include follows what the searcher sees; _revinclude looks for what refers to it
            *((include.type, include.parameter) for include in request.includes if include.reverse),
        ]
        return next(
            ((type_, parameter.code) for type_, parameter in asked if self._hides(type_, parameter)), None
        )

    def _hides(self, type_: str, parameter: Parameter) -> bool:
        """True if a rule about ``type_`` hides an element the parameter reads, or may read."""
        hidden = {name for rule in self._rules(type_) for name in rule.hidden}
        if not hidden:
            return False
        if parameter.code == "_compartment":
            known = registry.search_parameters(type_)
            codes = registry.patient_compartment(type_)
            return any(self._hides(type_, known[code]) for code in codes if code in known)
        if parameter.kind is Kind.COMPOSITE:
            return True
        return any(_reads(parameter.expression, type_, name) for name in hidden)


def _asked(type_: str, conditions: Iterable[Condition]) -> Iterator[tuple[str, Parameter]]:
    """The parameters conditions ask about, each with the type of the resources it is compared with."""
    for condition in conditions:
        match condition:
            case Clause():
                yield type_, condition.parameter
            case Chain():
                yield type_, condition.parameter
                for target, inner in condition.hops:
                    yield from _asked(target, (inner,))
            case Has():
                yield condition.type, condition.parameter
                yield from _asked(condition.type, (condition.condition,))
            case AllOf(inner) | AnyOf(inner):
                yield from _asked(type_, inner)
            case Not(negated):
                yield from _asked(type_, (negated,))


_FUNCTIONS: Final = frozenset({"as", "exists", "first", "is", "ofType", "resolve", "where"})


def _reads(expression: str, type_: str, field: str) -> bool:
    """True if an expression may read an element; ``field`` as in ``hiddenFields``. In doubt it does."""
    first, *rest = field.split(".")
    name = first.removesuffix("[x]")
    structure = registry.structure(type_)
    for element in structure.children() if structure else ():
        if element.choice and name in {element.property_name(each.code) for each in element.types}:
            name = element.name
    if not re.search(rf"\b{re.escape(name)}\b", expression):
        return False
    below = set(re.findall(rf"\b{re.escape(name)}\.(\w+)", expression)) - _FUNCTIONS
    return not rest or not below or rest[0].removesuffix("[x]") in below


# --- fields -------------------------------------------------------------------------------------------------


def hide(resource: dict[str, Any], fields: Iterable[str]) -> None:
    """Remove elements in place; ``a.b`` means b in each a, ``value[x]`` the choice whatever its type."""
    for name in fields:
        _remove(resource, name.split("."))


def restore(resource: dict[str, Any], previous: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Set elements in place to what they are in ``previous``, missing ones included."""
    for name in fields:
        _restore(resource, previous, name.split("."))


def _keys(holder: Mapping[str, Any], name: str) -> list[str]:
    """The JSON properties of an element: a choice has one of several names, primitives a twin with underscore."""
    if name.endswith("[x]"):
        stem = name.removesuffix("[x]")
        pattern = re.compile(f"_?{re.escape(stem)}[A-Z][A-Za-z0-9]*")
        return [key for key in holder if pattern.fullmatch(key)]
    return [key for key in (name, f"_{name}") if key in holder]


def _remove(holder: Any, path: Sequence[str]) -> None:
    if isinstance(holder, list):
        for item in holder:
            _remove(item, path)
    elif isinstance(holder, dict):
        for key in _keys(holder, path[0]):
            if len(path) == 1:
                del holder[key]
            else:
                _remove(holder[key], path[1:])


def _restore(holder: Any, previous: Any, path: Sequence[str]) -> None:
    inner = previous.get(path[0]) if len(path) > 1 else None
    given = holder.get(path[0]) if inner is not None else None
    if isinstance(inner, dict) and isinstance(given, dict):
        _restore(given, inner, path[1:])
    elif isinstance(inner, list) and isinstance(given, list) and len(inner) == len(given):
        for item, old in zip(given, inner, strict=True):
            if isinstance(item, dict) and isinstance(old, dict):
                _restore(item, old, path[1:])
    elif len(path) == 1 or inner is not None:
        # The element itself, or one whose parts cannot be paired any more: as it was.
        for key in _keys(holder, path[0]):
            del holder[key]
        for key in _keys(previous, path[0]):
            holder[key] = previous[key]
    else:
        _remove(holder, path)
