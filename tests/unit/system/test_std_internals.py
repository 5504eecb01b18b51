"""All that is private in `multiprocessing`, and used, is there in this version of Python, and means
what it is used for."""

from __future__ import annotations

import ast
import multiprocessing
import sys
from multiprocessing import forkserver, popen_fork, process, reduction, resource_tracker, util
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork._system import std_internals

SOURCE = Path(prefork.__file__).parent

HOME = "std_internals.py"
FORBIDDEN = {
    "_children",
    "_exit_function",
    "_extra_reducers",
    "_flush_std_streams",
    "_fork_intent",
    "_forkserver",
    "_preload_modules",
    "_preload_on_error",
    "_resource_tracker",
}
"""Names that are used in that module alone."""

OVERRIDDEN = ["_bootstrap", "_Popen", "run", "start", "sentinel"]
"""Of `BaseProcess`: a pool's processes are such ones."""


def test_what_is_private_is_used_in_one_module():
    found = [
        (path.name, node.attr)
        for path in SOURCE.rglob("*.py")
        if path.name != HOME and "celery" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in FORBIDDEN
        # `self._children` is an attribute of our own
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    ]
    assert found == []


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_how_a_process_is_started(method):
    context = multiprocessing.get_context(method)
    assert std_internals.is_forking(context) == (method == "fork")
    assert issubclass(std_internals.popen(context).__globals__["ForkProcess"], process.BaseProcess)


def test_the_processes_that_are_waited_for():
    child: Any = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    assert child in std_internals.children()
    child.join()
    assert child not in std_internals.children()


def test_the_reducers():
    assert std_internals.reducers() is reduction.ForkingPickler._extra_reducers
    reduction.ForkingPickler.register(test_the_reducers.__class__, lambda it: (abs, (1,)))
    try:
        assert test_the_reducers.__class__ in std_internals.reducers()
    finally:
        del std_internals.reducers()[test_the_reducers.__class__]


def test_the_end_of_a_child():
    assert callable(util._exit_function)
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


def test_the_resource_tracker():
    # Whoever has the hook that takes it away has what keeps it, too.
    takes_away = hasattr(resource_tracker.ResourceTracker, "_after_fork_in_child")
    assert takes_away == hasattr(resource_tracker, "_fork_intent")
    with std_internals.sharing_tracker():
        if takes_away:
            assert resource_tracker._fork_intent.preserve_fd


def test_what_is_overridden():
    for name in OVERRIDDEN:
        assert hasattr(process.BaseProcess, name), name
    fresh = vars(multiprocessing.Process())
    for name in ("_name", "_identity", "_args"):
        assert name in fresh, name
    for name in ("poll", "wait", "duplicate_for_child", "terminate", "kill", "close"):
        assert hasattr(popen_fork.Popen, name), name
