"""Signal handlers that raise in the main thread, where the pool's own classes are at work there."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import weakref

import pytest
from test_condition import Interrupted, every_interrupt, interrupted_at  # type: ignore[import-not-found]

from helpers import DEADLINE, mark, marked
from prefork import Pool, Terminated
from prefork._engine.collector import Collector
from prefork._engine.engine import Engine
from prefork._ipc.memfd import BEST, MemoryFile
from prefork._ipc.worker_end import WorkerEnd
from prefork._system.threads import BackgroundThread
from prefork._system.uninterrupted import uninterrupted


@pytest.fixture
def _raising():
    """SIGUSR2 raises `Interrupted`."""

    def interrupt(signum, frame):
        raise Interrupted

    before = signal.signal(signal.SIGUSR2, interrupt)
    yield
    assert signal.getsignal(signal.SIGUSR2) is interrupt
    signal.signal(signal.SIGUSR2, before)


# --- what is done as a whole


@pytest.mark.usefixtures("_raising")
def test_a_handler_runs_after_what_is_done_as_a_whole():
    done = []

    def work():
        signal.raise_signal(signal.SIGUSR2)
        done.append("all of it")

    with pytest.raises(Interrupted):
        uninterrupted(work)
    assert done == ["all of it"]


def test_what_is_done_as_a_whole_returns_and_raises():
    assert uninterrupted(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        uninterrupted(lambda: 1 // 0)


@pytest.mark.usefixtures("_raising")
def test_other_threads_run_no_handlers_and_change_none():
    seen = []
    look = lambda: seen.append(signal.getsignal(signal.SIGUSR2))  # noqa: E731
    thread = threading.Thread(target=uninterrupted, args=(look,))
    thread.start()
    thread.join(DEADLINE)
    assert seen == [signal.getsignal(signal.SIGUSR2)]


# --- threads


@pytest.mark.usefixtures("_raising")
@pytest.mark.parametrize("filename", ["threads.py", "threading.py", "uninterrupted.py"])
def test_a_thread_is_started_whole_or_not_at_all(filename):
    signalled = lambda: signal.raise_signal(signal.SIGUSR2)  # noqa: E731
    step = 0
    was_interrupted = True
    while was_interrupted:
        step += 1
        ran = threading.Event()
        thread = BackgroundThread(ran.set, "test")
        was_interrupted = interrupted_at(step, thread.start, filename, (), signalled)
        if thread.is_started:
            assert ran.wait(DEADLINE), step
        assert thread.join(DEADLINE)
        assert not thread.is_running
    assert thread.is_started  # type: ignore[possibly-undefined]


def test_a_thread_that_has_ended_holds_nothing_of_what_it_did():
    class Work:
        thread: BackgroundThread

        def do(self):
            pass

    work = Work()
    thread = work.thread = BackgroundThread(work.do, "test")
    gone = weakref.ref(work)
    thread.start()
    assert thread.join(DEADLINE)
    gc.disable()
    try:
        del work
        assert gone() is None
    finally:
        gc.enable()


# --- descriptors


@pytest.mark.parametrize("filename", ["memfd.py", "at_fork.py"])
def test_an_interrupted_file_leaves_no_descriptor(filename):
    gc.collect()  # what other tests have left
    before = set(os.listdir("/proc/self/fd"))
    call = lambda: MemoryFile("prefork-test", BEST).close()  # noqa: E731
    besides = ("__init__", "close", "is_lost", "are_ours", "hand_over", "__del__")
    for step in every_interrupt(call, filename, besides):
        assert set(os.listdir("/proc/self/fd")) <= before, step


# --- the pool's calls


def three():
    return 3


@pytest.mark.parametrize(
    ("filename", "besides"),
    [("dispatcher.py", ("submit",)), ("scheduler.py", ()), ("state.py", ()), ("job.py", ())],
)
def test_an_interrupted_submission_costs_no_other_job(filename, besides):
    with Pool(2, context="fork") as pool:
        pool.map(abs, range(20))
        call = lambda: pool.apply_async(three)  # noqa: E731
        for step in every_interrupt(call, filename, besides):
            handles = [pool.apply_async(three) for _ in range(3)]
            assert [handle.get(DEADLINE) for handle in handles] == [3, 3, 3], step
        pool.close()
        assert pool.join(DEADLINE)


@pytest.mark.usefixtures("_raising")
@pytest.mark.parametrize("how", ["cancel", "terminate"])
def test_an_interrupted_end_of_a_job_is_whole(monkeypatch, tmp_path, how):
    with Pool(1, context="fork") as pool:
        pool.apply(three)
        pool.apply_async(wait_for, (tmp_path / "go",))
        guilty = pool.apply_async(three)  # the worker has it, and has not read it
        innocent = pool.apply_async(three)
        isolate = Collector.isolate

        def interrupted(self, worker):
            isolate(self, worker)
            signal.raise_signal(signal.SIGUSR2)

        with monkeypatch.context() as patch:
            patch.setattr(Collector, "isolate", interrupted)
            with pytest.raises(Interrupted):
                getattr(guilty, how)()
        mark(tmp_path / "go")
        assert innocent.get(DEADLINE) == 3
        with pytest.raises(Terminated):
            guilty.get(DEADLINE)


@pytest.mark.parametrize("how", ["cancel", "terminate"])
@pytest.mark.usefixtures("_raising")
def test_an_interrupted_end_of_a_map_is_whole(monkeypatch, tmp_path, how):
    with Pool(1, context="fork") as pool:
        result = pool.map_async(wait_for, [tmp_path / "go"] * 3)
        terminated = type(result)._terminated

        def interrupted(self):
            if threading.current_thread() is threading.main_thread():  # the feeder's calls it, too
                signal.raise_signal(signal.SIGUSR2)
            return terminated(self)

        monkeypatch.setattr(type(result), "_terminated", interrupted)
        with pytest.raises(Interrupted):
            getattr(result, how)()
        with pytest.raises(Terminated):
            result.get(DEADLINE)


def wait_for(path):
    marked(path)


def test_a_pool_is_dropped_though_its_finalizer_was_interrupted(monkeypatch):
    gc.collect()  # other tests' pools
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: ignored.append(args.exc_type))
    drop = Engine.drop
    calls = []

    def interrupted(engine):
        calls.append(engine)
        if len(calls) == 1:
            raise Interrupted
        drop(engine)

    monkeypatch.setattr(Engine, "drop", interrupted)
    pool = Pool(1, context="fork")
    del pool
    assert ignored == [Interrupted]
    assert calls[0].supervisor.wait_until_ended(DEADLINE)
    calls.clear()


def test_a_job_that_was_read_and_not_begun_is_run_elsewhere(monkeypatch, tmp_path):
    receive = WorkerEnd.receive

    def die_after_the_first(end):
        ticket = receive(end)
        if not (tmp_path / "died").exists():
            mark(tmp_path / "died", os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)
        return ticket

    monkeypatch.setattr(WorkerEnd, "receive", die_after_the_first)
    with Pool(1, context="fork") as pool:
        assert pool.apply_async(three).get(DEADLINE) == 3
        assert (tmp_path / "died").exists()
