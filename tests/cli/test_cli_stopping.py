"""Ends before the end: Ctrl-C, SIGTERM, a reader that goes away; and going on from there."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import finish, parse

from helpers import eventually, has_ended

ReadPids = Callable[[int], list[int]]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def short() -> Iterator[str]:
    """A folder for temporary files with a path that is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="pf") as path:
        yield path


def assert_gone(pids: list[int]) -> None:
    for pid in pids:
        assert has_ended(pid)


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_signal_stops_it_and_keeps_what_is_done(
    prefork: Any, fifo: Path, read_pids: ReadPids, short: str, signum: int, method: str
) -> None:
    prefork.environ["TMPDIR"] = short
    hang = f"hang {fifo}"
    process = prefork.start(
        "behave", "a", "b", hang, hang, "--processes", 2, "--start-method", method
    )
    first = {json.loads(process.stdout.readline())["input"] for _ in range(2)}
    workers = read_pids(2)
    process.send_signal(signum)
    done = finish(process)
    assert done.code == -signum
    assert first == {"a", "b"}
    assert done.records == []
    assert f"stopped by {signal.Signals(signum).name}: 2 of 4 inputs came through" in done.stderr
    assert "Traceback" not in done.stderr
    assert_gone(workers)
    assert os.listdir(short) == []


def test_a_signal_in_the_middle_of_a_chunk(
    prefork: Any, tmp_path: Path, fifo: Path, read_pids: ReadPids
) -> None:
    inputs = ["a", "raise it", f"hang {fifo}", "b"]
    process = prefork.start("behave", *inputs, "--chunksize", 4, "-o", "out")
    read_pids(1)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == -signal.SIGINT
    records = parse((tmp_path / "out").read_text())
    assert [record["input"] for record in records] == ["a", "raise it"]
    assert "the same command with --resume does the rest" in done.stderr


