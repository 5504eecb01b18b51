"""`TaskPool` on its own: calls with callbacks, without celery."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import queue
import signal
import subprocess
import sys
import weakref

import pytest

import prefork.taskpool
from gate import enter
from helpers import DEADLINE, eventually, has_ended
from prefork import PoolBrokenError, TaskPool, Terminated, TimeLimitExceeded, WorkerLostError

SOON = 0.05


@pytest.fixture
def make(request):
    pools = []

    def start(*args, **options):
        pools.append(TaskPool(*args, **options))
        pools[-1].start()
        return pools[-1]

    yield start
    for pool in pools:
        pool.terminate()


class Calls(queue.SimpleQueue):
    """Callbacks that put what they are told here."""

    def options(self):
        names = ("callback", "error_callback", "accept_callback")
        return {
            **{name: functools.partial(self.told, name) for name in names},
            "timeout_callback": lambda soft, timeout: self.told("timeout_callback", soft, timeout),
        }

    def told(self, name, *values):
        self.put((name, *values))

    def next(self):
        return self.get(timeout=DEADLINE)


def signals_now():
    names = sorted(prefork.taskpool.WORKER_SIGRESET - {"SIGUSR1"})
    handlers = {signal.getsignal(getattr(signal, name)) for name in names}
    return handlers == {signal.SIG_DFL}, signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def hang():
    signal.sigwait([signal.SIGUSR2])


def test_the_names_of_the_seed():
    assert {"SIGINT"} == prefork.taskpool.WORKER_SIGIGNORE
    reset = {"SIGHUP", "SIGTERM", "SIGTTOU", "SIGTTIN", "SIGUSR1"}
    assert reset == prefork.taskpool.WORKER_SIGRESET
    assert list(inspect.signature(prefork.taskpool.process_initializer).parameters) == [
        "app",
        "hostname",
    ]
    assert TaskPool.requires_mediator is True
    parameters = inspect.signature(TaskPool).parameters
    assert list(parameters) == ["limit", "putlocks", "options"]
    assert parameters["putlocks"].default is True
    for name in ("Pool", "on_start", "on_stop", "on_terminate", "grow", "shrink", "restart"):
        assert callable(getattr(TaskPool, name))


def test_it_does_not_import_celery():
    code = "import prefork, sys; assert not {'celery', 'kombu', 'billiard'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE)


@pytest.mark.parametrize("forking", [True, False])
def test_a_task(make, forking):
    pool, calls = make(1, forking_enable=forking, an_option_of_others=1), Calls()
    assert pool.active
    assert pool.did_start_ok()
    pool.apply_async(pow, (2, 10), **calls.options())
    accepted = calls.next()
    assert (accepted[0], accepted[1]) == ("accept_callback", pool.info["processes"][0])
    assert calls.next() == ("callback", 1024)
    pool.apply_async(signals_now, callback=calls.put)
    assert calls.next() == (True, True)
    pool.stop()
    assert not pool.active


def test_errors(make):
    pool, calls = make(1), Calls()
    pool.apply_async(int, ("x",), error_callback=calls.put)
    assert isinstance(calls.next(), ValueError)
    pool.apply_async(os._exit, (3,), error_callback=calls.put)
    assert isinstance(calls.next(), WorkerLostError)
    pool.apply_async(hang, timeout=SOON, **calls.options())
    assert [calls.next()[0] for _ in range(2)] == ["accept_callback", "timeout_callback"]
    assert isinstance(calls.next()[1], TimeLimitExceeded)


def test_terminate_job(make, gate):
    pool, calls = make(2), Calls()
    task = pool.apply_async(enter, (gate,), **calls.options())
    pid = gate.arrival().pid
    assert calls.next()[0] == "accept_callback"
    assert weakref.ref(task)() is task
    pool.terminate_job(pid, signal.SIGTERM)
    assert isinstance(calls.next()[1], Terminated)
    pool.terminate_job(pid)  # nobody is there
    task.terminate(signal.SIGTERM)  # nor here
    eventually(lambda: has_ended(pid), "the process ends")


def test_flush_drops_what_has_not_started(make, gate):
    pool, calls = make(1, putlocks=False), Calls()
    pool.apply_async(enter, (gate, 1), callback=calls.put)
    visitor = gate.arrival()
    for _ in range(10):
        pool.apply_async(pow, (2, 2), **calls.options())
    pool.flush()
    visitor.go()
    assert calls.next() == 1
    eventually(lambda: not pool.tasks, "all are gone")
    pool.apply_async(pow, (2, 3), callback=calls.put)
    assert calls.next() == 8


def test_terminate_tells_nobody(make, gate):
    pool, calls = make(1), Calls()
    pool.apply_async(enter, (gate,), callback=calls.put, error_callback=calls.put)
    gate.arrival()
    pool.terminate()
    assert pool.pool.join(DEADLINE)
    assert calls.empty()
    with pytest.raises(ValueError, match="takes no more jobs"):
        pool.apply_async(pow, (2, 2))


class Semaphore:
    def __init__(self):
        self.log = queue.SimpleQueue()

    def release(self):
        self.log.put("release")

    def grow(self, n=1):
        self.log.put(f"grow {n}")

    def shrink(self, n=1):
        self.log.put(f"shrink {n}")

    def clear(self):
        self.log.put("clear")


def test_the_semaphore(make):
    semaphore = Semaphore()
    pool = make(1, putlocks=False, semaphore=semaphore)
    pool.apply_async(pow, (2, 2))
    pool.apply_async(os._exit, (1,))
    pool.apply_async(hang, timeout=SOON)
    assert [semaphore.log.get(timeout=DEADLINE) for _ in range(3)] == ["release"] * 3
    pool.grow(2)
    assert semaphore.log.get(timeout=DEADLINE) == "grow 2"
    assert pool.num_processes == 3
    pool.shrink(1)
    assert semaphore.log.get(timeout=DEADLINE) == "shrink 1"
    with pytest.raises(ValueError, match="one must be left"):
        pool.shrink(5)
    pool.close()
    assert semaphore.log.get(timeout=DEADLINE) == "clear"
    assert semaphore.log.empty()


def test_in_a_loop(make):
    async def main():
        loop = asyncio.get_running_loop()
        pool = make(2, threads=False)
        pool.register_with_event_loop(loop)
        pool.register_with_event_loop(loop)
        done = loop.create_future()
        pool.apply_async(pow, (2, 10), callback=done.set_result)
        pool.maintain_pool()
        value = await asyncio.wait_for(done, DEADLINE)
        pool.terminate()
        return value

    assert asyncio.run(main()) == 1024


class App:
    """What an app may offer."""

    def __init__(self, path):
        self.path = path
        self.loader = self

    def note(self, name):
        with open(self.path, "a") as file:
            file.write(f"{name}\n")

    def __getattr__(self, name):
        if name in {"init_worker", "init_worker_process", "set_current", "finalize"}:
            return functools.partial(self.note, name)
        raise AttributeError(name)


def test_the_initializer_calls_what_the_app_offers(make, tmp_path):
    path, calls = tmp_path / "calls", Calls()
    pool = make(1, initargs=(App(path), "somewhere"))
    pool.apply_async(os.getpid, callback=calls.put)
    calls.next()
    assert path.read_text().split() == [
        "init_worker",
        "init_worker_process",
        "set_current",
        "finalize",
    ]


class BrokenApp:
    def finalize(self):
        raise OSError("no database")


def test_a_pool_that_cannot_start(make):
    pool = make(1, app=BrokenApp())
    eventually(lambda: not pool.did_start_ok(), "it is known to be broken")
    with pytest.raises(PoolBrokenError, match="no database"):
        pool.apply_async(pow, (2, 2))


def test_restart_and_repr(make):
    pool, calls = make(1), Calls()
    pool.apply_async(os.getpid, callback=calls.put)
    before = calls.next()
    pool.restart()
    eventually(lambda: pool.info["processes"] != [before], "it is replaced")
    eventually(lambda: repr(pool) == "<TaskPool: 1 processes, 0 tasks>", "its task is over")
    assert pool.info["tasks"]["finished"] >= 1
