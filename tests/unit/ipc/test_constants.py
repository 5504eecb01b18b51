"""Constants on their way: beside jobs, through the annex, and forgotten again."""

from __future__ import annotations

import errno
import functools
import gc
import os
import pickle
from collections.abc import Iterator

import pytest

from prefork._ipc import constants
from prefork._ipc.channel import MAX_TICKETS, Channel
from prefork._ipc.constants import FUNCTION, Constant, ConstantFile, Mentions, Use, hold, mention
from prefork._ipc.memfd import Transport
from prefork._ipc.once import LARGE, Once, load_once, once
from prefork._ipc.payload import FILE, FdSocket, FilePayload
from prefork._ipc.pickling import CallPickler
from prefork._ipc.shared import Shared, is_held, share
from prefork._ipc.wire import BESIDE, BESIDE_IN_ANNEX, Kind
from prefork._ipc.worker_end import WorkerEnd
from prefork._system import std_internals

TRANSPORTS = [Transport(True, True), Transport(False, False)]
DATA = bytes(range(256)) * 2048


@pytest.fixture(params=TRANSPORTS, ids=["memfd-seqpacket", "file-dgram"])
def pair(request) -> Iterator[tuple[Channel, WorkerEnd]]:
    pool = Channel(request.param)
    pool.open()
    worker = pool.take_worker_end()
    worker.open()
    yield pool, worker
    pool.close()
    worker.close()


@pytest.fixture(params=[False, True], ids=["sent", "copied"])
def is_copied(request, monkeypatch) -> bool:
    """Whether descriptors cannot be sent."""
    if request.param:

        def refuse(self, job, what, fds):
            raise OSError(errno.ETOOMANYREFS, "too many are on their way")

        monkeypatch.setattr(FdSocket, "send", refuse)
    return request.param


def function() -> Constant:
    return Constant(FUNCTION, ConstantFile(FUNCTION, [memoryview(b"pickle"), memoryview(DATA)]))


def held(shared: Shared) -> Constant:
    return shared._held()


def stage(pool, job, *needed, pickled=b"call"):
    ticket = pool.stage(job, 0.0, 0, pickled, None, 0, 0, needed)
    assert ticket is not None
    pool.send([ticket])


def done(pool, worker, job, kind=Kind.DONE):
    worker.report(kind, job)
    pool.receive()
    pool.forget(job)


def test_a_function_is_each_jobs_own(pair, is_copied):
    pool, worker = pair
    constant = function()
    stage(pool, 1, constant)
    stage(pool, 2, constant)
    for _ in range(2):
        ticket = worker.receive()
        assert ticket[-1] & (BESIDE_IN_ANNEX if is_copied else BESIDE)
        pickled, buffers, fds, found = worker.read_call(ticket)
        assert (bytes(pickled), buffers, fds) == (b"call", [], None)
        assert [bytes(piece) for piece in found] == [b"pickle", DATA]
        found[1][0] = 255  # what a task writes
        done(pool, worker, ticket[0])
    assert bytes(constant.pieces()[1]) == DATA


def test_what_is_shared_is_sent_until_the_worker_has_it(pair, is_copied):
    pool, worker = pair
    shared = share(bytearray(DATA))
    key = held(shared).key
    flags = []
    for job, kind in [(1, Kind.FAILED), (2, Kind.DONE), (3, Kind.DONE)]:
        stage(pool, job, held(shared), pickled=bytes([job]) * 10)
        ticket = worker.receive()
        flags.append(bool(ticket[-1] & (BESIDE | BESIDE_IN_ANNEX)))
        assert bytes(worker.read_call(ticket)[0]) == bytes([job]) * 10
        assert list(worker._borrowed) == [key]
        done(pool, worker, job, kind)
    assert flags == [True, True, False]  # one that has failed may have failed to get it
    assert not pool.forget_released()
    assert list(worker._borrowed) == [key]


