"""Large arrays go to the workers as files that are mapped there, once for all tasks of a call, as
joblib documents it (`max_nbytes`, `mmap_mode`, `temp_folder`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from joblib._memmapping_reducer import (
    TemporaryResourcesManager,
    get_memmapping_reducers,
    has_shareable_memory,
)

from prefork._ipc.pickling import PROTOCOL

__all__ = ["BACKWARD", "Arrays", "Reducers"]

Reducer = Callable[[Any], Any]
Reducers = dict[type, Reducer]


def _only(reducer: Reducer, concerns: Callable[[Any], bool]) -> Reducer:
    """joblib's reducer for those arrays that it is needed for. It would have all others copied into
    the pickle, and pickled by name what is in them."""
    return lambda array: reducer(array) if concerns(array) else array.__reduce_ex__(PROTOCOL)


class Arrays:
    """What the calls of one `Parallel` map.

    Args:
        max_nbytes: larger arrays are mapped, an int of bytes; None: none is.
        mmap_mode: as in `numpy.memmap`; None: none is mapped.
        temp_folder: where the files are to be; None: as joblib chooses.
        verbose: how much joblib is to say about it.
    """

    def __init__(
        self,
        max_nbytes: float | None = None,
        mmap_mode: str | None = None,
        temp_folder: str | None = None,
        verbose: int = 0,
    ) -> None:
        self._max_nbytes = max_nbytes if mmap_mode is not None else None
        self._temp_folder = temp_folder
        self._manager: Any = None  # it starts a process, so it is made when there is an array
        reducers, _ = get_memmapping_reducers(
            temp_folder_resolver=self._folder,
            max_nbytes=self._max_nbytes,
            mmap_mode=mmap_mode,
            unlink_on_gc_collect=False,  # workers may be killed: nobody counts on them
            verbose=verbose,
        )
        self.reducers: Reducers = {t: _only(r, self._is_mapped) for t, r in reducers.items()}

    def _is_mapped(self, array: Any) -> bool:
        if has_shareable_memory(array):
            return True
        most = self._max_nbytes
        return most is not None and array.nbytes > most and not array.dtype.hasobject

    def _folder(self) -> str:
        if self._manager is None:
            self._manager = TemporaryResourcesManager(self._temp_folder)
        folder: str = self._manager.resolve_temp_folder_name()
        return folder

    def clean(self) -> None:
        """Remove the files; what is mapped stays so."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager._clean_temporary_resources(force=True)


def _for_results() -> Reducers:
    _, reducers = get_memmapping_reducers()
    return {t: _only(r, has_shareable_memory) for t, r in reducers.items()}


BACKWARD: Final = _for_results()
"""For what tasks return: not as files of ours, which go with the call."""
