"""What users hold while their jobs run: the classes of results.

They are not compiled: an object of a compiled class ends without a word to the weak references to
it, so that none must be made; and a compiled finalizer forgets the exception that is on its way.
"""

from __future__ import annotations

import functools
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from prefork._compat.classes import LATER, stands_for
from prefork._compat.names import ApplyNames, IMapNames, MapNames
from prefork._public import public
from prefork._results import apply, imap, map

__all__ = ["ApplyResult", "IMapIterator", "IMapUnorderedIterator", "MapResult"]

T = TypeVar("T")

if TYPE_CHECKING:
    from multiprocessing import pool as standard
else:
    standard = LATER


@functools.cache
def _awaiting() -> Any:
    """Imported when somebody awaits."""
    from prefork._results import awaiting

    return awaiting


@public
@stands_for("ApplyResult")
class ApplyResult(apply.ApplyResult, ApplyNames, Generic[T], standard.ApplyResult[T]):
    __doc__ = apply.ApplyResult.__doc__
    __slots__ = ("__weakref__",)

    if TYPE_CHECKING:

        def get(self, timeout: float | None = None) -> T: ...

    def __await__(self) -> Generator[Any, None, T]:
        outcome: Generator[Any, None, T] = _awaiting().outcome_of(self)
        return outcome


@public
@stands_for("MapResult")
class MapResult(map.MapResult, MapNames, Generic[T], standard.MapResult[T]):
    __doc__ = map.MapResult.__doc__

    if TYPE_CHECKING:

        def get(self, timeout: float | None = None) -> list[T]: ...

    def __await__(self) -> Generator[Any, None, list[T]]:
        outcome: Generator[Any, None, list[T]] = _awaiting().outcome_of(self)
        return outcome


@public
@stands_for("IMapIterator")
class IMapIterator(imap.IMapIterator, IMapNames, Generic[T], standard.IMapIterator[T]):
    __doc__ = imap.IMapIterator.__doc__

    def __del__(self) -> None:
        if hasattr(self, "items"):
            self.close()

    if TYPE_CHECKING:

        def __iter__(self) -> Self: ...

        def __next__(self) -> T: ...  # type: ignore[override]

        def next(self, timeout: float | None = None) -> T: ...

    # ---- in an event loop

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        result: Coroutine[Any, Any, T] = _awaiting().next_of(self)
        return result

    async def aclose(self) -> None:
        """Take no more results, and end what was handed in: what has not been started never runs,
        and what runs is killed. So does a task that is cancelled while it waits here."""
        _awaiting().end(self.items)


@public
@stands_for("IMapUnorderedIterator")
class IMapUnorderedIterator(IMapIterator[T]):
    """The results of `imap_unordered`: like `imap`, but as they become ready."""
