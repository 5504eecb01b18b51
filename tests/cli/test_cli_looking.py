"""`prefork ps`, `top` and `stacks`: what they show of the pools that run here."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from click.testing import CliRunner
from rich.console import Console

from gate import enter
from helpers import DEADLINE, eventually, stop
from prefork._inspection import asking
from prefork._inspection.questions import IS_SUPPORTED
from prefork.cli.command import cli
from prefork.cli.sightings import Watcher
from prefork.cli.tables import pools_table, rows, workers_table

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="there are no abstract Unix sockets here")

PREFORK = [sys.executable, "-m", "prefork"]
LINES, COLUMNS = 24, 80


def run(prefork, *args):
    process = prefork.start_command([*PREFORK, *map(str, args)])
    stdout, stderr = process.communicate(timeout=DEADLINE)
    return process.returncode, stdout, stderr


def fail():
    raise ValueError("oops")


@pytest.fixture
def at_work(make_pool, gate):
    """A pool of two, of which one runs something; a job has failed."""
    pool = make_pool(2, observable="control")
    pool.apply_async(fail).wait(DEADLINE)
    running = pool.apply_async(enter, (gate, 7))
    visitor = gate.arrival()
    yield pool, running, visitor
    visitor.go()


def test_ps(prefork, at_work):
    code, out, err = run(prefork, "ps", os.getpid())
    assert (code, err) == (0, "")
    head, line = out.splitlines()
    assert head.split()[:5] == ["PID", "POOL", "WORKERS", "QUEUED", "RATE"]
    assert line.split()[0] == str(os.getpid())
    assert line.split()[2:7] == ["1/2", "0", "0", "1", "0"]


def test_ps_as_json(prefork, at_work):
    _, running, visitor = at_work
    code, out, _ = run(prefork, "ps", os.getpid(), "--json")
    assert code == 0
    (told,) = map(json.loads, out.splitlines())
    assert (told["pid"], told["running"], told["failures"]["raised"]) == (os.getpid(), 1, 1)
    worker = next(each for each in told["workers"] if each["pid"] == visitor.pid)
    assert (worker["job"], worker["function"]) == (running.job, "gate.enter")
    assert worker["memory"] > 1000
    assert worker["cpu"] >= 0
    assert worker["since_time"] <= time.time()


def test_top_once(prefork, at_work):
    *_, visitor = at_work
    code, out, _ = run(prefork, "top", os.getpid(), "--once")
    assert code == 0
    assert "failed: 1 raised" in out
    (line,) = [line for line in out.splitlines() if "gate.enter" in line]
    assert line.split()[:2] == [str(visitor.pid), "busy"]


def test_stacks_of_a_process_and_of_a_worker(prefork, at_work):
    pool, _, visitor = at_work
    code, out, _ = run(prefork, "stacks", os.getpid())
    assert code == 0
    assert all(f"worker {each.pid}:" in out for each in pool.statistics().workers)
    assert "in enter" in out
    code, out, _ = run(prefork, "stacks", visitor.pid)
    assert code == 0
    assert re.findall(r"worker (\d+):", out) == [str(visitor.pid)]
    assert "in enter" in out


@pytest.mark.parametrize("command", ["ps", "top", "stacks"])
def test_a_process_that_cannot_be_asked(prefork, command):
    assert run(prefork, command, 99999999) == (1, "", "Error: there is no process 99999999\n")
    quiet = subprocess.Popen(["sleep", "60"])
    try:
        text = f"Error: process {quiet.pid} has no pool that can be asked\n"
        assert run(prefork, command, quiet.pid) == (1, "", text)
    finally:
        quiet.kill()
        quiet.wait()


def test_a_stopped_process_is_a_line(prefork, script):
    owner = script(
        "import sys; from prefork import Pool; pool = Pool(1); print(flush=True); sys.stdin.read()"
    ).process
    owner.stdout.readline()
    stop(owner.pid)
    code, out, _ = run(prefork, "ps", owner.pid)
    assert code == 0
    assert f"process {owner.pid} is stopped" in out
    assert run(prefork, "stacks", owner.pid)[::2] == (
        1,
        f"Error: process {owner.pid} is stopped (kill -CONT {owner.pid} continues it)\n",
    )


@pytest.mark.parametrize(
    "args", [["ps"], ["ps", "--json"], ["top", "--once"], ["top", "--once", "--json"]]
)
def test_where_there_is_no_pool(monkeypatch, args):
    monkeypatch.setattr(asking, "find", lambda pid: [])
    done = CliRunner().invoke(cli, args)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "Error: no pool of yours runs on this machine\n"


@pytest.mark.parametrize("command", ["ps", "top", "stacks"])
def test_an_output_that_is_full(prefork, at_work, command):
    with open("/dev/full", "w") as full:
        process = prefork.start_command([*PREFORK, command, str(os.getpid())], stdout=full)
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3
    assert stderr == "Error: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("closed", "expected"),
    [(">&-", (3, "Error: standard output is closed\n")), ("<&-", (0, ""))],
)
def test_standard_streams_that_are_closed(prefork, at_work, closed, expected):
    command = f"'{sys.executable}' -m prefork top {os.getpid()} {closed}"
    process = prefork.start_command(["sh", "-c", command])
    _, stderr = process.communicate(timeout=DEADLINE)
    assert (process.returncode, stderr) == expected


# --- top, in a terminal


class Screen:
    """A terminal of 80 columns and 24 lines, and a command in it. What it knows of a terminal's
    language is what a full-screen view of rich's needs."""

    def __init__(self, command):
        self.fd, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", LINES, COLUMNS, 0, 0))
        self.before = termios.tcgetattr(child)
        self.child = child
        env = {**os.environ, "TERM": "xterm"}
        env.pop("COLUMNS", None)
        env.pop("LINES", None)
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env=env, start_new_session=True
        )
        self.lines = [""] * LINES
        self.row = 0
        self.rest = ""
        self.longest = 0

    def read(self):
        while select.select([self.fd], [], [], 0.05)[0]:
            self.rest += os.read(self.fd, 65536).decode(errors="replace")
            self.draw()

    def draw(self):
        for escape, text in re.findall(r"(\x1b\[[0-9;?]*[a-zA-Z])|([^\x1b]+)", self.rest):
            if escape.endswith("H"):
                self.row = 0
                self.lines = [""] * LINES
            for number, part in enumerate(text.replace("\r", "").split("\n")):
                self.row += bool(number)
                if self.row < LINES:
                    self.lines[self.row] += part
                    self.longest = max(self.longest, len(self.lines[self.row].rstrip()))
        self.rest = ""

    def text(self):
        self.read()
        return "\n".join(self.lines)

    def shows(self, *parts):
        eventually(lambda: all(part in self.text() for part in parts), f"it shows {parts}")

    def press(self, keys):
        os.write(self.fd, keys.encode())

    def end(self):
        """Returns the exit code."""

        def ended():
            self.read()
            return self.process.poll() is not None

        eventually(ended, "it ends")
        return self.process.returncode

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self.child)


