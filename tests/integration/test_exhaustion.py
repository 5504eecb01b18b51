"""No descriptors left, many threads, forks in the midst of work."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gate import enter
from helpers import DEADLINE, METHODS, children, eventually
from prefork import Pool
from prefork._engine import starts
from prefork._system import at_fork, child, log, resources, selector

# --- descriptors

SETTING = """
import faulthandler, itertools, os, resource, sys
from gate import Gate, enter
from prefork import Pool, PoolBrokenError, WorkerLostError
from prefork._system import resources

faulthandler.enable()
# As if the soft limit, which is set here, were the hard one.
resources.raise_descriptor_limit = lambda needed: resource.getrlimit(resource.RLIMIT_NOFILE)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

def leave_descriptors(spare):
    "At most so many more than now; below 0: not even when some are closed."
    used = descriptors()
    limit = 3
    if spare >= 0:
        limit = max(used) + 1 + spare
        missing = limit - spare - len(used)
        plugs.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(missing))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))

plugs = []  # where others were closed before

def descriptors():
    listed = {int(fd) for fd in os.listdir("/proc/self/fd")}
    return {fd for fd in listed if os.path.exists(f"/proc/self/fd/{fd}")}  # not listdir's own

def enough_descriptors():
    while plugs:
        os.close(plugs.pop())
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

def data(size):
    return bytes(size)

def outcome(handle):
    try:
        return handle.get(20)
    except (OSError, WorkerLostError, PoolBrokenError) as exc:
        return exc

def main():
    pool = Pool(2)
    pool.map(abs, range(10), 1)
    use(pool)
    enough_descriptors()
    handles = [pool.apply_async(len, (bytes(1_000_000),)) for _ in range(5)]
    assert [handle.get(20) for handle in handles] == [1_000_000] * 5
    pool.close()
    assert pool.join(20)
"""


@pytest.fixture
def run(script, tmp_path):
    """Runs a function `use(pool)` in a script of its own."""

    def start(use):
        path = tmp_path / "program.py"
        path.write_text(SETTING + use + '\n\nif __name__ == "__main__":\n    main()\n')
        process = script(path)
        code, _, err = process.finish()
        assert (code, process.leftovers()) == (0, {}), err

    return start


def test_few_descriptors_are_enough_for_large_arguments(run):
    run("""
def use(pool):
    leave_descriptors(4)
    handles = [pool.apply_async(len, (bytes(1_000_000),)) for _ in range(300)]
    for handle in handles:
        assert handle.get(20) == 1_000_000
    assert pool.map(len, [bytes(1_000_000)] * 100) == [1_000_000] * 100
    assert list(pool.imap(len, [bytes(1_000_000)] * 100)) == [1_000_000] * 100
""")


def test_large_arguments_need_no_descriptor(run):
    run("""
def use(pool):
    leave_descriptors(0)
    handles = [pool.apply_async(len, (bytes(1_000_000),)) for _ in range(50)]
    small = [pool.apply_async(len, (b"small",)) for _ in range(50)]
    assert [handle.get(20) for handle in handles] == [1_000_000] * 50
    assert [handle.get(20) for handle in small] == [5] * 50
""")


def test_large_results_need_no_descriptor(run):
    run("""
def use(pool):
    leave_descriptors(0)
    handles = [pool.apply_async(data, (1_000_000,)) for _ in range(50)]
    small = [pool.apply_async(data, (10,)) for _ in range(50)]
    assert [handle.get(20) for handle in handles] == [bytes(1_000_000)] * 50
    assert [handle.get(20) for handle in small] == [bytes(10)] * 50
""")


def test_descriptors_may_come_and_go(run):
    run("""
def use(pool):
    handles = []
    for round in range(30):
        leave_descriptors(round % 3)
        handles += [pool.apply_async(data, (n,)) for n in (10, 1_000_000, 100_000)]
        handles += [pool.apply_async(data, (n,)) for n in (10, 1_000_000, 100_000)]
        enough_descriptors()
    for handle, n in zip(handles, itertools.cycle((10, 1_000_000, 100_000))):
        assert handle.get(20) == bytes(n)
