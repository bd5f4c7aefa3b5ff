"""What is built for browsers, and how templates use it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.template.loader import get_template

from console.frontend import ICONS, FrontendError, build_frontend, strip_comments

TEMPLATES = Path(settings.BASE_DIR) / "templates"
STATIC = Path(settings.BASE_DIR) / "static"
ALL = sorted(TEMPLATES.rglob("*.html"))
NAMES = [str(path.relative_to(TEMPLATES)) for path in ALL]


def vendor(name: str) -> Path:
    return Path(settings.ASSETS_DIR) / "static/vendor" / name


def test_the_vendor_files_are_there_without_source_maps() -> None:
    for name in ("monaco/editor.js", "monaco/editor.css", "monaco/editor.worker.js", "monaco/json.worker.js"):
        assert b"sourceMappingURL" not in vendor(name).read_bytes()[-500:]
    assert b"sourceMappingURL" not in vendor("tabler/tabler.css").read_bytes()
    # The compiler's own code speaks of source maps; it must be whole.
    assert b"# sourceMappingURL=" in vendor("monaco/ts.worker.js").read_bytes()
    assert vendor("monaco/LICENSE.txt").exists()


def test_the_editor_knows_the_client_and_the_fhir_types() -> None:
    core, fhir = vendor("types/core.d.ts").read_text(), vendor("types/fhirtypes.d.ts").read_text()
    assert "export declare class MedplumClient" in core
    assert "export declare interface BotEvent" in core
    assert "export interface Patient {" in fhir
    assert "import type" not in fhir
    assert "/*" not in fhir
    assert len(fhir) < 400_000
    assert len(core) < 200_000


def test_comments_go_and_strings_stay() -> None:
    source = "/** x */ type A = 'http://a' | \"b // c\"; // end\n\n/* y\n */\ntype B = `//`;\n"
    assert strip_comments(source) == "type A = 'http://a' | \"b // c\";\ntype B = `//`;\n".replace(
        "type A", " type A"
    )


def test_a_missing_package_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FrontendError, match="cannot be built"):
        build_frontend(tmp_path, Path("/bin/false"), tmp_path / "out")


def test_the_sprite_holds_exactly_the_icons_in_use() -> None:
    sprite = vendor("icons.svg").read_text()
    assert set(re.findall(r'symbol id="([^"]+)"', sprite)) == set(ICONS)
    sources = [path.read_text() for path in ALL]
    sources += [
        (Path(settings.BASE_DIR) / "console" / name).read_text()
        for name in ("navigation.py", "templatetags/console.py")
    ]
    used = {icon for text in sources for icon in ICONS if re.search(rf"""["']{re.escape(icon)}["']""", text)}
    assert set(ICONS) - used == set()
    named = {
        name for path in ALL for name in re.findall(r'(?:{% icon |icon=)"([a-z0-9-]+)"', path.read_text())
    }
    assert named <= set(ICONS)


@pytest.mark.parametrize("name", NAMES)
def test_templates_have_no_inline_script_style_or_foreign_host(name: str) -> None:
    text = (TEMPLATES / name).read_text()
    get_template(name)  # it parses
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)
    assert not re.search(r"\sstyle=|<style|\son[a-z]+=|hx-on|javascript:", text)
    assert not re.search(r"""(?:href|src)=["']https?://""", text)
    assert "|safe" not in text


def test_framework_classes_stand_only_in_components_and_base_templates() -> None:
    own = set(re.findall(r"\.([a-z][a-z0-9-]*)", (STATIC / "css/console.css").read_text()))
    framework = {
        "btn",
        "form-control",
        "form-select",
        "card",
        "card-header",
        "card-body",
        "card-title",
        "form-check-input",
    }
    foreign = {}
    for path in ALL:
        if path.parent.name == "components" or path.name.startswith("base"):
            continue
        text = re.sub(r"{[%{].*?[%}]}", " ", path.read_text())
        classes = {word for value in re.findall(r'class="([^"]*)"', text) for word in value.split()}
        wrong = {word for word in classes if word not in own - framework and not word.endswith("-")}
        if wrong:
            foreign[path.name] = wrong
    assert foreign == {}


def test_every_template_is_used() -> None:
    sources = [path.read_text() for path in ALL]
    sources += [path.read_text() for path in (Path(settings.BASE_DIR) / "console").rglob("*.py")]
    text = "\n".join(sources)
    unused = []
    for name in NAMES:
        component = name.removeprefix("components/").removesuffix(".html")
        if name not in text and not re.search(rf'{{% (?:ui|component) "{component}"', text):
            unused.append(name)
    assert unused == []


def test_own_files_keep_their_budget() -> None:
    assert len((STATIC / "js/app.js").read_bytes()) < 6 * 1024
    assert len((STATIC / "css/console.css").read_text().splitlines()) < 260
