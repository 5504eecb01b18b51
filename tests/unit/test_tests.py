"""What the tests keep to themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import promises

TESTS = Path(promises.__file__).parent


# ---- promises: see README.md in the folder of the tests


def test_each_promise_has_tests_and_each_mark_a_promise() -> None:
    guarded = {guard.promise for guard in promises.guards()}
    assert guarded == set(promises.promises())
    assert list(promises.promises()) == list(range(1, len(guarded) + 1))


def test_the_table_is_up_to_date() -> None:
    assert promises.PAGE.read_text() == promises.page(), "python tests/promises.py writes it"


def test_promises_are_chosen_by_their_numbers() -> None:
    assert promises.spelled_out("promise(5)") == "promise(number=5)"
    text = "not serial and (promise( 1 ) or promise(12))"
    assert promises.spelled_out(text) == "not serial and (promise(number=1) or promise(number=12))"
    assert promises.spelled_out("promise") == "promise"
    assert promises.spelled_out("") == ""


@pytest.mark.timeout(300)  # a busy machine needs long to start Python, and more to start pytest
def test_pytest_takes_the_numbers_as_they_are() -> None:
    files = [TESTS / "integration" / f"test_{name}.py" for name in ("idle", "stopped")]
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, "-m", "promise(5) and not serial", *map(str, files)],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    chosen = {line.partition("[")[0] for line in found.stdout.splitlines() if "::" in line}
    assert chosen == {
        f"tests/{guard.file}::{guard.test}" for guard in promises.guards() if guard.promise == 5
    }
