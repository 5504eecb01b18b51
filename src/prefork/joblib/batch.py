"""What joblib hands in at once, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from prefork._system.locks import Lock
from prefork.adapters import AdapterPool
from prefork.errors import LimitExceeded, WorkerLostError
from prefork.joblib import search
from prefork.joblib.arrays import Reducers
from prefork.joblib.options import Options
from prefork.joblib.pickling import Call, outcome
from prefork.results import ApplyResult

__all__ = ["Batch", "Terms"]

Done = Callable[["Batch"], object] | None


class Terms(NamedTuple):
    """On which terms calls are made."""

    pool: AdapterPool
    options: Options
    reducers: Reducers


class _Part:
    """One job: a call of joblib's with all its items, or with one of them."""

    def __init__(self, call: Callable[[], Any], item: search.Item | None) -> None:
        self.call = call
        self.item = item  # one that can fail in an account of its own: see `search.py`
        self.handle: ApplyResult[list[Any]] | None = None
        self.pieces: list[Any] = []  # the pickled result

    def note(self, handle: ApplyResult[list[Any]]) -> None:
        self.handle = handle

    def terminate(self) -> None:
        """End the job, if it has been handed in, wherever it is."""
        if self.handle is not None:
            self.handle.terminate()


class Batch:
    """One or several calls, as joblib puts them together; for joblib it is a future.

    Where something is asked of each single task, as a time limit, each is a job of its own: so one
    that is killed takes along none of the others.

    Args:
        calls: joblib's `BatchedCalls`, or any callable without arguments.
        done: called with this object, once, when all is done or something has failed; maybe
            before `start` returns.
        parallel: the `Parallel` that has handed it in, if that is known.
    """

    def __init__(self, calls: Callable[[], Any], done: Done, parallel: Any = None) -> None:
        self.parallel = parallel
        self._done = done
        self._lock = Lock()
        self._error: BaseException | None = None
        self._is_over = False
        items: list[search.Item] = getattr(calls, "items", [])
        self._calls = calls
        self._items = items
        self._parts: list[_Part] = []

    def start(self, terms: Terms) -> None:
        """Hand it to the pool. Never raises: what goes wrong is the outcome."""
        self._terms = terms
        has_fits = any(map(search.is_fit, self._items))
        if len(self._items) > 1 and (terms.options.concern_tasks or has_fits):
            self._parts = [self._part(item) for item in self._items]
        else:
            item = self._items[0] if has_fits else None
            self._parts = [_Part(self._calls, item)]
        self._is_split = len(self._parts) > 1
        self._left = len(self._parts)
        for part in self._parts:
            if self._is_over:
                return
            self._submit(part)

    def _part(self, item: search.Item) -> _Part:
        return _Part(self._call_of(item), item if search.is_fit(item) else None)

    def _call_of(self, item: search.Item) -> Callable[[], Any]:
        """joblib's call of one item, in the same setting."""
        calls: Any = self._calls
        call: Callable[[], Any] = type(calls)([item], (calls._backend, calls._n_jobs))
        return call

    def _submit(self, part: _Part) -> None:
        pool, options, reducers = self._terms
        func = self._items[0][0] if self._items else self._calls
        try:
            pool.apply_noted(
                part.note,
                Call(part.call, func, reducers),
                lambda pieces: self._part_done(part, pieces),
                lambda error: self._part_failed(part, error),
                options.timeout,
                options.soft_timeout,
                options.retries,
            )
        except Exception as exc:
            self._finish(exc)
            return
        if self._is_over:  # it was abandoned meanwhile
            part.terminate()

    def _part_done(self, part: _Part, pieces: list[Any]) -> None:
        part.pieces = pieces
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._finish(None)

    def _part_failed(self, part: _Part, error: BaseException) -> None:
        item, part.item = part.item, None
        if item is not None and isinstance(error, (WorkerLostError, LimitExceeded)):
            try:
                part.call = self._call_of(search.failing(item, error))
            except Exception as exc:
                error.add_note(f"scikit-learn's account of it was not possible: {exc!r}")
            else:
                self._submit(part)
                return
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            self._error = error
        if error is not None:
            self._terminate()
        if self._done is not None:
            self._done(self)

    def abandon(self) -> None:
        """Nobody wants it any more: end its jobs, wherever they are. `done` is not called."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        self._terminate()

    def _terminate(self) -> None:
        for part in self._parts:
            part.terminate()

    def result(self) -> Any:
        """What the calls have returned, once that is known.

        Raises:
            BaseException: what the first of them has raised that has failed.
        """
        if self._error is not None:
            raise self._error
        if not self._is_split:
            return outcome(self._parts[0].pieces)
        return [value for part in self._parts for value in outcome(part.pieces)]
