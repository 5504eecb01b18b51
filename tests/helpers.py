"""What several tests need: events to wait for, and a look at the processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

METHODS = os.environ.get("PREFORK_TEST_METHODS", "fork forkserver spawn").split()
"""The start methods that tests for each of them are run with."""

DEADLINE = 30.0
"""Seconds after which a test gives up: far more than anything takes, even on a busy machine."""

NEVER = 3600.0
"""Seconds, for a timeout that must not play a role: whoever waits for it misses the deadline."""


def eventually(look: Callable[[], T], what: str) -> T:
    """Call `look` until it returns something true, and return that."""
    deadline = time.monotonic() + DEADLINE
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {DEADLINE:g} s")
        time.sleep(0.002)
    return found


def at_leisure(attempt: Callable[[float], T], seconds: float = 0.1) -> T:
    """Call `attempt(seconds)`; if it fails, do so again with more of them.

    For limits of time that find a task in a certain place: how long it takes to come there is up
    to the machine. So is whether it comes to its last words, for which it has a tenth of a second.
    """
    for _ in range(3):
        try:
            return attempt(seconds)
        except Exception:
            seconds *= 4
    return attempt(seconds)


@contextlib.contextmanager
def an_unclosed_pool_says_so(name: str = "") -> Iterator[None]:
    """Running pools are dropped in this block: each warns when the last who has it lets it go,
    which may be a thread of its own, in the midst of something."""
    text = f"unclosed running multiprocessing pool <{name}"
    with warnings.catch_warnings(record=True, action="always") as told:
        yield
        eventually(
            lambda: [w for w in told if w.category is ResourceWarning and text in str(w.message)],
            "a warning of what was not closed",
        )


# --- tasks tell their test something, through files


def mark(path: Path, text: object = "") -> None:
    """In a task: say that it has come so far."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(str(text))
    new.rename(path)


def marked(path: Path) -> str:
    """In a test: wait until somebody has made this mark; returns its text."""
    eventually(path.exists, f"nobody made the mark {path.name}")
    return path.read_text()


def mark_and_stay(path: Path) -> None:
    """A task that says its process id and then never ends by itself."""
    mark(path, os.getpid())
    while True:
        signal.pause()


def log_start(path: Path, number: int) -> None:
    """In a task: leave a line that a second start would double."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    os.write(fd, b"%d\n" % number)
    os.close(fd)


# --- processes


class Running(NamedTuple):
    pid: int
    state: str  # as in ps: R, S, T, Z, ...
    parent: int
    group: int


def processes() -> list[Running]:
    """All processes of the machine."""
    return [p for name in os.listdir("/proc") if name.isdigit() and (p := process(int(name)))]


def process(pid: int) -> Running | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # names may be any bytes
    except OSError:
        return None
    state, *ids = stat.rpartition(") ")[2].split()[:3]
    return Running(pid, state, *map(int, ids))


def constant_files(pid: int | str = "self") -> tuple[int, int]:
    """Of what is shared, or of functions of maps: how many a process has mapped, and has open."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    paths = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    opened = [os.readlink(path) for path in paths if os.path.lexists(path)]
    name = "prefork-constant"
    return sum(name in line for line in maps), sum(name in file for file in opened)


def has_ended(pid: int) -> bool:
    found = process(pid)
    return found is None or found.state == "Z"


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: (p := process(pid)) is None or p.state == "T", f"process {pid} stops")


def children() -> list[Running]:
    """Of this process; zombies, too."""
    return [p for p in processes() if p.parent == os.getpid()]


def workers_of(pid: int) -> list[int]:
    """The workers of a process's pools: children of it, of a template or of a fork server that lead
    a group."""
    found = processes()
    families = {pid} | {p.pid for p in found if p.parent == pid}
    leaders = [p.pid for p in found if p.parent in families and p.group == p.pid]
    return [leader for leader in leaders if not is_template(leader)]


def is_template(pid: int) -> bool:
    """Whether later workers are forked from this process: it has all signals blocked."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    blocked = dict(line.split(":", 1) for line in status.splitlines())["SigBlk"]
    return all(int(blocked, 16) >> (signum - 1) & 1 for signum in (signal.SIGTERM, signal.SIGUSR1))


def templates_of(pid: int) -> list[int]:
    return [p.pid for p in processes() if p.parent == pid and is_template(p.pid)]


TOKEN = "PREFORK_TEST_TOKEN"
"""A variable in the environment of all processes that a script starts, directly or not."""


class Script:
    """A Python program in a process of its own, from source code or, if it has tasks of its own,
    from a file. It can import this module."""

    def __init__(self, source: str | Path, *args: object) -> None:
        self.token = f"{os.getpid()}-{time.monotonic_ns()}"
        program = [str(source)] if isinstance(source, Path) else ["-c", source]
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, TOKEN: self.token, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, output, error output."""
        try:
            out, err = self.process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # for the stacks, if it enabled faulthandler
            self.process.wait()
            left = self.leftovers()
            self.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"does not end, or leaves {left}\n{out}\n{err}") from None
        return self.process.returncode, out, err

    def leftovers(self) -> dict[int, str]:
        """The processes that run and belong to it: their command lines by their ids."""
        mark = f"{TOKEN}={self.token}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    command = (folder / "cmdline").read_text().replace("\0", " ")
                    found[int(folder.name)] = command
            except OSError:
                pass  # it has ended, or is somebody else's
        return found

    def kill(self) -> None:
        """SIGKILL to it, and to all that it left."""
        self.process.kill()
        self.process.wait()
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
