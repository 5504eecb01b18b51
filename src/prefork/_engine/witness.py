"""Who is told of what becomes of jobs, while somebody records that. Mostly there is nobody, and a
job costs one look at whether there is."""

from __future__ import annotations

from typing import Any, Protocol

from prefork._policy.job import Job

__all__ = ["Witness", "Witnesses"]


class Witness(Protocol):
    """Neither of its methods raises or waits."""

    def run_over(self, job: Job, started: float, seconds: float) -> None:
        """A run of this job is over, whatever has come of it: `job.pid` has run it. The pool's lock
        is held."""

    def outcome(self, job: Job, ok: bool, value: Any) -> None:
        """What has become of it in the end: its result, or the exception if not `ok`. The lock is
        not held, so code of the user's may be called."""


class Witnesses:
    """
    Attributes:
        all: those that there are, in a tuple of its own for each change.
    """

    def __init__(self) -> None:
        self.all: tuple[Witness, ...] = ()

    def add(self, witness: Witness) -> None:
        self.all = (*self.all, witness)

    def remove(self, witness: Witness) -> None:
        self.all = tuple(each for each in self.all if each is not witness)
