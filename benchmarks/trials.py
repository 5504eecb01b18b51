"""The parts of `chaos.py storm` and `chaos.py recycling` that start what is tried, and end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from leftovers import TOKEN, survivors

from prefork import Pool

PROGRAM = Path(__file__).with_name("storm.py")

KINDS = {
    "tasks": 6,
    "threads": 2,
    "logging": 2,
    "large": 2,
    "descriptors": 2,
    "callbacks": 2,
    "stopped": 2,
    "interrupts": 2,
}
"""The kinds of storms, and how the faults of all kinds are shared out."""

LINES = 200  # of the error output, that are shown: stacks, if it hangs
LAST = 30.0  # seconds that a trial has for its end, when its time is up


class Trial(NamedTuple):
    """How hard a pool is tried."""

    faults: int
    seed: int
    processes: int
    deadline: float  # seconds without an answer that count as a hang
    seconds: float  # after which it is over in any case


def storm(kind: str, name: str, method: str, trial: Trial) -> dict[str, Any]:
    """Try one pool in a process of its own, which is killed with all that it has left."""
    token = f"{os.getpid()}-{time.monotonic_ns()}"
    with tempfile.TemporaryDirectory(prefix="prefork-storm-") as folder:
        state, errors = Path(folder, "state"), Path(folder, "errors")
        process = subprocess.Popen(
            [sys.executable, PROGRAM, kind, name, method, *map(str, trial), state],
            stdin=subprocess.DEVNULL,
            stderr=errors.open("wb"),
            start_new_session=True,
            # A fork server finds what it is to import in advance by this alone.
            env={**os.environ, TOKEN: token, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(trial.seconds + trial.deadline * 2 + LAST)
        finally:
            left = _kill_all(process, token)
        summary = {"ended": False, "seconds": 0.0}
        with contextlib.suppress(FileNotFoundError):
            summary |= json.loads(state.read_text())
        if process.returncode or summary.get("silent"):
            summary["stderr"] = "\n".join(errors.read_text().splitlines()[-LINES:])
        return summary | {"left": left, "exitcode": process.returncode}


def _kill_all(process: subprocess.Popen[bytes], token: str) -> int:
    """Returns how many processes were left when the trial had ended in order."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    ended_itself = process.wait() == 0
    left = 0
    while found := _survivors(token, time.monotonic() + 1.0 * ended_itself):
        left += len(found)
        ended_itself = False
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return left


def _survivors(token: str, until: float) -> dict[int, str]:
    """Those that are still there then: a resource tracker takes a moment to end."""
    while (found := survivors(token)) and time.monotonic() < until:
        time.sleep(0.01)
    return found


def recycle(method: str, jobs: int, size: int, processes: int, deadline: float) -> float:
    """So many jobs with arguments of so many bytes, each in a worker of its own; the seconds."""
    began = time.monotonic()
    pool = Pool(processes, maxtasksperchild=1, context=method)
    results = pool.imap_unordered(len, _arguments(jobs, size))
    for _ in range(jobs):
        if results.next(deadline) != size:
            raise AssertionError("a wrong result")
    pool.close()
    if next(results, None) is not None or not pool.join(deadline):
        raise AssertionError("more results than jobs, or no end")
    return time.monotonic() - began


def _arguments(jobs: int, size: int) -> Iterator[bytes]:
    argument = bytes(size)
    return (argument for _ in range(jobs))
