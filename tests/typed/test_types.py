"""What type checkers know of the calls of a pool, as whoever has installed it sees it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

import calls
import prefork

pytestmark = pytest.mark.timeout(300)  # a type checker reads much, and this machine may be busy

CALLS = Path(calls.__file__)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a user's, with `env`, an environment that has the package and nothing else,
    and the calls. No setting of this project's applies there."""
    home = tmp_path_factory.mktemp("user")
    venv.create(home / "env", symlinks=True)
    python = home / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    shutil.copytree(
        Path(prefork.__file__).parent,
        Path(packages.stdout.strip()) / "prefork",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(CALLS, home)
    return home


def run_checker(user: Path, *command: str) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH",)}
    env["PYRIGHT_PYTHON_IGNORE_WARNINGS"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", *command, CALLS.name],
        cwd=user,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def errors_of_mypy(user: Path) -> dict[int, str]:
    output = run_checker(
        user,
        "mypy",
        "--strict",
        "--python-executable=env/bin/python",
        "--cache-dir=cache",
        "--no-error-summary",
        "--hide-error-context",
    )
    found = re.findall(r"^([\w./]+):(\d+): error: (.*)", output, re.M)
    assert {name for name, _, _ in found} <= {CALLS.name}, output
    return {int(line): text for _, line, text in found}


def errors_of_pyright(user: Path) -> dict[int, str]:
    output = run_checker(user, "pyright", "--outputjson", "--pythonpath=env/bin/python")
    return {
        each["range"]["start"]["line"] + 1: each["message"]
        for each in json.loads(output)["generalDiagnostics"]
        if each["severity"] == "error"
    }


@pytest.mark.parametrize("errors_of", [errors_of_mypy, errors_of_pyright])
def test_exactly_what_is_wrong_is_refused(
    user: Path, errors_of: Callable[[Path], dict[int, str]]
) -> None:
    lines = CALLS.read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    found = errors_of(user)
    accepted = [lines[number - 1] for number in sorted(wrong - found.keys())]
    refused = [f"{lines[number - 1]}\n  {found[number]}" for number in sorted(found.keys() - wrong)]
    assert not accepted, "wrong calls are accepted:\n" + "\n".join(accepted)
    assert not refused, "right calls are refused:\n" + "\n".join(refused)


@pytest.mark.parametrize("run", calls.ACCEPTED, ids=lambda run: run.__name__)
def test_what_is_accepted_is_right(run: Callable[[prefork.Pool], None]) -> None:
    with prefork.Pool(1, context="fork") as pool:
        run(pool)
