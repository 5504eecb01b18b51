"""`prefork map --app`: the processes are those of a celery application's workers.

What a run asks of its pool, asked of a `ClusterPool`: tasks go as calls of the function by its
name, and come back as what a worker of this machine would tell of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Final

from prefork._ipc.outcome import Outcome as Told
from prefork.cli.jsontext import NotJSONError, to_json
from prefork.cli.plan import Plan
from prefork.cli.target import Target, TargetError
from prefork.cli.work import DONE, FAILED, Function, Outcome, Task, Work, describe
from prefork.cluster.names import name_of
from prefork.cluster.verbs import timed_async
from prefork.errors import PreforkError
from prefork.results import ApplyResult

__all__ = ["NOT_REMOTE", "PROCESSES", "RemotePool", "check", "find_app"]

PROCESSES: Final = 32
"""As many as the cluster may have, for how many inputs are on their way."""

NOT_REMOTE: Final = {
    "processes": "the workers have as many as they were started with",
    "initializer": "the workers are there already: see celery's signals",
    "max_memory": "the nodes do not watch that",
    "max_tasks_per_child": "the nodes keep their processes",
    "start_method": "the workers are there already",
    "log_dir": "it is the workers that have what is printed",
    "report": "it would need what the nodes' processes do",
}
"""Options that do not go with --app, and why."""


def find_app(text: str) -> Any:
    """
    Raises:
        TargetError: there is none.
    """
    try:
        import prefork.celery  # noqa: F401
    except ImportError as exc:
        raise TargetError(str(exc)) from None
    app = Target.parse(text).find()
    if not hasattr(app, "connection_for_write"):
        raise TargetError(f"{text} is no celery application but a {type(app).__name__}")
    return app


def check(work: Work) -> None:
    """
    Raises:
        TargetError: other machines cannot find its function by its name.
    """
    assert isinstance(work, Function)
    if work.target.is_file:
        raise TargetError(
            f"{work.target} is a file of this machine: with --app it has to be a module, which the "
            "workers have, too"
        )
    function: Any = work.target.load()
    try:
        name_of(function)
    except TypeError as exc:
        raise TargetError(str(exc)) from None


class RemotePool:
    """
    Raises:
        PoolBrokenError: the broker could not be reached, or no worker has answered.
    """

    def __init__(self, plan: Plan) -> None:
        from prefork.celery import ClusterPool

        assert isinstance(plan.work, Function)
        self._work = plan.work
        self._function: Any = plan.work.target.load()
        unlimited = float("inf")
        self._pool = ClusterPool(
            plan.app,
            queue=plan.queue,
            timeout=plan.timeout or unlimited,
            soft_timeout=plan.soft_timeout or unlimited,
        )

    def each_async(
        self,
        call: object,
        tasks: Sequence[Task],
        done: Callable[[list[tuple[bool, Any]]], object],
        failed: Callable[[BaseException], object],
    ) -> ApplyResult[list[Told]]:
        """As a pool's, with a `Call` of its work, which the nodes do not need."""
        calls = [self._work.arguments(task.value) for task in tasks]
        return timed_async(
            self._pool, self._function, calls, lambda told: done(list(map(_outcome, told))), failed
        )

    def statistics(self) -> SimpleNamespace:
        """Of the workers of this machine there are none."""
        return SimpleNamespace(workers=())

    def tell(self, say: Callable[[str], object]) -> None:
        """What each process does, with its stack."""
        for node, stacks in self._pool.dump_stacks().items():
            for pid, stack in stacks.items():
                say(f"{node}, worker {pid}:\n{stack}".rstrip())

    def close(self) -> None:
        self._pool.close()

    def terminate(self) -> None:
        self._pool.terminate()

    def join(self, timeout: float) -> bool:
        return self._pool.join(timeout)


def _outcome(told: Told) -> tuple[bool, Any]:
    """What became of one input, as a worker of this machine tells it; an error of the pool as it
    is."""
    ok, value = told
    if ok:
        result, seconds, pid = value
        try:
            return True, Outcome(DONE, to_json(result), seconds, pid)
        except NotJSONError as exc:
            return True, Outcome(FAILED, describe(exc), seconds, pid)
    if isinstance(value, PreforkError):
        return False, value
    seconds, pid = getattr(value, "seconds", 0.0), getattr(value, "pid", 0)
    text = str(getattr(value.__cause__, "tb", "")).strip().strip('"').strip()
    return True, Outcome(FAILED, describe(value, text=text), seconds, pid)
