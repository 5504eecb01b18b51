"""One worker as the pool sees it: its life, its channel, its process, its jobs."""

from __future__ import annotations

import enum
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from prefork._ipc.channel import Channel
from prefork._policy.job import Job, WorkerSlot
from prefork._policy.timers import Expiry
from prefork._system.resources import resident
from prefork._system.stacks import LAST_WORDS
from prefork.statistics import WorkerState, WorkerStatistics

if TYPE_CHECKING:
    from prefork._engine.taps import Tap
    from prefork._system.child import Child

__all__ = ["GIVE_UP_SECONDS", "WORKER_LIFE", "KillReason", "Phase", "WorkerHandle"]

CLOSED_SECONDS: Final = 0.1
"""A process that dies closes its channel first, some moments before. After so long, it was the task
that closed it, and the worker is killed."""

LAST_WORDS_SECONDS: Final = 0.1
"""So long a worker that is to be killed has for writing its stack: some hundred times what it
takes. One that blocks signals does not even begin."""

STARVED_SECONDS: Final = 1.0
"""And so long if it could begin, and has not ended: the machine has had no time for it."""

GIVE_UP_SECONDS: Final = 5.0
"""A process can be stuck in the kernel, so that not even SIGKILL ends it. So long it is waited
for; then its job fails and the pool goes on without it."""


class Phase(enum.Enum):
    """A worker's life; it never goes back."""

    STARTING = "starting"  # it runs its initializer
    READY = "ready"  # it takes jobs
    LEAVING = "leaving"  # it was told to leave, or has said so: it ends after what it runs
    CLOSED = "closed"  # it has closed its channel, and its process goes on, for a moment at least
    KILLING = "killing"  # it was asked to write its stack and end
    KILLED = "killed"  # with SIGKILL
    EXITED = "exited"  # its process has ended; its last reports may be on their way
    REAPED = "reaped"  # it is accounted for, and its descriptors are closed


_ENDS: Final = {Phase.KILLING, Phase.KILLED, Phase.EXITED}
WORKER_LIFE: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.STARTING: frozenset({Phase.READY, Phase.LEAVING, Phase.CLOSED, *_ENDS}),
    Phase.READY: frozenset({Phase.LEAVING, Phase.CLOSED, *_ENDS}),
    Phase.LEAVING: frozenset({Phase.CLOSED, *_ENDS}),
    Phase.CLOSED: frozenset(_ENDS),
    Phase.KILLING: frozenset({Phase.KILLED, Phase.EXITED}),
    Phase.KILLED: frozenset({Phase.EXITED, Phase.REAPED}),  # REAPED: not even that has ended it
    Phase.EXITED: frozenset({Phase.REAPED}),
    Phase.REAPED: frozenset(),
}
"""Which phase may follow which. What comes too late changes nothing, such as the wish that a worker
leaves which was killed already."""


class KillReason(NamedTuple):
    """Why a worker is killed, or signalled, while it runs a job."""

    job: Job
    error: Callable[[str], Exception]  # what the job fails with, given the worker's last stack
    expiry: Expiry | None = None  # to be told then
    is_final: bool = False  # it is not run again, in any case
    is_wanted: bool = False  # the caller has asked for it, and need not be told


