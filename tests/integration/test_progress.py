"""Progress bars: of tqdm, of rich, of text, of the user's own; and the counts for these."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import types

import pytest

from gate import enter
from helpers import DEADLINE, eventually
from prefork import Terminated, WorkerLostError
from prefork._observe import bars

VERBS = {
    "map": lambda pool, **options: pool.map(abs, range(20), 1, **options),
    "map_async": lambda pool, **options: pool.map_async(abs, range(20), 1, **options).get(DEADLINE),
    "starmap": lambda pool, **options: pool.starmap(abs, zip(range(20)), 3, **options),
    "starmap_async": lambda pool, **options: pool.starmap_async(abs, zip(range(20)), **options).get(
        DEADLINE
    ),
    "imap": lambda pool, **options: list(pool.imap(abs, range(20), **options)),
    "imap_unordered": lambda pool, **options: sorted(
        pool.imap_unordered(abs, range(20), 3, **options)
    ),
}


class Bar:
    """Like tqdm's, but it remembers."""

    made: list[Bar]

    def __init__(self, total):
        self.total = total
        self.n = 0
        self.steps = []
        self.closed = threading.Event()
        self.threads = {threading.current_thread().name}
        self.made.append(self)

    def update(self, n):
        self.threads.add(threading.current_thread().name)
        self.steps.append(n)
        self.n += n

    def close(self):
        self.closed.set()


@pytest.fixture
def bar():
    """A class of bars; `made` has those that were made."""
    return type("Noting", (Bar,), {"made": []})


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("as_view", [False, True], ids=["pool", "view"])
def test_a_bar_of_ones_own_sees_every_item(make_pool, bar, verb, as_view):
    pool = make_pool(2)
    calls = pool.options(timeout=DEADLINE) if as_view else pool
    assert VERBS[verb](calls, progress=bar) == list(range(20))
    (made,) = bar.made
    assert made.closed.wait(DEADLINE)
    assert (made.total, made.n) == (20, 20)
    # It is made here, where its errors belong, and drawn where nobody waits for it.
    assert made.threads == {threading.current_thread().name, "prefork-Progress"}


