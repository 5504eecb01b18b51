"""Pools leave nothing behind: no thread, no descriptor, no process, no name in /dev/shm."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import weakref
from typing import Any

import pytest

from gate import enter
from helpers import DEADLINE, children, eventually
from prefork import Pool, Terminated
from prefork._engine.engine import Engine
from prefork._engine.roles import ResultHandler, Supervisor
from prefork._engine.supervisor import WorkerSupervisor

pytestmark = pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")

POOLS = {"fork": 50, "forkserver": 10, "spawn": 8}


def possessions():
    """Our threads, descriptors, children (zombies, too) and names in /dev/shm."""
    shm = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return {
        *threading.enumerate(),
        *(f"descriptor {fd}" for fd in os.listdir("/proc/self/fd")),
        *(f"child {child.pid}" for child in children()),
        *(f"/dev/shm/{name}" for name in shm),
    }


def close(pool):
    pool.close()
    assert pool.join(DEADLINE)


def terminate(pool):
    pool.terminate()
    assert pool.join(DEADLINE)


def leave(pool):
    with pool:
        pass


def drop(pool):
    pass


def die(pool):
    pool.apply_async(os._exit, (1,)).wait(DEADLINE)
    close(pool)


def use(context, end, jobs):
    pool = Pool(2, context=context)
    results: list[Any] = [pool.apply_async(abs, (-n,)) for n in range(jobs)]
    results += [pool.apply_async(bytes, (n,)) for n in range(0, jobs * 100_000, 100_000)]
    results += [pool.apply_async(len, (bytes(n),)) for n in range(0, jobs * 100_000, 100_000)]
    end(pool)


@pytest.mark.promise(number=6)
@pytest.mark.serial  # what others in this process start would count
@pytest.mark.parametrize("end", [close, terminate, leave, drop, die])
def test_nothing_is_left(context, end):
    use(context, terminate, 1)  # this may start a fork server and the like, which stay
    gc.collect()
    before = possessions()
    for number in range(POOLS[context.get_start_method()]):
        use(context, end, jobs=4 * (number % 2))
    gc.collect()
    try:
        eventually(lambda: possessions() <= before, "")
    except AssertionError:
        assert possessions() - before == set()


@pytest.mark.promise(number=6)
@pytest.mark.serial
@pytest.mark.parametrize("what", [Engine, ResultHandler, Supervisor])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_start_leaves_nothing(monkeypatch, capfd, what, when):
    """Ctrl-C, just before or after all of it, or one of its threads, has been started."""
    use(multiprocessing.get_context("fork"), terminate, 1)
    gc.collect()
    before = possessions()
    start = what.start

    def interrupted(self, *args):
        if when == "after":
            start(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(what, "start", interrupted)
        if when == "after" and what is not ResultHandler:  # the supervisor runs, and does it alone
            patch.setattr(WorkerSupervisor, "kill_all", None)
        with pytest.raises(KeyboardInterrupt):
            Pool(2, context="fork")
    eventually(lambda: gc.collect() >= 0 and possessions() <= before, "nothing is left")
    assert capfd.readouterr().err == ""


class Caller:
    """It holds the result of its own method.

    Args:
        trouble: where an exception comes up that holds the caller, if any does.
    """

    def __init__(self, pool, trouble=""):
        self.trouble = trouble
        self.result = pool.apply_async(self.run, callback=self.note, error_callback=self.note)

    def __getstate__(self):
        if self.trouble == "pickling":
            raise ValueError(self)
        return {"trouble": self.trouble}

    def run(self):
        if self.trouble == "running":
            raise ValueError(self)

    def note(self, outcome):
        pass


def drop_first(callers):
    """Nobody else holds the first of these: it is freed, and so is its result."""
    caller = callers.pop(0)
    references = weakref.ref(caller), weakref.ref(caller.result)
    del caller
    gone = (None, None)
    eventually(lambda: gc.collect() >= 0 and tuple(ref() for ref in references) == gone, "freed")


@pytest.mark.parametrize("trouble", ["", "pickling", "running"])
def test_a_caller_that_holds_its_own_result_is_freed(make_pool, trouble):
    pool = make_pool(1)
    callers = [Caller(pool, trouble)]
    callers[0].result.wait(DEADLINE)
    assert callers[0].result.successful() == (not trouble)
    drop_first(callers)


def test_a_caller_whose_call_was_never_run_is_freed(make_pool, gate):
    pool = make_pool(1)
    pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    callers = [Caller(pool), Caller(pool)]
    assert callers[0].result.cancel()
    with pytest.raises(Terminated):
        callers[0].result.get(DEADLINE)
    drop_first(callers)
    pool.terminate()
    drop_first(callers)
    visitor.go()


@pytest.mark.parametrize(
    "ask",
    [
        lambda pool: pool.apply_async(abs, (-1,)),
        lambda pool: pool.map_async(abs, [-1]),
        lambda pool: pool.imap(abs, [-1]),
        lambda pool: pool.imap_unordered(abs, [-1]),
    ],
    ids=["apply_async", "map_async", "imap", "imap_unordered"],
)
def test_a_result_can_be_referred_to_weakly(make_pool, ask):
    pool = make_pool(1)
    result = ask(pool)
    reference = weakref.ref(result)
    gc.collect(0)
    assert reference() is result
    result.wait(DEADLINE) if hasattr(result, "wait") else next(result)  # type: ignore[arg-type]
    gc.collect(0)
    assert reference() is result
    del result
    eventually(lambda: gc.collect() >= 0 and reference() is None, "it is freed")


def test_results_of_an_input_that_a_thread_has_read_are_freed_at_once(make_pool):
    """They may be large: they do not wait until the garbage collector looks for cycles."""
    pool = make_pool(1)
    gc.collect()
    gc.disable()
    try:
        handle = pool.map_async(str, range(100), chunksize=1)
        assert len(handle.get(DEADLINE)) == 100
        gone = weakref.ref(handle)
        del handle
        eventually(lambda: gone() is None, "they are freed")
    finally:
        gc.enable()


def test_no_object_of_a_compiled_class_can_be_referred_to_weakly():
    """It would end without a word to the reference."""
    modules = [module for name, module in sys.modules.items() if name.startswith("prefork.")]
    compiled = [module for module in modules if (module.__file__ or "").endswith(".so")]
    classes = {kind for module in compiled for kind in vars(module).values() if type(kind) is type}
    own = {kind for kind in classes if kind.__module__ in {module.__name__ for module in compiled}}
    assert not [kind for kind in own if kind.__weakrefoffset__]
