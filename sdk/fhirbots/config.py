"""What the command reads: ``medplum.config.json``, the environment and ``.env``. The same as ``@medplum/cli``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_FILE = "medplum.config.json"
_LINE = re.compile(r"\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<value>.*?)\s*$")


class ConfigError(Exception):
    """A file that cannot be used; the text is one sentence for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class BotConfig:
    """A Bot of ``medplum.config.json``. ``dist`` is what is deployed, where it is not the source itself."""

    name: str
    id: str
    source: str
    dist: str | None = None

    @property
    def code(self) -> Path:
        """The file that is deployed."""
        return Path(self.dist or self.source)


def read_bots(path: Path) -> list[BotConfig]:
    """The Bots that a configuration file lists; raises :class:`ConfigError`."""
    bots = _read(path).get("bots") or []
    try:
        return [
            BotConfig(str(bot["name"]), str(bot["id"]), str(bot["source"]), bot.get("dist") or None)
            for bot in bots
        ]
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path}: each of its bots needs a name, an id and a source") from None


def add_bot(path: Path, bot: BotConfig) -> None:
    """Append a Bot to a configuration file, which is made if there is none; raises :class:`ConfigError`."""
    config = _read(path) if path.exists() else {}
    entry = {"name": bot.name, "id": bot.id, "source": bot.source} | ({"dist": bot.dist} if bot.dist else {})
    config.setdefault("bots", []).append(entry)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def matching(bots: list[BotConfig], pattern: str) -> list[BotConfig]:
    """The Bots whose name matches; ``*`` stands for any characters, all others for themselves."""
    expression = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    return [bot for bot in bots if expression.fullmatch(bot.name)]


def environment(folder: Path) -> Mapping[str, str]:
    """The environment, with what ``.env`` in the folder adds to it."""
    try:
        lines = (folder / ".env").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return os.environ
    found: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match and not line.lstrip().startswith("#"):
            found[match["name"]] = _unquoted(match["value"])
    return found | os.environ


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return re.split(r"\s+#", value, maxsplit=1)[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no {path} here. `fhirbots bot create` makes one.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return config
