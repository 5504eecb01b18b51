"""One sample: what runs in a process of its own, and how it is started and ended.

As a program it takes a workload, a pool or floor, a mode and the loops for 1 ms of `burn`, and
prints the metrics as its last line, in JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.side_by_side import family
from benchmarks.side_by_side.measures import Bench
from benchmarks.side_by_side.peers import PEERS, REFERENCE
from benchmarks.side_by_side.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]

SHARED_MEMORY = "/dev/shm"

OK, HANG, CRASH = "ok", "hang", "crash"


class Task(NamedTuple):
    """What to measure."""

    workload: str
    contender: str  # a pool or a floor
    mode: str
    loops: int


def environment(contender: str) -> dict[str, str]:
    """What makes its process import this pool from where it is to come from; workers that inherit
    no more than that find the tasks."""
    peer = PEERS.get(contender)
    home = [str(ROOT / peer.home)] if peer is not None and peer.home else []
    return {"PYTHONPATH": os.pathsep.join([*home, str(ROOT)])}


@contextlib.contextmanager
def scratch() -> Iterator[dict[str, str]]:
    """Folders for what a sample may leave, in the variables that tell of them. joblib's is where it
    would be by default. Their names are short, since Ray has the paths of its sockets begin so."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryDirectory(prefix="bench-", dir=SHARED_MEMORY) as shared,
    ):
        yield {"TMPDIR": folder, "RAY_TMPDIR": folder, "JOBLIB_TEMP_FOLDER": shared}


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
    with (
        scratch() as folders,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as error,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(task)],
            cwd=ROOT,
            env=os.environ | environment(task.contender) | folders,
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
            process.kill()
            process.wait()
            family.end_all()
        out.seek(0)
        error.seek(0)
        if process.returncode != 0:
            return {"status": CRASH, "error": f"exit code {process.returncode}\n{error.read()}"}
        return {"status": OK, "metrics": json.loads(out.read().splitlines()[-1])}


def main() -> None:
    task = Task(*json.loads(sys.argv[1]))
    print(json.dumps(measure(task)), flush=True)
    os._exit(0)  # The pool, perhaps with a million jobs, is not ended: `take` ends all processes.


if __name__ == "__main__":
    main()
