"""Large arrays go to the workers as files that are mapped there, once for all tasks of a call, as
joblib documents it (`max_nbytes`, `mmap_mode`, `temp_folder`)."""

from __future__ import annotations

from typing import Any

from joblib._memmapping_reducer import TemporaryResourcesManager, get_memmapping_reducers

from prefork.joblib.pickling import Reducers

__all__ = ["Arrays"]


class Arrays:
    """What the calls of one `Parallel` map.

    Args:
        max_nbytes: larger arrays are mapped, an int of bytes; None: none is.
        mmap_mode: as in `numpy.memmap`; None: none is mapped.
        temp_folder: where the files are to be; None: as joblib chooses.
        verbose: how much joblib is to say about it.
    """

    def __init__(
        self, max_nbytes: int | None, mmap_mode: str | None, temp_folder: str | None, verbose: int
    ) -> None:
        self._temp_folder = temp_folder
        self._manager: Any = None  # it starts a process, so it is made when there is an array
        self.reducers: Reducers
        self.reducers, _ = get_memmapping_reducers(
            temp_folder_resolver=self._folder,
            max_nbytes=max_nbytes if mmap_mode is not None else None,
            mmap_mode=mmap_mode,
            unlink_on_gc_collect=False,  # workers may be killed: nobody counts on them
            verbose=verbose,
        )

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
