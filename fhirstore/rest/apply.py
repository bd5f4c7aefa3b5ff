"""``PlanDefinition/{id}/$apply``: make a plan for a patient from a protocol (https://hl7.org/fhir/R4/plandefinition-operation-apply.html).

As Medplum does it: each action becomes a Task, all of them hang on a RequestGroup, and that on the CarePlan that is answered. All
of it is written in one transaction as the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fhirstore import fhirpath
from fhirstore.errors import FhirError, bad_request
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.repository import Repository, Stored
from fhirstore.rest.maintenance import display_of
from fhirstore.rest.parameters import Input, read_input
from fhirstore.search.parse import escape
from fhirstore.tables import Moment

Json = dict[str, Any]

MAX_ACTIONS: Final = 200
MAX_LEVELS: Final = 10

_SUBJECTS: Final = ("Patient", "Group", "Practitioner", "Organization", "Location", "Device")
_COPIED: Final = (
    "prefix",
    "title",
    "description",
    "textEquivalent",
    "code",
    "documentation",
    "groupingBehavior",
    "selectionBehavior",
    "requiredBehavior",
    "precheckBehavior",
    "cardinalityBehavior",
    "type",
)
"""What an action of a RequestGroup says in the words of the PlanDefinition's; a list of codes becomes their first."""


def register() -> None:
    """Register the operation; called once at start-up."""
    register_operation("$apply", apply, types=["PlanDefinition"], instance=True, methods=["POST"])


@dataclass(slots=True)
class _Plan:
    """What the actions of one call have in common."""

    repository: Repository
    subject: Stored
    subject_reference: Json
    encounter: Json | None
    requester: Json | None
    organization: Json | None
    count: int = 0


def apply(request: OperationRequest) -> Stored:
    """``POST /PlanDefinition/{id}/$apply`` with ``subject``, and ``encounter``, ``practitioner``, ``organization``; answers the CarePlan.

    Raises:
        FhirError: 400 for missing or wrong parameters and for a protocol that cannot be followed, 404 for what is not there.
    """
    assert request.id is not None
    given = read_input(request)
    repository = request.repository
    with repository.transaction():
        definition = repository.read("PlanDefinition", request.id).resource
        subject = _read(repository, given, "subject", _SUBJECTS)
        if subject is None:
            raise bad_request("Missing parameter subject")
        plan = _Plan(
            repository,
            subject,
            _reference(subject),
            _optional(_read(repository, given, "encounter", ("Encounter",))),
            _optional(_read(repository, given, "practitioner", ("Practitioner", "PractitionerRole"))),
            _optional(_read(repository, given, "organization", ("Organization",))),
        )
        canonical = definition.get("url") or f"PlanDefinition/{definition['id']}"
        common: Json = {
            "instantiatesCanonical": [canonical],
            "status": "active",
            "subject": plan.subject_reference,
        }
        if plan.encounter:
            common["encounter"] = plan.encounter
        if plan.requester:
            common["author"] = plan.requester
        group: Json = {"resourceType": "RequestGroup", **common, "intent": "order"}
        if actions := _actions(plan, definition, definition.get("action", ()), 1):
            group["action"] = actions
        care_plan: Json = {"resourceType": "CarePlan", **common, "intent": "plan"}
        if title := definition.get("title") or definition.get("name"):
            care_plan["title"] = title
        care_plan["activity"] = [{"reference": _reference(repository.create(group))}]
        return repository.create(care_plan)


def _read(repository: Repository, given: Input, name: str, types: tuple[str, ...]) -> Stored | None:
    """The resource a parameter names, as a text or a Reference."""
    values = given.all(name)
    if len(values) > 1:
        raise bad_request(f"Parameter {name} may be given only once")
    if not values:
        return None
    reference = values[0].get("reference") if isinstance(values[0], dict) else values[0]
    if not isinstance(reference, str) or reference.partition("/")[0] not in types:
        raise bad_request(f"Parameter {name} must be a reference to {' or '.join(types)}")
    return repository.read_reference(reference)


def _reference(stored: Stored) -> Json:
    name = display_of(stored.resource)
    return {"reference": f"{stored.type}/{stored.id}", **({"display": name} if name else {})}


def _optional(stored: Stored | None) -> Json | None:
    return None if stored is None else _reference(stored)


def _actions(plan: _Plan, definition: Json, actions: Any, level: int) -> list[Json]:
    if level > MAX_LEVELS:
        raise bad_request(f"The actions are nested more than {MAX_LEVELS} levels deep")
    made = []
    for action in actions:
        if not _applies(plan, action):
            continue
        plan.count += 1
        if plan.count > MAX_ACTIONS:
            raise bad_request(f"The PlanDefinition has more than {MAX_ACTIONS} actions")
        group_action = {name: action[name] for name in _COPIED if name in action}
        if "id" in action:
            group_action["id"] = action["id"]
        if "priority" in action:
            group_action["priority"] = action["priority"]
        group_action |= {name: value for name, value in action.items() if name.startswith("timing")}
        if inner := action.get("action"):
            group_action["action"] = _actions(plan, definition, inner, level + 1)
        else:
            group_action["resource"] = _reference(_task(plan, definition, action))
        made.append({name: value for name, value in group_action.items() if value != []})
    return made


