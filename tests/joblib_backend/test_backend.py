"""joblib's `Parallel` on this pool: results, errors, limits, and what becomes of the workers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings

import joblib
import pytest
from joblib import Parallel, delayed, parallel_config

import prefork.joblib
from helpers import DEADLINE, NEVER, eventually, has_ended, mark, mark_and_stay, marked
from prefork import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from prefork.adapters import AdapterPool
from prefork.joblib import workers


@pytest.fixture
def config():
    """Selects the backend, with these options."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            parallel_config(backend="prefork", **{"n_jobs": 2, **options})
        )


def stay(*_):
    while True:
        signal.pause()


def pids():
    return {w.pid for w in workers._now.pool.statistics().workers}


# --- calls


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
def test_results(config, return_as, batch_size):
    config()
    found = Parallel(return_as=return_as, batch_size=batch_size)(
        delayed(divmod)(i, 10) for i in range(200)
    )
    order = sorted if return_as == "generator_unordered" else list
    assert order(found) == [divmod(i, 10) for i in range(200)]


def test_what_pickle_has_no_name_for(config):
    config()

    class Local:
        def __init__(self, value):
            self.value = value

    offset = 5
    found = Parallel()(delayed(lambda x: Local(x + offset))(i) for i in range(3))
    assert [(type(each), each.value) for each in found] == [(Local, 5), (Local, 6), (Local, 7)]


def test_an_error_of_a_local_class_comes_back_with_its_traceback(config):
    config()

    class LocalError(Exception):
        pass

    def fail():
        raise LocalError("why", 3)

    with pytest.raises(LocalError) as caught:
        Parallel()(delayed(fail)() for _ in range(3))
    assert caught.value.args == ("why", 3)
    assert "in fail" in str(caught.value.__cause__)


def test_what_cannot_be_pickled_is_an_error(config):
    config()
    with pytest.raises(Exception, match="could not pickle the task"):
        Parallel()(delayed(id)(threading.Lock()) for _ in range(10))
    with pytest.raises(TypeError, match="cannot pickle"):
        Parallel()(delayed(threading.Lock)() for _ in range(10))
    assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_large_arrays_are_mapped_once_and_their_files_go(config):
    np = pytest.importorskip("numpy")
    config(max_nbytes="1K")
    array = np.arange(10_000)

    def look(array):
        return type(array).__name__, array.filename, array.flags.writeable, int(array.sum())

    found = Parallel()(delayed(look)(array) for _ in range(4))
    assert len(set(found)) == 1
    kind, file, writeable, total = found[0]
    assert (kind, writeable, total) == ("memmap", False, 49_995_000)
    assert not os.path.exists(os.path.dirname(file))


def test_arrays_of_objects_and_results(config):
    np = pytest.importorskip("numpy")
    config(max_nbytes=None)
    for array in (np.zeros(1 << 17), np.array([lambda: 1, None]), np.arange(3).astype(">i4")):
        back, writeable = Parallel()(delayed(lambda a: (a, a.flags.writeable))(array) for _ in "a")[
            0
        ]
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert writeable
        assert back.flags.writeable


# --- limits and crashes


@pytest.mark.parametrize("batch_size", ["auto", 4])
def test_a_time_limit_is_of_each_task_and_kills_that_alone(config, batch_size, tmp_path):
    config(timeout=2.0)

    def task(i):
        if i == 2:
            mark(tmp_path / "pid", os.getpid())
            stay()
        return i

    with pytest.raises(TimeLimitExceeded) as caught:
        Parallel(batch_size=batch_size)(delayed(task)(i) for i in range(8))
    assert caught.value.pid == int(marked(tmp_path / "pid"))
    assert "in stay" in caught.value.stack
    # All of a batch together take longer than one may.
    found = Parallel(batch_size=4)(delayed(time.sleep)(0.6) for _ in range(8))
    assert found == [None] * 8


def test_what_a_worker_imports_does_not_count(config, tmp_path):
    """Time limits begin when the task does: a new worker would never get over its imports."""
    config(timeout=1.0, soft_timeout=0.9, initializer=int)  # new workers

    class Slow:
        def __reduce__(self):
            return sleep_and_return, (2.0,)

    assert Parallel()(delayed(str)(Slow()) for _ in range(2)) == ["here"] * 2
    with pytest.raises(SoftTimeLimitExceeded):
        Parallel()(delayed(stay)(Slow()) for _ in range(2))


