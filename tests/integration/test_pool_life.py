"""A pool's life: made, grown, shrunk, restarted, closed, joined, terminated."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gate import enter
from helpers import DEADLINE, eventually, has_ended
from prefork import Pool, Terminated


def square(x):
    return x * x


def pid_of_worker(_=None):
    return os.getpid()


VERBS = {
    "apply": lambda pool: pool.apply(square, (1,)),
    "apply_async": lambda pool: pool.apply_async(square, (1,)),
    "waitforslot": lambda pool: pool.apply_async(square, (1,), waitforslot=True),
    "map": lambda pool: pool.map(square, [1]),
    "map nothing": lambda pool: pool.map(square, []),
    "map_async": lambda pool: pool.map_async(square, [1]),
    "starmap": lambda pool: pool.starmap(square, [(1,)]),
    "starmap_async": lambda pool: pool.starmap_async(square, [(1,)]),
    "imap": lambda pool: pool.imap(square, [1]),
    "imap_unordered": lambda pool: pool.imap_unordered(square, [1]),
    "grow": lambda pool: pool.grow(),
    "shrink": lambda pool: pool.shrink(),
    "restart": lambda pool: pool.restart(),
    "with": lambda pool: pool.__enter__(),
}


# --- close, join


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("end", ["close", "terminate"])
def test_a_pool_that_has_ended_refuses_everything(make_pool, end, verb):
    pool = make_pool(2)
    getattr(pool, end)()
    with pytest.raises(ValueError, match=r"closed|terminated|ended"):
        VERBS[verb](pool)
    assert pool.join(DEADLINE)
    with pytest.raises(ValueError, match=r"closed|terminated|ended"):
        VERBS[verb](pool)


@pytest.mark.promise(number=1)
def test_a_closed_pool_finishes_its_jobs(context, make_pool):
    pool = make_pool(2, context=context)
    handles = [pool.apply_async(square, (x,)) for x in range(100)]
    big = pool.map_async(square, range(1000))
    pool.close()
    assert pool.join(DEADLINE)
    assert all(handle.ready() for handle in [*handles, big])
    assert [handle.get(0) for handle in handles] == [x * x for x in range(100)]
    assert big.get(0) == [x * x for x in range(1000)]


def test_join_before_close_is_an_error(make_pool):
    pool = make_pool(1)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    assert pool.apply(square, (3,)) == 9


def test_join_says_whether_all_is_over(make_pool, gate):
    pool = make_pool(1)
    handle = pool.apply_async(enter, (gate, 5))
    visitor = gate.arrival()
    pool.close()
    assert pool.join(0) is False
    assert pool.join(timeout=0.01) is False
    visitor.go()
    assert pool.join(DEADLINE) is True
    assert pool.join() is True
    assert handle.get(0) == 5


def test_close_twice_is_once(make_pool):
    pool = make_pool(1)
    pool.close()
    pool.close()
    assert pool.join(DEADLINE)
    pool.close()
    pool.terminate()
    assert pool.join(DEADLINE)


@pytest.mark.promise(number=6)
def test_after_join_no_worker_is_left(context, make_pool):
    pool = make_pool(2, context=context)
    pids = {pool.apply(pid_of_worker) for _ in range(10)}
    pool.close()
    assert pool.join(DEADLINE)
    assert all(has_ended(pid) for pid in pids)


# --- terminate


def test_terminate_fails_what_is_not_finished(context, make_pool, gate):
    pool = make_pool(1, context=context)
    finished = pool.apply_async(square, (3,))
    finished.wait(DEADLINE)
    running = pool.apply_async(enter, (gate,))
    queued = [pool.apply_async(square, (x,)) for x in range(500)]
    many = pool.map_async(square, range(500))
    visitor = gate.arrival()
    pool.terminate()
    assert has_ended(visitor.pid)
    assert finished.get(0) == 9
    for handle in [running, *queued, many]:
        with pytest.raises(Terminated, match="terminated before this job had finished"):
            handle.get(DEADLINE)
    assert pool.join(DEADLINE)


def test_a_terminated_job_keeps_what_is_known_of_it(make_pool, gate):
    pool = make_pool(1)
    handle = pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    started = handle.time_accepted
    pool.terminate()
    handle.wait(DEADLINE)
    assert handle.accepted()
    assert handle.pid == visitor.pid
    assert handle.time_accepted == started


def test_terminate_twice_and_from_many_threads(make_pool, gate):
    pool = make_pool(2)
    handles = [pool.apply_async(enter, (gate,)) for _ in range(2)]
    gate.arrival()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: pool.terminate(), range(4), timeout=DEADLINE))
    pool.terminate()
    assert pool.join(DEADLINE)
    assert all(handle.ready() for handle in handles)


@pytest.mark.promise(number=1)
def test_terminate_wakes_all_who_wait(make_pool, gate):
    pool = make_pool(1)
    handle = pool.apply_async(enter, (gate,))
    gate.arrival()
    calls = [
        handle.get,
        lambda: pool.apply(square, (1,)),
        lambda: pool.map(square, [1, 2, 3]),
        lambda: pool.map(square, range(1000), 1),
        lambda: list(pool.imap(square, range(1000))),
        lambda: pool.apply_async(square, (1,), waitforslot=True).get(),
    ]
    with ThreadPoolExecutor(len(calls)) as threads:
        futures = [threads.submit(call) for call in calls]
        pool.terminate()
        # ValueError, if it came too late to be taken.
        assert all(
            isinstance(future.exception(DEADLINE), (Terminated, ValueError)) for future in futures
        )


def test_terminate_ends_a_close_that_is_under_way(make_pool, gate):
    pool = make_pool(1)
    handle = pool.apply_async(enter, (gate,))
    gate.arrival()
    pool.close()
    assert not pool.join(0.01)
    pool.terminate()
    assert pool.join(DEADLINE)
    with pytest.raises(Terminated):
        handle.get(0)


@pytest.mark.promise(number=1)
def test_terminate_at_once():
    for _ in range(10):
        pool = Pool(2)
        handle = pool.apply_async(square, (1,))
        pool.terminate()
        assert pool.join(DEADLINE)
        assert handle.ready()


# --- with


def test_with_terminates(gate):
    with Pool(2) as pool:
        assert isinstance(pool, Pool)
        assert pool.apply(square, (3,)) == 9
        handle = pool.apply_async(enter, (gate,))
        visitor = gate.arrival()
    assert has_ended(visitor.pid)
    with pytest.raises(Terminated):
        handle.get(DEADLINE)
    assert pool.join(DEADLINE)


def test_with_lets_errors_through():
    with pytest.raises(KeyError), Pool(1) as pool:
        pool.apply({}.__getitem__, ("x",))  # type: ignore[arg-type]


# --- making one


def test_processes_default_to_the_cpus(make_pool):
    assert 1 <= make_pool().processes <= multiprocessing.cpu_count()


def test_initializer_runs_in_each_worker_first(context, make_pool):
    pool = make_pool(2, initialize, ("a", ["b"]), context=context)
    assert pool.map(initialized, range(20), 1) == [("a", ["b"])] * 20


def initialize(*args):
    global initargs
    assert initargs is None  # so it is called once
    initargs = args


initargs: tuple[object, ...] | None = None


def initialized(_):
    return initargs


def test_repr(make_pool):
    pool = make_pool(2)
    assert repr(pool) == "<Pool: running, 2 processes>"
    pool.close()
    assert repr(pool) == "<Pool: closed, 2 processes>"
    assert pool.join(DEADLINE)
    assert repr(pool) == "<Pool: ended, 2 processes>"


def test_a_pool_is_not_pickled_or_copied(make_pool):
    pool = make_pool(1)
    with pytest.raises(NotImplementedError, match="cannot be passed between processes or pickled"):
        pickle.dumps(pool)
    with pytest.raises(NotImplementedError, match="cannot be passed between processes or pickled"):
        pool.apply(square, (pool,))
    assert pool.apply(square, (3,)) == 9


# --- workers come and go


@pytest.mark.parametrize("tasks", [1, 3])
def test_maxtasksperchild(context, make_pool, tasks):
    pool = make_pool(1, maxtasksperchild=tasks, context=context)
    pids = [pool.apply(pid_of_worker) for _ in range(3 * tasks)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [tasks] * 3


def test_maxtasksperchild_loses_nothing(make_pool):
    pool = make_pool(2, maxtasksperchild=2, context="fork")
    assert pool.map(square, range(40), 1) == [x * x for x in range(40)]
    assert len(set(pool.map(pid_of_worker, range(8), 1))) >= 4


def test_a_chunk_is_one_task_to_maxtasksperchild(make_pool):
    pool = make_pool(1, maxtasksperchild=2)
    pids = pool.map(pid_of_worker, range(20), 5)
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [10, 10]


def at_work(pool, gate, count):
    """So many tasks of the pool that run at the same time."""
    handles = [pool.apply_async(enter, (gate,)) for _ in range(count)]
    return handles, [gate.arrival() for _ in range(count)]


def test_grow_adds_workers(context, make_pool, gate):
    pool = make_pool(1, context=context)
    pool.grow()
    pool.grow(2)
    assert pool.processes == 4
    handles, visitors = at_work(pool, gate, 4)
    assert len({visitor.pid for visitor in visitors}) == 4
    for visitor in visitors:
        visitor.go()
    for handle in handles:
        handle.get(DEADLINE)


def test_new_workers_take_what_is_waiting(make_pool, gate):
    pool = make_pool(1)
    handles = [pool.apply_async(enter, (gate,)) for _ in range(3)]
    visitors = [gate.arrival()]
    pool.grow(2)
    visitors += [gate.arrival(), gate.arrival()]
    assert len({visitor.pid for visitor in visitors}) == 3
    for visitor in visitors:
        visitor.go()
    assert [handle.get(DEADLINE) for handle in handles] == [None] * 3


def test_grow_then_map(make_pool):
    pool = make_pool(1)
    pool.grow(2)
    assert pool.map(square, range(100)) == [x * x for x in range(100)]
    assert "3 processes" in repr(pool)


def test_shrink_lets_busy_workers_finish(context, make_pool, gate):
    pool = make_pool(3, context=context)
    handles, visitors = at_work(pool, gate, 3)
    pool.shrink(2)
    assert pool.processes == 1
    for visitor in visitors:
        visitor.go()
    for handle in handles:
        assert handle.get(DEADLINE) is None
    pids = [visitor.pid for visitor in visitors]
    eventually(lambda: sum(map(has_ended, pids)) == 2, "two workers leave")
    assert pool.map(square, range(100)) == [x * x for x in range(100)]
    assert sum(map(has_ended, pids)) == 2


def test_one_worker_must_be_left(make_pool):
    pool = make_pool(2)
    for n in (2, 3, 100):
        with pytest.raises(ValueError, match=f"shrink 2 processes by {n}: one must be left"):
            pool.shrink(n)
    pool.shrink()
    with pytest.raises(ValueError, match="one must be left"):
        pool.shrink()
    assert pool.processes == 1
    assert pool.apply(square, (3,)) == 9


@pytest.mark.parametrize("verb", ["grow", "shrink"])
def test_grow_and_shrink_want_a_count(make_pool, verb):
    pool = make_pool(2)
    for n, error in [(0, ValueError), (-1, ValueError), (1.0, TypeError), ("1", TypeError)]:
        with pytest.raises(error, match=f"n must be .*{n}"):
            getattr(pool, verb)(n)
    assert pool.processes == 2


def test_restart_replaces_all_workers(context, make_pool, gate):
    pool = make_pool(2, context=context)
    handles, visitors = at_work(pool, gate, 2)
    before = {visitor.pid for visitor in visitors}
    pool.restart()
    later, new_visitors = at_work(pool, gate, 2)  # while the old ones are still busy
    assert before.isdisjoint(visitor.pid for visitor in new_visitors)
    for visitor in visitors + new_visitors:
        visitor.go()
    for handle in handles + later:
        assert handle.get(DEADLINE) is None
    eventually(lambda: all(map(has_ended, before)), "the old workers leave")
    assert pool.processes == 2


def test_the_pool_works_while_its_size_changes(make_pool):
    pool = make_pool(2)
    done = threading.Event()

    def change():
        while not done.is_set():
            pool.grow(2)
            pool.restart()
            pool.shrink(2)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(5):
            assert pool.map_async(square, range(200), 1).get(DEADLINE) == [
                x * x for x in range(200)
            ]
    finally:
        done.set()
        changer.join(DEADLINE)
    pool.close()
    assert pool.join(DEADLINE)
