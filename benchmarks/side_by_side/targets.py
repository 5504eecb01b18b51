"""What prefork is to reach, as ratios within one run, and how far a run has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.side_by_side.peers import OTHERS, REFERENCE
from benchmarks.side_by_side.summary import Run

Value = Callable[[Run], float | None]


class Target(NamedTuple):
    text: str
    value: Value
    bound: float
    at_least: bool = True  # else at most

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _quotient(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _times(workload: str, contender: str, metric: str = "wall") -> Value:
    """How many times as much the contender needs."""
    return lambda run: _quotient(
        run.value(workload, contender, metric), run.value(workload, REFERENCE, metric)
    )


def _share(workload: str, contender: str, metric: str = "wall") -> Value:
    """What prefork needs as a share of what the contender needs."""
    return lambda run: _quotient(
        run.value(workload, REFERENCE, metric), run.value(workload, contender, metric)
    )


def _own(workload: str, metric: str) -> Value:
    return lambda run: run.value(workload, REFERENCE, metric)


def _fastest_peer(workload: str) -> Value:
    def value(run: Run) -> float | None:
        others = [_times(workload, peer)(run) for peer in OTHERS]
        return min((times for times in others if times is not None), default=None)

    return value


def _workers(many: int) -> Value:
    return lambda run: _quotient(
        run.value(f"workers_{many}", REFERENCE, "cpu"), run.value("apply_async", REFERENCE, "cpu")
    )


def _sends(workload: str) -> Value:
    """A run of it, in the time that one array takes to a worker."""
    return lambda run: _quotient(
        run.value(workload, REFERENCE, "wall"), run.value("array_there", REFERENCE, "wall")
    )


def _cpu_of_futures(run: Run) -> float | None:
    return _quotient(
        run.value("futures", REFERENCE, "cpu"), run.value("apply_async", REFERENCE, "cpu")
    )


MP = "multiprocessing"

TARGETS = [
    Target("`apply_async`: times as fast as multiprocessing", _times("apply_async", MP), 5),
    Target("`apply_async`: as billiard", _times("apply_async", "billiard"), 5),
    Target("`apply_async`: as concurrent.futures", _times("apply_async", "concurrent.futures"), 10),
    Target("`apply_async`: CPU / multiprocessing's", _share("apply_async", MP, "cpu"), 0.25, False),
    *[
        Target(f"`executor.submit`: times as fast as {peer}", _times("futures", peer), 10)
        for peer in ("concurrent.futures", "loky", "deadpool")
    ],
    Target("`executor.submit`: CPU / `apply_async`'s", _cpu_of_futures, 1.25, False),
    Target(
        "`apply` p50 / socket ping-pong",
        _share("apply", "floor: socket ping-pong", "p50"),
        1.5,
        False,
    ),
    Target("`apply` p50 / multiprocessing's", _share("apply", MP, "p50"), 0.5, False),
    Target("`apply`: waits of threads for a call", _own("apply", "switches"), 2, False),
    Target("`await pool.submit` p50 / `apply`'s", _own("awaited", "call"), 1.5, False),
    *[
        Target(
            f"10,000 tasks of 50 µs in joblib, {which} call: times as fast as loky",
            _times(workload, "joblib"),
            3,
        )
        for workload, which in (("joblib", "first"), ("joblib_again", "second"))
    ],
    Target("`map`: times as fast as the fastest other pool", _fastest_peer("map"), 1),
    Target("`imap`: times as fast as multiprocessing", _times("imap", MP), 4.5),
    Target("`imap_unordered`: as multiprocessing", _times("imap_unordered", MP), 5),
    Target("uneven tasks, `map`: makespan / ideal", _own("uneven_map", "ideal"), 1.05, False),
    Target("uneven tasks, `apply_async`: same", _own("uneven_calls", "ideal"), 1.05, False),
    Target(
        "1 ms of CPU: speed / two bare processes'",
        _times("cpu_bound", "floor: two bare processes"),
        0.97,
    ),
    Target("64 MiB array there: times as fast as multiprocessing", _times("array_there", MP), 8),
    Target("64 MiB array there and back: same", _times("array_back", MP), 8),
    Target("peak memory / what must exist, there", _own("array_there_memory", "peak"), 1.1, False),
    Target("the same, there and back", _own("array_back_memory", "peak"), 1.1, False),
    *[
        target
        for workload, name in (("constant", "`map(partial)`"), ("shared", "`share`"))
        for target in (
            Target(
                f"64 MiB for 50 tasks, {name} / one send to one worker", _sends(workload), 3, False
            ),
            Target(f"{name}: times as fast as joblib's memmap", _times(workload, "joblib"), 1),
            Target(f"{name}: as Ray's `put`", _times(workload, "ray"), 1),
        )
    ],
    Target("memory for a shared array / the array", _own("shared_memory", "peak"), 1.1, False),
    Target("1 MiB there and back: times as fast as multiprocessing", _times("bytes_back", MP), 2),
    *[
        Target(
            f"start, {workers} workers, {method} / multiprocessing's",
            _share(f"start_{workers}_{method}", MP),
            1,
            False,
        )
        for method in ("fork", "forkserver")
        for workers in (2, 16)
    ],
    *[
        Target(
            f"start, {workers} workers, in a process of 4 GiB / multiprocessing's",
            _share(f"start_{workers}_large", MP),
            1,
            False,
        )
        for workers in (2, 16)
    ],
    Target("a worker for each task: times as fast as multiprocessing", _times("one_task", MP), 1.5),
    *[
        Target(
            f"memory of an idle worker, {method} / multiprocessing's",
            _share(f"idle_memory_{method}", MP, "bytes"),
            1,
            False,
        )
        for method in ("fork", "forkserver")
    ],
    Target("CPU per task, 64 workers / 2", _workers(64), 1.3, False),
    Target("CPU per task, 256 workers / 2", _workers(256), 1.3, False),
    Target("1,000,000 queued jobs: seconds a job / 10,000's", _own("queued", "growth"), 1.3, False),
    Target("bytes of a queued job beyond its pickle", _own("queued", "bytes"), 600, False),
    Target(
        "`map`, 100,000 items, with a progress bar / without",
        _own("progress", "ratio"),
        1.05,
        False,
    ),
    Target(
        "10,000 log records: forwarded / to a worker's own file", _own("logs", "ratio"), 3, False
    ),
    Target("wake-ups of an idle pool in a second", _own("idle", "wakeups"), 0, False),
]
