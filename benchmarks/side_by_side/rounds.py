"""One run: every workload with every pool, in rounds, so that what else happens on the machine
meets all of them alike. Each sample is a process of its own, one at a time."""

from __future__ import annotations

import compileall
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.side_by_side import family, tasks
from benchmarks.side_by_side.peers import PEERS, versions
from benchmarks.side_by_side.sample import OK, Task, environment, take
from benchmarks.side_by_side.workloads import CORE, FULL, QUICK, WORKLOADS

import prefork

DEADLINE = {QUICK: 20.0, FULL: 120.0}  # seconds for one sample


class Plan(NamedTuple):
    mode: str
    rounds: int
    workloads: list[str]
    peers: list[str]


def contenders(name: str, plan: Plan, turn: int) -> list[str]:
    """The pools and floors that are measured with this workload in this round."""
    workload = WORKLOADS[name]
    if not workload.size(plan.mode) or (workload.steady and turn > 0):
        return []
    pools = [peer for peer in plan.peers if workload.suits(peer, PEERS[peer])]
    # There is no more time: in quick mode, and for what takes seconds to start, once or not at all.
    if plan.mode == QUICK:
        pools = [peer for peer in pools if peer in CORE or not (turn or PEERS[peer].heavy)]
    elif turn:
        pools = [peer for peer in pools if not PEERS[peer].heavy]
    return [*pools, *workload.floors]


def order(plan: Plan) -> Iterator[tuple[int, str, str]]:
    """Round, workload and contender of each sample. Who comes first changes with the round."""
    for turn in range(plan.rounds):
        for name in plan.workloads:
            names = contenders(name, plan, turn)
            for i in range(len(names)):
                yield turn, name, names[(i + turn) % len(names)]


def run(plan: Plan) -> dict[str, Any]:
    """Measure; returns what is to be written as JSON."""
    begin = time.time()
    family.adopt_orphans()
    skipped = {peer: why for peer in plan.peers if (why := PEERS[peer].unavailable())}
    plan = plan._replace(peers=[peer for peer in plan.peers if peer not in skipped])
    # As an installer does it, also for the other pools: else each sample would do it, if the
    # environment says that bytecode is not to be kept, and the pool's process would be the larger.
    compileall.compile_dir(Path(prefork.__file__).parent, quiet=1)
    loops = loops_for_a_millisecond()
    samples: list[dict[str, Any]] = []
    given_up: set[tuple[str, str]] = set()
    for turn, workload, contender in order(plan):
        if (workload, contender) in given_up:
            continue
        task = Task(workload, contender, plan.mode, loops)
        start = time.monotonic()
        found = take(task, DEADLINE[plan.mode])
        found["seconds"] = round(time.monotonic() - start, 2)  # with the start of its process
        if found["status"] != OK:
            given_up.add((workload, contender))
        samples.append({"round": turn, "workload": workload, "contender": contender, **found})
        _show(samples[-1])
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(begin)),
        "seconds": round(time.time() - begin),
        "mode": plan.mode,
        "rounds": plan.rounds,
        "machine": machine(),
        "versions": {"python": python(), **versions()},
        "builds": {name: build_of(name) for name in plan.peers if PEERS[name].home},
        "skipped": skipped,
        "samples": samples,
    }


def _show(sample: dict[str, Any]) -> None:
    metrics = sample.get("metrics", {})
    what = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
    print(
        f"{sample['round'] + 1}  {sample['workload']:20} {sample['contender']:20} "
        f"{what or sample['status']}",
        flush=True,
    )


def loops_for_a_millisecond() -> int:
    loops = 100_000
    fastest = min(_seconds(loops) for _ in range(10))
    return round(loops / fastest / 1000)


def _seconds(loops: int) -> float:
    begin = time.perf_counter()
    tasks.burn(loops)
    return time.perf_counter() - begin


def python() -> str:
    """Its version, and what it was made by; whether its threads run at the same time."""
    free = not getattr(sys, "_is_gil_enabled", lambda: True)()
    threads = ", free-threaded" if free else ""
    return f"{platform.python_version()} ({platform.python_compiler()}{threads})"


def build_of(contender: str) -> str:
    """In words, what of prefork this one imports."""
    program = "import prefork; print(prefork.build_info().how)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment(contender),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }
