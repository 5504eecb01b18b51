"""The function of a map, when it is large: pickled once for all of its jobs.

A `partial` with an array, a method of a large object: what such a function consists of is the same
for each job of a call. So its pickle is a constant, which goes along with each job as a descriptor.
Each job unpickles it anew, from a mapping of its own: what a task writes there stays its own.

What items have in common with the function, such as parts of the object whose method it is, are the
same objects in the worker, as they are in one pickle: the pickles of the items go on where that of
the function has ended, and refer to what is in there.
"""

from __future__ import annotations

import io
import marshal
import pickle
from collections.abc import Callable
from typing import Any, Final

from prefork._describe import function_name
from prefork._ipc.constants import FUNCTION, Constant, ConstantFile, hold, mentioning
from prefork._ipc.payload import FILE
from prefork._ipc.pickling import (
    PROTOCOL,
    CallPickler,
    beside,
    has_connection,
    is_named,
    is_plain,
    keeper,
    ordinary_table,
    unpack,
)

__all__ = ["Once", "load_once", "once"]

LARGE: Final = FILE
"""Bytes from which on a function is sent so: below, it is copied along with each job in the time
that it takes to map a file."""

_PICKLE: Final = 0x80  # begins each pickle, and nothing of marshal's


def once(func: Callable[..., Any]) -> Callable[..., Any]:
    """For several jobs of one call: this function, in a way that factories of jobs know."""
    return func if is_named(func) else Once(func)


class Once:
    """A function that several jobs have in common.

    Attributes:
        func: it.
        constants: what its jobs need, once it has been pickled: itself.
    """

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func  # messages look for its name here
        self.constants: tuple[Constant, ...] = ()
        self._is_looked_at = False
        self._pickler: pickle.Pickler | None = None  # that knows what is in the function's pickle

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.func,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {function_name(self.func)}>"

    def pack(
        self, calls: CallPickler, arguments: Any, *more: Any
    ) -> tuple[bytes, list[memoryview]] | None:
        """What a job has beside its constants, and large buffers that were left out of it. None: it
        has to be pickled as a whole, by the usual way, which may fail."""
        if not self._is_looked_at:
            self._is_looked_at = True
            self._look(calls)
        if self._pickler is None:
            return None
        if isinstance(arguments, (tuple, list)) and all(map(is_plain, arguments)):
            return marshal.dumps((arguments, *more) if more else arguments), []
        if type(arguments) is tuple:
            arguments = beside(arguments)
        obj = (arguments, *more) if more else arguments
        packed = _pickled(calls, obj, self._pickler)
        return None if packed is None else packed[:2]

    def _look(self, calls: CallPickler) -> None:
        """Pickle it, and see whether it is large."""
        with mentioning() as mentioned:
            packed = _pickled(calls, self.func)
        if packed is None:
            return
        pickled, buffers, pickler = packed
        pieces = [memoryview(pickled), *buffers]
        if sum(piece.nbytes for piece in pieces) < LARGE:
            return
        try:
            file = ConstantFile(FUNCTION, pieces)
        except OSError:  # no descriptor is left for it, or no memory for a file
            return
        self.constants = hold([Constant(FUNCTION, file), *mentioned])
        self._pickler = pickler


def _pickled(
    calls: CallPickler, obj: object, after: pickle.Pickler | None = None
) -> tuple[bytes, list[memoryview], pickle.Pickler] | None:
    """None: that takes more than an ordinary pickle."""
    buffers: list[memoryview] = []
    file = io.BytesIO()
    pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=keeper(buffers))
    if after is not None:
        pickler.memo = after.memo
    if (table := ordinary_table()) is not None:
        pickler.dispatch_table = table
    try:
        pickler.dump(obj)
        pickled = file.getvalue()
        if has_connection(pickled) or calls.needs_definitions(obj, pickled):
            return None
    except Exception:  # the usual way tells what it is, if it fails, too
        return None
    file.seek(0)
    file.truncate()  # the pickler, which is kept, has it
    return pickled, buffers, pickler


def _itself(func: Callable[..., Any]) -> Callable[..., Any]:
    return func


def load_once(
    function: list[memoryview], packed: memoryview, buffers: list[memoryview]
) -> tuple[Callable[..., Any], Any]:
    """In the worker: a function that has come as a constant, and what `Once.pack` has made; may
    raise whatever unpickling raises."""
    first, *its = function
    if packed[0] != _PICKLE:
        return unpack(first, its), unpack(packed)
    # One unpickler for both: the second pickle refers to what is in the first.
    file = io.BytesIO(b"".join((first, packed)))
    unpickler = pickle.Unpickler(file, buffers=[*its, *buffers])
    return unpickler.load(), unpickler.load()
