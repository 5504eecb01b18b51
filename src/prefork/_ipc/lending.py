"""Which constants a worker has, as its channel knows: so each travels once, and is forgotten again.

A constant goes along with a job. Whether the worker has it is known when it has reported that job
well: until then it goes along with others, too, since a job may be taken back unread, or fail
before it was read. When nobody in the pool holds it any more, the worker is told to forget it; the
word for that may be taken back unread, like any ticket.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prefork._ipc.constants import FUNCTION, Constant

__all__ = ["Lending"]


class Lending:
    """
    Attributes:
        by_job: the keys of what goes along with jobs, until these are over.
        lent: the keys of what the worker may have.
    """

    def __init__(self) -> None:
        self.by_job: dict[int, list[int]] = {}
        self.lent: set[int] = set()
        self._known: set[int] = set()  # keys of what it surely has

    def lacking(self, constants: Sequence[Constant]) -> list[Constant]:
        """Those of them that have to go along."""
        return [each for each in constants if each.key not in self._known]

    def go_along(self, job: int, constants: Iterable[Constant]) -> None:
        """They were staged with this job."""
        self.by_job[job] = [each.key for each in constants if each.key != FUNCTION]

    def has_arrived(self, job: int) -> None:
        """The worker has reported this job well."""
        self._known.update(self.by_job.get(job, ()))

    def end(self, job: int) -> None:
        """This job is over, or was taken back."""
        self.lent.update(self.by_job.pop(job, ()))

    def released(self) -> list[int]:
        """The keys of what nobody here holds any more, and the worker may have."""
        from prefork._ipc.shared import is_held  # something was shared, so this is there

        return [key for key in self.lent if not is_held(key)]

    def told(self, key: int) -> None:
        """The word that it is to be forgotten is on its way."""
        self.lent.discard(key)
        self._known.discard(key)

    def taken_back(self, key: int) -> None:
        """That word was taken back unread."""
        self.lent.add(key)
