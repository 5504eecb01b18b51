"""Functions and classes that workers cannot find by a name, or have in an older version."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path

import pytest

from helpers import DEADLINE, METHODS, eventually, has_ended, mark_and_stay, marked
from prefork import MaybeEncodingError, Pool, ProcessPoolExecutor, WorkerLostError

pytest.importorskip("cloudpickle")

OFFSET = 10


@pytest.fixture
def pool(make_pool, context):
    return make_pool(2, context=context)


def adder(n):
    def add(x):
        return n + x + OFFSET

    return add


def scaled(factor):
    return lambda x: factor * x


VERBS = {
    "apply": lambda pool, f: [pool.apply(f, (x,)) for x in range(4)],
    "apply_async": lambda pool, f: [pool.apply_async(f, (x,)).get(DEADLINE) for x in range(4)],
    "submit": lambda pool, f: [pool.submit(f, x).result(DEADLINE) for x in range(4)],
    "map": lambda pool, f: pool.map(f, range(4), 2),
    "map_async": lambda pool, f: pool.map_async(f, range(4)).get(DEADLINE),
    "starmap": lambda pool, f: pool.starmap(f, [(x,) for x in range(4)]),
    "imap": lambda pool, f: list(pool.imap(f, range(4), 3)),
    "imap_unordered": lambda pool, f: sorted(pool.imap_unordered(f, range(4))),
    "each_async": lambda pool, f: [o.value for o in pool.each_async(f, range(4)).get(DEADLINE)],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_call_takes_functions_without_a_name(pool, verb):
    call = VERBS[verb]
    assert call(pool, lambda x: x + 1) == [1, 2, 3, 4]
    assert call(pool, adder(5)) == [15, 16, 17, 18]
    assert call(pool, functools.partial(lambda a, x: (a, x), "a")) == [("a", x) for x in range(4)]


def test_an_executor_takes_them(context):
    with ProcessPoolExecutor(1, context) as executor:
        assert executor.submit(lambda x: x + 1, 1).result(DEADLINE) == 2
        assert list(executor.map(adder(1), range(2))) == [11, 12]


def test_they_are_taken_as_arguments_and_as_results(pool):
    assert pool.apply(map_and_list, (lambda x: -x, [1, 2])) == [-1, -2]
    assert pool.apply(scaled, (3,))(4) == 12
    assert [f(1) for f in pool.map(adder, [1, 2])] == [12, 13]


def map_and_list(func, items):
    return list(map(func, items))


def test_the_initializer_may_be_one(make_pool, context):
    pool = make_pool(1, lambda value: os.environ.update(SET_BY=value), ("lambda",), context=context)
    assert pool.apply(os.getenv, ("SET_BY",)) == "lambda"


def test_what_belongs_to_a_module_is_the_workers_own(pool):
    """A nested function has the globals of its module, as one with a name has."""

    def set_and_tell():
        global OFFSET
        before, OFFSET = OFFSET, 11
        return before

    pids = [w.pid for w in pool.statistics().workers]
    assert len(pids) == 2
    assert {pool.apply(set_and_tell) for _ in range(20)} <= {10, 11}
    assert OFFSET == 10


def local_class():
    class Local:
        count = 7

        def __init__(self, x):
            self.x = x

    return Local


def change_and_return(obj):
    type(obj).count = 8
    return obj


def test_objects_of_a_local_class_come_back_as_objects_of_it(pool):
    cls = local_class()
    obj = pool.apply(change_and_return, (cls(3),))
    assert type(obj) is cls
    assert obj.x == 3
    assert cls.count == 7  # a result changes nothing here
    one, other = pool.map(instance_of_own_class, range(2))
    assert (one.x, other.x) == (0, 1)


def instance_of_own_class(x):
    return local_class()(x)


def test_large_arrays_stay_out_of_the_pickle(pool):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(100_000.0)
    assert pool.apply(lambda a: float(a.sum()), (array,)) == array.sum()
    result = pool.apply(lambda a: (a * 2, lambda: 0), (array,))[0]
    assert (result == array * 2).all()
    assert result.flags.writeable


def test_what_cannot_be_pickled_either_way_says_why(pool):
    lock = signal.signal  # picklable by name
    assert pool.apply(lambda: callable(lock))
    generator = (x for x in [])
    with pytest.raises(TypeError, match="cannot pickle 'generator' object") as caught:
        pool.apply(lambda: generator)
    assert any("while pickling the call" in note for note in caught.value.__notes__)
    with pytest.raises(MaybeEncodingError, match="generator"):
        pool.apply(lambda: (lambda it: it, (x for x in [])))
    assert pool.apply(lambda: 1) == 1


def test_a_bad_item_fails_its_map_and_nothing_else(pool):
    with pytest.raises(TypeError, match="generator"):
        pool.map(lambda x: x, [1, (x for x in []), 3], 1)
    assert pool.map(lambda x: x, [1, 2]) == [1, 2]


def test_a_worker_that_is_killed_takes_along_its_own_job_only(pool):
    def suicide(x):
        if x == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    handles = [pool.apply_async(suicide, (x,)) for x in range(20)]
    with pytest.raises(WorkerLostError, match="suicide"):
        handles[5].get(DEADLINE)
    del handles[5]
    assert [h.get(DEADLINE) for h in handles] == [x for x in range(20) if x != 5]


# --- `__main__`: scripts


SCRIPT = """
import json, sys
from prefork import Pool

