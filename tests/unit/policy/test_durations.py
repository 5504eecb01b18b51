"""How long things took, in buckets."""

from __future__ import annotations

import math

import pytest

from prefork._policy.durations import BOUNDS, Durations


@pytest.mark.parametrize("place", range(len(BOUNDS)))
def test_a_bucket_ends_with_its_bound(place):
    durations = Durations()
    durations.add(BOUNDS[place])
    durations.add(BOUNDS[place] * 1.01)
    expected = [0] * (len(BOUNDS) + 1)
    expected[place] = expected[place + 1] = 1
    assert list(durations.counts()) == expected
    assert durations.seconds == pytest.approx(BOUNDS[place] * 2.01)


def test_bounds_grow():
    assert list(BOUNDS) == sorted(set(BOUNDS))


@pytest.mark.parametrize("seconds", [-1.0, -math.inf, math.inf, math.nan, 1e300])
def test_what_no_clock_says_spoils_no_sum(seconds):
    durations = Durations()
    durations.add(seconds)
    durations.add(2.0)
    assert durations.seconds == 2.0
