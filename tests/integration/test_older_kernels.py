"""Kernels that lack what Python was built for, and sandboxes that refuse it: stand-ins are used."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

import older_kernel
from helpers import METHODS

pytestmark = pytest.mark.skipif(
    platform.machine() not in older_kernel.NUMBERS, reason="the calls' numbers are not known here"
)

POOL = """
import os, signal, sys, time
from prefork import Pool, TimeLimitExceeded, WorkerLostError

def twice(x):
    return x + x

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    with Pool(2, context=sys.argv[1]) as pool:
        assert pool.map(twice, range(1000)) == [x + x for x in range(1000)]
        large = b"x" * 3_000_000
        assert pool.apply(twice, (large,)) == large + large
        for _ in range(5):
            try:
                pool.apply(die)
            except WorkerLostError as exc:
                assert exc.exitcode == -signal.SIGKILL, exc
        try:
            pool.apply(time.sleep, (600,), timeout=1)
        except TimeLimitExceeded as exc:
            print(type(exc).__name__)
"""


def run(without: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, older_kernel.__file__, without, sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("without", ["pidfd_open,pidfd_send_signal", "memfd_create"])
def test_a_pool(without, method, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(POOL)
    ended = run(without, str(path), method)
    assert ended.stdout == "TimeLimitExceeded\n", ended.stderr
    assert ended.returncode == 0


def test_commands(tmp_path):
    inputs = tmp_path / "inputs"
    inputs.write_text("3\n5\n")
    ended = run(
        "pidfd_open,pidfd_send_signal",
        *("-m", "prefork", "run", "--lines", str(inputs), "--shell", "exit {}"),
    )
    assert '"exit_code": 3' in ended.stdout, ended.stderr
    assert '"exit_code": 5' in ended.stdout
    assert "Traceback" not in ended.stderr
