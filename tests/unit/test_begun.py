"""Whose start is still to be told."""

from __future__ import annotations

from prefork._policy.job import Job, Seat
from prefork._policy.timers import LONGEST_PAUSE, Starts

DELAY = 0.005


class Board(Seat):
    """A worker whose board a test writes."""

    def __init__(self, *jobs: Job) -> None:
        super().__init__()
        self.sent = {job.id: job for job in jobs}
        self.now = 0

    def running(self) -> tuple[int, float]:
        return self.now, 1.0


class Owner:
    def bind(self, job):
        pass


def new_job():
    job = Job(Owner(), "abs")
    job.untold = True
    return job


def test_a_start_is_looked_for_once_after_the_delay():
    starts, job = Starts(DELAY), new_job()
    seat = Board(job)
    assert starts.expect(seat, 10.0)
    assert starts.next_look == 10.0 + DELAY
    assert not starts.expect(seat, 10.001)  # that look is early enough
    seat.now = job.id
    assert starts.look([seat], 10.006) == [(seat, job)]
    assert starts.next_look is None
    job.untold = False
    assert not starts.expect(seat, 11.0)


def test_who_does_not_start_is_looked_at_less_and_less_often():
    starts, seat = Starts(DELAY), Board(new_job())
    starts.expect(seat, 0.0)
    now, pauses = DELAY, []
    for _ in range(12):
        assert starts.look([seat], now) == []
        pauses.append(round(starts.next_look - now, 6))
        now = starts.next_look
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


def test_what_waits_behind_a_running_job_is_not_looked_for():
    starts, first, second = Starts(DELAY), new_job(), new_job()
    first.untold = False
    seat = Board(first, second)
    seat.now = first.id
    starts.expect(seat, 0.0)
    assert starts.look([seat], 1.0) == []
    assert starts.next_look is None


def test_nothing_without_a_delay():
    assert not Starts().expect(Board(new_job()), 0.0)
