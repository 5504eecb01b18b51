"""Tasks that fork, with Python's knowledge or behind its back, or start processes and pools."""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from helpers import DEADLINE, NEVER, eventually, has_ended, log_start, mark, marked
from prefork import Pool, Terminated, WorkerLostError

# --- a process that Python does not know of still holds the outbox


def fork_silently():
    """Like os.fork(), but Python's hooks at a fork are not called."""
    return ctypes.PyDLL(None).fork()


def leave_a_child(folder):
    """The worker dies; a child that could still send the result lives on."""
    if child := fork_silently():
        mark(folder / "child", child)
        os._exit(1)
    while True:
        signal.pause()


def hand_over_to_a_child(folder, number):
    """The worker dies; its child goes on in its place."""
    log_start(folder / "log", number)
    if fork_silently():
        os._exit(1)
    marked(folder / "go")
    return number


def test_waits_so_long_and_not_longer(context, make_pool, tmp_path):
    pool = make_pool(1, lost_worker_timeout=NEVER, context=context)
    before = time.monotonic()
    doomed = pool.apply_async(leave_a_child, (tmp_path,), lost_worker_timeout=0.3)
    others = [pool.apply_async(abs, (-n,)) for n in range(5)]
    with pytest.raises(WorkerLostError) as caught:
        doomed.get(DEADLINE)
    assert time.monotonic() - before >= 0.3
    assert caught.value.exitcode == 1
    assert [r.get(DEADLINE) for r in others] == list(range(5))
    child = int(marked(tmp_path / "child"))
    eventually(lambda: has_ended(child), "the child is killed")


def test_others_do_not_wait(make_pool, tmp_path):
    pool = make_pool(1, lost_worker_timeout=NEVER)
    doomed = pool.apply_async(leave_a_child, (tmp_path,))
    assert pool.apply_async(abs, (-1,)).get(DEADLINE) == 1
    assert not doomed.ready()


def test_the_result_still_comes(context, make_pool, tmp_path):
    pool = make_pool(1, lost_worker_timeout=NEVER, context=context)
    result = pool.apply_async(hand_over_to_a_child, (tmp_path, 5))
    assert pool.apply_async(abs, (-1,)).get(DEADLINE) == 1  # by the successor
    assert not result.ready()
    mark(tmp_path / "go")
    assert result.get(DEADLINE) == 5
    assert (tmp_path / "log").read_text() == "5\n"
    pool.close()
    assert pool.join(DEADLINE)


def test_the_child_dies(make_pool, tmp_path):
    pool = make_pool(1, lost_worker_timeout=NEVER)
    doomed = pool.apply_async(leave_a_child, (tmp_path,))
    os.kill(int(marked(tmp_path / "child")), signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        doomed.get(DEADLINE)


def test_terminate_does_not_wait(make_pool, tmp_path):
    pool = make_pool(1, lost_worker_timeout=NEVER)
    doomed = pool.apply_async(leave_a_child, (tmp_path,))
    child = int(marked(tmp_path / "child"))
    assert pool.apply_async(abs, (-1,)).get(DEADLINE) == 1  # so the death has been noticed
    pool.terminate()
    with pytest.raises(Terminated):
        doomed.get(0)
    eventually(lambda: has_ended(child), "the child is killed")


def test_no_waiting_at_all(make_pool, tmp_path):
    pool = make_pool(1, lost_worker_timeout=0)
    with pytest.raises(WorkerLostError):
        pool.apply_async(leave_a_child, (tmp_path,)).get(DEADLINE)


# --- what a task starts does not hold the outbox


def start_and_die(how, folder):
    match how:
        case "system":
            os.system("sleep 1000 &")
        case "subprocess":
            subprocess.Popen(["sleep", "1000"], close_fds=False)
        case "fork":
            if os.fork() == 0:
                mark(folder / "forked")
                time.sleep(1000)
            marked(folder / "forked")
        case "spawn":
            context = multiprocessing.get_context("spawn")
            context.Process(target=mark, args=(folder / "spawned",)).start()
            marked(folder / "spawned")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", ["system", "subprocess", "fork", "spawn"])
def test_nobody_else_holds_the_outbox(context, make_pool, tmp_path, how):
    """If it did, the job would only fail after `lost_worker_timeout`."""
    pool = make_pool(1, lost_worker_timeout=NEVER, context=context)
    with pytest.raises(WorkerLostError):
        pool.apply_async(start_and_die, (how, tmp_path)).get(DEADLINE)


# --- a child comes back into the worker's loop


def fork_and_return(log, number):
    log_start(log, number)
    os.fork()
    return number


def fork_and_raise(log, number):
    log_start(log, number)
    if os.fork() == 0:
        sys.exit(number)
    return number


class Call:
    """`function(log, item)`, for `map`."""

    def __init__(self, function, log):
        self.function = function
        self.log = log

    def __call__(self, item):
        return self.function(self.log, item)


@pytest.mark.promise(number=2)
@pytest.mark.parametrize("function", [fork_and_return, fork_and_raise])
@pytest.mark.parametrize("call", ["apply", "map", "map in chunks", "imap in chunks"])
def test_a_forked_child_doubles_nothing(context, make_pool, tmp_path, function, call):
    log = tmp_path / "log"
    pool = make_pool(1, context=context)
    task = Call(function, log)
    match call:
        case "apply":
            values = [r.get(DEADLINE) for r in [pool.apply_async(task, (n,)) for n in range(5)]]
        case "map":
            values = pool.map_async(task, range(5), 1).get(DEADLINE)
        case "map in chunks":
            values = pool.map_async(task, range(5), 5).get(DEADLINE)
        case _:
            values = list(pool.imap(task, range(5), 5))
    assert values == list(range(5))
    pool.close()
    assert pool.join(DEADLINE)
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3", "4"]


# --- tasks that leave something running


def leave_a_thread(number):
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return number


def leave_a_process(number):
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)).start()
    return number


