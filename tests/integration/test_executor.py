"""`ProcessPoolExecutor`, and views of a pool that are executors: what is documented of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import re
import signal
import sys
import threading
from concurrent.futures import CancelledError, as_completed
from concurrent.futures.process import BrokenProcessPool as StdBrokenProcessPool

import pytest

import prefork
from gate import enter
from helpers import DEADLINE, NEVER, has_ended, mark, marked
from prefork import PoolBrokenError, ProcessPoolExecutor, Terminated, WorkerLostError


@pytest.fixture
def make_executor():
    """Makes executors whose pools are terminated after the test."""
    executors = []

    def make(*args, **kwargs):
        executors.append(ProcessPoolExecutor(*args, **kwargs))
        return executors[-1]

    yield make
    for executor in executors:
        executor.kill_workers()
        executor.shutdown()


def square(x):
    return x * x


def square_but_7(x):
    if x == 7:
        raise KeyError(x)
    return x * x


def die_at_7(x):
    if x == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def fail_once_marked(path):
    marked(path)
    raise ZeroDivisionError("in the initializer")


async def never_awaited():
    raise AssertionError


# --- submit


def test_calls_come_back_as_futures(context, make_executor):
    executor = make_executor(2, context)
    futures = [executor.submit(pow, base=x, exp=2) for x in range(50)]
    assert {future.result(DEADLINE) for future in as_completed(futures, DEADLINE)} == {
        x * x for x in range(50)
    }
    assert all(isinstance(future, concurrent.futures.Future) for future in futures)
    error = executor.submit(square, "a").exception(DEADLINE)
    assert isinstance(error, TypeError)
    assert "can't multiply" in str(error.__cause__)


def test_a_worker_that_dies_fails_its_own_call(context, make_executor):
    executor = make_executor(2, context)
    futures = [executor.submit(die_at_7, x) for x in range(20)]
    for x, future in enumerate(futures):
        if x == 7:
            with pytest.raises(WorkerLostError, match="SIGKILL"):
                future.result(DEADLINE)
        else:
            assert future.result(DEADLINE) == x
    assert executor.submit(square, 3).result(DEADLINE) == 9


@pytest.mark.parametrize("way", ["submit", "map"])
def test_an_initializer_that_fails_breaks_it(make_executor, way, tmp_path):
    """What waits fails, and nothing more is taken. Workers start before there is anything to do, so
    it is not before the first call is handed in that one fails here."""
    executor = make_executor(1, initializer=fail_once_marked, initargs=(tmp_path / "in",))
    broken = executor.submit(square, 3)
    mark(tmp_path / "in")
    with pytest.raises(StdBrokenProcessPool, match="initializer failed") as caught:
        broken.result(DEADLINE)
    assert isinstance(caught.value, PoolBrokenError)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(prefork.BrokenProcessPool) as caught:
        executor.submit(square, 3) if way == "submit" else executor.map(square, [3])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_coroutine_function_is_refused_with_advice(make_executor, capfd):
    executor = make_executor(1)
    with pytest.raises(
        TypeError, match=r"never_awaited is a coroutine function.* await is on this"
    ):
        executor.submit(never_awaited).result(DEADLINE)
    assert executor.submit(asyncio.run, None).exception(DEADLINE) is not None
    executor.shutdown()
    assert "never awaited" not in capfd.readouterr().err


# --- map


@pytest.mark.parametrize("chunksize", [1, 4, 100])
@pytest.mark.parametrize("buffersize", [None, 1, 5])
def test_map_keeps_the_order(make_executor, chunksize, buffersize):
    executor = make_executor(2)
    sizes = {"chunksize": chunksize, "buffersize": buffersize}
    assert list(executor.map(square, range(30), **sizes)) == [x * x for x in range(30)]
    both = executor.map(pow, range(30), [2] * 20, **sizes)
    assert list(both) == [x * x for x in range(20)]
    assert list(executor.map(square, [], **sizes)) == []


@pytest.mark.parametrize("chunksize", [1, 5, 100])
def test_map_gives_the_results_before_an_error(make_executor, chunksize):
    results = make_executor(2).map(square_but_7, range(20), chunksize=chunksize)
    assert [next(results) for _ in range(7)] == [x * x for x in range(7)]
    with pytest.raises(KeyError, match="7"):
        next(results)
    assert list(results) == []


def test_map_with_an_item_that_cannot_be_pickled(make_executor):
    executor = make_executor(2)
    results = executor.map(type, [1, threading.Lock(), 2])
    assert next(results) is int
    with pytest.raises(TypeError, match=r"cannot pickle .*lock"):
        next(results)
    assert executor.submit(square, 3).result(DEADLINE) == 9


def test_map_reads_no_further_than_its_buffer(make_executor):
    items = iter(range(1000))
    results = make_executor(2).map(square, items, buffersize=3)
    assert next(items) == 3
    assert next(results) == 0
    assert next(items) == 5


def test_map_runs_all_although_nobody_takes_the_results(make_executor):
    executor = make_executor(2)
    executor.map(square, range(500))
    executor.shutdown()
    assert executor.pool.statistics().finished == 500


def test_map_that_is_given_up_cancels_the_rest(make_executor, gate):
    executor = make_executor(1)
    results = executor.map(enter, [gate] * 500, timeout=0.05)
    visitor = gate.arrival()
    with pytest.raises(TimeoutError):
        next(results)
    visitor.go()
    executor.shutdown()
    statistics = executor.pool.statistics()
    assert (statistics.finished, statistics.failed) == (1, 499)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"chunksize": "1"}, TypeError),
        ({"chunksize": None}, TypeError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": "1"}, TypeError),
    ],
)
def test_map_with_a_wrong_size(make_executor, wrong, error):
    with pytest.raises(error, match=next(iter(wrong))):
        make_executor(1).map(square, [1], **wrong)


# --- cancel, terminate


def test_what_has_not_started_can_be_cancelled(make_executor, gate):
    executor = make_executor(1)
    running = executor.submit(enter, gate, "ran")
    visitor = gate.arrival()
    waiting = [executor.submit(square, x) for x in range(300)]
    assert running.running()
    assert not running.cancel()
    called = []
    for x in (0, 150, 299):
        waiting[x].add_done_callback(called.append)
        assert waiting[x].cancel()
        assert waiting[x].cancel()
        assert waiting[x].cancelled()
        assert waiting[x] in called
        with pytest.raises(CancelledError):
            waiting[x].result(DEADLINE)
    done, _ = concurrent.futures.wait(waiting, DEADLINE, "FIRST_COMPLETED")
    assert done == {waiting[x] for x in (0, 150, 299)}
    visitor.go()
    assert running.result(DEADLINE) == "ran"
    assert not running.cancel()
    assert [f.result(DEADLINE) for f in waiting if not f.cancelled()] == [
        x * x for x in range(300) if x not in (0, 150, 299)
    ]


def test_a_running_call_can_be_terminated(context, make_executor, gate):
    executor = make_executor(1, context)
    running, waiting = executor.submit(enter, gate), executor.submit(square, 3)
    gate.arrival()
    assert running.terminate()
    with pytest.raises(Terminated):
        running.result(DEADLINE)
    assert not running.cancelled()
    assert waiting.result(DEADLINE) == 9


def test_a_call_cancelled_while_its_worker_dies(make_executor, gate):
    executor = make_executor(1)
    for _ in range(50):
        running = executor.submit(enter, gate)
        waiting = executor.submit(square, 3)
        pid = gate.arrival().pid
        os.kill(pid, signal.SIGKILL)
        assert not running.cancel()
        assert waiting.cancel() or waiting.result(DEADLINE) == 9
        assert isinstance(running.exception(DEADLINE), WorkerLostError)


@pytest.mark.parametrize("verb", ["terminate_workers", "kill_workers"])
def test_all_calls_can_be_ended(context, make_executor, gate, verb):
    executor = make_executor(2, context)
    running = [executor.submit(enter, gate) for _ in range(2)]
    pids = [gate.arrival().pid for _ in running]
    waiting = [executor.submit(square, x) for x in range(300)]
    getattr(executor, verb)()
    assert all(isinstance(future.exception(DEADLINE), Terminated) for future in running)
    assert concurrent.futures.wait(waiting, DEADLINE).done == set(waiting)
    assert all(future.cancelled() for future in waiting)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 3)
    executor.shutdown()
    assert all(map(has_ended, pids))


# --- shutdown


def test_an_executor_that_was_shut_down_takes_no_calls(make_executor):
    executor, idle = make_executor(1), make_executor(1)
    future = executor.submit(square, 3)
    for each in (executor, idle):
        each.shutdown()
        each.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="after shutdown"):
            each.submit(square, 3)
        with pytest.raises(RuntimeError, match="after shutdown"):
            each.map(square, [3])
    assert future.result(0) == 9
    assert "shut down" in repr(idle)


def test_shutdown_cancels_what_has_not_started(make_executor, gate):
    executor = make_executor(1)
    running = executor.submit(enter, gate, "ran")
    visitor = gate.arrival()
    waiting = [executor.submit(square, x) for x in range(300)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert concurrent.futures.wait(waiting, DEADLINE).done == set(waiting)
    assert all(future.cancelled() for future in waiting)
    visitor.go()
    assert running.result(DEADLINE) == "ran"


def test_workers_start_with_the_first_call(make_executor):
    executor = make_executor(3)
    assert "not started, 3 workers" in repr(executor)
    assert executor._processes == {}
    assert executor.submit(square, 3).result(DEADLINE) == 9
    assert len(executor._processes) == 3
    assert isinstance(executor.pool, prefork.Pool)


AT_EXIT = """
import os
import sys
from helpers import mark
from prefork import ProcessPoolExecutor
from pathlib import Path
def die_or_mark(path):
    if path.name.endswith("-50"):
        os._exit(3)
    mark(path)
