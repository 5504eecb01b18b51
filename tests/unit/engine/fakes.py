"""What a pool's parts work on, with nothing of the system's behind it.

    FakeChannel, FakeWorkerEnd   as `Channel` and `WorkerEnd`: lists instead of pipes and memory
    FakeChild                    as `Child`: a process that a test ends when it likes
    FakeWorker                   both from the worker's side: it reads, runs, reports, dies
    FakePool                     the parts of one pool, wired as `Engine` wires them
    Clock                        the time, which passes when a test says so

No process is started, and no thread. The only thing that is real are descriptors which become
readable, so that the parts wait for fakes with the selectors that they use otherwise, too.
`test_fakes.py` holds the fakes to the contract of what they stand for.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.context import BaseContext
from typing import Any

from prefork._engine.collector import Collector
from prefork._engine.dispatcher import Dispatcher
from prefork._engine.job_factory import make_job
from prefork._engine.lifecycle import Lifecycle
from prefork._engine.observer import Observer
from prefork._engine.options import Options
from prefork._engine.retrier import Retrier
from prefork._engine.spawner import Spawner
from prefork._engine.state import PoolState
from prefork._engine.supervisor import WorkerSupervisor
from prefork._engine.terminator import Terminator
from prefork._engine.time_limits import TimeLimits
from prefork._engine.worker_handle import WorkerHandle
from prefork._ipc.channel import MAX_TICKETS, Channel
from prefork._ipc.memfd import BEST, MemfdCache, Transport
from prefork._ipc.outcome import encode_exit, encode_failure, encode_result
from prefork._ipc.page import Page
from prefork._ipc.pickling import dumps
from prefork._ipc.wire import LEAVE, TICKET, Kind, Report, Ticket
from prefork._ipc.worker_end import WorkerEnd
from prefork._policy.job import Job, Wakes
from prefork._policy.limits import NO_LIMITS, Limits
from prefork._policy.retry import Retry
from prefork._policy.scheduler import BATCH_SECONDS
from prefork._policy.timers import Timers
from prefork._system.child import NO_TIES, Child, Ties
from prefork._system.condition import Condition
from prefork._system.log import Log
from prefork._system.process import Process
from prefork._system.stacks import LAST_WORDS, LOOK, BlackBox

TIMED = [
    "starts",
    "dispatcher",
    "collector",
    "worker_handle",
    "supervisor",
    "spawner",
    "observer",
    "retrier",
    "roles",
]
"""The modules of the engine that look at the clock; and the drivers."""

FIRST_PID = 1 << 23
"""No process of this machine has such a number: the kernel ends at 2**22."""

STACK = 'Current thread:\n  File "task.py", line 1 in task'
"""What a fake process writes into its black box when it is asked for its last words."""


class Readable:
    """A descriptor that is readable while it is set."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self.is_set = False

    def fileno(self) -> int:
        return self._reader

    def set(self, value: bool = True) -> None:
        if value and not self.is_set:
            os.write(self._writer, b"!")
        elif self.is_set and not value:
            os.read(self._reader, 1)
        self.is_set = value

    def close(self) -> None:
        if self._reader >= 0:
            os.close(self._reader)
            os.close(self._writer)
            self._reader = self._writer = -1


