"""A run's samples in short: medians, and ratios to the reference with their spread."""

from __future__ import annotations

from collections import defaultdict
from statistics import median, quantiles
from typing import Any, NamedTuple

from benchmarks.side_by_side.peers import REFERENCE
from benchmarks.side_by_side.sample import OK


class Figure(NamedTuple):
    """The middle of some values, and the quartiles around it."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, middle, high = quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))


class Run:
    """What a run's file holds."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.failures: dict[tuple[str, str], str] = {}  # how each that failed did so
        self._values: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
        self._contenders: dict[str, dict[str, None]] = defaultdict(dict)
        for sample in data["samples"]:
            workload, contender = sample["workload"], sample["contender"]
            self._contenders[workload][contender] = None
            if sample["status"] != OK:
                self.failures[workload, contender] = sample["status"]
            for metric, value in sample.get("metrics", {}).items():
                self._values[workload, contender, metric][sample["round"]] = value

    def contenders(self, workload: str) -> list[str]:
        return list(self._contenders[workload])

    def figure(self, workload: str, contender: str, metric: str) -> Figure | None:
        values = self._values.get((workload, contender, metric))
        return Figure.of(list(values.values())) if values else None

    def value(self, workload: str, contender: str, metric: str) -> float | None:
        """The median."""
        values = self._values.get((workload, contender, metric))
        return median(values.values()) if values else None

    def ratio(self, workload: str, contender: str, metric: str) -> Figure | None:
        """How many times as much as the reference: the ratio of the medians, and the quartiles of
        the rounds' ratios (a round's two samples met the same machine)."""
        ours = self._values.get((workload, REFERENCE, metric), {})
        theirs = self._values.get((workload, contender, metric), {})
        ratios = [theirs[turn] / ours[turn] for turn in theirs if ours.get(turn)]
        if not ratios:
            return None
        together = median(theirs.values()) / median(ours.values())
        return Figure.of(ratios)._replace(median=together)