def main():
    folder = Path(sys.argv[1])
    kept, dropped = ProcessPoolExecutor(1, sys.argv[2]), ProcessPoolExecutor(1, sys.argv[2])
    futures = [executor.submit(die_or_mark, folder / f"{name}-{n}")
        for name, executor in [("kept", kept), ("dropped", dropped)] for n in range(100)]
    futures[-1].add_done_callback(lambda future: mark(folder / "called"))
    if sys.argv[3] == "shut":
        kept.shutdown(wait=False)
    globals()["kept"] = kept
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("shut", ["shut", "open"])
def test_the_interpreter_waits_for_what_was_handed_in(script, tmp_path, context, shut):
    (tmp_path / "program.py").write_text(AT_EXIT)
    program = script(tmp_path / "program.py", tmp_path, context.get_start_method(), shut)
    code, out, err = program.finish()
    assert (code, out) == (0, "")
    # Python 3.12.0 and .1 start no thread then, so that the callback waits for the calls' end.
    said = [line for line in err.splitlines() if "a callback has no thread to run on" not in line]
    assert len(said) == 2, err
    for line in said:
        assert re.match(r"worker \d+ \(PreforkWorker-1\) exited with code 3: ", line), err
    if sys.version_info[:3] >= (3, 12, 2) or sys.version_info < (3, 12):
        assert said == err.splitlines()
    for n in set(range(100)) - {50}:
        assert (tmp_path / f"kept-{n}").exists()
        assert (tmp_path / f"dropped-{n}").exists()
    assert (tmp_path / "called").exists()