def _applies(plan: _Plan, action: Json) -> bool:
    """True unless a condition of kind ``applicability`` does not hold for the subject."""
    for condition in action.get("condition", ()):
        expression = condition.get("expression", {})
        if condition["kind"] == "applicability" and "expression" in expression:
            _check_language(expression)
            subject = plan.subject.resource
            if not fhirpath.is_true(expression["expression"], subject, {"subject": subject}):
                return False
    return True


def _check_language(expression: Json) -> None:
    if expression.get("language") not in ("text/fhirpath", None):
        raise bad_request(f"Expressions in {expression['language']} are not supported; use text/fhirpath")


def _task(plan: _Plan, definition: Json, action: Json) -> Stored:
    """The Task of an action; what it is about is created before, or named as its input."""
    task: Json = {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "authoredOn": Moment.now().text,
        "for": plan.subject_reference,
        "basedOn": [{"reference": f"PlanDefinition/{definition['id']}"}],
    }
    if title := action.get("title") or action.get("textEquivalent"):
        task["code"] = {"text": title}
    if action.get("description"):
        task["description"] = action["description"]
    if action.get("priority"):
        task["priority"] = action["priority"]
    for name, value in (("encounter", plan.encounter), ("requester", plan.requester)):
        if value:
            task[name] = value
    if canonical := action.get("definitionCanonical"):
        _define(plan, task, canonical)
    for dynamic in action.get("dynamicValue", ()):
        _set(plan, task, dynamic)
    return plan.repository.create(task)


def _define(plan: _Plan, task: Json, canonical: str) -> None:
    """Make the Task say what is to be done: fill in a Questionnaire, or carry out what an ActivityDefinition describes."""
    found = _resolve(plan.repository, canonical)
    if found.type == "Questionnaire":
        task["focus"] = _reference(found)
        task["input"] = [{"type": {"text": "Questionnaire"}, "valueReference": _reference(found)}]
        return
    if found.type == "PlanDefinition":
        task["focus"] = _reference(found)
        return
    activity = found.resource
    if "code" in activity:
        task["code"] = activity["code"]
    if activity.get("kind") == "ServiceRequest":
        task["focus"] = _reference(_service_request(plan, activity, canonical))
    elif activity.get("kind") in (None, "Task"):
        task["instantiatesCanonical"] = canonical
    else:
        raise bad_request(f"ActivityDefinitions of kind {activity['kind']} are not supported")
    for dynamic in activity.get("dynamicValue", ()):
        _set(plan, task, dynamic)


def _service_request(plan: _Plan, activity: Json, canonical: str) -> Stored:
    """The request an ActivityDefinition describes."""
    request: Json = {
        "resourceType": "ServiceRequest",
        "status": "draft",
        "intent": activity.get("intent", "order"),
        "instantiatesCanonical": [canonical],
        "subject": plan.subject_reference,
        "authoredOn": Moment.now().text,
    }
    for name in ("code", "priority", "doNotPerform", "bodySite"):
        if name in activity:
            request[name] = activity[name]
    for name, value in (("encounter", plan.encounter), ("requester", plan.requester)):
        if value:
            request[name] = value
    if plan.organization:
        request["performer"] = [plan.organization]
    return plan.repository.create(request)


def _resolve(repository: Repository, canonical: str) -> Stored:
    """What a canonical, or a plain ``Type/id``, leads to; raises FhirError (400) for nothing."""
    types = ("Questionnaire", "ActivityDefinition", "PlanDefinition")
    type, _, id = canonical.partition("/")
    try:
        if type in types and id:
            return repository.read(type, id)
        url, _, version = canonical.partition("|")
        for each in types:
            query = [("url", escape(url)), *([("version", escape(version))] if version else [])]
            if found := repository.search_one(each, query):
                return found
    except FhirError as error:
        if error.status not in (403, 404, 410):
            raise
    raise bad_request(f"Definition not found: {canonical}")


def _set(plan: _Plan, task: Json, dynamic: Json) -> None:
    """Set an element of the Task to what an expression gives, seen from the subject."""
    expression, path = dynamic.get("expression", {}), dynamic.get("path", "").removeprefix("Task.")
    if not path or "expression" not in expression:
        raise bad_request("A dynamicValue needs path and expression")
    _check_language(expression)
    subject = plan.subject.resource
    values = fhirpath.evaluate(expression["expression"], subject, {"subject": subject, "task": task})
    if not values:
        return
    *outer, last = path.split(".")
    if path.split(".")[0] in ("resourceType", "id", "meta"):
        raise bad_request(f"A dynamicValue cannot be set at {path}")
    holder: Any = task
    for name in outer:
        holder = holder.setdefault(name, {})
        if not isinstance(holder, dict):
            raise bad_request(f"A dynamicValue cannot be set at {path}")
    holder[last] = values if isinstance(holder.get(last), list) or len(values) > 1 else values[0]
