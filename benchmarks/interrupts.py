"""The storm of the kind "interrupts": signals whose handler raises, at any moment of a pool's life.

Ctrl-C is such a signal: it comes while a pool is made, used or ended, and once more during the
clean-up that follows. Two kinds of pools are tried in turn:

    a short life  a pool is made, used for a moment and ended; it is interrupted somewhere
    a long life   one call after another is interrupted; the pool lives on

Every interrupt is a fault. Whatever was interrupted: nothing hangs, whoever has got a result handle
gets a result, no task runs twice, and when the pool has ended, nothing of it is left.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from leftovers import HANG, Possessions, settle
from misdeeds import Conduct, Log, Task, answer, make_tasks, open_log, run

from prefork import Pool, Terminated, WorkerLostError

LIVES = 8  # of each kind in a round
CALLS = 40  # in a long life
SHORT = 0.0005  # seconds: about what a call takes


class Interrupted(BaseException):
    """What the handler raises."""


class Alarm:
    """Interrupts a call at a moment that was chosen before.

    Args:
        log: the file that the tasks write to; it is told when the handler runs in a worker.

    Attributes:
        count: of interrupts.
        places: where the last ones were.
    """

    def __init__(self, log: str) -> None:
        self.count = 0
        self.places: list[str] = []
        self._left = 0
        self._is_for_all = False
        self._owner = os.getpid()
        self._log = log
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.signal(signal.SIGINT, self._interrupt)

    def run(
        self, call: Callable[[], object], seconds: float, times: int = 1, for_all: bool = False
    ) -> bool:
        """Call it, and interrupt that after so many seconds; whether it was interrupted.

        Args:
            times: how often, if what it does then goes on for long enough.
            for_all: the signal goes to the whole process group, as that of a terminal does.
        """
        before = self.count
        self._is_for_all = for_all
        self._left = times
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), max(seconds, SHORT))
        try:
            while True:
                try:
                    self._inside(call)
                except Interrupted:
                    if self._left > 0:
                        continue
                return self.count > before
        finally:
            self._left = 0
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    @staticmethod
    def _inside(call: Callable[[], object]) -> None:
        """While this is on the stack, an interrupt raises; so it cannot hit `run` itself."""
        call()

    def _is_inside(self, frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code is not Alarm._inside.__code__:
            frame = frame.f_back
        return frame is not None

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        if self._left and self._is_for_all:
            os.killpg(0, signal.SIGINT)
        else:
            self._interrupt(signum, frame)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            with open(self._log, "a") as log:
                log.write(f"handler 0 {os.getpid()}\n")
            raise Interrupted
        is_inside = self._is_inside(frame)  # which may be interrupted, too
        if self._left > 0 and is_inside:
            self._left -= 1
            self.count += 1
            if not self._left:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            if frame is not None:
                name = os.path.basename(frame.f_code.co_filename)
                self.places.append(f"{name}:{frame.f_lineno} {frame.f_code.co_qualname}")
                del self.places[:-20]
            raise Interrupted


class Interrupts:
    """Has the same face as `Storm`."""

    def __init__(
        self, method: str, rng: random.Random, processes: int, log: str, deadline: float
    ) -> None:
        self.log = Log(log)
        self.breaches: list[str] = []
        self.jobs = self.innocent = self.silent = self.doubled = self.wrong = 0
        self.pools = 0
        self._fates: Counter[str] = Counter()
        self._rng = rng
        self._numbers = itertools.count(1)
        self._deadline = deadline
        self._make = lambda: Pool(
            min(processes, 2),
            open_log,
            (log,),
            lost_worker_timeout=HANG * 60,
            context=multiprocessing.get_context(method),
        )
        self._pool: Pool | None = None
        self._handles: list[tuple[list[Task], Any]] = []
        self._iterators: list[tuple[list[Task], Any]] = []
        self._before = self._warm_up()
        self._known = {thread.ident for thread in threading.enumerate()}
        self._alarm = Alarm(log)
        self._seconds = 0.05  # that a short life takes

    def _warm_up(self) -> Possessions:
        """The first pool may start a fork server and the like, which stays."""
        faulthandler.dump_traceback_later(self._deadline * 2, exit=True)  # it has a thread, too
        with self._make() as pool:
            pool.map(abs, range(10))
        pool.join(self._deadline)
        return settle(None)

    @property
    def faults(self) -> int:
        return self._alarm.count

    is_lost = False  # a hang ends the process

    # ---- a round

    def round(self, deadline: float, progress: float) -> None:
        for _ in range(LIVES):
            for life in (self._short_life, self._long_life):
                faulthandler.dump_traceback_later(deadline * 2, exit=True)
                self.pools += 1
                self._see_the_end(life())
        faulthandler.cancel_dump_traceback_later()

    def _short_life(self) -> str:
        rng = self._rng
        began = time.monotonic()
        way = rng.choice(["close", "terminate", "with", "drop"])
        delay = rng.uniform(0.0, self._seconds * rng.choice([0.2, 0.5, 1.2]))
        for_all = rng.random() < 0.3
        tasks = self._tasks(10)
        if not self._alarm.run(lambda: self._live(way, tasks), delay, for_all=for_all):
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
        self._clean_up(way)
        return f"short life, {way}"

    def _live(self, way: str, tasks: list[Task]) -> None:
        if self._pool is not None:  # it goes on after an interrupt
            return
        pool = self._pool = self._make()
        for task in tasks[:5]:
            self._handles.append(([task], pool.apply_async(run, (task,))))
        self._handles.append((tasks[5:], pool.map_async(run, tasks[5:])))
        if way == "close":
            pool.close()
            pool.join()
        elif way == "terminate":
            pool.terminate()
            pool.join()
        elif way == "with":
            with pool:
                self._handles[0][1].get()

    def _long_life(self) -> str:
        rng = self._rng
        self._pool = self._make()
        calls = self._calls(self._pool)
        for _ in range(CALLS):
            call, tasks = rng.choice(calls), self._tasks(rng.choice([1, 5, 30]))
            with contextlib.suppress(Terminated):  # by another one of them
                self._alarm.run(lambda: call(tasks), rng.expovariate(1 / SHORT))  # noqa: B023
        self._take_all()
        way = rng.choice(["close", "terminate", "with", "drop"])
        self._clean_up(way)
        return f"long life, {way}"

    def _calls(self, pool: Pool) -> list[Callable[[list[Task]], object]]:
        """One of them will be called; who is interrupted there may not get what it returns."""
        rng, handles, iterators = self._rng, self._handles, self._iterators

        def some_handle() -> Any:
            return rng.choice(handles)[1] if handles else None

        def end(how: str) -> None:
            if (handle := some_handle()) is not None and not handle.ready():
                getattr(handle, how)()

        def end_on_worker() -> None:
            if workers := pool.statistics().workers:
                pool.terminate_job(rng.choice(workers).pid)

        def resize() -> None:
            with contextlib.suppress(ValueError):
                pool.grow() if pool.processes < 3 else pool.shrink(rng.choice([1, 2]))

        def read_on() -> None:
            if iterators:
                deque(itertools.islice(rng.choice(iterators)[1], 3), 0)

        return [
            *[lambda t: handles.append((t[:1], pool.apply_async(run, (t[0],))))] * 6,
            *[lambda t: handles.append((t, pool.map_async(run, t)))] * 2,
            lambda t: pool.map(run, t),
            lambda t: pool.apply(run, t[:1]),
            lambda t: iterators.append((t, pool.imap(run, t))),
            lambda t: iterators.append((t, pool.imap_unordered(run, t))),
            lambda _: (handle := some_handle()) and handle.wait(0.01),
            lambda _: read_on(),
            lambda _: end("cancel"),
            lambda _: end("terminate"),
            lambda _: end_on_worker(),
            lambda _: resize(),
            lambda _: pool.restart(),
            lambda _: pool.statistics(),
            lambda _: pool.dump_stacks(),
            lambda _: repr(pool),
        ]

    def _tasks(self, count: int) -> list[Task]:
        return make_tasks(self._rng, self._numbers, count, [Conduct.GOOD])

    # ---- the end of a life

    def _take_all(self) -> None:
        """The pool lives, so all that was handed in is done, or was ended on purpose."""
        ends = time.monotonic() + self._deadline
        for _, handle in self._handles:
            handle.wait(max(0.0, ends - time.monotonic()))
        for tasks, results in self._iterators:
            values = list(self._rest(results, ends))
            rights = [answer(task) for task in tasks]
            if not all(value in rights for value in values) or len(values) > len(rights):
                self._blame("wrong", "an iterator has yielded what is not its own")

    def _rest(self, results: Any, ends: float) -> Iterator[object]:
        while True:
            try:
                yield results.next(max(0.0, ends - time.monotonic()))
            except StopIteration:
                return
            except (Terminated, Interrupted):
                pass
            except multiprocessing.TimeoutError:
                self._blame("silent", "an iterator does not come to its end")
                return
            except WorkerLostError as exc:
                self._blame("innocent", f"an iterator: {exc!r}")

    def _clean_up(self, way: str) -> None:
        """What a program does after Ctrl-C; and while it does, Ctrl-C comes again."""
        pool, rng = self._pool, self._rng
        self._pool = None
        if pool is None:
            return
        if way == "drop":
            self._handles.clear()
            self._iterators.clear()
            return
        times = rng.choice([0, 1, 3])
        self._alarm.run(lambda: self._end(pool, way), rng.expovariate(1 / (4 * SHORT)), times)
        self._end(pool, way)
        self._judge(may_be_ended=way != "close")

    def _end(self, pool: Pool, way: str) -> None:
        if way == "close":
            pool.close()
        elif way == "terminate":
            pool.terminate()
        else:
            with contextlib.suppress(ValueError), pool:  # it has ended already
                pass
            pool.terminate()
        if not pool.join(self._deadline):
            self._blame("silent", f"after {way}, the pool does not end")

    def _judge(self, may_be_ended: bool) -> None:
        """The pool has ended."""
        for tasks, handle in self._handles:
            self.jobs += 1
            if not handle.ready():
                self._blame("silent", f"{handle!r} is not ready, though the pool has ended")
                continue
            try:
                value = handle.get(0)
            except Terminated:
                self._fates["ended"] += 1
            except WorkerLostError as exc:
                self._blame("innocent", repr(exc))
            except BaseException as exc:
                self._blame("wrong", f"{exc!r} instead of a value")
            else:
                self._fates["value"] += 1
                values = value if isinstance(value, list) else [value]
                if values != [answer(task) for task in tasks]:
                    self._blame("wrong", "a wrong value")
        self._handles.clear()
        self._iterators.clear()

    def _see_the_end(self, life: str) -> None:
        """Nothing of the pool is left, in a moment."""
        self._handles.clear()
        self._iterators.clear()
        until = time.monotonic() + self._deadline / 2
        while left := self._left():
            # An exception's traceback may hold the pool, in a cycle; and that is garbage no sooner
            # than the last thread and the last job are done with what was interrupted.
            gc.collect()
            if time.monotonic() > until:
                self._blame("wrong", f"left after a {life}: {left}")
                self._before = Possessions.now()
                self._known = {thread.ident for thread in threading.enumerate()}
                break
            time.sleep(0.002)
        self.log.read()
        for number, pids in self.log.started.items():
            if len(pids) > 1:
                self._blame("doubled", f"task {number} was started by {pids}")
        if handled := self.log.others.pop("handler", 0):
            self._blame("wrong", f"the program's signal handler ran in {handled} workers")
        self.log.started.clear()
        self.log.ended.clear()
        self._alarm.places.clear()

    def _left(self) -> str:
        """What there is more than before."""
        threads = [t.name for t in threading.enumerate() if t.ident not in self._known]
        now = Possessions.now()
        changes = zip(Possessions._fields, self._before, now, strict=True)
        left = [
            f"{what} {had} -> {has}" for what, had, has in changes if has > had and what != "shm"
        ]
        return ", ".join(left + threads)

    def _blame(self, what: str, text: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        self.breaches.append(f"{text}; interrupted at {self._alarm.places}")

    # ---- as the storm

    def close(self, timeout: float) -> bool:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        return True

    def summary(self) -> dict[str, Any]:
        return {
            "faults": self.faults,
            "kinds": {"interrupt": self.faults, "pools": self.pools},
            "jobs": self.jobs,
            "fates": dict(self._fates),
            "innocent": self.innocent,
            "silent": self.silent,
            "doubled": self.doubled,
            "wrong": self.wrong,
            "replaced": 0,
            "breaches": self.breaches[:20],
        }