def leave_a_process_and_exit():
    leave_a_process(0)
    sys.exit(3)


@pytest.mark.parametrize("task", [leave_a_thread, leave_a_process])
def test_a_worker_leaves_in_spite_of_what_its_task_left(context, make_pool, task, monkeypatch):
    monkeypatch.setattr("prefork._engine.supervisor.EXIT_SECONDS", 0.3)
    pool = make_pool(1, maxtasksperchild=1, context=context)
    assert [pool.apply_async(task, (n,)).get(DEADLINE) for n in range(2)] == [0, 1]
    pool.restart()
    assert pool.apply_async(task, (2,)).get(DEADLINE) == 2
    pool.close()
    assert pool.join(DEADLINE)


def test_exit_in_spite_of_what_the_task_left(context, make_pool):
    pool = make_pool(1, lost_worker_timeout=NEVER, context=context)
    with pytest.raises(WorkerLostError) as caught:
        pool.apply_async(leave_a_process_and_exit).get(DEADLINE)
    assert caught.value.exitcode == 3


# --- processes and pools inside of tasks


def use_a_pool(kind, number):
    if kind == "prefork":
        with Pool(2) as pool:
            return pool.map(abs, range(-number, 0))
    if kind == "closed prefork":
        pool = Pool(2)
        results = pool.map(abs, range(-number, 0))
        pool.close()
        assert pool.join(DEADLINE)
        return results
    if kind == "forgotten prefork":
        return Pool(2).map(abs, range(-number, 0))
    with multiprocessing.get_context(kind).Pool(2) as pool:
        return pool.map(abs, range(-number, 0))


KINDS = ["prefork", "closed prefork", "forgotten prefork", "fork", "spawn"]


@pytest.mark.parametrize("kind", KINDS)
def test_pools_in_tasks(context, make_pool, kind):
    pool = make_pool(2, context=context)
    results = [pool.apply_async(use_a_pool, (kind, n)) for n in range(1, 5)]
    assert [r.get(DEADLINE) for r in results] == [list(range(n, 0, -1)) for n in range(1, 5)]
    pool.close()
    assert pool.join(DEADLINE)


def stay_in_an_inner_pool(path):
    Pool(1).apply(stay, (path,))


def stay(path):
    mark(path, os.getpid())
    time.sleep(1000)


@pytest.mark.promise(number=6)
def test_inner_workers_end_with_the_outer_one(context, make_pool, tmp_path):
    pool = make_pool(1, lost_worker_timeout=NEVER, context=context)
    result = pool.apply_async(stay_in_an_inner_pool, (tmp_path / "inner",))
    inner = int(marked(tmp_path / "inner"))
    os.kill(result.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        result.get(DEADLINE)
    eventually(lambda: has_ended(inner), "the inner worker ends")


# --- what successors inherit


def open_parcels():
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum("payload" in os.readlink(name) for name in names if os.path.lexists(name))


def test_a_successor_inherits_no_waiting_tasks(make_pool, tmp_path):
    """Their memory would stay allocated as long as that worker lives."""
    pool = make_pool(1, context=multiprocessing.get_context("fork"))
    victim = pool.apply_async(stay, (tmp_path / "runs",))
    waiting = [pool.apply_async(len, (b"x" * 1_000_000,)) for _ in range(10)]
    os.kill(int(marked(tmp_path / "runs")), signal.SIGKILL)
    assert [r.get(DEADLINE) for r in waiting] == [1_000_000] * 10
    assert not victim.successful()
    assert pool.apply(open_parcels) == 0


# --- a fork in the middle of an import by another thread

SLOW = """
import os, gate
door = gate.Door({address})
if os.getpid() == {pid}:
    door.enter()
VALUE = 7
"""


def import_value(name):
    return importlib.import_module(name).VALUE


def test_what_another_thread_is_importing(make_pool, gate, tmp_path, monkeypatch):
    """A worker can import it, too: it does not wait for a thread that it does not have."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"slow_{tmp_path.name}"
    source = SLOW.format(address=gate._address, pid=os.getpid())
    (tmp_path / f"{name}.py").write_text(source)
    thread = threading.Thread(target=importlib.import_module, args=(name,))
    thread.start()
    visitor = gate.arrival()
    try:
        pool = make_pool(1, context="fork")
        assert pool.apply_async(import_value, (name,)).get(DEADLINE) == 7
    finally:
        visitor.go()
        thread.join()
        sys.modules.pop(name, None)
