"""What a worker has of its own: its place, its state, its end, its environment, its CPUs."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time

import pytest

from helpers import DEADLINE, eventually, mark, mark_and_stay, marked
from prefork import (
    Pool,
    PoolBrokenError,
    ProcessPoolExecutor,
    Terminated,
    WorkerLostError,
    WorkerState,
    current_worker,
)

CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
needs_affinity = pytest.mark.skipif(not CPUS, reason="processes cannot be bound to CPUs here")


def index(_: object = None) -> int:
    return current_worker().index


def indices(pool: Pool) -> set[int]:
    """Of the workers that there are now."""
    return {process.index for process in pool._pool}


# --- current_worker


def about_me(_: object) -> tuple[object, ...]:
    worker = current_worker()
    worker.data["calls"] = worker.data.get("calls", 0) + 1
    return worker.index, worker.name, worker.job, worker.data["calls"]


def test_a_task_sees_its_worker_and_its_job(make_pool, context):
    pool = make_pool(1, context=context)
    for calls in (1, 2):
        result = pool.apply_async(about_me, (None,))
        place, name, job, counted = result.get()
        assert (place, name, counted) == (0, "PreforkWorker-1", calls)
        assert (job.id, job.attempt) == (result.job, 1)
        assert job.function == f"{__name__}.about_me"


def job_of_now(_: object = None) -> object:
    return current_worker().job


def test_a_chunk_is_a_job(make_pool):
    pool = make_pool(1)
    first, second, third = pool.map(job_of_now, range(3), chunksize=2)
    assert first == second != third
    partial = pool.apply(functools.partial(job_of_now, None))
    assert partial.function == f"{__name__}.job_of_now"


def die_at_first(path: object) -> int:
    attempt = current_worker().job.attempt
    if attempt < 3:
        os._exit(1)
    return attempt


def test_the_attempts_of_a_job_are_counted(make_pool):
    assert make_pool(1).apply(die_at_first, (None,), retries=2) == 3


def test_there_is_none_outside_of_a_worker():
    with pytest.raises(RuntimeError, match="this process is none"):
        current_worker()


def ask(queue) -> None:
    try:
        queue.put(current_worker().index)
    except RuntimeError as exc:
        queue.put(str(exc))


def ask_in_child(method: str) -> object:
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=ask, args=(queue,))
    child.start()
    said = queue.get()
    child.join()
    return said


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_there_is_none_in_a_child_of_a_task(make_pool, method):
    pool = make_pool(1)
    assert "this process is none" in pool.apply(ask_in_child, (method,))
    assert pool.apply(index) == 0


def indices_inside() -> set[int]:
    with Pool(2, initializer=current_worker, context="fork") as pool:
        return indices(pool) | set(pool.map(index, range(4), 1))


def test_a_pool_in_a_task_has_workers_of_its_own(make_pool):
    pool = make_pool(3)
    assert pool.map(indices_inside_of, range(3), 1) == [{0, 1}] * 3


def indices_inside_of(_: object) -> set[int]:
    return indices_inside()


# --- places


def test_a_successor_of_one_that_died_has_its_index(make_pool, context):
    pool = make_pool(3, context=context)
    pool.map(index, range(6), 1)
    victim = next(worker for worker in pool._pool if worker.index == 1)
    os.kill(victim.pid, signal.SIGKILL)
    eventually(
        lambda: victim.pid not in {w.pid for w in pool._pool} and indices(pool) == {0, 1, 2},
        "there is a successor",
    )


def test_recycled_workers_keep_their_indices(make_pool):
    pool = make_pool(2, maxtasksperchild=1)
    assert set(pool.map(index, range(20), 1)) <= {0, 1}


def test_a_restart_keeps_the_indices(make_pool):
    pool = make_pool(3)
    before = {process.pid for process in pool._pool}
    for _ in range(3):
        pool.restart()
        assert set(pool.map(index, range(20), 1)) <= {0, 1, 2}
    # (The last one's workers may still replace each other: their starts can take long.)
    eventually(
        lambda: not before & {p.pid for p in pool._pool} and indices(pool) == {0, 1, 2},
        "a restart",
    )
    eventually(lambda: len(pool._pool) == 3, "one in each place")


def test_who_is_added_has_the_next_index(make_pool):
    pool = make_pool(2)
    pool.grow(2)
    eventually(lambda: indices(pool) == {0, 1, 2, 3}, "there are four")


# --- the state, and the end


class Ledger:
    """What cannot be sent anywhere: it stays where it was made."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.used = 0