def test_a_job_that_is_taken_back_takes_along_what_it_needs(pair, is_copied):
    pool, worker = pair
    shared = share(bytearray(DATA))
    stage(pool, 1, function(), held(shared))
    assert pool.reclaim(9) == [1]
    stage(pool, 2, function(), held(shared))
    ticket = worker.receive()
    assert [bytes(piece) for piece in worker.read_call(ticket)[3]] == [b"pickle", DATA]
    assert list(worker._borrowed) == [held(shared).key]


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_what_was_sent_with_calls_that_were_taken_back_is_in_nobodys_way(pair, large):
    """It stays in the worker's socket until that looks for something that was sent later."""
    pool, worker = pair
    shared = share(bytearray(DATA))
    payload = FilePayload(bytes(FILE), []) if large else None
    stage(pool, 1)  # it runs, and the next ones wait behind it
    worker.read_call(worker.receive())
    for job in range(2, 1000):
        if (ticket := pool.stage(job, 0.0, 0, b"", None, 0, 0, [held(shared)])) is None:
            break
        pool.send([ticket])
        assert pool.reclaim(9) == [job]
    else:
        raise AssertionError("the socket takes no end of it")
    assert pool.stage(job, 0.0, 0, b"", payload, 0, 0, [held(shared)]) is None  # not now
    done(pool, worker, 1)
    ticket = pool.stage(job, 0.0, 0, b"call", payload, 0, 0, [held(shared)])
    assert ticket is not None
    pool.send([ticket])
    (pickled, *_) = worker.read_call(worker.receive())
    assert len(pickled) == (FILE if large else len(b"call"))
    assert list(worker._borrowed) == [held(shared).key]
    if payload is not None:
        payload.close()


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_what_was_sent_with_calls_that_were_taken_back_is_thrown_away(pair, large):
    """As soon as the worker has nothing to do."""
    pool, worker = pair
    payload = FilePayload(bytes(FILE), []) if large else None
    stage(pool, 1)
    worker.receive()
    for job in (2, 3):
        pool.send([pool.stage(job, 0.0, 0, b"", payload, 0, 0, [function()])])
        assert pool.reclaim(9) == [job]
    done(pool, worker, 1)
    assert pool.reclaim(9) == []  # the word for that, too
    stage(pool, 4)
    worker.receive()
    done(pool, worker, 4)
    stage(pool, 5, function())  # this stays
    ticket = worker.receive()
    assert worker._post._taken == (4 if large else 2)
    assert [bytes(piece) for piece in worker.read_call(ticket)[3]] == [b"pickle", DATA]
    assert worker._post._taken == pool._post.sent
    if payload is not None:
        payload.close()


def test_what_was_interrupted_while_it_pickled_a_job_holds_nothing():
    shared = share(DATA)
    mentions = Mentions()
    assert mention(held(shared))
    assert mentions.found == [held(shared)]
    del mentions  # without its end
    assert not mention(held(shared))
    release(shared)
    assert not Use.shared


def release(shared: Shared) -> None:
    shared.release()
    gc.collect()


def lend(pool, worker, shared, job=1):
    stage(pool, job, held(shared))
    worker.read_call(worker.receive())
    done(pool, worker, job)


def test_a_worker_forgets_what_nobody_holds(pair):
    pool, worker = pair
    first, second = share(bytearray(DATA)), share(5)
    lend(pool, worker, first, 1)
    lend(pool, worker, second, 2)
    key = held(first).key
    worker._borrowed[key] = None  # in a process of its own it holds another one
    release(first)
    assert not is_held(key)
    assert not pool.forget_released()
    assert not pool.forget_released()  # it is told once
    stage(pool, 3)
    assert worker.receive()[0] == 3
    assert list(worker._borrowed) == [held(second).key]


def test_what_is_taken_back_is_told_again(pair):
    pool, worker = pair
    shared = share(5)
    lend(pool, worker, shared)
    key = held(shared).key
    worker._borrowed[key] = None
    release(shared)
    assert not pool.forget_released()
    stage(pool, 2)
    assert pool.reclaim(1) == [2]  # the other ticket was in front of it
    assert not pool.forget_released()
    pool.send_leave()
    assert worker.receive() is None
    assert not worker._borrowed


def test_a_worker_that_is_busy_is_told_later(pair):
    pool, worker = pair
    shared = share(5)
    lend(pool, worker, shared)
    worker._borrowed[held(shared).key] = None
    release(shared)
    jobs = 10
    while pool.send([pool.stage(jobs, 0.0, 0, b"x")]):
        jobs += 1
    pool.forget(jobs)
    assert pool.forget_released()
    for _ in range(MAX_TICKETS * 2):
        worker.receive()
    assert not pool.forget_released()


# --- constants


