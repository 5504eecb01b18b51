"""Jobs of calls that go to other machines: their arguments as texts, their outcomes as they come.

A job is the same object as in a pool on one machine, and so its handle is the same, too; what it
carries in the place of a pickle is a `Call`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from prefork._describe import function_name
from prefork._engine.job_factory import make_job
from prefork._ipc.outcome import Outcome
from prefork._ipc.wire import CALL as ONE_CALL
from prefork._ipc.wire import EACH, MAP, MODE, STARMAP
from prefork._policy.chunks import fixed_chunks
from prefork._policy.job import Job, ResultSink
from prefork._policy.limits import Limits
from prefork.cluster.codecs import Codec, to_json
from prefork.cluster.names import code_hash, name_of
from prefork.cluster.runner import CALL, ONE, STAR, TIMED

__all__ = ["Call", "CallFactory", "Kind"]


class Kind(NamedTuple):
    """What items must have in common to go in one chunk."""

    name: str  # of the function
    how: str  # it is applied to what an item's text says
    code: str  # the hash of its source; "": it need not be the same
    seed: int | None
    timeout: float | None
    soft_timeout: float | None
    value: str = ""  # what the function itself is written down as; "": it is found by its name


class Call:
    """What a job carries.

    Attributes:
        texts: of its items.
        position: of the first of them in its input.
        values, errors: what its items have come to, by their index.
        left: how many have come to nothing yet.
        sent: how many of them have been taken, the first ones first, for the first time.
    """

    __slots__ = ("errors", "kind", "left", "nbytes", "position", "sent", "texts", "values")

    def __init__(self, kind: Kind, texts: list[str], position: int) -> None:
        self.kind = kind
        self.texts = texts
        self.position = position
        self.nbytes = sum(map(len, texts))
        self.values: list[Any] = [None] * len(texts)
        self.errors: dict[int, BaseException] = {}
        self.left = len(texts)
        self.sent = 0

    def close(self) -> None:
        """The job is resolved."""
        self.texts, self.values, self.errors = [], [], {}

    def begin_again(self, items: list[int]) -> None:
        """These are to be run once more."""
        for item in items:
            del self.errors[item]
        self.left = len(items)

    def outcome(self, mode: int) -> tuple[bool, Any]:
        """What its job has come to, once nothing is left: as a pool's jobs do."""
        errors = self.errors
        if mode == EACH:
            return True, [
                Outcome(False, errors[item]) if item in errors else Outcome(True, value)
                for item, value in enumerate(self.values)
            ]
        if errors:
            return False, errors[min(errors)]
        return True, self.values[0] if mode == ONE_CALL else self.values


class CallFactory:
    """Makes jobs of calls. One that cannot be written down will fail with its `pickling_error`.

    Args:
        codec: how arguments are written down.
        check_code: whether nodes are to have the very source of the functions' modules.
    """

    def __init__(self, codec: Codec, check_code: bool) -> None:
        self._codec = codec
        self._check_code = check_code

    def call(
        self,
        owner: ResultSink,
        func: Callable[..., Any],
        args: Iterable[Any],
        kwds: Mapping[str, Any],
        limits: Limits,
    ) -> Job:
        """One job of one call.

        Raises:
            TypeError: the function cannot be found by its name elsewhere.
        """
        kind = self._kind(func, CALL, limits, None)
        return self._make(owner, func, kind, ONE_CALL, [(list(args), dict(kwds))], limits)

    def each(
        self, owner: ResultSink, func: Callable[..., Any], items: list[Any], limits: Limits
    ) -> Job:
        """One job of several calls, each with an outcome of its own."""
        kind = self._kind(func, ONE, limits, None)
        return self._make(owner, func, kind, EACH, items, limits)

    def timed(
        self,
        owner: ResultSink,
        func: Callable[..., Any],
        calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]],
        limits: Limits,
    ) -> Job:
        """The same, each with its arguments; each result is a list: the value, for how many
        seconds it ran, the process id."""
        kind = self._kind(func, TIMED, limits, None)
        items = [(list(args), dict(kwds)) for args, kwds in calls]
        return self._make(owner, func, kind, EACH, items, limits)

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
        """The jobs of a `map`; the first that cannot be written down ends them with the reason."""
        kind = self._kind(func, STAR if mode == STARMAP else ONE, limits, seed)
        return self._chunks(owner, mode, func, kind, chunks, limits, latest)

    def _chunks(
        self,
        owner: ResultSink,
        mode: int,
        func: Callable[..., Any],
        kind: Kind,
        chunks: Iterable[list[Any]],
        limits: Limits,
        latest: float | None,
    ) -> Generator[Job, None, None]:
        assert mode in (MAP, STARMAP)
        position = 0
        for chunk in chunks:
            items = [list(item) for item in chunk] if mode == STARMAP else chunk
            job = self._make(owner, func, kind, mode, items, limits, position, position)
            if job.pickling_error is not None:
                raise job.pickling_error
            if latest is not None:
                job.end_by(latest)  # type: ignore[attr-defined]  # a `JobOnTerms`, which has one
            position += len(chunk)
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
        """The jobs of an `imap`."""
        kind = self._kind(func, ONE, limits, seed)
        return self._items(owner, func, kind, iterable, chunksize, limits)

    def _items(
        self,
        owner: ResultSink,
        func: Callable[[Any], Any],
        kind: Kind,
        iterable: Iterable[Any],
        chunksize: int,
        limits: Limits,
    ) -> Generator[Job, None, None]:
        mode = ONE_CALL if chunksize == 1 else EACH
        for index, chunk in enumerate(fixed_chunks(iterable, chunksize)):
            yield self._make(owner, func, kind, mode, chunk, limits, index, index * chunksize)

    # ---- how

    def _kind(self, func: Callable[..., Any], how: str, limits: Limits, seed: int | None) -> Kind:
        to_json(seed)  # a number may be too large for that; so the caller hears of it
        value = code = ""
        if self._codec.functions:
            module, _, qualname = function_name(func).rpartition(".")
            name, value = f"{module}:{qualname}", self._written(func)
        else:
            name = name_of(func)
            code = code_hash(name) if self._check_code else ""
        return Kind(name, how, code, seed, limits.timeout, limits.soft_timeout, value)

    def _written(self, func: Callable[..., Any]) -> str:
        try:
            return self._codec.write(func)
        except Exception as exc:
            exc.add_note(f"while {function_name(func)} was written down for another machine")
            raise

    def _make(
        self,
        owner: ResultSink,
        func: Callable[..., Any],
        kind: Kind,
        mode: int,
        items: list[Any],
        limits: Limits,
        index: int = 0,
        position: int = 0,
    ) -> Job:
        function = function_name(func)
        job = make_job(owner, function, mode, limits, len(items), index)
        try:
            texts = [self._codec.write(item) for item in items]
            for item, text in enumerate(texts):
                if len(text) > (most := self._codec.most_argument):
                    raise ValueError(
                        f"what item {position + item} is written down as has {len(text)} bytes: "
                        f"more than {most} do not go through {self._codec.way}. Write it "
                        "to where all machines can read, and pass its name"
                    )
            if kind.seed is not None:
                texts = [f"{number} {text}" for number, text in enumerate(texts, position)]
        except Exception as exc:
            exc.add_note(f"while the call of {function} was written down for another machine")
            job.refuse(exc.with_traceback(None))
            return job
        job.set_payload(Call(kind, texts, position), 0)
        return job


def mode_of(job: Job) -> int:
    """How its function is called, and so what its result looks like."""
    return job.flags & MODE
