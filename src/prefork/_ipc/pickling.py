"""A call on its way to a worker: its function and its arguments, pickled.

Most pools run few functions many times, and pickling a function by its name takes longer than all
the rest of a small call. So such a function has a pickle of its own, before that of the arguments:
either side makes or reads it once.
"""

from __future__ import annotations

import copyreg
import io
import marshal
import pickle
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, ClassVar, Final

from prefork._describe import function_name
from prefork._ipc.descriptors import collecting
from prefork._system import std_internals
from prefork.errors import SoftTimeLimitExceeded

__all__ = ["CallPickler", "CallUnpickler"]

MOST_FUNCTIONS: Final = 1000  # to remember
_BY_NAME: Final = frozenset({FunctionType, BuiltinFunctionType})


class CallPickler:
    def __init__(self) -> None:
        self._functions: dict[Callable[..., Any], tuple[bytes, str]] = {}

    def name(self, func: Callable[..., Any]) -> str:
        """What messages call it: see `function_name`."""
        known = self._functions.get(func) if type(func) in _BY_NAME else None
        return function_name(func) if known is None else known[1]

    def pickle(
        self,
        func: Callable[..., Any],
        arguments: Any,
        fds: list[int] | None = None,
    ) -> tuple[bytes, int, list[memoryview]]:
        """May raise whatever pickling raises; see `pack`.

        Returns:
            The pickles of the function and of the arguments, or one of both together; the length
            of the function's own, or 0; the buffers that were left out (PEP 574).
        """
        function = self._by_name(func)
        if function is None:
            pickled, buffers = pack((func, arguments), fds)
            return pickled, 0, buffers
        pickled, buffers = pack(arguments, fds)
        return function + pickled, len(function), buffers

    def _by_name(self, func: Callable[..., Any]) -> bytes | None:
        """The pickle of a function that is pickled as nothing but its name."""
        if type(func) not in _BY_NAME:
            return None
        known = self._functions.get(func)
        if known is None:
            owner = getattr(func, "__self__", None)  # of a method such as [].append
            if not isinstance(owner, (ModuleType, type(None))):
                return None
            pickled, _ = pack(func)
            if len(self._functions) >= MOST_FUNCTIONS:
                self._functions.clear()
            self._functions[func] = known = pickled, function_name(func)
        return known[0]


class CallUnpickler:
    def __init__(self) -> None:
        self._functions: dict[bytes, Callable[..., Any]] = {}

    def load(
        self, pickled: bytes | memoryview, function_length: int, buffers: list[memoryview]
    ) -> tuple[Callable[..., Any], Any]:
        """The function and its arguments; may raise whatever unpickling raises."""
        if not function_length:
            func, arguments = unpack(pickled, buffers)
            return func, arguments
        name = bytes(pickled[:function_length])
        function = self._functions.get(name)
        if function is None:
            if len(self._functions) >= MOST_FUNCTIONS:
                self._functions.clear()
            function = self._functions[name] = unpack(name)
        return function, unpack(pickled[function_length:], buffers)


PROTOCOL: Final = 5
"""Pickle protocol: the first with out-of-band buffers (PEP 574)."""

OUT_OF_BAND: Final = 1 << 16
"""Buffers (PEP 574) of at least this many bytes are kept out of the pickle, so that they are
copied once, into the file that they travel in."""

_PLAIN: Final = frozenset({type(None), bool, int, float, complex})
"""Types whose values are written by `marshal`, as short text is, in a third of the time that
`pickle` takes. Text of 2 GiB is more than marshal takes."""
_BYTES: Final = frozenset({bytes, bytearray})


class _Beside:
    """Bytes or a bytearray: pickled as a buffer beside the pickle, and unpickled as themselves."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self._data), (pickle.PickleBuffer(self._data),)


def _is_plain(obj: object) -> bool:
    kind = type(obj)
    return kind in _PLAIN or (kind is str and len(obj) < OUT_OF_BAND)  # type: ignore[arg-type]


def _is_large(obj: object) -> bool:
    return type(obj) in _BYTES and len(obj) >= OUT_OF_BAND  # type: ignore[arg-type]


_PICKLE: Final = 0x80
"""Each pickle begins with this byte (the opcode PROTO), and nothing of marshal's does."""

# A name that is final is found faster.
_dumps: Final[Callable[[Any], bytes]] = marshal.dumps
_loads: Final = marshal.loads


