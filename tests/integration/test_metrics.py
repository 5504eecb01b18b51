"""The figures of a pool, as Prometheus and OpenTelemetry get them."""

from __future__ import annotations

import gc
import json
import os
import re
import urllib.request
import weakref
from pathlib import Path

import pytest

from gate import enter
from helpers import DEADLINE
from prefork import Pool, WorkerLostError, metrics

DASHBOARD = Path(__file__).parents[2] / "docs" / "_static" / "grafana-prefork.json"


def fail():
    raise ValueError("oops")


@pytest.fixture
def at_work(make_pool, gate):
    """A pool of two: three jobs have come through, two have failed, one runs, none waits."""
    pool = make_pool(2)
    for _ in range(3):
        pool.apply(abs, (1,))
    pool.apply_async(fail).wait(DEADLINE)
    with pytest.raises(WorkerLostError):
        pool.apply(os._exit, (1,))
    pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    yield pool
    visitor.go()


@pytest.fixture
def scrape():
    """A real HTTP endpoint, and what it tells."""
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    server, thread = client.start_http_server(0, "127.0.0.1", registry)

    def get():
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            text = response.read().decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    yield registry, get
    server.shutdown()
    server.server_close()
    thread.join()


def test_prometheus_scrapes_them(at_work, scrape):
    registry, get = scrape
    metrics.prometheus(at_work, "images", registry)
    found = get()
    assert found['prefork_jobs_total{outcome="success",pool="images"}'] == 3
    assert found['prefork_jobs_total{outcome="raised",pool="images"}'] == 1
    assert found['prefork_jobs_total{outcome="worker_lost",pool="images"}'] == 1
    assert found['prefork_jobs_running{pool="images"}'] == 1
    assert found['prefork_jobs_queued{pool="images"}'] == 0
    assert found['prefork_workers_wanted{pool="images"}'] == 2
    assert found['prefork_workers_ended_total{pool="images"}'] == 1
    assert found['prefork_workers{pool="images",state="busy"}'] == 1
    assert found['prefork_workers_memory_bytes{pool="images"}'] > 1 << 20
    for name in ("queue", "run"):
        assert found[f'prefork_job_{name}_seconds_count{{pool="images"}}'] == 5
        assert found[f'prefork_job_{name}_seconds_bucket{{le="+Inf",pool="images"}}'] == 5
        assert found[f'prefork_job_{name}_seconds_bucket{{le="3000.0",pool="images"}}'] == 5
        assert found[f'prefork_job_{name}_seconds_sum{{pool="images"}}'] > 0


def test_several_pools_share_a_registry(make_pool, scrape):
    registry, get = scrape
    pools = {name: make_pool(count) for count, name in enumerate(("one", "two"), 1)}
    collectors = [metrics.prometheus(pool, name, registry) for name, pool in pools.items()]
    found = get()
    assert found['prefork_workers_wanted{pool="one"}'] == 1
    assert found['prefork_workers_wanted{pool="two"}'] == 2
    registry.unregister(collectors[0])
    assert 'prefork_workers_wanted{pool="one"}' not in get()


def test_metrics_do_not_keep_a_pool(scrape):
    registry, get = scrape
    pool = Pool(1)
    metrics.prometheus(pool, registry=registry)
    assert get()['prefork_workers_wanted{pool="main"}'] == 1
    pool.terminate()
    assert get()['prefork_workers{pool="main",state="idle"}'] == 0
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert not get()


def test_opentelemetry_reads_them(at_work):
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    reader = export.InMemoryMetricReader()
    provider = sdk.MeterProvider([reader])
    metrics.opentelemetry(at_work, "images", provider.get_meter("test"))
    try:
        (resource,) = reader.get_metrics_data().resource_metrics
    finally:
        provider.shutdown()
    found = {
        (metric.name, *sorted(point.attributes.items())): point.value
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    pool = ("pool", "images")
    assert found["prefork.jobs", ("outcome", "success"), pool] == 3
    assert found["prefork.jobs", ("outcome", "worker_lost"), pool] == 1
    assert found["prefork.jobs_running", pool] == 1
    assert found["prefork.job_run_seconds.bucket", ("le", "+Inf"), pool] == 5
    assert found["prefork.job_run_seconds.sum", pool] > 0


def test_the_dashboard_shows_what_there_is(at_work, scrape):
    registry, get = scrape
    metrics.prometheus(at_work, "images", registry)
    there = {name.partition("{")[0] for name in get()}
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [each["query"] for each in dashboard["templating"]["list"] if "query" in each]
    shown = {name for query in queries for name in re.findall(r"prefork_\w+", str(query))}
    assert len(shown) > 5
    assert shown <= there
