"""The output file of `prefork map`: what is refused, what is gone on with, what is run again."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from running import finish, parse


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def inputs_in(out: Path) -> list[Any]:
    return [record["input"] for record in parse(out.read_text())]


def test_what_is_there_is_not_touched_unasked(prefork: Any, out: Path) -> None:
    assert prefork.run("number", "1", "-o", "out").code == 0
    before = out.read_text()
    done = prefork.run("number", "2", "-o", "out")
    assert done.code == 2
    assert "out exists: --resume goes on with what it holds, --overwrite replaces it" in done.stderr
    assert out.read_text() == before
    assert prefork.run("number", "2", "-o", "out", "--overwrite").code == 0
    assert inputs_in(out) == ["2"]


def test_an_empty_file_is_as_good_as_none(prefork: Any, out: Path) -> None:
    out.touch()
    assert prefork.run("number", "1", "-o", "out").code == 0
    assert inputs_in(out) == ["1"]


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("builtins:float", [], "the function was builtins:int, and is builtins:float"),
        ("builtins:int", ["--timeout", "90s"], "timeout was not given, and is 90.0"),
        ("builtins:int", ["--kwarg", "base=8"], "kwargs was not given, and is {'base': 8}"),
    ],
)
def test_only_the_same_is_gone_on_with(
    prefork: Any, out: Path, target: str, options: list[str], message: str
) -> None:
    prefork.run("builtins:int", "1", "-o", "out")
    again = [target, "1", "2", "-o", "out", *options]
    done = prefork.run(*again, "--resume")
    assert done.code == 2
    assert message in done.stderr
    assert inputs_in(out) == ["1"]
    done = prefork.run(*again, "--resume-anyway")
    assert inputs_in(out) == ["1", "2"]
    assert prefork.run(*again, "--resume").code == done.code  # now it is that one's


def test_a_source_that_has_changed(prefork: Any, out: Path, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("def f(x): return 1\n")
    prefork.run("task.py:f", "a", "-o", "out")
    (tmp_path / "task.py").write_text("def f(x): return 2\n")
    done = prefork.run("task.py:f", "a", "b", "-o", "out", "--resume")
    assert done.code == 2
    assert "the source of task.py:f has changed" in done.stderr


def test_nobody_knows_what_has_made_it(prefork: Any, out: Path, tmp_path: Path) -> None:
    prefork.run("same", "a", "-o", "out")
    (tmp_path / "out.origin").unlink()
    done = prefork.run("same", "a", "b", "-o", "out", "--resume")
    assert done.code == 2
    assert "nobody knows what has made out: --resume-anyway takes it as it is" in done.stderr
    (tmp_path / "out.origin").write_text("{}")
    done = prefork.run("same", "a", "b", "-o", "out", "--resume")
    assert "out.origin cannot be understood" in done.stderr


def test_only_one_run_writes_to_it(prefork: Any, out: Path, fifo: Path) -> None:
    first = prefork.start("behave", f"wait {fifo}", "-o", "out")
    with fifo.open("w"):  # it runs now
        second = prefork.run("same", "a", "-o", "out", "--resume")
        assert second.code == 2
        assert "another run is writing to out" in second.stderr
    assert finish(first).code == 0
    assert prefork.run("behave", "-o", "out", "--resume", "--lines", "/dev/null").code == 0


def test_its_lock_ends_with_a_run_that_is_killed(prefork: Any, out: Path, fifo: Path) -> None:
    first = prefork.start("behave", f"wait {fifo}", "-o", "out")
    with fifo.open("w"):
        first.send_signal(signal.SIGKILL)
        first.communicate()
        done = prefork.run("same", "a", "-o", "out", "--resume-anyway")
    assert done.code == 0
    assert inputs_in(out) == ["a"]


def test_what_has_failed_is_run_again(prefork: Any, out: Path, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import os\ndef f(x):\n    if x == 'b' and not os.path.exists('mended'): 1 / 0\n"
    )
    out.touch(mode=0o640)
    command = ["task.py:f", "a", "b", "c", "-o", "out"]
    assert prefork.run(*command).code == 1
    assert "skipped 3 inputs" in prefork.run(*command, "--resume").stderr
    (tmp_path / "mended").touch()
    done = prefork.run(*command, "--resume", "--retry-failed")
    assert done.code == 0
    records = parse(out.read_text())
    assert sorted(record["input"] for record in records) == ["a", "b", "c"]
    assert not any("error" in record for record in records)
    assert out.stat().st_mode & 0o777 == 0o640
    names = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert names == {"mended", "out", "out.origin", "task.py"}


def test_the_origin_is_plain(prefork: Any, tmp_path: Path) -> None:
    prefork.run("builtins:int", "1", "-o", "out", "--timeout", "2m")
    origin = json.loads((tmp_path / "out.origin").read_text())
    assert origin["function"] == "builtins:int"
    assert origin["limits"]["timeout"] == 120.0
    assert prefork.run("builtins:int", "1", "-o", "out", "--timeout", "120", "--resume").code == 0
