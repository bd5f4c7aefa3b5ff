"""What a handler returns or throws, and what the caller gets of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.conftest import Run

HL7 = "MSH|^~\\&|A|B|C|D|20260101||ADT^A01|1|P|2.5\rPID|1||123"


def handler(body: str) -> str:
    return f"export async function handler(medplum, event) {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "kind", "value"),
    [
        ("", "undefined", None),
        ("return undefined", "undefined", None),
        ("return null", "null", None),
        ("return true", "boolean", True),
        ("return false", "boolean", False),
        ("return 0", "number", 0),
        ("return 12.5", "number", 12.5),
        ("return 1e21", "number", 1e21),
        ("return 2 ** 64", "number", 2.0**64),
        ("return NaN", "null", None),
        ("return -Infinity", "null", None),
        ("return ''", "string", ""),
        ("return 'Grüße 👋'", "string", "Grüße 👋"),
        ("return 'half a pair: \\ud83d.'", "string", "half a pair: �."),
        ("return ['\\udc00']", "object", ["�"]),
        ("return '\\u0000'", "string", "\0"),
        ("return {a: [1, {b: null}]}", "object", {"a": [1, {"b": None}]}),
        ("return []", "object", []),
        ("return {a: undefined, b: () => 1, c: Symbol('x')}", "object", {}),
        ("return new Date(0)", "string", "1970-01-01T00:00:00.000Z"),
        ("return new Map([[1, 2]])", "object", {}),
        ("return new String('x')", "string", "x"),
        ("return {toJSON() { return undefined }}", "undefined", None),
        ("return Promise.resolve(Promise.resolve(7))", "number", 7),
        ("return {then(resolve) { resolve('thenable') }}", "string", "thenable"),
        ("return new Uint8Array([0, 255, 7])", "binary", b"\x00\xff\x07"),
        ("return new Uint8Array([1, 2, 3, 4]).subarray(1, 3)", "binary", b"\x02\x03"),
        ("return new Uint8Array([9]).buffer", "binary", b"\x09"),
        ("return Buffer.from('abc')", "binary", b"abc"),
        ("return new Uint8Array(0)", "binary", b""),
        (
            "return {resourceType: 'Patient', id: '1', active: true}",
            "object",
            {"resourceType": "Patient", "id": "1", "active": True},
        ),
    ],
)
def test_a_returned_value_arrives(run: Run, body: str, kind: str, value: Any) -> None:
    result = run(handler(body))
    assert (result.ok, result.value_kind, result.value) == (True, kind, value), result
    assert type(result.value) is type(value)
    assert result.failure is result.error is result.outcome is None


def test_a_value_is_also_told_as_javascript_writes_it(run: Run) -> None:
    assert run(handler("return 2 ** 64")).value_json == b"18446744073709552000"
    assert run(handler("return {b: 1, a: 0.1 + 0.2}")).value_json == b'{"b":1,"a":0.30000000000000004}'
    assert run(handler("return new Uint8Array(3)")).value_json == run(handler("")).value_json == b""


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return () => 1", "The handler returned a function, which cannot be sent."),
        ("return Symbol('x')", "The handler returned a symbol, which cannot be sent."),
        ("return 10n", "BigInt"),
        ("return {a: {b: 10n}}", "BigInt"),
        ("const a = {}; a.a = a; return a", "circular"),
        ("return {get x() { throw new Error('no') }}", "The result cannot be sent as JSON: no"),
        ("return 'x'.repeat(17 << 20)", "The result has 17825794 bytes; at most 16777216 can be sent."),
        ("return new Uint8Array(17 << 20)", "at most 16777216"),
        ("let a = []; for (let i = 0; i < 5000; i++) a = [a]; return a", "nested too deeply"),
    ],
)
def test_a_value_that_cannot_be_sent_is_a_failure_of_the_output(run: Run, body: str, sentence: str) -> None:
    result = run(handler(body))
    assert (result.ok, result.failure) == (False, "output")
    assert sentence in (result.error or "")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("throw new Error('no luck')", "no luck"),
        ("throw new TypeError('wrong')", "wrong"),
        ("throw new Error()", "Error"),
        ("null.x", "Cannot read properties of null (reading 'x')"),
        ("undefinedName", "undefinedName is not defined"),
        ("throw 'a text'", "a text"),
        ("throw 42", "42"),
        ("throw undefined", "undefined"),
        ("throw null", "null"),
        ("throw {code: 7}", '{\n  "code": 7\n}'),
        ("throw {get message() { throw new Error('deep') }}", None),
        ("throw new Proxy({}, {get() { throw new Error('deep') }})", None),
        ("throw Object.assign(new Error('x'), {get stack() { throw 1 }})", None),
        ("return Promise.reject(new Error('later'))", "later"),
        ("return {then(_, reject) { reject(new Error('thenable')) }}", "thenable"),
        ("await new Promise(() => setTimeout(() => { throw new Error('in a timer') }, 1))", "in a timer"),
        (
            "process.exit(3)",
            "process.exit() is not available to bots: return from the handler, or throw, to end",
        ),
        ("class E extends Error {}; throw new E('own class')", "own class"),
        ("throw new Error('cause', {cause: new Error('why')})", "cause"),
        ("throw new AggregateError([new Error('a')], 'many')", "many"),
        ("const e = new Error('half \\ud800'); throw e", "half �"),
    ],
)
def test_what_is_thrown_is_a_failure_of_the_code(run: Run, body: str, error: str | None) -> None:
    result = run(handler(body))
    assert (result.ok, result.failure) == (False, "code")
    assert result.error
    assert error is None or error in result.error
    assert result.log == ()


def test_a_bot_survives_its_own_error(pool: Any) -> None:
    from tests.sandbox.conftest import invocation, no_answer, program

    bot = program(handler("if (event.input === 'fail') throw new Error('x'); return event.input"))
    assert [pool.run(invocation(bot, text), no_answer).ok for text in ("a", "fail", "b")] == [
        True,
        False,
        True,
    ]
    assert pool.run(invocation(bot, "c"), no_answer).warm


@pytest.mark.parametrize(
    ("id", "ok"),
    [
        ("ok", True),
        ("created", True),
        ("accepted", True),
        ("not-modified", True),
        ("gone", False),
        (None, False),
    ],
)
def test_a_returned_outcome_decides_by_its_id(run: Run, id: str | None, ok: bool) -> None:
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "gone"}]} | (
        {"id": id} if id else {}
    )
    result = run(handler("return event.input"), outcome)
    assert (result.ok, result.failure) == (ok, None if ok else "code")
    assert result.outcome == result.value == outcome


@pytest.mark.parametrize(
    "expression",
    ["new OperationOutcomeError(notFound)", "notFound", "Object.assign(new Error('x'), {outcome: notFound})"],
)
def test_a_thrown_outcome_is_told(run: Run, expression: str) -> None:
    source = (
        f"import {{OperationOutcomeError, notFound}} from '@medplum/core';{handler(f'throw {expression}')}"
    )
    result = run(source)
    assert (result.ok, result.failure) == (False, "code")
    assert result.outcome is not None
    assert (result.outcome["id"], result.outcome["issue"][0]["code"]) == ("not-found", "not-found")


@pytest.mark.parametrize(
    ("input", "kind", "body", "value"),
    [
        ({"a": 1}, "json", "return event.input.a", 1),
        ("plain", "text", "return typeof event.input + event.input", "stringplain"),
        (HL7, "hl7", "return event.input.getSegment('PID').getField(3).toString()", "123"),
        (HL7, "hl7", "return event.input instanceof (await import('@medplum/core')).Hl7Message", True),
        ("", "hl7", "return event.input", ""),
        ({"k": ["a", "b"]}, "json", "return event.input.k.length", 2),
        (None, "json", "return event.input === null", True),
        ("x" * 3_000_000, "text", "return event.input.length", 3_000_000),
    ],
)
def test_the_input_arrives_in_its_kind(run: Run, input: Any, kind: str, body: str, value: Any) -> None:
    assert run(handler(body), input, input_kind=kind).value == value


def test_an_hl7_message_is_returned_as_text(run: Run) -> None:
    result = run(handler("return event.input.buildAck()"), HL7, input_kind="hl7")
    assert (result.ok, result.value_kind) == (True, "hl7")
    assert result.value.startswith("MSH|^~\\&|C|D|A|B|")
    assert "\rMSA|AA|1" in result.value


def test_a_broken_hl7_message_is_a_failure_of_the_input(run: Run) -> None:
    result = run(handler("return 1"), {"not": "text"}, input_kind="hl7")
    assert (result.ok, result.failure) == (False, "input")
    assert "HL7 v2" in (result.error or "")


@pytest.mark.parametrize("value", ["half \ud800", 2**70])
def test_an_event_that_is_no_json_is_a_failure_of_the_input(run: Run, value: Any) -> None:
    result = run(handler("return 1"), {"a": value})
    assert (result.ok, result.failure) == (False, "input")
    assert (result.error or "").startswith("The event cannot be sent to the bot: ")


def test_the_event_arrives_as_it_was_given(run: Run) -> None:
    event = {
        "contentType": "application/json; charset=utf-8",
        "secrets": {"KEY": {"name": "KEY", "valueString": "s3cret"}},
        "headers": {"x-a": "1", "x-b": ["2", "3"]},
        "traceId": "0f7a4a4e-2c9d-4b56-8b43-6f1c5e9a6a10",
        "requester": {"reference": "Practitioner/1"},
    }
    result = run(handler("return {...event, has: 'contentType' in event}"), {"a": None}, event=event)
    assert result.value == {"bot": {"reference": "Bot/1"}, "input": {"a": None}, "has": True, **event}
    assert run(handler("return event.contentType === undefined")).value is True


def test_the_numbers_of_a_call_are_told(run: Run) -> None:
    result = run(handler("await new Promise((r) => setTimeout(r, 30)); console.log('x')"))
    assert result.duration_ms >= 30
    assert result.log[0].offset_ms >= 30
    assert result.peak_memory_bytes is None or result.peak_memory_bytes > 10_000_000


@pytest.mark.parametrize(
    "value",
    [
        "{resourceType: 'OperationOutcome'}",
        "{resourceType: 'OperationOutcome', issue: 'text'}",
        "{resourceType: 'OperationOutcome', issue: [5]}",
        "{resourceType: 'OperationOutcome', issue: [{details: 'text'}]}",
        "{resourceType: 'OperationOutcome', issue: [{details: {text: []}}]}",
        "{resourceType: 'OperationOutcome', issue: [{expression: 5}]}",
        "{resourceType: 'OperationOutcome', id: [], issue: []}",
    ],
)
def test_an_outcome_that_is_none_is_no_outcome(run: Run, value: str) -> None:
    thrown = run(handler(f"throw {value}"))
    assert (thrown.ok, thrown.failure, thrown.outcome) == (False, "code", None)
    assert "OperationOutcome" in str(thrown.error)  # all of it, as of anything that is thrown
    returned = run(handler(f"return {value}"))
    assert (returned.ok, returned.failure, returned.outcome) == (False, "output", None)
    assert "needs a list of issues" in str(returned.error)
