"""A plugin for pytest that has joblib's own tests of its backends try this one.

joblib parametrizes them with the names of backends: where it says "loky", it says "prefork", too,
and only those cases are left that have it.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

import prefork.joblib  # it registers the backend, which other lists are made of

NAME = "prefork"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--left-out", action="append", default=[], help="a test that is not run")


def pytest_pycollect_makeitem(collector: pytest.Module, name: str, obj: object) -> None:
    marks = getattr(obj, "pytestmark", None)
    if isinstance(marks, list):
        marks[:] = [with_ours(mark) for mark in marks]
    if name == "check_subprocess_call":  # ten seconds for a program: a busy machine is not a bug
        setattr(
            collector.obj, name, lambda *args, **options: obj(*args, **options | {"timeout": 100})
        )
    if isinstance(obj, str):  # a script, perhaps, which one of them runs
        changed = obj.replace("\nfrom joblib import", "\nimport prefork.joblib\nfrom joblib import")
        setattr(collector.obj, name, changed)


def with_ours(mark: pytest.Mark) -> pytest.Mark:
    """The same mark; if it gives names of backends, with ours among them."""
    if mark.name != "parametrize" or not isinstance(mark.args[1], Iterable):
        return mark
    names, values, *others = mark.args
    values = list(values)
    if "loky" in values and NAME not in values:
        values.append(NAME)
    return pytest.mark.parametrize(names, values, *others, **mark.kwargs).mark


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = set(config.getoption("left_out"))
    items[:] = [i for i in items if has_ours(i) and not left_out & {i.name, i.name.split("[")[0]}]


def has_ours(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    values = () if call is None else call.params.values()
    return any(isinstance(v, (str, prefork.joblib.PreforkBackend)) and is_ours(v) for v in values)


def is_ours(value: object) -> bool:
    return value == NAME or isinstance(value, prefork.joblib.PreforkBackend)
