"""The workers of a running pool: how many there are; watched, dismissed, replaced, buried.

    (hired: `recruiter.py`) ─► starting ─► ready ─► leaving ─► exited ─► gone
                                   └──────────┴── killed ──────┘

The end of a worker is seen twice: its outbox ends, and its process ends. In between it may still
be busy with its own exit, or something that it forked may hold the outbox open; both are waited
for, but not for ever.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable

from prefork._describe import describe, describe_exit
from prefork._engine.collector import Exchange
from prefork._engine.spawner import Options, Recruiter
from prefork._engine.state import State
from prefork._engine.worker_handle import Worker
from prefork._ipc.memfd import MemfdCache
from prefork._policy.timers import MEMORY_SECONDS
from prefork._system import at_fork
from prefork._system.condition import Condition
from prefork._system.log import DEBUG, WARNING, log
from prefork._system.resources import OutOfMemoryKills, available_cpus
from prefork._system.selector import Selector
from prefork.errors import Terminated
from prefork.statistics import WorkerExit

__all__ = ["Staff"]

EXIT_SECONDS = 10.0
"""A worker that has said goodbye has so long for its own exit: threads and processes that its
tasks left behind are waited for there. Then it is killed."""
CLOSED_SECONDS = 0.1
"""A process that dies closes its channel first, some moments before. After so long, it was the task
that closed it, and the worker is killed."""
KEPT_EXITS = 100
"""How many ended workers are remembered."""


class Staff:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.processes = options.processes  # how many workers there should be
        self.exits: Selector[Worker] = Selector()
        look_interval = MEMORY_SECONDS if options.max_memory_per_task is not None else None
        cpus = max(2, available_cpus())
        self.jobs = Exchange(self.exits.wakeup.set, look_interval, options.accept_delay, cpus)
        at_fork.register(self)
        self.at_end: list[Callable[[], object]] = []
        self.ended = False  # all is over, and nothing is left
        self.history: deque[WorkerExit] = deque(maxlen=KEPT_EXITS)
        self._ended = Condition()
        self._termination = ""  # has been asked for, and why
        self.memfd_cache = MemfdCache(self.exits.wakeup.set)
        self._memory_kills = OutOfMemoryKills()
        self.recruiter = Recruiter(options, self.jobs, self.exits)

    def close_in_child(self) -> None:
        """In a forked child: the pool is the parent's."""
        self.jobs.close_in_child()

    @property
    def state(self) -> State:
        return self.jobs.state

    # ---- how many

    def _is_short_of_workers(self) -> bool:
        with self.jobs.lock:
            wanted = self.state in (State.RUN, State.CLOSE) and not self.jobs.is_done()
            # First those who end are buried: their jobs' errors are waited for, a fork takes long,
            # and they may be the reason not to start another one.
            ending = sum(worker.is_ending for worker in self.jobs.workers)
            return wanted and len(self._present()) + ending < self._wanted()

    def _present(self) -> list[Worker]:
        return [w for w in self.jobs.workers if not w.is_retiring]

    def _wanted(self) -> int:
        """One more while workers are replaced: the next one goes when its successor is ready."""
        return self.processes + bool(self._outdated())

    def _outdated(self) -> list[Worker]:
        """Those that are to be replaced, one after another."""
        return [w for w in self._present() if w.generation != self.recruiter.generation]

    # ---- watching

    def tend(self, exited: Iterable[Worker]) -> float | None:
        """See to everything that has happened since the last time.

        Args:
            exited: workers whose processes have ended.

        Returns:
            When it wants to be called again, in seconds; None: when the wakeup rings, or a worker
            ends.
        """
        if self._termination:
            self.jobs.stop(Terminated(f"{self._termination} before this job had finished"))
        with self.jobs.lock:
            for worker in exited:
                if not worker.gone:
                    self._note_exit(worker)
            before = len(self.jobs.workers)
            for worker in list(self.jobs.workers):
                self._review(worker)
            buried = before > len(self.jobs.workers)
        if buried:
            time.sleep(0.0)  # a fork holds the interpreter for long: first the errors are told
        self.recruiter.fill_up(self._is_short_of_workers)
        with self.jobs.lock:
            self._let_go()
            # A closed pool may have no worker for a moment, and jobs that the next one will run.
            is_over = self.state is State.TERMINATE or self.jobs.is_done()
            if is_over and not self.jobs.workers and self.recruiter.has_ended():
                self.jobs.state = State.ENDED
            return self._next_time()

    def _note_exit(self, worker: Worker) -> None:
        worker.exited = True
        worker.patience_ends = None
        self.exits.discard(worker.process)
        self.jobs.scheduler.shut(worker)
        self.jobs.hear_out(worker)
        self.jobs.take_back(worker)
        self.jobs.distribute()

    def _review(self, worker: Worker) -> None:
        """See whether this worker's story is over; with the lock held."""
        now = time.monotonic()
        exc = worker.start_error
        if exc is not None and not self.jobs.starts:  # the others would probably fail, too
            self.jobs.break_down(f"the initializer failed in a worker: {describe(exc)}", exc)
        if worker.exited:
            self.jobs.hear_out(worker)
            if self._has_had_its_say(worker, now):
                self._bury(worker)
            return
        if worker.channel.eof and not worker.farewell:
            self._see_out(worker, now)
        if worker.patience_ends is not None and now >= worker.patience_ends:
            self._end_by_force(worker)

    def _has_had_its_say(self, worker: Worker, now: float) -> bool:
        """Whether a dead worker's last result has come, or is not waited for any more."""
        if worker.channel.eof or not worker.sent or worker.sentence:
            return True
        if worker.patience_ends is None:  # something that it forked can still send the result
            job = next(iter(worker.sent.values()))
            worker.patience_ends = now + (
                math.inf if job.lost_timeout is None else job.lost_timeout
            )
        return now >= worker.patience_ends

    def _see_out(self, worker: Worker, now: float) -> None:
        """A worker has closed its channel, and its process goes on, for a moment at least."""
        worker.farewell = True
        self.jobs.scheduler.shut(worker)
        self.jobs.take_back(worker)
        self.jobs.distribute()
        if not worker.dying:
            worker.patience_ends = now + (CLOSED_SECONDS if worker.sent else EXIT_SECONDS)

    def _end_by_force(self, worker: Worker) -> None:
        """A worker has not done in time what it was waited for."""
        if worker.killed:
            self._bury(worker)
            return
        if worker.dying:
            worker.kill()
        elif worker.farewell and worker.sent:
            worker.kill("its task has closed the channel to the pool")
        elif worker.farewell:
            worker.kill(f"it has not ended {EXIT_SECONDS:g} s after its last task")
        else:
            worker.late = True
            self.jobs.scheduler.shut(worker)
            self.jobs.take_back(worker)
            self.jobs.distribute()
            worker.kill_after_last_words(f"not ready within {self.options.start_timeout:g} s")

    def _bury(self, worker: Worker) -> None:
        """All that a dead worker will ever say has been heard: account for the rest."""
        self.jobs.take_back(worker)
        stack = worker.channel.black_box.text()
        exitcode = worker.process.collect()
        note = self._note(worker, exitcode)
        for job in list(worker.sent.values()):
            self.jobs.lose(worker, job, exitcode, stack, note)
        self.jobs.leave(worker)
        self.exits.discard(worker.process)
        worker.channel.close()
        worker.process.close()
        self._record(worker, exitcode, note)
        if not worker.ready:
            self.recruiter.judge_failed_start(worker, exitcode, stack)

    def _note(self, worker: Worker, exitcode: int | None) -> str:
        if exitcode == -signal.SIGKILL and not worker.killed and self._memory_kills.any_new():
            return "the kernel was out of memory"
        return ""

    def _record(self, worker: Worker, exitcode: int | None, note: str) -> None:
        """Say once how and why a worker has ended."""
        how = "was killed" if worker.dying else describe_exit(exitcode)
        why = worker.reason or note
        if worker.lost is not None and not worker.is_doomed:
            why = note or f"it ran job {worker.lost.id} ({worker.lost.function})"
        elif not why and worker.quota <= 0:
            why = f"it has run {worker.tasks} tasks"
        self.history.append(WorkerExit(worker.pid, worker.name, exitcode, why or how, worker.tasks))
        left = worker.leaving or worker.quota <= 0
        expected = left and (exitcode == 0 or worker.lost is None)
        level = DEBUG if expected or self.state is State.TERMINATE else WARNING
        text = f"{how}: {why}" if why else how
        log(level, "worker %d (%s) %s", worker.pid, worker.name, text)

    def _next_time(self) -> float | None:
        times = [w.patience_ends for w in self.jobs.workers if w.patience_ends is not None]
        times += self.recruiter.next_times(self._is_short_of_workers)
        if (next_tidying := self.memfd_cache.tidy()) is not None:
            times.append(next_tidying)
        return max(0.0, min(times) - time.monotonic()) if times else None

    # ---- letting go

    def _let_go(self) -> None:
        """Dismiss those who are too many: all of them, once the pool is done."""
        if self.jobs.is_done():
            for worker in self._present():
                self.jobs.dismiss(worker, "the pool is closed, and all is done")
            return
        self._replace_next()
        present = self._present()
        surplus = len(present) - self._wanted()
        for worker in sorted(present, key=lambda w: len(w.sent))[: max(0, surplus)]:
            self.jobs.dismiss(worker, "fewer workers are wanted")

    def _replace_next(self) -> None:
        """Dismiss an outdated worker, if there is another one to take its place."""
        present, outdated = self._present(), self._outdated()
        if outdated and len(present) > self.processes and all(w.ready for w in present):
            self.jobs.dismiss(outdated[0], "the workers are replaced")

    def resize(self, change: int) -> None:
        with self.jobs.lock:
            self.jobs.check_running()
            if self.processes + change < 1:
                raise ValueError(
                    f"cannot shrink {self.processes} processes by {-change}: one must be left"
                )
            self.processes += change
        self.exits.wakeup.set()

    def replace_all(self) -> None:
        """Replace all workers, one after another, after the tasks that they run; those that are
        starting, too, since they may have inherited what has changed meanwhile."""
        with self.jobs.lock:
            self.jobs.check_running()
            self.recruiter.generation += 1
        self.exits.wakeup.set()

    # ---- the end

    def request_termination(self, why: str = "the pool was terminated") -> None:
        """Have the supervisor fail all jobs and kill all workers. Safe in a finalizer: no lock."""
        self._termination = why
        self.exits.wakeup.set()

    def crash(self, reason: BaseException) -> None:
        """The supervisor has failed: end the pool without it."""
        self.jobs.crash(reason)
        self.kill_all()
        self.release()

    def kill_all(self) -> None:
        """Kill the workers and account for them, here and now."""
        with self.jobs.lock:
            for worker in list(self.jobs.workers):
                worker.kill("the pool could not go on")
                worker.process.wait(EXIT_SECONDS)
                worker.exited = True
                self.exits.discard(worker.process)
                self._bury(worker)
            self.jobs.state = State.ENDED

    def release(self) -> None:
        """There are no workers any more: stop the other roles, free the descriptors."""
        for stop in self.at_end:
            stop()
        self.memfd_cache.close()
        at_fork.unregister(self)
        self.jobs.outboxes.close()
        self.exits.close()
        self.ended = True
        self._ended.notify_all()

    def wait_until_ended(self, timeout: float | None = None) -> bool:
        return self.jobs.wait_for(self._ended, lambda: self.ended or self.jobs.forked, timeout)