def dumps(obj: object) -> bytes:
    """The pickle of something of ours."""
    return pickle.dumps(obj, PROTOCOL)


def pickle_in_band(obj: object, fds: list[int]) -> bytes:
    """The pickle of something of a user's, with all its buffers in it; see `pack`."""
    return _pickle(obj, fds, None)


def pack(
    obj: object,
    fds: list[int] | None = None,
    soft_limit: type[BaseException] = SoftTimeLimitExceeded,
) -> tuple[bytes, list[memoryview]]:
    """For `unpack`: an object's pickle, or what marshal makes of a plain one; and views of the
    large buffers that were left out of it.

    Bytes themselves, or in a tuple such as a call's arguments, are left out, too.

    Args:
        fds: duplicates of the descriptors that it has are added here, see `descriptors.py`; whoever
            calls this closes them.
        soft_limit: what is raised meanwhile if the task has passed its limit.

    Raises:
        Exception: whatever pickling it raises; then nothing was added.
    """
    if type(obj) is tuple:
        for item in obj:
            if not _is_plain(item):
                break
        else:
            return _dumps(obj), []
        if any(map(_is_large, obj)):
            obj = tuple(_Beside(o) if _is_large(o) else o for o in obj)
    elif _is_plain(obj):
        return _dumps(obj), []
    elif _is_large(obj):
        obj = _Beside(obj)  # type: ignore[arg-type]
    buffers: list[memoryview] = []
    pickled = _pickle(obj, fds, buffers, soft_limit)
    return pickled, buffers


def _pickle(
    obj: object,
    fds: list[int] | None,
    buffers: list[memoryview] | None,
    soft_limit: type[BaseException] = SoftTimeLimitExceeded,
) -> bytes:
    """The pickle that multiprocessing's own pickler makes, which is written in Python; mostly by a
    shorter way. Large buffers are added to these; None: they are in the pickle."""

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if buffers is None or view.nbytes < OUT_OF_BAND:
            return True
        buffers.append(view)
        return False

    if _has_only_known_reducers():
        try:
            pickled = pickle.dumps(obj, PROTOCOL, buffer_callback=keep_in_band)
        except soft_limit:
            raise
        except Exception:
            pass  # perhaps it has a reducer
        else:
            if _CONNECTION not in pickled:
                return pickled
    if buffers:
        buffers.clear()
    file = io.BytesIO()
    pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=keep_in_band)
    pickler.dispatch_table = {**copyreg.dispatch_table, **_reducers}
    if fds is None:
        pickler.dump(obj)
    else:
        with collecting(fds):
            pickler.dump(obj)
    return file.getvalue()


_reducers: Final = std_internals.reducers()
"""What `multiprocessing.reduction.register` registers."""
_CONNECTION: Final = b"multiprocessing.connection"
_KNOWN: Final = frozenset(
    {
        "builtins.dict_items",
        "builtins.dict_keys",
        "builtins.dict_values",
        "builtins.method",
        "builtins.method_descriptor",
        "builtins.wrapper_descriptor",
        "functools.partial",
        "array.array",
        "socket.socket",
        "multiprocessing.connection.Connection",
    }
)
"""Types that the standard library has reducers for which an ordinary pickle can do without: either
it comes to the same, or it fails, or it names the module of `Connection`."""


class _Seen:
    count: ClassVar[int] = -1
    are_known: ClassVar[bool] = False


def _has_only_known_reducers() -> bool:
    count = len(_reducers)
    if count != _Seen.count:
        names = {f"{cls.__module__}.{cls.__qualname__}" for cls in list(_reducers)}
        _Seen.are_known = names <= _KNOWN
        _Seen.count = count
    return _Seen.are_known


def load(payload: Any) -> Any:
    """Unpickle bytes, or a list of buffers: the pickle, then its out-of-band buffers."""
    if isinstance(payload, list):
        return pickle.loads(payload[0], buffers=payload[1:])
    return pickle.loads(payload)


def unpack(packed: bytes | memoryview, buffers: Iterable[memoryview] = ()) -> Any:
    """The object of which `pack` has made this."""
    if packed[0] != _PICKLE:
        return _loads(packed)
    if not buffers:  # to pass none on takes as long as the rest
        return pickle.loads(packed)
    return pickle.loads(packed, buffers=buffers)