""")


def test_a_worker_that_cannot_be_replaced_is_replaced_later(run):
    run("""
import logging, threading

class Listener(logging.Handler):
    def emit(self, record):
        if "cannot start a worker process" in record.getMessage():
            self.message = record.getMessage()
            heard.set()

def use(pool):
    global heard
    heard = threading.Event()
    listener = Listener()
    logging.getLogger("prefork").addHandler(listener)
    leave_descriptors(-1)
    lost = pool.apply_async(os._exit, (5,))
    assert isinstance(outcome(lost), WorkerLostError)
    assert heard.wait(20)
    assert "Too many open files" in listener.message
    assert pool.map(abs, range(100), 1) == list(range(100))
    enough_descriptors()
    with Gate() as gate:
        for _ in range(2):
            pool.apply_async(enter, (gate,))
        for visitor in [gate.arrival(), gate.arrival()]:  # at the same time
            visitor.go()
""")


def test_a_last_worker_that_cannot_be_replaced_for_a_moment_breaks_no_pool(run):
    run("""
import logging, threading

class Listener(logging.Handler):
    def emit(self, record):
        if "cannot start a worker process" in record.getMessage():
            heard.set()

heard = threading.Event()

def use(pool):
    logging.getLogger("prefork").addHandler(Listener())
    with Gate() as gate:
        running = [pool.apply_async(enter, (gate,)) for _ in range(2)]
        visitors = [gate.arrival(), gate.arrival()]
        leave_descriptors(-1)
        later = [pool.apply_async(abs, (-n,)) for n in range(5)]
        for handle in running:
            os.kill(handle.pid, 9)
        assert heard.wait(20)
    enough_descriptors()
    assert [handle.get(20) for handle in later] == list(range(5))
""")


def test_a_last_worker_that_cannot_be_replaced_breaks_the_pool(script):
    source = (
        SETTING
        + """
pool = Pool(1, max_restarts=2)
pool.apply(abs, (1,))
leave_descriptors(-1)
lost = pool.apply_async(os._exit, (5,))
later = []
try:
    for _ in range(10):
        later.append(pool.apply_async(abs, (1,)))
except PoolBrokenError:
    pass  # so soon
assert isinstance(outcome(lost), WorkerLostError)
for handle in later:
    error = outcome(handle)
    assert isinstance(error, PoolBrokenError), error
    assert "Too many open files" in str(error), error
try:
    pool.apply(abs, (1,))
except PoolBrokenError:
    pool.terminate()
    assert pool.join(20)
    print("broken")
"""
    )
    process = script(source)
    code, out, err = process.finish()
    assert (code, out) == (0, "broken\n"), err
    assert process.leftovers() == {}


@pytest.mark.promise(number=3)
def test_a_fork_server_outlives_those_who_have_no_descriptors_left_to_ask_it_with(run):
    run("""
import logging, threading
from multiprocessing import forkserver
from helpers import eventually

class Listener(logging.Handler):
    def emit(self, record):
        if "cannot start a worker process" in record.getMessage():
            heard.set()

def lose(pool):
    heard.clear()
    victim = pool.apply(os.getpid)
    os.kill(victim, 9)
    pids = lambda: {worker.pid for worker in pool.statistics().workers}
    return lambda: heard.is_set() or pids() and victim not in pids()

heard = threading.Event()

def use(other):
    logging.getLogger("prefork").addHandler(Listener())
    pool = Pool(1, context="forkserver", max_restarts=100)
    pool.apply(abs, (1,))
    server = forkserver._forkserver._forkserver_pid
    before = len(descriptors())
    for spare in range(8):
        is_over = lose(pool)
        leave_descriptors(spare)
        eventually(is_over, "a worker cannot be replaced, or is")
        enough_descriptors()
        pool.apply(abs, (1,))
    assert forkserver._forkserver._forkserver_pid == server
    eventually(lambda: len(descriptors()) == before, "no descriptor is forgotten")
    pool.terminate()
    assert pool.join(20)
""")


def test_a_fork_server_is_told_all_although_no_descriptor_is_left_once_it_listens(run):
    run("""