@pytest.fixture
def screen():
    made = []

    def start(*args):
        made.append(Screen([*PREFORK, "top", *map(str, args)]))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_top_in_a_terminal(screen, at_work):
    _, running, visitor = at_work
    view = screen(os.getpid(), "--interval", 0.2)
    view.shows("prefork top", "gate.enter", str(visitor.pid), "q quit", "failed: 1 raised", "TIME↓")
    assert view.longest <= COLUMNS
    view.press("s")
    view.shows("CPU%↓")
    view.press("/gate\r")
    view.shows("only with 'gate'")
    eventually(lambda: "idle" not in view.text(), "the other one is hidden")
    view.press("\x1b[B")
    view.press("\r")
    view.shows(f"The stack of worker {visitor.pid}", "in enter")
    view.press("\x1b")
    view.shows("q quit")
    view.press("q")
    assert view.end() == 0
    assert termios.tcgetattr(view.child) == view.before
    assert not running.ready()


def test_long_names_push_nothing_off_the_screen(at_work):
    (told,) = Watcher(os.getpid()).look()
    long = "with a long name " * 20
    workers = [worker._replace(function=long) for worker in told.workers]
    seen = [told._replace(program=long, workers=workers)]
    console = Console(width=COLUMNS)
    with console.capture() as captured:
        console.print(pools_table(seen, in_lines=True))
        console.print(workers_table(rows(seen), in_lines=True))
    assert len(captured.get().splitlines()) == (1 + 1) + (1 + len(workers))


def test_top_ends_a_job_after_a_question(screen, at_work):
    pool, running, visitor = at_work
    view = screen(os.getpid(), "--interval", 0.2)
    view.shows("gate.enter")
    view.press("/gate\r\x1b[Bk")
    view.shows(f"End job {running.job} (gate.enter) of worker {visitor.pid}?")
    view.press("n")
    view.shows("q quit")
    assert not running.ready()
    view.press("k")
    view.shows("End job")
    view.press("y")
    running.wait(DEADLINE)
    assert not running.successful()
    assert pool.statistics().failures.terminated == 1
    view.press("q")
    assert view.end() == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_top_leaves_the_terminal_as_it_was(screen, at_work, signum):
    view = screen(os.getpid(), "--interval", 0.2)
    view.shows("gate.enter")
    view.process.send_signal(signum)
    assert view.end() == -signum
    assert termios.tcgetattr(view.child) == view.before


def test_top_ends_when_its_process_does(screen, script):
    owner = script(
        "import sys; from prefork import Pool; pool = Pool(1); print(flush=True); sys.stdin.read()"
    ).process
    owner.stdout.readline()
    view = screen(owner.pid, "--interval", 0.2)
    view.shows(str(owner.pid))
    owner.kill()
    owner.wait()
    assert view.end() == 1
    assert "there is no process" in view.text()
