"""Makes jobs of calls: pickles them, and puts large ones into files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from prefork._describe import trim_notes
from prefork._ipc.constants import Mentions, Use, hold
from prefork._ipc.memfd import BEST, MemfdCache
from prefork._ipc.once import Once, once
from prefork._ipc.outcome import format_traceback
from prefork._ipc.payload import FILE, FilePayload, Payload
from prefork._ipc.pickling import CallPickler
from prefork._ipc.wire import CALL, CONTEXT, EACH, INLINE, KEYWORDS, MODE, SEEDED, TOGETHER
from prefork._policy.chunks import fixed_chunks
from prefork._policy.job import Job, ResultSink
from prefork._policy.limits import Limits
from prefork._policy.terms import JobOnTerms
from prefork._system import at_fork
from prefork._worker.seeding import Seeded
from prefork.errors import WorkerLostError, remote_traceback

if TYPE_CHECKING:
    from prefork._ipc.main_module import WorkersMain

__all__ = ["JobFactory", "make_job"]

Capture = Callable[[], Any]
"""What of the caller's context goes along with a call; None: nothing."""

_TRACING: Final = "opentelemetry.context"
# Names that are final are found faster.
_modules: Final = sys.modules
_shared: Final = Use.shared
_ONCE: Final = Once


class JobFactory:
    """Makes jobs of calls. One that cannot be pickled will fail with its `pickling_error`.

    Args:
        may_open_file: tells whether a large job's file may be made now; if not, the job waits in
            memory, so that descriptors are left.
        memfd_cache: files that can be used again.
        main: what the workers have as `__main__`.
        capture: called for each call in the thread that hands it in; None: only OpenTelemetry's
            context goes along, if that is there.
    """

    def __init__(
        self,
        may_open_file: Callable[[], bool],
        memfd_cache: MemfdCache,
        main: WorkersMain | None = None,
        capture: Capture | None = None,
    ) -> None:
        self._capture = capture
        self._may_open_file = may_open_file
        self._memfd_cache = memfd_cache
        self._calls = CallPickler(main)

    def call(
        self,
        owner: ResultSink,
        func: Callable[..., Any],
        args: Iterable[Any],
        kwds: Mapping[str, Any],
        limits: Limits,
    ) -> Job:
        """One job of one call."""
        context = None
        if self._capture is not None or _TRACING in _modules:
            context = self._captured()
        if kwds:
            return self._make(owner, func, CALL | KEYWORDS, (args, kwds), limits, context)
        return self._make(owner, func, CALL, args, limits, context)

    def _context(self) -> Any:
        if self._capture is not None or _TRACING in _modules:
            return self._captured()
        return None

    def _captured(self) -> Any:
        """What goes along with a call that is handed in now."""
        if self._capture is None:
            from prefork._observe.context import Carrier

            self._capture = Carrier(()).capture
        return self._capture()

    def each(
        self, owner: ResultSink, func: Callable[..., Any], items: list[Any], limits: Limits
    ) -> Job:
        """One job of several calls, each with an outcome of its own."""
        return self._make(owner, func, EACH, items, limits, self._context(), len(items))

    def chunks(
        self,
        owner: ResultSink,
        mode: int,
        func: Callable[..., Any],
        chunks: Iterable[list[Any]],
        limits: Limits,
        latest: float | None = None,
        seed: int | None = None,
    ) -> Generator[Job, None, None]:
        """The jobs of a `map`; the first that cannot be pickled ends them with the reason.

        Args:
            latest: the deadline of all of them (monotonic), which were handed in together.
            seed: of the random numbers of each item, see `seeding.py`; None: it has none.
        """
        return self._chunks(owner, mode, func, chunks, limits, latest, seed, self._context())

    def _chunks(
        self,
        owner: ResultSink,
        mode: int,
        func: Callable[..., Any],
        chunks: Iterable[list[Any]],
        limits: Limits,
        latest: float | None,
        seed: int | None,
        context: Any,
    ) -> Generator[Job, None, None]:
        func = once(func)
        position = 0
        for chunk in chunks:
            job = self._make(
                owner, func, mode, chunk, limits, context, len(chunk), position, seed, position
            )
            if job.pickling_error is not None:
                raise job.pickling_error
            position += len(chunk)
            if isinstance(job, JobOnTerms):
                job.end_by(latest)
            yield job

    def items(
        self,
        owner: ResultSink,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        limits: Limits,
        seed: int | None = None,
    ) -> Generator[Job, None, None]:
        """The jobs of an `imap`. `seed`: as above."""
        return self._items(owner, func, iterable, chunksize, limits, seed, self._context())

    def _items(
        self,
        owner: ResultSink,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        limits: Limits,
        seed: int | None,
        context: Any,
    ) -> Generator[Job, None, None]:
        func = once(func)
        if chunksize == 1:
            for index, item in enumerate(iterable):
                yield self._make(owner, func, CALL, (item,), limits, context, 1, index, seed, index)
        else:
            for index, chunk in enumerate(fixed_chunks(iterable, chunksize)):
                position = index * chunksize
                yield self._make(
                    owner, func, EACH, chunk, limits, context, len(chunk), index, seed, position
                )

    def _make(
        self,
        owner: ResultSink,
        func: Callable[..., Any],
        mode: int,
        arguments: Any,
        limits: Limits,
        context: Any,
        size: int = 1,
        index: int = 0,
        seed: int | None = None,
        position: int = 0,
    ) -> Job:
        """`seed`, `position`: see `Seeded`."""
        if context is not None:
            mode |= CONTEXT
            arguments = arguments, context
        function = self._calls.name(func)
        fds: list[int] = []
        payload: Payload | None = None
        constants: Any = None
        packed: tuple[bytes, list[memoryview]] | None = None
        mentions = Mentions() if _shared else None
        try:
            if type(func) is _ONCE:
                more = () if seed is None else (seed, position)
                packed = func.pack(self._calls, arguments, *more)
                constants = func.constants
            if packed is not None:
                pickled, buffers = packed
                function_length = 0
                if seed is not None:
                    mode |= SEEDED
            else:
                constants = None
                if type(func) is _ONCE:
                    func = func.func
                if seed is not None:
                    func = Seeded(func, seed, position)
                pickled, function_length, buffers = self._calls.pickle(func, arguments, fds)
            if mentions is not None and mentions.found:
                constants = hold([*(constants or ()), *mentions.found])
            if buffers or fds or len(pickled) > INLINE:
                payload = self._payload(pickled, buffers, fds)
        except Exception as exc:
            job = make_job(owner, function, mode, limits, size, index)
            job.refuse(_explained(exc, function))
            return job
        finally:
            if mentions is not None:
                mentions.end()
        job = make_job(owner, function, mode, limits, size, index)
        if constants is not None:
            job.set_constants(constants)
        if payload is None:
            job.set_call(pickled, function_length)
        else:
            job.set_payload(payload, function_length)
        return job

    def _payload(self, pickled: bytes, buffers: list[memoryview], fds: list[int]) -> Payload:
        """What holds a large call until it is resolved: a file, if it is large enough and one can
        be made now; or a copy in memory."""
        kept = at_fork.Descriptors(*fds) if fds else None
        payload = Payload(pickled, buffers, kept)
        if payload.nbytes > FILE and self._may_open_file():
            try:
                return FilePayload(pickled, buffers, kept, BEST, self._memfd_cache)
            except OSError:
                pass  # no descriptor is left now, or no memory for a file
        payload.keep()
        return payload


def make_job(
    sink: ResultSink, function: str, mode: int, limits: Limits, size: int = 1, index: int = 0
) -> Job:
    """What it is made of depends on what it asks for."""
    if (terms := limits.terms) is None:
        return Job(sink, function, mode, limits, size, index)
    if mode & MODE == EACH and terms.retries is not None and terms.retries.on != (WorkerLostError,):
        mode |= TOGETHER
    return JobOnTerms(sink, function, mode, limits, terms, size, index)


def _explained(error: Exception, function: str) -> BaseException:
    """Why a call of this function cannot be pickled."""
    trim_notes(error)
    error.add_note(f"while pickling the call of {function} for a worker process")
    # As text: the frames themselves would keep the whole input alive.
    error.__cause__ = remote_traceback(format_traceback(error))
    return error.with_traceback(None)