class P:
    def __init__(self, x): self.x = x
    def get(self): return "old", self.x
def f(x): return x * x
def helper(x): return x + 1
def uses_helper(x): return helper(x)
def get(p): return p.get()
def fail(x): raise E(x)
class E(Exception): pass

_model = None
def init(): global _model; _model = "model"
def tell(x): return _model, x

if __name__ == "__main__":
    out = []
    with Pool(1, init, context=sys.argv[1]) as pool:
        out.append([pool.map(f, [2]), pool.map(uses_helper, [1]), pool.map(get, [P(1)])])
        old_f = f
        def f(x): return -x
        out.append([pool.map(f, [2]), pool.apply(old_f, (2,)), list(pool.imap(f, [3]))])
        def helper(x): return x + 100
        out.append(pool.map(uses_helper, [1]))
        class P:
            def __init__(self, x): self.x = x
            def get(self): return "new", self.x
        out.append([pool.map(get, [P(1)]), pool.apply(P(2).get)])
        p = pool.apply(P, (3,))
        out.append([type(p) is P, type(pool.apply(lambda: P(1))) is P])
        def later(x): return uses_helper(x), tell(x), scale
        scale = 3
        out.append(pool.map(later, [1]))
        class E(Exception): pass
        def fail(x): raise E(x)
        try:
            pool.apply(fail, (1,))
        except E as e:
            out.append(["E", *e.args])
        scale = 4
        out.append([pool.apply(lambda: scale), pool.apply(lambda: tell(0))])
        f = old_f
        out.append(pool.map(f, [2]))
    print(json.dumps(out))
"""
EXPECTED = [
    [[4], [2], [["old", 1]]],
    [[-2], 4, [-3]],
    [101],
    [[["new", 1]], ["new", 2]],
    [True, True],
    [[101, ["model", 1], 3]],
    ["E", 1],
    [4, ["model", 0]],
    [4],
]


@pytest.mark.parametrize("method", METHODS)
def test_a_script_redefines_what_its_workers_know(script, tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(SCRIPT)
    status, out, err = script(program, method).finish()
    assert status == 0, err
    assert json.loads(out) == EXPECTED


# --- `__main__`: typed in, as `-c` is


TYPED_IN = """
import enum, functools, json, sys, threading
from prefork import Pool
out = []
_model, count = None, 0
def init(value):
    global _model
    _model = value
def task(x):
    global count
    count += 1
    return _model, count, x
pool = Pool(1, init, ("model",), context=sys.argv[1])
out.append(pool.map(task, [1, 2]) + pool.map(task, [3]))  # the worker's own state goes on
def task(x):
    global count
    count += 1
    return "new", _model, count
