"""What `steady.py` makes of tests that fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import steady

FAILING_AT_FIRST = """
from pathlib import Path

def count():
    path = Path(__file__).with_suffix(".runs")
    with path.open("a") as file:
        file.write(".")
    return len(path.read_text())

def test_it():
    assert count() {condition}

def test_another():
    pass
"""


def run(folder: Path, source: str) -> tuple[int, str]:
    (folder / "pytest.ini").touch()
    (folder / "test_this.py").write_text(source)
    done = subprocess.run(
        [sys.executable, str(Path(steady.__file__)), "-q"],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_what_fails_once_does_not_fail_the_run_and_is_named(tmp_path: Path) -> None:
    code, said = run(tmp_path, FAILING_AT_FIRST.format(condition="> 1"))
    assert code == 0
    assert said.splitlines()[-1].strip() == "test_this.py::test_it"
    assert "Unsteady" in said
    assert len((tmp_path / "test_this.runs").read_text()) == 1 + steady.TIMES


@pytest.mark.parametrize("condition", ["< 0", "not in (1, 3)"], ids=["always", "once more"])
def test_what_fails_again_fails_the_run(tmp_path: Path, condition: str) -> None:
    code, said = run(tmp_path, FAILING_AT_FIRST.format(condition=condition))
    assert code == steady.TESTS_FAILED
    assert "Unsteady" not in said


def test_many_that_fail_once_fail_the_run(tmp_path: Path) -> None:
    one = FAILING_AT_FIRST.format(condition="> 1")
    parameters = f"@pytest.mark.parametrize('n', range({steady.SOME + 1}))\ndef test_it(n):"
    source = "import pytest\n" + one.replace("def test_it():", parameters).replace("> 1", "> 9")
    assert run(tmp_path, source)[0] == steady.TESTS_FAILED
    assert len((tmp_path / "test_this.runs").read_text()) == steady.SOME + 1


@pytest.mark.parametrize("source", ["def test_it(): pass", "# none"])
def test_what_does_not_fail_is_run_once(tmp_path: Path, source: str) -> None:
    assert run(tmp_path, source)[0] == 0
