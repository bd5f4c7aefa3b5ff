"""The pool: which process runs which call.

Calls are served first in, first out, with these rules:

1. A call of a program takes the program's idle process (warm).
2. If every process of the program is computing, the call waits for one of them. When all of them wait for the host, or
   when the call has waited for :data:`PATIENCE` (they may only be waiting for a timer, which nobody can see from here),
   the program gets a further process; with Pyodide not more than there are processors.
3. Otherwise the call takes a place: a free one, or that of the process that has been idle longest, which is killed. A
   process from the spares (started ahead, waiting for code) fills the place, or a new one if there is none. A process
   with Pyodide takes four places. Spares for Python are kept from its first call on: who has no Python bots pays nothing.
4. If every place is busy, the call waits, and no later call that needs a place overtakes it. Only a call made while its
   thread already has a process (a bot that executes a bot) gets a place beyond the size: else each could wait for the
   other's place for ever.

Two threads serve the pool: one starts all processes (they die with the thread that started them, so it has to be one
that lives as long as the pool) and collects killed ones, one kills processes whose time is up, whatever the thread that
runs the call is doing.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from bots.sandbox.model import DEFAULT_MEMORY_MB, Invocation, Problem, Program, Respond, Result, Runtime
from bots.sandbox.native import NativeLauncher
from bots.sandbox.process import BotProcess, Launcher
from bots.sandbox.stop import Stop

log = logging.getLogger(__name__)

CHECK_SECONDS = 10.0
"""Time for the top level of a bot's code in a dry load."""
KEEP_BYTES: dict[Runtime, int] = {"javascript": 160 << 20, "python": 400 << 20, "native": 160 << 20}
"""A process that holds more memory than this after a call is not kept for the next one."""
PLACES: dict[Runtime, int] = {"javascript": 1, "python": 4, "native": 1}
"""How many places a process takes: Pyodide needs the memory of four others."""
CLOSE_SECONDS = 10.0
"""Time that calls get to end when the pool is closed; their processes are dead by then."""
PATIENCE = 0.1
"""Seconds that a call waits for a process of its program before it wants one of its own."""
_START_ATTEMPTS = 3
_MEMORY_PER_PROCESS_MB = 64

MOST: dict[Runtime, int] = {"python": max(2, os.cpu_count() or 2)}
"""How many processes one program may have: starting Pyodide takes more time of a processor than waiting for the host saves."""

_Key = tuple[tuple[str, ...], int, Runtime]  # program and memory limit


