"""Timeline items, differences and cells, without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from console import diffs, tables
from console.templatetags.console import json_tree, seconds, short
from console.timeline import Item, Position, run_of, story, versions
from fhirstore.api import Stored

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_run_is_read_from_its_auditevent() -> None:
    event = {
        "resourceType": "AuditEvent",
        "id": "a",
        "recorded": "2026-01-02T03:04:05.000Z",
        "type": {"code": "execute"},
        "outcome": "4",
        "outcomeDesc": "\none\ntwo",
        "period": {"start": "2026-01-02T03:04:04.000Z", "end": "2026-01-02T03:04:05.500Z"},
        "agent": [{"requestor": True, "who": {"reference": "Practitioner/p", "display": "Alice"}}],
        "entity": [
            {"what": {"reference": "Bot/b", "display": "hello"}},
            {
                "what": {"reference": "Patient/p"},
                "detail": [
                    {"type": "versionId", "valueString": "v"},
                    {"type": "interaction", "valueString": "create"},
                ],
            },
            {"what": {"reference": "Subscription/s"}},
        ],
        "extension": [
            {
                "url": "urn:fhirbots:bot-run",
                "extension": [
                    {"url": "trigger", "valueCode": "subscription"},
                    {"url": "duration", "valueDecimal": 12.5},
                    {"url": "deployment", "valuePositiveInt": 7},
                    {"url": "failure", "valueCode": "timeout"},
                    {"url": "attempt", "valuePositiveInt": 2},
                ],
            }
        ],
    }
    run = run_of(event)
    assert run.is_bot_run
    assert not run.ok
    assert run.change is not None
    assert run.change.url == "/Patient/p/history/v"
    assert (run.subscription, run.deployment, run.failure, run.attempt) == (
        "Subscription/s",
        7,
        "time-out",
        2,
    )
    assert (run.duration_ms, run.first_line, run.trigger) == (12.5, "one", "subscription")
    del event["extension"]
    assert run_of(event).duration_ms == 1500
    assert run_of({"resourceType": "AuditEvent", "recorded": "2026-01-02T03:04:05Z"}).bot is None


def stored(version: str, content: str, *, minutes: int, deleted: bool = False) -> Stored:
    return Stored("Bot", "b", version, NOW + timedelta(minutes=minutes), content.encode(), deleted)


def test_versions_say_what_they_changed() -> None:
    history = [
        stored("5", '{"sourceCode":{"url":"Binary/2"},"executableCode":{"url":"Binary/9"}}', minutes=5),
        stored("4", '{"sourceCode":{"url":"Binary/2"}}', minutes=4),
        stored("3", '{"sourceCode":{"url":"Binary/1"}}', minutes=3),
        stored("2", "{}", minutes=2, deleted=True),
        stored("1", '{"name":"x"}', minutes=1),
    ]
    titles = [(item.version_id, item.title, item.changed) for item in versions(history, has_deployments=True)]
    assert titles == [
        ("4", "Code saved", ("sourceCode",)),
        ("3", "Restored", ("sourceCode",)),
        ("2", "Deleted", ("name",)),
        ("1", "Created", ()),
    ]


def test_a_story_is_newest_first_and_says_if_there_is_more() -> None:
    items = [Item("version", NOW + timedelta(minutes=m)) for m in (1, 3, 2)]
    shown, more = story(items[:1], items[1:], limit=2)
    assert [item.moment.minute for item in shown] == [7, 6]
    assert more
    shown, more = story(items, limit=2, before=Position(NOW + timedelta(minutes=2), ""))
    assert [item.moment.minute for item in shown] == [5]
    assert not more


def test_text_differences_have_line_numbers_and_skip_what_is_equal() -> None:
    before = "\n".join(str(n) for n in range(20))
    after = before.replace("10", "ten")
    rows = diffs.text_diff(before, after)
    assert [(r.kind, r.old, r.new, r.text) for r in rows if r.kind in ("added", "removed")] == [
        ("removed", 11, None, "10"),
        ("added", None, 11, "ten"),
    ]
    assert rows[0].text == "… 7 unchanged lines"
    assert diffs.counts(rows) == (1, 1)
    assert diffs.text_diff("a", "a") == []


def test_resource_differences_leave_out_what_the_server_writes() -> None:
    one = {"resourceType": "Patient", "meta": {"versionId": "1", "tag": [{"code": "x"}]}}
    two = {"resourceType": "Patient", "meta": {"versionId": "2", "tag": [{"code": "x"}]}}
    assert diffs.resource_diff(one, two) == []
    assert diffs.resource_diff(one, two | {"active": True}) != []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        ([{"given": ["Jane", "Q"], "family": "Doe"}], "Jane Q Doe"),
        ({"coding": [{"code": "a", "display": "Alpha"}]}, "Alpha"),
        ({"coding": [{"code": "a"}]}, "a"),
        ({"reference": "Patient/1"}, "Patient/1"),
        ({"reference": "Patient/1", "display": "Jane"}, "Jane"),
        ({"value": 3, "unit": "mg"}, "3 mg"),
        ({"start": "2020"}, "2020 to …"),
        ({"line": ["Way 1"], "city": "Bern"}, "Way 1, Bern"),
        (["a", "b", "c", "d"], "a, b, c …"),
        ({"nothing": {"known": 1}}, ""),
    ],
)
def test_values_become_short_text(value: object, text: str) -> None:
    assert tables.text_of(value) == text


def test_people_are_not_named_in_titles() -> None:
    patient = {"resourceType": "Patient", "id": "12345678-abcd", "name": [{"family": "Doe"}]}
    assert tables.page_title(patient) == "Patient 678-abcd"
    assert tables.resource_name(patient) == "Doe"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(None, ""), (4.2, "4 ms"), (210, "0.21 s"), (12_400, "12.4 s"), (185_000, "3 min 5 s")],
)
def test_durations_are_readable(milliseconds: float | None, text: str) -> None:
    assert seconds(milliseconds) == text


def test_ids_are_shortened_to_their_ends() -> None:
    assert short("Patient/01a1fd21-d92a-7486-9581-89130a49dc91") == "Patient/…0a49dc91"
    assert short("Patient/1") == "Patient/1"
    assert short(None) == ""


def test_a_position_is_read_back_as_it_was_written() -> None:
    position = Position(NOW, "01a1-b")
    assert Position.parse(str(position)) == position
    assert Position(NOW, "01a1-a") < position
    for nonsense in (None, "", "yesterday", "2026-01-02T03:04:05,x"):
        assert Position.parse(nonsense) is None


def test_a_change_far_from_both_ends_keeps_its_line_numbers() -> None:
    before = [f"line {n}" for n in range(5000)]
    after = [*before[:2500], "added", *before[2501:]]
    rows = diffs.text_diff("\n".join(before), "\n".join(after))
    assert [row.text for row in rows if row.kind == "skip"] == [
        "… 2497 unchanged lines",
        "… 2496 unchanged lines",
    ]
    assert diffs.Row("removed", "line 2500", 2501) in rows
    assert diffs.Row("added", "added", None, 2501) in rows
    assert rows[1] == diffs.Row("", "line 2497", 2498, 2498)


def test_a_difference_of_much_is_no_work_for_hours() -> None:
    before = [str(n % 101) for n in range(50_000)]
    after = [str(n * 7 % 101) for n in range(50_000)]
    rows = diffs.text_diff("\n".join(["same", *before]), "\n".join(["same", *after]))
    assert len(rows) == diffs.MAX_ROWS + 1
    assert rows[-1] == diffs.Row("skip", "… the rest is not shown")


def test_a_large_or_deep_value_is_shown_without_a_tree() -> None:
    deep: object = "end"
    for _ in range(49):
        deep = {"item": [deep]}
    assert json_tree(deep).count("<details open>") == 98
    assert json_tree({"a": "<b>"}, closed=True) == (
        '<details><summary>{ <span class="muted">1</span> }</summary><ul><li><span class="key">a</span>: '
        '<span class="text">&quot;&lt;b&gt;&quot;</span></li></ul></details>'
    )
    assert json_tree(["<b>"] * 50_000).startswith('<pre class="mono">[\n  &quot;&lt;b&gt;&quot;')


def test_a_pager_ends_where_the_search_does_and_says_so() -> None:
    assert tables.pages([], 0, 50, False) == {"previous": "", "next": "", "pager_text": ""}
    middle = tables.pages([("name", "a b")], 50, 50, True)
    assert middle == {"previous": "?name=a+b&_offset=0", "next": "?name=a+b&_offset=100", "pager_text": ""}
    assert tables.pages([], 9_950, 50, True)["next"] == "?_offset=10000"
    end = tables.pages([], 10_000, 50, True)
    assert (end["next"], end["pager_text"]) == ("", "Only the first 10,050 are listed. Search to see others.")
