"""Whatever is done to a pool, in whatever order: the promises hold."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from helpers import DEADLINE, NEVER, children, eventually, process
from prefork import (
    Pool,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    TimeoutError,
    WorkerLostError,
    WorkerState,
)
from prefork._ipc.payload import keep_reserve

pytestmark = [
    pytest.mark.timeout(300),  # when it fails, hypothesis looks for the shortest way there
    pytest.mark.promise(number=1),
    pytest.mark.promise(number=2),
    pytest.mark.promise(number=3),
    pytest.mark.promise(number=6),
]

FEW = 2  # workers
MOST = 4
SOFT, HARD = 0.02, 0.04  # seconds: limits of tasks that do not end of themselves

# --- tasks ---------------------------------------------------------------------------------------


def note(folder: Path, number: int) -> None:
    """Say that task so-and-so has been started, and where."""
    fd = os.open(folder / "starts", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    os.write(fd, b"%d %d\n" % (number, os.getpid()))
    os.close(fd)


def give(folder: Path, number: int, size: int) -> bytes:
    note(folder, number)
    return bytes(size)


def give_item(item: tuple[Path, int]) -> int:
    note(*item)
    return item[1]


def end_badly(folder: Path, number: int, how: int) -> None:
    note(folder, number)
    if how < 0:
        os.kill(os.getpid(), -how)
    os._exit(how)


def last(folder: Path, number: int, is_frozen: bool) -> None:
    """A task that does not end."""
    note(folder, number)
    while True:
        if is_frozen:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(NEVER)


def descriptors() -> dict[int, str]:
    """What each is, of those that are open."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # as it is with that of the directory
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    return found


# --- what was handed in --------------------------------------------------------------------------


class Handed(NamedTuple):
    """One job, and what may become of it if nothing is done to it from outside."""

    numbers: list[int]  # its tasks
    get: Callable[[], Any]
    handle: Any  # can be cancelled and terminated
    value: Any
    error: type[BaseException] | None = None  # it must fail with it
    starts: int = 1  # at most, of each task


