"""One run: hands inputs to the pool, takes the outcomes, retries, writes records.

The feeder, the pool's callbacks and the signal handlers put events into one queue; the main thread
takes them out, and is the only one that counts and writes. The inputs that are on their way,
submitted and not written yet, are bounded by the window.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefork.cli.feeder import Feeder, Item
from prefork.cli.inputs import InputError, Inputs
from prefork.cli.interrupts import ASKING, Signals, Stopped
from prefork.cli.progress import Progress, duration
from prefork.cli.records import Earlier, OutputError, Sink, record
from prefork.cli.target import Target
from prefork.cli.work import (
    CUT_SHORT,
    DONE,
    FAILED,
    PLAIN,
    Call,
    Calling,
    Outcome,
    describe,
    describe_text,
    start_worker,
)
from prefork.errors import (
    LimitExceeded,
    PoolBrokenError,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from prefork.pool import Pool

__all__ = ["Ending", "Plan", "Run"]

WINDOW = 32  # chunks on their way, per worker
ORDERED_WINDOW = 1024  # inputs at least, with --ordered: so many may wait for a slow one
LEAVING = 5.0  # seconds that the workers have to leave by themselves at the end
STOPPING = 0.5  # seconds for a reader of ours that is slow, once we are asked to stop
BATCH = 1 << 16  # bytes of records written at once, at most about


@dataclass(frozen=True)
class Plan:
    """What is asked for; times in seconds, memory in KiB."""

    target: Target
    function: Callable[..., Any]
    processes: int
    timeout: float | None = None
    soft_timeout: float | None = None
    retries: int = 0
    chunksize: int = 1
    ordered: bool = False
    start_method: str | None = None
    calling: Calling = PLAIN
    initializer: Target | None = None
    max_memory: int | None = None  # of a worker while it runs one input
    max_tasks: int | None = None  # of one worker
    max_failures: int | None = None  # after so many, it is stopped

    @property
    def window(self) -> int:
        window = WINDOW * self.processes * self.chunksize
        return max(window, ORDERED_WINDOW) if self.ordered else window


class Ending(NamedTuple):
    """Why a run is over, if not because all is done."""

    signum: int | None = None
    problem: str | None = None
    unwritten: bool = False  # records were lost: the output takes no more
    closed: bool = False  # since nobody reads it any more
    failed: bool = False  # too many inputs have failed


@dataclass(slots=True, eq=False)
class Job:
    """What one worker is to do at once."""

    items: list[Item]
    number: int = 0  # in the pool, once that has it


class Finished(NamedTuple):
    job: Job
    value: Any = None
    error: BaseException | None = None


class Exhausted(NamedTuple):
    submitted: int
    reason: Exception | None


class Rejected(NamedTuple):
    item: Item
    reason: str


class Signalled(NamedTuple):
    signum: int


Event = Finished | Exhausted | Rejected | Signalled


class TooManyFailures(Exception):
    """Not an error: as many inputs have failed as were to be borne with."""


class Submitter:
    """Makes jobs of items; any thread may call it."""

    def __init__(self, pool: Pool, call: Call, report: Callable[[Event], object]) -> None:
        self._pool = pool
        self._call = call
        self._report = report
        self._open: dict[Job, None] = {}

    def __call__(self, items: list[Item]) -> None:
        """Raises PoolBrokenError; ValueError if the pool was terminated."""
        job = Job(items)
        self._open[job] = None
        many = len(items) > 1
        values = [item.value for item in items]

        def done(value: Any) -> None:
            self._report(Finished(job, value if many else [(True, value)]))

        def failed(error: BaseException) -> None:
            self._report(Finished(job, error=error))

        if many:
            job.number = self._pool.each_async(self._call, values, done, failed).job
        else:
            handle = self._pool.apply_async(
                self._call, (values[0],), callback=done, error_callback=failed
            )
            job.number = handle.job

    def open_jobs(self) -> dict[int, Job]:
        """Those that are not finished, by their numbers."""
        return {job.number: job for job in list(self._open)}

    def release(self, job: Job) -> None:
        """It is finished."""
        del self._open[job]


class Run:
    """One run of `prefork map`; call it once, in the main thread.

    Args:
        plan: what to do.
        inputs: what to do it with; closed at the end.
        earlier: inputs to leave out.
        progress: who shows it; its stats are kept here.
    """

    def __init__(self, plan: Plan, inputs: Inputs, earlier: Earlier, progress: Progress) -> None:
        self._plan = plan
        self._inputs = inputs
        self._progress = progress
        self._stats = progress.stats
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.signals = Signals(lambda signum: self._events.put(Signalled(signum)))
        self._feeder = Feeder(
            inputs,
            earlier,
            self._stats,
            plan.chunksize,
            plan.window,
            self._submit_input,
            lambda item, reason: self._events.put(Rejected(item, reason)),
            lambda submitted, reason: self._events.put(Exhausted(submitted, reason)),
        )
        self._expected: int | None = None  # inputs in all, once it is known
        self._concluded = 0
        self._lines: list[bytes] = []  # to be written
        self._next_index = 0
        self._held: dict[int, bytes] = {}  # --ordered: until those before them are here
        self._problem: str | None = None
        self._stopping = False
        # Its warnings are in the records, with more than they say.
        logging.getLogger("prefork").addHandler(logging.NullHandler())

    def __call__(self, output: Sink) -> Ending:
        self._output = output
        with self.signals:
            try:
                self._pool = self._make_pool()
            except (OSError, PoolBrokenError) as exc:
                return Ending(problem=f"cannot start the workers: {exc}")
            self._submit = Submitter(self._pool, Call(self._plan.function), self._events.put)
            self._progress.watch(self._longest)
            try:
                return self._run()
            finally:
                self._pool.terminate()
                self._feeder.stop()
                if self._feeder.join(1.0):
                    self._inputs.close()

    def _make_pool(self) -> Pool:
        plan = self._plan
        return Pool(
            plan.processes,
            start_worker,
            (plan.target, plan.calling, plan.initializer),
            plan.max_tasks,
            timeout=plan.timeout,
            soft_timeout=plan.soft_timeout,
            max_memory_per_task=plan.max_memory,
            context=multiprocessing.get_context(plan.start_method),
        )

    def _submit_input(self, items: list[Item]) -> None:
        self._submit(items)

    def _run(self) -> Ending:
        try:
            self._feeder.start()
            while self._concluded != self._expected:
                self._handle_events()
                self._write()
            self._stats.ended = time.monotonic()  # whatever workers still do, it is not our work
            self._pool.close()
            with contextlib.suppress(Stopped), self.signals.waiting():
                self._pool.join(LEAVING)
            return Ending(problem=self._problem)
        except Stopped:
            self._stop()
            return Ending(signum=self.signals.received)
        except TooManyFailures:
            self._stop()
            return Ending(failed=True)
        except PoolBrokenError as exc:
            self._stop()
            return Ending(problem=str(exc))
        except OutputError as exc:
            return Ending(problem=str(exc), unwritten=True, closed=exc.is_closed)

    # ---- events

    def _handle_events(self) -> None:
        """Wait for one, and take those that are there already, but for no more than a batch."""
        patience = self._progress.next_tick()
        if patience == 0:
            self._progress.tick()
            return
        try:
            event = self._events.get(timeout=patience)
        except queue.Empty:
            return
        size = 0
        with contextlib.suppress(queue.Empty):
            while True:
                self._handle(event)
                size += len(self._lines[-1]) if self._lines else 0
                if size > BATCH or self._concluded == self._expected:
                    return
                event = self._events.get_nowait()

    def _handle(self, event: Event) -> None:
        match event:
            case Finished(job, value, None):
                self._settle(job, value)
            case Finished(job, _, error):
                assert error is not None
                self._settle_failed(job, error)
            case Exhausted(submitted, reason):
                self._end_input(submitted, reason)
            case Rejected(item, reason):
                self._conclude(item, Outcome(FAILED, describe_text("InputError", reason), 0.0, 0))
            case Signalled(signum) if signum in ASKING:
                self._tell_how_it_is()
            case Signalled():
                raise Stopped

    def running(self) -> dict[int, tuple[str, float]]:
        """The inputs that are being run, as JSON, and for how many seconds; by process ids."""
        found = {}
        now = time.monotonic()
        jobs = self._submit.open_jobs()
        for worker in self._pool.statistics().workers:
            job = jobs.get(worker.job or 0)
            if job is not None and worker.since is not None:
                found[worker.pid] = job.items[worker.item or 0].text.decode(), now - worker.since
        return found

    def _longest(self) -> tuple[str, float] | None:
        return max(self.running().values(), key=lambda each: each[1], default=None)

    def _tell_how_it_is(self) -> None:
        """What each worker does, with its stack."""
        running = self.running()
        for pid, stack in self._pool.dump_stacks().items():
            what = "has nothing to do"
            if pid in running:
                given, seconds = running[pid]
                what = f"{given}, for {duration(seconds)}"
            self._progress.say(f"worker {pid}: {what}\n{stack}".rstrip())

    def _end_input(self, submitted: int, reason: Exception | None) -> None:
        self._expected = submitted
        if isinstance(reason, InputError):
            self._problem = str(reason)
        elif reason is not None:
            raise reason
        else:
            self._stats.total = submitted + self._stats.skipped

    # ---- outcomes

    def _settle(self, job: Job, value: list[tuple[bool, Any]]) -> None:
        self._submit.release(job)
        for item, (ok, outcome) in zip(job.items, value, strict=True):
            if ok:
                self._conclude(item, outcome)
            elif isinstance(outcome, PoolBrokenError) and not self._stopping:
                raise outcome
            elif not isinstance(outcome, (Terminated, PoolBrokenError)):
                self._conclude(item, _failure(outcome))

    def _settle_failed(self, job: Job, error: BaseException) -> None:
        """The job has failed as a whole: its worker was lost before it came to the inputs, or it
        did not get there."""
        if isinstance(error, PoolBrokenError) and not self._stopping:
            raise error
        self._submit.release(job)
        if isinstance(error, (Terminated, PoolBrokenError)):
            return
        if len(job.items) == 1 or isinstance(error, (WorkerLostError, LimitExceeded)):
            for item in job.items:
                self._conclude(item, _failure(error))
        else:  # which one cannot be sent?
            for item in job.items:
                self._resubmit([item])

    def _resubmit(self, items: list[Item]) -> None:
        if not self._stopping:
            self._submit(items)

    def _conclude(self, item: Item, outcome: Outcome) -> None:
        """An input has come through, has failed, or gets another try."""
        if outcome.kind == CUT_SHORT and item.tries < self._plan.retries:
            item.tries += 1
            self._resubmit([item])
            return
        self._concluded += 1
        key = b"result" if outcome.kind == DONE else b"error"
        line = record(item.text, key, outcome.text, outcome.seconds, outcome.pid, item.tries + 1)
        if outcome.kind == DONE:
            self._stats.count()
        elif (failure := self._stats.count_failure(item.text, outcome.text)) is not None:
            self._progress.say(f"failed: {failure}", "red")
        if self._plan.ordered:
            self._held[item.index] = line
            while (next_line := self._held.pop(self._next_index, None)) is not None:
                self._lines.append(next_line)
                self._next_index += 1
        else:
            self._lines.append(line)
        most = self._plan.max_failures
        if most is not None and self._stats.failed >= most and not self._stopping:
            raise TooManyFailures

    # ---- writing

    def _write(self) -> None:
        if self._lines:
            self._output.write(self._take_lines())

    def _take_lines(self) -> bytes:
        """What is to be written; there is room for as many inputs then."""
        lines = b"".join(self._lines)
        self._feeder.release(len(self._lines))
        self._lines.clear()
        return lines

    def _stop(self) -> None:
        """End now, but keep all that is done, be it in the middle of a job."""
        self._stopping = True
        self._feeder.stop()
        self._pool.terminate()
        self._pool.join(STOPPING)
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if isinstance(event, Finished):
                    self._handle(event)
        self._lines += [self._held[index] for index in sorted(self._held)]
        with contextlib.suppress(OutputError):
            self._output.write_within(self._take_lines(), STOPPING)


def _failure(error: BaseException) -> Outcome:
    """Of an input whose worker could not tell it."""
    again = isinstance(error, (WorkerLostError, TimeLimitExceeded, SoftTimeLimitExceeded))
    seconds, pid = getattr(error, "seconds", None), getattr(error, "pid", 0)
    return Outcome(CUT_SHORT if again else FAILED, describe(error), seconds or 0.0, pid)
