"""joblib's backend: how `Parallel` has its calls made by a pool."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from multiprocessing import process
from typing import Any, Never

from joblib import cpu_count
from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from prefork._system.locks import Lock
from prefork._worker.environment import depth
from prefork.joblib.arrays import Arrays
from prefork.joblib.batch import Batch, Terms
from prefork.joblib.options import Options
from prefork.joblib.workers import Lease, WorkerSettings, lease

__all__ = ["PreforkBackend"]

MOST_NESTED = 3
"""So many pools may be inside of one another, in the workers of workers: each level multiplies the
processes. What is below runs in its own process, one after another."""


class PreforkBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc] # no types
    """Made by joblib for `parallel_config(backend="prefork", …)`, `Parallel(backend="prefork")`.

    Args:
        nesting_level, inner_max_num_threads: joblib's own.
        options: see `Options`.

    Raises:
        TypeError: there is no such option, or it is of the wrong type.
        ValueError: it is out of range.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **options: Any,
    ) -> None:
        Options.of(options)
        super().__init__(
            nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **options
        )
        self._lock = Lock()
        self._users = 0  # calls of `Parallel` that are going on
        self._lease: Lease | None = None
        self._terms: Terms | None = None
        self._arrays: list[Arrays] = []
        self._batches: set[Batch] = set()

    # ---- a call of `Parallel` begins and ends

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        context: object = None,
        max_nbytes: float | None = None,
        mmap_mode: str | None = None,
        temp_folder: str | None = None,
        verbose: int = 0,
        **options: Any,
    ) -> int:
        """Get workers for a call of `Parallel`; returns how many there are."""
        wanted = Options.of({**self.backend_kwargs, **options})
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            self._fall_back(wanted)
        if depth():  # a task can be killed, and nobody would remove the files of its own calls
            max_nbytes = None
        arrays = Arrays(max_nbytes, mmap_mode, temp_folder, verbose)
        new = lease(self._settings(n_jobs, wanted))
        with self._lock:
            self.parallel = parallel
            self._users += 1
            old, self._lease = self._lease, new
            self._arrays.append(arrays)
            self._terms = Terms(new.pool, wanted, arrays.reducers)
        if old is not None:
            old.release()
        return n_jobs

    def _fall_back(self, wanted: Options) -> Never:
        if wanted.concern_tasks:
            warnings.warn(
                "with n_jobs=1 tasks run in this process, where no limits hold and crashes are "
                "the program's: use at least n_jobs=2",
                stacklevel=2,
            )
        raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))

    def _settings(self, n_jobs: int, wanted: Options) -> WorkerSettings:
        idle = wanted.idle_worker_timeout
        return WorkerSettings(
            n_jobs,
            tuple(sorted(self._prepare_worker_env(n_jobs).items())),
            wanted.initializer,
            tuple(wanted.initargs),
            wanted.maxtasksperchild,
            wanted.max_memory_per_child,
            wanted.max_memory_per_task,
            float("inf") if idle is None else idle,
        )

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers a call with this `n_jobs` has; as joblib defines it."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs != 1 and (why := self._why_alone()):
            warnings.warn(f"{why}, setting n_jobs=1", stacklevel=3)
            return 1
        return int(n_jobs) if n_jobs > 0 else max(cpu_count() + 1 + n_jobs, 1)

    @staticmethod
    def _why_alone() -> str:
        if process.current_process().daemon:
            return "a daemonic process cannot start workers"
        if depth() >= MOST_NESTED:
            return f"prefork's parallel loops cannot be nested in more than {MOST_NESTED} levels"
        return ""

    def terminate(self) -> None:
        """The end of a call. The workers are kept for the next one."""
        with self._lock:
            self._users = max(self._users - 1, 0)
            if self._users:  # as when another generator of the same settings is still read
                return
            lease, self._lease = self._lease, None
            arrays, self._arrays = self._arrays, []
            self._terms = None
        if lease is not None:
            lease.release()
        for each in arrays:
            each.clean()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the jobs of the calls that are being aborted, and no others; the workers stay, but
        those that were running one of these jobs are replaced."""
        with self._lock:
            aborted = [batch for batch in self._batches if _is_aborting(batch)]
        for batch in aborted:
            self._abandon(batch)

    # ---- tasks

    def compute_batch_size(self) -> int:
        """How many tasks to hand in at once."""
        terms = self._terms
        if terms is not None and terms.options.concern_tasks:
            return 1
        size: int = super().compute_batch_size()
        return size

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None
    ) -> Batch:
        """Have this called, and `callback` with what is returned here when it is done. Whatever
        goes wrong is told there, too: this may be called by the pool's thread, where nobody would
        see an exception."""
        terms = self._terms
        if terms is None:
            raise RuntimeError("this backend is not in use: it has been terminated")

        def done(batch: Batch) -> None:
            with self._lock:
                self._batches.discard(batch)
            if callback is not None:
                callback(batch)

        batch = Batch(func, done, getattr(callback, "parallel", None))
        with self._lock:
            self._batches.add(batch)
        if batch.parallel is None or not _is_aborting(batch):
            batch.start(terms)
        if batch.parallel is not None and _is_aborting(batch):  # maybe since then
            self._abandon(batch)
        return batch

    def _abandon(self, batch: Batch) -> None:
        batch.abandon()
        with self._lock:
            self._batches.discard(batch)

    def retrieve_result_callback(self, out: Batch) -> Any:
        """The results of a batch that is done.

        Raises:
            BaseException: what a task has raised, or why it did not finish.
        """
        return out.result()


def _is_aborting(batch: Batch) -> bool:
    """joblib says so before it has everything aborted; if it is not known whose batch it is, it is
    meant, too."""
    return bool(getattr(batch.parallel, "_aborting", True))
