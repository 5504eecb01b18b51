"""What the death of a worker does: its one running job fails, and nothing else happens."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from helpers import (
    DEADLINE,
    NEVER,
    eventually,
    has_ended,
    log_start,
    mark,
    mark_and_stay,
    marked,
    process,
    stop,
)
from prefork import Pool, Terminated, WorkerLostError

LARGE = 300_000  # bytes; such a pickle travels in a file of its own
HALF = 40_000  # bytes; two such results do not fit into a pipe


def square(x):
    return x * x


def echo(path, number, data=b""):
    log_start(path, number)
    return number, data


def lost(result) -> WorkerLostError:
    with pytest.raises(WorkerLostError) as caught:
        result.get(DEADLINE)
    return caught.value


def started(path: Path) -> list[int]:
    return sorted(map(int, path.read_text().split()))


@pytest.fixture
def pool(context, make_pool) -> Pool:
    """Of two workers. No task here leaves a process behind that could send its result."""
    return make_pool(2, lost_worker_timeout=NEVER, context=context)


@pytest.fixture
def lonely(context, make_pool) -> Pool:
    """Of one worker, which is sent several short tasks at once."""
    pool = make_pool(1, lost_worker_timeout=NEVER, context=context)
    pool.map(abs, range(50), 1)
    return pool


# --- SIGKILL at each moment of a worker's life


@pytest.mark.promise(number=1)
@pytest.mark.promise(number=3)
def test_killed_while_running(pool, tmp_path):
    guilty = pool.apply_async(mark_and_stay, (tmp_path / "runs",))
    others = [pool.apply_async(square, (n,)) for n in range(200)]
    victim = int(marked(tmp_path / "runs"))
    os.kill(victim, signal.SIGKILL)
    error = lost(guilty)
    assert (error.job, error.pid, error.exitcode) == (guilty.job, victim, -signal.SIGKILL)
    assert f"worker process {victim} was killed by SIGKILL while it ran job {guilty.job}" in str(
        error
    )
    assert "helpers.mark_and_stay" in str(error)
    assert [r.get(DEADLINE) for r in others] == [n * n for n in range(200)]


def test_the_dead_are_replaced(pool, tmp_path):
    names = [tmp_path / "a", tmp_path / "b"]
    for generation in range(2):
        results = [pool.apply_async(mark_and_stay, (name,)) for name in names]
        pids = [int(marked(name)) for name in names]  # both run at the same time
        for pid, name in zip(pids, names, strict=True):
            name.unlink()
            os.kill(pid, signal.SIGKILL)
        assert sorted(lost(r).pid for r in results) == sorted(pids), generation
    assert pool.map(square, range(10)) == [n * n for n in range(10)]


@pytest.mark.promise(number=1)
def test_killed_while_idle(lonely):
    victim = lonely.apply(os.getpid)
    os.kill(victim, signal.SIGKILL)
    assert lonely.apply_async(os.getpid).get(DEADLINE) != victim


@pytest.mark.promise(number=2)
@pytest.mark.promise(number=3)
@pytest.mark.parametrize("size", [0, LARGE])
def test_killed_before_it_receives(lonely, tmp_path, size):
    """What waits for a worker in its inbox runs elsewhere, once."""
    log = tmp_path / "log"
    victim = lonely.apply(os.getpid)
    stop(victim)
    data = b"x" * size
    results = [lonely.apply_async(echo, (log, n, data)) for n in range(20)]
    os.kill(victim, signal.SIGKILL)
    assert [r.get(DEADLINE) for r in results] == [(n, data) for n in range(20)]
    assert started(log) == list(range(20))


class Plug:
    """Its unpickling waits for `pulled`; so long the pool receives nothing."""

    plugged = threading.Event()
    pulled = threading.Event()

    def __reduce__(self):
        return _wait_until_pulled, ()


def _wait_until_pulled():
    Plug.plugged.set()
    Plug.pulled.wait(DEADLINE)
    return "pulled"


def send(path, number, size):
    log_start(path, number)
    return bytes([number]) * size


@pytest.mark.promise(number=1)
@pytest.mark.promise(number=3)
def test_killed_while_sending(lonely, tmp_path):
    """The result before it arrives, the one that was cut in its middle does not, the rest runs."""
    log = tmp_path / "log"
    Plug.plugged.clear()
    Plug.pulled.clear()
    plug = lonely.apply_async(Plug)
    assert Plug.plugged.wait(DEADLINE)
    try:
        # Two are sent at once; the second result does not fit into the pipe.
        results = [lonely.apply_async(send, (log, n, HALF)) for n in range(3)]
        eventually(lambda: log.exists() and len(started(log)) == 2, "two of them start")
        guilty = results[1]
        eventually(lambda: guilty.pid, "the second one runs")
        victim = guilty.pid
        eventually(lambda: process(victim).state == "S", "its worker waits for room")
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: has_ended(victim), "its worker dies")
    finally:
        Plug.pulled.set()
    assert plug.get(DEADLINE) == "pulled"
    error = lost(guilty)
    assert (error.job, error.pid) == (guilty.job, victim)
    assert results[0].get(DEADLINE) == b"\0" * HALF
    assert results[2].get(DEADLINE) == b"\2" * HALF
    assert started(log) == [0, 1, 2]


def stay_once(folder):
    """Marks its start; the first one stays until it is killed."""
    first = not (folder / "first").exists()
    mark(folder / ("first" if first else "second"), os.getpid())
    while first:
        signal.pause()


@pytest.mark.promise(number=1)
def test_killed_while_starting(context, make_pool, tmp_path):
    """Nothing has run, so nothing fails."""
    pool = make_pool(1, stay_once, (tmp_path,), lost_worker_timeout=NEVER, context=context)
    victim = int(marked(tmp_path / "first"))
    results = [pool.apply_async(square, (n,)) for n in range(3)]
    os.kill(victim, signal.SIGKILL)
    assert [r.get(DEADLINE) for r in results] == [0, 1, 4]


@pytest.mark.promise(number=3)
def test_stopped_worker_holds_up_its_own_job_only(pool, tmp_path):
    held = pool.apply_async(wait_for, (tmp_path / "runs", tmp_path / "go"))
    stopped = int(marked(tmp_path / "runs"))
    stop(stopped)
    results = [pool.apply_async(square, (n,)) for n in range(200)]
    assert [r.get(DEADLINE) for r in results] == [n * n for n in range(200)]
    assert not held.ready()
    mark(tmp_path / "go")
    os.kill(stopped, signal.SIGCONT)
    assert held.get(DEADLINE) == stopped


def wait_for(runs, go):
    mark(runs, os.getpid())
    marked(go)
    return os.getpid()


# --- what a task can do to its worker


def segfault():
    ctypes.string_at(0)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.promise(number=1)
@pytest.mark.parametrize(
    ("function", "args", "exitcode", "words"),
    [
        (os._exit, (3,), 3, "exited with code 3"),
        (os._exit, (0,), 0, "exited with code 0"),
        (sys.exit, (3,), 3, "exited with code 3"),
        (interrupt, (), 1, "it raised KeyboardInterrupt"),
        (os.abort, (), -signal.SIGABRT, "was killed by SIGABRT"),
        (segfault, (), -signal.SIGSEGV, "was killed by SIGSEGV"),
        (signal.raise_signal, (signal.SIGTERM,), -signal.SIGTERM, "was killed by SIGTERM"),
    ],
)
def test_task_that_ends_its_process(pool, function, args, exitcode, words):
    others = [pool.apply_async(square, (n,)) for n in range(20)]
    guilty = pool.apply_async(function, args)
    others += [pool.apply_async(square, (n,)) for n in range(20, 40)]
    error = lost(guilty)
    assert (error.job, error.exitcode) == (guilty.job, exitcode)
    assert words in str(error)
    assert [r.get(DEADLINE) for r in others] == [n * n for n in range(40)]


@pytest.mark.promise(number=3)
def test_a_crash_tells_where(pool):
    error = lost(pool.apply_async(segfault))
    assert "in segfault" in error.stack
    assert error.stack.rstrip() in str(error)
    assert lost(pool.apply_async(os._exit, (1,))).stack == ""


@pytest.mark.parametrize("call", ["map", "imap"])
def test_chunks(pool, call):
    """A death fails a `map`; of an `imap`, it costs the item."""
    with pytest.raises(WorkerLostError):
        list(getattr(pool, call)(_exit_at_13, range(30), 10))
    if call == "imap":
        results = pool.imap(_exit_at_13, range(30), 10)
        outcomes = [_outcome(results) for _ in range(30)]
        assert outcomes == [*range(13), "lost", *range(14, 30)]


def _exit_at_13(number):
    if number == 13:
        os._exit(1)
    return number


def _outcome(results):
    try:
        return results.next(DEADLINE)
    except WorkerLostError:
        return "lost"


def test_callbacks(pool):
    called: list[object] = []
    result = pool.apply_async(os._exit, (1,), callback=called.append, error_callback=called.append)
    error = lost(result)
    eventually(lambda: called, "the error callback")
    pool.close()
    assert pool.join(DEADLINE)
    assert called == [error]


# --- the pool's own business goes on


@pytest.mark.promise(number=3)
def test_close_waits_for_what_the_dead_left(lonely, tmp_path):
    results = [lonely.apply_async(mark_and_stay, (tmp_path / "runs",))]
    results += [lonely.apply_async(square, (n,)) for n in range(10)]
    lonely.close()
    os.kill(int(marked(tmp_path / "runs")), signal.SIGKILL)
    assert lonely.join(DEADLINE)
    lost(results[0])
    assert [r.get(0) for r in results[1:]] == [n * n for n in range(10)]


def test_every_worker_leaves_when_all_are_replaced_under_load(make_pool):
    pool = make_pool(3, context=multiprocessing.get_context("fork"))
    stopping = threading.Event()

    def load():
        while not stopping.is_set():
            for result in [pool.apply_async(square, (n,)) for n in range(20)]:
                result.get(DEADLINE)

    thread = threading.Thread(target=load)
    thread.start()
    for _ in range(60):
        pool.restart()
        pool.apply_async(square, (2,)).get(DEADLINE)
    stopping.set()
    thread.join()
    pool.close()
    assert pool.join(DEADLINE)


def test_the_exit_code_is_known_whoever_polls_children(pool):
    """`multiprocessing.active_children` and `Process.start` poll all children of the process."""
    stopping = threading.Event()

    def poll():
        while not stopping.is_set():
            multiprocessing.active_children()

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        codes = [lost(pool.apply_async(os._exit, (7,))).exitcode for _ in range(10)]
    finally:
        stopping.set()
        thread.join()
    assert codes == [7] * 10


def test_looking_at_a_result_while_its_worker_dies(make_pool):
    pool = make_pool(2, context=multiprocessing.get_context("fork"))
    current = [pool.apply_async(square, (2,))]
    stopping = threading.Event()
    errors: list[Exception] = []

    def look():
        while not stopping.is_set():
            try:
                repr(current[0])
            except Exception as exc:
                errors.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(100):
            current[0] = pool.apply_async(os._exit, (1,))
            lost(current[0])
    finally:
        sys.setswitchinterval(interval)
        stopping.set()
        thread.join()
    assert errors == []


@pytest.mark.promise(number=1)
def test_the_end_of_the_fork_server(make_pool, tmp_path):
    """Its workers live on and finish their tasks, but nobody knows how they end."""
    from multiprocessing.forkserver import _forkserver

    pool = make_pool(2, context=multiprocessing.get_context("forkserver"))
    held = pool.apply_async(wait_for, (tmp_path / "runs", tmp_path / "go"))
    marked(tmp_path / "runs")
    os.kill(_forkserver._forkserver_pid, signal.SIGKILL)
    results = [pool.apply_async(square, (n,)) for n in range(20)]
    assert [r.get(DEADLINE) for r in results] == [n * n for n in range(20)]
    mark(tmp_path / "go")
    held.get(DEADLINE)
    pool.close()
    assert pool.join(DEADLINE)


def test_a_lack_of_memory_is_told(make_pool, gate, monkeypatch):
    """The kernel's own kill cannot be had in a test, but its count can."""
    monkeypatch.setattr("prefork._system.resources.OutOfMemoryKills.any_new", lambda self: True)
    pool = make_pool(1)
    handle = pool.apply_async(gate.enter)
    os.kill(gate.arrival().pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match=r"SIGKILL .*: the kernel was") as caught:
        handle.get(DEADLINE)
    assert caught.value.note == "the kernel was out of memory"
    later = pool.apply_async(gate.enter)
    gate.arrival()
    assert later.terminate()  # by the pool itself: nothing of the kind is said
    with pytest.raises(Terminated):
        later.get(DEADLINE)
    eventually(lambda: len(pool.statistics().exits) == 2, "two exits")
    _, last = pool.statistics().exits
    assert "memory" not in last.reason