import socket
from helpers import eventually
from multiprocessing import forkserver

class Greedy(socket.socket):
    def connect(self, address):
        super().connect(address)
        leave_descriptors(0)

def use(other):
    pool = Pool(1, context="forkserver")
    pool.apply(abs, (1,))
    server = forkserver._forkserver._forkserver_pid
    plain, socket.socket = socket.socket, Greedy
    pool.grow()
    eventually(lambda: len(pool.statistics().workers) == 2, "another one is started")
    socket.socket = plain
    enough_descriptors()
    gates = [Gate(), Gate()]
    handles = [pool.apply_async(enter, (gate,)) for gate in gates]
    assert len({gate.arrival().pid for gate in gates}) == 2
    assert forkserver._forkserver._forkserver_pid == server
    pool.terminate()
    assert pool.join(20)
""")


@pytest.mark.parametrize("spare", [-1, *range(25)])
def test_a_pool_that_finds_no_descriptors_is_not_made(script, spare):
    source = (
        SETTING
        + """
import gc, threading, multiprocessing
before = descriptors()
leave_descriptors(int(sys.argv[1]))
try:
    Pool(10, context="fork")
except OSError as exc:
    assert "Too many open files" in str(exc), exc
    # multiprocessing's own leak: it makes two pipes, and forgets the first if the second fails
    last = exc.__traceback__
    while last.tb_next:
        last = last.tb_next
    allowed = 2 * (last.tb_frame.f_code.co_name == "_launch")
    del last
else:
    raise AssertionError("made")
