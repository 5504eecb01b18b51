"""The process that later workers are forked from: what they inherit, and what if it is lost."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import sys
import threading
import time

import pytest

from helpers import DEADLINE, eventually, has_ended, mark, mark_and_stay, marked, process, stop
from inside import templates
from prefork import Pool, WorkerLostError
from prefork._system.process import Process

LOCK = threading.Lock()
VALUE = "as it was when the pool was made"


def template_of(pool):
    """The process that a worker was forked from, when that is ready: later ones will be, too."""

    def look():
        pid = pool.apply(os.getppid)
        return pid if pid != os.getpid() else None  # some of the first are children of this process

    return eventually(look, "a worker comes from a template")


def origin():
    me = multiprocessing.current_process()
    parent = multiprocessing.parent_process()
    return os.getpid(), os.getppid(), parent.pid, me.name, me._identity


def end_process(code):
    raise SystemExit(code)


def lose_worker(pool, code=3):
    with pytest.raises(WorkerLostError) as caught:
        pool.apply_async(end_process, (code,)).get(DEADLINE)
    return caught.value


@pytest.fixture(params=[True, False], ids=["threads", "loop"])
def pool(request, make_pool):
    return make_pool(1, context="fork", threads=request.param)


def test_later_workers_are_forked_from_one_process(pool):
    template = template_of(pool)
    found = [pool.apply(origin)]
    for code in (3, 4):
        assert lose_worker(pool, code).exitcode == code
        found.append(pool.apply(origin))
    assert {ppid for _, ppid, *_ in found} == {template}
    assert {parent for _, _, parent, *_ in found} == {os.getpid()}
    assert [name for *_, name, _ in found] == [f"PreforkWorker-{n}" for n in (1, 2, 3)]
    numbers = [identity[-1] for *_, identity in found]
    assert numbers == sorted(set(numbers))

    def are_known():
        # A successor may be at work before the one before it is accounted for; and without threads
        # nothing is, unless somebody waits for the pool.
        pool.apply(origin)
        return [left.exitcode for left in pool.statistics().exits] == [3, 4]

    eventually(are_known, "both are known")


def take_lock():
    return LOCK.acquire(timeout=1)


def test_a_lock_that_is_held_here_is_free_there(pool):
    template_of(pool)
    with LOCK:
        lose_worker(pool)
        assert pool.apply(take_lock)


def get_value():
    return VALUE


def test_later_workers_find_the_program_as_it_was_until_a_restart(pool, monkeypatch):
    template = template_of(pool)
    monkeypatch.setattr(sys.modules[__name__], "VALUE", "as it is now")
    lose_worker(pool)
    assert pool.apply(get_value) == "as it was when the pool was made"
    old = pool.apply(os.getpid)
    pool.restart()
    eventually(lambda: pool.apply(get_value) == "as it is now", "workers are replaced")
    eventually(lambda: [pool.apply(abs, (0,)), has_ended(old)][1], "the old one leaves")
    lose_worker(pool)
    assert pool.apply(get_value) == "as it is now"
    assert template_of(pool) != template


@pytest.mark.promise(number=1)
def test_a_template_that_is_lost_is_replaced(pool):
    lost = template_of(pool)
    os.kill(lost, signal.SIGKILL)
    eventually(lambda: has_ended(lost), "it ends")
    lose_worker(pool, 3)
    assert pool.apply(abs, (-1,)) == 1
    new = template_of(pool)
    assert new != lost
    assert lose_worker(pool, 5).exitcode == 5
    assert pool.apply(abs, (-2,)) == 2


def test_a_template_that_was_stopped_is_continued(pool):
    template = template_of(pool)
    for code in (3, 5):
        stop(template)
        assert lose_worker(pool, code).exitcode == code
        assert pool.apply(abs, (-1,)) == 1
    assert template_of(pool) == template


@pytest.mark.promise(number=6)
@pytest.mark.parametrize("end", ["terminate", "close"])
def test_it_ends_with_the_pool(pool, end):
    template = template_of(pool)
    lose_worker(pool)
    workers = [worker.pid for worker in pool.statistics().workers]
    getattr(pool, end)()
    assert pool.join(DEADLINE)
    assert process(template) is None
    assert all(map(has_ended, workers))


DISMISSED = """
import ctypes, multiprocessing, sys
from helpers import DEADLINE, children, stop
from prefork._system.lifeline import Lifeline
from prefork._system.child import Child, Ties
from prefork._system.process import Process
from prefork._system.template import Template

PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
lifeline = Lifeline()
template = Template(lifeline.end)
context = multiprocessing.get_context("fork")
child = Child(Process, context, "child", int, (), ties=Ties(lifeline, template))
child.start()
child.look_after()
assert child.wait(DEADLINE)
child.ask_status()
if sys.argv[1] == "retired":
    template.retire()
stop(template.pid)
assert child.collect() == 0
child.close()
template.close()
print(children())
"""


@pytest.mark.parametrize("how", ["retired", "closed"])
def test_it_reaps_all_that_it_was_told_of_before_it_ends(script, how):
    """What it has left would be this script's, which adopts orphans."""
    assert script(DISMISSED, how).finish() == (0, "[]\n", "")


def test_a_template_among_threads_is_accepted_when_its_first_worker_is_ready(make_pool, tmp_path):
    """It may have inherited a lock that nobody releases: here the initializer waits for one."""
    pool = make_pool(1, wait_for_mark, (tmp_path / "go",), context="fork")
    (first,) = pool.statistics().workers
    template = process(first.pid).parent
    assert template != os.getpid()
    pool.grow()
    assert parents(pool, 2) == sorted([template, os.getpid()])  # it cannot be relied upon yet
    mark(tmp_path / "go")
    assert pool.apply(abs, (-1,)) == 1
    eventually(lambda: {w.state for w in pool.statistics().workers} == {"idle"}, "all are ready")
    pool.grow()
    assert parents(pool, 3) == sorted([template, template, os.getpid()])


def parents(pool, count):
    """Of so many workers."""
    eventually(lambda: len(pool.statistics().workers) == count, "they are started")
    return sorted(process(worker.pid).parent for worker in pool.statistics().workers)


def wait_for_mark(path):
    marked(path)


class Signalled(Process):
    """Is sent a signal when it is newly born."""

    def run(self):
        os.kill(os.getpid(), signal.SIGURG)
        super().run()


def test_a_newborn_worker_runs_no_handler_of_its_parent(tmp_path):
    class OwnPool(Pool):
        Process = Signalled  # type: ignore[assignment]

    before = signal.signal(signal.SIGURG, lambda *_: mark(tmp_path / "ran"))
    try:
        with OwnPool(2, context="fork", maxtasksperchild=1) as pool:
            assert pool.map(abs, range(6), 1) == list(range(6))
            blocked = pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, []))
    finally:
        signal.signal(signal.SIGURG, before)
    assert not (tmp_path / "ran").exists()
    assert blocked == signal.pthread_sigmask(signal.SIG_BLOCK, [])


# --- a program full of threads


