"""Calls and results on their way, by value where pickle knows no name for them: functions of
`__main__`, lambdas, closures.

A call is pickled into bytes by cloudpickle, and these bytes are what the pool sends; the same with
its outcome on the way back.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections import ChainMap
from collections.abc import Callable
from typing import Any, Final

from prefork._ipc.outcome import format_traceback
from prefork._ipc.pickling import OUT_OF_BAND, PROTOCOL
from prefork._system import std_internals
from prefork.errors import remote_traceback
from prefork.joblib.arrays import BACKWARD, Reducers

try:  # older joblib brings its own
    from joblib.externals import cloudpickle
except ImportError:
    import cloudpickle

__all__ = ["Call", "dumps_whole", "outcome"]

_of_multiprocessing: Final = std_internals.reducers()


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc] # it has no types
    """Large buffers are added to `buffers`; None: they are in the pickle."""

    def __init__(
        self, file: io.BytesIO, reducers: Reducers, buffers: list[pickle.PickleBuffer] | None
    ) -> None:
        def is_small(buffer: pickle.PickleBuffer) -> bool:
            if buffers is None or buffer.raw().nbytes < OUT_OF_BAND:
                return True
            buffers.append(buffer)
            return False

        # Before the base class's constructor, which looks at it.
        self.dispatch_table = ChainMap(reducers, super().dispatch_table, _of_multiprocessing)
        super().__init__(file, protocol=PROTOCOL, buffer_callback=is_small)


def dumps(obj: object, reducers: Reducers) -> list[pickle.PickleBuffer]:
    """The pickle of an object, and the large buffers that were left out of it (PEP 574); these are
    not copied, and the whole is to be pickled as a list of buffers.

    Raises:
        Exception: whatever pickling it raises.
    """
    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    _Pickler(file, reducers, buffers).dump(obj)
    return [pickle.PickleBuffer(file.getvalue()), *buffers]


def dumps_whole(obj: object) -> bytes:
    """The pickle of an object, with all that belongs to it; raises as `dumps` does."""
    file = io.BytesIO()
    _Pickler(file, {}, None).dump(obj)
    return file.getvalue()


class Call:
    """A call without arguments, pickled; it is what a pool runs.

    Args:
        task: the call; it is pickled now.
        func: the user's function in it, whose name messages tell.

    Raises:
        pickle.PicklingError: it cannot be pickled; the reason is its `__cause__`.
    """

    def __init__(
        self, task: Callable[[], object], func: Callable[..., object], reducers: Reducers
    ) -> None:
        self.func = func
        try:
            self._pieces = dumps(task, reducers)
        except pickle.PicklingError:
            raise
        except Exception as exc:
            raise pickle.PicklingError(
                f"could not pickle the task to send to a worker process: {exc}"
            ) from exc

    def __call__(self) -> object:
        raise RuntimeError("a call is run where it arrives")

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, tuple(self._pieces)


def _arrive(*pieces: Any) -> Callable[[], list[pickle.PickleBuffer]]:
    """In the worker, before the time limits of the task begin: imports may take long."""
    return functools.partial(_run, pickle.loads(pieces[0], buffers=pieces[1:]))


def _run(task: Callable[[], object]) -> list[pickle.PickleBuffer]:
    """In the worker: run the task, and pickle its outcome.

    Whatever is raised is an outcome, `SystemExit` included, as with joblib's own processes.
    """
    try:
        value = task()
    except BaseException as exc:
        text = format_traceback(exc)
        return dumps((False, exc.with_traceback(None), text), BACKWARD)
    return dumps((True, value, ""), BACKWARD)


def outcome(pieces: list[Any]) -> Any:
    """In the process that has made the call: its result.

    Raises:
        BaseException: what the call raised, with the worker's traceback as its `__cause__`; or
            what unpickling the result raises.
    """
    ok, value, traceback = pickle.loads(pieces[0], buffers=pieces[1:])
    if ok:
        return value
    value.__cause__ = remote_traceback(traceback)
    raise value
