"""The limits of a job, and the terms on which it is run."""

from __future__ import annotations

from typing import NamedTuple

from prefork._arguments import integer, seconds
from prefork._policy.retry import Retry, retry_of

__all__ = ["NO_LIMITS", "NO_TERMS", "Limits", "Terms"]


class Terms(NamedTuple):
    """What few jobs have, and so is beside the limits: it costs the others nothing."""

    retries: Retry | None = None
    priority: int = 0
    deadline: float | None = None  # seconds from the submission


NO_TERMS = Terms()


class Limits(NamedTuple):
    """Times that a job may take, in seconds; None is no limit. And its terms, if it has any."""

    timeout: float | None = None
    soft_timeout: float | None = None
    lost_worker_timeout: float | None = 10.0
    terms: Terms | None = None

    def override(
        self,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        retries: int | Retry | None = None,
    ) -> Limits:
        """These limits, but for what is not None; infinity is no limit.

        Raises:
            TypeError, ValueError: it is no number of seconds, or of retries.
        """
        if timeout is soft_timeout is lost_worker_timeout is retries is None:
            return self
        hard, soft, lost, terms = self
        if retries is not None:
            terms = _asked_for((terms or NO_TERMS)._replace(retries=retry_of(retries)))
        return Limits(
            hard if timeout is None else seconds("timeout", timeout),
            soft if soft_timeout is None else seconds("soft_timeout", soft_timeout),
            lost
            if lost_worker_timeout is None
            else seconds("lost_worker_timeout", lost_worker_timeout, zero=True),
            terms,
        )

    def with_terms(self, priority: int | None = None, deadline: float | None = None) -> Limits:
        """The same, but for what is not None; infinity is no deadline.

        Raises:
            TypeError, ValueError: it is no whole number, or no number of seconds.
        """
        terms = self.terms or NO_TERMS
        if priority is not None:
            terms = terms._replace(priority=integer("priority", priority))
        if deadline is not None:
            terms = terms._replace(deadline=seconds("deadline", deadline))
        return self if terms is self.terms else self._replace(terms=_asked_for(terms))

    def latest(self, now: float) -> float | None:
        """By when a job that is submitted now must have ended."""
        if self.terms is None or self.terms.deadline is None:
            return None
        return now + self.terms.deadline


def _asked_for(terms: Terms) -> Terms | None:
    """None, if they ask for nothing."""
    return None if terms == NO_TERMS else terms


NO_LIMITS = Limits(lost_worker_timeout=None)
