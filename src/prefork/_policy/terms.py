"""Jobs that have more than limits: retries, a priority, a deadline.

They are of a class of their own, so that all the others have nothing of it.
"""

from __future__ import annotations

from prefork._ipc.wire import AGAIN, MOST_AGAIN
from prefork._policy.job import QUEUED, WAITING, Job, ResultSink
from prefork._policy.limits import Limits, Terms
from prefork._policy.retry import Attempt

__all__ = ["JobOnTerms"]


class JobOnTerms(Job):
    """A job that has a priority, a deadline, or may be retried.

    The errors of its runs may refer to anything, so Python's garbage collector does know of it.
    """

    __slots__ = ("_attempts", "due", "latest", "left", "terms")

    def __init__(
        self,
        sink: ResultSink,
        function: str,
        mode: int,
        limits: Limits,
        terms: Terms,
        size: int = 1,
        index: int = 0,
    ) -> None:
        super().__init__(sink, function, mode, limits, size, index)
        self.terms = terms
        self.left = 0 if terms.retries is None else terms.retries.retries  # retries
        self.latest: float | None = None  # its deadline (monotonic), once it is known
        self.due: float | None = None  # when it is to be run again (monotonic), while it waits
        self._attempts: tuple[Attempt, ...] = ()

    def end_by(self, latest: float | None) -> None:
        """Its deadline (monotonic); only the first counts."""
        if self.latest is None:
            self.latest = latest

    # ---- its life

    def suspend(self) -> None:
        """A run has failed, or may have: SENT to WAITING."""
        self.phase = WAITING
        self._leave_slot()

    def wait_until(self, due: float) -> None:
        """It is to be run again then; until then it stays WAITING."""
        self.due = due

    def resume(self) -> None:
        """It is to be run again now: WAITING to QUEUED."""
        self.phase = QUEUED
        self.due = None

    def resolve(self) -> None:
        super().resolve()
        self.due = None

    def note_failure(self, error: BaseException) -> None:
        """A run has failed with this, and there will be another one."""
        attempt = Attempt(len(self._attempts) + 1, self.pid, error, self.seconds)
        self._attempts = (*self._attempts, attempt)
        self.left -= 1
        if attempt.number <= MOST_AGAIN:
            self.flags += AGAIN
        self.result_bytes = 0
        self.forget_run()

    # ---- what is known of it

    def next_run(self, error: BaseException, now: float, chance: float) -> float | None:
        """When it is to be run again after this error (monotonic); None: never.

        Args:
            chance: any number from 0 to 1.
        """
        retries = self.terms.retries
        if retries is None or self.left <= 0 or not retries.covers(error):
            return None
        due = now + retries.pause(len(self._attempts) + 1, chance)
        return None if self.is_late(due) else due

    def is_late(self, now: float) -> bool:
        """Whether its deadline has passed by then."""
        return self.latest is not None and now >= self.latest

    def is_idle(self) -> bool:
        """Whether no worker has it, and it is to be run, now or later."""
        return self.phase == QUEUED or self.due is not None

    def is_due(self, now: float) -> bool:
        """Whether it waits for nothing but to be run again by now."""
        return self.due is not None and now >= self.due

    def priority(self) -> int:
        return self.terms.priority

    def retried(self) -> int:
        return len(self._attempts)

    def attempts(self) -> tuple[Attempt, ...]:
        return self._attempts
