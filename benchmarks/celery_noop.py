"""No-op tasks through Redis, in real celery workers: this pool against celery's stock pool.

    .venv/bin/python benchmarks/celery_noop.py [--tasks 5000] [--rounds 3] [-c 2 -c 8]

Each contestant is one `celery worker`, all at the same settings. They take turns: in each round
each gets the same messages, whose end is when none is left unacknowledged. Measured are tasks per
second, and the CPU time of the worker's main process per task. `empty` is a pool that runs nothing
and says at once that all is done: what is left is celery's own share of the main process, and the
rest is the pool's. So no pool can be better than that, compared to the stock pool (its tasks per
second are more than a pool can reach: nothing else uses the CPUs).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "celery_worker"))

import redis  # noqa: E402
from servers import Redis  # noqa: E402

CONTESTANTS = {
    "stock": "celery.concurrency.prefork:TaskPool",
    "prefork": "prefork.celery:TaskPool",
    "empty": "celery_noop_project:EmptyPool",
}
TICK = os.sysconf("SC_CLK_TCK")


class Worker:
    def __init__(self, name: str, pool: str, concurrency: int, broker: str, folder: Path) -> None:
        self.name = name
        self.log = (folder / f"{name}-{concurrency}.log").open("wb")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "celery_noop_project", "worker"),
                *("-P", "custom", "-c", str(concurrency), "-Q", name, "-n", f"{name}@bench"),
                *("--without-mingle", "--without-gossip", "--without-heartbeat", "-l", "WARNING"),
            ],
            env={
                **os.environ,
                "CELERY_CUSTOM_WORKER_POOL": pool,
                "BENCH_BROKER": broker,
                "PYTHONPATH": str(HERE),
            },
            stdout=self.log,
            stderr=self.log,
        )

    def cpu(self) -> float:
        """Seconds of CPU time of the main process."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


def template(client: redis.Redis, broker: str) -> bytes:
    """One message, as celery writes it."""
    os.environ["BENCH_BROKER"] = broker
    sys.path.insert(0, str(HERE))
    from celery_noop_project import noop

    noop.apply_async(queue="template")
    return client.rpop("template")


def fill(client: redis.Redis, queue: str, message: bytes, count: int) -> None:
    found = json.loads(message)
    own, tag = found["headers"]["id"], found["properties"]["delivery_tag"]
    text = message.decode().replace('"template"', f'"{queue}"')
    copies = [
        text.replace(own, str(uuid.uuid4())).replace(tag, str(uuid.uuid4())) for _ in range(count)
    ]
    client.lpush(queue, *copies)


def wait_until_done(client: redis.Redis, worker: Worker) -> None:
    while client.llen(worker.name) or client.hlen("unacked"):
        if worker.process.poll() is not None:
            raise SystemExit(f"the worker {worker.name} has ended; see {worker.log.name}")
        time.sleep(0.005)


def measure(client: redis.Redis, worker: Worker, message: bytes, count: int) -> dict[str, float]:
    cpu, start = worker.cpu(), time.monotonic()
    fill(client, worker.name, message, count)
    wait_until_done(client, worker)
    seconds = time.monotonic() - start
    return {"rate": count / seconds, "cpu": (worker.cpu() - cpu) / count * 1e6}


def compete(concurrency: int, args: argparse.Namespace, server: Redis, folder: Path) -> None:
    client = redis.Redis(port=server.port)
    message = template(client, server.url)
    workers = [
        Worker(name, pool, concurrency, server.url, folder) for name, pool in CONTESTANTS.items()
    ]
    results: dict[str, list[dict[str, float]]] = {worker.name: [] for worker in workers}
    try:
        for worker in workers:  # warm up
            measure(client, worker, message, 500)
        for _ in range(args.rounds):
            for worker in workers:
                results[worker.name].append(measure(client, worker, message, args.tasks))
    finally:
        for worker in workers:
            worker.stop()
    report(concurrency, results)


def report(concurrency: int, results: dict[str, list[dict[str, float]]]) -> None:
    def middle(name: str, key: str) -> float:
        return statistics.median(result[key] for result in results[name])

    print(f"-c {concurrency}")
    for name in results:
        print(
            f"  {name:8} {middle(name, 'rate'):8.0f} tasks/s  {middle(name, 'cpu'):6.0f} us of CPU "
            "per task in the main process"
        )
    own, stock, empty = (middle(name, "cpu") for name in ("prefork", "stock", "empty"))
    for name in ("prefork", "empty"):
        rate, cpu = (middle(name, key) / middle("stock", key) for key in ("rate", "cpu"))
        print(f"  {name}/stock: tasks per second {rate:.2f}, CPU per task {cpu:.2f}")
    print(
        f"  the pool's share of the main process: stock {(stock - empty) / stock:.0%}, "
        f"prefork {(own - empty) / own:.0%}; in us: {stock - empty:.0f} and {own - empty:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=5000, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-c", type=int, action="append", dest="concurrencies")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Redis(Path(folder))) as server:
        for concurrency in args.concurrencies or [2, 8]:
            compete(concurrency, args, server, Path(folder))


if __name__ == "__main__":
    main()
