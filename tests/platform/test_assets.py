"""``manage.py assets``: builds with nothing but Python's own packages on the PATH, and only what is stale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from console.assets import STEPS, AssetsError, are_stale, install_packages

ROOT = Path(__file__).resolve().parent.parent.parent


def run(target: Path, path: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": path,
        "HOME": os.environ.get("HOME", "/"),
        "FHIRBOTS_ASSETS": str(target),
        "SECRET_KEY": "for a build only",
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    }
    return subprocess.run(
        [sys.executable, "manage.py", "assets"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_everything_is_built_without_node_and_without_a_database(tmp_path: Path, assets: None) -> None:
    built = run(tmp_path / "assets", path="/nonexistent")
    assert built.returncode == 0, built.stderr
    assert [line.strip() for line in built.stdout.splitlines()] == [step.label for step in STEPS]
    manifest = json.loads((tmp_path / "assets/collected/staticfiles.json").read_text())
    assert len(manifest["paths"]) > 10
    again = run(tmp_path / "assets", path="/nonexistent")
    assert again.returncode == 0
    assert again.stdout == ""
    shutil.rmtree(tmp_path / "assets/definitions")
    repaired = run(tmp_path / "assets", path="/nonexistent")
    assert [line.strip() for line in repaired.stdout.splitlines()] == ["Compiling the FHIR definitions"]


def test_the_assets_of_this_run_are_fresh_and_their_static_files_compressed(assets: None) -> None:
    assert not are_stale()
    collected: Path = settings.STATIC_ROOT
    scripts = [file for file in collected.rglob("*.js") if file.stat().st_size > 100_000]
    assert scripts
    for script in scripts:
        assert script.with_name(script.name + ".br").stat().st_size < script.stat().st_size / 2
        assert script.with_name(script.name + ".gz").exists()


def test_a_registry_out_of_reach_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("package.json", "deno.lock"):
        shutil.copy(ROOT / "tests/browser" / name, tmp_path)
    monkeypatch.setenv("DENO_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/")
    with pytest.raises(AssetsError, match="is the npm registry within reach") as refused:
        install_packages(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("folder", [".", "tests/browser"])
def test_lock_files_name_no_host(folder: str) -> None:
    text = (ROOT / folder / "deno.lock").read_text()
    assert "http" not in text
    assert "tarball" not in text
