"""The handle of a `map_async`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefork._compiler import mypyc_attr
from prefork._policy.chunks import MOST_BYTES
from prefork._policy.job import Job, ResultSink
from prefork._results.apply import Callbacks, Handle
from prefork._results.protocols import EngineRef
from prefork._system.condition import Condition
from prefork._system.locks import RLock
from prefork._system.uninterrupted import uninterrupted
from prefork.errors import Terminated

__all__ = ["MapResult"]


@mypyc_attr(allow_interpreted_subclasses=True)
class MapResult(Handle):
    """The results of all jobs of a `map_async` or `starmap_async`, as one list.

    As in `multiprocessing.Pool`, it becomes ready when all its chunks are finished, and the
    first error among them is its error. What other chunks came to is not kept then.
    """

    __slots__ = (
        "_bytes",
        "_done",
        "_error",
        "_failed",
        "_function",
        "_items",
        "_jobs",
        "_lock",
        "_measured",
        "_most_jobs",
        "_note_progress",
        "_values",
        "cancelled",
        "number",
        "room",
    )

    def __init__(
        self,
        pool: object,
        engine: EngineRef,
        function: str,
        length: int,
        callbacks: Callbacks | None = None,
    ) -> None:
        super().__init__(pool, engine, callbacks)
        self._function = function
        self._values: list[Any] = [None] * length
        self._error: BaseException | None = None
        self._lock = RLock()  # a signal handler may call, too
        self.number = 0  # of its first job
        self._items = length  # that are expected
        self._done = 0  # items
        self._failed = 0  # of these
        self._note_progress: Callable[[], object] | None = None
        self._jobs = 0  # on their way
        self._bytes = 0  # of these
        self._most_jobs = 1
        self._measured: Callable[[int, float], object] | None = None
        self.room = Condition()
        self.cancelled = False
        if length == 0:
            self._finish(True, [])

    def cancel(self) -> bool:
        """Have none of its calls run that have not been started; those that have go on, and their
        results are dropped. It fails with `Terminated`, unless an item had failed before.

        Returns:
            Whether there was anything to end: False if it was ready.
        """
        engine = self._engine
        return engine is not None and self._end(engine.terminator.cancel_all)

    def terminate(self) -> bool:
        """End all its jobs, wherever they are; it fails with `Terminated`, unless an item had
        failed before.

        Returns:
            Whether there was anything to end: False if it was ready.
        """
        engine = self._engine
        return engine is not None and self._end(engine.terminator.terminate_all)

    def _end(self, end_all: Callable[[ResultSink], None]) -> bool:
        return uninterrupted(lambda: self._end_now(end_all))

    def _end_now(self, end_all: Callable[[ResultSink], None]) -> bool:
        self.cancelled = True
        self.room.notify_all()
        self.end(error := self._terminated())
        end_all(self)
        return self._result is error

    def _terminated(self) -> Terminated:
        return Terminated(f"the map of {self._function} was terminated")

    # ---- how far it is

    @property
    def done(self) -> int:
        """How many items have finished, failed ones included (int). Those of a chunk do so
        together."""
        return self._done

    @property
    def failed(self) -> int:
        """How many of them were in chunks that have failed (int)."""
        return self._failed

    @property
    def remaining(self) -> int:
        """How many items have not finished (int)."""
        return self._items - self._done

    def expected(self) -> int | None:
        return self._items

    def has_ended(self) -> bool:
        return self._ok is not None

    def watch(self, note_progress: Callable[[], object]) -> None:
        self._note_progress = note_progress

    # ---- the feeder's side

    def limit(self, jobs: int, measured: Callable[[int, float], object] | None = None) -> None:
        """Have at most so many jobs on their way; call `measured(items, seconds)` after each."""
        self._most_jobs = jobs
        self._measured = measured

    def has_room(self) -> bool:
        return self._jobs < self._most_jobs and self._bytes < MOST_BYTES

    def job_added(self, job: Job) -> None:
        with self._lock:
            self.number = self.number or job.id
            self._jobs += 1
            self._bytes += job.nbytes
        if self.cancelled:  # meanwhile: it shall not run
            job.refuse(self._terminated())

    def end(self, error: BaseException | None = None) -> None:
        """The input was handed over, or could not be: then what was is all there will be."""
        if error is not None:
            signal, partial = None, []
            with self._lock:
                if self._ok is None:
                    partial = self._fail(error)
                    signal = self._finish(False, error)
            partial.clear()
            if signal is not None:
                signal.notify_all()
            if self._note_progress is not None:
                self._note_progress()

    # ---- the pool's side

    def job_started(self, job: Job, pid: int, time_accepted: float) -> None:
        pass

    def limit_passed(self, job: Job, soft: bool, timeout: float) -> None:
        pass

    def job_done(self, job: Job, ok: bool, value: Any) -> Condition | None:
        if self._measured is not None and ok:
            self._measured(job.size, job.seconds)
        signal: Condition | None = self.room
        partial: list[Any] = []
        with self._lock:
            if not ok:
                partial = self._fail(value)
            elif self._error is None:
                self._values[job.index : job.index + job.size] = value
            self._done += job.size
            if not ok:
                self._failed += job.size
            self._jobs -= 1
            self._bytes -= job.nbytes
            if self._done == self._items and self._ok is None:
                if self._error is not None:
                    signal = self._finish(False, self._error)
                else:
                    signal = self._finish(True, self._values)
        partial.clear()
        if self._note_progress is not None:
            self._note_progress()
        return signal

    def _fail(self, error: BaseException) -> list[Any]:
        """The first error counts.

        Returns:
            What was computed so far, to be dropped once the lock is free, since finalizers of the
            user's may run then. It does not stay: who keeps the exception often keeps the handle.
        """
        if self._error is None:
            self._error = error
        partial, self._values = self._values, []
        return partial

    def title(self) -> str:
        return f"the result of the map of {self._function}"

    def __repr__(self) -> str:
        progress = f"{self._done} of {self._items} items, {self._describe()}"
        return f"<{type(self).__name__} of {self._function}: {progress}>"