def open_ledger(folder):
    assert current_worker().state is None
    assert current_worker().job is None
    return Ledger(folder)


def use_ledger(_: object) -> int:
    ledger = current_worker().state
    with ledger.lock:
        ledger.used += 1
    return os.getpid()


def close_ledger(ledger) -> None:
    assert current_worker().state is ledger
    assert current_worker().job is None
    mark(ledger.folder / str(os.getpid()), ledger.used)


def closed(folder) -> dict[int, int]:
    """How often each of those that were closed had been used."""
    return {int(path.name): int(path.read_text()) for path in folder.iterdir() if path.suffix == ""}


@pytest.fixture
def ledgers(make_pool, tmp_path):
    def make(processes: int, **options) -> Pool:
        return make_pool(processes, open_ledger, (tmp_path,), finalizer=close_ledger, **options)

    return make


def test_the_state_is_what_the_initializer_returns_and_the_finalizer_gets(
    ledgers, tmp_path, context
):
    pool = ledgers(2, context=context)
    eventually(lambda: all(w.state is WorkerState.IDLE for w in pool.statistics().workers), "start")
    used = pool.map(use_ledger, range(10), 1)
    pids = {process.pid for process in pool._pool}
    pool.close()
    pool.join()
    assert closed(tmp_path) == {pid: used.count(pid) for pid in pids}


def state(_: object = None) -> object:
    return current_worker().state


def test_without_an_initializer_the_state_is_none(make_pool, tmp_path):
    pool = make_pool(1, finalizer=functools.partial(mark, tmp_path / "end"))
    assert pool.apply(state) is None
    pool.close()
    pool.join()
    assert marked(tmp_path / "end") == "None"


def test_recycled_workers_finalize(ledgers, tmp_path):
    pool = ledgers(2, maxtasksperchild=1)
    used = pool.map(use_ledger, range(6), 1)
    pool.close()
    pool.join()
    assert set(used) <= set(closed(tmp_path))
    assert len(set(used)) == 6


def test_workers_that_outgrow_their_memory_finalize(ledgers, tmp_path):
    pool = ledgers(1, max_memory_per_child=1)
    pid = pool.apply(use_ledger, (None,))
    eventually(lambda: pid in closed(tmp_path), "it has finalized")


@pytest.mark.parametrize("verb", ["shrink", "restart", "terminate"])
def test_idle_workers_that_are_let_go_finalize(ledgers, tmp_path, monkeypatch, verb):
    monkeypatch.setattr("prefork._engine.lifecycle.TERMINATE_SECONDS", DEADLINE)
    pool = ledgers(2)
    eventually(lambda: all(w.state is WorkerState.IDLE for w in pool.statistics().workers), "start")
    pool.map(use_ledger, range(4), 1)
    pids = {process.pid for process in pool._pool}
    getattr(pool, verb)()
    least = 1 if verb == "shrink" else 2
    eventually(lambda: len(pids & set(closed(tmp_path))) == least, "they have finalized")


def test_a_worker_that_is_killed_does_not_finalize(ledgers, tmp_path):
    pool = ledgers(1)
    result = pool.apply_async(mark_and_stay, (tmp_path / "running.x",))
    pid = int(marked(tmp_path / "running.x"))
    pool.terminate()
    with pytest.raises(Terminated):
        result.get()
    assert pid not in closed(tmp_path)


def raise_at_the_end(state) -> None:
    raise ValueError("the lights stay on")


def exit_at_the_end(state) -> None:
    sys.exit("the lights stay on")


