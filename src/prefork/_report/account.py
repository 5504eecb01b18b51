"""All that is kept of what was recorded. It is of a fixed size: a million runs take no more room
than a thousand."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

from prefork._report.failures import Failure, Failures
from prefork._report.spread import Spread
from prefork._report.timeline import Timeline

__all__ = ["KEPT", "Account", "Function", "Lane", "Longest", "Memory", "Run"]

KEPT: Final = 1000
"""So many runs are known one by one: the longest ones."""
MOST_LANES: Final = 128
MOST_FUNCTIONS: Final = 100
OTHERS: Final = "(others)"


class Run(NamedTuple):
    """A run of a job, or of one input, that is over. Times are monotonic, seconds.

    Attributes:
        pid: of the worker process.
        started, seconds: when it began, and how long it took.
        waited: how long it had waited for that.
        function: that was called.
        what: it was called with, in some form; hashable, and of each run another one.
    """

    pid: int
    started: float
    seconds: float
    waited: float
    function: str
    what: Any


class Memory(NamedTuple):
    """What a process had resident, from one time to another one.

    Attributes:
        kib: the most that is known of, KiB.
    """

    pid: int
    start: float
    end: float
    kib: int


class Lane:
    """One worker, and those that took its place when it had ended.

    Attributes:
        pids: how many processes it were.
        pid: of the last one.
        runs: how many there are, and of these `failed` have failed.
        memory: the most that one of them had resident, KiB.
        end: of its last run.
    """

    def __init__(self, timeline: Timeline, is_shared: bool = False) -> None:
        self.is_shared = is_shared  # by all those for which there are no lanes any more
        self.pids = 0
        self.pid = 0
        self.runs = self.failed = self.memory = 0
        self.seconds = 0.0
        self.end = timeline.begin
        self.busy = timeline.levels()
        self.failures = timeline.counts()
        self.resident = timeline.peaks()

    def take(self, pid: int) -> None:
        self.pids += 1
        self.pid = pid


class Function:
    """What is known of the calls of one function."""

    def __init__(self) -> None:
        self.runs = self.failed = 0
        self.seconds = self.longest = 0.0


class Longest(NamedTuple):
    seconds: float
    order: int  # so that runs themselves are never compared
    lane: int
    run: Run


class Account:
    """
    Args:
        begin: when the recording begins (monotonic, seconds).
        describe: makes a text of a run's or a failure's `what`, once that is needed.
        alive: tells the process ids of the workers that there are; None: nobody knows.
    """

    def __init__(
        self,
        begin: float,
        describe: Callable[[Any], str],
        alive: Callable[[], Collection[int]] | None = None,
    ) -> None:
        self.begin = begin
        self.timeline = Timeline(begin)
        self.lanes: list[Lane] = []
        self.waiting = self.timeline.levels()
        self.run_time = Spread()
        self.wait_time = Spread()
        self.failures = Failures()
        self.functions: dict[str, Function] = {}
        self.describe = describe
        self._alive = alive
        self._lane_of: dict[int, int] = {}  # by process ids
        self._longest: list[Longest] = []  # a heap
        self._fate: dict[Any, bool] = {}  # of these, by their `what`: whether it has failed
        self._order = itertools.count()

    # ---- what has happened

    def add(self, run: Run, now: float) -> None:
        """
        Args:
            now: nothing ends later: a task may have written any number into its worker's channel.
        """
        pid, started, seconds, waited, name, _ = run
        if not (0.0 <= seconds < now and 0.0 <= waited < now):
            seconds, waited = _sane(seconds, now), _sane(waited, now)
        start = self._between(started, now)
        end = max(start, self._between(started + seconds, now))
        timeline = self.timeline
        timeline.reach(end)
        first, last = timeline.position(start), timeline.position(end)
        number = self._lane_of.get(pid)
        lane = self.lanes[self._lane(pid) if number is None else number]
        lane.busy.add(first, last)
        self.waiting.add(timeline.position(start - waited), first)
        lane.runs += 1
        lane.seconds += end - start
        if end > lane.end:  # noqa: PLR1730 (in a third of the time)
            lane.end = end
        self.run_time.add(seconds)
        self.wait_time.add(waited)
        function = self.functions.get(name) or self._function(name)
        function.runs += 1
        function.seconds += seconds
        if seconds > function.longest:  # noqa: PLR1730
            function.longest = seconds
        if len(self._longest) < KEPT or seconds > self._longest[0].seconds:
            self._keep(Longest(seconds, next(self._order), self._lane(pid), run))

    def _keep(self, each: Longest) -> None:
        """It is one of the longest."""
        if len(self._longest) < KEPT:
            heapq.heappush(self._longest, each)
        else:
            dropped = heapq.heapreplace(self._longest, each)
            self._fate.pop(dropped.run.what, None)
        self._fate[each.run.what] = False

    def add_failure(self, failure: Failure, now: float) -> None:
        """Of a run that has been added, or of something that was never run."""
        self.failures.add(failure, self.describe(failure.what))
        self._function(failure.function).failed += 1
        if failure.what in self._fate:
            self._fate[failure.what] = True
        if failure.pid:
            lane = self.lanes[self._lane(failure.pid)]
            lane.failed += 1
            if failure.time is not None:
                time = self._between(failure.time, now)
                self.timeline.reach(time)
                lane.failures.add(self.timeline.position(time))

    def add_memory(self, memory: Memory, now: float) -> None:
        start, end = self._between(memory.start, now), self._between(memory.end, now)
        self.timeline.reach(end)
        lane = self.lanes[self._lane(memory.pid)]
        position = self.timeline.position
        lane.resident.add(position(start), position(end), memory.kib)
        lane.memory = max(lane.memory, memory.kib)

    def _between(self, time: float, now: float) -> float:
        return min(time, now) if time > self.begin else self.begin

    def _lane(self, pid: int) -> int:
        """A successor takes the lane of one that has ended."""
        number = self._lane_of.get(pid)
        if number is not None:
            return number
        number = self._free_lane()
        if number is None:
            number = len(self.lanes)
            if number >= MOST_LANES:
                number -= 1
            else:
                self.lanes.append(Lane(self.timeline, number == MOST_LANES - 1))
        lane = self.lanes[number]
        if lane.is_shared:
            return number
        self._lane_of.pop(lane.pid, None)
        self._lane_of[pid] = number
        lane.take(pid)
        return number

    def _free_lane(self) -> int | None:
        if self._alive is None or not self.lanes:
            return None
        alive = self._alive()
        free = [n for n, lane in enumerate(self.lanes) if lane.pid not in alive]
        return min(free, key=lambda n: self.lanes[n].end, default=None)

    def _function(self, name: str) -> Function:
        found = self.functions.get(name)
        if found is None:
            if len(self.functions) >= MOST_FUNCTIONS:
                name = OTHERS
            found = self.functions.setdefault(name, Function())
        return found

    # ---- what follows

    def longest(self) -> list[Longest]:
        """The runs that are known one by one, the longest first."""
        return sorted(self._longest, reverse=True)

    def has_failed(self, each: Longest) -> bool:
        return self._fate.get(each.run.what, False)

    @property
    def is_complete(self) -> bool:
        """Whether all runs are known one by one."""
        return self.run_time.count == len(self._longest)


def _sane(seconds: float, now: float) -> float:
    return min(seconds, now) if math.isfinite(seconds) and seconds > 0.0 else 0.0
