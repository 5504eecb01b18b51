"""A call on its way to a worker: its function and its arguments, pickled.

Most pools run few functions many times, and pickling a function by its name takes longer than all
the rest of a small call. So such a function has a pickle of its own, before that of the arguments:
either side makes or reads it once.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import marshal
import pickle
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from prefork._describe import function_name, type_name
from prefork._ipc.descriptors import collecting
from prefork._system import at_fork, std_internals
from prefork.errors import SoftTimeLimitExceeded

if TYPE_CHECKING:
    from prefork._ipc.main_module import Uses, WorkersMain

__all__ = ["CallPickler", "CallUnpickler"]

MOST_FUNCTIONS: Final = 1000  # to remember
BY_NAME: Final = frozenset({FunctionType, BuiltinFunctionType})


# The pickle of a function that has one of its own; its name; what it uses of `__main__`, if it is
# defined there; its code, which `%autoreload` exchanges.
_Known = tuple[bytes, str, "Uses | None", Any]


class CallPickler:
    """
    Args:
        main: what the workers have as `__main__`. None: whatever is needed of it.
    """

    def __init__(self, main: WorkersMain | None = None) -> None:
        self._main = main
        self._functions: dict[Callable[..., Any], _Known] = {}

    def name(self, func: Callable[..., Any]) -> str:
        """What messages call it: see `function_name`."""
        known = self._functions.get(func) if type(func) in BY_NAME else None
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
            of the function's own, or 0; the buffers that were left out (PEP 574). What a worker
            lacks of `__main__` may take the place of the function's pickle, see `by_value.py`.
        """
        try:
            function, is_known = self._by_name(func)
            if is_known:
                obj = (func, arguments) if function is None else arguments
                pickled, buffers = pack(obj, fds, results=False)
                if not (_names(pickled, _MAIN) and self._may_lack(obj)):
                    if function is None:
                        return pickled, 0, buffers
                    return function + pickled, len(function), buffers
        except Exception as exc:
            if self._main is None or not is_unknown_name(exc):
                raise
            reason: Exception | None = exc
        else:
            reason = None
        if fds:
            at_fork.Descriptors(*fds).close()  # of the pickle that will not do
            fds.clear()
        buffers = []
        definitions, pickled = load_by_value(reason, func).dumps_with_definitions(
            self._main, (func, arguments), fds, keeper(buffers)
        )
        return definitions + pickled, len(definitions), buffers

    def _by_name(self, func: Callable[..., Any]) -> tuple[bytes | None, bool]:
        """The pickle of a function that is pickled as nothing but its name; and whether the name
        means to a worker what it means here, as far as that is known."""
        if type(func) not in BY_NAME:
            return None, True
        known = self._functions.get(func)
        if known is None:
            if not is_named(func):
                return None, True
            pickled, _ = pack(func, None, results=False)
            return self._look_at(func, pickled)
        uses = known[2]
        if uses is None:
            if known[3] is getattr(func, "__code__", None):
                return known[0], True
        elif uses.are_there and uses.are_as_they_were():
            return known[0], True
        pickled, _ = pack(func, None, results=False)
        return self._look_at(func, pickled)

    def _look_at(self, func: Callable[..., Any], pickled: bytes) -> tuple[bytes, bool]:
        """It is new, or not what it was."""
        name = function_name(func)
        uses = self._uses(func)
        self._remember(func, (pickled, name, uses, getattr(func, "__code__", None)))
        return pickled, uses is None or uses.are_there

    def _remember(self, func: Callable[..., Any], known: _Known) -> None:
        if len(self._functions) >= MOST_FUNCTIONS:
            self._functions.clear()
        self._functions[func] = known

    def _uses(self, func: Callable[..., Any]) -> Uses | None:
        """
        Raises:
            pickle.PicklingError: it is of a module that has been reloaded, and workers have it as
                it was.
        """
        main, module = self._main, getattr(func, "__module__", None)
        if main is None or module is None:
            return None
        if module == "__main__":
            return main.uses_of(func)
        if not main.have_module(module):
            raise pickle.PicklingError(
                f"{function_name(func)} was reloaded with its module after the workers were "
                "started, which have the old one: have the pool replace them by its restart(), or "
                "make it anew"
            )
        return None

    def needs_definitions(self, obj: object, pickled: bytes) -> bool:
        """Whether something of `__main__` has to go along with what was pickled."""
        return _names(pickled, _MAIN) and self._may_lack(obj)

    def _may_lack(self, obj: object) -> bool:
        """Whether a worker may not find what this has names for."""
        return self._main is not None and self._main.may_lack(obj)


