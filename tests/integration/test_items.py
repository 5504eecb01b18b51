"""Several calls travel together and have outcomes of their own: what happens to one of them
happens to no other."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from gate import enter
from helpers import DEADLINE, METHODS, NEVER, eventually, log_start
from prefork import (
    ProcessPoolExecutor,
    Retry,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)


def collect(results):
    """Each result, or the class of the error in its place."""
    found = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            return found
        except Exception as exc:
            found.append(type(exc))


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def exit_at_once():
    os._exit(3)


def hang():
    time.sleep(NEVER)


def fail():
    raise KeyError("its own")


DEEDS = {"k": be_killed, "x": exit_at_once, "e": sys.exit, "h": hang, "f": fail}
ERRORS = {
    "k": WorkerLostError,
    "x": WorkerLostError,
    "e": WorkerLostError,
    "h": TimeLimitExceeded,
    "f": KeyError,
}


def do(item):
    path, number, deed = item
    log_start(path, number)
    if deed in DEEDS:
        DEEDS[deed]()
    return number


def starts(path):
    return collections.Counter(int(line) for line in Path(path).read_text().split())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("deeds", ["..k..", "k....", "....k", "kk", ".x.e.k.f.", "..h..", "h.kh"])
def test_only_the_guilty_one_fails_and_each_runs_once(make_pool, tmp_path, method, deeds):
    # The initializer has workers import this module before their first task's clock starts.
    pool = make_pool(2, starts, (os.devnull,), context=method, timeout=1 if "h" in deeds else None)
    log = tmp_path / "log"
    items = [(log, number, deed) for number, deed in enumerate(deeds)]
    expected = [ERRORS.get(deed, number) for number, deed in enumerate(deeds)]
    assert collect(pool.imap(do, items, chunksize=len(items))) == expected
    assert starts(log) == dict.fromkeys(range(len(items)), 1)


@pytest.mark.parametrize("verb", ["imap_unordered", "each_async"])
def test_by_other_verbs(make_pool, tmp_path, verb):
    pool = make_pool(2)
    items = [(tmp_path / "log", number, "k" if number % 7 == 3 else ".") for number in range(50)]
    if verb == "each_async":
        found = [
            each.value if each.ok else type(each.value)
            for each in pool.each_async(do, items).get(DEADLINE)
        ]
    else:
        found = collect(pool.imap_unordered(do, items, chunksize=10))
    expected = [WorkerLostError if deed == "k" else number for _, number, deed in items]
    assert collections.Counter(found) == collections.Counter(expected)
    assert set(starts(tmp_path / "log").values()) == {1}


def test_by_an_executor(tmp_path):
    items = [(tmp_path / "log", number, "x" if number == 4 else ".") for number in range(8)]
    with ProcessPoolExecutor(2) as executor:
        results = executor.map(do, items, chunksize=8)
        assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(WorkerLostError):
            next(results)


def die_once(item):
    """The items 2 and 4 need a second try."""
    path, number = item
    log_start(path, number)
    if number in (2, 4) and starts(path)[number] == 1:
        be_killed()
    return number


def test_a_retry_is_for_the_guilty_one(make_pool, tmp_path):
    pool = make_pool(1).options(retries=2)
    items = [(tmp_path / "log", number) for number in range(6)]
    assert collect(pool.imap(die_once, items, chunksize=6)) == list(range(6))
    assert starts(tmp_path / "log") == {0: 1, 1: 1, 2: 2, 3: 1, 4: 2, 5: 1}


def test_when_there_are_no_more_retries_the_others_go_on(make_pool, tmp_path):
    pool = make_pool(1).options(retries=1)
    items = [(tmp_path / "log", number) for number in range(6)]
    assert collect(pool.imap(die_once, items, chunksize=6)) == [0, 1, 2, 3, WorkerLostError, 5]


def pause_in_the_middle(item):
    gate, number = item
    return enter(gate) if number == 3 else number


def test_one_that_is_killed_from_outside(make_pool, gate):
    pool = make_pool(2)
    results = pool.imap(pause_in_the_middle, [(gate, n) for n in range(6)], chunksize=6)
    os.kill(gate.arrival().pid, signal.SIGKILL)
    assert collect(results) == [0, 1, 2, WorkerLostError, 4, 5]


def test_what_is_done_survives_the_end_of_the_pool(make_pool, gate):
    pool = make_pool(1)
    handle = pool.each_async(pause_in_the_middle, [(gate, n) for n in range(6)])
    gate.arrival()
    pool.terminate()
    outcomes = handle.get(DEADLINE)
    assert [each.value for each in outcomes[:3]] == [0, 1, 2]
    assert [type(each.value) for each in outcomes[3:]] == [Terminated] * 3


def test_a_job_that_is_terminated_does_not_go_on(make_pool, gate, tmp_path):
    pool = make_pool(1)
    handle = pool.each_async(pause_in_the_middle, [(gate, n) for n in range(6)])
    gate.arrival()
    assert handle.terminate()
    outcomes = handle.get(DEADLINE)
    assert [each.value for each in outcomes[:3]] == [0, 1, 2]
    assert not any(each.ok for each in outcomes[3:])


class Bomb:
    """It kills whoever unpickles it."""

    def __reduce__(self):
        return be_killed, ()


def test_what_cannot_be_unpickled_costs_one_worker(make_pool):
    pool = make_pool(1)
    pids = {pool.apply(os.getpid)}
    assert collect(pool.imap(type, [1, Bomb(), 2, 3], chunksize=4)) == [WorkerLostError] * 4
    pids.add(pool.apply(os.getpid))
    assert len(pids) == 2
    eventually(lambda: len(pool.statistics().exits) == 1, "it is the only one that died")


def large(item):
    if item == "k":
        be_killed()
    return bytes([item % 256]) * (item * 1000)


def test_large_results_survive_as_well(make_pool):
    pool = make_pool(2)
    items = [10, 200, 70, "k", 1, 300, 2, "k", 80]
    found = collect(pool.imap(large, items, chunksize=len(items)))
    assert found == [WorkerLostError if item == "k" else large(item) for item in items]


def array(item):
    numpy = pytest.importorskip("numpy")
    if item == "k":
        be_killed()
    return numpy.full(item, item)


def test_arrays_can_be_written_to(make_pool):
    pytest.importorskip("numpy")
    found = collect(make_pool(1).imap(array, [10, 5000, "k", 20], chunksize=4))
    arrays = [each for each in found if each is not WorkerLostError]
    for each in arrays:
        each[:] = 1
    assert [len(each) for each in arrays] == [10, 5000, 20]


def pipe_end(item):
    """A result that has a descriptor."""
    if item == "k":
        be_killed()
    import multiprocessing

    receiver, sender = multiprocessing.Pipe(duplex=False)
    sender.send(item)
    sender.close()
    return receiver


def test_descriptors_survive_as_well(make_pool):
    found = collect(make_pool(1).imap(pipe_end, [1, 2, "k", 3], chunksize=4))
    assert [each if each is WorkerLostError else each.recv() for each in found] == [
        1,
        2,
        WorkerLostError,
        3,
    ]


def draw(item):
    if item == "k":
        be_killed()
    return random.random()


def test_random_numbers_are_those_of_the_item(make_pool):
    pool = make_pool(2)
    items = [0, 1, "k", 3, 4]
    found = collect(pool.imap(draw, items, chunksize=5, seed=1))
    assert found[2] is WorkerLostError
    items[2] = 2
    undisturbed = pool.map(draw, items, seed=1)
    assert found[:2] + found[3:] == undisturbed[:2] + undisturbed[3:]


def fork_and_return(item):
    """The child comes back into the loop over the items."""
    if item == 1 and os.fork() == 0:
        return "from the child"
    return item


def test_a_child_of_a_task_does_no_other_items(make_pool):
    assert collect(make_pool(1).imap(fork_and_return, range(4), chunksize=4)) == [0, 1, 2, 3]


def exceed_softly(item):
    if item == 2:
        hang()
    return item


def test_a_soft_limit_is_one_items(make_pool):
    pool = make_pool(1, soft_timeout=1.0)  # enough for all others
    found = collect(pool.imap(exceed_softly, range(5), chunksize=5))
    assert found == [0, 1, SoftTimeLimitExceeded, 3, 4]


def dawdle(item):
    path, number = item
    log_start(path, number)
    for _ in range(number % 5 * 50):
        pass
    return number


@pytest.mark.parametrize("method", METHODS)
def test_workers_are_killed_at_any_time(make_pool, tmp_path, method):
    """Each item has one outcome, runs once at most, and is right or lost. A death costs one item;
    or what is left of a chunk, if that was still being unpickled."""
    pool = make_pool(2, context=method, max_restarts=1000)
    log = tmp_path / "log"
    log.touch()
    items = [(log, number) for number in range(3000)]
    dice = random.Random(5)
    results = pool.imap(dawdle, items, chunksize=100)
    found = []
    kills = 0
    while len(found) < len(items):
        try:
            found.append(next(results))
        except WorkerLostError:
            found.append(None)
        if dice.random() < 0.01:
            workers = pool.statistics().workers
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(workers).pid, signal.SIGKILL)
                kills += 1
    assert all(value in (None, number) for number, value in enumerate(found))
    ran = starts(log)
    assert set(ran.values()) == {1}
    assert all(number in ran for number, value in enumerate(found) if value is not None)
    losses = [n for n, value in enumerate(found) if value is None]
    runs = [n for n in losses if n % 100 == 0 or n - 1 not in losses]
    assert len(runs) <= kills
    eventually(lambda: len(pool.statistics().workers) == 2, "they have been replaced")


def fork_and_die(item):
    """The child comes back, and only then is its parent killed."""
    if item == 2:
        if (child := os.fork()) == 0:
            return "from the child"
        os.waitpid(child, 0)
        be_killed()
    return item


def test_a_child_that_comes_back_changes_nothing_of_what_is_noted(make_pool):
    found = collect(make_pool(1).imap(fork_and_die, range(5), chunksize=5))
    assert found == [0, 1, WorkerLostError, 3, 4]


def fail_once(item):
    path, number, size = item
    log_start(path, number)
    if number == 1 and starts(path)[number] == 1:
        raise ValueError(number)
    return bytes(size)


def test_an_error_that_is_to_be_retried_is_so_whatever_the_others_return(make_pool, tmp_path):
    pool = make_pool(1).options(retries=Retry(2, on=ValueError))
    items = [(tmp_path / "log", number, 100_000 * number) for number in range(4)]
    found = collect(pool.imap(fail_once, items, chunksize=4))
    assert [len(each) for each in found] == [size for *_, size in items]


def leave_by_a_raw_fork(item):
    """The child knows of no hook, and its `sys.exit` is not the worker's."""
    if item[1] == 1:
        if ctypes.CDLL(None).fork() == 0:
            sys.exit()
        os.waitpid(-1, 0)
    log_start(*item)
    return item[1]


def test_what_a_child_of_a_task_exits_with_is_its_own_affair(make_pool, tmp_path):
    items = [(tmp_path / "log", number) for number in range(4)]
    assert collect(make_pool(1).imap(leave_by_a_raw_fork, items, chunksize=4)) == [0, 1, 2, 3]
    assert starts(tmp_path / "log") == dict.fromkeys(range(4), 1)
