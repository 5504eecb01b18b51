"""Lazy iterators over results: `imap` and `imap_unordered`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import TimeoutError
from typing import Any, Final

from prefork._compiler import mypyc_attr
from prefork._ipc.wire import INLINE
from prefork._policy.chunks import LEAST_AHEAD, MOST_BYTES, read_ahead
from prefork._policy.job import Job
from prefork._results.protocols import EngineRef
from prefork._system.condition import Condition
from prefork._system.running_loop import is_any_running
from prefork.errors import Terminated

__all__ = ["IMapIterator", "Items"]

Outcome = tuple[bool, Any]  # whether it went well; the result, or the exception
MEASURED: Final = 64  # jobs, before it is decided anew how far the input is read ahead


class Items:
    """What an iterator, the feeder of its jobs and the pool share.

    Apart from the iterator itself, so that the pool keeps going only while a consumer holds it.

    Args:
        pool: who was asked for it; it lives on until this is over.
        engine: who runs that pool.
        buffersize: how many items the input is read ahead; None: as many as seem right.
        ordered: outcomes are taken in the order of the input.
        on_cancel: called when nobody will take results any more.
    """

    def __init__(
        self,
        pool: object,
        engine: EngineRef,
        function: str,
        buffersize: int | None,
        chunksize: int,
        workers: int,
        ordered: bool,
        on_cancel: Callable[[], object],
    ) -> None:
        self._pool: object = pool
        self._engine: EngineRef | None = engine
        self._on_cancel = on_cancel
        self.function = function
        self._ordered = ordered
        self._least = buffersize or LEAST_AHEAD * workers * chunksize
        self.buffersize = max(self._least, chunksize)  # items
        self.chunksize = chunksize  # items; of several, a job's result is a list of outcomes
        self._workers = workers if buffersize is None else 0  # 0: the buffer keeps its size
        self.sent = 0  # items handed to the pool
        self.arrived = 0  # items whose outcomes were put where the consumer takes them
        self.jobs = 0
        self.finished_jobs = 0
        self.bytes = 0  # of all its jobs
        self.finished_bytes = 0  # of those that have finished
        self.waiting_bytes = 0  # of large results that the consumer has not taken
        self._large: deque[tuple[int, int]] = deque()
        """Of these: with how many items taken it will be, and its bytes."""
        self.exhausted = False  # there will be no more jobs
        self.cancelled = False  # nobody will take anything any more
        self.input_error: BaseException | None = None  # to be raised once, at the end
        self.done = 0  # items
        self.failed = 0  # of these; counted only while somebody watches
        self._note_progress: Callable[[], object] | None = None
        self.needed_loop: object = None  # the event loop that reads the input, if one does
        self._is_terminated = False  # what has been handed in is not to run, either
        self.room = Condition()
        self.arrivals = Condition()
        self._early: dict[int, tuple[Sequence[Outcome], int]] = {}  # before that of an earlier job
        self._ready: deque[Outcome] = deque()
        self._next_job = 0
        self._seconds = 0.0  # of the jobs since the buffer was sized

    @property
    def taken(self) -> int:
        """How many items the consumer has taken."""
        return self.arrived - len(self._ready)

    # ---- how far it is

    def expected(self) -> int | None:
        """How many items there are; None: the input has not ended."""
        return self.sent if self.exhausted else None

    def has_ended(self) -> bool:
        return self._is_over()

    def watch(self, note_progress: Callable[[], object]) -> None:
        self._note_progress = note_progress

    # ---- the feeder's side

    def has_room(self) -> bool:
        """Whether the input may be read on: it must not run ahead of the consumer, nor fill the
        memory."""
        return self.cancelled or (
            self.sent - self.taken + self.chunksize <= self.buffersize
            and self.bytes - self.finished_bytes + self.waiting_bytes < MOST_BYTES
        )

    def job_added(self, job: Job) -> None:
        self.sent += job.size
        self.jobs += 1
        self.bytes += job.nbytes
        if self._is_terminated:  # meanwhile
            job.refuse(self._terminated())

    def end(self, error: BaseException | None = None) -> None:
        """The input has ended, by itself or with an exception; only the first call counts."""
        if not self.exhausted:
            self.input_error = error
            self.exhausted = True
            self.arrivals.notify_all()
            if self._note_progress is not None:
                self._note_progress()

    def cancel(self) -> None:
        """The consumer has gone."""
        self.cancelled = True
        self._let_go()
        self.room.notify_all()
        self.arrivals.notify_all()
        if self._note_progress is not None:
            self._note_progress()
        self._on_cancel()

    def terminate(self) -> None:
        """The consumer has gone, and what was handed in is to end, wherever it is."""
        engine = self._engine
        self._is_terminated = True
        self.cancel()
        if engine is not None:
            engine.terminator.terminate_all(self)

    def _let_go(self) -> None:
        self._engine = None
        self._pool = None

    def _terminated(self) -> Terminated:
        return Terminated(f"the results of {self.function} are not wanted any more")

    # ---- the pool's side

    def job_started(self, job: Job, pid: int, time_accepted: float) -> None:
        pass

    def limit_passed(self, job: Job, soft: bool, timeout: float) -> None:
        pass

    def waiters(self) -> Condition:
        return self.arrivals

    def job_done(self, job: Job, ok: bool, value: Any) -> Condition:
        outcomes = value if self.chunksize > 1 and ok else ((ok, value),) * job.size
        self.waiting_bytes += job.result_bytes
        if not self._ordered:
            self._put(outcomes, job.result_bytes)
        elif job.index != self._next_job:
            self._early[job.index] = outcomes, job.result_bytes
        else:
            self._put(outcomes, job.result_bytes)
            self._next_job += 1
            while self._next_job in self._early:
                self._put(*self._early.pop(self._next_job))
                self._next_job += 1
        self.done += job.size
        if self._note_progress is not None:
            self.failed += sum(not ok for ok, _ in outcomes)
        self.finished_jobs += 1  # last: then the consumer finds what there is before the end
        self.finished_bytes += job.nbytes
        if self._note_progress is not None:
            self._note_progress()
        if job.nbytes > INLINE:
            self.room.notify_all()
        if self._workers:
            self._seconds += job.seconds
            if self.finished_jobs % MEASURED == 0:
                self._size_buffer()
        return self.arrivals

    def _put(self, outcomes: Sequence[Outcome], nbytes: int) -> None:
        if nbytes:
            self._large.append((self.arrived + len(outcomes), nbytes))
        self._ready.extend(outcomes)
        self.arrived += len(outcomes)  # after it: there must never seem to be more room

    def _size_buffer(self) -> None:
        """A wide one does no good, but takes memory, while results wait for the consumer."""
        if self.finished_jobs * self.chunksize - self.taken > self._least:
            self.buffersize = self._least
        else:
            chunks = read_ahead(self._workers, self._seconds / MEASURED)
            self.buffersize = chunks * self.chunksize
        self._seconds = 0.0

    def read_by(self, loop: object) -> None:
        """This event loop reads the input now; None: no loop does."""
        self.needed_loop = loop

    # ---- the consumer's side

    def has_news(self) -> bool:
        return bool(self._ready) or self._is_over()

    def _is_over(self) -> bool:
        return self.cancelled or (self.exhausted and self.finished_jobs == self.jobs)

    def take(self, timeout: float | None) -> Outcome | None:
        """The next outcome; None at the end."""
        while (outcome := self.take_ready()) is None:
            if not self._wait(timeout):
                return None
        return outcome

    def take_ready(self) -> Outcome | None:
        """The next outcome, if it is here."""
        if (outcome := self._next_outcome()) is None:
            return None
        has_room = self._large and self._release_large()
        # In batches, so that the feeder is not woken for each item.
        if has_room or (self.sent - self.taken) * 2 <= self.buffersize:
            self.room.notify_all()
        return outcome

    def _release_large(self) -> bool:
        """Count no more what the consumer has taken; whether that was anything."""
        taken, before = self.taken, self.waiting_bytes
        while self._large and self._large[0][0] <= taken:
            self.waiting_bytes -= self._large.popleft()[1]
        return self.waiting_bytes < before

    def _next_outcome(self) -> Outcome | None:
        try:
            return self._ready.popleft()
        except IndexError:
            return None

    def _wait(self, timeout: float | None) -> bool:
        """Wait for another outcome; False at the end."""
        if (pending := self.begin_wait()) is None:
            return False
        engine, arrivals = pending
        if (timeout is None or timeout > 0) and is_any_running():
            engine.check_loop(self.needed_loop)
        if not engine.wait_for(arrivals, self.has_news, timeout):
            raise TimeoutError(f"no result arrived within {timeout:g} s")
        return True

    def begin_wait(self) -> tuple[EngineRef, Condition] | None:
        """Who runs the pool, and what is notified of results; None at the end."""
        if self._is_over() and not self._ready:
            self._let_go()
        engine = self._engine
        return None if engine is None else (engine, self.arrivals)

    def engine(self) -> EngineRef | None:
        """Who runs the pool; None: there is nothing more to come."""
        return self._engine

    def take_input_error(self) -> BaseException | None:
        """What the input has raised, if it has; once."""
        error, self.input_error = self.input_error, None
        return error


@mypyc_attr(allow_interpreted_subclasses=True)
class IMapIterator:
    """The results of `imap`, one after another, in the order of the input.

    The input is read as results are taken: at most `buffersize` items ahead. An iterator that is
    dropped reads no more input.
    """

    __slots__ = ("items",)

    def __init__(self, items: Items) -> None:
        self.items = items  # the pool's side of it

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Args:
            timeout: how many seconds to wait for it at most (int or float); None: for ever.

        Raises:
            StopIteration: there are no more.
            multiprocessing.TimeoutError: it is not here in time; call again for the same result.
            Exception: what the task for this item raised, or what the input iterable raised
                (that ends the iteration).
        """
        outcome = self.items.take(timeout)
        if outcome is None:
            end = self.items.take_input_error()
            raise StopIteration if end is None else end
        return self.give(outcome)

    def give(self, outcome: Outcome) -> Any:
        """The value of an outcome that was taken, or its exception."""
        ok, value = outcome
        if ok:
            return value
        if isinstance(value, StopIteration | StopAsyncIteration):  # it would end the iteration
            error = RuntimeError(f"the task raised {type(value).__name__}")  # (PEP 479)
            error.__cause__ = value
            raise error
        raise value

    def close(self) -> None:
        """Take no more results: the input is read no further."""
        self.items.cancel()

    def __repr__(self) -> str:
        items = self.items
        return f"<{type(self).__name__} of {items.function}: {items.taken} items taken>"