class Clock:
    """Stands in for the module `time`: the time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1_700_000_000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def passes(self, seconds: float) -> None:
        self.now += seconds


# ---- a worker: its channel, its process


class FakeBlackBox(BlackBox):
    def __init__(self) -> None:
        self.written = ""

    def rewind(self) -> None:
        self.written = ""

    def text(self) -> str:
        return self.written

    def close(self) -> None:
        pass


class FakeChannel(Channel):
    """The pool's side of a channel.

    Attributes:
        inbox: the tickets that the worker has not read.
        room: how many tickets the inbox takes, as a small pipe does; an empty one takes a batch in
            any case.
        staged: the jobs whose pickles are kept; there is room for `pickles` of them.
        trouble: what `stage` raises, if anything.
        noted: what the worker has on its board: the job, when its clock started, when it took it.
        ends: those that hold the other side.
    """

    def __init__(self, transport: Transport = BEST) -> None:
        # Not the base class's: that makes pipes. What it has and this does not, is missed loudly.
        self.transport = transport
        self.eof = False
        self.inbox: list[Ticket] = []
        self.room = 2 * MAX_TICKETS
        self.pickles = 1000
        self.staged: set[int] = set()
        self.trouble: OSError | None = None
        self.noted = (0, 0.0, 0.0)
        self.noted_page = Page(0, [], 0)
        self.noted_heeded = 0.0
        self.box = self.black_box = FakeBlackBox()
        self.ends: list[FakeWorkerEnd] = []
        self.is_open = False
        self.is_closed = False
        self._reports: deque[Report] = deque()
        self._readable = Readable()
        self._taken = False

    def open(self) -> None:
        self.is_open = True

    def take_worker_end(self) -> FakeWorkerEnd:
        assert not self._taken, "there is one other side, to be taken once"
        self._taken = True
        return FakeWorkerEnd(self)

    def fileno(self) -> int:
        return self._readable.fileno()

    def stage(
        self,
        job: int,
        soft_timeout: float,
        flags: int,
        pickled: bytes,
        payload: Any = None,
        function_length: int = 0,
        first: int = 0,
        constants: Any = None,
    ) -> bytes | None:
        self._check_open()
        if self.trouble is not None:
            raise self.trouble
        if len(self.staged) >= self.pickles:
            return None
        self.staged.add(job)
        ticket: Ticket = job, soft_timeout, first, 0, len(pickled), function_length, flags
        return TICKET.pack(*ticket)

    def send(self, tickets: list[bytes]) -> bool:
        self._check_open()
        assert 0 < len(tickets) <= MAX_TICKETS, "more than a pipe takes in one piece"
        if self.inbox and len(self.inbox) + len(tickets) > self.room:
            return False
        unpacked: list[Ticket] = [TICKET.unpack(ticket) for ticket in tickets]
        assert all(ticket[0] in self.staged for ticket in unpacked)
        self.inbox += unpacked
        return True

    def send_leave(self) -> None:
        self._check_open()
        self.inbox.append((0, 0.0, 0, 0, 0, 0, LEAVE))

    def forget_released(self) -> bool:
        return False

    def reclaim(self, most: int) -> list[int]:
        self._check_open()
        taken, self.inbox = self.inbox[:most], self.inbox[most:]
        if taken and taken[-1][-1] & LEAVE:
            self.inbox.append(taken.pop())
        jobs = [ticket[0] for ticket in taken]
        for job in jobs:
            self.forget(job)
        return jobs

    def forget(self, job: int) -> None:
        assert job in self.staged, "to be said once per staged job"
        self.staged.discard(job)

    def receive(self) -> list[Report] | None:
        self._check_open()
        if self._reports:
            reports = list(self._reports)
            self._reports.clear()
            self._readable.set(not self.ends)
            return reports
        self.eof = not self.ends
        return None

    def running(self) -> tuple[int, float]:
        if self.is_closed:
            raise ValueError("closed")
        return self.noted[0], self.noted[1]

    def accepted(self) -> float:
        if self.is_closed:
            raise ValueError("closed")
        return self.noted[2]

    def heeded(self) -> float:
        return self.noted_heeded

    def item(self) -> tuple[int, float] | None:
        begun = self.noted_page.begun
        return (begun - 1, self.noted[1]) if begun else None

    def page(self) -> Page:
        self._check_open()
        return self.noted_page

    def close(self) -> None:
        self.is_closed = True
        self._readable.close()

    def close_in_child(self) -> None:
        raise NotImplementedError

    def _check_open(self) -> None:
        assert not self.is_closed, "its descriptors may be another's by now"

    # ---- for the other side

    def arrive(self, report: Report) -> None:
        self._reports.append(report)
        if not self.is_closed:
            self._readable.set()

    def end_left(self) -> None:
        if not self.ends and not self.is_closed:
            self._readable.set()


class FakeWorkerEnd(WorkerEnd):
    """The worker's side of a channel; the child gets a copy when it is started."""

    def __init__(self, channel: FakeChannel) -> None:
        self.channel = channel
        channel.ends.append(self)

    def fds(self) -> tuple[int, int, int, int]:
        return (-1, -1, -1, -1)

    @property
    def closed(self) -> bool:
        return self not in self.channel.ends

    def open(self) -> int:
        return -1

    def receive(self) -> Ticket | None:
        """The next ticket; None: the worker is to leave."""
        assert self.channel.inbox, "the real one would wait"
        ticket = self.channel.inbox.pop(0)
        return None if ticket[-1] & LEAVE else ticket

    def note(self, job: int, started: float, taken: float) -> None:
        """Write this on the board."""
        self.channel.noted = job, started, taken

    def report(
        self,
        kind: int,
        job: int = 0,
        started: float = 0.0,
        seconds: float = 0.0,
        pickled: bytes = b"",
        buffers: list[memoryview] | None = None,
        fds: list[int] | None = None,
    ) -> None:
        assert not self.closed
        self.channel.arrive((kind, job, started, seconds, pickled))

    def copy(self) -> FakeWorkerEnd:
        """As a child has it after a fork."""
        return FakeWorkerEnd(self.channel)

    def close(self) -> None:
        if not self.closed:
            self.channel.ends.remove(self)
            self.channel.end_left()

    def close_in_child(self) -> None:
        raise NotImplementedError


