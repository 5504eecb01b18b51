"""What a task costs the main process of a celery worker in its pool alone: CPU time per task.

    .venv/bin/python benchmarks/celery_pool_share.py [--tasks 5000] [--rounds 5] [-c 2 -c 8]

Both pools run under kombu's event loop as they do in a worker, guarded by celery's semaphore, each
in a process of its own, taking turns. There is no broker: the tasks come from a list, and do
nothing.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import time


def outcome() -> tuple[int, None, float]:
    """What celery's tracer returns for a task that succeeded."""
    return 0, None, 0.0


MESSAGE = (
    "proj.tasks.noop",
    "d3adb33f-0000-0000-0000-000000000000",
    {
        "lang": "py",
        "task": "proj.tasks.noop",
        "id": "d3adb33f-0000-0000-0000-000000000000",
        **dict.fromkeys(("shadow", "eta", "expires", "group", "group_index", "root_id")),
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "gen4711@host",
        "properties": {"correlation_id": "d3adb33f", "reply_to": "8da5f2c4", "delivery_mode": 2},
        "delivery_info": {"exchange": "", "routing_key": "celery", "priority": 0},
        "hostname": "celery@host",
        "args": [],
        "kwargs": {},
    },
    b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
    "application/json",
    "utf-8",
)


def traced(*message: object) -> tuple[int, None, float]:
    return outcome()


class Request:
    """As much of celery's as the pool sees."""

    left = 0

    def __init__(self, pool: object, semaphore: object) -> None:
        self.pool, self.semaphore = pool, semaphore

    def go(self) -> None:
        self.pool.apply_async(
            traced,
            args=MESSAGE,
            accept_callback=self.accepted,
            timeout_callback=self.timed_out,
            callback=self.done,
            error_callback=self.failed,
            soft_timeout=None,
            timeout=None,
            correlation_id="d3adb33f",
        )

    def accepted(self, pid: int, since: float) -> None:
        pass

    def timed_out(self, soft: bool, timeout: float) -> None:
        pass

    def done(self, value: object) -> None:
        Request.left -= 1

    def failed(self, info: object) -> None:
        raise SystemExit(str(info))


def run(name: str, concurrency: int, tasks: int) -> float:
    """Microseconds of CPU per task, in this process."""
    from celery import Celery
    from kombu.asynchronous import Hub, set_event_loop
    from kombu.asynchronous.semaphore import LaxBoundedSemaphore
    from kombu.asynchronous.timer import Timer

    app = Celery("share")
    hub = set_event_loop(Hub(Timer(max_interval=10.0)))
    semaphore = LaxBoundedSemaphore(concurrency)
    module, _, attribute = name.partition(":")
    pool = getattr(importlib.import_module(module), attribute)(
        concurrency,
        initargs=(app, "host"),
        putlocks=False,
        threads=False,
        lost_worker_timeout=10.0,
        max_restarts=100,
        forking_enable=True,
        semaphore=semaphore,
        sched_strategy="fair",
        app=app,
    )
    pool.start()
    pool.register_with_event_loop(hub)
    loop = hub.create_loop()

    def batch(count: int) -> float:
        Request.left = count
        before = time.process_time()
        for _ in range(count):
            semaphore.acquire(Request(pool, semaphore).go)
        while Request.left:
            next(loop)
        return (time.process_time() - before) / count * 1e6

    batch(500)
    cost = batch(tasks)
    pool.terminate()
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-c", type=int, action="append", dest="concurrencies")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    concurrencies = args.concurrencies or [2, 8]
    if args.one:
        print(run(args.one, concurrencies[0], args.tasks))
        return
    for concurrency in concurrencies:
        costs: dict[str, list[float]] = {
            "celery.concurrency.prefork:TaskPool": [],
            "prefork.celery:TaskPool": [],
        }
        for _ in range(args.rounds):
            for name, found in costs.items():
                command = [sys.executable, __file__, "--one", name, "-c", str(concurrency)]
                command += ["--tasks", str(args.tasks)]
                found.append(float(subprocess.check_output(command, text=True).split()[-1]))
        stock, own = (statistics.median(found) for found in costs.values())
        print(
            f"-c {concurrency}: CPU per task in the main process: stock {stock:.0f} us, prefork "
            f"{own:.0f} us ({own / stock:.2f})"
        )


if __name__ == "__main__":
    main()