@contextlib.contextmanager
def busy_threads(folder):
    """Threads that log, import and use sqlite."""
    end = threading.Event()
    handler = logging.FileHandler(folder / "log")
    logger = logging.getLogger("storm")
    logger.propagate = False
    logger.addHandler(handler)

    def be_busy(number):
        while not end.wait(0.0001):
            logger.warning("busy")
            sys.modules.pop(NAMES[number], None)
            __import__(NAMES[number])
            sqlite3.connect(":memory:").close()

    threads = [threading.Thread(target=be_busy, args=(n,)) for n in range(len(NAMES))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()
        logger.removeHandler(handler)
        handler.close()


NAMES = ("colorsys", "stringprep", "sched")


def do_the_same(number):
    logging.getLogger("storm").warning("in a worker")
    for name in NAMES:
        __import__(name)
    sqlite3.connect(":memory:").close()
    return number


@pytest.mark.promise(number=1)
def test_workers_are_replaced_while_threads_hold_locks(make_pool, tmp_path, recwarn):
    logging.getLogger("storm")
    pool = make_pool(2, context="fork", maxtasksperchild=1)
    template_of(pool)
    recwarn.clear()
    with busy_threads(tmp_path):
        results = [pool.apply_async(do_the_same, (n,)) for n in range(60)]
        assert [result.get(DEADLINE) for result in results] == list(range(60))
    assert not [w for w in recwarn if "fork" in str(w.message)]


def stay_or_return(path):
    """Once for ever, then not."""
    if path.exists():
        return "again"
    mark_and_stay(path)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_stopped_worker_that_ends_with_its_template_is_accounted_for(
    make_pool, tmp_path, retries
):
    """The kernel ends the stopped processes of a group that has lost its last link to its session,
    as a worker does whose template is killed; see `template.py`."""
    pool = make_pool(1, context="fork")
    template = template_of(pool)
    guilty = pool.apply_async(stay_or_return, (tmp_path / "pid",), retries=retries)
    innocent = pool.apply_async(abs, (-1,))
    worker = int(marked(tmp_path / "pid"))
    stop(worker)
    os.kill(template, signal.SIGKILL)
    if retries:
        assert guilty.get(DEADLINE) == "again"
    else:
        with pytest.raises(WorkerLostError) as caught:
            guilty.get(DEADLINE)
        assert (caught.value.pid, caught.value.exitcode) == (worker, None)
    assert innocent.get(DEADLINE) == 1
    assert [(left.pid, left.exitcode) for left in pool.statistics().exits] == [(worker, None)]


def test_jobs_survive_that_templates_are_lost_all_the_time(make_pool):
    pool = make_pool(2, context="fork", maxtasksperchild=2)
    made, results = set(), []
    for n in range(25):
        results += [pool.apply_async(abs, (-n,)) for _ in range(2)]
        if n % 3:  # else they are lost while others are being made
            results[-1].wait(DEADLINE)
        for template in templates(pool):
            if template.pid and not template.is_lost:
                made.add(template)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(template.pid, random.choice((signal.SIGKILL, signal.SIGSTOP)))
    assert [result.get(DEADLINE) for result in results] == [n // 2 for n in range(50)]
    pool.close()
    assert pool.join(DEADLINE)
    assert len(made) > 5
    assert all(process(template.pid) is None for template in made)


KILLED = """
import os, signal, time
from helpers import process, stop
from prefork import Pool, WorkerLostError

pool = Pool(2, context="fork", maxtasksperchild=1)
while (template := pool.apply(os.getppid)) == os.getpid():
    pass  # a child of this process, as some of the first workers are
pool.apply_async(time.sleep, (3600,))
pool.apply_async(time.sleep, (3600,))
stop(template)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.promise(number=6)
def test_a_fork_handler_that_ends_each_child_breaks_the_pool_at_once(script):
    code, out, err = script(
        """
import os
from prefork import Pool, PoolBrokenError
os.register_at_fork(after_in_child=lambda: os._exit(1))
try:
    Pool(1, context="fork")
except PoolBrokenError as exc:
    print(exc)
"""
    ).finish()
    assert (code, err) == (0, "")
    assert "register_at_fork" in out


def test_a_stopped_template_ends_with_the_pools_process(script):
    program = script(KILLED)
    program.process.wait(DEADLINE)
    eventually(lambda: program.leftovers() == {}, "nothing is left")


# --- descriptors

LIMITED = """
import resource, sys
from prefork import Pool

soft, hard, count = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    pool = Pool(count, context="fork", maxtasksperchild=1)
except OSError as exc:
    sys.exit(str(exc))
limits = set(pool.map(resource.getrlimit, [resource.RLIMIT_NOFILE] * 2 * count, 1))
pool.terminate()
print(limits == {(soft, hard)}, resource.getrlimit(resource.RLIMIT_NOFILE)[0] > soft)
"""


def test_the_soft_limit_is_raised_for_a_pool_and_not_for_its_workers(script):
    assert script(LIMITED, 40, 400, 12).finish() == (0, "True True\n", "")


def test_a_pool_that_needs_more_than_the_hard_limit_says_so(script):
    code, _, err = script(LIMITED, 40, 60, 20).finish()
    assert code == 1
    assert "RLIMIT_NOFILE allows 60 (hard limit 60)" in err


def test_descriptors_for_each_worker():
    def used(count):
        with Pool(count, context="fork") as pool:
            pool.map(abs, range(100))
            return len(os.listdir("/proc/self/fd"))

    assert (used(9) - used(1)) / 8 <= 7


def test_the_limit_is_the_same_afterwards_if_it_suffices(make_pool):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    make_pool(2, context="fork")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_a_worker_may_wait_for_all_its_children(make_pool):
    """It has none but those that its tasks make."""
    pool = make_pool(1, context="fork")
    assert pool.apply_async(wait_for_all).get(DEADLINE)
    lose_worker(pool)
    assert pool.apply_async(wait_for_all).get(DEADLINE)


def wait_for_all():
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    return True


def test_time_passes_for_nobody():
    """An idle template does nothing at all."""
    with Pool(1, context="fork") as pool:
        template = template_of(pool)

        def switches():
            with open(f"/proc/{template}/status", errors="replace") as status:
                return [line for line in status if "ctxt_switches" in line]

        def is_quiet():
            before = switches()
            time.sleep(0.2)
            return switches() == before

        pool.apply(abs, (1,))
        eventually(is_quiet, "it sleeps")
