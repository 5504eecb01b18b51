"""The tasks of `chaos.py storm`: most are good, the others do one of the things that tasks do.

Each writes a line of its own into a log when it starts and when it ends, so that the accounts do
not rely on the pool that is tried.
"""

from __future__ import annotations

import enum
import itertools
import os
import random
import signal
import time
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple


class Conduct(enum.StrEnum):
    """What a task does."""

    GOOD = "good"
    HOG = "hog"  # keeps memory, so that its worker is to be replaced
    RAISE = "raise"
    EXIT = "exit"  # os._exit
    SUICIDE = "suicide"  # SIGKILL
    CRASH = "crash"  # SIGSEGV
    LATE = "late"  # sleeps past its soft limit
    ENDLESS = "endless"  # past its hard limit, in a Python loop that swallows exceptions
    DEAF = "deaf"  # past its hard limit, with all signals blocked
    FROZEN = "frozen"  # past its hard limit, stopped

    @property
    def is_fault(self) -> bool:
        return self is not Conduct.GOOD

    @property
    def needs_limit(self) -> bool:
        return self in (Conduct.ENDLESS, Conduct.DEAF, Conduct.FROZEN)


SOFT_LIMIT, HARD_LIMIT = 0.05, 0.1  # seconds: of those that will pass it
AMPLE = 60.0  # seconds: a limit that nobody reaches
HOARD = 50 << 20  # bytes
RESTING_MEMORY = 60 << 10  # KiB: more than a worker has that has not hoarded


class Mischief(Exception):
    """What a task raises."""


class Task(NamedTuple):
    number: int  # unique in the run
    conduct: Conduct
    seconds: float  # to run
    argument: bytes  # to carry there
    size: int  # bytes to bring back
    limited: bool  # has a limit that it will not reach
    retries: int


Answer = tuple[int, int, bytes]

_log = -1  # in a worker: the descriptor of the log
_hoard: list[bytes] = []


def open_log(path: str) -> None:
    """The initializer of the workers."""
    global _log  # noqa: PLW0603 (a task's only way to what the initializer made)
    _log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def run(task: Task) -> Answer:
    os.write(_log, b"start %d %d\n" % (task.number, os.getpid()))
    _behave(task.conduct)
    if task.seconds:
        time.sleep(task.seconds)
    value = answer(task)
    os.write(_log, b"end %d %d\n" % (task.number, os.getpid()))
    return value


def _behave(conduct: Conduct) -> None:
    me = os.getpid()
    match conduct:
        case Conduct.HOG:
            _hoard.append(b"x" * HOARD)
        case Conduct.RAISE:
            raise Mischief
        case Conduct.EXIT:
            os._exit(3)
        case Conduct.SUICIDE:
            os.kill(me, signal.SIGKILL)
        case Conduct.CRASH:
            os.kill(me, signal.SIGSEGV)
        case Conduct.LATE:
            time.sleep(AMPLE)
        case Conduct.DEAF:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(AMPLE)
        case Conduct.FROZEN:
            while True:
                os.kill(me, signal.SIGSTOP)
        case Conduct.ENDLESS:
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    pass


def answer(task: Task) -> Answer:
    return task.number, zlib.crc32(task.argument), bytes([task.number & 0xFF]) * task.size


def make_tasks(
    rng: random.Random, numbers: Iterator[int], count: int, conducts: Collection[Conduct]
) -> list[Task]:
    """Two thirds are good; some of those carry much there or back."""
    bad = [conduct for conduct in Conduct if conduct.is_fault and conduct in conducts]
    tasks = []
    for number in itertools.islice(numbers, count):
        conduct = rng.choice(bad) if rng.random() < 1 / 3 else Conduct.GOOD
        style = rng.random()
        argument = rng.randbytes(rng.randrange(300_000)) if style < 0.06 else b""
        size = rng.randrange(2_000_000) if 0.06 <= style < 0.12 else 0
        seconds = rng.uniform(0.0, 0.01) if style > 0.6 else 0.0
        limited, retries = rng.random() < 0.3, rng.choice([0, 0, 0, 2])
        tasks.append(Task(number, conduct, seconds, argument, size, limited, retries))
    return tasks


class Log:
    """Who started and ended which task; can be read on while it grows."""

    def __init__(self, path: str) -> None:
        self.started: defaultdict[int, list[int]] = defaultdict(list)  # task: pids
        self.ended: defaultdict[int, list[int]] = defaultdict(list)
        self.pids: dict[int, None] = {}  # in the order of their first task
        self._path = Path(path)
        self._position = 0

    def read(self) -> None:
        with self._path.open("rb") as file:
            file.seek(self._position)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self._position += len(lines)
        for line in lines.decode().splitlines():
            what, number, pid = line.split()
            (self.started if what == "start" else self.ended)[int(number)].append(int(pid))
            self.pids[int(pid)] = None
