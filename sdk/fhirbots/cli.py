"""The ``fhirbots`` command: create, save, deploy and execute Bots, read their logs, and give them packages.

It reads the same ``medplum.config.json`` and the same environment as ``@medplum/cli``, and works for Bots in Python, JavaScript
and TypeScript. Whatever fails makes the exit code 1; a wrong use of the command 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fhirbots import __version__
from fhirbots.config import (
    CONFIG_FILE,
    BotConfig,
    ConfigError,
    add_bot,
    environment,
    matching,
    read_bots,
)
from fhirbots.deploying import add_wheel, create_bot, deploy_bot, list_wheels, remove_wheel, save_bot
from fhirbots.errors import OperationOutcomeError, text_of
from fhirbots.sync_client import SyncMedplumClient
from fhirbots.transport import TransportError

DEFAULT_BASE_URL = "http://127.0.0.1:8000/"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except OperationOutcomeError as error:
        return _fail(str(error))
    except TransportError as error:
        return _fail(f"The server does not answer: {error}")
    except ConfigError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "))
    except KeyboardInterrupt:
        return 130


# Commands -------------------------------------------------------------------------------------------------------------


def _create(options: argparse.Namespace) -> int:
    source = Path(options.source)
    bot = BotConfig(options.name, "", options.source, options.dist)
    for path in (source, bot.code):
        path.read_bytes()  # before anything is made on the server
    medplum = _client(options)
    project = _project_of(medplum) if options.project == "-" else options.project
    made = create_bot(medplum, project, options.name, options.runtime_version)
    print(f"Created Bot/{made['id']}")
    bot = BotConfig(options.name, made["id"], options.source, options.dist)
    if options.write_config:
        add_bot(Path(options.config), bot)
    save_bot(medplum, bot.id, source)
    _tell(deploy_bot(medplum, bot.id, bot.code))
    return 0


def _save(options: argparse.Namespace) -> int:
    def save(medplum: SyncMedplumClient, bot: BotConfig) -> None:
        saved = save_bot(medplum, bot.id, Path(bot.source))
        print(f"Saved {bot.name} [{bot.id}], version {saved.get('meta', {}).get('versionId')}")

    return _for_each(options, "saved", save)


def _deploy(options: argparse.Namespace) -> int:
    def deploy(medplum: SyncMedplumClient, bot: BotConfig) -> None:
        save_bot(medplum, bot.id, Path(bot.source))
        outcome = deploy_bot(medplum, bot.id, bot.code)
        print(f"Deployed {bot.name} [{bot.id}]")
        _tell(outcome)

    return _for_each(options, "deployed", deploy)


def _execute(options: argparse.Namespace) -> int:
    bot_id = _bot_id(options)
    if options.data is not None:
        body = options.data.encode()
    elif options.input == "-":
        body = sys.stdin.buffer.read()
    else:
        body = Path(options.input).read_bytes() if options.input else b"{}"
    content_type = options.content_type or _type_of(body)
    medplum = _client(options)
    answer = medplum.request("POST", medplum.fhir_url("Bot", bot_id, "$execute"), body, content_type)
    if "json" in answer.content_type and answer.body:
        print(json.dumps(answer.json(), indent=2, ensure_ascii=False))
    elif answer.content_type.startswith("text/") or "hl7" in answer.content_type:
        print(answer.text.replace("\r", "\n").rstrip("\n"))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(answer.body)
        sys.stdout.buffer.flush()
    return 0


def _logs(options: argparse.Namespace) -> int:
    medplum, bot_id = _client(options), _bot_id(options)
    query = {"entity": f"Bot/{bot_id}", "_sort": "-_lastUpdated", "_count": options.count}
    shown: set[str] = set()
    while True:
        events = [
            event for event in medplum.search_resources("AuditEvent", query) if event["id"] not in shown
        ]
        for event in reversed(events):
            shown.add(event["id"])
            _show(event)
        if not options.follow:
            return 0
        sys.stdout.flush()
        time.sleep(1)


def _list(options: argparse.Namespace) -> int:
    for bot in read_bots(Path(options.config)):
        print(f"{bot.name}\t{bot.id}\t{bot.source}" + (f"\t{bot.dist}" if bot.dist else ""))
    return 0


def _whoami(options: argparse.Namespace) -> int:
    medplum = _client(options)
    profile, project = medplum.get_profile_now() or {}, medplum.get_project() or {}
    print(f"Server:  {medplum.base_url}")
    print(f"Profile: {profile.get('resourceType')}/{profile.get('id')}")
    print(f"Project: {project.get('name')} (Project/{project.get('id')})")
    return 0


def _add_wheels(options: argparse.Namespace) -> int:
    medplum = _client(options)
    project = options.project or _project_of(medplum)
    for file in options.files:
        added = add_wheel(medplum, project, Path(file))
        print(f"Added {added['filename']}. Bots can import it from their next deployment on.")
    return 0


def _list_wheels(options: argparse.Namespace) -> int:
    medplum = _client(options)
    for wheel in list_wheels(medplum, options.project or _project_of(medplum)):
        print(f"{wheel['name']}\t{wheel['filename']}\t{wheel['added']}")
    return 0


def _remove_wheel(options: argparse.Namespace) -> int:
    medplum = _client(options)
    remove_wheel(medplum, options.project or _project_of(medplum), options.name)
    print(f"Removed {options.name}. Bots keep it until their next deployment.")
    return 0


# Parts of commands ----------------------------------------------------------------------------------------------------


def _for_each(
    options: argparse.Namespace, done: str, action: Callable[[SyncMedplumClient, BotConfig], None]
) -> int:
    """Do something to every Bot the name matches; one that fails does not stop the others."""
    bots = matching(read_bots(Path(options.config)), options.name)
    if not bots and "*" not in options.name:
        return _fail(f"{options.config} has no Bot named {options.name}")
    failed: list[str] = []
    if bots:
        medplum = _client(options)
        for bot in bots:
            try:
                action(medplum, bot)
            except OperationOutcomeError as error:
                failed.append(f"{bot.name} [{bot.id}]")
                for issue in error.outcome.get("issue") or ():
                    _fail(f"{bot.name}: {text_of({'issue': [issue]})}")
            except OSError as error:
                failed.append(f"{bot.name} [{bot.id}]")
                _fail(f"{bot.name}: {error.filename}: {error.strerror}")
    if "*" in options.name:
        print(f"{len(bots)} matched, {len(bots) - len(failed)} {done}, {len(failed)} failed")
    if failed:
        _fail("Failed: " + ", ".join(failed))
    return 1 if failed else 0


def _client(options: argparse.Namespace) -> SyncMedplumClient:
    """Options before the environment before ``.env`` before the default."""
    env = environment(Path.cwd())
    token = options.access_token or env.get("MEDPLUM_CLIENT_ACCESS_TOKEN")
    client_id = options.client_id or env.get("MEDPLUM_CLIENT_ID")
    secret = options.client_secret or env.get("MEDPLUM_CLIENT_SECRET")
    if not token and not (client_id and secret):
        raise ConfigError(
            "Who are you? Set MEDPLUM_CLIENT_ID and MEDPLUM_CLIENT_SECRET, in the environment or in .env, or give --client-id "
            "and --client-secret."
        )
    return SyncMedplumClient(
        options.base_url or env.get("MEDPLUM_BASE_URL") or DEFAULT_BASE_URL,
        access_token=token,
        client_id=None if token else client_id,
        client_secret=None if token else secret,
        headers={"user-agent": f"fhirbots-cli/{__version__}"},
        fhir_path=env.get("MEDPLUM_FHIR_URL_PATH") or "fhir/R4",
    )


def _project_of(medplum: SyncMedplumClient) -> str:
    medplum.get_profile_now()
    project = medplum.get_project()
    if project is None:
        raise ConfigError(
            "The server does not say which project this client belongs to: give it with --project"
        )
    return str(project["id"])


def _bot_id(options: argparse.Namespace) -> str:
    """The id of the Bot with a name in the configuration file; else the name is the id."""
    path = Path(options.config)
    named = [bot for bot in read_bots(path) if bot.name == options.name] if path.exists() else []
    return named[0].id if named else str(options.name)


def _type_of(body: bytes) -> str:
    """JSON, HL7 v2 or text, by how it begins."""
    if body.startswith(b"MSH"):
        return "x-application/hl7-v2+er7"
    return "application/json" if body.lstrip()[:1] in (b"{", b"[") else "text/plain"


def _show(event: dict[str, Any]) -> None:
    outcome = "ok" if event.get("outcome") == "0" else "failed"
    print(f"{event.get('recorded', '')}  {outcome}  AuditEvent/{event['id']}")
    for line in (event.get("outcomeDesc") or "").splitlines():
        print(f"    {line}")


def _tell(outcome: dict[str, Any]) -> None:
    for issue in outcome.get("issue") or ():
        if issue.get("severity") == "warning":
            _fail(f"Warning: {text_of({'issue': [issue]})}")


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


# Options --------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fhirbots", description="Create, save, deploy and execute Bots, and read their logs."
    )
    parser.add_argument("--version", action="version", version=f"fhirbots {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--base-url", help=f"of the server (MEDPLUM_BASE_URL, default {DEFAULT_BASE_URL})")
    common.add_argument("--client-id", help="of a ClientApplication (MEDPLUM_CLIENT_ID)")
    common.add_argument("--client-secret", help="of it (MEDPLUM_CLIENT_SECRET)")
    common.add_argument("--access-token", help="instead of id and secret (MEDPLUM_CLIENT_ACCESS_TOKEN)")
    common.add_argument("--config", default=CONFIG_FILE, help="configuration file (default %(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    bot = commands.add_parser("bot", help="work with Bots").add_subparsers(required=True, metavar="ACTION")
    create = bot.add_parser("create", parents=[common], help="create a Bot, save and deploy its code")
    create.add_argument("name")
    create.add_argument("project", metavar="PROJECT", help="id of its project; - is the client's own")
    create.add_argument("source", help="file with the code")
    create.add_argument("dist", nargs="?", help="file to deploy, where it is not the source itself")
    create.add_argument(
        "--runtime-version", help="Bot.runtimeVersion: vmcontext or awslambda, for servers that mind"
    )
    create.add_argument(
        "--no-write-config",
        dest="write_config",
        action="store_false",
        help="do not add it to the configuration file",
    )
    create.set_defaults(run=_create)
    for name, run, text in (
        ("save", _save, "save the code of the Bots that NAME matches, without deploying it"),
        ("deploy", _deploy, "save and deploy the Bots that NAME matches"),
    ):
        action = bot.add_parser(name, parents=[common], help=text)
        action.add_argument(
            "name", metavar="NAME", help="name in the configuration file; * stands for anything"
        )
        action.set_defaults(run=run)
    execute = bot.add_parser("execute", parents=[common], help="run a Bot and print what it answers")
    execute.add_argument("name", metavar="NAME", help="name in the configuration file, or an id")
    execute.add_argument("--input", metavar="FILE", help="input; - reads it from the terminal (default: {})")
    execute.add_argument("--data", metavar="TEXT", help="input, on the command line")
    execute.add_argument("--content-type", help="of the input (default: by how it begins)")
    execute.set_defaults(run=_execute)
    logs = bot.add_parser("logs", parents=[common], help="print the latest runs of a Bot, oldest first")
    logs.add_argument("name", metavar="NAME", help="name in the configuration file, or an id")
    logs.add_argument("--count", type=int, default=10, help="how many runs (default %(default)s)")
    logs.add_argument("--follow", "-f", action="store_true", help="go on with new ones until Ctrl-C")
    logs.set_defaults(run=_logs)
    listed = bot.add_parser("list", parents=[common], help="print the Bots of the configuration file")
    listed.set_defaults(run=_list)
    wheel = commands.add_parser("wheel", help="packages that Python Bots can import").add_subparsers(
        required=True, metavar="ACTION"
    )
    of_project = argparse.ArgumentParser(add_help=False, parents=[common])
    of_project.add_argument("--project", help="id of the project (default: the client's own)")
    add = wheel.add_parser(
        "add", parents=[of_project], help="add pure-Python wheels to the project, or replace them"
    )
    add.add_argument("files", metavar="FILE", nargs="+", help="a file *-py3-none-any.whl")
    add.set_defaults(run=_add_wheels)
    listed = wheel.add_parser("list", parents=[of_project], help="print the wheels of the project")
    listed.set_defaults(run=_list_wheels)
    remove = wheel.add_parser("remove", parents=[of_project], help="take a wheel off the project")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_remove_wheel)
    whoami = commands.add_parser("whoami", parents=[common], help="print server, profile and project")
    whoami.set_defaults(run=_whoami)
    return parser


if __name__ == "__main__":
    sys.exit(main())
