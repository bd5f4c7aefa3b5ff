"""The words pages are written in: components, icons, times, references.

Framework class names stand only in `templates/components/` and the base templates; pages use these tags.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from django import forms, template
from django.template.context import Context
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from console.navigation import page_of
from console.timeline import instant

register = template.Library()

OUTCOMES = {
    "0": ("Success", "circle-check", "good"),
    "4": ("Minor failure", "circle-x", "bad"),
    "8": ("Serious failure", "circle-x", "bad"),
    "12": ("Major failure", "circle-x", "bad"),
}
"""AuditEvent.outcome → word, icon, tone."""


@register.simple_block_tag(takes_context=True)
def component(context: Context, content: str, which: str, **values: Any) -> str:
    """`{% component "card" title="Input" %}…{% endcomponent %}`: a component around the content."""
    return _render(context, which, {**values, "content": content})


@register.simple_tag(takes_context=True)
def ui(context: Context, which: str, **values: Any) -> str:
    """`{% ui "status" outcome=event.outcome %}`: a component without content."""
    return _render(context, which, values)


def _render(context: Context, which: str, values: dict[str, Any]) -> str:
    # As an inclusion tag does: the values alone, without what context processors would say to every small part.
    found = context.template.engine.get_template(f"components/{which}.html")  # type: ignore[union-attr]  # it is being rendered
    return str(found.render(context.new(values)))


@register.simple_tag
def icon(name: str) -> SafeString:
    """An icon of the sprite. It is always decoration: a word stands beside it."""
    return format_html(
        '<svg class="icon" aria-hidden="true" focusable="false"><use href="{}#{}"></use></svg>',
        static("vendor/icons.svg"),
        name,
    )


@register.simple_tag
def control(field: forms.BoundField, text: str, select: str, check: str) -> SafeString:
    """Render the control of a form field with the class its kind wants; errors and hint are tied to it."""
    widget = field.field.widget
    kind = text
    if isinstance(widget, forms.Select):
        kind = select
    elif isinstance(widget, forms.CheckboxInput):
        kind = check
    described = [f"{field.id_for_label}_hint"] * bool(field.help_text)
    described += [f"{field.id_for_label}_error"] * bool(field.errors)
    own = widget.attrs.get("class", "")
    attributes: dict[str, str | bool] = {"class": f"{kind} {own}".strip()}
    if described:
        attributes["aria-describedby"] = " ".join(described)
    return SafeString(field.as_widget(attrs=attributes))


@register.simple_tag
def time(value: str | datetime | None, relative: bool = False) -> str:
    """A point in time: UTC as text, which `app.js` turns into the reader's zone; the full stamp is the title.

    What is less exact than an instant is shown as it is.
    """
    moment = value.astimezone(UTC) if isinstance(value, datetime) else instant(value)
    if moment is None:
        return str(value or "")
    text = f"{moment.day} {moment:%b %Y, %H:%M}"
    return format_html(
        '<time datetime="{}" title="{} UTC"{}>{}</time>',
        moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        moment.strftime("%Y-%m-%d %H:%M:%S"),
        mark_safe(" data-relative") if relative else "",
        text,
    )


@register.filter
def own_time(moment: datetime) -> str:
    """A point in time as the clocks of its own time zone show it."""
    return f"{moment:%a} {moment.day} {moment:%b %Y, %H:%M}"


@register.filter
def outcome_word(outcome: str | None) -> str:
    """The word of an AuditEvent outcome."""
    return OUTCOMES.get(outcome or "", ("Unknown outcome", "", ""))[0]


@register.filter
def outcome_icon(outcome: str | None) -> str:
    """The icon of an AuditEvent outcome."""
    return OUTCOMES.get(outcome or "", ("", "info-circle", ""))[1]


@register.filter
def outcome_tone(outcome: str | None) -> str:
    """The tone (`good`, `bad` or none) of an AuditEvent outcome."""
    return OUTCOMES.get(outcome or "", ("", "", ""))[2]


@register.filter
def short(value: str | None) -> str:
    """The end of an id or reference, which differs between resources made in the same minute: `Patient/…30a49dc9`."""
    kind, slash, id_ = (value or "").rpartition("/")
    return f"{kind}{slash}…{id_[-8:]}" if len(id_) > 12 else f"{kind}{slash}{id_}"


register.filter("page_of", page_of)


@register.filter
def who(reference: dict[str, str] | None) -> str:
    """A person or program by name, else by reference."""
    found = reference or {}
    return found.get("display") or found.get("reference") or "unknown"


@register.filter
def seconds(milliseconds: float | None) -> str:
    """A duration: `4 ms`, `0.21 s`, `12.4 s`, `3 min 5 s`."""
    if milliseconds is None:
        return ""
    value = milliseconds / 1000
    if value < 0.1:
        return f"{milliseconds:.0f} ms"
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"


@register.filter
def pretty(value: Any) -> str:
    """JSON, indented."""
    return json.dumps(value, indent=2, ensure_ascii=False)


MAX_PARTS = 20_000
"""Parts of a JSON value that are drawn as a tree; a larger one is shown as text."""


@register.simple_tag
def json_tree(value: Any, closed: bool = False) -> SafeString:
    """A JSON value as a tree to open and close."""
    parts = list(itertools.islice(_json_parts(value, ""), MAX_PARTS + 1))
    if len(parts) > MAX_PARTS:
        return format_html('<pre class="mono">{}</pre>', pretty(value))
    text = "".join(parts)
    return mark_safe(text.replace("<details open>", "<details>", 1) if closed else text)  # noqa: S308  (escaped below)


def _json_parts(value: Any, name: str) -> Iterator[str]:
    """The HTML of a value and its name in the object it is part of, piece by piece."""
    label = format_html('<span class="key">{}</span>: ', name) if name else ""
    if isinstance(value, dict | list):
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        size = f'{opening} <span class="muted">{len(value)}</span> {closing}'
        yield f"<details open><summary>{label}{size}</summary><ul>"
        for key, part in value.items() if isinstance(value, dict) else (("", each) for each in value):
            yield "<li>"
            yield from _json_parts(part, key)
            yield "</li>"
        yield "</ul></details>"
    else:
        kind, text = "text" if isinstance(value, str) else "other", json.dumps(value, ensure_ascii=False)
        yield label + format_html('<span class="{}">{}</span>', kind, text)