def default_size() -> int:
    """How many bot processes this machine has room for: half of its memory, 64 MB each, between 4 and 64."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # a container may have less; "max" is no number
            memory = min(memory, int(Path(limit).read_text()))
    return max(4, min(64, (memory >> 20) // 2 // _MEMORY_PER_PROCESS_MB))


def default_spare() -> int:
    """How many processes to start ahead: one for each core, between 2 and 8."""
    return max(2, min(8, os.cpu_count() or 2))


class _Ticket:
    """A call that waits for a process."""

    def __init__(self, key: _Key, nested: bool) -> None:
        self.key = key
        self.nested = nested
        self.process: BotProcess | None = None
        self.error: OSError | None = None
        self.done = threading.Event()
        self.has_waited = False
        """For as long as it has patience."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """Numbers of a pool: places; processes that hold a program, and how many of them are idle; processes started ahead;
    calls that wait for a process."""

    size: int
    processes: int
    idle: int
    spares: int
    waiting: int


class _ThreadState(threading.local):
    held = 0
    """Processes that calls of this thread have at present."""


class SandboxPool:
    """Runs bots in confined processes. Safe to use from any number of threads of one operating system process."""

    def __init__(
        self,
        *,
        size: int | None = None,
        spare: int | None = None,
        deno: Path,
        runtime: Path,
        python: Path | None = None,
    ) -> None:
        """``size`` is the number of processes that hold a program, ``spare`` of those started ahead, by default what
        the machine has room for; ``runtime`` is the folder :func:`~bots.sandbox.build.build_runtime` made.

        Raises :class:`OSError`, with a sentence, when Deno or the runtime is not there or does not start.
        """
        self._size = max(1, default_size() if size is None else size)
        self._spare = default_spare() if spare is None else spare
        self._launchers: dict[Runtime, Launcher | NativeLauncher] = {"javascript": Launcher(deno, runtime)}
        self._deno, self._python = deno, python
        self._owner = os.getpid()
        self._thread = _ThreadState()
        self._lock = threading.Lock()
        self._closed = False
        self._waiting: deque[_Ticket] = deque()  # in order of arrival
        self._places = 0  # taken: one for each process with a program, and each ticket that is placed
        self._members: dict[_Key, list[BotProcess]] = {}  # the processes of each program
        self._idle: dict[BotProcess, _Key] = {}  # oldest first
        self._at_host: set[BotProcess] = set()  # busy, but waiting for the host
        self._spares: dict[Runtime, deque[BotProcess]] = {
            "javascript": deque()
        }  # with a key: they are wanted
        self._placed: deque[_Ticket] = deque()  # work for the starter
        self._dead: list[BotProcess] = []  # work for the starter
        self._work = threading.Condition(self._lock)
        self._released = threading.Condition(self._lock)  # of use to close() only
        self._deadlines = _Deadlines()
        self._starter = threading.Thread(target=self._start_processes, name="sandbox-starter", daemon=True)
        self._starter.start()

    # What others call ----------------------------------------------------------------------------------------------

    def run(self, invocation: Invocation, respond: Respond, stop: Stop | None = None) -> Result:
        """Run a bot's handler and wait for its result.

        ``stop`` can end the call before that.
        ``respond`` is called in this thread for each request of the bot. Every way the bot can fail is in the result;
        what ``respond`` raises is raised, after the process has been killed.
        """
        key = (invocation.program.key, invocation.memory_mb, invocation.program.runtime)

        def call(process: BotProcess) -> Result:
            def waiting(at_host: bool) -> None:
                self._note_waiting(process, at_host)

            with (
                stop.ends(process) if stop else nullcontext(),
                self._deadlines.kill_after(invocation.timeout, process),
            ):
                return process.invoke(invocation, respond, waiting)

        return self._with_process(key, call)

    def check(self, program: Program) -> list[Problem]:
        """Load the code in a process of its own, without running the handler. Empty if it loads and has a handler."""

        def call(process: BotProcess) -> Result:
            with self._deadlines.kill_after(CHECK_SECONDS, process):
                return process.check(program, CHECK_SECONDS)

        key = (("check", *program.key), DEFAULT_MEMORY_MB, program.runtime)
        result = self._with_process(key, call, keep=False)
        return [] if result.ok else [_problem(result, program.filename)]

    def state(self) -> PoolState:
        """How busy the pool is at this moment."""
        with self._lock:
            return PoolState(
                size=self._size,
                processes=sum(map(len, self._members.values())),
                idle=len(self._idle),
                spares=sum(map(len, self._spares.values())),
                waiting=len(self._waiting) + len(self._placed),
            )

    def close(self) -> None:
        """Kill every process and end the threads. Calls that wait or run fail with ``startup`` or ``crash``."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for ticket in (*self._waiting, *self._placed):
                ticket.error = OSError("The sandbox is shutting down.")
                ticket.done.set()
            self._waiting.clear()
            self._placed.clear()
            while self._idle:
                self._evict()
            for spares in self._spares.values():
                while spares:
                    self._bury(spares.popleft())
            for process in itertools.chain(*self._members.values()):
                process.kill()  # the thread of its call sees that, and closes it
            self._work.notify()
            self._released.wait_for(lambda: not self._members, CLOSE_SECONDS)
        self._starter.join()
        self._deadlines.close()

    def __enter__(self) -> SandboxPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Running -----------------------------------------------------------------------------------------------------------

    def _with_process(self, key: _Key, call: Callable[[BotProcess], Result], *, keep: bool = True) -> Result:
        """Acquire a process, ``call`` with it, and release it: to be used again if the call ended well and ``keep``."""
        if os.getpid() != self._owner:
            raise RuntimeError(
                "A sandbox pool cannot be used in a process forked from its owner: make a new one."
            )
        try:
            process = self._acquire(key)
        except OSError as error:
            if not self._closed:
                log.error("No bot process could be started: %s", error)
            return Result(ok=False, failure="startup", error=str(error))
        reusable = False
        self._thread.held += 1
        try:
            result = call(process)
            ended = result.failure in ("timeout", "memory", "crash") or process.stopped
            reusable = keep and not ended and process.resident <= KEEP_BYTES[key[2]]
            return result
        finally:
            self._thread.held -= 1
            self._release(key, process, reusable)

    def _acquire(self, key: _Key) -> BotProcess:
        """A process that has started, and belongs to the key. Raises :class:`OSError`."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            process = self._take(key)
            try:
                process.wake()
            except OSError as error:
                self._release(key, process, reusable=False)
                if attempt == _START_ATTEMPTS or self._closed:
                    raise
                log.warning("A bot process is replaced: %s", error)
            else:
                return process
        raise AssertionError("unreachable")

    def _take(self, key: _Key) -> BotProcess:
        with self._lock:
            if self._closed:
                raise OSError("The sandbox is shut down.")
            ticket = _Ticket(key, nested=self._thread.held > 0)
            self._waiting.append(ticket)
            self._serve()
        if not ticket.done.wait(PATIENCE):
            with self._lock:
                ticket.has_waited = True
                if not ticket.done.is_set():
                    self._serve()
            ticket.done.wait()
        if ticket.process is None:
            raise ticket.error or OSError("no process")
        return ticket.process

    def _release(self, key: _Key, process: BotProcess, reusable: bool) -> None:
        if reusable:
            process.freeze()
        else:
            process.close()
        with self._lock:
            if reusable and not self._closed:
                self._idle[process] = key
                while self._places > self._size and self._idle:
                    self._evict()
            else:
                self._forget(key, process)
                self._released.notify_all()
            self._serve()
        if self._closed:
            process.close()  # again, if it was frozen to be used once more while the pool was closed

    def _note_waiting(self, process: BotProcess, at_host: bool) -> None:
        with self._lock:
            if not at_host:
                self._at_host.discard(process)
                return
            self._at_host.add(process)
            if self._waiting:
                self._serve()

    # Rules (all with the lock held) -----------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Give processes and places to the calls that wait, in their order."""
        full = False
        still: deque[_Ticket] = deque()
        for ticket in self._waiting:
            if self._give_idle(ticket):
                continue
            if (ticket.nested or not full) and self._may_have_another(ticket):
                if self._give_place(ticket):
                    continue
                full = True
            still.append(ticket)
        self._waiting = still

    def _give_idle(self, ticket: _Ticket) -> bool:
        for process in self._members.get(ticket.key, ()):
            if self._idle.pop(process, None):
                self._hand_over(ticket, process)
                return True
        return False

    def _may_have_another(self, ticket: _Ticket) -> bool:
        """Rule 2. A place already on its way counts as a computing process."""
        if any(placed.key == ticket.key for placed in self._placed):
            return False
        members = self._members.get(ticket.key, ())
        if len(members) >= MOST.get(ticket.key[2], self._size) and not ticket.nested:
            return False
        return ticket.has_waited or all(process in self._at_host for process in members)

    def _give_place(self, ticket: _Ticket) -> bool:
        needed = self._width(ticket.key)
        free = self._size - self._places + sum(map(self._width, self._idle.values()))
        if needed > free and not ticket.nested:
            return False
        while self._places + needed > self._size and self._idle:
            self._evict()
        self._places += needed
        spares = self._spares.setdefault(ticket.key[2], deque())
        if spares and ticket.key[1] == DEFAULT_MEMORY_MB:
            process = spares.popleft()
            self._members.setdefault(ticket.key, []).append(process)
            self._hand_over(ticket, process)
        else:
            self._placed.append(ticket)
        self._work.notify()
        return True

    def _width(self, key: _Key) -> int:
        """How many places a process of the key takes; a small pool is filled by one."""
        return min(PLACES[key[2]], self._size)

    def _evict(self) -> None:
        """Kill the process that has been idle longest."""
        oldest = next(iter(self._idle))
        self._forget(self._idle.pop(oldest), oldest)
        self._bury(oldest)

    @staticmethod
    def _hand_over(ticket: _Ticket, process: BotProcess) -> None:
        ticket.process = process
        ticket.done.set()

    def _forget(self, key: _Key, process: BotProcess) -> None:
        """The process gives up its place."""
        members = self._members[key]
        members.remove(process)
        if not members:
            del self._members[key]
        self._places -= self._width(key)

    def _bury(self, process: BotProcess) -> None:
        process.kill()
        self._dead.append(process)
        self._work.notify()

    # The starter ------------------------------------------------------------------------------------------------------

    def _start_processes(self) -> None:
        """Start processes for placed calls, then spares; collect killed ones; until the pool is closed."""
        while True:
            with self._lock:
                self._work.wait_for(self._has_work)
                dead, self._dead = self._dead, []
                if self._closed and not dead:
                    return
                # It stays in the queue until its process is there: _may_have_another counts it.
                ticket = self._placed[0] if self._placed else None
                spare = None if ticket or self._closed else self._missing_spare()
            if ticket:
                self._start_for(ticket)
            elif spare:
                self._start_spare(spare)
            for process in dead:
                process.close()

    def _has_work(self) -> bool:
        return bool(self._closed or self._dead or self._placed or self._missing_spare())

    def _missing_spare(self) -> Runtime | None:
        """A runtime with fewer spares than wanted: one is enough of those that take much memory."""
        for runtime, spares in self._spares.items():
            if len(spares) < (self._spare if runtime == "javascript" else min(self._spare, 1)):
                return runtime
        return None

    def _start(self, runtime: Runtime, memory_mb: int) -> BotProcess:
        """Start a process. Raises :class:`OSError` and nothing else."""
        try:
            return self._launcher(runtime).start(memory_mb)
        except OSError:
            raise
        except Exception as error:  # whatever it is: all processes die with this thread, so it must go on
            log.exception("A bot process could not be started")
            raise OSError(str(error)) from error

    def _launcher(self, runtime: Runtime) -> Launcher | NativeLauncher:
        """Made at first use: the files of Python are placed only where Bots need them."""
        launcher = self._launchers.get(runtime)
        if launcher is None:
            if self._python is None:
                raise FileNotFoundError("This sandbox has no Python.")
            if runtime == "native":
                launcher = NativeLauncher(self._python)
            else:
                launcher = Launcher(self._deno, self._python, python=True)
            self._launchers[runtime] = launcher
        return launcher

    def _start_for(self, ticket: _Ticket) -> None:
        error: OSError | None = None
        process: BotProcess | None = None
        try:
            process = self._start(ticket.key[2], ticket.key[1])
        except OSError as failed:
            error = failed
        with self._lock:
            if self._closed:  # close() has answered the ticket
                if process:
                    self._bury(process)
                return
            self._placed.popleft()
            if process:
                self._members.setdefault(ticket.key, []).append(process)
                self._hand_over(ticket, process)
            else:
                self._places -= self._width(ticket.key)
                ticket.error = error
                ticket.done.set()
            self._serve()

    def _start_spare(self, runtime: Runtime) -> None:
        try:
            process = self._start(runtime, DEFAULT_MEMORY_MB)
        except OSError as error:
            log.error("No spare bot process could be started: %s", error)
            # Calls are told by their own attempts; this only keeps the machine from being hammered.
            time.sleep(1.0)
            return
        with self._lock:
            if self._closed:
                self._bury(process)
            else:
                self._spares[runtime].append(process)


