"""The error that is also the standard library's. It has a module of its own, which is imported when
there is such an error: that of `multiprocessing.Pool`, its base, imports as much as all of this.
"""

from __future__ import annotations

from multiprocessing.pool import (  # type: ignore[attr-defined]
    MaybeEncodingError as _StdMaybeEncodingError,
)
from typing import Any

from prefork._describe import short_repr, type_name
from prefork._public import public
from prefork.errors import PreforkError

__all__ = ["MaybeEncodingError"]


@public
class MaybeEncodingError(PreforkError, _StdMaybeEncodingError):  # type: ignore[misc]
    """A task's result or exception could not be pickled, so only its `repr` came back.

    The standard library's exception of that name is a base class.
    """

    def __init__(self, exc: object, value: object) -> None:
        self.exc = short_repr(exc)
        self.value = f"{type_name(value)} {short_repr(value)}"
        Exception.__init__(self, self.exc, self.value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_encoding_error, (type(self), self.exc, self.value)

    def __str__(self) -> str:
        return f"what the task came to cannot be pickled: {self.value}: {self.exc}"


def _rebuild_encoding_error(cls: type[MaybeEncodingError], exc: str, value: str) -> Exception:
    error = cls.__new__(cls, exc, value)
    error.exc, error.value = exc, value
    error.args = (exc, value)
    return error
