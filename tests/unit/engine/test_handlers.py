"""The roles, without a pool."""

from __future__ import annotations

import pytest

from prefork._engine.roles import ResultHandler
from prefork._policy.job import Job


class PoolRef:
    """Of jobs that a thread waits for."""

    def __init__(self, log):
        self.log = log

    def waiters(self):
        return self

    def notify_all(self):
        self.log.append("woken")


@pytest.mark.parametrize(("jobs", "expected"), [(1, ["woken", "read"]), (2, ["read"])])
def test_who_waits_for_the_only_job_is_woken_before_its_result_is_read(jobs, expected):
    log = []
    handler = ResultHandler(
        outqueue=None,
        get=lambda workers: log.append("read"),
        cache={number: Job(PoolRef(log), "print") for number in range(jobs)},
        poll=lambda timeout: ["a worker"],
        join_exited_workers=None,
        putlock=None,
    )
    handler.handle_event()
    assert log == expected
