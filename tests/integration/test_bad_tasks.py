"""Tasks that misbehave: they raise what nobody catches, take descriptors, memory or the stack."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import sys
import threading

import pytest

from helpers import DEADLINE, METHODS
from prefork import MaybeEncodingError, RemoteTraceback, WorkerLostError


@pytest.fixture
def pool(context, make_pool):
    return make_pool(2, context=context)


def square(x):
    return x * x


def works(pool):
    assert pool.map_async(square, range(50), 1).get(DEADLINE) == [x * x for x in range(50)]
    return True


# --- what they raise


class Unusual(BaseException):
    pass


def raising(error):
    raise error


@pytest.mark.promise(number=1)
@pytest.mark.parametrize(
    "error",
    [
        GeneratorExit("x"),
        asyncio.CancelledError("x"),
        Unusual("x"),
        StopIteration("x"),
        StopAsyncIteration("x"),
        multiprocessing.TimeoutError("x"),
        BrokenPipeError("x"),
        EOFError("x"),
        ExceptionGroup("x", [KeyError(1)]),
        BaseExceptionGroup("x", [Unusual(1)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_comes_back_as_it_is(make_pool, error):
    pool = make_pool(1)
    pid = pool.apply(os.getpid)
    handle = pool.apply_async(raising, (error,))
    with pytest.raises(type(error)) as caught:
        handle.get(DEADLINE)
    assert caught.value.args[0] == "x"
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    with pytest.raises((type(error), RuntimeError)):  # RuntimeError: StopIteration in a generator
        pool.map(raising, [error])
    assert pool.apply(os.getpid) == pid


@pytest.mark.parametrize(
    ("error", "exitcode"),
    [
        (KeyboardInterrupt("why"), 1),
        (SystemExit(3), 3),
        (SystemExit(), 0),
        (SystemExit("why"), 1),
    ],
    ids=repr,
)
def test_what_asks_the_process_to_exit_ends_it(pool, error, exitcode):
    handle = pool.apply_async(raising, (error,))
    with pytest.raises(WorkerLostError) as caught:
        handle.get(DEADLINE)
    assert caught.value.exitcode == exitcode
    assert caught.value.pid == handle.pid
    message = str(caught.value)
    assert f"worker process {handle.pid} exited with code {exitcode}" in message
    assert f"it raised {type(error).__name__}" in message
    assert not error.args or error.args == (3,) or ": why" in message
    assert works(pool)


def test_what_it_says_at_its_exit_may_be_long(pool):
    for error in (SystemExit("x" * 1_000_000), KeyboardInterrupt("x" * 1_000_000)):
        with pytest.raises(WorkerLostError, match="it raised") as caught:
            pool.apply(raising, (error,))
        assert len(str(caught.value)) < 5000
    assert works(pool)


class BadRepr:
    def __repr__(self):
        raise RuntimeError("no repr")


def exit_with_bad_repr():
    sys.exit(BadRepr())  # type: ignore[arg-type]


def test_it_may_exit_with_an_object_that_has_no_repr(pool):
    with pytest.raises(WorkerLostError):
        pool.apply(exit_with_bad_repr)
    assert works(pool)


@pytest.mark.parametrize("chunksize", [1, 5])
def test_an_exit_in_a_map_fails_the_map_alone(pool, chunksize):
    other = pool.map_async(square, range(100), 1)
    with pytest.raises(WorkerLostError):
        pool.map(raising_if_three, range(10), chunksize)
    assert other.get(DEADLINE) == [x * x for x in range(100)]
    assert works(pool)


def raising_if_three(x):
    if x == 3:
        sys.exit()
    return x


# --- exceptions that carry more than a message


class Constructed(Exception):
    """Needs arguments, and tells pickle so."""

    def __init__(self, code, *, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self):
        return rebuild, (self.code, self.reason)


def rebuild(code, reason):
    return Constructed(code, reason=reason)


class TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(a, b)
        self.sum = a + b


def raise_constructed():
    raise Constructed(5, reason="r")


def raise_two():
    raise TwoArguments(1, b=2)


def raise_decorated():
    error = ValueError("plain")
    error.extra = {"a": [1]}
    error.add_note("a note")
    error.add_note("another")
    raise error


def raise_os_error():
    os.stat("/nonexistent/file")


def raise_unicode_error():
    b"\xff".decode("utf-8")


def raise_chained():
    try:
        raise KeyError("inner")
    except KeyError as exc:
        raise ValueError("outer") from exc


def test_exceptions_keep_what_they_carry(pool):
    with pytest.raises(Constructed) as caught:
        pool.apply(raise_constructed)
    assert (caught.value.code, caught.value.reason, str(caught.value)) == (5, "r", "5: r")
    with pytest.raises(TwoArguments) as two:
        pool.apply(raise_two)
    assert (two.value.args, two.value.sum) == ((1, 2), 3)
    with pytest.raises(ValueError, match="plain") as decorated:
        pool.apply(raise_decorated)
    assert decorated.value.extra == {"a": [1]}
    assert decorated.value.__notes__ == ["a note", "another"]
    with pytest.raises(FileNotFoundError) as missing:
        pool.apply(raise_os_error)
    assert missing.value.filename == "/nonexistent/file"
    with pytest.raises(UnicodeDecodeError) as undecoded:
        pool.apply(raise_unicode_error)
    assert undecoded.value.object == b"\xff"


def test_the_remote_traceback_shows_the_whole_chain(pool):
    with pytest.raises(ValueError, match="outer") as caught:
        pool.apply(raise_chained)
    remote = str(caught.value.__cause__)
    assert "KeyError: 'inner'" in remote
    assert "direct cause" in remote
    assert remote.rstrip('"\n').endswith("ValueError: outer")


# --- the stack


def recurse(x):
    return recurse(x + 1)


def test_endless_recursion_is_an_error_of_its_task(pool):
    with pytest.raises(RecursionError) as caught:
        pool.apply(recurse, (0,))
    assert "in recurse" in str(caught.value.__cause__)
    assert works(pool)


def deep_exception():
    error = ValueError(0)
    for number in range(5000):
        outer = ValueError(number)
        outer.__cause__ = error
        error = outer
    raise error


def test_an_exception_with_a_long_chain_of_causes(pool):
    with pytest.raises(ValueError, match="4999"):
        pool.apply_async(deep_exception).get(DEADLINE)
    assert works(pool)


# --- memory


def with_little_memory(func, *args):
    """Call it with 50 MiB of address space more than now."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + (50 << 20), hard))
    try:
        return func(*args)
    finally:
        if func is not allocate_result:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def allocate(size):
    return len(bytearray(size))