def test_there_are_only_so_many_files(monkeypatch):
    monkeypatch.setattr(constants, "MOST_FILES", len(Use.files) + 1)
    constant = function()
    with pytest.raises(OSError, match="as many constants"):
        function()
    kept = share(bytearray(DATA))
    assert kept.get() == DATA
    assert pickle.loads(pickle.dumps(kept)).get() is kept.get()
    with pytest.raises(OSError, match="no file"), held(kept).opened():
        pass
    del constant
    assert share(5)._held().place is not None


def test_a_file_is_sealed():
    constant = function()
    with constant.opened() as fd:
        for change in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.truncate(fd, 0),
            lambda: os.truncate(fd, 1 << 24),
        ):
            with pytest.raises(PermissionError):
                change()


def test_use_is_counted():
    objects, nbytes, files = *Use.counts(), len(Use.files)
    shared = share(bytearray(DATA))
    assert (*Use.counts(), len(Use.files)) == (objects + 1, nbytes + shared.nbytes, files + 1)
    release(shared)
    assert (*Use.counts(), len(Use.files)) == (objects, nbytes, files)


def test_what_is_mentioned_while_something_is_pickled():
    outer, inner = share(1), share(2)
    assert not mention(held(outer))
    mentions = Mentions()
    pickle.dumps(outer)
    nested = Mentions()
    pickle.dumps([inner, inner])
    nested.end()
    mentions.end()
    pickle.dumps(inner)
    assert mentions.found == [held(outer)]
    assert hold(nested.found) == (held(inner),)
    around = share([outer])
    assert set(hold([held(around)])) == {held(around), held(outer)}


# --- functions


def call(data, item):
    return data, item


def unpacked(function: Once, packed):
    pickled, buffers = packed
    pieces = [memoryview(bytearray(piece)) for piece in function.constants[0].pieces()]
    return load_once(pieces, memoryview(pickled), buffers)


def test_a_function_with_a_name_is_left_alone():
    assert once(call) is call
    assert once(len) is len
    assert isinstance(once(functools.partial(call, 1)), Once)


def test_a_small_function_is_pickled_with_its_arguments():
    func = Once(functools.partial(call, bytes(LARGE // 2)))
    assert func.pack(CallPickler(), [1, 2]) is None
    assert func.constants == ()


@pytest.mark.parametrize(
    "data", [bytes(LARGE), bytearray(LARGE), ["x" * 1000] * 2 + [bytes(LARGE)]]
)
@pytest.mark.parametrize("items", [[1, 2], ["text", None], [["list"]], [bytes(LARGE)]], ids=repr)
def test_a_large_function_and_its_arguments(data, items):
    func = Once(functools.partial(call, data))
    for _ in range(2):
        found, arguments = unpacked(func, func.pack(CallPickler(), items))
        assert found(items) == (data, items)
        assert arguments == items
    found, (arguments, seed) = unpacked(func, func.pack(CallPickler(), items, 5))
    assert (arguments, seed) == (items, 5)


def test_what_function_and_arguments_have_in_common_is_the_same_object():
    part = ["part"]
    func = Once(functools.partial(call, [part, bytes(LARGE)]))
    found, (first, second) = unpacked(func, func.pack(CallPickler(), (part, [part])))
    assert found.args[0][0] is first
    assert second[0] is first


class Own:
    """Something that somebody has registered a reducer for."""


def test_what_has_a_reducer_of_its_own_goes_the_usual_way(monkeypatch):
    monkeypatch.setitem(std_internals.reducers(), Own, lambda own: (Own, ()))
    assert Once(functools.partial(call, [bytes(LARGE), Own()])).pack(CallPickler(), [1]) is None
    func = Once(functools.partial(call, bytes(LARGE)))
    assert func.pack(CallPickler(), [Own()]) is None
    assert func.pack(CallPickler(), [1]) is not None


def test_what_cannot_be_pickled_goes_the_usual_way():
    assert Once(functools.partial(call, [bytes(LARGE), lambda: 0])).pack(CallPickler(), [1]) is None
    func = Once(functools.partial(call, bytes(LARGE)))
    assert func.pack(CallPickler(), [lambda: 0]) is None
    assert func.pack(CallPickler(), [1]) is not None
    assert pickle.loads(pickle.dumps(func)).args == (bytes(LARGE),)
