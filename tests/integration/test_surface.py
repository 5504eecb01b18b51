"""The interface that the project was given: its names, signatures, roles and processes."""

from __future__ import annotations

import inspect
import multiprocessing
import multiprocessing.pool
import signal
from multiprocessing.connection import wait
from queue import SimpleQueue
from typing import Any

import pytest

from gate import enter
from helpers import DEADLINE, NEVER, eventually, has_ended
from prefork import Pool, PoolBrokenError, SoftTimeLimitExceeded

REQUIRED = inspect.Parameter.empty

# Each callable with its parameters after `self`, in their order.
SURFACE = {
    "__init__": {
        "processes": None,
        "initializer": None,
        "initargs": (),
        "maxtasksperchild": None,
        "timeout": None,
        "soft_timeout": None,
        "lost_worker_timeout": 10.0,
    },
    "apply": {"func": REQUIRED, "args": (), "kwds": {}},
    "apply_async": {
        "func": REQUIRED,
        "args": (),
        "kwds": {},
        "callback": None,
        "error_callback": None,
        "accept_callback": None,
        "timeout_callback": None,
        "waitforslot": False,
        "soft_timeout": None,
        "timeout": None,
        "lost_worker_timeout": None,
    },
    "close": {},
    "grow": {"n": 1},
    "imap": {"func": REQUIRED, "iterable": REQUIRED, "chunksize": 1, "lost_worker_timeout": None},
    "imap_unordered": {
        "func": REQUIRED,
        "iterable": REQUIRED,
        "chunksize": 1,
        "lost_worker_timeout": None,
    },
    "join": {},
    "map": {"func": REQUIRED, "iterable": REQUIRED, "chunksize": None},
    "map_async": {
        "func": REQUIRED,
        "iterable": REQUIRED,
        "chunksize": None,
        "callback": None,
        "error_callback": None,
    },
    "restart": {},
    "shrink": {"n": 1},
    "starmap": {"func": REQUIRED, "iterable": REQUIRED, "chunksize": None},
    "starmap_async": {
        "func": REQUIRED,
        "iterable": REQUIRED,
        "chunksize": None,
        "callback": None,
        "error_callback": None,
    },
    "terminate": {},
    "Process.__init__": {
        "group": None,
        "target": None,
        "name": None,
        "args": (),
        "kwargs": {},
        "daemon": None,
    },
    "Process.is_alive": {},
    "Process.join": {"timeout": None},
    "Process.run": {},
    "Process.start": {},
    "Process.terminate": {},
    "ResultHandler.__init__": {
        "outqueue": REQUIRED,
        "get": REQUIRED,
        "cache": REQUIRED,
        "poll": REQUIRED,
        "join_exited_workers": REQUIRED,
        "putlock": REQUIRED,
    },
    "ResultHandler.body": {},
    "Supervisor.__init__": {"pool": REQUIRED},
    "Supervisor.body": {},
    "TaskHandler.__init__": {
        "taskqueue": REQUIRED,
        "put": REQUIRED,
        "outqueue": REQUIRED,
        "pool": REQUIRED,
    },
    "TaskHandler.body": {},
    "TimeoutHandler.__init__": {
        "processes": REQUIRED,
        "cache": REQUIRED,
        "t_soft": REQUIRED,
        "t_hard": REQUIRED,
    },
    "TimeoutHandler.body": {},
}


def attribute(path):
    found: Any = Pool
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("path", SURFACE)
def test_signatures(path):
    """Calls that were right stay right: what was added has a default, at the end."""
    _, *parameters = inspect.signature(attribute(path)).parameters.values()
    expected = SURFACE[path]
    given = {p.name: p.default for p in parameters[: len(expected)]}  # type: ignore[arg-type]
    assert list(given.items()) == list(expected.items())
    added = parameters[len(expected) :]  # type: ignore[arg-type]
    assert all(p.default is not REQUIRED or p.kind is p.VAR_KEYWORD for p in added)


@pytest.mark.parametrize(
    "name", ["authkey", "daemon", "exitcode", "ident", "name", "pid", "sentinel"]
)
def test_properties_of_processes(name):
    assert isinstance(inspect.getattr_static(Pool.Process, name), property)


def test_the_soft_limit_exception_is_found_at_the_pool():
    assert Pool.SoftTimeLimitExceeded is SoftTimeLimitExceeded
    assert issubclass(SoftTimeLimitExceeded, Exception)


