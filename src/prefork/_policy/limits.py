"""The limits of a job."""

from __future__ import annotations

from typing import NamedTuple

from prefork._arguments import count, seconds

__all__ = ["NO_LIMITS", "Limits"]


class Limits(NamedTuple):
    """Times that a job may take, in seconds; None is no limit. And how often it is retried."""

    timeout: float | None = None
    soft_timeout: float | None = None
    lost_worker_timeout: float | None = 10.0
    retries: int = 0

    def override(
        self,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        retries: int | None = None,
    ) -> Limits:
        """These limits, but for what is not None; infinity is no limit.

        Raises:
            TypeError, ValueError: it is no number of seconds, or of retries.
        """
        if timeout is soft_timeout is lost_worker_timeout is retries is None:
            return self
        hard, soft, lost, again = self
        return Limits(
            hard if timeout is None else seconds("timeout", timeout),
            soft if soft_timeout is None else seconds("soft_timeout", soft_timeout),
            lost
            if lost_worker_timeout is None
            else seconds("lost_worker_timeout", lost_worker_timeout, zero=True),
            again if retries is None else count("retries", retries, least=0),
        )


NO_LIMITS = Limits(lost_worker_timeout=None)
