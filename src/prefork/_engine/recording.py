"""Records what a pool does, for a page that people look at.

    OpenJobs.note_run ──► run_over ─┐ (with the lock held: only noted)
    OutcomeQueue.deliver ─► outcome ┤                        (accounted for here, without the lock)
    MemoryWatch ────────────────────┴─► Recorder ──► Account ──► render

A run is known when it is over, and before its outcome, which names it. What a job has failed with
before it was run again is known with that, too.
"""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from prefork._describe import message, type_name
from prefork._engine.state import PoolPhase
from prefork._ipc.outcome import Outcome
from prefork._ipc.wire import CALL, EACH, MODE
from prefork._public import public
from prefork._report.account import Account, Run
from prefork._report.failures import Failure
from prefork._report.file import check, write
from prefork._report.page import Frame, render
from prefork._report.recorder import MemoryWatch, Recorder
from prefork._system.resources import resident
from prefork.errors import MaybeDecodingError

if TYPE_CHECKING:
    from prefork._engine.engine import Engine
    from prefork._engine.state import PoolState
    from prefork._policy.job import Job

__all__ = ["Recording"]


class Called(NamedTuple):
    """Which run of which job it was, and what for."""

    job: int
    attempt: int  # from 1 on
    mode: int
    first: int  # as `Job.index`
    size: int

    def __str__(self) -> str:
        parts = [f"job {self.job}"]
        if self.mode == EACH:
            parts.append(f"chunk {self.first} ({self.size} calls)")
        elif self.mode != CALL and self.size > 1:
            parts.append(f"items {self.first} to {self.first + self.size - 1}")
        elif self.mode != CALL or self.first:
            parts.append(f"item {self.first}")
        parts.append(f"attempt {self.attempt}" if self.attempt > 1 else "")
        return ", ".join(filter(None, parts))


def _called(job: Job, attempt: int) -> Called:
    return Called(job.id, attempt, job.flags & MODE, job.index, job.size)


class _Witness:
    """Tells the recorder what the pool tells this."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def run_over(self, job: Job, started: float, seconds: float) -> None:
        what = _called(job, job.retried() + 1)
        waited = started - job.handed_in
        self._recorder.note(Run(job.pid or 0, started, seconds, waited, job.function, what))

    def outcome(self, job: Job, ok: bool, value: Any) -> None:
        for attempt in job.attempts():
            what = _called(job, attempt.number)
            self._fail(attempt.error, what, job.function, attempt.pid or 0, None, False)
        errors = [] if ok else [value]
        if ok and job.flags & MODE == EACH:
            errors = [each.value for each in value if type(each) is Outcome and not each.ok]
        if errors:
            what = _called(job, job.retried() + 1)
            end = job.started + job.seconds if job.started else None
            for error in errors:
                self._fail(error, what, job.function, job.pid or 0, end, True)
        self._recorder.fold_many()

    def _fail(
        self,
        error: BaseException,
        what: Called,
        function: str,
        pid: int,
        end: float | None,
        is_final: bool,
    ) -> None:
        text, stack = _told(error)
        self._recorder.note(
            Failure(type_name(error), text, stack, what, function, pid, end, is_final)
        )


def _told(error: BaseException) -> tuple[str, str]:
    """Its message, and its stack if that is known; never raises, though it may be a user's class
    with code of its own."""
    text = message(error)
    try:
        stack = _stack(error)
    except Exception:
        return text, ""
    return (text.removesuffix(stack.rstrip()).rstrip() if stack else text), stack


def _stack(error: BaseException) -> str:
    """Where it was raised in the worker; "" if nobody knows."""
    stack = getattr(error, "traceback" if isinstance(error, MaybeDecodingError) else "stack", None)
    if not isinstance(stack, str) or not stack:
        stack = getattr(error.__cause__, "tb", None)  # a `RemoteTraceback`
    return stack.strip('"\n') if isinstance(stack, str) else ""


@public
class Recording:
    """What a pool does, from `Pool.record` on until it is stopped, kept in about a megabyte however
    much that is. As a context manager, it is stopped at the end of the block."""

    def __init__(self, engine: Engine, memory: bool) -> None:
        self._state = state = engine.state
        self._supervisor = engine.supervisor
        self._began = time.time()
        self._end: float | None = None  # monotonic, once it is stopped
        self._processes = engine.supervisor.processes
        account = Account(time.monotonic(), str, lambda: [each.pid for each in list(state.workers)])
        self._recorder = Recorder(account)
        self._watch = MemoryWatch(self._recorder, lambda: _memory(state)) if memory else None
        if self._watch is not None:
            self._watch.start()
        self._witness = _Witness(self._recorder)
        with state.lock:
            state.witnesses.add(self._witness)

    def stop(self) -> None:
        """Record no more. It may be called again."""
        self._cancel()
        if self._watch is not None:
            self._watch.stop()

    def _cancel(self) -> None:
        with self._state.lock:
            self._state.witnesses.remove(self._witness)
            if self._end is None:
                self._end = time.monotonic()
        if self._watch is not None:
            self._watch.cancel()

    def save(self, path: str | os.PathLike[str], title: str = "") -> None:
        """Write a page of HTML that needs nothing else to be looked at. That can be done more than
        once, and while it is still being recorded.

        Args:
            path: of the file. If there is one, it is replaced if it is such a page, too, or empty.
            title: what the page is headed with (str); else with the names of the functions.

        Raises:
            FileExistsError: there is something else.
            OSError: it cannot be written; what was there before is still there.
            RuntimeError: in a forked child, whose pool this is not.
        """
        path = os.fspath(path)
        check(path)
        write(path, self.html(title))

    def html(self, title: str = "") -> str:
        """The same page, as a str."""

        def page(account: Account) -> str:
            processes = max(self._processes, self._supervisor.processes)
            named = title or ", ".join(list(account.functions)[:3]) or "prefork"
            end = time.monotonic() if self._end is None else self._end
            return render(account, Frame(named, processes, end, "job", self._began, NOTE))

        self._state.check_owner()
        return self._recorder.read(page)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        if hasattr(self, "_witness"):
            self._cancel()  # nobody can look at it any more

    def __repr__(self) -> str:
        state = "running" if self._end is None else "stopped"
        return f"<{type(self).__name__}: {state}>"


NOTE = "A job is one call, or one chunk of the calls of a map."


def _memory(state: PoolState) -> list[tuple[int, int]] | None:
    """KiB, by process ids; None: the pool has ended."""
    if state.phase is PoolPhase.ENDED:
        return None
    pids = [worker.pid for worker in list(state.workers)]
    return [(pid, kib) for pid in pids if (kib := resident(pid)) is not None]