class WorkerHandle(WorkerSlot):
    """A worker process, from its start until it is accounted for.

    Each method under "its life" is one arrow of `WORKER_LIFE`. They are called with the pool's lock
    held, except for those of a worker that the pool does not have yet.

    Attributes:
        deadline: what the worker is waited for does not come after that (monotonic); None: it is
            waited for as long as it takes.
        reason: why it leaves or is killed, in words.
        start_failure: what its initializer raised, as the worker has reported it.
        kill_reason: the job for which it is being killed.
        lost_job: the job that was lost with it.
        is_quarantined: a task has written into its channel.
        is_late: it was not ready in time.
        start_limit: that time, in seconds; None: as long as it takes.
        tasks: how many it has finished.
    """

    def __init__(
        self,
        channel: Channel,
        process: Child,
        name: str,
        generation: int = 0,
        tap: Tap | None = None,
    ) -> None:
        super().__init__()
        self._tap = tap
        self.ready = False
        self.channel = channel
        self.process = process
        self.pid = process.pid
        self.name = name
        self.generation = generation  # how often all workers had been replaced before its start
        self.phase = Phase.STARTING
        self._passed = {Phase.STARTING}
        self.deadline: float | None = None
        self._speaks_until = 0.0  # last words are waited for no longer
        self.reason = ""
        self.start_failure: object = None
        self.kill_reason: KillReason | None = None
        self.lost_job: Job | None = None
        self.is_quarantined = False
        self.is_late = False
        self.start_limit: float | None = None
        self._began = time.monotonic()
        self.tasks = 0
        self.is_being_read = False  # its reports are being looked at, further up the stack

    # ---- its life

    def _move(self, phase: Phase) -> bool:
        """Whether this phase may follow; then it does."""
        if phase not in WORKER_LIFE[self.phase]:
            return False
        self.phase = phase
        self._passed.add(phase)
        return True

    def has_been(self, phase: Phase) -> bool:
        return phase in self._passed

    def begin(self, limit: float | None) -> None:
        """It has so many seconds from now to become ready."""
        self._began, self.start_limit = time.monotonic(), limit
        self.deadline = None if limit is None else self._began + limit
        if self._tap is not None:
            self._tap.begin(self.pid)

    def become_ready(self) -> float:
        """It has run its initializer; it may have been told to leave meanwhile. Returns how many
        seconds that took."""
        if self.phase in (Phase.STARTING, Phase.LEAVING):
            self.deadline = None  # it has kept it
        self._move(Phase.READY)
        return time.monotonic() - self._began

    def be_late(self) -> None:
        """It is not ready in time."""
        self.is_late = True
        self.ask_for_last_words(f"not ready within {self.start_limit:g} s")

    def note_finished_job(self) -> None:
        self.tasks += 1
        self.kill_reason = None  # if it was for this job, it came too late

    def fail_to_start(self, failure: object) -> None:
        """What its initializer has raised: an exception, or the pickle of one."""
        self.start_failure = failure

    def quarantine(self) -> None:
        self.is_quarantined = True

    def lose(self, job: Job) -> None:
        """This job is lost with it, which runs nothing any more."""
        self.sent.pop(job.id, None)
        self.lost_job = job

    def condemn(self, reason: KillReason) -> None:
        """It is to be killed for this."""
        self.kill_reason = reason

    def limit_tasks(self, quota: int) -> None:
        self.quota = float(quota)

    def wait_until(self, deadline: float) -> None:
        self.deadline = deadline

    def leave(self, why: str, seconds: float | None = None) -> None:
        """Have it end after what it runs, within so many seconds from now (None: it is waited for
        as long as that takes)."""
        self.reason = self.reason or why
        if self._move(Phase.LEAVING):
            self.channel.send_leave()
            if not self.ready:  # who is starting may be stopped, too, and nobody looks for that
                self.process.signal(signal.SIGCONT)
        if seconds is not None and self.phase in (Phase.LEAVING, Phase.CLOSED):
            self._set_latest(time.monotonic() + seconds)
            self.process.signal(signal.SIGCONT)  # one that was stopped could not leave

    def close_channel(self, seconds: float) -> None:
        """It has closed its channel; its process has so long for its end, if that is in order."""
        if self._move(Phase.CLOSED):
            self._set_latest(time.monotonic() + (CLOSED_SECONDS if self.sent else seconds))

    def _set_latest(self, deadline: float) -> None:
        self.deadline = deadline if self.deadline is None else min(deadline, self.deadline)

    def ask_for_last_words(self, why: str) -> None:
        """Have it write its stack and end, even if it is stopped. If it has not by the deadline,
        it must be killed."""
        if self.phase is not Phase.KILLING and not self._move(Phase.KILLING):
            return
        self.reason = why
        self.channel.black_box.rewind()
        now = time.monotonic()
        self.deadline, self._speaks_until = now + LAST_WORDS_SECONDS, now + STARVED_SECONDS
        self.process.signal(LAST_WORDS)
        self.process.signal(signal.SIGCONT)

    def hear_out(self) -> bool:
        """It has not ended in time. False if it never will of itself, as far as can be seen; else
        it has a little more time, but not for ever."""
        now = time.monotonic()
        if now >= self._speaks_until or self.process.is_deaf_to(LAST_WORDS):
            return False
        self.deadline = now + LAST_WORDS_SECONDS
        return True

    def kill(self, why: str = "") -> None:
        """SIGKILL to it and to its group; nothing once it is reaped, as its number may be another
        process's by then."""
        if self.phase is Phase.REAPED:
            return
        if not self.was_killed:
            self.reason = why or self.reason
        if self._move(Phase.KILLED):
            self.deadline = time.monotonic() + GIVE_UP_SECONDS
        self.process.kill()

    def exit(self) -> None:
        """Its process has ended."""
        if self._move(Phase.EXITED):
            self.deadline = None

    def reap(self) -> None:
        """It is accounted for."""
        if self._move(Phase.REAPED) and self._tap is not None:
            self._tap.finish()

    # ---- what follows from that

    @property
    def was_killed(self) -> bool:
        """Whether the pool has ended it, or is about to."""
        return Phase.KILLING in self._passed or Phase.KILLED in self._passed

    @property
    def has_exited(self) -> bool:
        return self.phase is Phase.EXITED or self.phase is Phase.REAPED

    @property
    def is_retiring(self) -> bool:
        """Whether it will take no more jobs."""
        stays = self.phase is Phase.READY or self.phase is Phase.STARTING
        return not stays or self.quota <= 0 or self.lost_job is not None

    @property
    def can_work(self) -> bool:
        """Whether it finishes what it runs, if it runs anything, or takes more."""
        return self.ready and self.phase in (Phase.READY, Phase.LEAVING)

    @property
    def is_idle(self) -> bool:
        """Whether it runs nothing, and can end by itself."""
        return not self.sent and (self.can_work or self.phase is Phase.CLOSED)

    @property
    def holds_place(self) -> bool:
        """Whether its place in the pool is not free yet."""
        return not (self.has_exited or self.has_been(Phase.CLOSED))

    @property
    def is_ending(self) -> bool:
        """Whether its process will end in a moment, if the kernel can end it."""
        if self.phase is Phase.CLOSED:
            return bool(self.sent) or not self.ready
        return self.phase is Phase.KILLING or self.phase is Phase.KILLED

    @property
    def state(self) -> WorkerState:
        if self.is_retiring:
            return WorkerState.RETIRING
        if self.current_job():
            return WorkerState.BUSY
        return WorkerState.IDLE if self.ready else WorkerState.STARTING

    # ---- what it does

    def running(self) -> tuple[int, float]:
        try:
            return self.channel.running()
        except ValueError:  # closed this very moment
            return 0, 0.0

    def accepted(self) -> float:
        try:
            return self.channel.accepted()
        except ValueError:
            return 0.0

    def heeded(self) -> float:
        try:
            return self.channel.heeded()
        except ValueError:
            return 0.0

    def item(self) -> tuple[int, float] | None:
        """Of the job that it runs, if that has several with outcomes of their own: which one, and
        since when."""
        try:
            return self.channel.item()
        except ValueError:
            return None

    def current_job(self) -> Job | None:
        """The job that it has started and not reported yet, as far as is known."""
        return self.sent.get(self.running()[0])

    def statistics(self, measured: bool = True) -> WorkerStatistics:
        """
        Args:
            measured: its memory, too, for which the system is asked.
        """
        job = self.current_job()
        item, since = (self.item() if job else None) or (None, self.accepted())
        if item is not None and (job is not self.current_job() or job is None or item >= job.size):
            item = None  # it has gone on meanwhile
        return WorkerStatistics(
            self.pid,
            self.name,
            self.state,
            job.id if job else None,
            job.function if job else None,
            since if job else None,
            self.tasks,
            resident(self.pid) if measured else None,
            item,
            time.time() - time.monotonic() + since if job else None,
        )

    def __repr__(self) -> str:
        job = self.current_job()
        doing = f", runs job {job.id} ({job.function})" if job else ""
        return f"<{self.name} {self.pid}: {self.state}{doing}>"
