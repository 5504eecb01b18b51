"""Handles and iterators: told by one thread, awaited by others."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import weakref
from typing import Any

import pytest

from prefork._policy.chunks import read_ahead
from prefork._policy.job import Job
from prefork._results.apply import ApplyResult, callbacks_for
from prefork._results.imap import MEASURED, Items
from prefork._results.map import MapResult
from prefork._system.condition import Condition
from prefork.results import IMapIterator, IMapUnorderedIterator


class FakeEngine:
    def check_loop(self, needed=None):
        pass

    def wait_for(self, signal, condition, timeout=None) -> bool:
        return signal.wait(condition, timeout)


class Queue:
    """Calls callbacks at once."""

    def prepare(self):
        pass

    def __call__(self, callback, *args, **kwargs):
        callback(*args, **kwargs)

    def call_then(self, then, callback, *args):
        callback(*args)
        then()

    def is_inside(self):
        return False


def make_engine() -> Any:
    return FakeEngine()


def told(callback=None, error_callback=None, **others):
    queue: Any = Queue()
    return callbacks_for(queue, callback, error_callback, **others)


def pending(**callbacks):
    handle = ApplyResult(None, make_engine(), told(**callbacks))
    job = Job(handle, "len")
    handle.job_added(job)
    return handle, job


def test_a_handle_is_pending_then_ready():
    handle, job = pending()
    assert not handle.ready()
    assert "pending" in repr(handle)
    assert f"job {job.id} len" in repr(handle)
    with pytest.raises(ValueError, match="not ready"):
        handle.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        handle.get(timeout=0)
    handle.job_done(job, True, 5)
    assert handle.ready()
    assert handle.successful()
    assert handle.get(0) == 5


def test_a_failed_handle_raises_each_time():
    handle, job = pending()
    handle.job_done(job, False, KeyError("k"))
    assert not handle.successful()
    for _ in range(2):
        with pytest.raises(KeyError):
            handle.get()


def test_the_right_callback_is_called_once():
    log: list[Any] = []
    for ok in (True, False):
        handle, job = pending(
            callback=lambda value: log.append(("done", value)),
            error_callback=lambda exc: log.append(("failed", exc)),
            accept_callback=lambda pid, when: log.append(("accepted", pid)),
            timeout_callback=lambda soft, timeout: log.append(("limit", soft, timeout)),
        )
        handle.job_started(job, 42, 1.0)
        handle.limit_passed(job, True, 2.0)
        handle.job_done(job, ok, "x")
    assert log == [
        *[("accepted", 42), ("limit", True, 2.0), ("done", "x")],
        *[("accepted", 42), ("limit", True, 2.0), ("failed", "x")],
    ]


def test_a_handle_keeps_its_pool_until_the_result_is_here():
    pool = FakeEngine()
    handle = ApplyResult(pool, make_engine())
    reference = weakref.ref(pool)
    del pool
    assert reference() is not None
    handle.job_done(Job(handle, "len"), True, None)
    gc.collect()
    assert reference() is None


def test_many_threads_wait_for_one_result():
    handle, job = pending()
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(handle.get(30))) for _ in range(20)]
    for thread in threads:
        thread.start()
    if (condition := handle.job_done(job, True, 1)) is not None:
        condition.notify_all()  # as the outcome queue does
    for thread in threads:
        thread.join(30)
    assert got == [1] * 20


def test_no_notification_is_lost():
    """Two threads pass a turn to and fro; a lost wake-up would leave both waiting."""
    signal, turn, rounds = Condition(), [0], 5000

    def play(me: int) -> None:
        for _ in range(rounds):
            assert signal.wait(lambda: turn[0] == me, 30)
            turn[0] = 1 - me
            signal.notify_all()

    other = threading.Thread(target=play, args=(1,))
    other.start()
    play(0)
    other.join(30)
    assert not other.is_alive()


def map_result(length: int, **callbacks):
    return MapResult(None, make_engine(), "f", length, told(**callbacks))


def chunk(owner, index: int, size: int) -> Job:
    job = Job(owner, "len")
    job.index, job.size = index, size
    owner.job_added(job)
    return job


def test_a_map_is_ready_when_all_chunks_are():
    result = map_result(3)
    tail, head = chunk(result, 1, 2), chunk(result, 0, 1)
    result.job_done(tail, True, ["b", "c"])
    assert not result.ready()
    assert "2 of 3 items" in repr(result)
    result.job_done(head, True, ["a"])
    assert result.get() == ["a", "b", "c"]


def test_the_first_error_of_a_map_is_its_error_once_all_chunks_are_finished():
    errors = []
    result = map_result(2, error_callback=errors.append)
    one, two = chunk(result, 0, 1), chunk(result, 1, 1)
    result.job_done(two, False, KeyError(2))
    assert not result.ready()
    result.job_done(one, False, KeyError(1))
    with pytest.raises(KeyError, match="2"):
        result.get()
    assert len(errors) == 1


def test_a_map_of_nothing_is_ready():
    done = []
    assert map_result(0, callback=done.append).get() == []
    assert done == [[]]


def iterator(cls, buffersize=4, chunksize=1):
    ordered = cls is IMapIterator
    return cls(
        Items(
            None,
            make_engine(),
            "f",
            buffersize,
            chunksize,
            workers=1,
            ordered=ordered,
            on_cancel=lambda: None,
        )
    )


def test_imap_keeps_the_order_imap_unordered_does_not():
    for cls, expected in ((IMapIterator, ["a", "b"]), (IMapUnorderedIterator, ["b", "a"])):
        results = iterator(cls)
        jobs = [chunk(results.items, n, 1) for n in range(2)]
        results.items.job_done(jobs[1], True, "b")
        results.items.job_done(jobs[0], True, "a")
        results.items.end()
        assert list(results) == expected


def test_imap_raises_for_an_item_and_goes_on():
    results = iterator(IMapIterator, chunksize=2)
    job = chunk(results.items, 0, 2)
    results.items.job_done(job, True, [(False, KeyError(1)), (True, 2)])
    results.items.end()
    with pytest.raises(KeyError):
        next(results)
    assert next(results) == 2
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_of_the_input_comes_after_its_results_and_ends_the_iteration():
    results = iterator(IMapIterator)
    job = chunk(results.items, 0, 1)
    results.items.end(OSError("disk"))
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(timeout=0)
    results.items.job_done(job, True, 1)
    assert next(results) == 1
    with pytest.raises(OSError, match="disk"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_there_is_room_for_what_the_consumer_has_taken():
    results = iterator(IMapIterator, buffersize=4, chunksize=2)
    items = results.items
    jobs = []
    while items.has_room():
        jobs.append(chunk(items, len(jobs), 2))
    assert len(jobs) == 2
    items.job_done(jobs[0], True, [(True, 1), (True, 2)])
    assert not items.has_room()
    next(results)
    next(results)
    assert items.has_room()


def of_tiny_tasks(results, count):
    items = results.items
    for _ in range(count):
        items.job_done(chunk(items, items.finished_jobs, 1), True, None)


def test_of_tiny_tasks_more_are_read_ahead_while_the_consumer_keeps_up():
    results = iterator(IMapIterator, buffersize=None)
    least = results.items.buffersize
    of_tiny_tasks(results, MEASURED)
    assert results.items.buffersize == read_ahead(1, 0.0) > least
    of_tiny_tasks(results, least)
    assert results.items.buffersize == least
    for _ in range(least):
        next(results)
    of_tiny_tasks(results, MEASURED)
    assert results.items.buffersize > least


def test_results_that_wait_for_an_earlier_one_count_as_not_taken():
    results = iterator(IMapIterator, buffersize=None)
    least = results.items.buffersize
    slow, *others = (chunk(results.items, index, 1) for index in range(least + 2 * MEASURED))
    for job in others:
        results.items.job_done(job, True, None)
    assert results.items.buffersize == least
    results.items.job_done(slow, True, None)


def test_of_longer_tasks_no_more_are_read_ahead():
    results = iterator(IMapIterator, buffersize=None)
    least = results.items.buffersize
    for index in range(2 * MEASURED):
        job = chunk(results.items, index, 1)
        job.seconds = 0.001
        results.items.job_done(job, True, None)
        next(results)
    assert results.items.buffersize == least


def test_a_buffersize_that_was_asked_for_stays():
    results = iterator(IMapIterator, buffersize=4)
    of_tiny_tasks(results, 2 * MEASURED)
    assert results.items.buffersize == 4


def test_a_dropped_iterator_reads_no_more():
    results = iterator(IMapIterator)
    items = results.items
    del results
    gc.collect()
    assert items.cancelled
