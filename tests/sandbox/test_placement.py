"""Files of bot processes are put where an unprivileged user can reach them, and nobody else can change them."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from bots.sandbox import placement
from bots.sandbox.api import SandboxPool, deno_path
from tests.sandbox.conftest import invocation, no_answer, program


@pytest.fixture
def private_runtime(runtime: Path, tmp_path: Path) -> Path:
    """A copy of the runtime in a folder only its owner may enter."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    copy = folder / "runtime"
    shutil.copytree(runtime, copy)
    return copy


def test_what_everybody_reaches_stays_where_it_is(runtime: Path, open_folder: Path) -> None:
    shared = open_folder / "shared"
    shared.mkdir(0o755)
    shared.chmod(0o755)
    deno = shared / "deno"
    shutil.copy(deno_path(), deno)
    shutil.copytree(runtime, shared / "runtime", ignore=shutil.ignore_patterns("cache-*"))
    for path in (shared / "runtime", *(shared / "runtime").rglob("*")):
        path.chmod(0o755)
    placed = placement.place(deno, shared / "runtime")
    assert (placed.deno, placed.runtime) == (deno, shared / "runtime")
    assert list(open_folder.iterdir()) == [shared]


def test_a_private_runtime_is_copied_once_per_content(private_runtime: Path, open_folder: Path) -> None:
    first = placement._copy(private_runtime)
    assert first.parent == open_folder / f"fhirbots-sandbox-{os.geteuid()}"
    assert placement._copy(private_runtime) == first
    assert placement.reachable(first)
    assert all(placement.reachable(path) for path in first.rglob("*"))
    assert (first / "main.mjs").read_bytes() == (private_runtime / "main.mjs").read_bytes()
    assert stat.S_IMODE(first.stat().st_mode) == 0o755
    (private_runtime / "main.mjs").write_text("changed")
    assert placement._copy(private_runtime) != first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
def test_bots_run_from_a_private_folder_of_root(private_runtime: Path, open_folder: Path) -> None:
    with SandboxPool(size=1, spare=0, deno=deno_path(), runtime=private_runtime) as pool:
        assert pool.run(invocation(program("export const handler = () => 1")), no_answer).value == 1
    assert any((open_folder / f"fhirbots-sandbox-{os.geteuid()}").glob("runtime-*"))


@pytest.mark.parametrize("trap", ["link", "file", "writable"])
def test_a_folder_somebody_else_prepared_is_not_used(
    private_runtime: Path, open_folder: Path, trap: str
) -> None:
    taken = open_folder / f"fhirbots-sandbox-{os.geteuid()}"
    elsewhere = open_folder / "elsewhere"
    elsewhere.mkdir()
    if trap == "link":
        taken.symlink_to(elsewhere)
    elif trap == "file":
        taken.touch()
    else:
        taken.mkdir()
        taken.chmod(0o777)
    copy = placement._copy(private_runtime)
    assert copy.parent != taken
    assert copy.parent.name.startswith("fhirbots-sandbox-")
    assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o755
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_used(private_runtime: Path, open_folder: Path) -> None:
    taken = open_folder / f"fhirbots-sandbox-{os.geteuid()}"
    taken.mkdir(mode=0o755)
    os.chown(taken, 1000, 1000)
    assert placement._copy(private_runtime).parent != taken


def test_a_private_folder_for_temporary_files_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    assert placement._open_folder() != private
