"""Calls on their way: the function once, the arguments each time."""

from __future__ import annotations

import functools
import pickle

import pytest

from prefork._ipc import pickling
from prefork._ipc.pickling import CallPickler, CallUnpickler


def double(x):
    return 2 * x


class Adder:
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return self.n + x


def travel(func, arguments, pickler=None, unpickler=None):
    pickled, function_length, buffers = (pickler or CallPickler()).pickle(func, arguments)
    return (unpickler or CallUnpickler()).load(memoryview(pickled), function_length, buffers)


CALLABLES = {
    "function": double,
    "builtin": len,
    "method of a type": str.upper,
    "class": Adder,
    "method of an object": "x".join,
    "partial": functools.partial(double, 3),
    "method": Adder(4).__call__,
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_a_call_arrives(kind):
    func = CALLABLES[kind]
    pickler, unpickler = CallPickler(), CallUnpickler()
    for arguments in [("a", 1), [None, b"x" * 100_000], ({"k": [1.5]}, bytearray(200_000))]:
        arrived, its = travel(func, arguments, pickler, unpickler)
        assert its == arguments
        assert list(map(type, its)) == list(map(type, arguments))
        assert pickle.dumps(arrived) == pickle.dumps(func)


def test_a_function_is_pickled_once(monkeypatch):
    pickler = CallPickler()
    packed = []
    pack = pickling.pack

    def note(obj, *args, **options):
        packed.append(obj)
        return pack(obj, *args, **options)

    monkeypatch.setattr(pickling, "pack", note)
    sizes = {pickler.pickle(double, (n,))[1] for n in range(3)}
    assert packed == [double, (0,), (1,), (2,)]
    assert len(sizes) == 1
    assert sizes != {0}


def test_a_callable_with_a_state_is_pickled_each_time():
    pickler, unpickler = CallPickler(), CallUnpickler()
    adder = Adder(1)
    for n in range(3):
        adder.n = n
        arrived, (x,) = travel(adder, (10,), pickler, unpickler)
        assert arrived(x) == 10 + n


def test_what_function_and_arguments_share_stays_shared():
    shared = [1]
    arrived, (argument,) = travel(functools.partial(double, shared), (shared,))
    assert arrived.args[0] is argument


def test_many_functions_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(pickling, "MOST_FUNCTIONS", 2)
    pickler, unpickler = CallPickler(), CallUnpickler()
    for func in [double, len, max, min, double, sum]:
        assert travel(func, (1,), pickler, unpickler) == (func, (1,))
    assert len(pickler._functions) <= 2
    assert len(unpickler._functions) <= 2
