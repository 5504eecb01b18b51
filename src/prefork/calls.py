"""A call on its way to a worker: its function and its arguments, pickled.

Most pools run few functions many times, and pickling a function by its name takes longer than all
the rest of a small call. So such a function has a pickle of its own, before that of the arguments:
either side makes or reads it once.
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

from prefork.messages import function_name, pack, unpack

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
        self, func: Callable[..., Any], arguments: Any
    ) -> tuple[bytes, int, list[memoryview]]:
        """May raise whatever pickling raises.

        Returns:
            The pickles of the function and of the arguments, or one of both together; the length
            of the function's own, or 0; the buffers that were left out (PEP 574).
        """
        function = self._by_name(func)
        if function is None:
            pickled, buffers = pack((func, arguments))
            return pickled, 0, buffers
        pickled, buffers = pack(arguments)
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
