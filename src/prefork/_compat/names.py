"""Names of the inside of `multiprocessing`'s pools and results that programs read.

None of them is documented there, but samplers ask a pool for `_processes`, monitors count
`len(pool._cache)` or signal each of `pool._pool`, progress bars read `result._number_left`. They
can be read here, and not be set: nothing in this package uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from prefork._compat.classes import StandsIn

__all__ = ["ApplyNames", "ExecutorNames", "IMapNames", "MapNames", "PoolNames"]

if TYPE_CHECKING:
    from multiprocessing.pool import Pool as StandardPool  # see `classes`

    from prefork._engine.engine import Engine
    from prefork._engine.options import Options
else:
    StandardPool = object

_STATES: Final = {"ENDED": "TERMINATE"}
"""Those that have another name there."""


class PoolNames(StandsIn, StandardPool):
    """Of a pool."""

    _engine: Engine

    @property
    def _processes(self) -> int:
        """How many workers there should be."""
        return self._engine.supervisor.processes

    @property
    def _pool(self) -> list[BaseProcess]:
        """The workers' processes: `pid`, `is_alive()`, `exitcode`, `terminate()`, ..."""
        return _processes_of(self._engine)

    @property
    def _state(self) -> str:
        name = self._engine.state.phase.name
        return _STATES.get(name, name)

    @property
    def _ctx(self) -> BaseContext:
        return self._engine.options.context

    @property
    def _maxtasksperchild(self) -> int | None:
        return self._engine.options.max_tasks

    @property
    def _initializer(self) -> Callable[..., object] | None:
        initializer = self._engine.options.initializer
        return initializer.func if initializer is not None else None

    @property
    def _initargs(self) -> tuple[Any, ...]:
        initializer = self._engine.options.initializer
        return initializer.args if initializer is not None else ()

    @property
    def _cache(self) -> Mapping[int, object]:
        """The results that are not ready, by a number of each."""
        sinks = {
            id(job.sink): job.sink for job in list(self._engine.state.open_jobs.by_id.values())
        }
        return MappingProxyType({_number(sink): sink for sink in sinks.values()})

    @property
    def _taskqueue(self) -> _TaskQueue:
        return _TaskQueue(self._engine)

    def _repopulate_pool(self) -> None:
        """The pool does so without being told."""


def _processes_of(engine: Engine) -> list[BaseProcess]:
    return [worker.process.process for worker in list(engine.state.workers)]


def _number(sink: Any) -> int:
    return int(getattr(sink, "_job", id(sink)))


class ExecutorNames:
    """Of an executor: of that of `concurrent.futures`."""

    _engine: Engine | None  # once there is a pool
    _options: Options

    @property
    def _max_workers(self) -> int:
        """How many workers there should be."""
        engine = self._engine
        return self._options.processes if engine is None else engine.supervisor.processes

    @property
    def _processes(self) -> dict[int | None, BaseProcess] | None:
        """The workers' processes by their ids; None, when it has been shut down."""
        engine = self._engine
        if engine is None:
            return {}
        if engine.state.phase.name != "RUN":
            return None
        return {process.pid: process for process in _processes_of(engine)}

    @property
    def _broken(self) -> str | bool:
        """Why its workers cannot start, or False."""
        broken = None if self._engine is None else self._engine.state.broken
        return False if broken is None else str(broken)


class _TaskQueue:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def qsize(self) -> int:
        """Jobs that no worker runs yet."""
        return sum(
            job.running_pid() is None for job in list(self._engine.state.open_jobs.by_id.values())
        )

    def empty(self) -> bool:
        return self.qsize() == 0


class _Event:
    """Looks like the `threading.Event` that is set when a result is ready."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def is_set(self) -> bool:
        return bool(self._result.ready())

    def wait(self, timeout: float | None = None) -> bool:
        self._result.wait(timeout)
        return self.is_set()


class _HandleNames(StandsIn):
    """Of a result. `self` is a `Handle`."""

    __slots__ = ()

    @property
    def _event(self) -> _Event:
        return _Event(self)

    @property
    def _success(self: Any) -> bool:
        if not self.ready():
            raise AttributeError("_success is not known before the result is ready")
        return bool(self.successful())


class ApplyNames(_HandleNames):
    """Of the result of one call. `self` is an `ApplyResult`."""

    __slots__ = ()

    @property
    def _job(self: Any) -> int:
        return int(self.job)

    @property
    def _value(self: Any) -> Any:
        """The result, or the exception."""
        if not self.ready():
            raise AttributeError("_value is not known before the result is ready")
        return self._result


class MapNames(_HandleNames):
    """Of the result of a map, whose chunks are of one item each to those who count them: then what
    is left, times the size of a chunk, is how many items are left. `self` is a `MapResult`."""

    _chunksize = 1

    @property
    def _job(self: Any) -> int:
        return int(self.number)

    @property
    def _success(self: Any) -> bool:
        return self._error is None

    @property
    def _number_left(self: Any) -> int:
        return int(self._items - self._done)

    @property
    def _length(self: Any) -> int:
        return int(self._items)

    @property
    def _value(self: Any) -> Any:
        """The list, with None for what is not here yet; or the exception."""
        if self._error is not None:
            return self._error
        return list(self._values)


class IMapNames(StandsIn):
    """Of an iterator over results. `self` is an `IMapIterator`."""

    @property
    def _length(self: Any) -> int | None:
        """How many items there are, once that is known."""
        items = self.items
        return items.sent if items.exhausted else None

    @property
    def _index(self: Any) -> int:
        """How many results have come."""
        return int(self.items.arrived)
