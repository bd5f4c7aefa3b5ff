"""The operating system's part of the sandbox: layers a process puts on itself before it becomes a bot process.

Deno without permissions is the first wall; these layers are the second one, and hold when the first has a hole. None of
them needs a privilege. The file uses the standard library only, because :mod:`bots.sandbox.launch` runs it in a bare
interpreter, and every layer reports whether it is in force: on systems without it the rest still applies.

=================  =====================================================================================
parent death       the process is killed when the thread that started it ends, however the host dies
limits             resource limits: private memory, descriptors, no core dumps
user               when root: another, unprivileged user; if that cannot be, no capabilities
no new privileges  set-uid programs give nothing
landlock           no file but the listed ones, nothing written anywhere, no TCP, no signals to others
seccomp            no sockets, no new processes, no debugging, no kernel interfaces a bot process never needs
=================  =====================================================================================
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

UNPRIVILEGED_ID = 65533
"""User and group of bot processes when the host runs as root: no account of any distribution, and below 65536, so that
it exists in the user namespace of a container too."""

_SIGKILL = 9
_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2


# Plain classes, and no import that can be avoided: dataclasses alone would take longer than all the layers together.


class Layer:
    """One layer: ``name`` as in the table above, whether it is ``active``, and a ``detail`` for people."""

    def __init__(self, name: str, active: bool, detail: str = "") -> None:
        self.name = name
        self.active = active
        self.detail = detail


class Rules:
    """What a process is confined to. ``memory`` is in bytes; the paths are files or folders.

    ``address_space``, in bytes, is for programs without a compiler that reserves gigabytes: it also counts memory that is
    shared, which ``memory`` does not. 0 is no limit.
    """

    def __init__(
        self,
        parent: int,
        memory: int,
        executable: Sequence[str],
        readable: Sequence[str],
        address_space: int = 0,
    ) -> None:
        self.parent = parent
        self.memory = memory
        self.address_space = address_space
        self.executable = executable
        self.readable = readable
        self.devices = ("/dev/null", "/dev/urandom", "/dev/random")


def confine(rules: Rules) -> list[Layer]:
    """Put every layer this system has on the calling process, which must have one thread only."""
    if sys.platform != "linux":
        missing = f"not available on {sys.platform}"
        names = ("parent death", "no new privileges", "landlock", "seccomp")
        return [_limits(rules), _user(), *(Layer(name, False, missing) for name in names)]
    layers = [_parent_death(rules.parent), _limits(rules)]
    # Files are opened for Landlock before the user changes: rules name inodes, and need no right to them.
    landlock = _landlock_ruleset(rules)
    layers.append(_user())
    _parent_death(rules.parent)  # a change of user clears it
    layers += [_no_new_privileges(), landlock.enforce(), _seccomp()]
    return layers


# Small layers ---------------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: object) -> int:
    """Call a libc function; raises :class:`OSError` when it returns -1."""
    result = int(getattr(_libc, function)(*arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _parent_death(parent: int) -> Layer:
    try:
        _call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    except OSError as error:
        return Layer("parent death", False, str(error))
    if os.getppid() != parent:
        os._exit(1)  # the host died before the signal was arranged
    return Layer("parent death", True)


def _limits(rules: Rules) -> Layer:
    # Not RLIMIT_FSIZE (it would kill a process whose output is a file; Landlock lets nothing be written), and not
    # RLIMIT_NPROC (it counts threads, and all processes of the user together).
    wanted = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 256, resource.RLIMIT_DATA: rules.memory}
    if rules.address_space:
        wanted[resource.RLIMIT_AS] = rules.address_space
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError) as error:  # ValueError: macOS refuses some values
            return Layer("limits", False, str(error))
    return Layer("limits", True, f"{rules.memory >> 20} MB of private memory")


def _user() -> Layer:
    if os.geteuid() != 0:
        return Layer("user", True, f"uid {os.geteuid()}, as the host")
    try:
        os.setgroups([])
        os.setresgid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        os.setresuid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    except OSError as error:
        _drop_capabilities()
        return Layer("user", False, f"still root, without capabilities: {error}")
    return Layer("user", True, f"uid {UNPRIVILEGED_ID}")


def _drop_capabilities() -> None:
    # Each may fail, on capabilities the kernel does not know and where there are none to drop.
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _libc.capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", 0, 0, 0, 0, 0, 0))


def _no_new_privileges() -> Layer:
    try:
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    except OSError as error:
        return Layer("no new privileges", False, str(error))
    return Layer("no new privileges", True)


# Landlock -------------------------------------------------------------------------------------------------------------

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 1, 2, 4, 8
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # number of file rights known since an ABI version
_NET_BIND_AND_CONNECT = 3  # since version 4
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3  # since version 6
_O_PATH = 0o10000000


class _Ruleset:
    def __init__(self, descriptor: int | None, detail: str) -> None:
        self.descriptor = descriptor
        self.detail = detail

    def enforce(self) -> Layer:
        if self.descriptor is None:
            return Layer("landlock", False, self.detail)
        try:
            _call("syscall", _LANDLOCK_RESTRICT, self.descriptor, 0)
        except OSError as error:
            return Layer("landlock", False, str(error))
        os.close(self.descriptor)
        return Layer("landlock", True, self.detail)


def _landlock_ruleset(rules: Rules) -> _Ruleset:
    try:
        version = _call("syscall", _LANDLOCK_CREATE, None, 0, 1)
    except OSError as error:
        return _Ruleset(None, f"not available in this kernel ({error.strerror})")
    handled = (1 << max(count for since, count in _FS_RIGHTS.items() if since <= version)) - 1
    network = _NET_BIND_AND_CONNECT if version >= 4 else 0
    scoped = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    attributes = struct.pack("=QQQ", handled, network, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    try:
        descriptor = _call("syscall", _LANDLOCK_CREATE, attributes, size, 0)
        _allow(descriptor, rules.executable, _FS_EXECUTE | _FS_READ_FILE)
        _allow(descriptor, rules.readable, _FS_READ_FILE | _FS_READ_DIR)
        _allow(descriptor, rules.devices, _FS_READ_FILE | _FS_WRITE_FILE)
    except OSError as error:
        return _Ruleset(None, str(error))
    return _Ruleset(descriptor, f"version {version}")


def _allow(ruleset: int, paths: Iterable[str], rights: int) -> None:
    for path in paths:
        try:
            descriptor = os.open(path, _O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # what is not there needs no right
        try:
            allowed = rights if os.path.isdir(path) else rights & ~_FS_READ_DIR  # noqa: PTH112 - no pathlib in the child
            _call("syscall", _LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, descriptor), 0)
        finally:
            os.close(descriptor)


# seccomp --------------------------------------------------------------------------------------------------------------

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_CLONE_THREAD = 0x00010000
_AF_UNIX = 1

_X86_64 = {
    "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
    "clone": 56, "clone3": 435, "fork": 57, "vfork": 58, "socketpair": 53, "ioctl": 16, "prlimit64": 302, "prctl": 157,
    "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "accept4": 288,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "process_madvise": 440, "kcmp": 312,
    "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "process_mrelease": 448,
    "memfd_create": 319, "memfd_secret": 447, "execveat": 322, "userfaultfd": 323, "perf_event_open": 298,
    "bpf": 321, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "add_key": 248, "request_key": 249, "keyctl": 250, "seccomp": 317,
    "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "open_tree_attr": 467, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320,
    "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163, "quotactl": 179, "quotactl_fd": 443,
    "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "personality": 135,
    "syslog": 103, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305,
    "vhangup": 153, "lookup_dcookie": 212, "uselib": 134, "nfsservctl": 180, "fanotify_init": 300,
    "fanotify_mark": 301, "inotify_init": 253, "inotify_init1": 294, "inotify_add_watch": 254,
    "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semctl": 66, "semtimedop": 220,
    "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "mq_open": 240, "mq_unlink": 241,
    "setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setgroups": 116, "setresuid": 117,
    "setresgid": 119, "setfsuid": 122, "setfsgid": 123, "capset": 126, "migrate_pages": 256, "move_pages": 279,
    "mbind": 237, "set_mempolicy": 238, "set_mempolicy_home_node": 450, "landlock_restrict_self": 446,
    "sendmmsg": 307, "vmsplice": 278,
    "truncate": 76, "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94,
    "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188,
    "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
    "setxattrat": 463, "removexattrat": 466, "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144,
    "sched_setattr": 314, "ioprio_set": 251,
}  # fmt: skip
_AARCH64 = {
    "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
    "clone": 220, "clone3": 435, "socketpair": 199, "ioctl": 29, "prlimit64": 261, "prctl": 167,
    "socket": 198, "connect": 203, "accept": 202, "bind": 200, "listen": 201, "accept4": 242,
    "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "process_madvise": 440, "kcmp": 272,
    "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "process_mrelease": 448,
    "memfd_create": 279, "memfd_secret": 447, "execveat": 281, "userfaultfd": 282, "perf_event_open": 241,
    "bpf": 280, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "add_key": 217, "request_key": 218, "keyctl": 219, "seccomp": 277,
    "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "open_tree_attr": 467, "name_to_handle_at": 264, "open_by_handle_at": 265,
    "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294,
    "reboot": 142, "swapon": 224, "swapoff": 225, "acct": 89, "quotactl": 60, "quotactl_fd": 443,
    "sethostname": 161, "setdomainname": 162, "personality": 92,
    "syslog": 116, "settimeofday": 170, "clock_settime": 112, "adjtimex": 171, "clock_adjtime": 266,
    "vhangup": 58, "lookup_dcookie": 18, "nfsservctl": 42, "fanotify_init": 262,
    "fanotify_mark": 263, "inotify_init1": 26, "inotify_add_watch": 27,
    "shmget": 194, "shmat": 196, "shmctl": 195, "semget": 190, "semop": 193, "semctl": 191, "semtimedop": 192,
    "msgget": 186, "msgsnd": 189, "msgrcv": 188, "msgctl": 187, "mq_open": 180, "mq_unlink": 181,
    "setuid": 146, "setgid": 144, "setreuid": 145, "setregid": 143, "setgroups": 159, "setresuid": 147,
    "setresgid": 149, "setfsuid": 151, "setfsgid": 152, "capset": 91, "migrate_pages": 238, "move_pages": 239,
    "mbind": 235, "set_mempolicy": 237, "set_mempolicy_home_node": 450, "landlock_restrict_self": 446,
    "sendmmsg": 269, "vmsplice": 75,
    "truncate": 45, "fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "fchown": 55, "fchownat": 54, "utimensat": 88, "setxattr": 5,
    "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
    "setxattrat": 463, "removexattrat": 466, "setpriority": 140, "sched_setparam": 118, "sched_setscheduler": 119,
    "sched_setattr": 274, "ioprio_set": 30,
}  # fmt: skip
_FIRST_UNKNOWN = 470
"""System calls from this number on were not known when this was written: they do not exist for a bot process."""


def _seccomp() -> Layer:
    machine = os.uname().machine
    numbers = {"x86_64": _X86_64, "aarch64": _AARCH64}.get(machine)
    if numbers is None:
        return Layer("seccomp", False, f"no filter for {machine}")
    program = _filter(machine, numbers)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    description = struct.pack("=HxxxxxxQ", len(program), ctypes.addressof(code))
    try:
        _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(description), 0, 0)
    except OSError as error:
        return Layer("seccomp", False, str(error))
    return Layer("seccomp", True, f"{len(numbers)} system calls refused or limited")


Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def _filter(machine: str, numbers: dict[str, int]) -> list[Instruction]:
    """The BPF program. It refuses a list instead of allowing one: what V8, Deno and the C library call changes with
    their versions, and a bot process that cannot start protects nobody; unknown calls are refused by their number."""

    def argument(index: int, half: int = 0) -> Instruction:
        return (_LD, 0, 0, 16 + 8 * index + 4 * half)

    refuse: Instruction = (_RET, 0, 0, _ERRNO | errno.EPERM)
    missing: Instruction = (_RET, 0, 0, _ERRNO | errno.ENOSYS)
    allow: Instruction = (_RET, 0, 0, _ALLOW)
    program: list[Instruction] = [
        (_LD, 0, 0, 4),
        (_JEQ, 1, 0, _AUDIT_ARCH[machine]),
        (_RET, 0, 0, _KILL),
        (_LD, 0, 0, 0),
        (_JGE, 0, 1, _FIRST_UNKNOWN),  # also the x32 calls of x86_64
        missing,
    ]
    limited: dict[str, list[Instruction]] = {
        # Signals to itself only (abort, and threads of the runtime): the id stays the same over exec.
        name: [argument(0), (_JEQ, 0, 1, os.getpid()), allow, refuse]
        for name in ("kill", "tgkill")
    }
    limited["clone"] = [argument(0), (_JSET, 0, 1, _CLONE_THREAD), allow, refuse]
    limited["clone3"] = [
        missing
    ]  # its flags are in memory, out of a filter's sight; the C library falls back to clone
    limited["socketpair"] = [argument(0), (_JEQ, 0, 1, _AF_UNIX), allow, refuse]
    limited["prctl"] = [argument(0), (_JEQ, 0, 1, _PR_SET_PDEATHSIG), refuse, allow]
    limited["prlimit64"] = [argument(0), (_JEQ, 0, 1, 0), allow, refuse]
    limited["ioctl"] = [
        argument(1),
        (_JEQ, 1, 0, 0x5412),
        (_JEQ, 0, 1, 0x541C),
        refuse,
        allow,
    ]  # typing for others
    for name, lines in limited.items():
        program += [(_JEQ, 0, len(lines), numbers[name]), *lines]
    for name, number in numbers.items():
        if name not in limited:
            program += [(_JEQ, 0, 1, number), refuse]
    return [*program, allow]
