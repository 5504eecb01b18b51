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
from functools import partial
from typing import Any, NamedTuple

from prefork._observe.rates import duration
from prefork._system.locks import Lock
from prefork.cli.feeder import Feeder, Item
from prefork.cli.inputs import InputError, Inputs
from prefork.cli.interrupts import ASKING, Signals, Stopped
from prefork.cli.plan import Chunks, Plan
from prefork.cli.progress import Progress
from prefork.cli.recorded import Recorded
from prefork.cli.records import Earlier, OutputError, Sink, record
from prefork.cli.remote import RemotePool
from prefork.cli.work import (
    AGAIN,
    DONE,
    FAILED,
    LATER,
    Call,
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

__all__ = ["Ending", "Run"]

GRACE = 10.0  # seconds that work which keeps its limits itself has for that
LEAVING = 5.0  # seconds that the workers have to leave by themselves at the end
STOPPING = 0.5  # seconds for a reader of ours that is slow, once we are asked to stop
BATCH = 1 << 16  # bytes of records written at once, at most about


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


class TooManyFailures(Exception):
    """Not an error: as many inputs have failed as were to be borne with."""


class Run:
    """One run of a command; call it once, in the main thread.

    Args:
        plan: what to do.
        inputs: what to do it with; closed at the end.
        earlier: inputs to leave out.
        progress: who shows it; its stats are kept here.
        recorded: where it is noted what is done when, if it is to be.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Inputs,
        earlier: Earlier,
        progress: Progress,
        recorded: Recorded | None = None,
    ) -> None:
        self._recorded = recorded
        self._plan = plan
        self._inputs = inputs
        self._progress = progress
        self._stats = progress.stats
        self._chunks = Chunks(plan)
        self._open: dict[Job, None] = {}
        self._submitting = Lock()
        self._events: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.signals = Signals(self._later(self._signalled))
        self._feeder = Feeder(
            inputs,
            earlier,
            self._stats,
            self._chunks.size,
            self._chunks.window,
            self._submit,
            self._later(self._reject),
            self._later(self._end_input),
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
            except Stopped:
                return Ending(signum=self.signals.received)
            self._call = Call(self._plan.work)
            self._progress.watch(self._longest)
            watching: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
            if self._recorded is not None and isinstance(self._pool, Pool):
                watching = self._recorded.watching(self._pool)
            try:
                with watching:
                    return self._run()
            finally:
                self._pool.terminate()
                if self._stats.ended is None:
                    self._plan.work.end()
                self._feeder.stop()
                if self._feeder.join(1.0):
                    self._inputs.close()

    def _make_pool(self) -> Pool | RemotePool:
        plan, work = self._plan, self._plan.work
        if plan.app is not None:
            with self.signals.waiting():  # for a broker and workers that may not be there
                return RemotePool(plan)
        timeout, alone = plan.timeout, work.keeps_limits
        if alone and timeout is not None:
            timeout += GRACE
        return Pool(
            plan.processes,
            start_worker,
            (work, plan.log_dir),
            plan.max_tasks_per_child,
            timeout=timeout,
            soft_timeout=None if alone else plan.soft_timeout,
            max_memory_per_task=None if alone else plan.max_memory,
            context=multiprocessing.get_context(plan.start_method),
            capture_output=None if plan.log_dir else self._progress.capture,
        )

    def _submit(self, items: list[Item]) -> None:
        """Any thread may call it.

        Raises:
            PoolBrokenError, ValueError: the pool has ended.
        """
        job = Job(items)
        if self._recorded is not None:
            self._recorded.note_handed_in(items)
        done, failed = self._later(self._settle, job), self._later(self._settle_failed, job)
        with self._submitting:  # who looks at the jobs finds their numbers
            self._open[job] = None
            tasks = self._chunks.tasks(items)
            job.number = self._pool.each_async(self._call, tasks, done, failed).job

    def _later(self, handle: Callable[..., object], *first: Any) -> Callable[..., object]:
        """What any thread may call, and the main thread then handles."""
        return lambda *rest: self._events.put(partial(handle, *first, *rest))

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
                event()
                size += len(self._lines[-1]) if self._lines else 0
                if size > BATCH or self._concluded == self._expected:
                    return
                event = self._events.get_nowait()

    def _signalled(self, signum: int) -> None:
        if signum in ASKING:
            self._tell_how_it_is()
        elif not self._stopping:
            raise Stopped

    def _reject(self, item: Item, reason: str) -> None:
        self._conclude(item, Outcome(FAILED, describe_text("InputError", reason), 0.0, 0))

    def running(self) -> dict[int, tuple[str, float]]:
        """The inputs that are being run, as JSON, and for how many seconds; by process ids."""
        found = {}
        now = time.monotonic()
        with self._submitting:
            jobs = {job.number: job for job in self._open}
        for worker in self._pool.statistics().workers:
            job = jobs.get(worker.job or 0)
            if job is not None and worker.since is not None:
                found[worker.pid] = job.items[worker.item or 0].text.decode(), now - worker.since
        return found

    def _longest(self) -> tuple[str, float] | None:
        return max(self.running().values(), key=lambda each: each[1], default=None)

    def _tell_how_it_is(self) -> None:
        """What each worker does, with its stack."""
        if isinstance(self._pool, RemotePool):
            self._pool.tell(self._progress.say)
            return
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
        elif reason is not None and not self._stopping:
            raise reason
        else:
            self._stats.total = submitted + self._stats.skipped

    # ---- outcomes

    def _settle(self, job: Job, outcomes: list[tuple[bool, Any]]) -> None:
        self._release(job)
        later = []
        seconds = []
        for item, (ok, value) in zip(job.items, outcomes, strict=True):
            outcome = Outcome(*value) if ok else self._failure(value)
            if outcome is None:
                continue
            if outcome.kind == LATER:
                later.append(item)
            else:
                seconds.append(outcome.seconds)
                self._conclude(item, outcome)
        self._chunks.measure(seconds)
        size = self._chunks.size()
        for start in range(0, len(later), size):
            self._resubmit(later[start : start + size])

    def _settle_failed(self, job: Job, error: BaseException) -> None:
        """The job has failed as a whole: its worker was lost before it came to the inputs, or it
        did not get there."""
        if len(job.items) == 1 or isinstance(
            error, (WorkerLostError, LimitExceeded, PoolBrokenError, Terminated)
        ):
            self._settle(job, [(False, error)] * len(job.items))
        else:  # which one cannot be sent?
            self._release(job)
            for item in job.items:
                self._resubmit([item])

    def _release(self, job: Job) -> None:
        with self._submitting:
            del self._open[job]

    def _failure(self, error: BaseException) -> Outcome | None:
        """Of an input whose worker could not tell it; None: it was not done.

        Raises:
            PoolBrokenError: nothing more can be done.
        """
        if isinstance(error, (PoolBrokenError, Terminated)):
            if isinstance(error, PoolBrokenError) and not self._stopping:
                raise error
            return None
        again = isinstance(error, (WorkerLostError, TimeLimitExceeded, SoftTimeLimitExceeded))
        seconds, pid = getattr(error, "seconds", None), getattr(error, "pid", 0)
        return Outcome(AGAIN if again else FAILED, describe(error), seconds or 0.0, pid)

    def _resubmit(self, items: list[Item]) -> None:
        if not self._stopping:
            self._submit(items)

    def _conclude(self, item: Item, outcome: Outcome) -> None:
        """An input has come through, has failed, or gets another try."""
        is_tried_again = outcome.kind == AGAIN and item.tries < self._plan.retries
        if self._recorded is not None:
            self._recorded.note(item, outcome, not is_tried_again)
        if is_tried_again:
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
                self._events.get_nowait()()
        self._lines += [self._held[index] for index in sorted(self._held)]
        with contextlib.suppress(OutputError):
            self._output.write_within(self._take_lines(), STOPPING)
