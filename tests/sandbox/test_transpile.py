"""Source to runnable code: the module system, and problems with their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from bots.sandbox.api import Problem, Transpiled, transpile
from console.assets import esbuild


def made(source: str, filename: str = "index.ts") -> Transpiled:
    result = transpile(source, filename, esbuild())
    assert isinstance(result, Transpiled), result
    return result


@pytest.mark.parametrize(
    ("filename", "source", "module"),
    [
        ("index.ts", "export const handler = 1", "esm"),
        ("index.ts", "import { a } from 'a'; export const handler = a", "esm"),
        ("index.ts", "export { x as handler } from './x'", "esm"),
        ("index.ts", "export * from './x'; export default 1", "esm"),
        ("index.ts", "exports.handler = 1", "commonjs"),
        ("index.ts", "import { a } from 'a'; exports.handler = a", "commonjs"),
        ("index.ts", "export const handler = 1; module.exports = { handler }", "commonjs"),
        ("index.ts", "const x = 1", "commonjs"),
        ("index.ts", "", "commonjs"),
        ("index.js", "// export\nexports.handler = 'export const x'", "commonjs"),
        ("index.js", "export async function handler() {}", "esm"),
        ("index.mjs", "const x = 1", "esm"),
        ("index.cjs", "exports.handler = 1", "commonjs"),
        ("index.cjs", "export const handler = 1", "commonjs"),
        ("index.mts", "const x: number = 1", "esm"),
        ("index.cts", "exports.x = 1 as number", "commonjs"),
        ("bot", "exports.handler = 1", "commonjs"),
    ],
)
def test_the_module_system_is_decided_as_medplum_does(filename: str, source: str, module: str) -> None:
    assert made(source, filename).module == module


@pytest.mark.parametrize(
    "source",
    [
        "exports.handler = async () => 1 // kept\n\n\n/* as */ ;",
        "export const handler = () => 1;\r\n",
        "#!/usr/bin/env node\nexports.handler = 1",
    ],
)
def test_javascript_stays_as_it_was_written(source: str) -> None:
    assert made(source, "index.js").code == source


@pytest.mark.parametrize(
    "source",
    ["exports.handler = typeof require", "export const handler = () => require", "require.main === module"],
)
def test_only_what_the_code_imports_is_an_import(source: str) -> None:
    assert made(f"import 'path';\n{source}", "index.js").imports == ("path",)


def test_typescript_carries_a_map_without_its_source() -> None:
    code = made("const secretName: string = 'x'; export const handler = () => secretName").code
    assert "//# sourceMappingURL=data:application/json;base64," in code
    assert ": string" not in code


@pytest.mark.parametrize(
    ("filename", "source", "problems"),
    [
        ("index.ts", "let x: = 1", [Problem(1, 8, 'Unexpected "="')]),
        ("index.ts", "const a = 1;\n\n  foo(;", [Problem(3, 7, 'Unexpected ";"')]),
        ("index.js", "let x: number = 1", [Problem(1, 6, "Expected \";\" but found \":\"")]),
        ("index.js", "const x = 1;\nconst x = 2;", [Problem(2, 7, 'The symbol "x" has already been declared')]),
        ("index.js", "export const handler = () => {", [Problem(1, 31, 'Unexpected end of file')]),
        ("index.cjs", "const x = await 1; import 'y'; exports.handler = x", [Problem(1, 11, 'Top-level await is currently not supported with the "cjs" output format')]),
        ("index.ts", "'unterminated", [Problem(1, 14, "Unterminated string literal")]),
        ("index.ts", "/* ä👋 */ let x: = 1", [Problem(1, 18, 'Unexpected "="')]),
        ("ä ö.ts", "let x: = 1", [Problem(1, 8, 'Unexpected "="')]),
    ],
)  # fmt: skip
def test_a_problem_is_told_with_its_place(filename: str, source: str, problems: list[Problem]) -> None:
    assert transpile(source, filename, esbuild()) == problems


def test_every_problem_is_told() -> None:
    problems = transpile(
        "const a = 1; const a = 2;\nconst b = 1; const b = 2;\nconst c = 1; const c = 2;", "a.js", esbuild()
    )
    assert isinstance(problems, list)
    assert [problem.line for problem in problems] == [1, 2, 3]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.ts", "-rf.ts", "a\nb.ts", "x" * 300 + ".ts", "--bundle", "con fig.ts"]
)
def test_a_strange_file_name_is_only_a_name(name: str) -> None:
    assert made("export const handler = () => 1", name).module == "esm"


def test_files_of_the_server_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"a": "the secret"}')
    for source in (
        f'import x from "{secret}"; exports.handler = x',
        f'import x from "{secret}" with {{type: "text"}}; export const handler = x',
        f'exports.handler = require("{secret}")',
        f'export * from "{secret}"; export const handler = 1',
        f"export const handler = 1\n//# sourceMappingURL={secret}",
    ):
        assert "the secret" not in made(source).code


def test_code_that_takes_too_long_to_compile_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bots.sandbox.transpile.TIMEOUT_SECONDS", 1e-6)
    problems = transpile("1", "a.js", esbuild())
    assert problems == [Problem(0, 0, "The code could not be compiled within 1e-06 s.")]
