"""Pools in scripts: functions of `__main__`, a missing guard, Ctrl-C, the interpreter's end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from helpers import DEADLINE, METHODS, eventually


@pytest.fixture
def run(script, tmp_path):
    """Start a script from a file, as users do: spawn and forkserver import it in the workers."""

    def start(source, *args):
        path = tmp_path / "program.py"
        path.write_text(source)
        return script(path, *args)

    return start


# --- functions of __main__

FUNCTIONS = """
import functools, multiprocessing, sys
from prefork import Pool

def square(x):
    return x * x

class Adder:
    def __init__(self, n):
        self.n = n
    def __call__(self, x):
        return self.n + x
    def method(self, x):
        return self.n + x

class Problem(Exception):
    def __init__(self, a, b):
        super().__init__(a, b)

def fail():
    raise Problem(1, 2)

def main():
    with Pool(2, context=multiprocessing.get_context(sys.argv[1])) as pool:
        assert pool.map(square, range(10)) == [x * x for x in range(10)]
        assert pool.apply(Adder(5), (1,)) == 6
        assert pool.apply(Adder(5).method, (1,)) == 6
        assert pool.apply(functools.partial(square, 3)) == 9
        assert type(pool.apply(Adder, (5,))) is Adder
        try:
            pool.apply(fail)
        except Problem as exc:
            assert exc.args == (1, 2), exc.args
            assert "in fail" in str(exc.__cause__)
        assert pool.apply(lambda: 0) == 0

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("method", METHODS)
def test_functions_of_the_main_module(run, method):
    code, out, err = run(FUNCTIONS, method).finish()
    assert err == ""
    assert (code, out) == (0, "")


@pytest.mark.parametrize("method", METHODS)
def test_functions_of_a_program_from_standard_input(method):
    ended = subprocess.run(
        [sys.executable, "-", method],
        input=FUNCTIONS,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


LATE = """
import sys
sys.modules["cloudpickle"] = None  # as if it were not installed
from prefork import Pool

pool = Pool(1, context="fork")

def late():
    return 0

try:
    pool.apply(late)
except Exception as exc:
    print(exc, *exc.__notes__)
"""


def test_a_function_defined_after_the_pool_is_unknown_to_its_workers(run):
    code, out, err = run(LATE).finish()
    assert (code, err) == (0, "")
    assert out.startswith("__main__.late, or what it uses, was defined after the workers")
    assert "pip install prefork[notebook]" in out


UNGUARDED = """
import multiprocessing, sys
from prefork import Pool, PoolBrokenError

def square(x):
    return x * x

with Pool(2, context=multiprocessing.get_context(sys.argv[1])) as pool:
    try:
        print("result", pool.map(square, range(10)))
    except PoolBrokenError as exc:
        print("broken:", exc)
        raise SystemExit(5)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_script_without_a_main_guard_ends_with_the_reason(run, method):
    process = run(UNGUARDED, method)
    code, out, err = process.finish()
    # The fork server runs the script, too, from Python 3.12.8 on, and cannot even begin.
    assert ("broken: " in out) if code == 5 else (code == 1 and method == "forkserver")
    assert "result" not in out
    assert "if __name__ == '__main__':" in err
    assert err.count("in import_main_path") <= 2, "it is tried again and again"
    assert not process.leftovers()


def test_a_program_from_the_command_line(script):
    source = "from prefork import Pool\nprint(Pool(2).map(abs, [-1, -2]))"
    assert script(source).finish() == (0, "[1, 2]\n", "")


# --- Ctrl-C

INTERRUPTED = """
import itertools, multiprocessing, os, signal, sys, threading, time
from prefork import Pool

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

def task(x):
    if x == 3:
        time.sleep(1000)
    return x

def main():
    how, method, with_block = sys.argv[1:]
    pool = Pool(2, context=multiprocessing.get_context(method))
    if with_block == "with":
        with pool:
            use(pool, how)
    else:
        use(pool, how)

def use(pool, how):
    pool.map(task, range(3))
    if how == "callback":
        started = threading.Event()
        pool.apply_async(task, (1,), callback=lambda _: (started.set(), time.sleep(1000)))
        started.wait()
    print("ready", flush=True)
    if how == "get":
        pool.apply_async(task, (3,)).get()
    elif how == "apply":
        pool.apply(task, (3,))
    elif how == "map":
        pool.map(task, range(1000))
    elif how == "map by ones":
        pool.map(task, range(1000), 1)
    elif how == "imap":
        for _ in pool.imap(task, itertools.count(), buffersize=20):
            pass
    elif how == "imap_unordered":
        for _ in pool.imap_unordered(task, range(5)):
            pass
    elif how == "waitforslot":
        for x in (3, 3, 3, 3):
            pool.apply_async(task, (x,), waitforslot=True)
    elif how == "join":
        pool.apply_async(task, (3,))
        pool.close()
        pool.join()
    elif how == "callback":
        pool.apply_async(task, (3,)).get()

if __name__ == "__main__":
    main()
"""

WAYS = [
    "get",
    "apply",
    "map",
    "map by ones",
    "imap",
    "imap_unordered",
    "waitforslot",
    "join",
    "callback",
]


def interrupt(process):
    """Ctrl-C, once the process waits in a lock, and what it says then."""
    assert process.process.stdout.readline() == "ready\n"
    main_thread = f"/proc/{process.process.pid}/task/{process.process.pid}/wchan"
    with open(main_thread) as wchan:

        def waits():
            wchan.seek(0)
            return "futex" in wchan.read()

        eventually(waits, "it waits for a result")
    process.process.send_signal(signal.SIGINT)
    return process.finish()


@pytest.mark.parametrize("block", ["with", "without"])
@pytest.mark.parametrize("how", WAYS)
def test_ctrl_c(run, how, block):
    process = run(INTERRUPTED, how, "fork", block)
    code, out, err = interrupt(process)
    assert code == -signal.SIGINT
    assert out == ""
    assert err.startswith("Traceback")
    assert err.endswith("KeyboardInterrupt\n")
    assert err.count("Traceback") == 1  # no worker and no thread has something to add
    eventually(lambda: not process.leftovers(), "all its processes end")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_ctrl_c_with_other_start_methods(run, method):
    process = run(INTERRUPTED, "map", method, "without")
    code, _, err = interrupt(process)
    assert code == -signal.SIGINT
    assert err.count("Traceback") == 1
    eventually(lambda: not process.leftovers(), "all its processes end")


MANY_INTERRUPTS = """
import faulthandler, random, signal, sys
from prefork import Pool

faulthandler.enable()

class Interrupt(BaseException):
    pass

armed = False

def on_alarm(*_):
    global armed
    if armed:
        armed = False
        raise Interrupt

signal.signal(signal.SIGALRM, on_alarm)
random.seed(int(sys.argv[1]))
pool = Pool(2, context="fork")
handles = []

def submit():
    while armed:  # not when it was raised in a finalizer, and lost
        handles.append(pool.apply_async(abs, (-3,)))
        handles.append(pool.map_async(abs, [-3]))

for _ in range(200):
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-4))
        submit()
    except Interrupt:
        pass
