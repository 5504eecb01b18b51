"""Which functions have a name elsewhere, and which are allowed."""

from __future__ import annotations

import os
import sys
import types

import pytest

from prefork.cluster.errors import NotAllowedError
from prefork.cluster.names import AllowList, find, name_of


@pytest.fixture
def module(monkeypatch):
    """One that has a function, and other things."""
    module = types.ModuleType("a_module")
    source = "import os\nfrom os import system\ndef f(): pass\nclass C:\n    def m(self): pass\n"
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "a_module", module)
    return module


def test_a_function_has_a_name(module):
    assert name_of(module.f) == "a_module:f"
    assert find("a_module:f") is module.f


def test_what_has_none(module):
    for thing in (module.C, module.C.m, module.C().m, module.system, len, lambda: 0):
        with pytest.raises(TypeError, match="top level"):
            name_of(thing)


def test_a_function_that_was_replaced(module):
    old = module.f
    module.f = lambda: 0
    with pytest.raises(TypeError, match="a decorator may have replaced it"):
        name_of(old)


def test_a_function_of_the_script(module):
    module.f.__module__ = "__main__"
    with pytest.raises(TypeError, match="the script that runs here"):
        name_of(module.f)


@pytest.mark.parametrize("name", ["C", "system", "os", "g", "__builtins__"])
def test_nothing_but_functions_of_the_module_itself_is_found(module, name):
    with pytest.raises(NotAllowedError):
        find(f"a_module:{name}")


def test_what_is_allowed():
    allowed = AllowList(["work", "pkg.*", "other:f"])
    for name in ("work:f", "work:g", "pkg:f", "pkg.sub:f", "pkg.sub.sub:f", "other:f"):
        allowed.check(name)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "work.sub:f",
        "workx:f",
        "pkgx:f",
        "pkgx.sub:f",
        "other:g",
        "other.f:f",
        "work:f.g",
        "work:f\n",
        "work: f",
        "pkg.__main__:f",
        "pkg.sub.__main__:f",
        "work:",
        ":f",
        "work",
        "work:f:g",
        "work..sub:f",
        ".work:f",
        "pkg.*:f",
        "work:1",
        "",
    ],
)
def test_what_is_not(name):
    before = set(sys.modules)
    with pytest.raises(NotAllowedError):
        AllowList(["work", "pkg.*", "other:f"]).check(name)
    assert set(sys.modules) == before


@pytest.mark.parametrize("pattern", ["*", "", "work:*", "work.*:f", "*.work", "work:f.g", "a b"])
def test_patterns_that_are_none(pattern):
    with pytest.raises(ValueError, match=r"allow has|allow is empty"):
        AllowList([pattern])


def test_a_list_is_needed():
    with pytest.raises(TypeError, match="a list of names"):
        AllowList("work")
    with pytest.raises(ValueError, match="serves nobody"):
        AllowList([])


def test_it_is_the_very_module():
    assert os.system is not None
    with pytest.raises(NotAllowedError):
        find("os:system")