def test_nothing_is_imported_without_a_bar():
    code = """
import sys
from prefork import Pool
with Pool(1) as pool:
    pool.map(abs, [1], progress=None)
    list(pool.imap(abs, [1], progress=False))
print(*(name for name in sys.modules if "_observe" in name or "tqdm" in name))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "\n", run.stderr


def test_the_bar_of_a_map_is_closed_when_it_returns(make_pool, bar):
    make_pool(2).map(abs, range(1000), progress=bar)
    assert bar.made[0].closed.is_set()


def test_drawings_are_few(make_pool, bar):
    """However many items there are: what a drawing finds done is drawn at once."""
    make_pool(2).map(abs, range(5000), 1, progress=bar)
    (made,) = bar.made
    assert made.n == 5000
    assert len(made.steps) < 1000


def fail_on_odd(x):
    if x % 2:
        raise ValueError(x)
    return x


def test_failures_are_counted(make_pool):
    pool = make_pool(2)
    result = pool.map_async(fail_on_odd, range(10), 1)
    with pytest.raises(ValueError, match=r"[13579]"):
        result.get(DEADLINE)
    assert (result.done, result.failed, result.remaining) == (10, 5, 0)


def test_counts_of_a_map_that_runs(make_pool, gate):
    pool = make_pool(1)
    result = pool.map_async(enter, [gate] * 3, 1)
    for n in range(3):
        visitor = gate.arrival()
        eventually(lambda n=n: result.done == n, "the others are counted")  # type: ignore[misc]
        assert (result.failed, result.remaining) == (0, 3 - n)
        visitor.go()
    result.get(DEADLINE)
    assert (result.done, result.failed, result.remaining) == (3, 0, 0)


def test_the_last_drawing_comes_without_another_change(make_pool, gate, bar):
    """What is done right after a drawing is shown while the rest takes long."""
    pool = make_pool(2)
    result = pool.map_async(enter, [gate] * 3, 1, progress=bar)
    visitors = [gate.arrival(), gate.arrival()]
    visitors.pop().go()
    visitors.append(gate.arrival())
    visitors.pop(0).go()
    eventually(lambda: bar.made[0].n == 2, "both are drawn")
    visitors.pop().go()
    result.get(DEADLINE)
    assert bar.made[0].closed.wait(DEADLINE)
    assert bar.made[0].n == 3


@pytest.mark.parametrize("end", ["terminate", "cancel", "die", "pool"])
def test_a_bar_ends_with_its_call(make_pool, gate, bar, end):
    pool = make_pool(1)
    result = pool.map_async(enter, [gate], 1, progress=bar)
    visitor = gate.arrival()
    if end == "terminate":
        result.terminate()
    elif end == "cancel":
        result.cancel()
        visitor.go()
    elif end == "pool":
        pool.terminate()
    else:
        os.kill(visitor.pid, signal.SIGKILL)
    with pytest.raises((Terminated, WorkerLostError)):
        result.get(DEADLINE)
    assert bar.made[0].closed.wait(DEADLINE)


def test_a_bar_ends_with_its_iterator(make_pool, gate, bar):
    pool = make_pool(1)
    iterator = pool.imap(enter, [gate] * 3, progress=bar)
    gate.arrival()
    iterator.close()
    assert bar.made[0].closed.wait(DEADLINE)


def test_the_length_of_an_iterator_is_told_at_its_end(make_pool, bar):
    assert list(make_pool(1).imap(abs, iter(range(7)), progress=bar)) == list(range(7))
    (made,) = bar.made
    assert made.closed.wait(DEADLINE)
    assert (made.total, made.n) == (7, 7)


# --- what goes wrong


def test_a_class_that_cannot_be_made_is_the_callers_error(make_pool):
    def make(total):
        raise RuntimeError("no bar today")

    pool = make_pool(1)
    for verb in VERBS.values():
        with pytest.raises(RuntimeError, match="no bar today"):
            verb(pool, progress=make)
    assert pool.statistics().finished == 0


@pytest.mark.parametrize("wrong", [3, 0.5, object(), lambda total: 3])
def test_what_is_no_bar_is_refused(make_pool, wrong):
    with pytest.raises(TypeError, match="progress must"):
        make_pool(1).map(abs, [1], progress=wrong)


@pytest.mark.parametrize("method", ["update", "close"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_bar_that_raises_loses_no_item_and_is_logged(make_pool, caplog, bar, verb, method):
    def fail(*args):
        raise SystemExit("the bar is broken")

    setattr(bar, method, fail)
    pool = make_pool(2)
    assert VERBS[verb](pool, progress=bar) == list(range(20))
    eventually(lambda: "progress bar raised" in caplog.text, "it is logged")
    assert "the bar is broken" in caplog.text


def test_a_terminal_that_blocks_holds_up_nothing(make_pool, bar):
    release = threading.Event()
    bar.update = lambda self, n: release.wait(DEADLINE)
    pool = make_pool(2)
    try:
        called = threading.Event()
        result = pool.map_async(abs, range(100), 1, lambda _: called.set(), progress=bar)
        assert result.get(DEADLINE) == list(range(100))
        assert called.is_set()
        # It waits for the last drawing, but not for ever.
        assert pool.map(abs, range(100), 1, progress=bar) == list(range(100))
    finally:
        release.set()


# --- those of others


def test_tqdm_around_an_iterator(make_pool):
    tqdm = pytest.importorskip("tqdm")
    out = io.StringIO()
    results = make_pool(2).imap_unordered(abs, range(50))
    assert sorted(tqdm.tqdm(results, total=50, file=out)) == list(range(50))
    assert "50/50" in out.getvalue()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("progress", [True, "squares"])
def test_tqdm_by_itself(make_pool, capfd, verb, progress):
    pytest.importorskip("tqdm")
    assert VERBS[verb](make_pool(2), progress=progress) == list(range(20))
    # (What is written while `readouterr` reads may be lost.)
    eventually(
        lambda: not any(each.name == "prefork-Progress" for each in threading.enumerate()),
        "nothing more is drawn",
    )
    text = capfd.readouterr().err
    assert "20/20" in text
    assert ("squares" in text) == (progress == "squares")


def test_tqdm_as_a_class_and_as_a_bar(make_pool):
    tqdm = pytest.importorskip("tqdm")
    pool = make_pool(2)
    made = []

    class Noted(tqdm.tqdm):  # type: ignore[misc, name-defined]
        def __init__(self, **kwargs):
            super().__init__(**kwargs, file=io.StringIO())
            made.append(self)

    pool.map(abs, range(30), progress=Noted)
    assert (made[0].n, made[0].total, made[0].disable) == (30, 30, True)  # it is closed
    with tqdm.tqdm(total=60, file=io.StringIO()) as one:
        pool.map(abs, range(30), progress=one)
        pool.map(abs, range(30), progress=one)
        assert (one.n, one.disable) == (60, False)  # it is the caller's to close


def test_small_steps_after_large_ones_are_shown(make_pool, gate):
    """tqdm by itself leaves them out, for up to ten seconds."""
    tqdm = pytest.importorskip("tqdm")
    pool, out = make_pool(1), io.StringIO()

    def progress(total):
        return tqdm.tqdm(total=total, file=out, mininterval=0, miniters=1000)

    result = pool.map_async(enter, [gate] * 2, 1, progress=progress)
    gate.arrival().go()
    visitor = gate.arrival()
    eventually(lambda: "1/2" in out.getvalue(), "the step is drawn")
    visitor.go()
    result.get(DEADLINE)


def test_rich(make_pool):
    progress_module = pytest.importorskip("rich.progress")
    from rich.console import Console

    pool = make_pool(2)
    progress = progress_module.Progress(console=Console(file=io.StringIO()))
    pool.map(abs, range(30), progress=progress)
    (task,) = progress.tasks
    assert (task.description, task.completed, task.total) == ("builtins.abs", 30, 30)
    assert not progress.live.is_started
    with progress:  # it is on the screen, and stays there
        assert list(pool.imap(abs, iter(range(30)), progress=progress)) == list(range(30))
        assert progress.live.is_started
        eventually(lambda: progress.tasks[1].completed == 30, "all are drawn")
        eventually(lambda: progress.tasks[1].total == 30, "the total is told")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def no_tqdm(monkeypatch):
    find = bars.importlib.util.find_spec
    util = types.SimpleNamespace(find_spec=lambda name: None if name == "tqdm" else find(name))
    monkeypatch.setattr(bars, "importlib", types.SimpleNamespace(util=util))


def test_a_line_of_text_where_there_is_no_tqdm(make_pool, monkeypatch):
    no_tqdm(monkeypatch)
    monkeypatch.setattr(sys, "stderr", Terminal())
    make_pool(2).map(abs, range(200), progress="numbers")
    text = sys.stderr.getvalue()
    assert "\rnumbers: 200 of 200 (100%)" in text
    assert text.endswith("\n")


def test_lines_of_text_where_there_is_no_terminal(make_pool, monkeypatch):
    no_tqdm(monkeypatch)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    result = make_pool(2).map_async(fail_on_odd, range(200), 1, progress=True)
    result.wait(DEADLINE)
    stderr = sys.stderr
    eventually(lambda: stderr.getvalue().endswith("failed\n"), "it is told at the end")
    (line,) = stderr.getvalue().splitlines()
    assert line.startswith("200 of 200 (100%)")
    assert line.endswith("100 failed")


def test_without_standard_error_nothing_is_shown(make_pool, monkeypatch):
    no_tqdm(monkeypatch)
    monkeypatch.setattr(sys, "stderr", None)
    assert make_pool(2).map(abs, range(20), progress=True) == list(range(20))


def test_a_pool_without_threads_has_bars_too(make_pool, bar):
    pool = make_pool(1, threads=False)
    assert pool.map(abs, range(20), 1, progress=bar) == list(range(20))
    assert bar.made[0].n == 20


EXIT = """
import time
from prefork import Pool

class Slow:
    def __init__(self, total): pass
    def update(self, n): print("drawn", n, flush=True)
    def close(self): print("closed", flush=True)

if __name__ == "__main__":
    pool = Pool(1)
    result = pool.map_async(time.sleep, [0, 3600], 1, progress=Slow)
    while not result.done:
        time.sleep(0.001)
"""


def test_the_interpreter_ends_while_a_bar_is_drawn(script):
    code, out, err = script(EXIT).finish()
    assert (code, out.splitlines()[-2:]) == (0, ["drawn 1", "closed"]), (out, err)