def is_named(func: Callable[..., Any]) -> bool:
    """Whether it may be pickled as nothing but its name: not a method such as [].append."""
    if type(func) not in BY_NAME:
        return False
    return isinstance(getattr(func, "__self__", None), (ModuleType, type(None)))


class CallUnpickler:
    def __init__(self) -> None:
        self._functions: dict[bytes, Any] = {}

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
            function = unpack(name)
            if function_length <= OUT_OF_BAND:
                if len(self._functions) >= MOST_FUNCTIONS:
                    self._functions.clear()
                self._functions[name] = function
        if type(function) is tuple:
            from prefork._ipc.arrival import apply

            apply(function)
            func, arguments = unpack(pickled[function_length:], buffers)
            return func, arguments
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


def is_plain(obj: object) -> bool:
    """Whether marshal writes it."""
    kind = type(obj)
    return kind in _PLAIN or (kind is str and len(obj) < OUT_OF_BAND)  # type: ignore[arg-type]


def _is_large(obj: object) -> bool:
    return type(obj) in _BYTES and len(obj) >= OUT_OF_BAND  # type: ignore[arg-type]


def beside(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same, whose large bytes will be buffers."""
    return tuple(_Beside(each) if _is_large(each) else each for each in arguments)


_PICKLE: Final = 0x80
"""Each pickle begins with this byte (the opcode PROTO), and nothing of marshal's does."""


def _names(packed: bytes, name: bytes) -> bool:
    """Whether there may be this name in it. (`in` would first try whether that is a number.)"""
    return packed[0] == _PICKLE and packed.find(name) >= 0


# A name that is final is found faster.
_dumps: Final[Callable[[Any], bytes]] = marshal.dumps
_loads: Final = marshal.loads


def dumps(obj: object) -> bytes:
    """The pickle of something of ours."""
    return pickle.dumps(obj, PROTOCOL)


def pickle_in_band(obj: object, fds: list[int]) -> bytes:
    """The pickle of something of a user's, with all its buffers in it; see `pack`."""
    return _pickle(obj, fds, None)


def pickle_as_itself(exc: BaseException) -> bytes:
    """The pickle that an exception's class has made, whatever is registered for it elsewhere."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, PROTOCOL)
    pickler.dispatch_table = {
        cls: reducer
        for cls, reducer in copyreg.dispatch_table.items()
        if not issubclass(cls, BaseException)
    }
    pickler.dump(exc)
    return file.getvalue()


def pack(
    obj: object,
    fds: list[int] | None = None,
    soft_limit: type[BaseException] = SoftTimeLimitExceeded,
    results: bool = True,
) -> tuple[bytes, list[memoryview]]:
    """For `unpack`: an object's pickle, or what marshal makes of a plain one; and views of the
    large buffers that were left out of it.

    Bytes themselves, or in a tuple such as a call's arguments, are left out, too.

    Args:
        fds: duplicates of the descriptors that it has are added here, see `descriptors.py`; whoever
            calls this closes them.
        soft_limit: what is raised meanwhile if the task has passed its limit.
        results: it is one, and what has no name goes by value; else that fails here.

    Raises:
        Exception: whatever pickling it raises; then nothing was added.
    """
    if type(obj) is tuple:
        for item in obj:
            if not is_plain(item):
                break
        else:
            return _dumps(obj), []
        if any(map(_is_large, obj)):
            obj = beside(obj)
    elif is_plain(obj):
        return _dumps(obj), []
    elif _is_large(obj):
        obj = _Beside(obj)  # type: ignore[arg-type]
    buffers: list[memoryview] = []
    pickled = _pickle(obj, fds, buffers, soft_limit, results)
    return pickled, buffers


def keeper(buffers: list[memoryview] | None) -> Callable[[pickle.PickleBuffer], bool]:
    """For picklers: has large buffers added to these. None: they are in the pickle."""

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if buffers is None or view.nbytes < OUT_OF_BAND:
            return True
        buffers.append(view)
        return False

    return keep_in_band


def _pickle(
    obj: object,
    fds: list[int] | None,
    buffers: list[memoryview] | None,
    soft_limit: type[BaseException] = SoftTimeLimitExceeded,
    results: bool = True,
) -> bytes:
    """The pickle that multiprocessing's own pickler makes, which is written in Python; mostly by a
    shorter way. For `buffers` see `keeper`."""
    keep = keeper(buffers)
    if _has_only_known_reducers():
        try:
            pickled = pickle.dumps(obj, PROTOCOL, buffer_callback=keep)
        except soft_limit:
            raise
        except Exception:
            pass  # perhaps it has a reducer
        else:
            if not _names(pickled, _CONNECTION):
                return pickled
    if buffers:
        buffers.clear()
    file = io.BytesIO()
    pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=keep)
    pickler.dispatch_table = {**copyreg.dispatch_table, **_reducers}
    try:
        if fds is None:
            pickler.dump(obj)
        else:
            with collecting(fds):
                pickler.dump(obj)
    except soft_limit:
        raise
    except Exception as exc:
        if not (results and is_unknown_name(exc)):
            raise
        if buffers:
            buffers.clear()
        by_value: Any = load_by_value(exc, obj)
        by_value_pickle: bytes = by_value.dumps_result(obj, fds, keep)
        return by_value_pickle
    return file.getvalue()


def has_connection(pickled: bytes) -> bool:
    """Whether there may be a `Connection` in this, which only `multiprocessing` can pickle."""
    return _names(pickled, _CONNECTION)


def ordinary_table() -> dict[type, Any] | None:
    """A dispatch table with which `pickle` makes what `multiprocessing` would, or fails, where that
    has a reducer that somebody has registered. None: there are no such reducers."""
    if _has_only_known_reducers():
        return None
    own = {cls: _refuse for cls in list(_reducers) if _name(cls) not in _KNOWN}
    return {**copyreg.dispatch_table, **own}


def _refuse(obj: object) -> Any:
    raise TypeError(f"{type_name(obj)} has a reducer of its own")


def is_unknown_name(exc: Exception) -> bool:
    """Whether something was not pickled since it cannot be found by a name."""
    if not isinstance(exc, (pickle.PicklingError, AttributeError)):
        return False
    return str(exc).startswith(("Can't pickle", "Can't get local"))


def load_by_value(reason: Exception | None, obj: Any) -> Any:
    """The module that pickles by value.

    Args:
        reason: why that is needed, if it was tried otherwise.
        obj: what is to be pickled, for messages.

    Raises:
        pickle.PicklingError: cloudpickle is not installed.
    """
    try:
        return importlib.import_module("prefork._ipc.by_value")
    except ImportError as exc:
        name = function_name(obj) if callable(obj) else type_name(obj)
        why = f"{name}, or what it uses, was defined after the workers were started"
        error = pickle.PicklingError(
            f"{why if reason is None else reason}: pip install prefork[notebook] to have it sent "
            "by value, or define it with `def` or `class` at the top level of a module"
        )
        error.__cause__ = reason or exc
    raise error


_reducers: Final = std_internals.reducers()
"""What `multiprocessing.reduction.register` registers."""
_MAIN: Final = b"__main__"
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


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _has_only_known_reducers() -> bool:
    count = len(_reducers)
    if count != _Seen.count:
        _Seen.are_known = set(map(_name, list(_reducers))) <= _KNOWN
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
