"""joblib's own tests of its backends pass on this one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

LEFT_OUT = {
    "test_error_capture": "wants a pool of which a task has failed to be replaced as a whole, and "
    "looks for it in loky's attribute; here the workers stay",
    "test_nested_loop[loky-prefork]": "a process of loky's does not know the backend",
    "test_nested_loop[multiprocessing-prefork]": "its processes are daemonic, and so cannot have "
    "any of their own; joblib's warning of it is worded for loky",
    "test_nested_loop[back_compat_backend-prefork]": "the same as with loky",
    "test_backend_nesting_level[parallel_config-prefork-loky]": "the same as with loky",
    "test_backend_nesting_level[parallel_backend-prefork-loky]": "the same as with loky",
    "test_parallel_with_interactively_defined_functions": "a program inside of the test, which "
    "does not import the backend; see `test_a_program_without_a_guard`",
}
"""Not run, and why. Those of `test_memmapping.py` are programs of the same kind, nearly all."""

LEAST = 130  # tests

OPTIONS = f"-q -c {os.devnull} -p no:cacheprovider -p no:randomly -p own_suite -W ignore".split()

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("joblib.test") is None, reason="joblib comes without its tests"
    ),
    pytest.mark.serial,
    pytest.mark.timeout(900),
]


def test_they_pass():
    left_out = [word for name in LEFT_OUT for word in ("--left-out", name)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *OPTIONS,
            "--pyargs",
            "joblib.test.test_parallel",
            *left_out,
        ],
        capture_output=True,
        text=True,
        timeout=880,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    passed = done.stdout.rpartition(" passed")[0].split()[-1]
    assert int(passed) >= LEAST, done.stdout
