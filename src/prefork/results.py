"""What users hold while their jobs run: the classes of results.

They are not compiled: an object of a compiled class ends without a word to the weak references to
it, so that none must be made; and a compiled finalizer forgets the exception that is on its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prefork._results import apply, imap, map

__all__ = ["ApplyResult", "IMapIterator", "IMapUnorderedIterator", "MapResult"]

T = TypeVar("T")


class ApplyResult(apply.ApplyResult, Generic[T]):
    __doc__ = apply.ApplyResult.__doc__
    __slots__ = ("__weakref__",)

    if TYPE_CHECKING:

        def get(self, timeout: float | None = None) -> T: ...


class MapResult(map.MapResult):
    __doc__ = map.MapResult.__doc__

    if TYPE_CHECKING:

        def get(self, timeout: float | None = None) -> list[Any]: ...


class IMapIterator(imap.IMapIterator):
    __doc__ = imap.IMapIterator.__doc__

    def __del__(self) -> None:
        if hasattr(self, "items"):
            self.close()


class IMapUnorderedIterator(IMapIterator):
    """The results of `imap_unordered`: like `imap`, but as they become ready."""