class FakeChild(Child):
    """A process that runs nothing.

    Attributes:
        signals: those that it was sent, in their order.
        survives: signals that do not end it.
        starves: it would take them, if it ran.
        exitcode: how it has ended; None: it runs.
        end: its side of the channel.
        is_collected, is_closed: what was done with it.
        trouble: what its start raises, if anything.
    """

    def __init__(
        self,
        process_class: type[Process],
        context: BaseContext,
        name: str,
        target: Callable[..., object],
        args: tuple[Any, ...],
        fds: tuple[int, ...] = (),
        index: int = 0,
        ties: Ties = NO_TIES,
    ) -> None:
        self.index = index
        self.name = name
        self.pid = 0
        self.args = args
        self.signals: list[int] = []
        self.survives: set[int] = set()
        self.starves = False
        self.exitcode: int | None = None
        self.is_collected = False
        self.is_closed = False
        self.stopped = False
        self.trouble: BaseException | None = None
        self.end: FakeWorkerEnd
        self._ended = Readable()

    _pids = itertools.count(FIRST_PID)

    def start(self) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.pid = next(self._pids)
        self.end = self.args[0].copy()

    def look_after(self) -> None:
        assert self.pid

    def discard(self, timeout: float) -> None:
        if self.pid:
            self.kill()
            self.collect()
        self.close()

    def ask_status(self) -> None:
        assert self.exitcode is not None

    def fileno(self) -> int:
        return self._ended.fileno()

    def signal(self, signum: int) -> None:
        assert not self.is_closed, "its number may be another process's by now"
        self.signals.append(signum)
        if self.exitcode is not None or signum in self.survives:
            return
        if signum == LAST_WORDS:
            self.end.channel.box.written = STACK
            self.exit(-signum)
        elif signum == LOOK:
            self.end.channel.box.written = STACK
        elif signum == signal.SIGKILL:
            self.exit(-signum)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def exit(self, code: int, heir: bool = False) -> None:
        """It ends; `heir`: something that it forked still has its side of the channel."""
        if self.exitcode is None:
            self.exitcode = code
            self._ended.set()
            if not heir:
                self.end.close()

    def catches(self, signum: int) -> bool:
        return self.exitcode is None

    def has_handled(self, signum: int) -> bool:
        return signum not in self.survives

    def is_deaf_to(self, signum: int) -> bool:
        return signum in self.survives and not self.starves

    def is_stopped(self) -> bool:
        return self.stopped

    def collect(self) -> int | None:
        assert not self.is_closed
        self.is_collected = True
        return self.exitcode

    def wait(self, timeout: float) -> bool:
        return self.exitcode is not None

    def close(self) -> None:
        self.is_closed = True
        self._ended.close()


