"""Who gets which task: decided without a process, a pipe or a clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefork._ipc.channel import MAX_TICKETS
from prefork._policy.job import NULL_SINK, Job, WorkerSlot
from prefork._policy.scheduler import (
    ALONE_SECONDS,
    BATCH_SECONDS,
    MAX_DEPTH,
    MIN_DEPTH,
    SHORT_SECONDS,
    Scheduler,
)


def finish(scheduler, slot, job_id, seconds):
    """A report has come in."""
    job = slot.sent.pop(job_id, None)
    scheduler.note_finished(slot, 1, seconds)
    return job


class InFile:
    """What a large call is held by."""

    is_file = True


def make_job() -> Job:
    return Job(NULL_SINK, "print")


@pytest.fixture
def scheduler() -> Scheduler:
    """One that has seen jobs short enough for one to wait behind each."""
    made = Scheduler()
    made.mean_seconds = BATCH_SECONDS
    return made


def slots(scheduler: Scheduler, count: int) -> list[WorkerSlot]:
    made = [WorkerSlot() for _ in range(count)]
    for slot in made:
        scheduler.add(slot)
    return made


def test_a_job_goes_to_an_idle_worker_then_behind_a_running_job_then_into_the_queue(scheduler):
    a, b = slots(scheduler, 2)
    jobs = [make_job() for _ in range(5)]
    sent_to = [scheduler.submit(job) for job in jobs]
    assert set(sent_to[:2]) == {a, b}
    assert set(sent_to[2:4]) == {a, b}
    assert sent_to[4] is None
    assert list(scheduler.queue) == [jobs[4]]


def test_the_worker_that_was_idle_last_is_preferred_its_caches_are_warm(scheduler):
    a, b = slots(scheduler, 2)
    first, second = make_job(), make_job()
    assert {scheduler.submit(first), scheduler.submit(second)} == {a, b}
    finish(scheduler, first.slot, first.id, 0.001)
    finish(scheduler, second.slot, second.id, 0.001)
    assert scheduler.submit(make_job()) is second.slot


def test_of_workers_that_are_starting_the_oldest_is_preferred_it_will_be_ready_first(scheduler):
    starting = [WorkerSlot() for _ in range(3)]
    for slot in starting:
        slot.ready = False
        scheduler.add(slot)
    assert [scheduler.submit(make_job()) for _ in starting] == starting


@pytest.mark.parametrize("seconds", [None, 2 * ALONE_SECONDS])
def test_jobs_that_are_long_or_unknown_wait_in_the_queue_and_start_in_their_order(
    scheduler, seconds
):
    """One that waited behind a long one would be overtaken by those that came later."""
    scheduler.mean_seconds = seconds
    a, b = slots(scheduler, 2)
    jobs = [make_job() for _ in range(5)]
    for job in jobs:
        scheduler.submit(job)
    assert list(scheduler.queue) == jobs[2:]
    assert list(scheduler.batches()) == []
    for job in jobs[2:]:
        finish(scheduler, a, next(iter(a.sent)), 2 * ALONE_SECONDS)
        assert list(scheduler.batches([a])) == [(a, [job])]
    assert len(b.sent) == 1


def test_a_worker_that_is_starting_gets_a_job_before_any_waits_behind_another(scheduler):
    (busy,) = slots(scheduler, 1)
    starting = WorkerSlot()
    starting.ready = False
    scheduler.add(starting)
    jobs = [make_job() for _ in range(4)]
    assert [scheduler.submit(job) for job in jobs] == [busy, starting, busy, None]


def test_short_jobs_wait_for_workers_that_are_at_work_others_may_idle():
    scheduler = Scheduler(cpus=2)
    scheduler.mean_seconds = SHORT_SECONDS / 2
    busy = slots(scheduler, 2)
    scheduler.submit(make_job())
    scheduler.submit(make_job())
    idle = slots(scheduler, 5)
    scheduler.mean_seconds = SHORT_SECONDS / 2
    assert {scheduler.submit(make_job()) for _ in range(20)} == {*busy, None}
    assert scheduler.is_holding()
    finish(scheduler, busy[0], next(iter(busy[0].sent)), SHORT_SECONDS / 2)
    ((slot, batch),) = scheduler.batches([busy[0]])
    assert slot is busy[0]
    assert len(batch) == 9  # of 18, for two
    for job in busy[1].sent.copy():
        finish(scheduler, busy[1], job, SHORT_SECONDS / 2)
    assert {slot for slot, _ in scheduler.batches()} == {*busy}  # no other one is woken
    scheduler.queue.clear()
    assert scheduler.steal() is None
    scheduler.hold_no_more()
    assert scheduler.submit(make_job()) in idle
    assert scheduler.steal() is not None


def test_nothing_waits_for_workers_that_are_still_starting():
    scheduler = Scheduler(cpus=2)
    scheduler.mean_seconds = SHORT_SECONDS / 2
    new = [WorkerSlot(), WorkerSlot()]
    for slot in new:
        slot.ready = False
        scheduler.add(slot)
    (idle,) = slots(scheduler, 1)
    assert not scheduler.is_holding()
    assert scheduler.submit(make_job()) is idle
    assert scheduler.submit(make_job()) is new[0]
    assert scheduler.submit(make_job()) is new[1]
    assert scheduler.submit(make_job()) is idle  # behind the first one
    assert not scheduler.queue


def test_one_job_that_takes_long_says_little_of_the_next():
    scheduler = Scheduler()
    (slot,) = slots(scheduler, 1)
    scheduler.note_finished(slot, 1, SHORT_SECONDS / 10)
    scheduler.note_finished(slot, 1, 1.0)
    assert (scheduler.mean_seconds or 0.0) < SHORT_SECONDS
    for _ in range(50):
        scheduler.note_finished(slot, 1, 1.0)
    assert (scheduler.mean_seconds or 0.0) > 0.5


def test_nothing_waits_for_a_job_that_was_found_to_be_long():
    scheduler = Scheduler(cpus=2)
    scheduler.mean_seconds = SHORT_SECONDS / 2
    slow, brisk = slots(scheduler, 2)
    for _ in range(4):
        scheduler.submit(make_job())
    slots(scheduler, 1)
    assert scheduler.is_holding()
    scheduler.remember_heads()
    finish(scheduler, brisk, next(iter(brisk.sent)), SHORT_SECONDS / 2)
    assert scheduler.find_slow() == [slow]
    assert not scheduler.find_slow()  # it was told once
    waiting = list(slow.sent)[1:]
    scheduler.return_jobs(slow, waiting)
    assert not scheduler.is_holding()  # one is at work, not two
    assert slow not in [slot for slot, _ in scheduler.batches()]
    assert not scheduler.queue
    assert scheduler.submit(make_job()) is not slow
    finish(scheduler, slow, next(iter(slow.sent)), 1.0)
    assert slow in scheduler.idle_slots()


def test_jobs_are_handed_out_one_ahead_shorter_ones_in_batches(scheduler):
    (slot,) = slots(scheduler, 1)
    for _ in range(500):
        scheduler.submit(make_job())
    done = next(iter(slot.sent))
    finish(scheduler, slot, done, ALONE_SECONDS / 2)
    assert [len(batch) for _, batch in scheduler.batches()] == [1]
    assert len(slot.sent) == MIN_DEPTH
    scheduler.mean_seconds = BATCH_SECONDS / 50
    finish(scheduler, slot, next(iter(slot.sent)), BATCH_SECONDS / 50)
    ((_, batch),) = scheduler.batches()
    assert 40 < len(batch) <= 50


def test_a_batch_fits_into_one_write_with_room_for_a_dismissal():
    assert MAX_DEPTH < MAX_TICKETS


def test_a_short_queue_is_shared(scheduler):
    a, b = slots(scheduler, 2)
    for _ in range(14):
        scheduler.submit(make_job())
    scheduler.mean_seconds = 1e-6
    finish(scheduler, a, next(iter(a.sent)), 1e-6)
    batches = dict(scheduler.batches([a, b]))
    assert len(batches[a]) == 5
    assert len(batches[b]) == 3


def test_an_idle_worker_gets_half_of_the_longest_inbox(scheduler):
    a, b = slots(scheduler, 2)
    scheduler.shut(b)
    jobs = [make_job() for _ in range(2)]
    assert [scheduler.submit(job) for job in jobs] == [a, a]
    assert scheduler.steal() is None
    scheduler.reopen(b)
    assert scheduler.steal() == (a, 1)
    scheduler.return_jobs(a, [jobs[1].id])
    assert list(scheduler.queue) == [jobs[1]]
    assert jobs[1].slot is None
    assert list(scheduler.batches(scheduler.idle_slots())) == [(b, [jobs[1]])]
    assert scheduler.steal() is None


def test_returned_jobs_come_first_and_in_their_order(scheduler):
    (slot,) = slots(scheduler, 1)
    jobs = [make_job() for _ in range(4)]
    for job in jobs:
        scheduler.submit(job)
    scheduler.return_jobs(slot, [jobs[0].id, jobs[1].id])
    assert list(scheduler.queue) == jobs


def test_a_large_job_waits_for_an_idle_worker(scheduler):
    (slot,) = slots(scheduler, 1)
    scheduler.submit(small := make_job())
    large = make_job()
    large.payload = InFile()
    assert scheduler.submit(large) is None
    assert list(scheduler.batches()) == []
    finish(scheduler, slot, small.id, 0.001)
    assert list(scheduler.batches()) == [(slot, [large])]


def test_a_worker_is_sent_no_more_than_it_may_finish(scheduler):
    (slot,) = slots(scheduler, 1)
    scheduler.remove(slot)
    slot.open, slot.quota = True, 1
    scheduler.add(slot)
    first, second = make_job(), make_job()
    assert scheduler.submit(first) is slot
    assert scheduler.submit(second) is None
    finish(scheduler, slot, first.id, 0.001)
    assert list(scheduler.batches()) == []


def test_a_report_of_a_job_that_was_given_up_is_nobodys(scheduler):
    (slot,) = slots(scheduler, 1)
    scheduler.submit(job := make_job())
    assert scheduler.clear() == [job]
    assert finish(scheduler, slot, job.id, 0.001) is None


class Lives(RuleBasedStateMachine):
    """Whatever happens, each job is in exactly one place, and no worker idles beside a queue,
    unless short jobs are held."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.unfinished: set[Job] = set()

    def hand_out(self) -> None:
        for slot, batch in self.scheduler.batches():
            assert slot.open
            assert all(job.slot is slot for job in batch)

    @rule(quota=st.sampled_from([1, 3, float("inf")]))
    def add(self, quota: float) -> None:
        slot = WorkerSlot()
        slot.quota = quota
        self.scheduler.add(slot)
        self.hand_out()

    @rule(large=st.booleans())
    def submit(self, large: bool) -> None:
        job = make_job()
        job.payload = InFile() if large else None
        self.unfinished.add(job)
        self.scheduler.submit(job)

    @precondition(lambda self: any(slot.sent for slot in self.scheduler.slots))
    @rule(data=st.data(), seconds=st.sampled_from([1e-6, 1e-3, 1.0]))
    def finish(self, data: st.DataObject, seconds: float) -> None:
        slot = data.draw(st.sampled_from([s for s in self.scheduler.slots if s.sent]))
        job = finish(self.scheduler, slot, next(iter(slot.sent)), seconds)
        assert job is not None
        self.unfinished.remove(job)
        if slot.quota <= 0:
            self.scheduler.remove(slot)
        self.hand_out()

    @precondition(lambda self: self.scheduler.slots)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.scheduler.slots))
        jobs: list[Any] = list(slot.sent) or [None]
        running, *unread = jobs
        self.scheduler.return_jobs(slot, unread)
        self.scheduler.remove(slot)
        if running is not None:
            self.unfinished.remove(slot.sent.pop(running))
        self.hand_out()

    @rule()
    def steal(self) -> None:
        plan = self.scheduler.steal()
        if plan is not None:
            slot, count = plan
            assert 0 < count < len(slot.sent)
            self.scheduler.return_jobs(slot, list(slot.sent)[1 : 1 + count])
            self.hand_out()

    @rule()
    def remember(self) -> None:
        self.scheduler.remember_heads()

    @rule()
    def find_slow(self) -> None:
        for slot in self.scheduler.find_slow():
            self.scheduler.return_jobs(slot, list(slot.sent)[1:])
        if not self.scheduler.is_holding():
            self.hand_out()

    @invariant()
    def each_job_is_in_one_place(self) -> None:
        places = list(self.scheduler.queue)
        for slot in self.scheduler.slots:
            places += slot.sent.values()
        assert len(places) == len(set(places)) == self.scheduler.unfinished
        assert set(places) == self.unfinished

    @invariant()
    def nobody_idles_beside_a_queue(self) -> None:
        if self.scheduler.queue and not self.scheduler.is_holding():
            assert not self.scheduler.idle_slots()


TestLives = Lives.TestCase
