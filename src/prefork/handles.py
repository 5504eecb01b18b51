"""What users hold while their jobs run: the classes of results.

They are not compiled: an object of a compiled class ends without a word to the weak references to
it, so that none must be made; and a compiled finalizer forgets the exception that is on its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prefork import iterators, results

__all__ = ["ApplyResult", "IMapIterator", "IMapUnorderedIterator", "MapResult"]

T = TypeVar("T")


class ApplyResult(results.ApplyResult, Generic[T]):
    __doc__ = results.ApplyResult.__doc__
    __slots__ = ("__weakref__",)

    if TYPE_CHECKING:

        def get(self, timeout: float | None = None) -> T: ...


class MapResult(results.MapResult):
    __doc__ = results.MapResult.__doc__

    if TYPE_CHECKING:

        def get(self, timeout: float | None = None) -> list[Any]: ...


class IMapIterator(iterators.IMapIterator):
    __doc__ = iterators.IMapIterator.__doc__

    def __del__(self) -> None:
        if hasattr(self, "items"):
            self.close()


class IMapUnorderedIterator(IMapIterator):
    """The results of `imap_unordered`: like `imap`, but as they become ready."""