out.append(pool.map(task, [1]))
count = 100
out.append(pool.map(task, [1]) + pool.map(task, [1]))
limit = 1
def limited(x): return x < limit
out.append(pool.map(limited, [5]))
limit = 10
out.append(pool.map(limited, [5]))
settings = {"rate": 1}
out.append(pool.apply(lambda: settings["rate"]))
settings["rate"] = 2
out.append(pool.apply(lambda: settings["rate"]))
class Color(enum.Enum):
    RED = 1
out.append(pool.apply(lambda c: c, (Color.RED,)) is Color.RED)
class P:
    def get(self): return "old"
p = pool.apply(P)
out.append([type(p) is P, pool.apply(p.get)])
P.get = lambda self: "patched"
out.append(pool.apply(p.get))
@functools.lru_cache
def cached(x): return x * 2
out.append([pool.apply(cached, (2,)), pool.apply(lambda: cached(3))])
@functools.lru_cache
def cached(x): return x * 3
out.append([pool.apply(cached, (2,)), pool.apply(lambda: cached(3))])
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
out.append(pool.apply(even, (7,)))
def wrap(f):
    @functools.wraps(f)
    def wrapper(x): return "wrapped", f(x)
    return wrapper
@wrap
def g(x): return x
out.append([pool.apply(g, (1,)), pool.apply(g.__wrapped__, (1,))])
lock = threading.Lock()
def locked():
    with lock: return 1
try:
    pool.apply(locked)
except Exception as exc:
    out.append(str(exc).splitlines()[0])
pool.close()
pool.join()
print(json.dumps(out))
"""
EXPECTED_TYPED_IN = [
    [["model", 1, 1], ["model", 2, 2], ["model", 3, 3]],
    [["new", "model", 4]],
    [["new", "model", 101], ["new", "model", 102]],
    [False],
    [True],
    1,
    2,
    True,
    [True, "old"],
    "patched",
    [4, 6],
    [6, 9],
    False,
    [["wrapped", 1], 1],
    "the global 'lock', a _thread.lock, cannot be pickled: TypeError: cannot pickle "
    "'_thread.lock' object",
]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_typed_in_runs_as_it_is_now(script, method):
    status, out, err = script(TYPED_IN, method).finish()
    assert status == 0, err
    assert json.loads(out) == EXPECTED_TYPED_IN


# --- other modules: reloaded


RELOADED = """
import importlib, pathlib, sys
from prefork import Pool
folder, method = pathlib.Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, str(folder))
sys.dont_write_bytecode = True
def write(answer):
    for name in ("early", "late"):
        (folder / f"{name}.py").write_text(f"def f(): return {answer!r}")
write("old")
import early
pool = Pool(1, context=method)
import late
modules = early, late
print(*[pool.apply(module.f) for module in modules])
write("the new one")
for module in modules:
    importlib.reload(module)
    try:
        print(pool.apply(module.f))
    except Exception as exc:
        print(exc)
old = {worker.pid for worker in pool.statistics().workers}
pool.restart()
while old & {worker.pid for worker in pool.statistics().workers}:
    pass
print(*[pool.apply(module.f) for module in modules], sep=", ")
pool.terminate()
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_function_that_was_reloaded_does_not_run_as_it_was(script, tmp_path, method):
    status, out, err = script(RELOADED, tmp_path, method).finish()
    assert status == 0, err
    first, *refused, after = out.splitlines()
    assert first == "old old"
    assert len(refused) == 2
    assert all("was reloaded" in line and "restart()" in line for line in refused)
    assert after == "the new one, the new one"


# --- without cloudpickle


WITHOUT = """
import sys
sys.modules["cloudpickle"] = None
from prefork import Pool
def f(x): return x
pool = Pool(1, context="fork")
lock_of_mine = None
print(pool.map(f, [1]))
def f(x): return -x
try:
    pool.map(f, [1])
except Exception as exc:
    print(str(exc).splitlines()[0])
old = {w.pid for w in pool.statistics().workers}
pool.restart()
while old & {w.pid for w in pool.statistics().workers}:
    pass
print(pool.map(f, [1]), "prefork._ipc.by_value" in sys.modules)
pool.terminate()
"""


