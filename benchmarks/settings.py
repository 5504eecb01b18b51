"""What surrounds the pool in each kind of storm: the program whose pool it is.

    tasks        nothing; what misbehaves are the tasks, and somebody outside
    threads      the program's threads log, import, use sqlite and hold locks, and so do the tasks
    logging      handlers of the pool's log that are slow, use the pool, raise, or block
    large        few descriptors, and large results and arguments that are kept
    descriptors  few descriptors, and moments without any
    callbacks    callbacks that raise, wait for their own result, use the pool, or take their time
    stopped      idle and busy workers are stopped, and perhaps never continued

Each adds something to what `storm.py` does in any case.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import misdeeds
from handlers import WAIT, PoolHandler, SlowHandler
from ledger import Deeds
from misdeeds import MODULES, ORDINARY, Conduct, Task
from rivals import Rival


class Outside(Protocol):
    """The storm, as a setting sees it."""

    pool: Rival
    rng: random.Random
    deeds: Deeds

    def victim(self) -> int | None: ...


class Setting:
    """Args:
    path: of the log that tasks write; files can be put beside it.

    Attributes:
        breaches: of promises, that were seen in here.
        has_prompt_callbacks: callbacks must have run when somebody gets the result.
    """

    deeds: ClassVar[tuple[str, ...]] = ()  # what can be done to the pool, beside the usual
    conducts: frozenset[Conduct] = ORDINARY
    has_prompt_callbacks = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.breaches: list[str] = []

    def prepare(self) -> None:
        """Before the first pool is made."""

    def begin(self, pool: Rival) -> None:
        """A pool was made."""

    def suspend(self) -> None:
        """Another pool will be made."""

    def begin_round(self, progress: float) -> None:
        """`progress`: which part of the storm is over, from 0 to 1."""

    def end_round(self) -> None: ...

    def may_do(self, deed: str) -> bool:
        """Whether this may be done now, of what is done in any case."""
        return True

    def do(self, deed: str, outside: Outside) -> bool:
        """One of its own deeds; whether it could be done."""
        raise NotImplementedError

    def tick(self, outside: Outside) -> bool:
        """Undo what is over; whether there is more that will be."""
        return False

    def callback(self, task: Task, handles: dict[int, Any], counter: Counter[int]) -> Any:
        return lambda _: counter.update([task.number])

    def keep(self, value: object) -> None:
        """A result that has come."""

    def before_close(self, outside: Outside) -> None:
        """All jobs are answered."""

    def end(self) -> None:
        """After the end of the pool."""


class Threads(Setting):
    """Each of the program's threads holds a lock, of its own or of a library, most of the time.

    Workers that are started later must not find it held for ever, since they are copies of the
    program as it was when the pool was made; the threads begin after that. `restart()` makes copies
    of the program as it is, so from the middle of the storm on, with restarts, no task takes the
    locks that only the program and sqlite know of.
    """

    conducts = ORDINARY | {Conduct.LOG, Conduct.IMPORT, Conduct.QUERY, Conduct.LOCK}

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._may_restart = False
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._folder = misdeeds.modules_beside(path)

    def prepare(self) -> None:
        self._folder.mkdir()
        for name in MODULES:
            (self._folder / f"{name}.py").write_text("import time\ntime.sleep(0.001)\n")
        sys.path.append(str(self._folder))
        logger = logging.getLogger("storm")
        logger.propagate = False
        logger.addHandler(SlowHandler(0.001))

    def begin(self, pool: Rival) -> None:
        self._stopped.clear()
        for work in (self._log, self._import, misdeeds.query, self._hold, self._allocate):
            thread = threading.Thread(target=self._repeat, args=(work,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def suspend(self) -> None:
        self._stopped.set()
        while self._threads:
            self._threads.pop().join()

    end = suspend

    def begin_round(self, progress: float) -> None:
        if progress > 0.5:
            self._may_restart = True
            self.conducts = Threads.conducts - {Conduct.LOCK, Conduct.QUERY}

    def may_do(self, deed: str) -> bool:
        if deed == "kill template":  # workers would be copies of the program as it is
            return False
        return self._may_restart or deed != "restart"

    def _repeat(self, work: Callable[[], object]) -> None:
        while not self._stopped.wait(0.0002):
            work()

    @staticmethod
    def _log() -> None:
        logging.getLogger("storm").error("a thread")

    @staticmethod
    def _import() -> None:
        for name in MODULES:
            sys.modules.pop(name, None)
            importlib.import_module(name)

    @staticmethod
    def _hold() -> None:
        with misdeeds.LOCK:
            time.sleep(0.001)

    @staticmethod
    def _allocate() -> None:
        bytes(1 << 20)


class Logging(Setting):
    """The pool has much to say; what handlers do with it changes from round to round."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._handler = PoolHandler(self.breaches)
        self._rounds = 0

    def prepare(self) -> None:
        logger = logging.getLogger("prefork")
        logger.propagate = False
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self._handler)

    def begin(self, pool: Rival) -> None:
        self._handler.pool = pool

    def begin_round(self, progress: float) -> None:
        ways = list(self._handler.ways)
        self._handler.way = ways[self._rounds % len(ways)]
        self._rounds += 1

    def end_round(self) -> None:
        self._handler.read()

    def end(self) -> None:
        self._handler.read()
        self._handler.close()