enough_descriptors()
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(20)
gc.collect()
left = descriptors() - before
assert len(left) <= allowed, [os.readlink(f"/proc/self/fd/{fd}") for fd in left]
assert multiprocessing.active_children() == []
print("not made")
"""
    )
    process = script(source, spare)
    assert process.finish() == (0, "not made\n", "")
    assert process.leftovers() == {}


# --- a pool that cannot be made, wherever that is found


def possessions():
    """Our descriptors with what they are for, and our children (zombies, too)."""
    gc.collect()
    found = {f"child {child.pid}" for child in children()}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # listdir's own
            found.add(f"descriptor {fd}: {os.readlink(f'/proc/self/fd/{fd}')}")
    return found


def failing(call, at, error):
    """`call`, which raises `error` when it is called for the `at`-th time."""
    calls = itertools.count(1)

    def fail(*args, **kwargs):
        if next(calls) == at:
            raise error
        return call(*args, **kwargs)

    return fail


@pytest.mark.promise(number=6)
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize(
    ("where", "name", "error"),
    [
        (os, "fork", BlockingIOError(errno.EAGAIN, "no process is left")),
        (selector.Selector, "add", OSError(errno.ENOSPC, "no watch is left")),
        (log.Log, "note", KeyboardInterrupt()),
        (child.Child, "look_after", KeyboardInterrupt()),
        (resources, "open", KeyboardInterrupt()),
    ],
    ids=["fork", "watch", "admitted", "forked", "prepared"],
)
def test_a_pool_that_cannot_be_made_leaves_nothing(monkeypatch, where, name, error, at):
    with Pool(1, context="fork") as pool:
        pass  # what is made once stays
    assert pool.join(DEADLINE)
    before = possessions()
    monkeypatch.setattr(starts, "LATE_SECONDS", 10 * DEADLINE)  # nothing is waited for in vain
    with monkeypatch.context() as patch:
        patch.setattr(where, name, failing(getattr(where, name, open), at, error), raising=False)
        with pytest.raises(type(error)) as caught:
            Pool(4, context="fork", threads=False)
    assert caught.value is error
    del caught
    error.__traceback__ = None  # it holds what was being made
    assert possessions() <= before


WATCHED = {"forward_logs": True, "capture_output": print}  # with three pipes more


@pytest.mark.parametrize(
    ("options", "at"),
    [*(({}, at) for at in range(1, 7)), *((WATCHED, at) for at in range(1, 13))],
)
def test_a_channel_that_cannot_be_made_leaves_nothing(monkeypatch, options, at):
    numbers = itertools.count(1)

    def above_stdio(fd):
        if next(numbers) < at:
            return fd
        os.close(fd)
        raise OSError(errno.EMFILE, "no descriptor is left")

    monkeypatch.setattr(at_fork, "above_stdio", above_stdio)
    before = possessions()
    with pytest.raises(OSError, match=r"Too many open files: the pool needs .*hard limit"):
        Pool(2, context="fork", **options)
    assert possessions() <= before


# --- threads


def square(x):
    return x * x


def test_many_threads_submit_at_once(context, make_pool):
    pool = make_pool(2, context=context)
    start = threading.Barrier(12)

    def use(number):
        start.wait(DEADLINE)
        match number % 4:
            case 0:
                handles = [pool.apply_async(square, (x,)) for x in range(200)]
                return [handle.get(DEADLINE) for handle in handles]
            case 1:
                return pool.map(square, range(200), 1 + number)
            case 2:
                return list(pool.imap(square, range(200), 1 + number % 3, buffersize=9))
            case _:
                return [pool.apply(square, (x,)) for x in range(200)]

    with ThreadPoolExecutor(12) as threads:
        for results in threads.map(use, range(12)):
            assert results == [x * x for x in range(200)]


def test_many_threads_make_and_use_pools(context):
    def use(number):
        with Pool(1, context=context) as pool:
            return pool.map(square, range(number, number + 10))

    with ThreadPoolExecutor(4) as threads:
        for number, results in enumerate(threads.map(use, range(8))):
            assert results == [x * x for x in range(number, number + 10)]


# --- forks

VERBS = {
    "apply": lambda pool, handle, results: pool.apply(abs, (1,)),
    "apply_async": lambda pool, handle, results: pool.apply_async(abs, (1,)),
    "waitforslot": lambda pool, handle, results: pool.apply_async(abs, (1,), waitforslot=True),
    "map": lambda pool, handle, results: pool.map(abs, [1]),
    "imap": lambda pool, handle, results: pool.imap(abs, [1]),
    "grow": lambda pool, handle, results: pool.grow(),
    "shrink": lambda pool, handle, results: pool.shrink(),
    "restart": lambda pool, handle, results: pool.restart(),
    "with": lambda pool, handle, results: pool.__enter__(),
    "get": lambda pool, handle, results: handle.get(),
    "get in time": lambda pool, handle, results: handle.get(1000),
    "wait": lambda pool, handle, results: handle.wait(),
    "next": lambda pool, handle, results: next(results),
    "next in time": lambda pool, handle, results: results.next(1000),
}


def call_in_copy(call, *args):
    """In a forked child; its exit code is for the test."""
    try:
        call(*args)
    except RuntimeError as exc:
        os._exit(7 if "belongs to the process that made it" in str(exc) else 8)
    except BaseException:
        os._exit(9)
    os._exit(10)


@pytest.mark.parametrize("how", ["os.fork", "multiprocessing"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_pool_refuses_to_work_in_a_forked_child(make_pool, gate, verb, how):
    pool = make_pool(1)
    handle = pool.apply_async(enter, (gate, 5))
    visitor = gate.arrival()
    results = pool.imap(square, range(5))
    if how == "os.fork":
        if (pid := os.fork()) == 0:
            call_in_copy(VERBS[verb], pool, handle, results)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    else:
        child = multiprocessing.get_context("fork").Process(
            target=call_in_copy, args=(VERBS[verb], pool, handle, results)
        )
        child.start()
        child.join(DEADLINE)
        assert child.exitcode == 7
        child.close()
    visitor.go()
    assert handle.get(DEADLINE) == 5
    assert list(results) == [0, 1, 4, 9, 16]


def test_what_was_there_before_the_fork_can_be_read_in_the_child(make_pool):
    pool = make_pool(1)
    handle = pool.apply_async(square, (3,))
    handle.wait(DEADLINE)
    if (pid := os.fork()) == 0:
        try:
            os._exit(handle.get() + ("successful" in repr(handle)) + len(repr(pool)) * 0)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 10


def use_global_pool(_):
    try:
        global_pool.apply(abs, (1,))
    except RuntimeError as exc:
        return str(exc)


global_pool = None


def test_a_task_cannot_use_the_pool_that_runs_it(make_pool):
    global global_pool
    with make_pool(1, context="fork") as global_pool:
        old = global_pool.apply(os.getpid)
        global_pool.restart()  # the new worker finds the pool in its globals
        eventually(lambda: global_pool.apply(os.getpid) != old, "the worker is replaced")
        assert "belongs to the process that made it" in global_pool.apply(use_global_pool, (1,))


FORKS = """
import faulthandler, multiprocessing, os, sys, threading
from prefork import Pool

