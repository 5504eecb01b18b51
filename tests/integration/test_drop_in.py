"""Programs that were written for `multiprocessing.Pool`, and read what is inside."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.pool
import os
import random
import signal
import sys
import threading
import time
import weakref

import numpy
import pytest

from gate import enter
from helpers import DEADLINE, METHODS, children, eventually, has_ended
from prefork import (
    ApplyResult,
    MapResult,
    Pool,
    Terminated,
    WorkerLostError,
    get_context,
    install,
    uninstall,
)

STANDARD = multiprocessing.pool.Pool


def square(x):
    return x * x


def fail(x):
    raise LookupError(x)


# --- names of the inside


def test_names_of_a_pool(make_pool, context, gate):
    pool = make_pool(3, square, (1,), 5, context)
    assert (pool._processes, pool._maxtasksperchild, pool._state) == (3, 5, "RUN")
    assert (pool._ctx, pool._initializer, pool._initargs) == (context, square, (1,))
    assert [w.pid for w in pool._pool] == [w.pid for w in pool.statistics().workers]
    assert all(w.is_alive() and w.exitcode is None for w in pool._pool)
    results = [pool.apply_async(enter, (gate,)) for _ in range(5)]
    a_map = pool.map_async(square, range(20), 1)
    visitors = [gate.arrival() for _ in range(3)]
    eventually(lambda: a_map._job, "the input of the map begins to be read")
    assert len(pool._cache) == 6
    assert set(pool._cache.values()) == {*results, a_map}
    assert results[0]._job in pool._cache
    assert pool._cache[a_map._job] is a_map
    assert pool._taskqueue.qsize() >= 2
    for visitor in visitors:
        visitor.go()
    for _ in range(2):
        gate.arrival().go()
    for each in (*results, a_map):
        each.get(DEADLINE)
    assert not pool._cache
    assert pool._taskqueue.empty()
    pool.close()
    assert pool._state == "CLOSE"
    pool.terminate()
    assert pool._state == "TERMINATE"


def test_what_a_pool_without_initializer_has(make_pool):
    pool = make_pool(1)
    assert (pool._initializer, pool._initargs, pool._maxtasksperchild) == (None, (), None)


def test_names_of_a_result(make_pool, gate):
    pool = make_pool(1)
    result = pool.apply_async(enter, (gate, 5))
    gate.arrival()
    assert not result._event.is_set()
    assert not result._event.wait(0.001)
    for name in ("_value", "_success"):
        assert not hasattr(result, name)
    assert result._job == result.job
    gate._visitors[0].go()
    assert result._event.wait(DEADLINE)
    assert (result._success, result._value) == (True, 5)
    failed = pool.apply_async(fail, (1,))
    failed.wait(DEADLINE)
    assert not failed._success
    assert isinstance(failed._value, LookupError)


def test_names_of_a_map(make_pool, gate):
    pool = make_pool(1)
    result = pool.starmap_async(enter, [(gate, 0), (gate, 1)], 1)
    visitor = gate.arrival()
    assert (result._length, result._number_left, result._chunksize) == (2, 2, 1)
    visitor.go()
    last = gate.arrival()
    eventually(lambda: result._number_left == 1, "the first has come")
    assert result._value == [0, None]
    assert result._success
    last.go()
    assert result.get(DEADLINE) == result._value == [0, 1]
    assert result._number_left == 0
    failed = pool.map_async(fail, [1])
    failed.wait(DEADLINE)
    assert not failed._success
    assert isinstance(failed._value, LookupError)


def test_names_of_an_iterator(make_pool):
    results = make_pool(1).imap(square, range(5))
    next(results)
    assert list(results) == [1, 4, 9, 16]
    assert (results._length, results._index) == (5, 5)


@pytest.mark.parametrize("name", ["_processes", "_pool", "_state", "_cache", "_ctx"])
def test_they_cannot_be_set(make_pool, name):
    pool = make_pool(1)
    with pytest.raises(AttributeError):
        setattr(pool, name, None)


# --- classes


class OwnPool(Pool):
    made = 0

    def __init__(self, *args):
        self.__class__.made += 1
        super().__init__(*args)


def test_pools_and_results_are_instances_of_the_standard_classes(make_pool):
    std = multiprocessing.pool
    pool = make_pool(1)
    assert isinstance(pool, std.Pool)
    assert isinstance(pool.apply_async(square, (1,)), std.AsyncResult)
    assert isinstance(pool.map_async(square, [1]), std.MapResult)
    assert isinstance(pool.imap(square, [1]), std.IMapIterator)
    assert isinstance(pool.imap_unordered(square, [1]), std.IMapUnorderedIterator)
    assert not isinstance(pool.apply_async(square, (1,)), std.MapResult)
    assert not isinstance(pool, std.ThreadPool)
    with OwnPool(1) as own:
        assert isinstance(own, std.Pool)
    assert OwnPool.made == 1


def test_so_they_are_if_those_are_imported_later(script):
    code = """if True:
        import sys, prefork
        class Own(prefork.Pool):
            pass
        pool, own = prefork.Pool(1, context="fork"), Own(1, context="fork")
        results = [pool.apply_async(len, "a"), pool.map_async(len, ["a"]), pool.imap(len, ["a"])]
        assert "multiprocessing.pool" not in sys.modules
        from multiprocessing import pool as std
        for each, cls in zip(results, (std.AsyncResult, std.MapResult, std.IMapIterator)):
            assert isinstance(each, cls), cls
            assert each.__class__ is type(each)
        assert isinstance(own, std.Pool) and isinstance(own, Own) and own.__class__ is Own
        assert isinstance(pool, std.Pool) and pool.__class__ is prefork.Pool
        pool.terminate(), own.terminate()
        """
    assert script(code).finish() == (0, "", "")


def test_numpys_integers_are_counts(make_pool):
    pool = make_pool(numpy.int64(2), maxtasksperchild=numpy.uint8(50))
    assert pool.processes == 2
    assert type(pool.processes) is int
    assert pool.map(square, range(5), numpy.int32(2)) == [0, 1, 4, 9, 16]
    assert list(pool.imap(square, range(5), numpy.int32(2), buffersize=numpy.int16(4))) == [
        *(0, 1, 4, 9, 16)
    ]
    pool.grow(numpy.int64(1))
    assert pool.processes == 3
    assert pool.apply(square, (3,), timeout=numpy.float32(50), retries=numpy.int64(1)) == 9


def test_the_fifth_argument_may_be_a_context(make_pool, context):
    assert make_pool(1, None, (), None, context)._ctx is context
    with pytest.raises(TypeError, match="context is given twice"):
        Pool(1, None, (), None, context, context="fork")


# --- processes


def test_active_children_knows_the_workers_and_takes_nothing_from_the_pool(make_pool, context):
    """Exit codes stay exact, though somebody asks all the time."""
    pool = make_pool(2, context=context)
    pids = {worker.pid for worker in pool.statistics().workers}
    assert pids <= {child.pid for child in multiprocessing.active_children()}
    over = threading.Event()

    def ask():
        while not over.wait(0.0005):
            multiprocessing.active_children()

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for code in range(3, 8):
            pool.map(square, range(50), 1)
            processes = eventually(lambda: len(pool._pool) == 2 and pool._pool, "both are there")
            with pytest.raises(WorkerLostError) as caught:
                pool.apply(os._exit, (code,))
            assert caught.value.exitcode == code
            [gone] = [p for p in processes if p.pid == caught.value.pid]
            assert gone.exitcode == code
            assert not gone.is_alive()
            gone.join(DEADLINE)
    finally:
        over.set()
        for thread in asking:
            thread.join()
    pool.terminate()
    assert not pids & {child.pid for child in multiprocessing.active_children()}
    pool.join()


def test_a_worker_that_is_ended_by_its_process_object_is_replaced(make_pool, context):
    pool = make_pool(1, context=context)
    [process] = pool._pool
    process.terminate()
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGTERM
    assert pool.apply(os.getpid) != process.pid


def test_nothing_is_left_of_workers_that_others_look_at(make_pool):
    # (A fork server and a resource tracker would be children, too, and stay.)
    pool = make_pool(1, maxtasksperchild=1, context="fork")
    before = len(children())
    kept = []
    for _ in range(10):
        kept += pool._pool
        multiprocessing.active_children()
        pool.apply(square, (1,))
    pool.close()
    assert pool.join(DEADLINE)
    assert all(has_ended(process.pid) for process in kept)
    assert len(children()) < before


def test_a_forked_child_ends_without_a_word_about_the_parents_workers(script):
    code = """if True:
        import os, sys, warnings, prefork
        pool = prefork.Pool(2, context="fork")
        warnings.simplefilter("ignore", DeprecationWarning)  # it has threads, the pool's
        if os.fork() == 0:
            sys.exit(3)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        print(pool.apply(len, ("abc",)))
        """
    assert script(code).finish() == (0, "3\n3\n", "")


def begin_session():
    os.setsid()


def session():
    return os.getsid(0), os.getpgrp(), os.getpid()


@pytest.mark.parametrize("initializer", [begin_session, os.setsid])
def test_an_initializer_may_begin_a_session(make_pool, context, initializer, gate):
    pool = make_pool(1, initializer, context=context)
    assert len(set(pool.apply(session))) == 1
    lost = pool.apply_async(fork_and_stay, (gate,))
    grandchild = gate.arrival().pid
    pool.terminate()
    with pytest.raises(Terminated):
        lost.get(DEADLINE)
    eventually(lambda: has_ended(grandchild), "it goes with its group")


def fork_and_stay(gate):
    if os.fork() == 0:
        gate.enter()
    time.sleep(1000)


# --- random numbers


def draw(barrier_seconds):
    return os.getpid(), random.random(), float(numpy.random.rand()), numpy.random.randint(1 << 60)


@pytest.mark.parametrize("kind", [numpy.random.MT19937, numpy.random.PCG64])
def test_forked_workers_draw_different_numbers(make_pool, kind):
    before = numpy.random.get_bit_generator()
    numpy.random.set_bit_generator(kind(1))
    try:
        pool = make_pool(3, context="fork", maxtasksperchild=2)
        drawn = [pool.apply(draw, (0,)) for _ in range(12)]
        here = draw(0)
        assert pool.apply(bit_generator) == kind.__name__
    finally:
        numpy.random.set_bit_generator(before)
    for numbers in zip(*[each[1:] for each in (*drawn, here)], strict=True):
        assert len(set(numbers)) == 13


def bit_generator():
    return type(numpy.random.get_bit_generator()).__name__


def test_an_initializer_may_seed(make_pool):
    pool = make_pool(1, numpy.random.seed, (5,), context="fork")
    assert pool.apply(draw, (0,))[2] == numpy.random.RandomState(5).rand()


# --- contexts


@pytest.mark.parametrize("method", [None, *METHODS])
def test_a_context_makes_pools(method):
    context = get_context(method)
    standard = multiprocessing.get_context(method)
    assert context.get_start_method() == standard.get_start_method()
    assert context.cpu_count() == standard.cpu_count()
    assert context.get_context() is context
    assert context.get_context("spawn").get_start_method() == "spawn"
    with context.Pool(1, max_restarts=3) as pool:
        assert type(pool) is Pool
        assert pool._ctx.get_start_method() == standard.get_start_method()
        assert pool.apply(square, (3,)) == 9


def test_a_context_that_there_is_not():
    with pytest.raises(ValueError, match="nonsense"):
        get_context("nonsense")


@pytest.fixture
def installed():
    install()
    yield
    uninstall()


def test_installed(installed, context):
    makers = [
        lambda: multiprocessing.pool.Pool(1),
        lambda: multiprocessing.Pool(1),
        lambda: context.Pool(1, None, (), 5),
    ]
    for make in makers:
        with make() as pool:
            assert isinstance(pool, Pool)
            assert isinstance(pool, multiprocessing.pool.Pool)
            assert isinstance(pool, STANDARD)
            assert pool.apply(square, (3,)) == 9
    assert pool._ctx is context


class NestablePool:
    """A well-known recipe."""

    @staticmethod
    def make():
        class NoDaemonProcess(multiprocessing.Process):
            daemon = property(lambda self: False, lambda self, value: None)

        class NoDaemonContext(type(multiprocessing.get_context("fork"))):  # type: ignore[misc]
            Process = NoDaemonProcess

        class Nestable(multiprocessing.pool.Pool):
            def __init__(self, *args, **kwargs):
                kwargs["context"] = NoDaemonContext()
                super().__init__(*args, **kwargs)

        return Nestable(1)


def test_a_recipe_for_nested_pools(installed):
    with NestablePool.make() as pool:
        assert isinstance(pool, Pool)
        assert pool.apply(inner_pool) == 9


def inner_pool():
    with Pool(1) as pool:
        return pool.apply(square, (3,))


def test_thread_pools_and_pools_that_there_are_go_on():
    with STANDARD(1) as before, multiprocessing.pool.ThreadPool(1) as threads_before:
        install()
        try:
            assert before.map(square, range(5)) == [0, 1, 4, 9, 16]
            assert threads_before.map(square, range(5)) == [0, 1, 4, 9, 16]
            with multiprocessing.pool.ThreadPool(2) as threads:
                assert threads.map(square, range(5)) == [0, 1, 4, 9, 16]
                assert not isinstance(threads, Pool)
        finally:
            uninstall()
        assert before.apply(square, (3,)) == 9


def test_what_is_uninstalled_is_as_it_was():
    def there():
        return (
            multiprocessing.pool.Pool,
            STANDARD.__module__,
            STANDARD.__qualname__,
            multiprocessing.Pool,
            multiprocessing.context.BaseContext.Pool,
        )

    before = there()
    install()
    install()
    assert multiprocessing.pool.Pool is not STANDARD
    uninstall()
    assert there() == before
    uninstall()
    assert there() == before


def test_it_is_installed_by_any_thread():
    threads = [
        threading.Thread(target=lambda: [f() for _ in range(50) for f in (install, uninstall)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    uninstall()
    assert multiprocessing.pool.Pool is STANDARD


def test_managers_start_while_it_is_installed(installed, context):
    """They pickle the standard class by its name."""
    with context.Manager() as manager, manager.Pool(1) as pool:
        assert pool.apply(square, (3,)) == 9


# --- hints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_workers": 4}, "'max_workers': max_workers is called processes here"),
        ({"mp_context": "fork"}, "'mp_context': mp_context is called context here"),
        ({"nonsense": 1}, r"^Pool\(\) got an unexpected keyword argument 'nonsense'$"),
    ],
)
def test_options_by_other_names(options, message):
    with pytest.raises(TypeError, match=message):
        Pool(**options)


@pytest.mark.parametrize("verb", ["apply", "apply_async", "map", "map_async", "imap", "each_async"])
def test_a_function_that_was_called_already(make_pool, verb):
    pool = make_pool(1)
    with pytest.raises(TypeError, match=r"must be callable, not 9: pass the function itself"):
        getattr(pool, verb)(square(3), [1])


@pytest.mark.usefixtures("without_cloudpickle")
@pytest.mark.parametrize("verb", ["apply", "map"])
def test_a_function_that_cannot_be_pickled(make_pool, verb):
    with pytest.raises(Exception, match=r"lambda.*at the top level of a module"):
        getattr(make_pool(1), verb)(lambda x: x, [1])


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_program_without_a_guard_for_its_main_module(script, tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(f"import prefork; prefork.Pool(1, context={method!r}).map(len, ['a'])")
    code, _, err = script(program).finish()
    assert code == 1
    assert 'belongs under `if __name__ == "__main__":`' in err


def test_messages_name_the_result(make_pool, gate):
    pool = make_pool(1)
    result = pool.apply_async(enter, (gate,))
    gate.arrival()
    message = rf"^the result of job {result.job} \(gate.enter\) was not ready"
    with pytest.raises(multiprocessing.TimeoutError, match=message):
        result.get(0.001)


# --- what a failure keeps


class Large:
    """What a partial result is made of."""

    def __init__(self, x=0):
        if x == 3:
            raise LookupError(x)
        alive.add(self)

    def __setstate__(self, state):
        alive.add(self)

    def __getstate__(self):
        return {"x": 1}


alive: weakref.WeakSet[Large] = weakref.WeakSet()


VERBS = {
    "map": lambda pool: pool.map(Large, range(6), 1),
    "map_async": lambda pool: kept[0].get(DEADLINE),
}
kept: list[MapResult] = []


@pytest.mark.parametrize("method", VERBS)
def test_partial_results_of_a_failed_map_go_with_the_exception(make_pool, method):
    pool = make_pool(1)
    kept[:] = [pool.map_async(Large, range(6), 1)]
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(LookupError):
            VERBS[method](pool)
        kept[0].wait(DEADLINE)
        pool.apply(square, (1,))  # the handler has let go of the last job
        assert not alive
    finally:
        gc.enable()


def run_and_fail(pool):
    try:
        pool.map(fail, range(3), 1)
    except LookupError:
        return
    raise AssertionError


def test_a_failed_call_leaves_no_cycle(make_pool):
    pool = make_pool(1)
    run_and_fail(pool)
    pool.apply(square, (1,))  # the handler has let go of the last job
    gc.collect()
    gc.disable()
    try:
        before = len([o for o in gc.get_objects() if isinstance(o, MapResult | ApplyResult)])
        run_and_fail(pool)
        pool.apply(square, (1,))
        found = [o for o in gc.get_objects() if isinstance(o, MapResult | ApplyResult)]
        assert len(found) <= before  # those of other tests may go meanwhile
    finally:
        gc.enable()


def test_jobs_of_one_terminate_have_errors_of_their_own(make_pool, gate):
    pool = make_pool(1)
    results = [pool.apply_async(enter, (gate,)) for _ in range(3)]
    results.append(pool.map_async(enter, [gate] * 3))
    gate.arrival()
    pool.terminate()
    errors = []
    for result in results:
        with pytest.raises(Terminated) as caught:
            result.get(DEADLINE)
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == len(results)
    assert len({str(error) for error in errors}) == 1


# --- libraries that replace the standard one


class Monkey:
    """Looks like `gevent.monkey`."""

    def __init__(self, *patched):
        self.patched = patched

    def is_module_patched(self, name):
        return name in self.patched


def test_what_another_library_has_replaced_is_said_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "gevent.monkey", Monkey("threading", "queue", "socket"))
    with pytest.raises(RuntimeError, match=r"^gevent has patched threading, queue, .*thread=False"):
        Pool(1)
    monkeypatch.setitem(sys.modules, "gevent.monkey", Monkey("socket", "ssl"))
    with Pool(1) as pool:
        assert pool.apply(square, (3,)) == 9
