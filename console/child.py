"""Becomes another program that ends with its parent, as another user if asked: ``python child.py [options] -- command``.

Run as a script (only the standard library, 15 ms) between `fork` and the program, because Python code between the two
is not safe in a process with threads. `console.supervisor` and `console.postgres` start everything through it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int, with_signal: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send `with_signal` to this process when its parent ends (Linux; elsewhere nothing happens).

    Args:
        parent: the parent's process id; when it has gone already, this process ends at once.
        with_signal: must be set again after a change of user.
    """
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)


def adopt_orphans() -> None:
    """Let grandchildren whose parent ends become children of this process (Linux)."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def become(uid: int, gid: int, needed: list[Path]) -> None:
    """Change from root to another user for good.

    Folders that root has closed to others (a 0700 home, a temporary folder) may lie above the `needed` paths. No
    permission is loosened for that: the user keeps one capability, to pass such folders, and nothing else of root's power.

    Raises:
        SystemExit: with one sentence, when a needed path stays out of reach.
    """
    # with this bit, access(2) counts capabilities too: PostgreSQL looks for its own programs by it
    if sys.platform == "linux" and _libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) != 0:
        _libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    try:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    except PermissionError:
        sys.exit("PostgreSQL refuses to run as root, and this system does not let root become another user.")
    # none if that will do; reading and passing is enough else; containers often have only the last, the stronger one
    for capability in (None, CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if _use_capability(capability) and all(os.access(path, os.X_OK) for path in needed):
            return
    closed = next(path for path in needed if not os.access(path, os.X_OK))
    sys.exit(
        f"The user that runs the database (uid {uid}) cannot reach {closed}, and this system grants no capability to "
        "pass the folders above it. Choose another folder with --data, or start fhirbots as a normal user."
    )


def _use_capability(capability: int | None) -> bool:
    """Have this one capability in effect, also after exec; False when it cannot be had.

    The other ones `become` may try stay permitted until exec, which takes away all that is not ambient.
    """
    if sys.platform != "linux":
        return capability is None
    wanted = 0 if capability is None else 1 << capability
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    held = (
        ctypes.c_uint32 * 6
    )()  # effective, permitted, inheritable; then the same for capabilities from 32 on
    _libc.capget(header, held)
    permitted = held[1] & (1 << CAP_DAC_READ_SEARCH | 1 << CAP_DAC_OVERRIDE)
    if (
        wanted & ~permitted
        or _libc.capset(header, (ctypes.c_uint32 * 6)(wanted, permitted, wanted, 0, 0, 0)) != 0
    ):
        return False
    return not wanted or _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) == 0


def main() -> None:
    """Read the options and become the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--user", help="uid:gid")
    parser.add_argument("--needs", action="append", type=Path, default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    if options.user:
        uid, gid = map(int, options.user.split(":"))
        become(uid, gid, options.needs)
    die_with_parent(options.parent, signal.Signals[options.signal])
    os.execv(options.command[0], options.command)  # noqa: S606  that is its purpose


if __name__ == "__main__":
    main()
