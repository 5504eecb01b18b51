"""An idle pool costs nothing: none of its threads and none of its workers wakes up."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers import DEADLINE, METHODS, eventually, workers_of

IDLE = """
import multiprocessing, sys, time
from prefork import Pool

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    pool = Pool(3, timeout=1000, soft_timeout=900, context=context)
    pool.map(abs, range(100))
    list(pool.imap(abs, range(100)))
    pool.apply_async(abs, (1,), callback=abs).get()
    while {worker.state for worker in pool.statistics().workers} != {"idle"}:
        time.sleep(0.01)  # some may have done nothing yet but start
    print("idle", flush=True)
    sys.stdin.read()
"""

WINDOW = 1.0
"""Seconds in which nothing may happen, once there were so many in which nothing did: before that, a
busy machine may let something wait that is still to be done."""


@pytest.fixture(params=METHODS)
def idle(request, script) -> list[int]:
    """The processes of an idle pool: its owner's and its workers'."""
    owner = script(IDLE, request.param)
    assert owner.process.stdout.readline() == "idle\n"
    pid = owner.process.pid
    eventually(lambda: len(workers_of(pid)) == 3, "all workers start")
    return [pid, *workers_of(pid)]


def switches(pids: list[int]) -> dict[str, int]:
    """How often each thread of these processes has gone to sleep until now."""
    counts = {}
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            fields = dict(
                line.split(":", 1) for line in status.read_text(errors="replace").splitlines()
            )
            counts[status.parent.name] = int(fields["voluntary_ctxt_switches"])
    return counts


def is_quiet(look, seconds: float) -> bool:
    """Whether what `look` returns is the same after so many seconds."""
    before = look()
    time.sleep(seconds)
    return look() == before


@pytest.mark.promise(number=5)
def test_no_thread_wakes_up(idle):
    eventually(lambda: is_quiet(lambda: switches(idle), WINDOW), "nobody wakes up")


@pytest.mark.promise(number=5)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_system_call(idle, tmp_path):
    log = tmp_path / "log"
    pids = [word for pid in idle for word in ("-p", str(pid))]
    strace = subprocess.Popen(["strace", "-f", "-o", log, *pids], stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    try:
        attached = len(idle)
        for line in strace.stderr:
            if "not permitted" in line:
                pytest.skip("strace may not attach to processes here")
            attached -= " attached" in line
            if not attached:
                break
        # It interrupts the system calls that are being waited in, which are called again then.
        eventually(lambda: is_quiet(log.read_text, WINDOW), "nothing happens any more")
        assert "epoll" in log.read_text()  # the supervisor's and the result handler's
    finally:
        strace.send_signal(signal.SIGINT)  # has it detach
        strace.communicate(timeout=DEADLINE)