class _Deadlines:
    """Kills processes when their time is up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._heap: list[tuple[float, int]] = []
        self._processes: dict[int, BotProcess] = {}
        self._numbers = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="sandbox-deadlines", daemon=True)
        self._thread.start()

    @contextmanager
    def kill_after(self, seconds: float, process: BotProcess) -> Iterator[None]:
        """Kill the process if the block takes longer."""
        at = time.monotonic() + seconds
        with self._lock:
            number = next(self._numbers)
            self._processes[number] = process
            if len(self._heap) > 2 * len(self._processes) + 100:  # most of them are of calls that have ended
                self._heap = [entry for entry in self._heap if entry[1] in self._processes]
                heapq.heapify(self._heap)
            heapq.heappush(self._heap, (at, number))
            if self._heap[0][1] == number:
                self._changed.notify()
        try:
            yield
        finally:
            with self._lock:
                self._processes.pop(number, None)

    def _watch(self) -> None:
        with self._lock:
            while not self._closed:
                while self._heap and self._heap[0][1] not in self._processes:
                    heapq.heappop(self._heap)
                if not self._heap:
                    self._changed.wait()
                    continue
                at, number = self._heap[0]
                left = at - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
                # With the lock held: the call cannot end, and its process serve another one, in between.
                try:
                    self._processes.pop(number).expire()
                except OSError:
                    log.exception("A bot process could not be killed at its time limit")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._changed.notify()
        self._thread.join()


def _problem(result: Result, filename: str) -> Problem:
    """The problem a dry load has found, at the place its stack names first."""
    text = result.error or "The code could not be loaded."
    for line in (result.stack or "").splitlines():
        _, found, place = line.rpartition(f"{filename}:")
        row, _, column = place.rstrip(")").partition(":")
        if found and row.isdigit() and column.isdigit():
            return Problem(int(row), int(column), text)
    return Problem(0, 0, text)
