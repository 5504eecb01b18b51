"""A celery worker under load and under attack, for an hour: does it leak, lose or double anything?

    .venv/bin/python benchmarks/celery_soak.py [--minutes 60] [--kills-per-minute 30]

Tasks of several kinds go through Redis; worker processes are killed, recycled and restarted, and
connections are cut, again and again. Watched are the descriptors and the memory of the main
process, zombies, and each task's outcome. It ends with exit code 1 if anything grew or was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS / "celery_worker"), str(TESTS)]

from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError  # noqa: E402
from running import Worker  # noqa: E402
from servers import Redis  # noqa: E402

from helpers import eventually, processes  # noqa: E402

MEMORY_SLACK = 20 << 10  # KiB that the main process may grow after the first tenth of the time
FD_SLACK = 10
BATCH = 200


def descriptors(pid: int) -> int:
    """But for sockets of connections: celery leaves some behind whenever it has lost one, with its
    own pool, too."""
    local = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            kind, _, number = os.readlink(link).partition(":")
            count += kind != "socket" or number.strip("[]") in local
    return count


def figures(worker: Worker) -> tuple[int, int, int]:
    """Descriptors, resident KiB, zombies."""
    pid = worker.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    memory = int(status.partition("VmRSS:")[2].split()[0])
    zombies = sum(p.parent == pid and p.state == "Z" for p in processes())
    return descriptors(pid), memory, zombies


def send_batch(worker: Worker) -> dict[str, list]:
    kinds: dict[str, list] = {"add_late": [], "fail": [], "crash": [], "hang": [], "large": []}
    for number in range(BATCH):
        kinds["add_late"].append(worker.send("add_late", number, 1))
        if number % 20 == 0:
            kinds["fail"].append(worker.send("fail"))
            kinds["large"].append(worker.send("large", 300_000))
        if number % 100 == 0:
            kinds["crash"].append(worker.send("crash"))
            kinds["hang"].append(worker.send("hang", time_limit=0.2))
    return kinds


EXPECTED = {
    "add_late": (int,),
    "fail": (ValueError,),
    "crash": (WorkerLostError,),
    "hang": (TimeLimitExceeded, SoftTimeLimitExceeded),
    "large": (str,),
}


def attack(worker: Worker, until: float, per_minute: float) -> None:
    while time.monotonic() < until:
        time.sleep(random.expovariate(per_minute / 60))
        if workers := worker.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(random.choice(workers), signal.SIGKILL)


def check_batch(worker: Worker, kinds: dict[str, list], found: Counter[str]) -> None:
    """A task that was killed by the attack is lost, whatever it was; anything else is a fault."""
    for kind, results in kinds.items():
        for result in results:
            outcome = worker.outcome(result)
            if isinstance(outcome, EXPECTED[kind]):
                found["as expected"] += 1
            elif isinstance(outcome, WorkerLostError):
                found["killed"] += 1
            else:
                found[f"FAULT: {kind} came to {outcome!r:.80}"] += 1
            result.forget()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kills-per-minute", type=float, default=30)
    parser.add_argument("-c", type=int, default=2)
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    settle = time.monotonic() + 6 * args.minutes
    found: Counter[str] = Counter()
    first = last = (0, 0, 0)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Redis(Path(folder))) as redis:
        backend = f"redis://127.0.0.1:{redis.port}/1"
        settings = {"worker_pool_restarts": True}
        options = ("--max-tasks-per-child", "500", "-l", "ERROR")
        worker = Worker(
            redis.url,
            backend,
            Path(folder),
            *options,
            settings=settings,
            concurrency=args.c,
            ready=False,
        )
        with contextlib.closing(worker):
            worker.run("add", 1, 1)
            rounds = 0
            while time.monotonic() < end:
                kinds = send_batch(worker)
                attack(worker, min(end, time.monotonic() + 3), args.kills_per_minute)
                check_batch(worker, kinds, found)
                rounds += 1
                eventually(lambda: len(worker.workers) == args.c, "as many processes as at first")
                last = figures(worker)
                if rounds % 5 == 0:
                    worker.control("pool_restart")
                if rounds % 10 == 3:  # nothing is under way, which the broker might lose
                    redis.cut_connections()
                    worker.reconnect()
                if time.monotonic() < settle or rounds == 1:
                    first = last
                print(f"round {rounds}: fd {last[0]}, KiB {last[1]}, {dict(found)}", flush=True)
            code = worker.stop()
    faults = [name for name in found if name.startswith("FAULT")]
    if last[0] > first[0] + FD_SLACK or last[1] > first[1] + MEMORY_SLACK or last[2] > args.c:
        faults.append(f"grown from {first} to {last} (descriptors, KiB, zombies)")
    if code != 0:
        faults.append(f"exit code {code}")
    print("\n".join(faults) or f"no fault in {rounds} rounds: {dict(found)}; {first} → {last}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
