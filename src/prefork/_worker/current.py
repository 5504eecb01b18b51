"""A worker, as the tasks see it that run in it."""

from __future__ import annotations

from multiprocessing import process
from typing import TYPE_CHECKING, Any, NamedTuple

from prefork._describe import function_name
from prefork._ipc.wire import AGAIN
from prefork._public import public
from prefork._worker import main as worker_main
from prefork._worker import seeding

if TYPE_CHECKING:
    from numpy.random import Generator

__all__ = ["CurrentJob", "CurrentWorker", "current_worker"]


@public
class CurrentJob(NamedTuple):
    """What a worker runs: one call, or a chunk of those of a `map`.

    Attributes:
        id: its number (int), as in `ApplyResult.job` and in errors.
        function: the name of what it calls, as in errors.
        attempt: 1; or more, if it is run again by `retries` (int).
    """

    id: int
    function: str
    attempt: int


@public
class CurrentWorker:
    """The worker that this process is: what `current_worker()` returns."""

    def __init__(self, worker: worker_main.Worker) -> None:
        self._worker = worker

    @property
    def index(self) -> int:
        """Its place in the pool, from 0 to one less than there are workers (int). The successor of
        a worker that has died, or is replaced, has the same."""
        return getattr(process.current_process(), "index", 0)

    @property
    def name(self) -> str:
        """That of its process, which no other one of the pool has ever had."""
        return process.current_process().name

    @property
    def state(self) -> Any:
        """What the pool's `initializer` has returned here; None, if there is none."""
        return self._worker.state

    @property
    def data(self) -> dict[str, Any]:
        """A dictionary of this process's own, for whatever tasks want to keep; empty at first."""
        return self._worker.data

    @property
    def job(self) -> CurrentJob | None:
        """What it runs now; None in an initializer or finalizer, and between two jobs."""
        now = self._worker.now()
        if now is None:
            return None
        number, flags, func = now
        # In a process that is not forked, the program's own module has another name.
        name = function_name(func).replace("__mp_main__.", "__main__.", 1)
        return CurrentJob(number, name, 1 + flags // AGAIN)

    @property
    def rng(self) -> Generator:
        """A generator of random numbers (`numpy.random.Generator`): with `seed=`, that of the item;
        else one of this worker's own, which is different each time.

        Raises:
            ImportError: NumPy is not installed.
        """
        return seeding.generator()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.index}: {self.name}, runs {self.job}>"


@public
def current_worker() -> CurrentWorker:
    """In a task, an initializer or a finalizer: the worker that runs it.

    Raises:
        RuntimeError: this process is not a worker of a pool. It may have been started by one.
    """
    worker = worker_main.running
    if worker is None:
        raise RuntimeError(
            "current_worker() is for what runs in a pool's worker: a task, an initializer, a "
            "finalizer; this process is none"
        )
    return CurrentWorker(worker)