@pytest.mark.parametrize(("again", "end"), [(60.0, 0), (-1.0, -signal.SIGTERM)])
def test_a_signal_that_comes_twice_at_once_is_one(again: float, end: int) -> None:
    """As from timeout(1), which sends it to the process and to its group."""
    code = (
        "import signal\n"
        "from prefork.cli import interrupts\n"
        f"interrupts.AGAIN = {again}\n"
        "with interrupts.Signals(lambda signum: print(signum, flush=True)):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (end, f"{signal.SIGTERM:d}\n")


def test_who_has_overwritten_is_told_what_goes_on(prefork: Any) -> None:
    done = prefork.run("number", "x", "1", "--fail-fast", "-p", 1, "-o", "out", "--overwrite")
    assert done.code == 1
    assert "the same command with --resume in place of --overwrite does the rest" in done.stderr


def test_what_waits_for_its_turn_is_kept(
    prefork: Any, tmp_path: Path, fifo: Path, read_pids: ReadPids
) -> None:
    log = tmp_path / "log"
    what = [f"hang {fifo}", *(f"{i}" for i in range(10)), f"hang {fifo}"]
    inputs = [f"{log}|{each}" for each in what]
    process = prefork.start("log_and_behave", *inputs, "--ordered", "-o", "out", "-p", 2)
    read_pids(2)
    process.send_signal(signal.SIGINT)
    finish(process)
    kept = [record["input"] for record in parse((tmp_path / "out").read_text())]
    assert kept == sorted(kept)
    # All that came through before both workers hung.
    assert {*kept, inputs[0]} == {f"{log}|{each}" for each in log.read_text().splitlines()}


def test_a_signal_while_it_waits_for_input(prefork: Any) -> None:
    process = prefork.start("same", "--lines", "-")
    process.stdin.write("a\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["input"] == "a"
    process.send_signal(signal.SIGINT)
    process.wait()  # its standard input is still open
    assert process.returncode == -signal.SIGINT


def test_a_signal_while_nobody_reads_the_output(
    prefork: Any, fifo: Path, read_pids: ReadPids
) -> None:
    big = ["fill 60000"] * 10  # more than a pipe holds
    process = prefork.start("behave", *big, f"hang {fifo}", "--processes", 1)
    read_pids(1)
    process.send_signal(signal.SIGINT)
    process.wait()
    assert process.returncode == -signal.SIGINT
    assert process.stdout.readline().endswith("}\n")


@pytest.fixture
def from_the_keyboard() -> Iterator[None]:
    """SIGINT is not ignored by what is started, even if these tests run as a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("from_the_keyboard")
def test_a_signal_before_the_start(prefork: Any, tmp_path: Path, fifo: Path) -> None:
    (tmp_path / "slow.py").write_text(f"with open({str(fifo)!r}) as f: f.read()\n")
    process = prefork.start("slow:f", "1")
    with open(fifo, "w"):  # the import waits for us in a moment
        wchan = Path(f"/proc/{process.pid}/wchan")
        eventually(lambda: "read" in wchan.read_text(), "it reads")  # earlier, Python may miss it
        process.send_signal(signal.SIGINT)
        done = finish(process)
    assert done.code == -signal.SIGINT
    assert "Traceback" not in done.stderr


def test_the_background_of_a_script_can_be_interrupted(
    prefork: Any, fifo: Path, read_pids: ReadPids
) -> None:
    command = prefork.command("behave", f"hang {fifo}")
    process = prefork.start_command(["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command])
    read_pids(1)
    process.send_signal(signal.SIGINT)
    assert finish(process).code == -signal.SIGINT


def test_workers_are_gone_after_a_kill(prefork: Any, fifo: Path, read_pids: ReadPids) -> None:
    process = prefork.start("behave", f"hang {fifo}", f"hang {fifo}", "--processes", 2)
    workers = [os.pidfd_open(pid) for pid in read_pids(2)]
    process.kill()
    process.wait()
    for worker in workers:
        assert select.select([worker], [], [], 30)[0], "a worker lives on"
        os.close(worker)


@pytest.mark.parametrize("chunksize", [1, 10])
def test_a_reader_that_goes_away(prefork: Any, chunksize: int) -> None:
    """`yes | prefork map … | head -1`: no end of input, and nobody who wants more output."""
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes:
        process = prefork.start("same", "--lines", "-", "--chunksize", chunksize, stdin=yes.stdout)
        yes.stdout.close()
        assert json.loads(process.stdout.readline())["result"] == "y"
        process.stdout.close()
        assert process.wait() == -signal.SIGPIPE
        assert "Traceback" not in process.stderr.read()
        assert yes.wait() == -signal.SIGPIPE


def test_nobody_reads_the_messages(prefork: Any) -> None:
    process = prefork.start("json:loads", "1", "x", "2")
    process.stderr.close()
    assert len(parse(process.stdout.read())) == 3
    assert process.wait() == 1


# ---- --resume


def test_resume_after_an_interruption(
    prefork: Any, tmp_path: Path, fifo: Path, read_pids: ReadPids
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    inputs = [f"{log}|{i}" for i in range(5)]
    process = prefork.start(
        "log_and_behave", *inputs[:3], f"{log}|hang {fifo}", "-o", out, "--processes", 1
    )
    read_pids(1)
    process.send_signal(signal.SIGINT)
    finish(process)
    with open(out, "a") as file:
        file.write('{"input": "torn", "resul')  # as after a power failure
    done = prefork.run("log_and_behave", *inputs, "-o", out, "--resume")
    assert done.code == 0
    assert "the output file holds 3 already" in done.stderr
    assert "skipped 3 inputs that" in done.stderr
    assert "5 of 5 inputs came through" in done.stderr
    records = parse(out.read_text())
    assert sorted(record["input"] for record in records) == inputs
    started = Counter(log.read_text().splitlines())
    assert started == {**dict.fromkeys("01234", 1), f"hang {fifo}": 1}


def test_resume_skips_failures_too_and_remembers_them(prefork: Any, tmp_path: Path) -> None:
    args = ["number", "1", "x", "y", "-o", "out"]
    assert prefork.run(*args).code == 1
    before = (tmp_path / "out").read_text()
    done = prefork.run(*args, "2", "--resume")
    assert done.code == 1
    assert "skipped 3 inputs that out held already, 2 of them failed" in done.stderr
    assert "2 of 4 inputs came through, 2 failed" in done.stderr
    after = (tmp_path / "out").read_text()
    assert after.startswith(before)
    assert len(parse(after)) == 4


def test_resume_without_an_earlier_run(prefork: Any, tmp_path: Path) -> None:
    assert prefork.run("number", "1", "-o", "out", "--resume").code == 0
    assert len(parse((tmp_path / "out").read_text())) == 1


def test_resume_counts_equal_inputs(prefork: Any, tmp_path: Path) -> None:
    prefork.run("same", "a", "a", "-o", "out")
    prefork.run("same", "a", "b", "a", "a", "-o", "out", "--resume")
    inputs = Counter(record["input"] for record in parse((tmp_path / "out").read_text()))
    assert inputs == {"a": 3, "b": 1}


def test_resume_compares_values_not_spelling(prefork: Any, tmp_path: Path) -> None:
    (tmp_path / "one").write_text('{"a": 1, "b": [1.50]}\n"\\u00ef"\n')
    (tmp_path / "two").write_text('{"b":[1.5],"a":1}\n"ï"\n')
    prefork.run("same", "--jsonl", "one", "-o", "out")
    done = prefork.run("same", "--jsonl", "two", "-o", "out", "--resume")
    assert "skipped 2 inputs" in done.stderr


def test_resume_knows_names_that_are_no_utf8(prefork: Any, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(b"a\xff\n")
    for _ in range(2):
        done = prefork.run("same", "--lines", "names", "-o", "out", "--resume")
    assert "skipped 1 input" in done.stderr


def test_resume_mends_a_missing_line_end(prefork: Any, tmp_path: Path) -> None:
    prefork.run("same", "a", "-o", "out")
    text = (tmp_path / "out").read_text()
    (tmp_path / "out").write_text(text.rstrip("\n"))
    prefork.run("same", "a", "b", "-o", "out", "--resume")
    assert [r["input"] for r in parse((tmp_path / "out").read_text())] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("oops\n", "out, line 1: not a record of this command: Expecting value"),
        ("[1]\n", 'it has no "input"'),
        ('{"input": 1}\n', 'it has not one of "result" and "error"'),
    ],
)
def test_resume_from_something_else(
    prefork: Any, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "out").write_text(content)
    done = prefork.run("same", "a", "-o", "out", "--resume-anyway")
    assert done.code == 2
    assert message in done.stderr
    assert (tmp_path / "out").read_text() == content


def test_resume_from_a_device(prefork: Any) -> None:
    done = prefork.run("same", "a", "-o", "/dev/null", "--resume")
    assert done.code == 2
    assert "/dev/null is not a file that can be resumed" in done.stderr


def test_it_tells_what_each_worker_does(prefork: Any, fifo: Path, read_pids: ReadPids) -> None:
    process = prefork.start("behave", f"hang {fifo}", "-p", 1)
    (worker,) = read_pids(1)
    process.send_signal(signal.SIGUSR1)
    said = ""
    while "in behave" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    assert f'worker {worker}: "hang {fifo}", for ' in said
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finish(process).code == -signal.SIGINT
