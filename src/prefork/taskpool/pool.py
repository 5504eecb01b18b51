"""`TaskPool`: a pool for task workers, which hand in calls with callbacks and hold no results.

    apply_async ─► Task ─► Pool ─► worker process
                    │ ▲
      callbacks ◄───┘ └── accepted, succeeded or failed, in the pool's thread or the caller's loop

It stands alone. `prefork.celery` makes celery's worker pool of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefork import adapters
from prefork._describe import function_name
from prefork._engine.loop_driver import Loop
from prefork._public import public
from prefork._results.protocols import Callback
from prefork._system.resources import available_cpus
from prefork.errors import PoolBrokenError, Terminated
from prefork.statistics import WorkerState, WorkerStatistics
from prefork.taskpool.initializer import process_initializer
from prefork.taskpool.task import Slots, Task

__all__ = ["TaskPool"]


@public
class TaskPool:
    """A pool of processes for a task worker.

    Args:
        limit: the number of processes. None: as many as there are CPUs to use.
        putlocks: whether `apply_async` waits for a free process (only with threads).
        options: what the `Pool` takes: `maxtasksperchild`, `max_memory_per_child`, `timeout`,
            `soft_timeout`, `lost_worker_timeout`, `threads`, `max_restarts`, `start_timeout`,
            `context`. And `app`, `hostname` or `initargs`, for `process_initializer`;
            `forking_enable=False`, for the start method spawn; `semaphore`, which is released at
            the end of each task. Others are ignored: callers pass what some pools need.
    """

    Pool: type[adapters.AdapterPool] = adapters.AdapterPool
    initializer: Callable[..., object] = staticmethod(process_initializer)

    requires_mediator = True
    uses_semaphore = True
    signal_safe = True
    is_green = False
    task_join_will_block = True
    body_can_be_buffer = False

    def __init__(self, limit: int | None = None, putlocks: bool = True, **options: Any) -> None:
        self.limit = available_cpus() if limit is None else limit
        self.putlocks = putlocks
        self.options = options
        self.app = options.get("app")
        self.threads: bool = options.get("threads", True)
        self.slots: Slots | None = options.get("semaphore")
        self.tasks: dict[Task, None] = {}  # those that have not ended, the oldest first
        self.running: dict[int, Task] = {}  # those that were accepted, by process id
        self._active = False
        self._terminated = False
        self._pool: adapters.AdapterPool | None = None

    # ---- its life

    def start(self) -> None:
        self.on_start()
        self._active = True

    def stop(self) -> None:
        """Wait for all tasks, and for the processes to end."""
        self._active = False
        self.on_stop()

    def close(self) -> None:
        """Take no more tasks."""
        self._active = False
        self.on_close()

    def terminate(self) -> None:
        """Kill the processes; nobody is told of tasks that had not ended."""
        self._active = False
        self.on_terminate()

    @property
    def active(self) -> bool:
        """Whether it has been started, and takes tasks."""
        return self._active

    def on_start(self) -> None:
        """Run the task pool.

        Will pre-fork all workers so they're ready to accept tasks.
        """
        self._pool = self.Pool(max(1, self.limit), **self.pool_options())

    def pool_options(self) -> dict[str, Any]:
        """The keyword arguments for `Pool`; zero means none, as in many a configuration file."""
        options = self.options
        initargs = options.get("initargs") or (self.app, options.get("hostname"))
        chosen: dict[str, Any] = {
            name: options.get(name) or None
            for name in ("maxtasksperchild", "max_memory_per_child", "timeout", "soft_timeout")
        }
        for name in ("lost_worker_timeout", "max_restarts", "start_timeout"):
            if options.get(name) is not None:
                chosen[name] = options[name]
        spawn = "spawn" if not options.get("forking_enable", True) else None
        return {
            **chosen,
            "initializer": self.initializer,
            "initargs": initargs,
            "context": options.get("context") or spawn,
            "threads": self.threads,
        }

    def on_stop(self) -> None:
        """Gracefully stop the pool."""
        if self._pool is not None:
            self._pool.close()
            self._pool.join()

    def on_close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        if self.slots is not None:
            self.slots.clear()

    def on_terminate(self) -> None:
        """Force terminate the pool."""
        self._terminated = True
        if self._pool is not None:
            self._pool.terminate()

    def did_start_ok(self) -> bool:
        """Whether there is a pool, and it works."""
        return self._pool is not None and not self._pool.is_broken

    def register_with_event_loop(self, loop: Loop) -> None:
        """Have this event loop drive a pool that has no threads. To be repeated when the loop has
        forgotten its readers."""
        if not self.threads:
            self.pool.attach(loop)

    @property
    def pool(self) -> adapters.AdapterPool:
        """The running pool.

        Raises:
            RuntimeError: it has not been started.
        """
        if self._pool is None:
            raise RuntimeError("the task pool has not been started")
        return self._pool

    # ---- tasks

    def apply_async(
        self,
        target: Callable[..., Any],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
        accept_callback: Callback = None,
        timeout_callback: Callback = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        correlation_id: object = None,
        **options: Any,
    ) -> Task | None:
        """Have `target(*args, **kwargs)` called in a process; see `Pool.apply_async` for the
        callbacks and the limits.

        Raises:
            ValueError: the pool is closed or terminated.
            PoolBrokenError: it could not start its workers.
        """
        args = args or ()
        task = Task(
            self,
            target,
            args,
            callback,
            error_callback,
            accept_callback,
            timeout_callback,
            correlation_id,
            self.options.get("soft_timeout") if soft_timeout is None else soft_timeout,
            self.options.get("timeout") if timeout is None else timeout,
        )
        self.tasks[task] = None
        try:
            task.handle = self.pool.apply_async(
                target,
                args,
                kwargs or {},
                task.succeeded,
                task.failed,
                task.accepted,
                task.expired if timeout_callback is not None else None,
                self.putlocks and self.threads,
                soft_timeout,
                timeout,
            )
        except BaseException as exc:
            self.tasks.pop(task, None)
            if not isinstance(exc, (ValueError, PoolBrokenError)):
                raise
            self.refuse(exc)
            return None
        if not self._active:
            self.stopped_meanwhile()
        return task

    def refuse(self, error: Exception) -> None:
        """The pool takes no task any more: raise this, or have `apply_async` return None."""
        raise error

    def stopped_meanwhile(self) -> None:
        """A signal handler has stopped the pool while `apply_async` handed in a task."""

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the task that was accepted last in this process, unless it has ended: no other task
        can be hit. The signal is what to send to the process; None: it is killed."""
        task = self.running.get(pid)
        if task is not None:
            task.terminate(signal)

    def flush(self) -> None:
        """Drop the tasks that have not been started: whoever handed them in does so again."""
        for task in reversed(list(self.tasks)):  # the last in the queue first: others may start
            task.withdraw()

    def drops(self, task: Task, error: BaseException) -> bool:
        """Whether nobody is to be told of this error."""
        return self._terminated and isinstance(error, Terminated)

    def translate(self, task: Task, error: BaseException) -> object:
        """What the `error_callback` is called with."""
        return error

    def name_of(self, task: Task) -> str:
        """What a task is called, for people."""
        return function_name(task.target)

    def run_or_defer(self, call: Callable[..., object], *args: object) -> None:
        """Call this now; or soon, if we are called by a signal handler that has interrupted the
        pool in the middle of something."""
        if self.pool.is_busy_here():
            self.pool.call_soon(call, *args)
        else:
            call(*args)

    # ---- processes

    @property
    def num_processes(self) -> int:
        return self._pool.processes if self._pool is not None else self.limit

    def grow(self, n: int = 1) -> None:
        """Add `n` processes; from any thread."""
        self.pool.grow(n)
        if self.slots is not None:
            self.pool.call_soon(self.slots.grow, n)

    def shrink(self, n: int = 1) -> None:
        """Take `n` processes away; busy ones finish their task first. From any thread.

        Raises:
            ValueError: fewer than one would be left.
        """
        self.pool.shrink(n)
        if self.slots is not None:
            self.pool.call_soon(self.slots.shrink, n)

    def restart(self) -> None:
        """Replace all processes; each goes after the task that it runs."""
        self.pool.restart()

    def maintain_pool(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is to be done: the pool sees to its processes itself."""

    # ---- what can be seen

    @property
    def info(self) -> dict[str, Any]:
        """Figures and settings, of types that JSON has."""
        statistics = self.pool.statistics()
        workers = statistics.workers
        staying = [worker for worker in workers if worker.state is not WorkerState.RETIRING]
        soft, hard = (self.options.get(name) or 0 for name in ("soft_timeout", "timeout"))
        return {
            "implementation": f"{type(self).__module__}:{type(self).__name__}",
            "max-concurrency": min(self.num_processes, len(staying)),
            "processes": [worker.pid for worker in workers],
            "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
            "put-guarded-by-semaphore": self.putlocks or self.slots is not None,
            "timeouts": [soft, hard],
            "writes": self._writes(workers),
            "workers": [self._worker_info(worker) for worker in workers],
            "tasks": {
                "waiting": statistics.queued,
                "running": statistics.running,
                "finished": statistics.finished,
                "failed": statistics.failed,
            },
            "exits": [exit._asdict() for exit in statistics.exits[-10:]],
        }

    def _writes(self, workers: Sequence[WorkerStatistics]) -> dict[str, Any]:
        """How tasks are spread over the processes that there are, as celery's own pool tells it."""
        counts = [worker.tasks + (worker.job is not None) for worker in workers]
        total = sum(counts)
        shares = [f"{count / total if total else 0:.2f}" for count in counts]
        return {
            "total": total,
            "avg": f"{1 / len(counts) if total else 0:.2f}",
            "all": ", ".join(shares),
            "raw": ", ".join(map(str, counts)),
            "strategy": "fair",
            "inqueues": {
                "total": len(counts),
                "active": sum(worker.job is not None for worker in workers),
            },
        }

    def _worker_info(self, worker: WorkerStatistics) -> dict[str, Any]:
        task = self.running.get(worker.pid)
        seconds = None if worker.since is None else time.monotonic() - worker.since
        return {
            "pid": worker.pid,
            "name": worker.name,
            "state": str(worker.state),
            "task": self.name_of(task) if task else worker.function,
            "id": str(task.id) if task and task.id is not None else None,
            "since": None if seconds is None else round(time.time() - seconds, 3),
            "seconds": None if seconds is None else round(seconds, 3),
            "tasks": worker.tasks,
            "memory": worker.memory,
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.num_processes} processes, {len(self.tasks)} tasks>"
