"""What becomes of a pool when its owner drops it, ends, or is killed."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import itertools
import multiprocessing
import os
import signal
import threading
import time
import weakref

import pytest

from helpers import (
    DEADLINE,
    METHODS,
    NEVER,
    an_unclosed_pool_says_so,
    children,
    eventually,
    has_ended,
    mark,
    marked,
    stop,
)
from prefork import Pool, Terminated

# --- the process that owns the pool ends

OWNER = """
import faulthandler, multiprocessing, os, subprocess, sys, time
from pathlib import Path
from helpers import mark
from prefork import Pool

faulthandler.enable()


def has_children(path):
    subprocess.Popen(["sleep", "1000"])
    os.system("sleep 1000 &")
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)).start()
    if os.fork():
        mark(path)
    time.sleep(1000)


if __name__ == "__main__":
    how, method, folder = sys.argv[1:]
    pool = Pool(3, context=multiprocessing.get_context(method))
    for name in "ab":
        pool.apply_async(has_children, (Path(folder, name),))
    pool.apply_async(abs, (-1,)).get()
    results = pool.imap_unordered(abs, range(1000))
    next(results)
    for name in "ab":
        while not Path(folder, name).exists():
            time.sleep(0.001)
    print("ready", flush=True)
    match how:
        case "by itself": pass
        case "closed": pool.close()
        case "by an exception": raise ValueError("on purpose")
        case "by sys.exit": sys.exit(3)
        case "by os._exit": os._exit(3)
        case "in the with block":
            with pool:
                sys.exit(3)
        case "by a signal": time.sleep(1000)
"""


@pytest.fixture(params=METHODS)
def method(request) -> str:
    return request.param


def armed():
    """In a task: on which descriptors the kernel is to signal something."""
    flags = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # listdir's own
            flags[fd] = fcntl.fcntl(fd, fcntl.F_GETFL)
    return {fd for fd in flags if flags[fd] & os.O_ASYNC}


@pytest.mark.promise(number=6)
def test_a_worker_is_tied_to_its_owner_twice(make_pool):
    """Once is not enough on new kernels: a child that is forked at that moment can be missed."""
    pool = make_pool(1)
    assert len(pool.apply(armed)) == 2


@pytest.mark.promise(number=6)
@pytest.mark.parametrize("stopped", [False, True])
def test_killed(script, tmp_path, method, stopped):
    """The kernel kills the workers, and what their tasks started: even those that are stopped."""
    owner = script_file(script, tmp_path, "by a signal", method)
    assert owner.process.stdout.readline() == "ready\n"
    if stopped:
        for pid in owner.leftovers():
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                if os.getpgid(pid) != os.getpgid(0):  # not the fork server
                    os.kill(pid, signal.SIGSTOP)
    owner.process.kill()
    owner.process.wait()
    eventually(lambda: not owner.leftovers(), "all its processes end")


@pytest.mark.promise(number=6)
@pytest.mark.parametrize(
    ("how", "code", "error"),
    [
        ("by itself", 0, None),
        ("closed", 0, None),
        ("by an exception", 1, "ValueError: on purpose"),
        ("by sys.exit", 3, None),
        ("by os._exit", 3, None),
        ("in the with block", 3, None),
    ],
)
def test_ends(script, tmp_path, method, how, code, error):
    """Without waiting for the tasks, without a word, and without leaving anything."""
    owner = script_file(script, tmp_path, how, method)
    returned, _, err = owner.finish()
    assert returned == code
    assert [line for line in err.splitlines() if not line.startswith((" ", "Traceback"))] == (
        [error] if error else []
    )
    eventually(lambda: not owner.leftovers(), "all its processes end")


def script_file(script, folder, how, method):
    path = folder / "owner.py"
    path.write_text(OWNER)
    return script(path, how, method, folder)


# --- the pool object is dropped


def stay(path):
    mark(path, os.getpid())
    time.sleep(1000)


@pytest.mark.promise(number=6)
def test_dropped(tmp_path):
    threads = set(threading.enumerate())
    pool = Pool(2)
    pids = [pool.apply(os.getpid)]
    weak = weakref.ref(pool)
    with an_unclosed_pool_says_so("Pool: running"):
        del pool
    gc.collect()
    assert weak() is None
    eventually(lambda: all(map(has_ended, pids)), "its workers end")
    eventually(lambda: set(threading.enumerate()) <= threads, "its threads end")
    eventually(lambda: not {child.pid for child in children()} & set(pids), "no zombie is left")


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
def test_a_pending_result_keeps_its_pool():
    result = Pool(1).apply_async(time.sleep, (0.05,))
    gc.collect()
    assert result.get(DEADLINE) is None


@pytest.mark.promise(number=6)
def test_dropped_with_its_results(tmp_path):
    pool = Pool(1)
    result = pool.apply_async(stay, (tmp_path / "runs",))
    pid = int(marked(tmp_path / "runs"))
    del pool, result
    gc.collect()
    # Nobody waits for the task, but it was handed in: it is not cut off, until this process ends.
    assert not has_ended(pid)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: has_ended(pid), "it dies")


def threads_of_pools():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefork-")]


def test_a_dropped_iterator_ends_an_endless_input():
    pool = Pool(1)
    results = pool.imap(abs, itertools.count())
    assert next(results) == 0
    del results
    pool.close()
    assert pool.join(DEADLINE)


# --- terminate


@pytest.mark.promise(number=1)
def test_terminate_resolves_everything(context, make_pool, tmp_path):
    pool = make_pool(2, context=context)
    called: list[object] = []
    running = [pool.apply_async(stay, (tmp_path / name,)) for name in "ab"]
    pids = [int(marked(tmp_path / name)) for name in "ab"]
    queued = [
        pool.apply_async(abs, (n,), callback=called.append, error_callback=called.append)
        for n in range(100)
    ]
    queued.append(pool.map_async(abs, range(1000)))
    iterators = [pool.imap(abs, itertools.count()), pool.imap_unordered(abs, range(1000), 10)]
    pool.terminate()
    errors = []
    for result in running + queued:
        with pytest.raises(Terminated) as raised:
            result.get(DEADLINE)
        errors.append(raised.value)
    errors += outcomes(iterators[0])
    assert all(isinstance(error, Terminated) for error in [*errors, *outcomes(iterators[1])])
    # Each job has one of its own: who raises it adds a traceback to it, and a context.
    assert len(set(map(id, errors))) == len(errors)
    assert pool.join(DEADLINE)
    assert [type(value) for value in called] == [Terminated] * 100
    assert all(map(has_ended, pids))


def outcomes(iterator):
    """All that it yields and raises, until it ends."""
    while True:
        try:
            yield iterator.next(DEADLINE)
        except StopIteration:
            return
        except Terminated as exc:
            yield exc


class TerminatesWhenPickled:
    def __init__(self, pool):
        self.pool = pool

    def __reduce__(self):
        self.pool.terminate()
        return int, ()


@pytest.mark.parametrize("call", ["apply_async", "map_async", "imap", "imap_unordered"])
def test_terminated_while_a_job_is_handed_in(make_pool, call):
    pool = make_pool(1)
    argument = [TerminatesWhenPickled(pool)]
    try:
        result = getattr(pool, call)(int, argument)
        wait = result.next if call.startswith("imap") else result.get
        wait(DEADLINE)
    except (Terminated, ValueError, StopIteration):
        pass


@pytest.mark.promise(number=1)
def test_terminate_from_many_threads(make_pool, tmp_path):
    pool = make_pool(2)
    result = pool.apply_async(stay, (tmp_path / "runs",))
    marked(tmp_path / "runs")
    threads = [threading.Thread(target=pool.terminate) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    with pytest.raises(Terminated):
        result.get(0)


class Unstartable(Pool.Process):
    broken = False

    def start(self):
        if self.broken:
            raise RuntimeError("no more")
        super().start()


class FragilePool(Pool):
    Process = Unstartable


@pytest.mark.promise(number=1)
def test_no_successor_can_be_started(monkeypatch):
    """Whatever starting a process raises: all jobs fail, and the pool can be ended."""
    pool = FragilePool(1, lost_worker_timeout=NEVER)
    pid = pool.apply(os.getpid)
    monkeypatch.setattr(Unstartable, "broken", True)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Exception, match="no more"):
        pool.apply_async(abs, (1,)).get(DEADLINE)
    pool.terminate()
    assert pool.join(DEADLINE)


# --- the owner forks

FORKS = """
import faulthandler, os, sys, warnings
from prefork import Pool