def test_without_cloudpickle_nothing_runs_that_is_out_of_date(script):
    status, out, err = script(WITHOUT).finish()
    assert status == 0, err
    first, refused, after = out.splitlines()
    assert first == "[1]"
    assert "__main__.f" in refused
    assert "pip install prefork[notebook]" in refused
    assert after == "[-1] False"


def test_cloudpickle_is_imported_when_it_is_needed(script):
    code = (
        "import sys; from prefork import Pool\n"
        "def f(x): return x\n"
        "pool = Pool(1, context='fork'); assert pool.map(f, [1]) == [1]\n"
        "def loaded(): return [m for m in ('cloudpickle', 'prefork._ipc.by_value') "
        "if m in sys.modules]\n"
        "assert not loaded(); assert pool.apply(lambda: 5) == 5; assert len(loaded()) == 2\n"
        "pool.terminate()\n"
    )
    status, _, err = script(code).finish()
    assert status == 0, err


# --- Ctrl-C in a call that nobody else has


class InterruptedHandler(Pool.TaskHandler):
    """Ctrl-C comes when a job has been handed in, and has begun, and no other one yet."""

    def __init__(self, taskqueue, put, outqueue, pool):
        def interrupted(job):
            put(job)
            marked(InterruptedPool.path)
            raise KeyboardInterrupt

        super().__init__(taskqueue, interrupted, outqueue, pool)


class InterruptedPool(Pool):
    TaskHandler = InterruptedHandler
    path: Path


@pytest.mark.parametrize("chunksize", [None, 1])
def test_a_map_that_is_interrupted_while_it_is_handed_in_is_ended(make_pool, tmp_path, chunksize):
    pool = make_pool(1, pool_class=InterruptedPool)
    InterruptedPool.path = path = tmp_path / "started"
    with pytest.raises(KeyboardInterrupt):
        pool.map(mark_and_stay, [path] * 3, chunksize)
    eventually(lambda: has_ended(int(path.read_text())), "its worker ends")
    assert pool.apply_async(abs, (-1,)).get(DEADLINE) == 1


AT_ONCE = """
import os, signal, sys, time
from prefork import Pool
def interrupt(pid):
    while True:  # again: Python may sleep over one that comes right before it waits for a lock
        os.kill(pid, signal.SIGINT)
        time.sleep(3)
if __name__ == "__main__":
    verb, pid = sys.argv[1], os.getpid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pool = Pool(1, context="fork")
    for _ in range(100):
        assert pool.apply_async(abs, (-1,)).get(20) == 1
        try:
            getattr(pool, verb)(interrupt, {"map": [pid] * 3, "apply": (pid,)}[verb])
        except KeyboardInterrupt:
            pass
    assert pool.apply_async(abs, (-1,)).get(20) == 1
    pool.terminate()
"""


@pytest.mark.parametrize("verb", ["map", "apply"])
def test_an_interrupt_that_comes_as_soon_as_a_task_runs(script, verb):
    assert script(AT_ONCE, verb).finish()[:2] == (0, "")


INTERRUPTED = """
import os, signal, sys, threading, time
from prefork import Pool
def stay(path):
    open(path, "w").close()
    while True: signal.pause()
def interrupt():
    while not os.path.exists(path): time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
def f(x): return x
path, verb = sys.argv[1:]
pool = Pool(1, context="fork")
threading.Thread(target=interrupt).start()
try:
    getattr(pool, verb)(stay, {"map": [path], "starmap": [(path,)], "apply": (path,)}[verb])
except KeyboardInterrupt:
    print("interrupted", pool.map(f, [1]))
pool.terminate()
"""


@pytest.mark.parametrize("verb", ["map", "starmap", "apply"])
def test_what_nobody_waits_for_any_more_does_not_keep_the_workers(script, tmp_path, verb):
    status, out, err = script(INTERRUPTED, tmp_path / "started", verb).finish()
    assert status == 0, err
    assert out == "interrupted [1]\n"