class FakeWorker:
    """A worker process as a test plays it."""

    def __init__(self, handle: WorkerHandle, clock: Clock) -> None:
        assert isinstance(handle.channel, FakeChannel)
        assert isinstance(handle.process, FakeChild)
        self.handle = handle
        self.channel = handle.channel
        self.child = handle.process
        self.end = handle.process.end
        self._clock = clock
        self.job = 0  # that it runs
        self.begun: list[int] = []  # all that it has ever started

    @property
    def waiting(self) -> list[int]:
        """The jobs in its inbox, unread."""
        return [ticket[0] for ticket in self.channel.inbox if not ticket[-1] & LEAVE]

    @property
    def told_to_leave(self) -> bool:
        return any(ticket[-1] & LEAVE for ticket in self.channel.inbox)

    def say(self, kind: int, job: int = 0, payload: bytes = b"", seconds: float = 0.0) -> None:
        self.end.report(kind, job, self._clock.now - seconds, seconds, payload)

    def become_ready(self) -> None:
        self.say(Kind.READY)

    def begin(self) -> int:
        """Read the next ticket and start its job; returns that."""
        ticket = self.end.receive()
        assert ticket is not None, "it was told to leave"
        self.job = ticket[0]
        self.begun.append(self.job)
        # It has loaded the call, too, in no time; its own clock has started since it took it.
        self.end.note(self.job, self._clock.now, math.nextafter(self._clock.now, 0.0))
        return self.job

    def next_item(self) -> None:
        """The running chunk comes to its next item: its limits' clock starts anew."""
        self.end.note(self.job, self._clock.now, self.channel.noted[2])

    def finish(self, value: object = None, seconds: float = 0.001) -> int:
        """Report the result of what it runs."""
        kind, pickled, _ = encode_result(value)
        job, self.job = self.job, 0
        self.say(kind, job, pickled, seconds)
        return job

    def fail(self, error: BaseException, seconds: float = 0.001) -> int:
        job, self.job = self.job, 0
        self.say(Kind.FAILED, job, dumps(encode_failure(error)), seconds)
        return job

    def run_next(self, value: object = None) -> int:
        self.begin()
        return self.finish(value)

    def say_exit(self, code: int, why: str = "") -> None:
        """Its task has the process exit."""
        self.say(Kind.EXITING, self.job, encode_exit(code, why))

    def die(self, code: int = -signal.SIGKILL, heir: bool = False) -> None:
        self.child.exit(code, heir)

    def leave(self) -> None:
        """Do as it was told."""
        assert self.end.receive() is None
        self.child.exit(0)


# ---- what jobs are for