for handle in handles:
    assert handle.get(20) in (3, [3])
pool.close()
assert pool.join(20), "it does not end"
"""


@pytest.mark.parametrize("seed", range(3))
def test_interrupted_submissions_leave_a_pool_that_ends(run, seed):
    code, _, err = run(MANY_INTERRUPTS, seed).finish()
    assert code == 0
    # An interrupt that happens to come in a finalizer is told and dropped, by Python itself.
    assert err == "" or err.startswith("Exception ignored ")


INTERRUPTED_FORK = """
import ctypes, functools, os, signal, sys
from prefork import Pool

def descriptors():
    return len(os.listdir("/proc/self/fd"))

signal.signal(signal.SIGINT, signal.default_int_handler)  # not so if it was ignored before
with Pool(1, context="fork") as pool:
    pass  # what is made once stays
assert pool.join(20)
before = descriptors()
# In the midst of a fork, by C alone: so it is heard of as soon as the fork has returned.
signals = [0] * int(sys.argv[1]) + [signal.SIGINT]
send = functools.partial(next, map(getattr(ctypes.CDLL(None), "raise"), signals), None)
os.register_at_fork(after_in_parent=send)
try:
    Pool(3, context="fork")
except KeyboardInterrupt:
    print("interrupted")
print(descriptors() - before, "descriptors")
try:
    print("child", os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child")
"""


@pytest.mark.promise(number=6)
@pytest.mark.parametrize("forks", range(3))
def test_an_interrupted_fork_leaves_no_child(run, forks):
    code, out, err = run(INTERRUPTED_FORK, forks).finish()
    assert (code, out, err) == (0, "interrupted\n0 descriptors\nno child\n", "")


# --- the interpreter's end

AT_EXIT = """
import time, threading
from prefork import Pool

def report(error):
    print("error", error, flush=True)

pool = Pool(1, maxtasksperchild=1, context="fork")
pool.apply_async(time.sleep, (1000,), error_callback=report, timeout=500)
pool.imap(abs, range(10))
"""


def test_jobs_fail_quietly_at_the_end_of_the_interpreter(run):
    code, out, err = run(AT_EXIT).finish()
    assert code == 0
    # From Python 3.12 on no thread can be started then, so the callback may have nowhere to run.
    assert err == "" or (
        err.startswith("a callback has no thread to run on") and err.count("\n") == 1
    )
    assert out in ("", "error the pool was terminated before this job had finished\n")


LATE_THREAD = """
import threading
from prefork import Pool

pool = Pool(1, context="fork")
main_ends = threading.main_thread().join

def use():
    main_ends()
    results = []
    assert pool.map(abs, range(100)) == list(range(100))
    assert pool.apply_async(abs, (-1,)).get() == 1
    print("used")

pool.map(abs, [1])
threading.Thread(target=use).start()
"""


def test_a_thread_may_use_the_pool_when_the_main_thread_has_ended(run):
    code, out, err = run(LATE_THREAD).finish()
    assert (code, out, err) == (0, "used\n", "")


IN_ATEXIT = """
import atexit
from prefork import Pool

@atexit.register
def last():
    assert pool.apply_async(abs, (-1,)).get(20) == 1
    pool.close()
    assert pool.join(20)
    print("last")

pool = Pool(1, context="fork")
"""


def test_a_pool_may_be_used_at_exit(run):
    assert run(IN_ATEXIT).finish() == (0, "last\n", "")
