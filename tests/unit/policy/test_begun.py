"""Whose start is still to be told."""

from __future__ import annotations

from prefork._policy.job import NULL_SINK, Job, WorkerSlot
from prefork._policy.timers import LONGEST_PAUSE, StartTimer

DELAY = 0.005


class Board(WorkerSlot):
    """A worker whose board a test writes."""

    def __init__(self, *jobs: Job) -> None:
        super().__init__()
        self.sent = {job.id: job for job in jobs}
        self.now = 0

    def running(self) -> tuple[int, float]:
        return self.now, 1.0


def new_job():
    job = Job(NULL_SINK, "abs")
    job.start_unreported = True
    return job


def test_a_start_is_looked_for_once_after_the_delay():
    starts, job = StartTimer(DELAY), new_job()
    slot = Board(job)
    assert starts.expect(slot, 10.0)
    assert starts.next_due == 10.0 + DELAY
    assert not starts.expect(slot, 10.001)  # that look is early enough
    slot.now = job.id
    assert starts.look([slot], 10.006) == [(slot, job)]
    assert starts.next_due is None
    job.start_unreported = False
    assert not starts.expect(slot, 11.0)


def test_who_does_not_start_is_looked_at_less_and_less_often():
    starts, slot = StartTimer(DELAY), Board(new_job())
    starts.expect(slot, 0.0)
    now, pauses = DELAY, []
    for _ in range(12):
        assert starts.look([slot], now) == []
        assert starts.next_due is not None
        pauses.append(round(starts.next_due - now, 6))
        now = starts.next_due
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


def test_what_waits_behind_a_running_job_is_not_looked_for():
    starts, first, second = StartTimer(DELAY), new_job(), new_job()
    first.start_unreported = False
    slot = Board(first, second)
    slot.now = first.id
    starts.expect(slot, 0.0)
    assert starts.look([slot], 1.0) == []
    assert starts.next_due is None


def test_nothing_without_a_delay():
    assert not StartTimer().expect(Board(new_job()), 0.0)
