"""`--report`: a page of what was done when, however the run ends."""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import finish


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def tile(page: str, name: str) -> str | None:
    found = re.search(rf"<dt>{name}</dt><dd>([^<]*)</dd>", page)
    return found and found[1]


def test_it_names_inputs_and_failures(prefork: Any, report: Path, tmp_path: Path) -> None:
    inputs = ["a", "b", "raise <b>it</b>", "crash", "loop"]
    done = prefork.run(
        "behave", *inputs, "--timeout", "1s", "--retries", 1, "-p", 2, "--report", report
    )
    assert done.code == 1
    page = report.read_text()
    assert tile(page, "inputs") == "7"  # with those that were run again
    assert tile(page, "failures") == "5"
    assert "5 failures, 2 of them of what was run again." in page
    assert "&lt;b&gt;it&lt;/b&gt;" in page
    assert "<b>it" not in page
    for kind in ("WorkerLostError", "TimeLimitExceeded"):  # perhaps at two places
        assert sum(map(int, re.findall(rf"(\d+) &times; {kind}", page))) == 2
    assert "loop: " in page
    assert "2 of 5 inputs came through, 3 failed" in page
    assert "Resident memory" in page


def test_of_commands(prefork: Any, report: Path) -> None:
    done = prefork.run("ls {}", "/", "/nowhere", "--report", report, verb="run")
    assert done.code == 1
    page = report.read_text()
    assert "<h1>ls {}</h1>" in page
    assert "1 &times; CommandFailed" in page
    assert "/nowhere" in page


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_of_a_run_that_is_stopped(
    prefork: Any, report: Path, fifo: Path, read_pids: Callable[[int], list[int]], signum: int
) -> None:
    process = prefork.start("behave", "a", f"hang {fifo}", "-p", 1, "--report", report)
    read_pids(1)
    process.send_signal(signum)
    assert finish(process).code == -signum
    page = report.read_text()
    assert tile(page, "inputs") == "1"
    assert f"stopped by {signal.Signals(signum).name}: 1 of 2 inputs came through" in page


def test_of_a_run_whose_output_nobody_reads(prefork: Any, report: Path) -> None:
    process = prefork.start("same", "a", "b", "--report", report)
    process.stdout.close()
    process.stdout = None
    assert finish(process).code == -signal.SIGPIPE
    assert tile(report.read_text(), "inputs")


def test_of_a_run_with_too_many_failures(prefork: Any, report: Path) -> None:
    assert prefork.run("behave", "raise it", "a", "--fail-fast", "--report", report).code == 1
    assert "stopped after 1 failure" in report.read_text()


def test_a_long_input_is_told_in_short(prefork: Any, report: Path) -> None:
    assert prefork.run("same", "x" * 100_000, "--report", report).code == 0
    assert len(report.read_text()) < 50_000
    assert "xxx\N{HORIZONTAL ELLIPSIS}xxx" in report.read_text()


def test_of_no_inputs(prefork: Any, report: Path) -> None:
    assert prefork.run("same", "--lines", "/dev/null", "--report", report).code == 0
    assert "Nothing was run." in report.read_text()


def test_another_run_replaces_it(prefork: Any, report: Path) -> None:
    assert prefork.run("same", "first", "--report", report).code == 0
    assert prefork.run("same", "second", "--report", report).code == 0
    assert "second" in report.read_text()
    assert "first" not in report.read_text().partition("<main")[2].replace("longest ones first", "")


# ---- where it cannot be written: found before the run


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere/report.html", "No such file or directory"),
        (".", "this is no file"),
        ("/dev/full", "this is no file"),
        ("data.csv", "it exists, and is no report"),
    ],
)
def test_it_cannot_be_written(prefork: Any, tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "data.csv").write_text("1,2\n")
    (tmp_path / "out").write_text("kept\n")
    more = ["-o", "out", "--overwrite"]
    (tmp_path / "task.py").write_text("def f(x): open('begun', 'w').close()\n")
    done = prefork.run("task.py:f", "a", *more, "--report", path)
    assert done.code == 2
    assert f"cannot write to {path}: {reason}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "begun").exists()
    assert (tmp_path / "data.csv").read_text() == "1,2\n"
    assert (tmp_path / "out").read_text() == "kept\n"


def test_it_is_not_the_output(prefork: Any, tmp_path: Path) -> None:
    done = prefork.run("same", "a", "-o", "out", "--report", tmp_path / "out")
    assert done.code == 2
    assert "--report and --output must be different files" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_gone_at_the_end(prefork: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "task.py").write_text(f"import os\ndef f(x):\n    os.rmdir({str(folder)!r})\n")
    done = prefork.run("task.py:f", "a", "-o", "out", "--report", folder / "report.html")
    assert done.code == 3
    assert f"error: cannot write to {folder}/report.html: No such file or directory" in done.stderr
    assert "1 of 1 input came through" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk(
    prefork: Any, tmp_path: Path, fifo: Path, read_pids: Callable[[int], list[int]]
) -> None:
    """A limit of the size of files stands for it: what is written is cut short, too."""
    (tmp_path / "task.py").write_text(
        "import os, pathlib\n"
        "def f(fifo):\n"
        "    pathlib.Path(fifo).write_text(f'{os.getpid()}\\n')\n"
        "    return pathlib.Path('go').read_text()\n"
    )
    os.mkfifo(tmp_path / "go")
    process = prefork.start("task.py:f", fifo, "-o", "out", "--report", "report.html")
    read_pids(1)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    (tmp_path / "go").write_text("")
    done = finish(process)
    assert done.code == 3
    assert "error: cannot write to report.html: File too large" in done.stderr
    assert "1 of 1 input came through" in done.stderr
    assert not [name for name in os.listdir(tmp_path) if name.startswith("report")]
