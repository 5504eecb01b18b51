"""What is kept of what was recorded: of a fixed size, whatever comes."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork._report.account import KEPT, MOST_FUNCTIONS, MOST_LANES, OTHERS, Account, Memory, Run
from prefork._report.failures import EXAMPLES, MOST_KINDS, MOST_STACK, Failure, Failures, place
from prefork._report.spread import Spread
from prefork._report.timeline import BINS, Timeline

BEGIN = 1000.0
LATER = 1e9


def run(what: Any, start: float, seconds: float, **other: Any) -> Run:
    fields: dict[str, Any] = {"pid": 1, "waited": 0.0, "function": "f"} | other
    return Run(started=BEGIN + start, seconds=seconds, what=what, **fields)


def failure(**fields: Any) -> Failure:
    usual: dict[str, Any] = {
        "error": "ValueError", "message": "no", "stack": "", "what": 0, "function": "f", "pid": 1,
        "time": BEGIN, "is_final": True,
    }  # fmt: skip
    return Failure(**usual | fields)


@pytest.fixture
def account() -> Account:
    return Account(BEGIN, str)


# ---- time


@given(st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 100)), min_size=1, max_size=50))
def test_no_time_is_lost_when_bins_become_one(spans: list[tuple[float, float]]) -> None:
    timeline = Timeline(BEGIN)
    levels, counts = timeline.levels(), timeline.counts()
    for start, length in spans:
        timeline.reach(BEGIN + start + length)
        levels.add(timeline.position(BEGIN + start), timeline.position(BEGIN + start + length))
        counts.add(timeline.position(BEGIN + start))
    together = sum(levels.values(BINS)) * timeline.width
    assert together == pytest.approx(sum(length for _, length in spans), abs=1e-6)
    assert sum(counts.values(BINS)) == len(spans)
    assert max(levels.values(BINS)) <= len(spans) + 1e-9


def test_how_busy_a_worker_was_in_each_bin() -> None:
    timeline = Timeline(0.0)
    levels = timeline.levels()
    levels.add(1.25, 1.75)
    levels.add(2.5, 4.5)
    assert levels.values(6) == pytest.approx([0, 0.5, 0.5, 1, 0.5, 0])
    levels.halve()
    assert levels.values(3) == pytest.approx([0.25, 0.75, 0.25])


def test_the_most_in_each_bin() -> None:
    timeline = Timeline(0.0)
    peaks = timeline.peaks()
    peaks.add(0.5, 2.5, 7)
    peaks.add(1.0, 1.5, 9)
    assert peaks.values(4) == [7, 9, 7, 0]
    timeline.reach(BINS * timeline.width)
    assert peaks.values(2) == [9, 7]


# ---- lengths


@given(st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=200), st.integers(1, 100))
def test_bars_and_quantiles(lengths: list[float], most: int) -> None:
    spread = Spread()
    for length in lengths:
        spread.add(length)
    bars = spread.bars(most)
    assert sum(bar.number for bar in bars) == len(lengths)
    assert bars[0].least <= min(lengths) * 1.001
    assert bars[-1].most >= max(lengths) * 0.999
    assert spread.quantile(1.0) == pytest.approx(max(lengths), rel=0.13)
    median = sorted(lengths)[math.ceil(len(lengths) / 2) - 1]
    assert spread.quantile(0.5) == pytest.approx(median, rel=0.13)


def test_what_is_shorter_or_longer_than_all_bars_counts() -> None:
    spread = Spread()
    for seconds in (0.0, 1e-9, 1e12):
        spread.add(seconds)
    assert sum(bar.number for bar in spread.bars(50)) == spread.count == 3


# ---- runs


def test_the_longest_are_kept(account: Account) -> None:
    for number in range(3 * KEPT):
        account.add(run(number, number, number / 1000), LATER)
    kept = [each.run.what for each in account.longest()]
    assert kept == list(range(3 * KEPT - 1, 2 * KEPT - 1, -1))
    assert account.run_time.count == 3 * KEPT
    assert not account.is_complete


def test_which_of_them_have_failed(account: Account) -> None:
    for number in range(KEPT + 10):
        account.add(run(number, number, number / 1000), LATER)
        if number % 2:
            account.add_failure(failure(what=number), LATER)
    assert all(account.has_failed(each) == each.run.what % 2 for each in account.longest())
    assert account.functions["f"].failed == account.lanes[0].failed == (KEPT + 10) / 2


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, -1.0, 1e300])
@pytest.mark.parametrize("field", ["started", "seconds", "waited"])
def test_what_no_clock_says_spoils_nothing(account: Account, field: str, wrong: float) -> None:
    said: dict[str, Any] = {field: wrong}
    account.add(run("a", 1, 1)._replace(**said), BEGIN + 10)
    account.add(run("b", 2, 1), BEGIN + 10)
    account.add_memory(Memory(1, wrong, wrong, 100), BEGIN + 10)
    account.add_failure(failure(time=wrong), BEGIN + 10)
    assert account.timeline.width <= 10 / BINS * 2
    assert 1.0 <= account.lanes[0].seconds <= 11.0
    assert account.run_time.seconds < 2000


def test_what_began_before_counts_from_the_beginning_on(account: Account) -> None:
    account.add(run("a", -5, 7), LATER)
    assert account.lanes[0].seconds == pytest.approx(2)
    assert account.run_time.longest == 7


# ---- workers


def test_a_successor_takes_the_lane_of_one_that_has_ended() -> None:
    alive = {1, 2}
    account = Account(BEGIN, str, lambda: alive)
    account.add(run("a", 0, 1, pid=1), LATER)
    account.add(run("b", 0, 2, pid=2), LATER)
    alive -= {1}
    alive |= {3}
    account.add(run("c", 2, 1, pid=3), LATER)
    assert [(lane.pid, lane.pids, lane.runs) for lane in account.lanes] == [(3, 2, 2), (2, 1, 1)]


def test_there_are_no_more_lanes_than_can_be_looked_at() -> None:
    account = Account(BEGIN, str, lambda: range(10_000))
    for pid in range(2 * MOST_LANES):
        account.add(run(pid, 0, 1, pid=pid), LATER)
    assert len(account.lanes) == MOST_LANES
    assert account.lanes[-1].is_shared
    assert account.lanes[-1].runs == MOST_LANES + 1


def test_functions_beyond_the_first_are_counted_together(account: Account) -> None:
    for number in range(3 * MOST_FUNCTIONS):
        account.add(run(number, 0, 1, function=f"f{number}"), LATER)
    assert len(account.functions) == MOST_FUNCTIONS + 1
    assert account.functions[OTHERS].runs == 2 * MOST_FUNCTIONS


# ---- failures

TRACEBACK = 'Traceback (most recent call last):\n  File "/a/b/c.py", line 7, in f\nValueError'
LAST_WORDS = 'Current thread:\n  File "/a/b/c.py", line 8 in g\n  File "/a/b/d.py", line 1 in h'


@pytest.mark.parametrize(
    ("stack", "where"),
    [(TRACEBACK, ", in f (b/c.py:7)"), (LAST_WORDS, ", in g (b/c.py:8)"), ("", ""), ("(none)", "")],
)
def test_where_it_was_raised(stack: str, where: str) -> None:
    assert place(stack) == where


def test_kinds_are_types_and_places() -> None:
    failures = Failures()
    for number in range(10):
        failures.add(failure(stack=TRACEBACK, message=f"no {number}"), f"input {number}")
    failures.add(failure(is_final=False), "another place")
    assert (failures.count, failures.retried) == (11, 1)
    first, second = failures.kinds()
    assert (first.error, first.place, first.count) == ("ValueError", "in f (b/c.py:7)", 10)
    assert first.examples == [(f"input {number}", f"no {number}") for number in range(EXAMPLES)]
    assert (second.count, second.retried) == (1, 1)


def test_kinds_and_their_texts_are_bounded() -> None:
    failures = Failures()
    for number in range(2 * MOST_KINDS):
        failures.add(failure(error=f"E{number}", stack="x" * 10**5, message="y" * 10**5), "z" * 999)
    assert failures.others == MOST_KINDS
    kinds = failures.kinds()
    assert len(kinds) == MOST_KINDS
    assert len(kinds[0].stack) < MOST_STACK + 10
    assert len(pickle.dumps(kinds)) < 10**6
