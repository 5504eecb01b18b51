"""`ClusterPool`: the verbs of a pool, whose processes are those of celery's workers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from prefork._arguments import seconds
from prefork._engine.state import PoolPhase
from prefork._policy.limits import Limits
from prefork._policy.retry import Retry
from prefork._verbs.signatures import AnyIterable
from prefork._verbs.view import PoolView, Verbs
from prefork.celery.carrier import CeleryCarrier
from prefork.cluster.codecs import CODECS
from prefork.cluster.engine import ClusterEngine
from prefork.cluster.sizes import CHUNK_SECONDS
from prefork.cluster.statistics import ClusterStatistics
from prefork.results import IMapIterator, MapResult

__all__ = ["ClusterPool"]

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


class ClusterPool(ClusterVerbs):
    """A pool whose processes are those of the workers of a celery application, on as many machines
    as there are; each has called `prefork.celery.serve`.

    The calls, their handles, errors and limits are those of `prefork.Pool`. Functions go by their
    names, so they are plain functions at the top level of modules that the nodes have, too.

    Args:
        app: the celery application; its broker is Redis or RabbitMQ. No result backend is needed.
        queue: the queue of the workers that serve; None: the application's default one.
        timeout, soft_timeout: the time limits of each task, in seconds, as in `Pool`.
        retries: how often an item is run again after its process or its node was lost, an int; or a
            `Retry`. By default an item is begun once at most.
        serializer: how arguments and results are written down. "json"; or "pickle", if the nodes
            accept that.
        lease: a node that is not heard of for so many seconds, and half a second more, is given up:
            what it had begun fails with `NodeLostError`, all else goes to others.
        start_timeout: how long to wait for the first node, in seconds.
        alone_timeout: if there has been no node for so many seconds, while the broker could be
            reached, the pool gives up, with `PoolBrokenError`.
        broker_timeout: if the broker was there and could not be reached for so many seconds since,
            the pool gives up likewise; infinity: it waits for ever.
        chunk_seconds: calls are sent several at once, as many as take so long. 0: one by one: then
            no more than one item per process is lost with a node, but short ones take longer.
        check_code: whether nodes refuse a function whose module's source is another one there.

    Raises:
        PoolBrokenError: the broker could not be reached in time, or no worker has answered.
        TypeError, ValueError: an argument is not right.
    """

    def __init__(
        self,
        app: Any,
        *,
        queue: str | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        retries: int | Retry | None = None,
        serializer: str = "json",
        lease: float = 10.0,
        start_timeout: float = 10.0,
        alone_timeout: float = 60.0,
        broker_timeout: float = 3600.0,
        chunk_seconds: float = CHUNK_SECONDS,
        check_code: bool = False,
    ) -> None:
        if serializer not in CODECS:
            raise ValueError(f"serializer must be one of {', '.join(CODECS)}, not {serializer!r}")
        self._defaults = Limits().override(timeout, soft_timeout, None, retries)
        self._carrier = CeleryCarrier(
            app,
            queue or app.conf.task_default_queue,
            serializer,
            _finite("lease", lease),
            _finite("start_timeout", start_timeout),
            _finite("alone_timeout", alone_timeout),
            seconds("broker_timeout", broker_timeout),
        )
        engine: Any = ClusterEngine(
            self._carrier,
            CODECS[serializer],
            _finite("chunk_seconds", chunk_seconds, zero=True),
            check_code,
        )
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


def _finite(name: str, value: float, zero: bool = False) -> float:
    number = seconds(name, value, zero=zero)
    if number is None:
        raise ValueError(f"{name} must be finite")
    return number
