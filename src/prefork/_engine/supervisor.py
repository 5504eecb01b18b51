"""The workers of a running pool: how many there are; watched, dismissed, replaced, reaped.

The end of a worker is seen twice: its outbox ends, and its process ends. In between it may still
be busy with its own exit, or something that it forked may hold the outbox open; both are waited
for, but not for ever. `worker_handle.py` has a worker's whole life as a table.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prefork._describe import describe_exit
from prefork._engine.spawner import FailedStart, Spawner
from prefork._engine.state import PoolPhase, PoolState
from prefork._engine.worker_handle import Phase, WorkerHandle
from prefork._inspection.endpoint import Endpoint
from prefork._ipc.constants import unwatch, watch
from prefork._system.condition import Condition
from prefork._system.log import DEBUG, ERROR, WARNING
from prefork._system.resources import OutOfMemoryKills
from prefork.errors import OUT_OF_MEMORY, Terminated
from prefork.statistics import WorkerExit

if TYPE_CHECKING:
    from prefork._engine.collector import Collector
    from prefork._engine.dispatcher import Dispatcher
    from prefork._engine.lifecycle import Lifecycle
    from prefork._ipc.memfd import MemfdCache

__all__ = ["WorkerSupervisor"]

EXIT_SECONDS = 10.0
"""A worker that has nothing to do any more has so long for its own end: for what it runs there, see
`orderly_end`, and for hearing of it. Then it is killed."""

TELL_SECONDS = 0.1
"""Until a worker whose inbox was full is told again that something was released."""

KEPT_EXITS = 100
"""How many ended workers are remembered."""


class WorkerSupervisor:
    """
    Args:
        processes: how many workers there should be.
        memfd_cache: kept tidy as time goes by.
        at_end: called when there are no workers any more: ends the pool's other roles.

    Attributes:
        history: the last workers that have ended.
        ended_workers: how many have.
        exits: where the ends of workers are seen.
        ended: all is over, and nothing is left.
        end: notified then.
    """

    def __init__(
        self,
        processes: int,
        state: PoolState,
        dispatcher: Dispatcher,
        collector: Collector,
        lifecycle: Lifecycle,
        spawner: Spawner,
        memfd_cache: MemfdCache,
        at_end: Callable[[], object],
    ) -> None:
        self.processes = processes
        self.history: deque[WorkerExit] = deque(maxlen=KEPT_EXITS)
        self.ended_workers = 0
        self.ended = False
        self.exits = state.exits
        self._state = state
        self._exits = state.exits
        self._outboxes = state.outboxes
        self._scheduler = state.scheduler
        self._log = state.log
        self._dispatcher = dispatcher
        self._collector = collector
        self._lifecycle = lifecycle
        self._spawner = spawner
        self._memfd_cache = memfd_cache
        self._at_end = at_end
        self.end = Condition()
        self._termination = ""  # has been asked for, and why
        self._memory_kills: OutOfMemoryKills | None = None  # from the first look on
        self._failed_starts: list[FailedStart] = []  # that are still to be judged
        self._gone: list[WorkerHandle] = []  # accounted for, but not closed
        self._endpoint: Endpoint | None = None
        self._is_to_tell = False  # that something was released: an inbox was full
        watch(self._note_release)

    # ---- how many

    def _is_short_of_workers(self) -> bool:
        state = self._state
        with state.lock:
            wanted = state.phase in (PoolPhase.RUN, PoolPhase.CLOSE) and not state.is_done()
            # First those who end are reaped: their jobs' errors are waited for, a fork takes long,
            # and they may be the reason not to start another one.
            if not wanted:
                return False
            ending = [worker for worker in state.workers if worker.is_ending]
            present = self._present()
            return len(present) + len(ending) < self._wanted(present)

    def _present(self) -> list[WorkerHandle]:
        return [worker for worker in self._state.workers if not worker.is_retiring]

    def _wanted(self, present: list[WorkerHandle]) -> int:
        """One more while workers are replaced: the next one goes when its successor is ready."""
        return self.processes + bool(self._outdated(present))

    def _outdated(self, present: list[WorkerHandle]) -> list[WorkerHandle]:
        """Those that are to be replaced, one after another."""
        return [w for w in present if w.generation != self._spawner.generation]

    # ---- watching

    def serve(self, endpoint: Endpoint) -> None:
        """From now on, answer who asks there what the pool does."""
        self._endpoint = endpoint
        endpoint.begin(self._exits)

    def _answer(self, endpoint: Endpoint) -> None:
        """Without the lock. Whatever goes wrong, the pool does not end for it."""
        try:
            endpoint.serve()
        except Exception as exc:
            self._log.note(ERROR, "this pool cannot be asked from outside any more", error=exc)
            endpoint.close()

    def supervise(self, ready: Iterable[WorkerHandle | Endpoint]) -> float | None:
        """See to everything that has happened since the last time.

        Args:
            ready: workers whose processes have ended; and the endpoint, if somebody asks.

        Returns:
            When it wants to be called again, in seconds; None: when it is woken, or a worker ends.
        """
        state = self._state
        if self._memory_kills is None:  # not before the start, which should not wait for it
            self._memory_kills = OutOfMemoryKills()
        if self._termination:
            text = f"{self._termination} before this job had finished"
            self._lifecycle.stop(Terminated(text))
        self._spawner.look_at_start_failures()
        ready = set(ready)
        asked = self._endpoint if self._endpoint in ready else None
        exited = [each for each in ready if not isinstance(each, Endpoint)]
        for worker in exited:
            worker.process.ask_status()  # without the lock: it may have to be waited for
        with state.lock:
            for worker in exited:
                if worker.phase is not Phase.REAPED:
                    self._note_exit(worker)
            before = len(state.workers)
            for worker in list(state.workers):
                self._review(worker)
            self._dispatcher.hand_out()  # what those had not read
            has_reaped = before > len(state.workers)
        self._let_go()
        if has_reaped:
            time.sleep(0.0)  # a fork holds the interpreter for long: first the errors are told
        failed, self._failed_starts = self._failed_starts, []
        for start in failed:
            self._spawner.judge(start)
        self._spawner.fill_up(self._is_short_of_workers, self.processes)
        if state.phase is PoolPhase.TERMINATE or state.is_done():
            self._spawner.no_more()
        with state.lock:
            # A closed pool may have no worker for a moment, and jobs that the next one will run.
            is_done = state.is_done()
            if is_done:
                self._dismiss_all()
            else:
                self._dismiss_surplus()
            self._hurry_idle()
            untold = [w for w in state.workers if w.channel.forget_released()]
            self._is_to_tell = bool(untold)
            is_over = is_done or state.phase is PoolPhase.TERMINATE
            if is_over and not state.workers and self._spawner.has_ended():
                state.move_to(PoolPhase.ENDED)
        if asked is not None:
            self._answer(asked)
        with state.lock:
            return self._next_time()

    def _note_release(self) -> None:
        """A shared object is held by nobody any more: there is something to tell the workers."""
        self._state.wake_supervisor()

    def _note_exit(self, worker: WorkerHandle) -> None:
        """Its process has ended, so it writes no more: all that it has said is read, once."""
        worker.exit()
        self._exits.discard(worker.process)
        self._collector.isolate(worker)

    def _review(self, worker: WorkerHandle) -> None:
        """See whether this worker's story is over; with the lock held."""
        now = time.monotonic()
        if worker.phase is Phase.EXITED:
            if not self._may_report(worker, now):
                self._reap(worker)
            return
        if worker.channel.eof:
            self._see_channel_closed(worker)
        if worker.deadline is not None and now >= worker.deadline:
            self._end_by_force(worker)

    def _may_report(self, worker: WorkerHandle, now: float) -> bool:
        """Whether a dead worker's last result may still come: from something that it forked."""
        job = worker.first()
        if worker.channel.eof or job is None or worker.kill_reason is not None:
            return False
        deadline = worker.deadline
        if deadline is None:
            deadline = now + (math.inf if job.lost_timeout is None else job.lost_timeout)
            worker.wait_until(deadline)
        return now < deadline

    def _see_channel_closed(self, worker: WorkerHandle) -> None:
        """A worker has closed its channel, and its process goes on, for a moment at least."""
        if worker.has_been(Phase.CLOSED):
            return
        self._collector.isolate(worker)
        worker.close_channel(EXIT_SECONDS)

    def _end_by_force(self, worker: WorkerHandle) -> None:
        """A worker has not done in time what it was waited for."""
        if worker.phase is Phase.KILLED:
            self._reap(worker)  # not even the kernel ends it
        elif worker.phase is Phase.KILLING:
            if not worker.hear_out():
                worker.kill()
        elif worker.phase is Phase.CLOSED and worker.sent:
            worker.kill("its task has closed the channel to the pool")
        elif worker.phase is Phase.CLOSED:
            worker.kill(f"it has not ended {EXIT_SECONDS:g} s after its last task")
        elif worker.phase is Phase.LEAVING:
            worker.kill("it did not leave in time")
        else:
            self._collector.isolate(worker)
            worker.be_late()

    def _reap(self, worker: WorkerHandle) -> None:
        """All that a dead worker will ever say has been heard: account for the rest."""
        if worker.phase is not Phase.EXITED:
            self._exits.discard(worker.process)
            self._collector.isolate(worker)
        stack = worker.channel.black_box.text()
        exitcode = worker.process.collect()
        note = self._note(worker, exitcode)
        may_begin = worker.phase is not Phase.EXITED or worker.kill_reason is not None
        begun, _ = worker.running()
        for job in list(worker.sent.values()):
            if may_begin or job.id == begun:
                is_over = worker.phase is Phase.EXITED and worker.channel.eof
                self._collector.lose_job(worker, job, exitcode, stack, note, is_over)
        # What it has not even noted on its board it has not begun, and nobody else has it.
        self._scheduler.return_jobs(worker, list(worker.sent))
        self._dispatcher.remove_worker(worker)
        worker.channel.close()
        self._gone.append(worker)
        self._record(worker, exitcode, note)
        if not worker.ready:
            self._failed_starts.append(FailedStart(worker, exitcode, stack))

    def _let_go(self) -> None:
        """Close the processes of those that are accounted for; without the lock, since their class,
        or their context, may be a user's."""
        while self._gone:
            self._gone.pop().process.close()

    def _note(self, worker: WorkerHandle, exitcode: int | None) -> str:
        was_us = worker.has_been(Phase.KILLED)
        kills = self._memory_kills
        if exitcode == -signal.SIGKILL and not was_us and kills is not None and kills.any_new():
            return OUT_OF_MEMORY
        return worker.reason if was_us and worker.has_been(Phase.CLOSED) else ""

    def _record(self, worker: WorkerHandle, exitcode: int | None, note: str) -> None:
        """Say once how and why a worker has ended."""
        how = "was killed" if worker.was_killed else describe_exit(exitcode)
        why = worker.reason or note
        # Whether the pool has a part in its end, other than a wish that it leaves.
        was_us = worker.was_killed or worker.is_quarantined or worker.kill_reason is not None
        lost = worker.lost_job
        if lost is not None and not was_us:
            why = note or f"it ran job {lost.id} ({lost.function})"
        elif not why and worker.quota <= 0:
            why = f"it has run {worker.tasks} tasks"
        self.ended_workers += 1
        reason, now = why or how, time.time()
        self.history.append(
            WorkerExit(worker.pid, worker.name, exitcode, reason, worker.tasks, now)
        )
        left = worker.has_been(Phase.LEAVING) or worker.quota <= 0
        expected = left and (exitcode == 0 or lost is None)
        is_wanted = worker.kill_reason is not None and worker.kill_reason.is_wanted
        is_quiet = expected or is_wanted or self._state.phase is PoolPhase.TERMINATE
        text = f"{how}: {why}" if why else how
        level = DEBUG if is_quiet else WARNING
        self._log.note(level, "worker %d (%s) %s", worker.pid, worker.name, text)

    def _next_time(self) -> float | None:
        times = [w.deadline for w in self._state.workers if w.deadline is not None]
        times += self._spawner.next_times(self._is_short_of_workers)
        if (next_tidying := self._memfd_cache.tidy()) is not None:
            times.append(next_tidying)
        if self._is_to_tell:
            times.append(time.monotonic() + TELL_SECONDS)
        if self._endpoint is not None and (resumed := self._endpoint.next_time()) is not None:
            times.append(resumed)
        return max(0.0, min(times) - time.monotonic()) if times else None

    # ---- letting go

    def _dismiss_all(self) -> None:
        """The pool is done."""
        why = "the pool is closed, and all is done"
        for worker in list(self._state.workers):
            if worker.phase in (Phase.STARTING, Phase.READY, Phase.LEAVING):
                self._dispatcher.dismiss(worker, why)
                worker.leave(why, EXIT_SECONDS)

    def _dismiss_surplus(self) -> None:
        """Dismiss those who are too many, and an outdated one if there is another one to take its
        place."""
        present = self._present()
        outdated = self._outdated(present)
        if outdated and len(present) > self.processes and all(w.ready for w in present):
            self._dispatcher.dismiss(outdated[0], "the workers are replaced")
            present.remove(outdated[0])
        surplus = len(present) - self._wanted(present)
        for worker in sorted(present, key=lambda w: len(w.sent))[: max(0, surplus)]:
            self._dispatcher.dismiss(worker, "fewer workers are wanted")

    def _hurry_idle(self) -> None:
        """Who is to leave and has nothing to do leaves now, unless it was stopped, or hangs: then
        it is continued, and waited for, but not for ever."""
        for worker in self._state.workers:
            is_to_leave = worker.is_idle and worker.is_retiring and worker.lost_job is None
            if is_to_leave and worker.deadline is None:
                worker.leave(worker.reason, EXIT_SECONDS)

    def resize(self, change: int) -> None:
        with self._state.lock:
            self._state.check_running()
            if self.processes + change < 1:
                raise ValueError(
                    f"cannot shrink {self.processes} processes by {-change}: one must be left"
                )
            self.processes += change
        self._state.wake_supervisor()

    def replace_all(self) -> None:
        """Replace all workers, one after another, after the tasks that they run; those that are
        starting, too, since they may have inherited what has changed meanwhile."""
        with self._state.lock:
            self._state.check_running()
            self._spawner.begin_generation()
        self._state.wake_supervisor()

    # ---- the end

    def request_termination(self, why: str = "the pool was terminated") -> None:
        """Have the supervisor fail all jobs and kill all workers. Safe in a finalizer: no lock."""
        self._termination = why
        self._state.wake_supervisor()

    def crash(self, error: BaseException) -> None:
        """The supervisor has failed: end the pool without it."""
        self._lifecycle.crash(error)
        self.kill_all()
        self.release()

    def is_over(self) -> bool:
        """Whether there are no workers any more, and `release` is all that is left to do."""
        return self._state.phase is PoolPhase.ENDED

    def kill_all(self) -> None:
        """Kill the workers and account for them, here and now."""
        while killed := self._kill_present():
            for worker in killed:
                worker.process.wait(EXIT_SECONDS)
                worker.process.ask_status()
            with self._state.lock:
                for worker in killed:
                    self._note_exit(worker)
                    self._reap(worker)
            self._let_go()

    def _kill_present(self) -> list[WorkerHandle]:
        """Returns those that there are; if there are none, none will come any more."""
        with self._state.lock:
            present = list(self._state.workers)
            for worker in present:
                worker.kill("the pool could not go on")
            if not present:
                self._state.move_to(PoolPhase.ENDED)
            return present

    def release(self) -> None:
        """There are no workers any more: end the other roles, free the descriptors."""
        unwatch(self._note_release)
        self._at_end()
        self._spawner.close()
        self._memfd_cache.close()
        if self._endpoint is not None:
            self._endpoint.close()
        self._outboxes.close()
        self._exits.close()
        self.ended = True
        self.end.notify_all()

    def wait_until_ended(self, timeout: float | None = None) -> bool:
        """Whether the pool has ended, within so many seconds (None: as long as it takes)."""
        return self._dispatcher.wait_for(self.end, self.has_ended, timeout)

    def has_ended(self) -> bool:
        """What is waited for, when `end` is notified. In a forked child there is nothing to end."""
        return self.ended or self._state.is_forked
