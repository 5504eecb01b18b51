"""CPython's own tests of `concurrent.futures.ProcessPoolExecutor` pass with ours in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import METHODS
from standard.futures_runner import PARTS, are_here

RUNNER = Path(__file__).with_name("futures_runner.py")

pytestmark = [
    pytest.mark.skipif(
        not are_here(),
        reason="this interpreter comes without CPython's tests",
    ),
    pytest.mark.timeout(300),  # they sleep a lot
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("method", METHODS)
def test_their_tests_pass(method, part):
    done = subprocess.run(
        [sys.executable, str(RUNNER), method, part],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "environment_altered" not in done.stderr
