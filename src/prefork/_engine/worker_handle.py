"""One worker as the pool knows it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from prefork._ipc.channel import Channel
from prefork._policy.job import Job, WorkerSlot
from prefork._policy.timers import Expiry
from prefork._system.process import Child
from prefork._system.resources import resident
from prefork._system.stacks import LAST_WORDS
from prefork.statistics import WorkerState, WorkerStatistics

__all__ = ["GIVE_UP_SECONDS", "Sentence", "Worker"]

LAST_WORDS_SECONDS: Final = 0.1
"""So long a worker that is to be killed has for writing its stack: some hundred times what it
takes. One that blocks signals does not even begin."""
GIVE_UP_SECONDS: Final = 5.0
"""A process can be stuck in the kernel, so that not even SIGKILL ends it. So long it is waited
for; then its job fails and the pool goes on without it."""


class Sentence(NamedTuple):
    """Why a worker is killed, or signalled, while it runs a job."""

    job: Job
    error: Callable[[str], Exception]  # what the job fails with, given the worker's last stack
    expiry: Expiry | None = None  # to be told then


class Worker(WorkerSlot):
    """A worker process: its slot at the scheduler, its channel, its process.

    It starts, is ready, and leaves: of itself, when it is dismissed, or by dying. It is *exited*
    once its process has ended, and *gone* once it is accounted for.
    """

    def __init__(self, channel: Channel, process: Child, name: str) -> None:
        super().__init__()
        self.channel = channel
        self.process = process
        self.pid = process.pid
        self.name = name
        self.generation = 0  # how often all workers were to be replaced before it was started
        self.ready = False  # it has run its initializer
        self.leaving = False  # it was told to leave, or has said so
        self.late = False  # it was not ready in time
        self.farewell = False  # it has closed its channel
        self.dying = False  # it will end at once, if the kernel can end it
        self.killed = False  # with SIGKILL
        self.distrusted = False  # a task has written into its channel
        self.exited = False
        self.gone = False
        self.reason = ""  # why it leaves or is killed, in words
        self.start_error: BaseException | None = None  # what its initializer raised
        self.sentence: Sentence | None = None
        self.patience_ends: float | None = None  # what it is waited for does not come later
        self.tasks = 0  # that it has finished
        self.lost: Job | None = None  # the job that was lost with it

    @property
    def is_retiring(self) -> bool:
        """Whether it will take no more jobs."""
        leaves = self.leaving or self.quota <= 0
        return leaves or self.farewell or self.dying or self.exited or self.lost is not None

    @property
    def is_doomed(self) -> bool:
        """Whether the pool has a part in its end, other than a wish that it leaves."""
        return self.dying or self.distrusted or self.sentence is not None

    @property
    def is_ending(self) -> bool:
        """Whether its process will end in a moment, if the kernel can end it."""
        broke_off = self.farewell and (bool(self.sent) or not self.ready)
        return (self.dying or broke_off) and not self.exited

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

    def current_job(self) -> Job | None:
        """The job that it has started and not reported yet, as far as is known."""
        return self.sent.get(self.running()[0])

    def statistics(self) -> WorkerStatistics:
        job = self.current_job()
        return WorkerStatistics(
            self.pid,
            self.name,
            self.state,
            job.id if job else None,
            job.function if job else None,
            self.accepted() if job else None,
            self.tasks,
            resident(self.pid),
        )

    # ---- its end

    def kill(self, why: str = "") -> None:
        """SIGKILL to it and to its group."""
        self._doom(why)
        if not (self.killed or self.exited):
            self.patience_ends = time.monotonic() + GIVE_UP_SECONDS
        self.killed = True
        self.process.kill()

    def kill_after_last_words(self, why: str) -> None:
        """Have it write its stack and end, even if it is stopped. If it has not by
        `patience_ends`, it must be killed."""
        self._doom(why)
        self.channel.black_box.rewind()
        self.patience_ends = time.monotonic() + LAST_WORDS_SECONDS
        self.process.signal(LAST_WORDS)
        self.process.signal(signal.SIGCONT)

    def _doom(self, why: str) -> None:
        """It will end for this reason, whatever it was to leave for."""
        if not self.dying:
            self.reason = why or self.reason
            self.dying = True

    def __repr__(self) -> str:
        job = self.current_job()
        doing = f", runs job {job.id} ({job.function})" if job else ""
        return f"<{self.name} {self.pid}: {self.state}{doing}>"