def sleep_and_return(seconds):
    time.sleep(seconds)
    return "here"


def test_a_soft_time_limit(config):
    config(soft_timeout=0.5)
    with pytest.raises(SoftTimeLimitExceeded):
        Parallel()(delayed(stay)() for _ in range(2))


def test_a_crash_is_told(config):
    config()
    with pytest.raises(WorkerLostError) as caught:
        Parallel()(delayed(os._exit)(3) for _ in range(2))
    assert caught.value.exitcode == 3
    assert caught.value.function == "posix._exit"
    assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_retries(config, tmp_path):
    config(retries=1)

    def task(i):
        if i == 1 and not (tmp_path / "tried").exists():
            mark(tmp_path / "tried")
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    assert Parallel()(delayed(task)(i) for i in range(4)) == [0, 1, 2, 3]


def test_joblibs_own_timeout(config):
    config()
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.2)(delayed(stay)(i) for i in range(4))
    assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


# --- calls that end early


def test_an_interrupted_call_ends_its_tasks(config, tmp_path):
    config()
    threading.Thread(
        target=lambda: (marked(tmp_path / "here"), os.kill(os.getpid(), signal.SIGINT))
    ).start()
    with pytest.raises(KeyboardInterrupt):
        Parallel()(delayed(mark_and_stay)(tmp_path / "here") for _ in range(1))
    pid = int(marked(tmp_path / "here"))
    eventually(lambda: has_ended(pid), "the task ends")
    assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_a_call_that_is_interrupted_while_it_is_handed_in_ends_its_tasks(
    config, tmp_path, monkeypatch
):
    config()
    apply_noted = AdapterPool.apply_noted

    def interrupted(*args):
        apply_noted(*args)
        marked(tmp_path / "here")
        raise KeyboardInterrupt

    monkeypatch.setattr(AdapterPool, "apply_noted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Parallel()(delayed(mark_and_stay)(tmp_path / "here") for _ in range(1))
    monkeypatch.undo()
    pid = int(marked(tmp_path / "here"))
    eventually(lambda: has_ended(pid), "the task ends")
    assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


@pytest.mark.usefixtures("nobody_else")
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_dropped_generator_ends_its_tasks_and_no_others(config, return_as, tmp_path):
    config()

    def task(i):
        if i:
            mark_and_stay(tmp_path / "stays")

    other = Parallel(return_as="generator")(
        delayed(wait_for)(tmp_path / "done", i) for i in range(1)
    )
    found = Parallel(return_as=return_as)(delayed(task)(i) for i in range(2))
    next(found)
    pid = int(marked(tmp_path / "stays"))
    with pytest.warns(UserWarning, match="have been cancelled"):
        found.close()
    eventually(lambda: has_ended(pid), "the task ends")
    mark(tmp_path / "done")
    assert list(other) == [0]


def wait_for(path, value):
    marked(path)
    return value


def test_an_error_ends_the_call_at_once(config, tmp_path):
    config()

    def task(i):
        if i == 0:
            mark_and_stay(tmp_path / "stays")
        marked(tmp_path / "stays")
        raise LookupError(i)

    with pytest.raises(LookupError):
        Parallel()(delayed(task)(i) for i in range(2))
    pid = int(marked(tmp_path / "stays"))
    eventually(lambda: has_ended(pid), "the other task ends")


# --- workers


@pytest.fixture
def nobody_else():
    """No job of the test before is being ended, with its worker."""
    prefork.joblib.shutdown()


@pytest.mark.usefixtures("nobody_else")
def test_workers_are_kept_for_the_next_call(config):
    config()
    first = set(Parallel()(delayed(os.getpid)() for _ in range(20)))
    there = pids()
    second = set(Parallel()(delayed(os.getpid)() for _ in range(20)))
    assert first | second <= there == pids()


@pytest.mark.usefixtures("nobody_else")
def test_a_call_for_others_replaces_them(config):
    config()
    Parallel()(delayed(abs)(i) for i in range(2))
    before = pids()
    assert len(before) == 2
    Parallel(n_jobs=3)(delayed(abs)(i) for i in range(2))
    assert len(pids()) == 3
    for pid in before:
        eventually(lambda pid=pid: has_ended(pid), "a worker that was replaced has ended")


def test_idle_workers_are_let_go(config):
    config(idle_worker_timeout=0.2)
    Parallel()(delayed(abs)(i) for i in range(2))
    eventually(lambda: workers._now is None, "they are let go")


@pytest.mark.usefixtures("nobody_else")
def test_several_threads_share_them(config):
    found = []

    def calls():
        with parallel_config(backend="prefork", n_jobs=2):
            found.extend(
                Parallel()(delayed(abs)(-i) for i in range(20)) == list(range(20)) for _ in range(5)
            )

    threads = [threading.Thread(target=calls) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(DEADLINE)
    assert found == [True] * 15
    assert workers._now.users == 0
    assert len(pids()) == 2


def test_an_initializer(config):
    greeting = {}
    config(initializer=lambda text: greeting.update(text=text), initargs=("hello",))
    assert Parallel()(delayed(lambda: greeting)() for _ in range(1)) == [{}]  # a copy of this one

    def initializer(text):
        os.environ["GREETING"] = text

    config(initializer=initializer, initargs=("hello",))
    assert Parallel()(delayed(os.getenv)("GREETING") for _ in range(2)) == ["hello"] * 2


def test_libraries_get_their_number_of_threads_before_they_are_loaded(config):
    names = prefork.joblib.PreforkBackend.MAX_NUM_THREADS_VARS
    config(inner_max_num_threads=3)
    found = Parallel()(delayed(os.getenv)(name) for name in names)
    assert found == ["3"] * len(names)


def test_libraries_share_the_cpus(config, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config()
    share = max(joblib.cpu_count() // 2, 1)
    assert Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in "a") == [str(share)]


def test_a_forked_child_has_workers_of_its_own(config):
    config()
    assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = Parallel()(delayed(abs)(-i) for i in range(3)) != [0, 1, 2]
            prefork.joblib.shutdown()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


# --- joblib inside joblib


def test_inside_a_task_there_are_threads(config):
    config()

    def task():
        return Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4)), os.getpid()

    (inside, pid), *_ = Parallel()(delayed(task)() for _ in range(2))
    assert set(inside) == {pid}


def test_inside_one_another(config):
    config()

    def count(levels):
        if not levels:
            return 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            parts = Parallel(n_jobs=2, backend="prefork")(
                delayed(count)(levels - 1) for _ in range(2)
            )
        if levels == 1:
            assert "cannot be nested in more than 3 levels" in str(caught[0].message)
        return sum(parts)

    assert count(4) == 16


# --- bad input


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"timout": 1}, TypeError, "has no option 'timout'; it has timeout"),
        ({"timeout": -1}, ValueError, "timeout must be more than 0 seconds"),
        ({"soft_timeout": "1"}, TypeError, "soft_timeout must be a number"),
        ({"retries": 1.5}, TypeError, "retries must be an int"),
        ({"initializer": 3}, TypeError, "initializer must be callable"),
        ({"max_memory_per_task": 0}, ValueError, "max_memory_per_task must be at least 1"),
    ],
)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        parallel_config(backend="prefork", **options)
    if "timeout" not in options:  # that one is joblib's own there
        with pytest.raises(error, match=text):
            Parallel(n_jobs=2, backend="prefork", **options)([])


def test_limits_cannot_be_kept_without_workers(config):
    config(n_jobs=1, timeout=NEVER)
    with pytest.warns(UserWarning, match="no limits hold"):
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_an_iterator_of_tasks_that_raises(config):
    config()

    def tasks():
        yield from (delayed(abs)(i) for i in range(20))
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        Parallel()(tasks())


# --- programs


PROGRAM = """
import sys
import prefork.joblib
from joblib import Parallel, delayed, parallel_config
print("the program runs")
class Point:
    def __init__(self, x):
        self.x = x
def double(point):
    return Point(2 * point.x)
with parallel_config(backend="prefork", n_jobs=2):
    found = Parallel()(delayed(double)(Point(i)) for i in range(3))
print([isinstance(p, Point) and p.x for p in found])
"""


@pytest.mark.parametrize("way", ["file", "-c"])
def test_a_program_without_a_guard(way, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    arguments = [str(tmp_path / "program.py")] if way == "file" else ["-c", PROGRAM]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("the program runs\n[0, 2, 4]\n", "")
