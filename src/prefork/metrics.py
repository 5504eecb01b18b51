"""What a pool has done, for those who watch machines: as metrics of Prometheus or OpenTelemetry.

    from prometheus_client import start_http_server
    from prefork import Pool, metrics

    pool = Pool()
    metrics.prometheus(pool)
    start_http_server(8000)

Nothing is counted twice, or more often than it was: each time that somebody reads the metrics, they
are made of `pool.statistics()`. So they cost nothing while nobody does. They do not keep the pool
alive: of one that has ended, the last figures are told; of one that is gone, none.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prefork.pool import Pool
from prefork.statistics import Histogram, PoolStatistics, WorkerState

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from prometheus_client.registry import Collector, CollectorRegistry

__all__ = ["opentelemetry", "prometheus"]


class _Metric(NamedTuple):
    """One figure, or several that a label tells apart.

    Attributes:
        name: after "prefork_"; OpenTelemetry's has dots.
        grows: it never becomes less: a counter.
        label: what tells the figures apart; "": there is only one.
        figures: of a snapshot, by the values of that label.
    """

    name: str
    text: str
    grows: bool
    label: str
    figures: Callable[[PoolStatistics], dict[str, float]]


def _outcomes(seen: PoolStatistics) -> dict[str, float]:
    return {"success": seen.finished, **seen.failures._asdict()}


def _states(seen: PoolStatistics) -> dict[str, float]:
    counts = dict.fromkeys(WorkerState, 0)
    for worker in seen.workers:
        counts[worker.state] += 1
    return {state.value: count for state, count in counts.items()}


METRICS: Final = (
    _Metric("jobs_queued", "Jobs that wait.", False, "", lambda seen: {"": seen.queued}),
    _Metric("jobs_running", "Jobs that are run.", False, "", lambda seen: {"": seen.running}),
    _Metric("jobs", "Jobs that are over, by what has come of them.", True, "outcome", _outcomes),
    _Metric("job_retries", "Runs that followed a failed one.", True, "",
            lambda seen: {"": seen.retried}),
    _Metric("workers", "Workers that there are, by what they do.", False, "state", _states),
    _Metric("workers_wanted", "Workers that there should be.", False, "",
            lambda seen: {"": seen.processes}),
    _Metric("workers_ended", "Workers that have ended.", True, "", lambda seen: {"": seen.ended}),
    _Metric("workers_memory_bytes", "What all workers have resident.", False, "",
            lambda seen: {"": 1024.0 * sum(worker.memory or 0 for worker in seen.workers)}),
)  # fmt: skip

HISTOGRAMS: Final = (
    ("job_queue_seconds", "How long jobs have waited for a worker.", "queue_time"),
    ("job_run_seconds", "How long jobs have run.", "run_time"),
)


def prometheus(pool: Pool, name: str = "", registry: CollectorRegistry | None = None) -> Collector:
    """Have the figures of a pool among those that Prometheus scrapes. It needs the extra
    `prometheus`.

    Args:
        pool: whose figures they are.
        name: of that pool, the label `pool`: no two pools have the same in one registry. By default
            "main".
        registry: where they are registered. None: in `prometheus_client.REGISTRY`.

    Returns:
        What is registered; `registry.unregister` takes it away.

    Raises:
        ImportError: there is no `prometheus_client`.
    """
    from prometheus_client import REGISTRY
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.registry import Collector

    reference, label = weakref.ref(pool), name or "main"
    del pool

    class PoolCollector(Collector):
        def collect(self) -> Iterator[Any]:
            if (its := reference()) is None:
                return
            seen = its.statistics()
            for metric in METRICS:
                labels = ["pool", metric.label] if metric.label else ["pool"]
                family: Any = CounterMetricFamily if metric.grows else GaugeMetricFamily
                made = family(f"prefork_{metric.name}", metric.text, labels=labels)
                for value, figure in metric.figures(seen).items():
                    made.add_metric([label, value] if metric.label else [label], figure)
                yield made
            for named, text, field in HISTOGRAMS:
                histogram: Histogram = getattr(seen, field)
                made = HistogramMetricFamily(f"prefork_{named}", text, labels=["pool"])
                buckets = [(bound, float(count)) for bound, count in _cumulative(histogram)]
                made.add_metric([label], buckets, histogram.seconds)
                yield made

        def describe(self) -> Iterable[Any]:
            """Nothing: two pools have the same metrics, with different labels."""
            return ()

    collector = PoolCollector()
    (REGISTRY if registry is None else registry).register(collector)
    return collector


def opentelemetry(pool: Pool, name: str = "", meter: Meter | None = None) -> None:
    """Have the figures of a pool among those that OpenTelemetry exports. It needs the extra
    `opentelemetry`.

    OpenTelemetry takes no histograms that were counted elsewhere. So the buckets are a counter with
    the attribute `le` (the bound, as Prometheus has it), and there is another one for their sum.

    Args:
        pool, name: as in `prometheus`; the name is the attribute `pool`.
        meter: what makes the instruments. None: the meter "prefork" of the global provider.

    Raises:
        ImportError: there is no `opentelemetry.metrics`.
    """
    from opentelemetry.metrics import CallbackOptions, Observation, get_meter

    made = get_meter("prefork") if meter is None else meter
    reference, attributes = weakref.ref(pool), {"pool": name or "main"}
    del pool

    def observing(
        label: str, figures: Callable[[PoolStatistics], dict[str, float]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            if (its := reference()) is None:
                return
            for value, figure in figures(its.statistics()).items():
                yield Observation(figure, {**attributes, label: value} if label else attributes)

        return observe

    def add(metric: _Metric, unit: str = "") -> None:
        create: Any = (
            made.create_observable_counter if metric.grows else made.create_observable_gauge
        )
        called = f"prefork.{metric.name}"
        create(called, [observing(metric.label, metric.figures)], unit, metric.text)

    for metric in METRICS:
        add(metric)
    for named, text, field in HISTOGRAMS:
        add(_Metric(f"{named}.bucket", text, True, "le", _buckets(field)))
        add(_Metric(f"{named}.sum", text, True, "", _sum(field)), "s")


def _cumulative(histogram: Histogram) -> list[tuple[str, int]]:
    """How many took at most so long, by bounds, as Prometheus writes them."""
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


def _buckets(field: str) -> Callable[[PoolStatistics], dict[str, float]]:
    return lambda seen: {bound: float(count) for bound, count in _cumulative(getattr(seen, field))}


def _sum(field: str) -> Callable[[PoolStatistics], dict[str, float]]:
    return lambda seen: {"": getattr(seen, field).seconds}
