"""The tasks of `chaos.py storm`: most are good, the others do one of the things that tasks do.

Each writes a line of its own into a log when it starts and when it ends, so that the accounts do
not rely on the pool that is tried.
"""

from __future__ import annotations

import enum
import importlib
import itertools
import logging
import os
import pickle
import random
import signal
import sqlite3
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple


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
    # What the program's own threads do at the same time, see `settings.Threads`:
    LOG = "log"
    IMPORT = "import"  # a module that takes a while
    QUERY = "query"  # of sqlite
    LOCK = "lock"  # takes a lock
    # Large objects, see `settings.Large`:
    BULKY = "bulky"  # returns one, which the caller keeps
    KEEPER = "keeper"  # keeps its argument

    @property
    def is_fault(self) -> bool:
        return self in MISDEEDS

    @property
    def is_retried(self) -> bool:
        """Whether a pool that can do so is to run it again for what it has raised."""
        return self is Conduct.RAISE

    @property
    def needs_limit(self) -> bool:
        return self in (Conduct.ENDLESS, Conduct.DEAF, Conduct.FROZEN)


MISDEEDS = frozenset(Conduct) - {
    Conduct.GOOD,
    Conduct.LOG,
    Conduct.IMPORT,
    Conduct.QUERY,
    Conduct.LOCK,
    Conduct.BULKY,
    Conduct.KEEPER,
}
ORDINARY = MISDEEDS | {Conduct.GOOD}

SOFT_LIMIT, HARD_LIMIT = 0.05, 0.1  # seconds: of those that will pass it
AMPLE = 60.0  # seconds: a limit that nobody reaches
HOARD = 50 << 20  # bytes
BULK = (50_000, 400_000)  # bytes of a large object
RESTING_MEMORY = 60 << 10  # KiB: more than a worker has that has not hoarded


class Mischief(Exception):
    """What a task raises."""


class Block:
    """A large object that is pickled out of band, and then refers to where it has arrived."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Block, (pickle.PickleBuffer(self.data),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Block) and memoryview(self.data) == memoryview(other.data)

    __hash__ = None  # type: ignore[assignment]


class Task(NamedTuple):
    number: int  # unique in the run
    conduct: Conduct
    seconds: float  # to run
    argument: bytes | Block  # to carry there
    size: int  # bytes to bring back
    limited: bool  # has a limit that it will not reach
    retries: int


Answer = tuple[int, int, bytes | Block]

LOCK = threading.Lock()
MODULES = [f"slowly_imported_{n}" for n in range(8)]
"""In a folder beside the log, if there is one; see `modules_beside`."""

_log = -1  # in a worker: the descriptor of the log
_hoard: list[bytes] = []
_kept: deque[bytes | Block] = deque(maxlen=100)


def modules_beside(path: str) -> Path:
    return Path(f"{path}.modules")


def open_log(path: str) -> None:
    """The initializer of the workers."""
    global _log  # noqa: PLW0603 (a task's only way to what the initializer made)
    _log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    if (modules := str(modules_beside(path))) not in sys.path:
        sys.path.append(modules)


def run(task: Task) -> Answer:
    os.write(_log, b"start %d %d\n" % (task.number, os.getpid()))
    _behave(task.conduct)
    if task.seconds:
        time.sleep(task.seconds)
    if task.conduct is Conduct.KEEPER:
        _kept.append(task.argument)
    value = answer(task)
    os.write(_log, b"end %d %d\n" % (task.number, os.getpid()))
    return value


def _behave(conduct: Conduct) -> None:
    me = os.getpid()
    match conduct:
        case Conduct.LOG:
            logging.getLogger("storm").error("a task")
        case Conduct.IMPORT:
            for name in MODULES:
                importlib.import_module(name)
        case Conduct.QUERY:
            query()
        case Conduct.LOCK:
            with LOCK:
                pass
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


def query() -> None:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table t (x)")
        connection.executemany("insert into t values (?)", [(n,) for n in range(10)])
        connection.execute("select sum(x) from t").fetchone()
    connection.close()


def answer(task: Task) -> Answer:
    sent = task.argument.data if isinstance(task.argument, Block) else task.argument
    back = bytes([task.number & 0xFF]) * task.size
    is_bulky = task.conduct is Conduct.BULKY
    return task.number, zlib.crc32(sent), Block(back) if is_bulky else back


def make_tasks(
    rng: random.Random, numbers: Iterator[int], count: int, conducts: Collection[Conduct]
) -> list[Task]:
    """A third misbehave, and a third do something special that does no harm, if there is such a
    thing among the conducts; the others are good. Some of those carry much there or back."""
    bad = [conduct for conduct in Conduct if conduct.is_fault and conduct in conducts]
    special = [c for c in Conduct if c in conducts and c not in ORDINARY] or [Conduct.GOOD]
    tasks = []
    for number in itertools.islice(numbers, count):
        chance = rng.random()
        conduct = Conduct.GOOD
        if chance < 2 / 3:
            conduct = rng.choice(bad if chance < 1 / 3 and bad else special)
        style = rng.random()
        argument: bytes | Block = rng.randbytes(rng.randrange(300_000)) if style < 0.06 else b""
        size = rng.randrange(2_000_000) if 0.06 <= style < 0.12 else 0
        if conduct is Conduct.BULKY:
            size = rng.randrange(*BULK)
        elif conduct is Conduct.KEEPER:
            argument = Block(bytes(rng.randrange(*BULK)))
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
        self.others: Counter[str] = Counter()  # lines of other kinds
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # there may be none left later
        self._position = 0

    def read(self) -> None:
        size = os.fstat(self._file).st_size - self._position
        lines = os.pread(self._file, max(0, size), self._position)
        lines = lines[: lines.rfind(b"\n") + 1]
        self._position += len(lines)
        for line in lines.decode().splitlines():
            what, number, pid = line.split()
            if what not in ("start", "end"):
                self.others[what] += 1
                continue
            (self.started if what == "start" else self.ended)[int(number)].append(int(pid))
            self.pids[int(pid)] = None

    def close(self) -> None:
        os.close(self._file)