class Large(Setting):
    """With few descriptors, more large results are kept than there are descriptors."""

    conducts = ORDINARY | {Conduct.BULKY, Conduct.KEEPER}
    DESCRIPTORS = 160
    MOST = 200 << 20  # bytes that are kept

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._kept: list[object] = []
        self._size = 0

    def prepare(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.DESCRIPTORS, self.DESCRIPTORS))

    def keep(self, value: object) -> None:
        match value:
            case (_, _, misdeeds.Block(data=data)):
                self._kept.append(value)
                self._size += len(data)
        if self._size > self.MOST:
            self.suspend()

    def suspend(self) -> None:
        self._kept.clear()
        self._size = 0

    end = suspend


class Descriptors(Setting):
    """Few descriptors; and now and then the program has opened all that there are."""

    deeds = ("starve",) * 3
    DESCRIPTORS = 160
    LONGEST = 0.03  # seconds

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._held: list[int] = []
        self._until = 0.0

    def prepare(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.DESCRIPTORS, self.DESCRIPTORS))

    def may_do(self, deed: str) -> bool:
        self._release()  # whoever looks for workers needs some, too
        return True

    def do(self, deed: str, outside: Outside) -> bool:
        try:
            while True:
                self._held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            self._until = time.monotonic() + outside.rng.random() * self.LONGEST
        return True

    def tick(self, outside: Outside) -> bool:
        if self._held and time.monotonic() >= self._until:
            self._release()
        return bool(self._held)

    def _release(self) -> None:
        while self._held:
            os.close(self._held.pop())

    suspend = end = _release


class Callbacks(Setting):
    has_prompt_callbacks = True

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._pool: Any = None
        self._nested: list[Any] = []

    def begin(self, pool: Rival) -> None:
        self._pool = pool

    def callback(self, task: Task, handles: dict[int, Any], counter: Counter[int]) -> Any:
        ways = [self._wait_for_itself, self._use_the_pool, self._take_time, self._raise]
        way = ways[task.number % (len(ways) + 1) - 1] if task.number % (len(ways) + 1) else None

        def call(_: object) -> None:
            try:
                if way is not None:
                    way(handles.get(task.number))
            finally:
                counter.update([task.number])

        return call

    def _wait_for_itself(self, handle: Any) -> None:
        if handle is None:  # it has not even been returned
            return
        try:
            handle.get(WAIT)
        except multiprocessing.TimeoutError:
            self.breaches.append("a callback has waited for its own result in vain")
        except Exception:
            pass  # it was an error that the callback is called with

    def _use_the_pool(self, _: Any) -> None:
        pool = self._pool.pool
        pool.statistics()
        with contextlib.suppress(ValueError):  # it is closed
            pool.apply_async(abs, (-1,), callback=bool)
            self._wait_for_itself(pool.apply_async(abs, (-1,)))

    @staticmethod
    def _take_time(_: Any) -> None:
        time.sleep(0.002)

    @staticmethod
    def _raise(_: Any) -> None:
        raise RuntimeError("a callback")


class Stopped(Setting):
    """Workers are stopped for longer than anything takes. Then they are continued, or killed, or
    the job is ended that they run. The pool has to end though one of them is stopped for good."""

    deeds = ("freeze",) * 4
    LONGEST = 0.4  # seconds

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._frozen: dict[int, tuple[float, str]] = {}  # by pid: until when, and what then

    def do(self, deed: str, outside: Outside) -> bool:
        pid = outside.victim()
        if pid is None or pid in self._frozen:
            return False
        until = time.monotonic() + outside.rng.random() * self.LONGEST
        os.kill(pid, signal.SIGSTOP)
        self._frozen[pid] = until, outside.rng.choice(["continue", "kill", "end", "end"])
        return True

    def tick(self, outside: Outside) -> bool:
        now = time.monotonic()
        for pid, (until, what) in list(self._frozen.items()):
            if until <= now:
                del self._frozen[pid]
                with contextlib.suppress(ProcessLookupError):
                    self._go_on(pid, what, outside)
        return bool(self._frozen)

    @staticmethod
    def _go_on(pid: int, what: str, outside: Outside) -> None:
        if what == "continue":
            os.kill(pid, signal.SIGCONT)
        elif what == "kill":
            os.kill(pid, signal.SIGKILL)
            outside.deeds.killed.add(pid)
        elif outside.pool.end_on(pid):
            outside.deeds.ended_on.add(pid)
        else:  # it runs nothing, but may have been sent a job
            os.kill(pid, signal.SIGCONT)

    def before_close(self, outside: Outside) -> None:
        if (pid := outside.victim()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def suspend(self) -> None:
        self._frozen.clear()


SETTINGS: dict[str, type[Setting]] = {
    "tasks": Setting,
    "threads": Threads,
    "logging": Logging,
    "large": Large,
    "descriptors": Descriptors,
    "callbacks": Callbacks,
    "stopped": Stopped,
}


def remove_files(path: str) -> None:
    """What was put beside the log."""
    shutil.rmtree(misdeeds.modules_beside(path), ignore_errors=True)
