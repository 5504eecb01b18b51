"""Runs pytest; what fails is run again, alone, and called unsteady if it then passes each time.

    steady.py PYTEST-ARGUMENT ...

A test that fails beside others and passes alone is still a fault, of the test or of the package:
the last lines name it, so that it is mended. It fails the run only if more than `SOME` tests are
so, or if one fails again: a run of thousands tells what is broken, not which machine was busy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SOME = 3
"""So many tests of a run may be unsteady."""

TIMES = 3
"""So often each has to pass."""

TESTS_FAILED, NO_TESTS = 1, 5
"""pytest's exit codes."""


def run(arguments: list[str], cache: Path) -> int:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *arguments], check=False
    ).returncode


def failures(cache: Path) -> list[str]:
    """Which tests have failed in the run that has written this cache."""
    found = cache / "v" / "cache" / "lastfailed"
    return sorted(json.loads(found.read_text())) if found.exists() else []


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch, "run")
        code = run(arguments, cache)
        failed = failures(cache)
        if code == NO_TESTS:  # none of this kind
            return 0
        if code != TESTS_FAILED or not 0 < len(failed) <= SOME:
            return code
        for number in range(TIMES):
            if code := run(failed, Path(scratch, f"again-{number}")):
                return code
    print(f"\nUnsteady, failed once and then passed {TIMES} times alone:", *failed, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