@pytest.mark.parametrize("finalizer", [raise_at_the_end, exit_at_the_end])
def test_what_a_finalizer_raises_is_logged(make_pool, caplog, finalizer):
    pool = make_pool(1, finalizer=finalizer)
    pid = pool.apply(os.getpid)
    with caplog.at_level(logging.DEBUG, "prefork"):
        pool.close()
        pool.join()
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(errors) == 1
    assert f"the finalizer failed in worker {pid}" in errors[0]
    assert f"in {finalizer.__name__}" in errors[0]
    assert "the lights stay on" in errors[0]


def hang_at_the_end(state) -> None:
    while True:
        signal.pause()


@pytest.mark.parametrize("way", ["close", "recycle"])
def test_a_finalizer_that_hangs_holds_nobody_up(make_pool, monkeypatch, way):
    monkeypatch.setattr("prefork._engine.supervisor.EXIT_SECONDS", 0.2)
    pool = make_pool(1, finalizer=hang_at_the_end, maxtasksperchild=1 if way == "recycle" else None)
    assert pool.apply(abs, (-1,)) == 1
    if way == "recycle":
        assert pool.apply(abs, (-2,)) == 2  # a successor runs it
    pool.close()
    assert pool.join(30)


class NotThere:
    """Can be sent, and not be unpacked."""

    def __call__(self, state) -> None:
        raise AssertionError("it is never called")

    def __reduce__(self):
        return getattr, (abs, "there_is_no_such_thing")


def test_a_finalizer_that_cannot_be_loaded_fails_the_start(make_pool):
    pool = make_pool(1, finalizer=NotThere(), context="spawn")
    with pytest.raises(PoolBrokenError, match="there_is_no_such_thing"):
        pool.apply(abs, (-1,))


def make_nothing() -> object:
    raise FileNotFoundError("model.bin")


def test_a_state_that_cannot_be_made_breaks_the_pool(make_pool, context):
    pool = make_pool(1, make_nothing, finalizer=hang_at_the_end, context=context)
    with pytest.raises(PoolBrokenError, match=r"model\.bin"):
        pool.apply(abs, (-1,))


# --- the environment


def variable(name: str) -> str | None:
    return os.environ.get(name)


def devices(index: int) -> dict[str, str]:
    return {"TEST_DEVICE": f"device {index}"}


def device(_: object = None) -> tuple[int, str | None]:
    return current_worker().index, variable("TEST_DEVICE")


def first_device(_: object) -> tuple[int, str | None, str | None]:
    return *device(), current_worker().state


def test_each_worker_has_variables_of_its_own_before_its_initializer_runs(make_pool, context):
    pool = make_pool(2, variable, ("TEST_DEVICE",), env=devices, context=context)
    for place, found, initialised in pool.map(first_device, range(20), 1):
        assert found == initialised == f"device {place}"
    assert "TEST_DEVICE" not in os.environ


def test_a_mapping_is_for_all_of_them(make_pool, context):
    pool = make_pool(2, env={"TEST_DEVICE": "a 'b' \n c"}, context=context)
    assert set(pool.map(variable, ["TEST_DEVICE"] * 20, 1)) == {"a 'b' \n c"}


def test_a_successor_has_the_variables_of_its_predecessor(make_pool, context):
    asked: list[int] = []

    def ask(index: int) -> dict[str, str]:
        asked.append(index)
        return devices(index)

    pool = make_pool(2, env=ask, context=context)
    for _ in range(3):
        with pytest.raises(WorkerLostError):
            pool.apply(os._exit, (1,))
        place, found = pool.apply(device)
        assert found == f"device {place}"
    assert asked == [0, 1]


PROGRAM = """
import os
import sys

AT_IMPORT = os.environ.get("TEST_DEVICE")

def at_import(_):
    return AT_IMPORT

if __name__ == "__main__":
    from prefork import Pool

    with Pool(1, context=sys.argv[1], env={"TEST_DEVICE": "here"}) as pool:
        print(pool.map(at_import, [1]), os.environ.get("TEST_DEVICE"))
"""


