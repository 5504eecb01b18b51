"""The verbs of a pool whose processes are elsewhere, whatever takes calls there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from prefork._arguments import seconds
from prefork._engine.state import PoolPhase
from prefork._ipc.outcome import Outcome
from prefork._policy.limits import Limits
from prefork._policy.retry import Retry
from prefork._results.apply import callbacks_for
from prefork._verbs.signatures import AnyIterable
from prefork._verbs.view import PoolView, Verbs
from prefork.cluster.carrier import LetterCarrier
from prefork.cluster.codecs import Codec
from prefork.cluster.engine import ClusterEngine
from prefork.cluster.statistics import ClusterStatistics
from prefork.results import ApplyResult, IMapIterator, MapResult

__all__ = ["ClusterFace", "finite", "timed_async"]

Iterator = TypeVar("Iterator", bound=IMapIterator[Any])

STACK_SECONDS: Final = 3.0
MOST_JOB: Final = 256  # items of a `map` that are one job
JOBS: Final = 64  # of a `map`, per process, if it has so many items
AHEAD: Final = 2048  # items per process that `imap` reads ahead


class ClusterVerbs(Verbs):
    """What is other about them than in a pool of one machine: how many items go together is decided
    when they go."""

    def options(
        self,
        *,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        retries: int | Retry | None = None,
        priority: int | None = None,
        deadline: float | None = None,
    ) -> ClusterView:
        """The same pool, with other options for the jobs that it is given by this view: as
        `Pool.options`."""
        limits = self._defaults.override(timeout, soft_timeout, lost_worker_timeout, retries)
        return ClusterView(self, self._engine, limits.with_terms(priority, deadline))

    def _map(
        self,
        mode: int,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        *args: Any,
        **kwargs: Any,
    ) -> MapResult[Any]:
        items = list(iterable)
        if chunksize is None:
            chunksize = max(
                1, min(MOST_JOB, len(items) // (JOBS * self._engine.supervisor.processes))
            )
        return super()._map(mode, func, items, chunksize, *args, **kwargs)

    def _imap(
        self,
        iterator_class: type[Iterator],
        func: Callable[[Any], Any],
        iterable: AnyIterable[Any],
        chunksize: int,
        buffersize: int | None,
        *args: Any,
        **kwargs: Any,
    ) -> Iterator:
        if buffersize is None:
            buffersize = AHEAD * self._engine.supervisor.processes
        return super()._imap(iterator_class, func, iterable, chunksize, buffersize, *args, **kwargs)


class ClusterView(ClusterVerbs, PoolView):
    """A cluster's pool with other limits, as its `options` gives it."""


class ClusterFace(ClusterVerbs):
    """What all pools have whose processes are elsewhere."""

    def _begin(
        self,
        limits: Limits,
        carrier: LetterCarrier,
        codec: Codec,
        chunk_seconds: float,
        check_code: bool,
    ) -> None:
        """To be called by the constructor; raises as `ClusterEngine.start` does."""
        self._defaults = limits
        self._carrier = carrier
        engine: Any = ClusterEngine(carrier, codec, chunk_seconds, check_code)
        self._engine = engine  # it has what the verbs ask an engine for
        engine.start()

    # ---- the pool itself

    @property
    def processes(self) -> int:
        """How many processes the nodes have that are there now (int); at least 1."""
        return self._engine.supervisor.processes

    def statistics(self) -> ClusterStatistics:
        """What there is now: nodes, what they have, and counts of jobs."""
        engine: Any = self._engine
        backlog = engine.backlog
        return ClusterStatistics(
            self._carrier.processes,
            self._carrier.statistics(),
            backlog.waiting,
            len(backlog.jobs),
            backlog.finished,
            backlog.failed,
            backlog.retried,
            self._carrier.late,
        )

    def dump_stacks(self) -> dict[str, dict[int, str]]:
        """The Python stacks of the processes of all nodes, by the nodes' names and the process
        ids; of those nodes that answer within three seconds."""
        answers = self._carrier.ask("stacks", STACK_SECONDS)
        return {
            node: {int(pid): str(text) for pid, text in stacks.items()}
            for node, stacks in answers.items()
        }

    def close(self) -> None:
        """Take no more jobs. `join` waits for those that there are."""
        self._engine.lifecycle.close()  # which is the engine's own

    def terminate(self) -> None:
        """Jobs that have not finished fail with `Terminated`; the nodes end what they have of this
        pool. Nothing else that they run is touched. May be called again."""
        self._engine.terminate()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all jobs are done and all callbacks have run.

        Args:
            timeout: at most so many seconds (int or float); None: for ever.

        Returns:
            Whether that is so.

        Raises:
            ValueError: neither `close` nor `terminate` was called before.
        """
        return self._engine.join(timeout)

    def __enter__(self) -> Self:
        self._engine.state.check_running()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    async def __aenter__(self) -> Self:
        self._engine.state.check_running()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._engine.terminate_in_loop()

    async def aclose(self) -> None:
        """`close()`, and then what `join()` waits for, while other tasks of the loop run."""
        self.close()
        await self._engine.join_in_loop()

    def __del__(self, _warn: Callable[..., object] = warnings.warn) -> None:
        engine: Any = getattr(self, "_engine", None)
        if engine is None or engine.state.phase is not PoolPhase.RUN:
            return
        try:
            _warn(f"unclosed running pool {self!r}", ResourceWarning, source=self)
        finally:
            engine.drop()

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotImplementedError("a pool cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        engine: Any = self._engine
        text = (
            f"{type(self).__name__}: {engine.state.phase.value}, {len(self._carrier.nodes)} nodes"
        )
        if unfinished := len(engine.backlog.jobs):
            text += f", {unfinished} jobs unfinished"
        return f"<{text}>"


def timed_async(
    pool: ClusterFace,
    func: Callable[..., Any],
    calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]],
    callback: Callable[[list[Outcome]], object],
    error_callback: Callable[[BaseException], object],
) -> ApplyResult[list[Outcome]]:
    """As `each_async`, with the arguments of each call; each result is a list: the value, for how
    many seconds the function ran, the id of its process. An error has these as `seconds`, `pid`."""
    engine: Any = pool._engine
    limits = pool._limits("each_async", {})
    told = callbacks_for(engine.callbacks, callback, error_callback)
    result: ApplyResult[list[Outcome]] = ApplyResult(pool, engine, told)
    engine.dispatcher.submit(engine.factory.timed(result, func, calls, limits))
    return result


def finite(name: str, value: float, zero: bool = False) -> float:
    """A time limit that must be one."""
    number = seconds(name, value, zero=zero)
    if number is None:
        raise ValueError(f"{name} must be finite")
    return number