class Told:
    """A result sink that remembers what it was told of its jobs."""

    def __init__(self) -> None:
        self.added: list[Job] = []
        self.started: list[tuple[int, int, float]] = []  # job, pid, when
        self.done: dict[int, tuple[bool, Any]] = {}  # by job
        self.limits: list[tuple[int, bool, float]] = []  # job, soft, seconds
        self.condition: Condition | None = None

    def job_added(self, job: Job) -> None:
        self.added.append(job)

    def job_started(self, job: Job, pid: int, time_accepted: float) -> None:
        self.started.append((job.id, pid, time_accepted))

    def job_done(self, job: Job, ok: bool, value: Any) -> Wakes | None:
        assert job.id not in self.done, f"{job} is resolved twice"
        self.done[job.id] = ok, value
        return self.condition

    def limit_passed(self, job: Job, soft: bool, timeout: float) -> None:
        self.limits.append((job.id, soft, timeout))

    def waiters(self) -> Wakes | None:
        return self.condition

    def error(self, job: Job) -> Any:
        """What the job has failed with."""
        ok, error = self.done[job.id]
        assert not ok
        return error

    def value(self, job: Job) -> Any:
        ok, value = self.done[job.id]
        assert ok, value
        return value


class FakeLog(Log):
    """What was noted, as (level, text)."""

    def __init__(self) -> None:
        super().__init__(in_background=False)
        self.notes: list[tuple[int, str]] = []

    def note(
        self, level: int, text: str, *args: object, error: BaseException | None = None
    ) -> None:
        self.notes.append((level, text % args))

    def texts(self, level: int) -> list[str]:
        return [text for noted, text in self.notes if noted == level]


class FakeReader:
    """An input that is being read."""

    def __init__(self) -> None:
        self.needed = True
        self.reason: Exception | None = None
        self.reads_on = False
        self.events = 0

    def handle_event(self) -> None:
        self.events += 1

    def abort(self, reason: Exception) -> None:
        self.reason = reason

    def read_on(self) -> None:
        self.reads_on = True

    def is_needed(self) -> bool:
        return self.needed


# ---- the pool


class Nursery:
    """Where a spawner's channels and children come from.

    Attributes:
        children: all that were made, in their order.
        trouble: what the start of the next ones raises, if anything.
    """

    def __init__(self) -> None:
        self.children: list[FakeChild] = []
        self.channels: list[FakeChannel] = []
        self.trouble: BaseException | None = None

    def channel(self) -> FakeChannel:
        self.channels.append(FakeChannel())
        return self.channels[-1]

    def child(
        self,
        process_class: type[Process],
        context: BaseContext,
        name: str,
        target: Callable[..., object],
        args: tuple[Any, ...],
        fds: tuple[int, ...] = (),
        index: int = 0,
        ties: Ties = NO_TIES,
    ) -> FakeChild:
        child = FakeChild(process_class, context, name, target, args, fds, index, ties)
        child.trouble = self.trouble
        self.children.append(child)
        return child

    def close(self) -> None:
        for child in self.children:
            child.close()
        for channel in self.channels:
            channel.close()


def fork_options(processes: int = 2, **options: Any) -> Options:
    return Options(processes, multiprocessing.get_context("fork"), **options)


def limits_of(
    retries: int | Retry | None = None,
    priority: int | None = None,
    deadline: float | None = None,
    **limits: Any,
) -> Limits:
    """Those of a job that asks for this."""
    found = Limits(**limits) if limits else NO_LIMITS
    return found.override(retries=retries).with_terms(priority, deadline)


