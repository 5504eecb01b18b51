"""One sample: what runs in a process of its own, and how it is started and ended.

As a program it takes a workload, a pool or floor, a mode and the loops for 1 ms of `burn`, and
prints the metrics as its last line, in JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.side_by_side.measures import Bench
from benchmarks.side_by_side.peers import PEERS, REFERENCE
from benchmarks.side_by_side.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]

OK, HANG, CRASH = "ok", "hang", "crash"


class Task(NamedTuple):
    """What to measure."""

    workload: str
    contender: str  # a pool or a floor
    mode: str
    loops: int


def environment(contender: str) -> dict[str, str]:
    """What makes its process import this pool from where it is to come from."""
    peer = PEERS.get(contender)
    return {"PYTHONPATH": str(ROOT / peer.home)} if peer is not None and peer.home else {}


def measure(task: Task) -> dict[str, float]:
    workload = WORKLOADS[task.workload]
    peer = PEERS.get(task.contender, PEERS[REFERENCE])
    bench = Bench(peer, workload.size(task.mode), task.loops)
    if floor := workload.floors.get(task.contender):
        return floor(bench)
    return workload.measure(bench)


def take(task: Task, deadline: float) -> dict[str, Any]:
    """Have it measured in a new process, for at most so many seconds; nothing of it is left."""
    # Not pipes: stuck workers, which have inherited them, would keep those open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(task)],
            cwd=ROOT,
            env=os.environ | environment(task.contender),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=error,
            start_new_session=True,
        )
        try:
            process.wait(deadline)
        except subprocess.TimeoutExpired:
            return {"status": HANG, "error": f"no end within {deadline:g} s"}
        finally:
            _end_session(process)
        out.seek(0)
        error.seek(0)
        if process.returncode != 0:
            return {"status": CRASH, "error": f"exit code {process.returncode}\n{error.read()}"}
        return {"status": OK, "metrics": json.loads(out.read().splitlines()[-1])}


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to all processes of the sample's session, which is its own."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(name)) == process.pid:
                    os.kill(int(name), signal.SIGKILL)
    process.wait()


def main() -> None:
    task = Task(*json.loads(sys.argv[1]))
    print(json.dumps(measure(task)), flush=True)
    os._exit(0)  # The pool, perhaps with a million jobs, is not ended: `take` ends all processes.


if __name__ == "__main__":
    main()
