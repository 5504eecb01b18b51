"""Which process the next worker is forked from.

    a pool is made ─► the first worker makes a template ─┐
    restart() ──────► the next worker makes another one ─┤
    it is lost ─────► the next worker makes another one ─┴─► later workers are forked from it

A template that was forked while the program had other threads may have inherited a lock that one of
them held; then all that is forked from it hangs. So such a one is *accepted* only when its first
worker is ready. Until then workers are forked from the one before, or, if there is none, from the
pool's own process.
"""

from __future__ import annotations

from multiprocessing.context import BaseContext

from prefork._engine.worker_handle import WorkerHandle
from prefork._system import std_internals, template
from prefork._system.child import Ties
from prefork._system.lifeline import Lifeline, is_shareable
from prefork._system.log import DEBUG, Log
from prefork._system.template import Template

__all__ = ["Origin", "Templates"]


class Origin:
    """Where one worker comes from.

    Attributes:
        ties: see `Child`.
        generation: of the program that the worker finds: how often all workers had been replaced
            when its origin was made.
    """

    def __init__(self, ties: Ties, generation: int) -> None:
        self.ties = ties
        self.generation = generation

    @property
    def forks_here(self) -> bool:
        """Whether the pool's own process is forked for it."""
        template = self.ties.template
        return template is None or not template.pid


class _Candidate:
    """A template that is not accepted yet."""

    def __init__(self, template: Template, generation: int) -> None:
        self.template = template
        self.generation = generation
        self.first: WorkerHandle | None = None

    def has_worker(self, worker: WorkerHandle) -> None:
        self.first = worker


class Templates:
    def __init__(self, context: BaseContext, log: Log) -> None:
        self._log = log
        self._is_enabled = std_internals.is_forking(context) and template.is_supported()
        self._lifeline = Lifeline() if is_shareable() else None
        self._accepted: _Candidate | None = None
        self._candidate: _Candidate | None = None
        self._all: set[Template] = set()
        self._is_next_plain = False  # the last template was lost over its first start

    def origin(self, generation: int) -> Origin:
        """For one more worker.

        Raises:
            OSError: no descriptor is left.
        """
        if not self._is_enabled:
            return Origin(Ties(self._lifeline), generation)
        self._judge()
        accepted = self._accepted
        if accepted is not None and accepted.generation == generation:
            return self._from(accepted)
        if self._is_next_plain and accepted is None:
            self._is_next_plain = False  # so that there is progress, whatever ends templates here
            return Origin(Ties(self._lifeline), generation)
        if self._candidate is None:
            assert self._lifeline is not None
            made = Template(self._lifeline.end)
            self._all.add(made)
            self._candidate = _Candidate(made, generation)
            return self._from(self._candidate)
        if accepted is not None:
            return self._from(accepted)
        return Origin(Ties(self._lifeline), generation)

    def _from(self, candidate: _Candidate) -> Origin:
        return Origin(Ties(self._lifeline, candidate.template), candidate.generation)

    def _judge(self) -> None:
        """See what has become of them."""
        self._close_needless()
        if self._accepted is not None and not self._accepted.template.is_alive():
            self._retire(self._accepted)
            self._accepted = None
        candidate = self._candidate
        if candidate is None or not candidate.template.pid:
            return
        first = candidate.first
        if not candidate.template.is_alive():
            self._candidate = None
            self._retire(candidate)
        elif candidate.template.is_clean or (first is not None and first.ready):
            self._candidate = None
            if self._accepted is not None:
                self._retire(self._accepted)
            self._accepted = candidate
        elif first is not None and first.has_exited:
            self._candidate = None
            self._retire(candidate)

    def _retire(self, candidate: _Candidate) -> None:
        """It ends when its last worker has been accounted for, who has to be asked for."""
        candidate.template.retire()

    def _close_needless(self) -> None:
        for each in [each for each in self._all if each.is_needless]:
            each.close()
            self._all.discard(each)

    def has_worker(self, origin: Origin, worker: WorkerHandle) -> None:
        """This worker has come from there."""
        candidate = self._candidate
        if candidate is None or origin.ties.template is not candidate.template:
            return
        if candidate.first is None:
            candidate.has_worker(worker)
            how = "clean" if candidate.template.is_clean else "while the program had other threads"
            text = "later workers are forked from process %d, which was forked %s"
            self._log.note(DEBUG, text, candidate.template.pid, how)

    def has_failed(self, origin: Origin) -> None:
        """No worker has come from there."""
        candidate = self._candidate
        if (
            candidate is not None
            and candidate.first is None
            and origin.ties.template is candidate.template
        ):
            self._candidate = None
            self._is_next_plain = True
            self._retire(candidate)

    def retire(self) -> None:
        """No more workers are to come: they end with the workers that they have to tell of."""
        for each in self._all:
            each.retire()

    def close(self) -> None:
        """There are no workers any more: end them, await that, free the descriptors."""
        for each in list(self._all):
            each.close()
        self._all.clear()
        self._accepted = self._candidate = None
        if self._lifeline is not None:
            self._lifeline.cut()