class FakePool:
    """The parts of one pool, wired as `Engine` wires them, on fakes.

    Attributes:
        rearmed: how often the driver was told that something is due earlier.
        soon: what was to be called like callbacks: (function, arguments).
        is_released: the supervisor has ended the other roles.
    """

    def __init__(
        self,
        clock: Clock,
        nursery: Nursery,
        options: Options | None = None,
        *,
        cpus: int = 2,
        memory_interval: float | None = None,
        in_background: bool = False,
        pausing: Callable[[float], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        options = options or fork_options()
        self.clock = clock
        self.nursery = nursery
        self.log = FakeLog()
        self.told = Told()
        self.rearmed = 0
        self.rearm_trouble: Exception | None = None
        self.soon: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self.is_released = False
        self.state = state = PoolState(self.log, cpus)
        # As if jobs had been seen that are short enough for one to wait behind each.
        state.scheduler.mean_seconds = BATCH_SECONDS
        self.timers = timers = Timers(memory_interval, options.accept_delay)
        self.dispatcher = Dispatcher(state, timers, self._rearm, self._wait, self._call_soon)
        self.retrier = Retrier(state, timers, self.dispatcher)
        self.collector = Collector(state, timers, self.dispatcher, self.retrier)
        self.lifecycle = Lifecycle(state, self.collector, self._call_soon)
        self.terminator = Terminator(state, self.dispatcher, self.collector)
        self.time_limits = TimeLimits(
            state,
            timers,
            self.dispatcher,
            self.terminator,
            self.retrier,
            options.max_memory_per_task,
        )
        self.spawner = Spawner(
            options,
            state,
            self.dispatcher,
            self.lifecycle,
            in_background,
            pausing,
            on_generation=lambda generation: None,
        )
        self.supervisor = WorkerSupervisor(
            options.processes,
            state,
            self.dispatcher,
            self.collector,
            self.lifecycle,
            self.spawner,
            MemfdCache(state.wake_supervisor),
            self._on_end,
        )
        self.observer = Observer(state, self.supervisor)
        self.workers: list[FakeWorker] = []  # all that there have ever been

    def _rearm(self) -> None:
        self.rearmed += 1
        if self.rearm_trouble is not None:
            raise self.rearm_trouble

    def _wait(
        self, condition: Condition, /, predicate: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        is_true = predicate()
        assert is_true or timeout is not None, "the real one would wait"
        return is_true

    def _call_soon(self, call: Callable[..., object], *args: object) -> None:
        self.soon.append((call, args))

    def _on_end(self) -> None:
        self.is_released = True

    # ---- its workers

    def start(self, count: int = 1, ready: bool = True) -> list[FakeWorker]:
        """Start so many workers, and have them run their initializers."""
        self.spawner.spawn(count)
        new = self.see_new()
        if ready:
            for worker in new:
                worker.become_ready()
            self.collect()
        return new

    def see_new(self) -> list[FakeWorker]:
        """The workers that were started since the last time."""
        known = {worker.handle for worker in self.workers}
        new = [
            FakeWorker(handle, self.clock) for handle in self.state.workers if handle not in known
        ]
        self.workers += new
        return new

    def worker_of(self, job: Job) -> FakeWorker:
        """The one that has it."""
        return next(worker for worker in self.workers if worker.handle is job.slot)

    # ---- what its roles do

    def collect(self) -> None:
        """The result handler's part, until there is nothing to be read."""
        while readable := self.state.outboxes.ready(0):
            self.collector.collect(readable)
        self.state.outcomes.deliver()

    def supervise(self) -> float | None:
        """The supervisor's; returns when it wants to be called again, seconds."""
        wait = self.supervisor.supervise(self.state.exits.ready(0))
        self.see_new()
        self.state.outcomes.deliver()
        return wait

    def settle(self) -> None:
        """Both, until nothing happens any more."""
        for _ in range(20):
            self.collect()
            if self.supervise() != 0.0 and not self.state.exits.ready(0):
                break
        self.collect()

    def run_due(self) -> None:
        """The timeout handler's."""
        self.time_limits.run_due(self.clock.now)
        self.state.outcomes.deliver()

    # ---- jobs

    def job(self, *, size: int = 1, mode: int = 0, **limits: Any) -> Job:
        job = make_job(self.told, "fakes.task", mode, limits_of(**limits))
        job.pickled = b"a call"
        job.size = size
        return job

    def submit(self, count: int = 1, **limits: Any) -> list[Job]:
        jobs = [self.job(**limits) for _ in range(count)]
        for job in jobs:
            self.dispatcher.submit(job)
        return jobs

    def ids(self, jobs: Iterable[Job]) -> list[int]:
        return [job.id for job in jobs]

    def close(self) -> None:
        self.state.outboxes.close()
        self.state.exits.close()