faulthandler.enable()

def square(x):
    return x * x

def in_child(number):
    if number % 3 == 0:
        os._exit(0)
    if number % 3 == 1:
        with Pool(1, context="fork") as own:
            assert own.map_async(square, range(5)).get(20) == [0, 1, 4, 9, 16]
        os._exit(0)
    try:
        pool.apply_async(square, (1,))
    except RuntimeError:
        os._exit(0)

def forks():
    for number in range(60):
        if (pid := os.fork()) == 0:
            try:
                in_child(number)
            finally:
                os._exit(1)
        status = os.waitpid(pid, 0)[1]
        if status:
            failed.append((number, status))
    done.set()

failed = []
done = threading.Event()

if __name__ == "__main__":
    pool = Pool(2, maxtasksperchild=50, context=multiprocessing.get_context(sys.argv[1]))
    threading.Thread(target=forks).start()
    rounds = 0
    while not done.is_set() or not rounds:
        handles = [pool.apply_async(square, (x,)) for x in range(50)]
        handles += [pool.apply_async(bytes, (100_000,)) for x in range(2)]
        assert pool.map_async(square, range(50), 7).get(20) == [x * x for x in range(50)]
        assert sum(pool.imap(square, range(50))) == sum(x * x for x in range(50))
        for x, handle in enumerate(handles):
            assert handle.get(20) == (x * x if x < 50 else bytes(100_000))
        rounds += 1
    assert not failed, failed
    pool.close()
    assert pool.join(20)
    print("done")
"""


IN_FORKED_CHILD = """
import multiprocessing, os, sys
from prefork import Pool

def in_child(look):
    if (pid := os.fork()) == 0:
        try:
            look()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]

def of_a_pool():
    with Pool(1, context=context) as own:
        assert own.apply_async(abs, (-1,)).get(20) == 1

def of_the_standard_library():
    child = context.Process(target=abs, args=(-1,))
    child.start()
    child.join(20)
    assert child.exitcode == 0

def of_the_child():
    of_a_pool()
    assert in_child(of_a_pool) == 0

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with Pool(1, context=context) as pool:
        pool.apply(abs, (-1,))
        print([in_child(look) for look in (of_the_child, of_the_standard_library)])
        print(pool.restart(), pool.apply(abs, (-1,)))
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_forked_child_makes_a_pool_of_its_own(script, tmp_path, method):
    """The fork server is the parent's: the child cannot wait for it, and has another one begin."""
    path = tmp_path / "program.py"
    path.write_text(IN_FORKED_CHILD)
    process = script(path, method)
    code, out, err = process.finish()
    assert (code, out) == (0, "[0, 0]\nNone 1\n"), err
    assert process.leftovers() == {}


@pytest.mark.parametrize("method", METHODS)
def test_another_thread_forks_while_the_pool_works(script, tmp_path, method):
    path = tmp_path / "program.py"
    path.write_text(FORKS)
    process = script(path, method)
    code, out, err = process.finish()
    assert (code, out) == (0, "done\n"), err
    assert process.leftovers() == {}


@pytest.mark.parametrize("limit", [300_000, 3_000_000])
def test_a_limit_of_files_sizes_is_named(script, limit):
    code, out, err = script(
        f"""
import resource
from prefork import Pool
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    with Pool(1, context="fork") as pool:
        assert pool.apply(len, (bytes(100_000),)) == 100_000
        pool.apply(len, (bytes(10_000_000),))
except OSError as exc:
    print(exc)
"""
    ).finish()
    assert (code, err) == (0, "")
    assert f"{limit} bytes here (ulimit -f)" in out
