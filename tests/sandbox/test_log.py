"""The console of a bot: order, levels, shape, and what happens to floods."""

from __future__ import annotations

import pytest

from tests.sandbox.conftest import Run


def handler(body: str) -> str:
    return f"export async function handler(medplum, event) {{ {body} }}"


@pytest.mark.parametrize(
    ("statement", "lines"),
    [
        ("console.log('Hello', 'world')", [("log", "Hello world")]),
        ("console.debug(1); console.info(2); console.warn(3); console.error(4)", [("debug", "1"), ("info", "2"), ("warn", "3"), ("error", "4")]),
        ("console.log()", [("log", "")]),
        ("console.log({a: [1, 'x', null]}, undefined, 10n, Symbol('s'))", [("log", '{ a: [ 1, "x", null ] } undefined 10n Symbol(s)')]),
        ("console.log('%s is %d, %i, %f: %j %o%c%%', 'x', '4.5', '4.5', '4.5', {a: 1}, [1], 'css')", [("log", 'x is 4.5, 4, 4.5: {"a":1} [ 1 ]%')]),
        ("console.log('%s')", [("log", "%s")]),
        ("console.log('100%', 5)", [("log", "100% 5")]),
        ("console.log({a: {b: {c: {d: {e: {f: 1}}}}}})", [("log", "{\n  a: {\n    b: { c: { d: { e: [Object] } } }\n  }\n}")]),
        ("const a = {}; a.self = a; console.log(a)", [("log", "<ref *1> { self: [Circular *1] }")]),
        ("console.log(new Map([[1, {a: 2}]]), new Date(0), /x/g, () => 1)", [("log", "Map(1) { 1 => { a: 2 } } 1970-01-01T00:00:00.000Z /x/g [Function (anonymous)]")]),
        ("console.log({get a() { throw new Error() }})", [("log", "{ a: [Getter] }")]),
        ("console.log(new Proxy({}, {get() { throw new Error('x') }}))", None),
        ("console.log('half \\ud800')", [("log", "half �")]),
        ("console.log('a\\nb')", [("log", "a\nb")]),
        ("console.group('G'); console.log('a\\nb'); console.groupEnd(); console.log('c')", [("log", "G"), ("log", "  a\n  b"), ("log", "c")]),
        ("console.count(); console.count('x'); console.count()", [("log", "default: 1"), ("log", "x: 1"), ("log", "default: 2")]),
        ("console.assert(true, 'no'); console.assert(false, 'yes', 1)", [("error", "Assertion failed: yes 1")]),
        ("console.dir({a: 1}); console.table([1])", [("log", "{ a: 1 }"), ("log", "[ 1 ]")]),
        ("console.timeEnd('nothing')", [("warn", "Timer 'nothing' does not exist")]),
        ("const {log, error} = console; log('a'); error('b')", [("log", "a"), ("error", "b")]),
        ("process.stdout.write('out\\n'); process.stderr.write('err')", [("log", "out"), ("error", "err")]),
        ("await Promise.all([1, 2].map(async (n) => { await null; console.log(n) }))", [("log", "1"), ("log", "2")]),
    ],
)  # fmt: skip
def test_a_line_is_kept_as_the_console_shows_it(
    run: Run, statement: str, lines: list[tuple[str, str]] | None
) -> None:
    result = run(handler(statement))
    assert result.ok, result
    assert lines is None or [(line.level, line.text) for line in result.log] == lines


def test_times_run_from_the_start_of_the_call(run: Run) -> None:
    result = run(handler("console.log(1); await new Promise((r) => setTimeout(r, 50)); console.log(2)"))
    first, second = (line.offset_ms for line in result.log)
    assert 0 <= first < second <= result.duration_ms
    assert second - first >= 49


def test_what_the_code_says_while_it_loads_belongs_to_the_first_call(run: Run) -> None:
    result = run(f"console.log('loading'); {handler('console.log(1)')}")
    assert [line.text for line in result.log] == ["loading", "1"]


def test_an_error_is_logged_with_its_stack(run: Run) -> None:
    result = run(handler("console.error('failed:', new RangeError('x'))"))
    assert result.log[0].text.startswith("failed: RangeError: x\n    at handler (index.ts:1:")


@pytest.mark.parametrize(
    ("reason", "text"),
    [("new Error('nobody waits')", "nobody waits\nError: nobody waits\n    at handler (index.ts:"), ("{a: 1}", '{\n  "a": 1\n}')],
)  # fmt: skip
def test_a_promise_nobody_awaits_is_told_in_the_log(run: Run, reason: str, text: str) -> None:
    result = run(handler(f"Promise.reject({reason}); await new Promise((r) => setTimeout(r, 20)); return 1"))
    assert (result.ok, result.value) == (True, 1)
    (line,) = result.log
    assert line.level == "error"
    assert line.text.startswith(f"Unhandled rejection: {text}")


def test_a_flood_keeps_its_head_and_tail_and_says_how_much_is_missing(run: Run) -> None:
    result = run(handler("for (let i = 0; i < 100000; i++) console.log('line ' + i)"))
    assert result.ok
    assert [line.text for line in result.log[:1000]] == [f"line {i}" for i in range(1000)]
    assert result.log[1000].text == "… 98900 more lines were left out here …"
    assert [line.text for line in result.log[1001:]] == [f"line {i}" for i in range(99900, 100000)]


def test_a_flood_of_long_lines_is_cut_in_each_line_and_in_all(run: Run) -> None:
    result = run(handler("for (let i = 0; i < 1000; i++) console.log('x'.repeat(1e6))"))
    assert result.log[0].text == f"{'x' * 16384}… (983616 more characters left out)"
    assert sum(len(line.text) for line in result.log) < 200_000
    assert any("more lines were left out" in line.text for line in result.log)


def test_a_flood_that_never_ends_is_kept_up_to_the_kill(run: Run) -> None:
    result = run(handler("for (let i = 0; ; i++) console.log('line ' + i)"), timeout=1)
    assert result.failure == "timeout"
    assert result.log[0].text == "line 0"
    assert result.log[1000].text.startswith("… ")
    assert len(result.log) == 1101


def test_the_log_up_to_a_kill_is_kept(run: Run) -> None:
    result = run(handler("console.log('before'); for (;;);"), timeout=0.3)
    assert (result.failure, result.error) == ("timeout", "The bot was stopped at its time limit of 0.3 s.")
    assert [line.text for line in result.log] == ["before"]
    assert result.duration_ms >= 300
