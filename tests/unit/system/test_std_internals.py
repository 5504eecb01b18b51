"""All that is private in the standard library, and used, is there in this version of Python, and
means what it is used for."""

from __future__ import annotations

import ast
import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import forkserver, popen_fork, process, reduction, resource_tracker, util
from pathlib import Path
from typing import Any

import pytest

import prefork
from helpers import DEADLINE
from prefork._system import std_internals

SOURCE = Path(prefork.__file__).parent

HOME = "std_internals.py"

NOT_THEIRS = {
    ("at_fork.py", "_bootstrap"): "`importlib`'s",
    ("child.py", "_parent_pid"): "`billiard`'s",
    ("child.py", "_run_after_forkers"): "`billiard`'s",
    ("forks.py", "_bootstrap"): "our own `Process`'s, which calls what it overrides",
}
"""What has a name in common with something that is private in `multiprocessing`."""

OVERRIDDEN = ["_bootstrap", "_Popen", "run", "start", "sentinel"]
"""Of `BaseProcess`: a pool's processes are such ones."""


def private_names(folder: Path) -> set[str]:
    """Those that are given to anything in the modules of a folder."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                    found.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
    return {name for name in found if name.startswith("_") and not name.endswith("_")}


def is_own(node: ast.expr) -> bool:
    """What belongs to the object itself: it may have got it from a base class."""
    return ast.unparse(node) in ("self", "cls", "super()")


def test_what_is_private_is_used_in_one_module():
    private = private_names(Path(multiprocessing.__file__).parent)
    assert {"_children", "_exit_function", "_forkserver", "_identity"} <= private
    used = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(value=value, attr=name) if name in private and not is_own(value):
                    used.add((path.name, name))
                case ast.ImportFrom(module=str(module), names=names) if "multiprocessing" in module:
                    used |= {(path.name, each.name) for each in names if each.name in private}
    assert {use for use in used if use[0] != HOME} == set(NOT_THEIRS)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_how_a_process_is_started(method):
    context = multiprocessing.get_context(method)
    assert std_internals.is_forking(context) == (method == "fork")
    assert issubclass(std_internals.popen(context).__globals__["ForkProcess"], process.BaseProcess)


def test_who_a_process_is():
    child = multiprocessing.Process(target=abs, args=(-1,), name="one")
    assert std_internals.identity(child) == ("one", child._identity, (-1,))
    std_internals.identify(child, "another", (7, 8), (-2,))
    assert child.name == "another"
    assert std_internals.identity(child) == ("another", (7, 8), (-2,))
    me = multiprocessing.current_process()
    std_internals.become_current(child)
    try:
        assert multiprocessing.current_process() is child
    finally:
        std_internals.become_current(me)


def test_the_processes_that_are_waited_for():
    child: Any = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    assert child in std_internals.children()
    child.join()
    assert child not in std_internals.children()


def test_the_reducers():
    assert std_internals.reducers() is reduction.ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    reduction.ForkingPickler.register(test_the_reducers.__class__, lambda it: (abs, (1,)))
    try:
        assert test_the_reducers.__class__ in std_internals.reducers()
    finally:
        del std_internals.reducers()[test_the_reducers.__class__]


def test_the_end_of_a_child():
    assert callable(util._exit_function)  # type: ignore[attr-defined]
    assert callable(atexit._run_exitfuncs)
    assert callable(threading._shutdown)  # type: ignore[attr-defined]
    assert callable(threading._register_atexit)  # type: ignore[attr-defined]
    std_internals.flush_std_streams()


def test_the_fork_server(monkeypatch):
    server: Any = forkserver._forkserver
    monkeypatch.setattr(server, "_preload_modules", ["__main__", "abc"])
    if sys.version_info >= (3, 15):
        monkeypatch.setattr(server, "_preload_on_error", "warn")
    context = multiprocessing.get_context("forkserver")
    assert std_internals.fork_server_of(context) is server
    assert std_internals.fork_server_of(multiprocessing.get_context("spawn")) is None
    std_internals.preload(server, "prefork")
    std_internals.preload(server, "prefork")
    assert server._preload_modules == ["__main__", "abc", "prefork"]
    assert getattr(server, "_preload_on_error", "warn") == "warn"


def test_a_fork_server_is_disowned():
    server: Any = forkserver.ForkServer()
    reader, writer = os.pipe()
    server._forkserver_pid, server._forkserver_alive_fd = os.getppid(), writer
    server._lock.acquire()  # by a thread that is not there any more
    std_internals.disown(server)
    assert os.read(reader, 1) == b"", "the server would live as long as this process"
    fresh = vars(forkserver.ForkServer())
    assert {name: it for name, it in vars(server).items() if name != "_lock" and name in fresh} == {
        name: it for name, it in fresh.items() if name != "_lock"
    }
    with server._lock:
        os.close(reader)


@pytest.mark.parametrize("has_child", [False, True])
def test_a_fork_server_that_does_not_answer(has_child):
    """It is ended, unless somebody would lose a parent."""
    code = "import os, sys; sys.argv[1:] and os.fork(); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *["fork"] * has_child],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        server: Any = forkserver.ForkServer()
        std_internals.end_if_stuck(server)  # there is none
        server._forkserver_pid = process.pid
        std_internals.end_if_stuck(server)
        if not has_child:
            assert process.wait(DEADLINE) == -signal.SIGKILL
        process.communicate()
    assert process.returncode == (0 if has_child else -signal.SIGKILL)


def test_the_resource_tracker():
    # Whoever has the hook that takes it away has what keeps it, too.
    takes_away = hasattr(resource_tracker.ResourceTracker, "_after_fork_in_child")
    assert takes_away == hasattr(resource_tracker, "_fork_intent")
    with std_internals.sharing_tracker():
        if takes_away:
            assert resource_tracker._fork_intent.preserve_fd  # type: ignore[attr-defined]


def test_what_is_overridden():
    for name in OVERRIDDEN:
        assert hasattr(process.BaseProcess, name), name
    for name in ("poll", "wait", "duplicate_for_child", "terminate", "kill", "close"):
        assert hasattr(popen_fork.Popen, name), name