def test_a_spawned_worker_has_them_before_it_imports_anything(script, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    status, out, err = script(program, "spawn").finish()
    assert (status, out) == (0, "['here'] None\n"), err


def test_the_name_of_a_process_is_but_a_name(make_pool, context):
    pool = make_pool(1, env={"TEST_DEVICE": "there"}, context=context)
    name = pool.apply(own_name)
    (process,) = pool._pool
    assert name == pickle.loads(pickle.dumps(process.name)) == "PreforkWorker-1"
    assert type(name) is type(pickle.loads(pickle.dumps(process.name))) is str
    assert "TEST_DEVICE" not in os.environ


def own_name() -> str:
    return multiprocessing.current_process().name


def test_who_is_added_has_variables_too(make_pool):
    pool = make_pool(1, env=devices)
    pool.grow(1)
    eventually(
        lambda: {found for _, found in pool.map(device, range(20), 1)} == {"device 0", "device 1"},
        "both run tasks",
    )


def only_one(index: int) -> dict[str, str]:
    if index:
        raise LookupError("there is one device")
    return {"TEST_DEVICE": "0"}


def test_what_is_raised_for_one_that_is_added_is_the_callers(make_pool):
    pool = make_pool(1, env=only_one)
    with pytest.raises(LookupError, match="one device"):
        pool.grow(1)
    assert pool.processes == 1
    assert pool.apply(index) == 0


@pytest.mark.parametrize(
    ("env", "error", "text"),
    [
        ({"A": 1}, TypeError, "env must map strings to strings, .* not 'A' to 1"),
        ({1: "A"}, TypeError, "env must map strings to strings"),
        ([("A", "B")], TypeError, r"env must map names .* not \[\('A', 'B'\)\]"),
        ("A=B", TypeError, "env must map names"),
        (lambda index: None, TypeError, r"env\(0\) must map names .* not None"),
        (lambda index: {"A": index}, TypeError, r"env\(0\) must map strings to strings"),
        ({"A=B": "C"}, ValueError, "env has a variable that there cannot be: 'A=B'"),
        ({"": "C"}, ValueError, "env has a variable"),
        ({"A": "\0"}, ValueError, "env has a variable"),
        (only_one, LookupError, "there is one device"),
    ],
)
def test_bad_variables_are_refused(env, error, text):
    with pytest.raises(error, match=text):
        Pool(2, env=env)


# --- CPUs


def cpus(_: object = None) -> tuple[int, set[int]]:
    return current_worker().index, os.sched_getaffinity(0)


@needs_affinity
def test_each_worker_has_a_cpu_to_itself(make_pool, context):
    pool = make_pool(3, cpu_affinity=True, context=context)
    for place, found in pool.map(cpus, range(20), 1):
        assert found == {CPUS[place % len(CPUS)]}
    assert sorted(os.sched_getaffinity(0)) == CPUS


@needs_affinity
@pytest.mark.parametrize(
    ("affinity", "expected"),
    [
        ([CPUS[-1], CPUS], [{CPUS[-1]}, {*CPUS}, {CPUS[-1]}]),
        (lambda index: {CPUS[0]}, [{CPUS[0]}] * 3),
        (False, [{*CPUS}] * 3),
    ],
    ids=["sequence", "function", "none"],
)
def test_cpus_may_be_chosen(make_pool, affinity, expected):
    pool = make_pool(3, cpu_affinity=affinity)
    for place, found in pool.map(cpus, range(20), 1):
        assert found == expected[place]


@needs_affinity
@pytest.mark.parametrize(
    ("affinity", "error", "text"),
    [
        ([99999], ValueError, r"cpu_affinity\[0\] has CPU 99999, which there is not"),
        (lambda index: [99999], ValueError, r"cpu_affinity\(0\) has CPU 99999"),
        ([[]], ValueError, r"cpu_affinity\[0\] has no CPU"),
        (["0"], TypeError, r"cpu_affinity\[0\] must be the number of a CPU"),
        ([1.5], TypeError, r"cpu_affinity\[0\] must be the number"),
        ("0", TypeError, "cpu_affinity must be True"),
        (0, TypeError, "cpu_affinity must be True"),
        ([], TypeError, "cpu_affinity must be True"),
    ],
)
def test_cpus_that_there_are_not_are_refused(affinity, error, text):
    with pytest.raises(error, match=text):
        Pool(2, cpu_affinity=affinity)


def test_a_system_that_binds_no_processes_says_so(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(NotImplementedError, match="cpu_affinity"):
        Pool(1, cpu_affinity=True)


@needs_affinity
def test_a_cpu_that_has_gone_meanwhile_breaks_the_pool(make_pool, monkeypatch):
    def refuse(pid: int, cpus: set[int]) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)  # in the forked worker, too
    pool = make_pool(1, cpu_affinity=True, context="fork")
    with pytest.raises(PoolBrokenError, match=f"the CPUs \\[{CPUS[0]}\\] cannot be had"):
        pool.apply(abs, (-1,))


# --- threads of BLAS and OpenMP


def test_as_many_threads_as_were_asked_for(make_pool, context):
    pool = make_pool(1, inner_max_num_threads=3, context=context)
    assert pool.apply(variable, ("OMP_NUM_THREADS",)) == "3"
    assert pool.apply(variable, ("OPENBLAS_NUM_THREADS",)) == "3"


def blas_threads() -> set[int]:
    import numpy  # noqa: F401
    import threadpoolctl

    return {each["num_threads"] for each in threadpoolctl.threadpool_info()}


@pytest.mark.skipif(len(CPUS) < 2, reason="there is one thread anyway")
def test_libraries_have_no_more_threads_than_that(make_pool, context):
    """Whether they are loaded in the worker, or were before it was forked."""
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("numpy")
    pool = make_pool(2, inner_max_num_threads=1, context=context)
    assert pool.apply(blas_threads) == {1}


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", True, float("nan")])
def test_a_number_of_threads_that_is_none_is_refused(number):
    with pytest.raises((TypeError, ValueError), match="inner_max_num_threads"):
        Pool(1, inner_max_num_threads=number)


# --- an executor has the same


@needs_affinity
def test_an_executor_takes_the_same(tmp_path, context):
    def env(index: int) -> dict[str, str]:
        return {**devices(index), "TEST_THREADS": "none"}

    with ProcessPoolExecutor(
        1,
        context,
        open_ledger,
        (tmp_path,),
        finalizer=close_ledger,
        env=env,
        cpu_affinity=[CPUS[0]],
        inner_max_num_threads=1,
    ) as executor:
        pid = executor.submit(use_ledger, None).result()
        assert executor.submit(cpus).result() == (0, {CPUS[0]})
        assert executor.submit(variable, "TEST_DEVICE").result() == "device 0"
        assert executor.submit(variable, "OMP_NUM_THREADS").result() == "1"
    assert closed(tmp_path) == {pid: 1}


def test_an_executor_refuses_the_same_at_once():
    with pytest.raises(TypeError, match="env must map"):
        ProcessPoolExecutor(1, env={"A": 1})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="finalizer must be callable"):
        ProcessPoolExecutor(1, finalizer="x")  # type: ignore[arg-type]


# --- attacked


def test_kills_at_any_moment_leave_each_place_taken_once(make_pool, tmp_path):
    pool = make_pool(
        3, open_ledger, (tmp_path,), finalizer=close_ledger, env=devices, max_restarts=1000
    )
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        result = pool.map_async(device, range(30), 1, retries=5)
        with contextlib.suppress(ProcessLookupError, IndexError):  # or it has ended meanwhile
            os.kill(pool._pool[0].pid, signal.SIGKILL)
        result.wait()
        assert result.successful()
        assert set(result.get()) <= {(i, f"device {i}") for i in range(3)}
    eventually(lambda: indices(pool) == {0, 1, 2} and len(pool._pool) == 3, "all are there")