def allocate_result(size):
    return bytearray(size)


def test_a_task_without_memory_fails_alone(pool):
    pids = {worker.pid for worker in pool.statistics().workers}
    with pytest.raises(MemoryError) as caught:
        pool.apply(with_little_memory, (allocate, 1 << 30))
    assert "in allocate" in str(caught.value.__cause__)
    assert works(pool)
    assert {worker.pid for worker in pool.statistics().workers} == pids


def test_a_result_that_finds_no_memory_fails_alone(make_pool):
    """40 MiB fit, but not a second time for the way back; the limit stays for the tasks after."""
    pool = make_pool(1)
    pid = pool.apply(os.getpid)
    handle = pool.apply_async(with_little_memory, (allocate_result, 40 << 20))
    handle.wait(DEADLINE)
    if not handle.successful():  # it may just fit
        with pytest.raises((MemoryError, OSError, MaybeEncodingError)) as caught:
            handle.get()
        assert "memory" in f"{caught.value!r}".lower()
    assert pool.apply(os.getpid) == pid
    handle = pool.apply_async(len, (bytes(100 << 20),))
    with pytest.raises((MemoryError, OSError)):
        handle.get(DEADLINE)
    assert pool.apply(os.getpid) == pid


# --- what belongs to the process


def close_standard_files():
    for fd in (0, 1, 2):
        os.close(fd)
    return os.getpid()


def close_standard_streams():
    sys.stdin.close()
    sys.stdout.close()
    sys.stderr.close()


def write():
    print("text")
    sys.stderr.write("text\n")
    sys.stdout.flush()


def reopen_standard_files():
    """As a daemon does: what is opened next gets the lowest numbers."""
    close_standard_files()
    return [os.open(os.devnull, os.O_RDWR) for _ in range(3)]


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_task_may_close_its_standard_files(context, make_pool, size):
    pool = make_pool(1, context=context)
    pid = pool.apply(close_standard_files)
    data = os.urandom(size)
    assert pool.apply_async(bytes, (data,)).get(DEADLINE) == data
    assert pool.apply_async(os.getpid).get(DEADLINE) == pid
    pool.close()
    assert pool.join(DEADLINE)


