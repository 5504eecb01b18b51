"""CPython's own tests of `multiprocessing.Pool` pass, with our pool installed in its place."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import METHODS
from standard.runner import CLASSES

RUNNER = Path(__file__).with_name("runner.py")

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("test") is None
        or importlib.util.find_spec("test._test_multiprocessing") is None,
        reason="this interpreter comes without CPython's tests",
    ),
    pytest.mark.timeout(300),  # they sleep a lot
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("method", METHODS)
def test_their_tests_pass(method, name):
    done = subprocess.run(
        [sys.executable, str(RUNNER), method, name],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "environment_altered" not in done.stderr
