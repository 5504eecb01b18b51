"""Jobs are handed in, and ended, as the verbs and the handles of a pool do it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prefork._engine.state import InputReader, PoolPhase
from prefork._policy.job import Job, ResultSink
from prefork._system.uninterrupted import uninterrupted
from prefork.cluster.backlog import Resolved
from prefork.errors import Terminated

if TYPE_CHECKING:
    from prefork._engine.dispatcher import Wait
    from prefork.cluster.engine import ClusterEngine

__all__ = ["Dispatcher", "Terminator"]


class Dispatcher:
    """Takes jobs."""

    def __init__(self, engine: ClusterEngine) -> None:
        self._engine = engine
        self._state = engine.state
        self.wait_for: Wait = engine.wait_for

    def submit(self, job: Job) -> None:
        """Take a job: from now on it will be resolved exactly once."""
        with self._state.lock:
            self._state.check_running()
            self._admit(job)
        self._engine.wake()

    def submit_fed(self, job: Job) -> None:
        """The same with a job of an input; those are read to their ends when the pool is closed."""
        with self._state.lock:
            if self._state.phase is not PoolPhase.CLOSE:
                self._state.check_running()
            self._admit(job)
        self._engine.wake()

    def submit_when_free(self, job: Job) -> None:
        """The same, once fewer jobs are open than there are processes."""
        engine = self._engine

        def is_free() -> bool:
            is_running = self._state.phase is PoolPhase.RUN
            return not is_running or len(engine.backlog.jobs) < engine.processes

        engine.wait_for(engine.idle, is_free)
        self.submit(job)

    def _admit(self, job: Job) -> None:
        try:
            self._take(job)
        except BaseException:  # a signal handler's, such as KeyboardInterrupt
            uninterrupted(lambda: self._give_up(job))
            raise

    def _give_up(self, job: Job) -> None:
        error = Terminated("the submission of this job was interrupted")
        self._engine.tell_later(self._engine.backlog.withdraw(job, error))

    def _take(self, job: Job) -> None:
        job.sink.job_added(job)
        if (error := job.pickling_error) is not None:
            job.resolve()
            self._engine.tell_later([Resolved(job, False, error)])
        elif not job.size:  # no items, no outcomes
            job.resolve()
            self._engine.tell_later([Resolved(job, True, [])])
        else:
            self._engine.backlog.add(job, time.monotonic())

    def begin_input(self, reader: InputReader) -> None:
        with self._state.lock:
            self._state.check_running()
            self._state.inputs.add(reader)

    def end_input(self, reader: InputReader) -> None:
        with self._state.lock:
            self._state.inputs.discard(reader)
        self._engine.check_done()

    def read_on(self) -> None:
        for reader in list(self._state.inputs):
            reader.read_on()


class Terminator:
    """Ends jobs. What is to be sent is not sent; a node is told to end a chunk of which nobody
    wants anything any more. An item that shares its chunk with others' items, as only short ones
    do, is run all the same; its result is dropped."""

    def __init__(self, engine: ClusterEngine) -> None:
        self._engine = engine

    def cancel(self, job: Job) -> bool:
        """Have a job never run, unless something of it was sent; whether that is so."""
        self._engine.state.check_owner()
        return uninterrupted(lambda: self._cancel(job))

    def _cancel(self, job: Job) -> bool:
        with self._engine.state.lock:
            if not self._engine.backlog.is_unsent(job):
                return False
            resolved = self._engine.backlog.fail(job, job.cancellation())
        self._engine.tell_later(resolved)
        return bool(resolved)

    def terminate(self, job: Job, signum: int | None = None) -> bool:
        """End a job, wherever it is; whether there was anything to end. The process that runs it
        is killed, whatever the signal."""
        self._engine.state.check_owner()
        return self.cancel(job) or self._end([job])

    def cancel_all(self, owner: ResultSink) -> None:
        for job in self._of(lambda job: job.sink is owner):
            self.cancel(job)

    def terminate_all(self, owner: ResultSink) -> None:
        self.terminate_where(lambda job: job.sink is owner)

    def cancel_where(self, is_meant: Callable[[Job], bool]) -> None:
        for job in self._of(is_meant):
            self.cancel(job)

    def terminate_where(self, is_meant: Callable[[Job], bool], signum: int | None = None) -> None:
        self._end(self._of(is_meant))

    def _of(self, is_meant: Callable[[Job], bool]) -> list[Job]:
        self._engine.state.check_owner()
        with self._engine.state.lock:
            return [job for job in self._engine.backlog.jobs.values() if is_meant(job)]

    def _end(self, jobs: list[Job]) -> bool:
        return uninterrupted(lambda: self._end_now(jobs))

    def _end_now(self, jobs: list[Job]) -> bool:
        resolved: list[Resolved] = []
        with self._engine.state.lock:
            for job in jobs:
                error = Terminated(f"job {job.id} ({job.function}) was terminated")
                resolved += self._engine.backlog.fail(job, error)
        self._engine.tell_later(resolved)
        self._engine.wake()
        return bool(resolved)
