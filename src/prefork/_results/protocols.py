"""What a result asks of who runs its pool: types, without a runtime of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prefork._policy.job import Job, ResultSink
    from prefork._system.condition import Condition

__all__ = ["Callback", "EngineRef", "JobTerminator", "RunCallback"]

Callback = Callable[..., object] | None


class RunCallback(Protocol):
    """Who runs a user's callbacks: a thread of the pool, or an event loop."""

    def __call__(self, callback: Callable[..., object], *args: object, **kwargs: object) -> bool:
        """Have this called soon; False if it cannot be: the system has no thread left."""

    def is_calling_here(self) -> bool:
        """Whether the caller is, further up the stack, a callback that it runs."""


class JobTerminator(Protocol):
    """Ends single jobs; tells whether there was anything to end."""

    def cancel(self, job: Job) -> bool:
        """Only if it has not been started."""

    def terminate(self, job: Job, signum: int | None = None) -> bool:
        """In any case: with this signal to its worker, or by killing that."""

    def cancel_all(self, owner: ResultSink) -> None:
        """All jobs whose results are this one's, unless they have been started."""

    def terminate_all(self, owner: ResultSink) -> None:
        """All jobs whose results are this one's."""


class EngineRef(Protocol):
    """What runs the pool."""

    @property
    def terminator(self) -> JobTerminator: ...

    @property
    def callbacks(self) -> RunCallback: ...

    @property
    def is_broken(self) -> bool:
        """Whether the pool has given up."""

    def is_busy_here(self) -> bool:
        """Whether the caller is called by the pool itself, or has interrupted it."""

    def check_owner(self) -> None:
        """
        Raises:
            RuntimeError: in a forked child, where the pool is the parent's.
        """

    def check_loop(self, needed: object = None) -> None:
        """The caller is about to wait in a way that holds up the event loop of its thread: warn.

        Args:
            needed: the loop that must run for what is waited for, if one must.

        Raises:
            RuntimeError: that one runs here, and would be waited for in vain.
        """

    def serve_loop(self) -> None:
        """A task of the event loop that runs in this thread is about to wait for the pool.

        Raises:
            RuntimeError: it would wait in vain: in a forked child; or another loop drives the pool.
        """

    def do_outside(self, call: Callable[[], object]) -> None:
        """Call it; but not inside of the pool's own work, which a finalizer may have interrupted:
        then soon. And not at all in a forked child."""

    def wait_for(
        self, condition: Condition, predicate: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait until `predicate()`, at most `timeout` seconds; returns what it is then.

        Raises:
            RuntimeError: it would wait in vain: in a forked child, or inside of the pool.
        """
