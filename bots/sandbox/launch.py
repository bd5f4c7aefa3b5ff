"""Starts a bot process: confines itself (:mod:`bots.sandbox.confinement`), then becomes the program it was given.

Run by path in a bare interpreter, so that the host, which has threads, never runs Python between fork and exec::

    python -I -S launch.py <parent pid> <memory>/<address space> <executable paths> <readable paths> [<command> …]

Memory is in bytes, paths are separated by ``:``; the command gets this process's environment. Without a command the layers in force are
printed, one on a line: name, ``+`` or ``-``, detail, separated by tabs. Every import here is paid by every process.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Confine this process and replace it by the command."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib is slow to import
    from confinement import Rules, confine  # type: ignore[import-not-found]  # found by path, not by package

    parent, memory, executable, readable, *command = sys.argv[1:]
    os.chdir("/")
    os.umask(0o077)
    private, _, space = memory.partition("/")
    layers = confine(Rules(int(parent), int(private), _paths(executable), _paths(readable), int(space or 0)))
    if command:
        os.execv(command[0], command)  # noqa: S606 - this is what it is for
    for layer in layers:
        sys.stdout.write(f"{layer.name}\t{'+' if layer.active else '-'}\t{layer.detail}\n")


def _paths(joined: str) -> list[str]:
    return joined.split(":") if joined else []


if __name__ == "__main__":
    main()
