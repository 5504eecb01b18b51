"""What a result asks of the pool that it comes from: types, without a runtime of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from prefork._policy.job import Job, ResultSink
from prefork._system.condition import Condition

__all__ = ["Callback", "CallbackQueue", "JobEnder", "PoolRef"]

Callback = Callable[..., object] | None


class CallbackQueue(Protocol):
    """Callbacks that wait for their turn: on a thread of the pool, or in an event loop."""

    def prepare(self) -> None:
        """There will be callbacks."""

    def __call__(self, callback: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Have it called, after those that wait."""

    def call_then(
        self, then: Callable[[], object], callback: Callable[..., object], *args: object
    ) -> None:
        """The same; and then call `then`, which does not raise: in any case, even if the callback
        has raised, or can never be called."""

    def is_inside(self) -> bool:
        """Whether the caller is called by a callback, or none can be waited for."""


class JobEnder(Protocol):
    """Ends single jobs; tells whether there was anything to end."""

    def cancel(self, job: Job) -> bool:
        """Only if it has not been started."""

    def terminate(self, job: Job, signum: int | None = None) -> bool:
        """In any case: with this signal to its worker, or by killing that."""

    def cancel_all(self, owner: ResultSink) -> None:
        """All jobs whose results are this one's, unless they have been started."""

    def terminate_all(self, owner: ResultSink) -> None:
        """All jobs whose results are this one's."""


class PoolRef(Protocol):
    """The pool that a result comes from; results keep it alive until they are here."""

    @property
    def enforcement(self) -> JobEnder: ...

    def wait_for(
        self, signal: Condition, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait until `condition()`, at most `timeout` seconds; returns what it is then.

        Raises:
            RuntimeError: it would wait in vain: in a forked child, or inside of the pool.
        """