faulthandler.enable()
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 says: better not fork then


def in_child(pool, how):
    match how:
        case "terminate": pool.terminate()
        case "close": pool.close()
        case "submit":
            try: pool.apply_async(abs, (1,)).get()
            except RuntimeError: os._exit(7)
        case "leave": pass


if __name__ == "__main__":
    how = sys.argv[1]
    with Pool(1) as pool:
        pool.apply(abs, (1,))
        pid = os.fork()
        if pid == 0:
            in_child(pool, how)
            sys.exit(7)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), pool.apply(abs, (-5,)))
"""


@pytest.mark.parametrize("how", ["terminate", "close", "submit", "leave"])
def test_a_forked_copy_is_harmless(script, how):
    code, out, err = script(FORKS, how).finish()
    assert (code, out, err) == (0, "7 5\n", "")


def test_pools_of_many_threads(make_pool):
    """No pool's worker holds another's channel open: a death is noticed at once everywhere."""
    errors = []

    def use():
        try:
            for _ in range(5):
                with Pool(1, lost_worker_timeout=NEVER) as pool:
                    doomed = pool.apply_async(os._exit, (1,))
                    doomed.wait(DEADLINE)
                    assert not doomed.successful()
                    assert pool.apply_async(abs, (-3,)).get(DEADLINE) == 3
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    eventually(lambda: multiprocessing.active_children() == [], "no worker is left")


RECYCLES = """
import subprocess, sys
from pathlib import Path
from helpers import mark, marked
from prefork import Pool

def leave_one(folder):
    mark(folder / "left", subprocess.Popen(["sleep", "3600"]).pid)
    marked(folder / "go")

if __name__ == "__main__":
    pool = Pool(1, context=sys.argv[1], maxtasksperchild=1)
    pool.apply(leave_one, (Path(sys.argv[2]),))
"""


@pytest.mark.promise(number=6)
@pytest.mark.parametrize("method", METHODS)
def test_killed_before_it_could_account_for_a_worker_that_has_left(script, tmp_path, method):
    """What ties the worker's group to its owner has ended with the worker."""
    source = tmp_path / "program.py"
    source.write_text(RECYCLES)
    program = script(source, method, tmp_path)
    left = int(marked(tmp_path / "left"))
    stop(program.process.pid)
    mark(tmp_path / "go")
    eventually(lambda: has_ended(left), "it ends with its worker")
    program.process.kill()
    program.process.wait(DEADLINE)
    eventually(lambda: program.leftovers() == {}, "nothing is left")
