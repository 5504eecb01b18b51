"""Pools whose times are short enough for tests."""

from __future__ import annotations

from prefork.celery import TaskPool
from prefork.celery.prefork import Pool


class HastyPool(TaskPool):
    """In a cold shutdown it kills, after a moment, what heeds no signal."""

    heed_seconds = 0.1


class ImpatientPool(HastyPool):
    """And all else that does not end."""

    cold_seconds = 0.1


class PoolInAHurry(TaskPool):
    """Its first processes have half a second to start."""

    def on_start(self) -> None:
        Pool.first_start_timeout = 0.5
        super().on_start()
