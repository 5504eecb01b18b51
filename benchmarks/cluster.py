"""Calls on two nodes of one process, through a real broker: `ClusterPool` beside plain celery, dask
and a pool of this machine.

    .venv/bin/python benchmarks/cluster.py [--broker redis|rabbitmq] [--plain 3000] [--no-dask]

Everything is on this machine: the client, the broker, both nodes. Plain celery runs with its stock
pool, two workers of one process, and results in Redis; it gets fewer items, as it takes longer.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests"), str(HERE.parent / "tests" / "celery_worker")]

import cluster_functions as functions  # noqa: E402
from servers import RabbitMQ, Redis  # noqa: E402

import prefork  # noqa: E402

NOTHINGS = 100_000
MANY = 1_000_000
NAPS = 8_000
NODE_ITEMS = 10_000
LEASE = 4.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    parser.add_argument("--plain", type=int, default=3000, help="items for plain celery")
    parser.add_argument("--no-dask", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        backend = stack.enter_context(contextlib.closing(Redis(folder)))
        server: Any = backend
        if options.broker == "rabbitmq":
            server = stack.enter_context(contextlib.closing(RabbitMQ(folder)))
        os.environ["BENCH_BROKER"] = server.url
        os.environ["BENCH_BACKEND"] = f"redis://127.0.0.1:{backend.port}/1"
        plain = measure_plain(options.plain, folder)
        measure_cluster(folder, plain)
    if not options.no_dask:
        measure_dask()


@contextlib.contextmanager
def workers(folder: Path, *options: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    path = os.pathsep.join([str(HERE), str(HERE.parent / "src")])
    found = []
    for number in (1, 2):
        with (folder / f"worker{number}.log").open("wb") as log:
            found.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-m", "celery", "-A", "cluster_project", "worker"),
                        *("-c", "1", "-n", f"n{number}@bench", "--without-mingle"),
                        *("--without-gossip", "-l", "WARNING", *options),
                    ],
                    env={**os.environ, "PYTHONPATH": path},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    try:
        yield found
    finally:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def took(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def show(what: str, value: str) -> None:
    print(f"{what:<64} {value:>16}", flush=True)


def measure_plain(number: int, folder: Path) -> float:
    """The best of plain celery's rates."""
    from celery import group
    from cluster_project import nothing

    with workers(folder, "-Q", "celery"):
        nothing.delay(1).get(timeout=60)

        def delay() -> None:
            for result in [nothing.delay(x) for x in range(number)]:
                result.get(timeout=600)

        rates = {"delay": number / took(delay)}
        members = group(nothing.s(x) for x in range(number))
        rates["group"] = number / took(lambda: members.apply_async().get(timeout=600))
    for name, rate in rates.items():
        show(f"plain celery, {name}, {number:,} items that do nothing", f"{rate:,.0f}/s")
    return max(rates.values())


def measure_cluster(folder: Path, plain: float) -> None:
    from cluster_project import app

    from prefork.celery import ClusterPool

    with workers(folder, "-P", "solo", "-Q", "cluster") as nodes:
        given = {"queue": "cluster", "lease": LEASE, "start_timeout": 60.0}
        with ClusterPool(app, **given) as pool:
            both_of(pool)
            for _ in range(3):
                rate = NOTHINGS / took(lambda: pool.map(functions.nothing, range(NOTHINGS)))
                show(f"map of {NOTHINGS:,} that do nothing", f"{rate:,.0f}/s")
                show("  that many times as much as plain celery", f"{rate / plain:,.0f}")
        measure_naps(lambda: ClusterPool(app, **given))
        with ClusterPool(app, **given) as pool:
            both_of(pool)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            seconds = took(lambda: consume(pool.imap(functions.nothing, iter(range(MANY)))))
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            show(f"imap of {MANY:,} from an iterator", f"{MANY / seconds:,.0f}/s")
            show(
                "  the client's largest memory before, after (MiB)",
                f"{before >> 10}, {after >> 10}",
            )
        with ClusterPool(app, **given) as pool:
            both_of(pool)
            measure_kill(pool, nodes[0], folder / "noted")


def both_of(pool: Any) -> None:
    deadline = time.monotonic() + 60
    while len(pool.statistics().nodes) < 2:
        if time.monotonic() > deadline:
            raise SystemExit("the nodes do not answer")
        time.sleep(0.05)


def consume(results: Any) -> None:
    collections.deque(results, 0)


def measure_naps(make: Callable[[], Any]) -> None:
    naps = [0.001] * NAPS
    with prefork.Pool(2) as local:
        local.map(functions.nap, naps[:200])
        on_one = took(lambda: local.map(functions.nap, naps))
    for what, warm in (("from cold, ", 0), ("warm, ", 2000)):
        with make() as pool:
            both_of(pool)
            pool.map(functions.nap, naps[:warm])
            share = on_one / took(lambda: pool.map(functions.nap, naps))
        show(f"1 ms items, {what}efficiency against the local pool", f"{share:.1%}")


def measure_kill(pool: Any, node: subprocess.Popen[bytes], log: Path) -> None:
    args = [(str(log), x) for x in range(NODE_ITEMS)]
    failed: list[tuple[float, BaseException]] = []
    handles = [
        pool.apply_async(
            functions.noted,
            each,
            error_callback=lambda error: failed.append((time.monotonic(), error)),
        )
        for each in args
    ]
    while not log.exists() or log.stat().st_size < 5_000:
        time.sleep(0.05)
    os.killpg(node.pid, signal.SIGKILL)
    killed = time.monotonic()
    for handle in handles:
        handle.wait()
    begun = collections.Counter(map(int, log.read_text().split()))
    fine = [x for x, handle in enumerate(handles) if handle.successful()]
    show(f"a node is killed in {NODE_ITEMS:,} items: failed", str(len(failed)))
    show("  neither failed nor run", str(sum(x not in begun for x in fine)))
    show("  run twice", str(sum(n > 1 for n in begun.values())))
    show("  wrong", str(sum(handles[x].get() != x for x in fine)))
    show(
        "  errors of another kind", str(sum(type(e).__name__ != "NodeLostError" for _, e in failed))
    )
    if failed:
        show(
            f"  the last error after (s; the lease is {LEASE:g} s)", f"{failed[-1][0] - killed:.1f}"
        )


def measure_dask() -> None:
    from distributed import Client, LocalCluster

    number = 5_000
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(abs, range(10), pure=False))
        rate = number / took(lambda: client.gather(client.map(abs, range(number), pure=False)))
        show(f"dask, client.map, {number:,} items that do nothing", f"{rate:,.0f}/s")
        executor = client.get_executor(pure=False)
        rate = number / took(lambda: consume(executor.map(abs, range(number))))
        show(f"dask, executor.map, {number:,}", f"{rate:,.0f}/s")


if __name__ == "__main__":
    main()
