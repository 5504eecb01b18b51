"""What a person sees: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from running import finish

from prefork._observe.rates import Meter, duration, per_second
from prefork.cli.progress import Log
from prefork.cli.stats import Failure, Stats


class Terminal:
    """A terminal that the command can write to, and what was written."""

    def __init__(self) -> None:
        self.controller, self.fd = os.openpty()
        self.text = ""

    def read_until(self, *wanted: str) -> None:
        while not all(text in self.text for text in wanted):
            self.text += os.read(self.controller, 4096).decode()

    def read_rest(self) -> None:
        os.close(self.fd)
        try:
            while data := os.read(self.controller, 4096):
                self.text += data.decode()
        except OSError:  # how a terminal says that all have gone
            pass
        os.close(self.controller)


def test_plain_lines_where_there_is_no_terminal(prefork: Any) -> None:
    done = prefork.run("number", "1", "x", "3")
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "imported" not in line]
    assert all(line.startswith("prefork: ") for line in lines)
    assert "number over 3 inputs, in " in lines[0]
    assert "2 of 3 inputs came through, 1 failed, in " in lines[-1]


def test_a_bar_on_a_terminal(prefork: Any, fifo: Path) -> None:
    terminal = Terminal()
    process = prefork.start("behave", "a", "raise it", f"wait {fifo}", "b", stderr=terminal.fd)
    terminal.read_until("3/4", " 75%", "/s", "ETA 0:0", "1 failed", "━━━")
    fifo.write_text("go on")
    stdout, _ = process.communicate()
    terminal.read_rest()
    assert stdout.count("\n") == 4
    assert "\x1b" not in stdout
    assert "raise it: LookupError: it" in terminal.text
    assert "3 of 4 inputs came through, 1 failed" in terminal.text


def test_a_count_where_the_end_is_not_known(prefork: Any, fifo: Path) -> None:
    terminal = Terminal()
    process = prefork.start("same", "--lines", "-", stderr=terminal.fd)
    process.stdin.write("a\nb\n")
    process.stdin.flush()
    terminal.read_until("2 ", "/s", "0 failed")
    assert "%" not in terminal.text
    process.communicate()
    terminal.read_rest()
    assert "2 of 2 inputs came through" in terminal.text


def test_records_and_bar_share_a_terminal(prefork: Any, fifo: Path) -> None:
    terminal = Terminal()
    process = prefork.start(
        "behave", "[red]a", f"wait {fifo}", stdout=terminal.fd, stderr=terminal.fd
    )
    record = '{"input": "[red]a", "result": "[red]a", "seconds": '
    terminal.read_until(record, "1/2")
    fifo.write_text("go on")
    process.communicate()
    terminal.read_rest()
    assert '"result": "go on"' in terminal.text


def test_an_interrupt_leaves_the_terminal_in_order(
    prefork: Any, fifo: Path, read_pids: Any
) -> None:
    terminal = Terminal()
    process = prefork.start("behave", "a", f"hang {fifo}", stderr=terminal.fd)
    read_pids(1)
    terminal.read_until("1/2")
    process.send_signal(signal.SIGINT)
    assert finish(process).code == -signal.SIGINT
    terminal.read_rest()
    assert terminal.text.rfind("\x1b[?25h") > terminal.text.rfind("\x1b[?25l")  # the cursor is back
    assert "stopped by SIGINT" in terminal.text


def test_a_terminal_that_can_do_nothing_gets_lines(prefork: Any) -> None:
    terminal = Terminal()
    prefork.environ["TERM"] = "dumb"
    prefork.start("same", "a", stderr=terminal.fd).communicate()
    terminal.read_rest()
    assert "\x1b" not in terminal.text
    assert "prefork: 1 of 1 input came through" in terminal.text


@pytest.mark.parametrize("width", [40, 120])
def test_what_is_printed_goes_above_the_bar(prefork: Any, width: int) -> None:
    prefork.environ["COLUMNS"] = str(width)
    terminal = Terminal()
    inputs = [str(number) for number in range(40)]
    process = prefork.start("speak", *inputs, "-o", "out", stdout=terminal.fd, stderr=terminal.fd)
    terminal.read_rest()
    process.communicate()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text)
    lines = re.split(r"[\r\n]+", shown)
    for number in inputs:
        for way in ("print", "write", "child"):
            assert lines.count(f"{way} {number}") == 1, f"{way} {number}"


def test_what_is_printed_goes_where_it_is_sent(prefork: Any) -> None:
    """The bar is on the terminal, standard output is not."""
    terminal = Terminal()
    process = prefork.start("speak", "a", "-o", "out", stderr=terminal.fd)
    said, _ = process.communicate()
    terminal.read_rest()
    assert sorted(said.splitlines()[1:]) == ["child a", "print a"]
    assert "write a" in terminal.text


def test_quiet_shows_what_is_wrong_and_nothing_else(prefork: Any) -> None:
    assert "prefork: " not in prefork.run("number", "1", "--quiet").stderr
    said = prefork.run("number", "1", "x", "-q").stderr.splitlines()
    assert [line for line in said if line.startswith("prefork: failed: x: ValueError")]
    assert [line for line in said if line.startswith("prefork:   1 x ValueError")]
    assert not [line for line in said if "came through" in line or "over 2 inputs" in line]


def test_progress_for_programs(prefork: Any) -> None:
    done = prefork.run("number", "1", "x", "3", "--progress", "json")
    told = [json.loads(line) for line in done.stderr.splitlines() if "imported" not in line]
    assert [each for each in told if "failed: x" in each.get("message", "")]
    (state,) = [each for each in told if "done" in each]
    assert (state["done"], state["total"], state["failed"]) == (3, 3, 1)


def test_a_preview_runs_nothing(prefork: Any, tmp_path: Path) -> None:
    inputs = [f"x{i}" for i in range(12)]
    done = prefork.run("number", *inputs, "--dry-run", "-o", "out", "--limit", 11)
    assert (done.code, done.stdout) == (0, "functions.py is imported\n")
    assert not (tmp_path / "out").exists()
    assert "number over 11 inputs" in done.stderr
    assert '  "x0"\n' in done.stderr
    assert '"x9"\n  …' in done.stderr
    assert "x10" not in done.stderr


@pytest.mark.parametrize("width", [40, 120])
def test_the_bar_names_what_takes_longest_where_there_is_room(
    prefork: Any, fifo: Path, width: int
) -> None:
    prefork.environ["COLUMNS"] = str(width)
    terminal = Terminal()
    process = prefork.start("behave", f"wait {fifo}", "a", stderr=terminal.fd)
    terminal.read_until("1/2", "0 failed", *([] if width == 40 else ["longest: wait", " 2."]))
    fifo.write_text("go on")
    process.communicate()
    terminal.read_rest()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text)
    bars = [part for part in re.split(r"[\r\n]+", drawn) if "1/2" in part]
    assert bars
    assert all(len(bar.rstrip()) <= width for bar in bars)


# ---- the parts


def test_log_lines() -> None:
    stream = io.StringIO()
    log = Log(stream)
    log.start("headline")
    log.tick()
    log.stats.total = 10
    for _ in range(4):
        log.stats.count()
    log.stats.count_failure(b'"x"', b'{"type": "T", "message": "m"}')
    log.tick()
    log.say("two\nlines")
    first, second, third, *rest = stream.getvalue().splitlines()
    assert (first, second) == ("prefork: headline", "prefork: 0 inputs, 0 failed")
    assert third.startswith("prefork: 5 of 10 inputs (50%), 1 failed, ")
    assert third.endswith(" left")
    assert rest == ["prefork: two", "prefork: lines"]


def test_log_lines_become_rare() -> None:
    log = Log(io.StringIO())
    due = []
    for _ in range(10):
        due.append(log.due)
        log.tick()
    assert due == [1, 2, 5, 10, 20, 30, 45, 60, 120, 180]


def test_the_rate_is_that_of_the_last_while() -> None:
    meter = Meter(window=10.0)
    assert meter.rate is None
    for now in range(100):
        meter.sample(float(now), 0)
    assert meter.rate is None
    for now in range(100, 200):
        meter.sample(float(now), 5 * (now - 99))
    assert meter.rate == pytest.approx(5.0)
    assert meter.seconds_left(50) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("given", "error", "expected"),
    [
        (b'"a"', b'{"type": "T", "message": "m"}', "a: T: m"),
        (b'"a"', b'{"type": "T", "message": ""}', "a: T"),
        (b'"a"', b'{"type": "T", "message": " m\\nmore\\n"}', "a: T: m"),
        (b'"a\\nb"', b'{"type": "T", "message": "\\u001b[31m"}', '"a\\nb": "T: \\u001b[31m"'),
        (b'""', b'{"type": "T", "message": "m"}', '"": T: m'),
        (b'{"k": [1]}', b'{"type": "T", "message": "m"}', '{"k": [1]}: T: m'),
    ],
)
def test_a_failure_in_one_line(given: bytes, error: bytes, expected: str) -> None:
    assert str(Failure(given, error)) == expected


def test_a_long_failure_is_shortened_in_the_middle() -> None:
    failure = Failure(
        b'"%s"' % (b"a" * 500 + b"z"), b'{"type": "T", "message": "%s"}' % (b"m" * 500)
    )
    assert len(failure.input) == 80
    assert failure.input.endswith("az")
    assert len(failure.reason) == 160


def test_a_lost_worker_says_where_it_was() -> None:
    stack = '\\n  File \\"/usr/lib/ctypes/__init__.py\\", line 519 in string_at\\n  File \\"x\\"'
    error = b'{"type": "T", "message": "m", "traceback": "%b"}' % stack.encode()
    assert Failure(b'"a"', error).reason == "T: m, in string_at (ctypes/__init__.py:519)"


def test_stats() -> None:
    stats = Stats(total=10, done=4, failed=1, skipped=3, skipped_failed=2)
    assert (stats.handled, stats.all_failed) == (7, 3)


def test_for_people() -> None:
    assert [per_second(rate) for rate in (0.25, 12.34, 123.4)] == ["0.2/s", "12.3/s", "123/s"]
    assert [duration(seconds) for seconds in (0.04, 75.4, 3723)] == ["0.0 s", "75 s", "1:02:03"]