class Promises(RuleBasedStateMachine):
    """Each rule does one thing; the last look, after each run, is at what became of all jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.before = {child.pid for child in children()}
        keep_reserve()  # it is the process's, and stays
        self.descriptors = descriptors()
        self.files = tempfile.TemporaryDirectory()
        self.folder = Path(self.files.name)
        (self.folder / "starts").touch()
        self.calls: Counter[int] = Counter()
        self.handed: list[Handed] = []
        self.hit: set[int] = set()  # workers that were killed from outside
        self.ended: set[int] = set()  # tasks whose job somebody ended
        self.ended_on: set[int] = set()  # workers whose job somebody ended
        self.stopped: set[int] = set()
        self.count = 0

    @initialize(
        tasks=st.sampled_from([None, None, 1, 3]), memory=st.sampled_from([None, None, 1, 10**6])
    )
    def make(self, tasks: int | None, memory: int | None) -> None:
        self.pool = Pool(
            FEW,
            maxtasksperchild=tasks,
            max_memory_per_child=memory,
            lost_worker_timeout=NEVER,
            context="fork",
            max_restarts=1000,
        )

    # ---- jobs

    def submit(self, func: Callable[..., Any], *args: Any, value: Any = None, **rest: Any) -> None:
        number = self.number()
        error = rest.pop("error", None)

        def called(_: object) -> None:
            self.calls[number] += 1

        handle = self.pool.apply_async(
            func, (self.folder, number, *args), callback=called, error_callback=called, **rest
        )
        starts = 1 + rest.get("retries", 0)
        handed = Handed([number], lambda: handle.get(DEADLINE), handle, value, error, starts)
        self.handed.append(handed)

    def number(self) -> int:
        self.count += 1
        return self.count

    @rule(
        size=st.sampled_from([0, 10, 70_000, 3_000_000]),
        limit=st.sampled_from([None, NEVER]),
        retries=st.integers(0, 2),
    )
    def submit_one(self, size: int, limit: float | None, retries: int) -> None:
        limits = {"timeout": limit, "soft_timeout": limit}
        self.submit(give, size, value=bytes(size), retries=retries, **limits)

    @rule(items=st.integers(0, 30), chunk=st.integers(1, 7), how=st.sampled_from(["map", "imap"]))
    def submit_many(self, items: int, chunk: int, how: str) -> None:
        numbers = [self.number() for _ in range(items)]
        inputs = [(self.folder, number) for number in numbers]
        if how == "map":
            handle = self.pool.map_async(give_item, inputs, chunk)
            self.handed.append(Handed(numbers, lambda: handle.get(DEADLINE), handle, numbers))
            return
        results = self.pool.imap(give_item, inputs, chunk, timeout=NEVER)
        for number in numbers:
            one = Handed([number], lambda: results.next(DEADLINE), None, number)
            self.handed.append(one)

    @rule(how=st.sampled_from([0, 3, -signal.SIGKILL, -signal.SIGSEGV]), retries=st.integers(0, 1))
    def submit_one_that_ends_badly(self, how: int, retries: int) -> None:
        self.submit(end_badly, how, error=WorkerLostError, retries=retries)

    @rule(is_frozen=st.booleans())
    def submit_one_past_its_hard_limit(self, is_frozen: bool) -> None:
        self.submit(last, is_frozen, error=TimeLimitExceeded, timeout=HARD)

    @rule()
    def submit_one_past_its_soft_limit(self) -> None:
        self.submit(last, False, error=SoftTimeLimitExceeded, soft_timeout=SOFT)

    # ---- what is done to them, and to the workers

    @rule(which=st.integers(0, 10**6), verb=st.sampled_from(["cancel", "terminate"]))
    def end_one(self, which: int, verb: str) -> None:
        jobs = [handed for handed in self.handed if handed.handle is not None]
        if jobs:
            handed = jobs[which % len(jobs)]
            if getattr(handed.handle, verb)():
                self.ended.update(handed.numbers)

    @rule(which=st.integers(0, MOST))
    def kill_worker(self, which: int) -> None:
        if (pid := self.worker(which)) is not None:
            self.hit.add(pid)
            with contextlib.suppress(ProcessLookupError):
                send(pid, signal.SIGKILL)

    @rule(which=st.integers(0, MOST), signum=st.sampled_from([None, signal.SIGTERM]))
    def terminate_job_on_worker(self, which: int, signum: int | None) -> None:
        pid = self.worker(which)
        if pid is not None and self.pool.terminate_job(pid, signum):
            self.ended_on.add(pid)

    @rule(which=st.integers(0, MOST))
    def stop_worker(self, which: int) -> None:
        if (pid := self.worker(which)) is not None:
            self.stopped.add(pid)
            with contextlib.suppress(ProcessLookupError):
                send(pid, signal.SIGSTOP)

    @rule()
    def continue_workers(self) -> None:
        while self.stopped:
            pid = self.stopped.pop()
            found = process(pid)
            if found is not None and found.parent == os.getpid():
                send(pid, signal.SIGCONT)

    @rule()
    def grow(self) -> None:
        if self.pool.processes < MOST:
            self.pool.grow()

    @rule()
    def shrink(self) -> None:
        if self.pool.processes > 1:
            self.pool.shrink()

    @rule()
    def restart(self) -> None:
        self.pool.restart()

    @rule()
    def wait_for_one_to_be_busy(self) -> None:
        """So that not everything happens at once."""
        if any(not handed.handle.ready() for handed in self.handed if handed.handle):
            eventually(self.is_busy_or_idle, "somebody works, or all is done")

    def is_busy_or_idle(self) -> bool:
        now = self.pool.statistics()
        states = [worker.state for worker in now.workers]
        is_idle = not (now.queued or now.running)
        return WorkerState.BUSY in states or is_idle or bool(self.stopped)

    def worker(self, which: int) -> int | None:
        """One of our workers that still runs: nobody else has its number before it is collected."""
        pids = sorted(worker.pid for worker in self.pool.statistics().workers)
        alive = [pid for pid in pids if (p := process(pid)) and p.parent == os.getpid()]
        return alive[which % len(alive)] if alive else None

    # ---- the promises

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self.check()
        finally:
            if hasattr(self, "pool"):
                self.pool.terminate()
            self.files.cleanup()

    def check(self) -> None:
        self.continue_workers()
        self.pool.close()
        outcomes = [self.outcome(handed) for handed in self.handed]
        assert self.pool.join(DEADLINE), f"it does not end: {self.pool.statistics()}"
        starts: dict[int, list[int]] = {}
        for line in (self.folder / "starts").read_text().splitlines():
            number, pid = map(int, line.split())
            starts.setdefault(number, []).append(pid)
        lost: dict[int, dict[int, str]] = {}  # by process, then by job
        for handed, (value, error) in zip(self.handed, outcomes, strict=True):
            self.check_one(handed, value, error, starts)
            if isinstance(error, WorkerLostError):
                lost.setdefault(error.pid, {})[error.job] = f"{error} ({handed})"
        assert all(len(costs) == 1 for costs in lost.values()), f"a death costs one job: {lost}"
        assert all(count == 1 for count in self.calls.values()), "one callback each"
        ours = {child.pid for child in children()} - self.before
        assert not ours, "no process is left"
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self.left(), "no descriptor is left")
        assert not self.left(), "no descriptor is left"

    def left(self) -> dict[int, str]:
        """The descriptors that were not there before."""
        return {fd: what for fd, what in descriptors().items() if fd not in self.descriptors}

    def outcome(self, handed: Handed) -> tuple[Any, BaseException | None]:
        try:
            return handed.get(), None
        except TimeoutError:
            raise AssertionError(f"no answer: {handed}, {self.pool.statistics()}") from None
        except Exception as exc:
            return None, exc

    def check_one(
        self, handed: Handed, value: Any, error: BaseException | None, starts: dict[int, list[int]]
    ) -> None:
        pids = {pid for number in handed.numbers for pid in starts.get(number, [])}
        assert all(len(starts.get(number, [])) <= handed.starts for number in handed.numbers)
        if error is None:
            assert handed.error is None, f"{handed} has a value"
            assert value == handed.value
            assert set(handed.numbers) <= starts.keys(), "it has run"
        elif isinstance(error, Terminated):
            named = {int(pid) for pid in re.findall(r"worker process (\d+)", str(error))}
            assert self.ended.issuperset(handed.numbers) or (pids | named) & self.ended_on, error
        elif isinstance(error, WorkerLostError) and handed.error is not WorkerLostError:
            assert error.pid in self.hit, f"nobody has killed its worker: {error}"
        else:
            assert type(error) is handed.error, f"{error!r} is not what it deserves"


def send(pid: int, signum: int) -> None:
    """A signal to a worker, unless it has ended this very moment."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


Promises.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestPromises = Promises.TestCase