@pytest.mark.parametrize("name", [n for n in dir(multiprocessing.pool.Pool) if n[0] != "_"])
def test_everything_that_the_standard_pool_has(name):
    if name == "Process":
        return  # there a factory, here a class; see the signatures
    theirs = inspect.signature(getattr(multiprocessing.pool.Pool, name)).parameters
    ours = inspect.signature(getattr(Pool, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)


def test_every_public_object_has_a_docstring():
    paths = [path for path in SURFACE if not path.endswith(("__init__", ".body"))]
    for path in [*paths, "ResultHandler", "Supervisor", "TaskHandler", "TimeoutHandler", "Process"]:
        assert inspect.getdoc(attribute(path)), path


# --- roles and processes of a subclass are really used

used = SimpleQueue()


def noting(base, *methods):
    """A subclass that notes calls of these methods, and does as before."""

    def overriding(name):
        original = getattr(base, name)

        def method(self, *args, **kwargs):
            used.put((base.__name__, name))
            return original(self, *args, **kwargs)

        return method

    return type(f"Noting{base.__name__}", (base,), {name: overriding(name) for name in methods})


class NotingPool(Pool):
    TaskHandler = noting(Pool.TaskHandler, "__init__", "body")
    ResultHandler = noting(Pool.ResultHandler, "__init__", "body")
    TimeoutHandler = noting(Pool.TimeoutHandler, "__init__", "body")
    Supervisor = noting(Pool.Supervisor, "__init__", "body")


def test_roles_of_a_subclass_are_used():
    while not used.empty():
        used.get()
    with NotingPool(1) as pool:
        assert pool.apply_async(abs, (-1,), timeout=100).get(DEADLINE) == 1
        assert list(pool.imap(abs, [-1, -2])) == [1, 2]
    roles = ["TaskHandler", "ResultHandler", "TimeoutHandler", "Supervisor"]
    expected = {(role, method) for role in roles for method in ("__init__", "body")}
    calls = set()
    while calls < expected:  # a thread may come late
        calls.add(used.get(timeout=DEADLINE))
    assert calls == expected


def test_a_role_that_nobody_needs_is_not_started():
    while not used.empty():
        used.get()
    with NotingPool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1
    calls = set()
    while not used.empty():
        calls.add(used.get())
    assert {role for role, method in calls if method == "body"} == {"ResultHandler", "Supervisor"}


def failing(role):
    """A pool whose threads of this role fail at once."""

    def body(self):
        raise RuntimeError(f"{role} is down")

    base = getattr(Pool, role)
    return type(f"{role}less", (Pool,), {role: type(f"Failing{role}", (base,), {"body": body})})


def use(pool, gate):
    """Use all roles, with a call that does not end."""
    list(pool.imap(abs, [-1, -2]))
    pool.apply_async(enter, (gate,), timeout=NEVER).get(DEADLINE)


@pytest.mark.parametrize("role", ["ResultHandler", "Supervisor", "TaskHandler", "TimeoutHandler"])
def test_a_role_that_fails_fails_all_jobs_and_ends_the_pool(role, gate):
    pool = failing(role)(1)
    with pytest.raises(PoolBrokenError, match=f"{role} is down"):
        use(pool, gate)
    with pytest.raises(PoolBrokenError, match=f"{role} is down"):
        pool.apply_async(abs, (-1,))
    pool.terminate()
    assert pool.join(DEADLINE)


class FragileProcess(Pool.Process):
    starts = 0

    def start(self):
        type(self).starts += 1
        if self.starts > 1:
            raise RuntimeError("no second start")
        super().start()


class FragilePool(Pool):
    Process = FragileProcess


def test_a_process_class_that_fails_at_once_fails_the_constructor():
    FragileProcess.starts = 0
    with pytest.raises(RuntimeError, match="no second start"):
        FragilePool(2)


class NamedProcess(Pool.Process):
    def run(self):
        global ran_in
        ran_in = self.name
        super().run()


class NamedPool(Pool):
    Process = NamedProcess


ran_in = ""


def where_it_ran():
    return ran_in


def test_the_process_class_of_a_subclass_is_used(context):
    with NamedPool(1, context=context) as pool:
        name = pool.apply(where_it_ran)
        assert name
        assert name == pool.apply(process_name)


def process_name():
    return multiprocessing.current_process().name


# --- Pool.Process by itself


def leave(code, *, word=""):
    raise SystemExit(code + len(word))


def test_a_process_runs_its_target(context):
    process = Pool.Process(
        None, leave, "a name", (3,), {"word": "four"}, None, context=context, ignored=1
    )
    assert process.name == "a name"
    assert process.pid is process.ident is process.exitcode is None
    assert not process.is_alive()
    process.start()
    assert process.pid == process.ident
    assert wait([process.sentinel], DEADLINE) == [process.sentinel]
    process.join(DEADLINE)
    assert process.exitcode == 7
    assert not process.is_alive()
    process.close()


def test_a_process_of_the_default_start_method():
    process = Pool.Process(target=leave, args=[3])
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == 3
    process.close()


def test_a_process_is_terminated(gate):
    process = Pool.Process(target=enter, args=(gate,), daemon=True)
    assert process.daemon
    assert process.authkey == multiprocessing.current_process().authkey
    process.start()
    assert gate.arrival().pid == process.pid
    assert process.is_alive()
    process.join(0.01)
    assert process.exitcode is None
    process.terminate()
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGTERM
    assert not process.is_alive()
    pid = process.pid
    process.close()
    eventually(lambda: has_ended(pid), "it has gone")


class Leaving(Pool.Process):
    def run(self):
        raise SystemExit(9)


def test_run_can_be_overridden():
    process = Leaving()
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == 9
    process.close()