def test_a_task_may_reopen_its_standard_files(context, make_pool):
    pool = make_pool(1, context=context)
    assert sorted(pool.apply(reopen_standard_files)) == [0, 1, 2]
    data = bytes(1_000_000)
    assert pool.apply_async(bytes, (data,)).get(DEADLINE) == data


def test_a_task_that_writes_to_a_closed_stream_fails_alone(context, make_pool):
    pool = make_pool(1, context=context)
    pool.apply(close_standard_streams)
    with pytest.raises(ValueError, match="closed file"):
        pool.apply(write)
    assert works(pool)
    pool.close()
    assert pool.join(DEADLINE)


def replace_streams():
    sys.stdout = sys.stderr = None


def test_a_task_may_replace_its_streams(context, make_pool):
    pool = make_pool(1, context=context)
    pool.apply(replace_streams)
    assert works(pool)
    pool.close()
    assert pool.join(DEADLINE)


def change_process(folder):
    os.chdir(folder)
    os.umask(0o777)
    os.environ.clear()
    sys.path.clear()
    sys.setrecursionlimit(100)
    sys.argv.clear()


def test_a_task_may_change_directory_mask_and_environment(context, make_pool, tmp_path):
    pool = make_pool(1, context=context, maxtasksperchild=2)
    here = os.getcwd()
    pool.apply(change_process, (tmp_path,))
    data = bytes(1_000_000)
    assert pool.apply_async(bytes, (data,)).get(DEADLINE) == data
    assert pool.apply(os.getcwd) == here  # its successor


def close_everything():
    os.closerange(3, 200)


@pytest.mark.promise(number=3)
def test_a_task_that_closes_everything_loses_its_worker_only(make_pool):
    pool = make_pool(2)
    with pytest.raises(WorkerLostError):
        pool.apply_async(close_everything).get(DEADLINE)
    assert works(pool)


def close_everything_and_go_on():
    close_everything()
    threading.Event().wait()


def test_a_task_that_closes_everything_and_goes_on_is_told_why_it_was_killed(make_pool):
    pool = make_pool(2)
    with pytest.raises(WorkerLostError, match="its task has closed the channel to the pool"):
        pool.apply_async(close_everything_and_go_on).get(DEADLINE)
    assert works(pool)


def exit_hard_with_message(code):
    sys.stderr = None
    os._exit(code)


@pytest.mark.parametrize("code", [0, 1, 255])
def test_a_hard_exit_tells_its_code(pool, code):
    with pytest.raises(WorkerLostError, match=f"exited with code {code}") as caught:
        pool.apply(exit_hard_with_message, (code,))
    assert caught.value.exitcode == code


# --- a parent without standard files

DAEMON = """
import multiprocessing, os, sys
from prefork import Pool

def echo(data):
    for fd in (0, 1, 2):
        try:
            os.close(fd)
        except OSError:
            pass
    return data

if __name__ == "__main__":
    result = os.dup(1)
    for fd in (0, 1, 2):
        os.close(fd)
    pool = Pool(3, context=multiprocessing.get_context(sys.argv[1]))
    for size in (1, 1_000_000, 5, 3_000_000) * 5:
        data = os.urandom(size)
        assert pool.apply_async(echo, (data,)).get(20) == data
    pool.close()
    assert pool.join(20)
    os.write(result, b"done")
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_in_a_process_without_standard_files(script, tmp_path, method):
    path = tmp_path / "daemon.py"
    path.write_text(DAEMON)
    assert script(path, method).finish()[:2] == (0, "done")


# --- functions


def test_callables_that_look_strange_to_the_pool(make_pool):
    pool = make_pool(1)
    strange = Strange()
    assert pool.apply_async(strange, (3,)).get(DEADLINE) == 3
    handle = pool.apply_async(strange, ("exit",))
    with pytest.raises(WorkerLostError):
        handle.get(DEADLINE)
    assert "Strange" in repr(handle)
    assert pool.map(strange, [1, 2]) == [1, 2]
    assert works(pool)


class Strange:
    """Every look at it fails, as with some proxies and mocks."""

    def __call__(self, x):
        if x == "exit":
            os._exit(3)
        return x

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError("do not look at me")

    def __repr__(self):
        raise RuntimeError("do not show me")
