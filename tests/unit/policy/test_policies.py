"""What expires when, how `map` divides its input, how many CPUs there are: no processes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork._policy.chunks import (
    CHUNK_SECONDS,
    LEAST_SECONDS,
    MAX_CHUNK,
    AdaptiveChunks,
    fixed_chunks,
)
from prefork._policy.job import NULL_SINK, Job, WorkerSlot
from prefork._policy.limits import Limits
from prefork._policy.timers import REMIND_SECONDS, Expiry, LimitTimer
from prefork._system.resources import available_cpus

# ---- timer


class Running(WorkerSlot):
    """A worker whose board the test writes."""

    board = (0, 0.0)
    taken = 0.0

    def running(self) -> tuple[int, float]:
        return self.board

    def accepted(self) -> float:
        return self.taken

    def run(self, job: Job, started: float) -> None:
        self.board = job.id, started

    def load(self, job: Job, now: float) -> None:
        """It takes the job, and has not loaded its call yet."""
        self.board, self.taken = (job.id, now), now


def sent(slot: WorkerSlot, hard: float | None = None, soft: float | None = None) -> Job:
    job = Job(NULL_SINK, "print", limits=Limits(hard, soft))
    slot.sent[job.id] = job
    return job


def test_jobs_without_limits_need_no_look():
    timer = LimitTimer()
    slot = Running()
    assert not timer.sent(sent(slot), 10.0)
    assert timer.look([slot], 10.0).expired == []
    assert timer.next_due is None


def test_what_is_still_being_unpickled_may_begin_any_moment():
    timer = LimitTimer()
    slot = Running()
    job = sent(slot, hard=2.0)
    slot.run(job, 70.0)  # so long it may take
    assert timer.look([slot], 12.0).expired == []
    assert timer.next_due == 14.0  # not: 72.0
    slot.run(job, 12.5)
    assert timer.look([slot], 14.0).expired == []
    assert timer.next_due == 14.5
    slot.run(job, 10.0)  # it has taken longer
    assert timer.look([slot], 14.5).expired == [Expiry(slot, job, False, 2.0, 10.0)]


def test_a_limit_counts_from_the_start_of_the_task():
    timer = LimitTimer()
    slot = Running()
    job = sent(slot, hard=2.0)
    assert timer.sent(job, 10.0)
    assert timer.next_due == 12.0
    assert timer.look([slot], 12.0).expired == []  # has not started
    assert timer.next_due == 14.0
    slot.run(job, 12.5)
    assert timer.look([slot], 14.0).expired == []
    assert timer.next_due == 14.5
    assert timer.look([slot], 14.5).expired == [Expiry(slot, job, False, 2.0, 12.5)]
    assert timer.next_due is None


def test_the_soft_limit_fires_once_and_the_hard_one_follows():
    timer = LimitTimer()
    slot = Running()
    job = sent(slot, hard=3.0, soft=1.0)
    slot.run(job, 10.0)
    timer.sent(job, 10.0)
    assert timer.next_due == 11.0
    assert timer.look([slot], 11.0).expired == [Expiry(slot, job, True, 1.0, 10.0)]
    assert timer.next_due == 11.0 + REMIND_SECONDS
    assert timer.look([slot], 13.0).expired == [Expiry(slot, job, False, 3.0, 10.0)]


def test_a_task_that_goes_on_is_reminded_ever_more_rarely():
    timer = LimitTimer()
    slot = Running()
    job = sent(slot, soft=1.0)
    slot.run(job, 10.0)
    timer.sent(job, 10.0)
    now, told = 11.0, []
    while now < 100.0:
        expired, _, unheeded = timer.look([slot], now)
        told += [now] * len(expired + unheeded)
        assert timer.next_due is not None
        now = timer.next_due
    pauses = [after - before for before, after in itertools.pairwise(told)]
    assert pauses == pytest.approx([REMIND_SECONDS * 4**n for n in range(len(pauses))])
    assert len(told) == 6
    slot.run(job, 99.0)  # another item, or another run
    assert timer.look([slot], 99.5).unheeded == []


def test_a_soft_limit_does_not_pass_while_the_call_is_loaded():
    timer = LimitTimer()
    slot = Running()
    job = sent(slot, soft=1.0)
    slot.load(job, 10.0)
    assert timer.look([slot], 11.5).expired == []
    assert timer.next_due == 12.5
    slot.run(job, 12.0)
    assert timer.look([slot], 12.5).expired == []
    assert timer.next_due == 13.0
    assert timer.look([slot], 13.0).expired == [Expiry(slot, job, True, 1.0, 12.0)]


def test_each_item_of_a_chunk_has_the_limit_for_itself():
    timer = LimitTimer()
    slot = Running()
    job = sent(slot, soft=1.0)
    job.size = 2
    slot.run(job, 10.0)
    assert len(timer.look([slot], 11.0).expired) == 1
    assert timer.look([slot], 11.05).expired == []
    assert timer.next_due == 11.0 + REMIND_SECONDS  # the next item cannot expire before 12.05
    slot.run(job, 11.5)
    assert timer.look([slot], 12.1).expired == []
    assert len(timer.look([slot], 12.5).expired) == 1


def test_only_an_earlier_limit_changes_the_next_look():
    timer = LimitTimer()
    slot = Running()
    assert timer.sent(sent(slot, hard=5.0), 0.0)
    assert not timer.sent(sent(slot, hard=5.0), 1.0)
    assert timer.sent(sent(slot, hard=1.0), 1.0)
    assert timer.next_due == 2.0


# ---- chunks


def test_chunks_start_small_and_grow_with_what_is_measured():
    chunks = AdaptiveChunks(list(range(100_000)), workers=2)
    iterator = iter(chunks)
    assert next(iterator) == [0]
    chunks.measured(1, CHUNK_SECONDS / 10)
    assert len(next(iterator)) == pytest.approx(10, abs=1)
    chunks.measured(10_000, 0.0)
    assert len(next(iterator)) > 5_000


def test_slow_items_go_one_by_one():
    chunks = AdaptiveChunks(list(range(100)), workers=2)
    chunks.measured(1, 1.0)
    assert all(len(chunk) == 1 for chunk in chunks)


@given(
    st.integers(0, 30_000),
    st.integers(1, 64),
    st.lists(st.floats(0, 10, allow_subnormal=False), min_size=1),
)
def test_chunks_cover_the_input_once_and_leave_no_large_rest(count, workers, costs):
    chunks = AdaptiveChunks(list(range(count)), workers)
    seen: list[int] = []
    spent = 0.0
    for number, chunk in enumerate(chunks):
        share = (count - len(seen)) // (4 * workers)
        least = LEAST_SECONDS / (spent / len(seen) + 1e-8) if seen else 0
        assert 1 <= len(chunk) <= max(1, min(MAX_CHUNK, max(share, least)))
        seen += chunk
        spent += (seconds := costs[number % len(costs)] * len(chunk) * 1e-6)
        chunks.measured(len(chunk), seconds)
    assert seen == list(range(count))


def test_fixed_chunks_are_read_as_they_are_needed():
    source = iter(range(7))
    chunks = fixed_chunks(source, 3)
    assert next(chunks) == [0, 1, 2]
    assert next(source) == 3
    assert list(chunks) == [[4, 5, 6]]


# ---- CPUs


def machine(root: Path, groups: str, files: dict[str, str]) -> str:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_a_quota_limits_the_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("os.process_cpu_count", lambda: 8, raising=False)
    v2 = machine(
        tmp_path / "v2",
        "0::/a/b\n",
        {
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/cpu.max": "700000 100000\n",
        },
    )
    v1 = machine(
        tmp_path / "v1",
        "4:memory:/x\n3:cpu,cpuacct:/x\n",
        {
            "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    unlimited = machine(tmp_path / "none", "0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000"})
    assert available_cpus(v2) == 3
    assert available_cpus(v1) == 2
    assert available_cpus(unlimited) == 8
    assert available_cpus(str(tmp_path / "no such system")) == 8


def test_a_tiny_quota_is_one_cpu(tmp_path):
    root = machine(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "1000 100000"})
    assert available_cpus(root) == 1