def in_a_child(path):
    ProcessPoolExecutor(1).submit(mark_late, path)


def mark_late(path):
    path.write_text("done")


def test_a_child_of_multiprocessing_waits_for_what_was_handed_in(context, tmp_path):
    child = context.Process(target=in_a_child, args=(tmp_path / "mark",))
    child.start()
    child.join(DEADLINE)
    assert child.exitcode == 0
    assert (tmp_path / "mark").read_text() == "done"
    child.close()


# --- in a forked child


def in_fork(call):
    """What this raises in a forked child, as text."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(writing, repr(call()).encode())
        except BaseException as exc:
            os.write(writing, f"{type(exc).__name__}: {exc}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as told:
        return told.read()


def test_it_is_the_parents_in_a_forked_child(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(enter, gate)
    visitor = gate.arrival()
    for call in (
        lambda: executor.submit(square, 3),
        lambda: executor.map(square, [3]),
        lambda: future.result(NEVER),
        lambda: concurrent.futures.wait([future]),
        lambda: future.add_done_callback(print),
        future.cancel,
        future.terminate,
    ):
        assert in_fork(call).startswith("RuntimeError: this pool belongs to the process that made")
    assert in_fork(lambda: executor.shutdown(cancel_futures=True)) == "None"
    visitor.go()
    assert future.result(DEADLINE) is None


def test_one_that_has_not_started_can_be_used_in_a_forked_child(make_executor):
    executor = make_executor(1)
    assert in_fork(lambda: executor.submit(square, 3).result(DEADLINE)) == "9"
    assert executor.submit(square, 4).result(DEADLINE) == 16


# --- bad input


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": "2"}, TypeError),
        ({"mp_context": 3}, TypeError),
        ({"initializer": 3}, TypeError),
        ({"initargs": 3}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": "3"}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"unknown": 3}, TypeError),
    ],
)
def test_wrong_arguments(wrong, error):
    with pytest.raises(error, match=next(iter(wrong)).removeprefix("mp_")):
        ProcessPoolExecutor(**wrong)


def test_what_cannot_be_called(make_executor):
    with pytest.raises(TypeError, match="must be callable"):
        make_executor(1).submit(square(3))


def test_it_cannot_be_pickled(make_executor):
    assert isinstance(make_executor(1).submit(square, make_executor()).exception(), Exception)
