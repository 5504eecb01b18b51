"""`Pool`: the public verbs. What they do is done by the `Engine`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Never, Self, TypeVar

from prefork import errors
from prefork._arguments import count
from prefork._compat.classes import stands_for
from prefork._compat.habits import unknown_option
from prefork._compat.names import PoolNames
from prefork._engine import roles
from prefork._engine.callbacks import CallbackRunner
from prefork._engine.engine import Engine, Owner, RoleClasses
from prefork._engine.loop_driver import EventLoop, Loop
from prefork._engine.options import Options
from prefork._engine.places import Affinity, Environment
from prefork._policy.limits import Limits
from prefork._public import public
from prefork._system import process
from prefork._system.uninterrupted import uninterrupted
from prefork._verbs.pool_options import make_options, observing
from prefork._verbs.view import Verbs
from prefork.statistics import PoolStatistics

if TYPE_CHECKING:
    from prefork._engine.recording import Recording
    from prefork._ipc.shared import Shared
    from prefork._observe.lines import OutputLine

__all__ = ["Pool", "make_pool"]

T = TypeVar("T")


@public
@stands_for("Pool")
class Pool(Verbs, PoolNames):  # type: ignore[misc]  # which are more precise
    """A pool of worker processes that run functions.

    Args:
        processes: the number of workers, an int of at least 1. None: as many as this process may
            use CPUs, by its affinity and its control group's quota.
        initializer: a function, called in each worker as `initializer(*initargs)` when it starts.
            What it returns is `current_worker().state` in there. If it raises, the pool fails with
            `PoolBrokenError`.
        initargs: its arguments, an iterable.
        maxtasksperchild: a worker is replaced after so many jobs (calls, or chunks of calls), an
            int; None: never.
        timeout: the hard time limit of each task, in seconds from its start (int or float; so are
            all seconds); its worker is killed and the job fails with `TimeLimitExceeded`. None,
            and infinity: no limit.
        soft_timeout: the soft limit, likewise: `SoftTimeLimitExceeded` is raised in the task.
        lost_worker_timeout: when a worker has died but a process that it forked could still
            send the result, how many seconds to wait for that.
        context: a start method's context, as from `multiprocessing.get_context("spawn")`, or just
            its name. None: the default one. It may also be the fifth positional argument, as it
            is that of `multiprocessing.pool.Pool`.
        threads: False: the pool has no threads; it is driven by an event loop (`attach`) or by
            hand (`handle_events`).
        maxtasksperchild_jitter: each worker is replaced after up to so many jobs less, by
            chance, so that they do not all leave at once.
        max_memory_per_child: a worker that has more memory resident after a task is replaced.
            KiB, as in celery; None: no limit.
        max_memory_per_task: a worker that has more memory resident while it runs a task is
            killed, and the job fails with `MemoryLimitExceeded`. It is measured ten times a
            second. KiB; None: no limit.
        max_restarts: after more than so many failed starts of workers in a row, with growing
            pauses in between, the pool fails with `PoolBrokenError`; at once, if no worker has
            ever been ready and this one's initializer raised, exited or hung.
        start_timeout: how long a worker may take to start, its initializer included, in seconds.
            One that takes longer is killed; if none has ever been ready, the pool fails.
        accept_delay: an `accept_callback` may come so many seconds late, which makes short tasks
            cheaper. None: each start is reported at once.
        finalizer: a function, called in each worker as `finalizer(state)` when it ends in order:
            the pool is closed, or the worker is replaced or not wanted any more. A worker that is
            killed does not call it, and one that takes more than 10 s for it is killed. What it
            raises is logged.
        env: variables for the environments of the workers, from their start: a mapping of strings,
            or a function of the worker's index (see `CurrentWorker.index`) that returns one. It is
            called here, once for each index.
        cpu_affinity: True: each worker runs on a CPU of its own, or shares it with as few others as
            possible. Or a sequence of what each may run on, the number of a CPU (int) or several;
            or a function of its index that returns that.
        inner_max_num_threads: how many threads BLAS and OpenMP may have in each worker, an int;
            infinity: as many as they like. None: a fair share of the CPUs, unless the environment
            says something else (see docs/howto/worker-state.md).
        forward_logs: True: log records of the workers go to the handlers of this process, with the
            attributes `process`, `processName`, `job` (int) and `function` (str; both None outside
            of tasks), and warnings are shown here, once for each place. The name of a logger: only
            records of that and of those below it. Levels are those of the worker's loggers, which
            has those of this process.
        context_vars: context variables (`contextvars.ContextVar`) that are globals of modules: what
            is set where a call is handed in, is set in the task; it is pickled like arguments. The
            context of OpenTelemetry goes along in any case, if that has been imported.
        capture_output: what tasks, and what they call or start, write to descriptors 1 and 2.
            "prefix": it is written to where this process prints, line by line, with the worker and
            the job. A function: it is called with each line, a `prefork.OutputLine`.
        observable: whether `prefork top` and its like, run by the same user, may ask this pool what
            it does (where the system is Linux, and `PREFORK_OBSERVABLE` does not say `0`).
            "control": they may end jobs, too.

    Raises:
        ValueError: `processes`, `maxtasksperchild` or a limit is out of range, or there is no such
            start method, or CPU.
        TypeError: an argument is of the wrong type, or unknown.
        OSError: the system has no process, memory or descriptor left.
        RuntimeError: gevent or eventlet has patched what a pool needs.
        NotImplementedError: this system cannot bind processes to CPUs (`cpu_affinity`).

    The types of calls follow the function's: `pool.apply(f, (1,))` is what `f` returns, and type
    checkers refuse arguments that `f` does not take.

    The seed of the interface is `multiprocessing.Pool`, whose documentation applies.
    """

    if TYPE_CHECKING:  # as classes of their own, they may be bases of others: variables may not

        class ResultHandler(roles.ResultHandler): ...

        class TaskHandler(roles.TaskHandler): ...

        class TimeoutHandler(roles.TimeoutHandler): ...

        class Supervisor(roles.Supervisor): ...

        class Process(process.Process): ...

    else:
        ResultHandler = roles.ResultHandler
        TaskHandler = roles.TaskHandler
        TimeoutHandler = roles.TimeoutHandler
        Supervisor = roles.Supervisor
        Process = process.Process
    SoftTimeLimitExceeded: type[BaseException] = errors.SoftTimeLimitExceeded
    _bounds_inner_threads = True  # unless it is told otherwise

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        timeout: float | BaseContext | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float = 10.0,
        *,
        context: BaseContext | str | None = None,
        threads: bool = True,
        maxtasksperchild_jitter: int = 0,
        max_memory_per_child: int | None = None,
        max_memory_per_task: int | None = None,
        max_restarts: int = 10,
        start_timeout: float | None = 600.0,
        accept_delay: float | None = None,
        finalizer: Callable[[Any], object] | None = None,
        env: Environment | None = None,
        cpu_affinity: Affinity | None = None,
        inner_max_num_threads: float | None = None,
        forward_logs: bool | str = False,
        context_vars: Iterable[ContextVar[Any]] = (),
        capture_output: Literal["prefix"] | Callable[[OutputLine], object] | None = None,
        observable: bool | Literal["control"] = True,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise unknown_option(type(self).__name__, unknown)
        if isinstance(timeout, BaseContext):
            if context is not None:
                raise TypeError("context is given twice: as the fifth argument, and by its name")
            context, timeout = timeout, None
        if inner_max_num_threads is None and not self._bounds_inner_threads:
            inner_max_num_threads = math.inf
        options = make_options(
            processes,
            initializer,
            initargs,
            maxtasksperchild,
            context,
            maxtasksperchild_jitter,
            max_memory_per_child,
            max_memory_per_task,
            max_restarts,
            start_timeout,
            accept_delay,
            finalizer=finalizer,
            env=env,
            cpu_affinity=cpu_affinity,
            inner_max_num_threads=inner_max_num_threads,
            observable=observable,
        )
        options = options._replace(
            process_class=self.Process, soft_limit=self.SoftTimeLimitExceeded
        )
        options = observing(options, forward_logs, capture_output, context_vars)
        limits = Limits().override(timeout, soft_timeout, lost_worker_timeout)
        self._begin(options, limits, threads)

    def _begin(self, options: Options, limits: Limits, threads: bool) -> None:
        """Have the engine made, and the workers started."""
        self._defaults = limits
        classes = RoleClasses(
            self.ResultHandler,
            self.TaskHandler,
            self.TimeoutHandler,
            self.Supervisor,
            CallbackRunner,
        )
        self._engine = engine = uninterrupted(
            lambda: self._make_engine(options, limits, classes, threads)
        )
        # Two, and not a finalizer of the pool's own: a signal handler that raises may keep one of
        # them from being run, since Python ignores what is raised in there.
        self._owners = Owner(engine), Owner(engine)
        engine.start()
        self._was_made = True

    def _make_engine(
        self, options: Options, limits: Limits, classes: RoleClasses, threads: bool
    ) -> Engine:
        return Engine(options, limits, classes, threads)

    # ---- the pool itself

    @property
    def processes(self) -> int:
        """How many workers there should be (int)."""
        return self._engine.supervisor.processes

    def grow(self, n: int = 1) -> None:
        """Add workers. They are started soon; this does not wait for them.

        Args:
            n: how many, an int of at least 1.

        Raises:
            ValueError: `n` is less than 1; or the pool is closed or terminated.
            PoolBrokenError: the pool could not start its workers.
            TypeError: `n` is no int.
        """
        self._engine.grow(count("n", n))

    def shrink(self, n: int = 1) -> None:
        """Take workers away; busy ones finish their task first. This does not wait for them.

        Args:
            n: how many, an int of at least 1.

        Raises:
            ValueError: fewer than one worker would be left; or `n` is less than 1; or the pool is
                closed or terminated.
            PoolBrokenError: the pool could not start its workers.
            TypeError: `n` is no int.
        """
        self._engine.supervisor.resize(-count("n", n))

    def restart(self) -> None:
        """Replace all workers, one after another: each goes after the task that it runs, when
        its successor is ready. Returns at once.

        Raises:
            ValueError: the pool is closed or terminated.
            PoolBrokenError: the pool could not start its workers.
        """
        self._engine.supervisor.replace_all()

    def share(self, obj: T) -> Shared[T]:
        """Have one copy of an object for all workers: the same as `prefork.share`, whose handles
        are for any pool.

        Raises:
            Exception: what pickling it raises.
        """
        from prefork._ipc.shared import share

        return share(obj)

    def terminate_job(self, pid: int, signal: int | None = None) -> bool:
        """End the job that a worker runs now; it fails with `Terminated`. No other job is hit.

        Args:
            pid: the process id of the worker (int).
            signal: the number of what to send to it, for instance SIGTERM; if the task survives
                that, the worker leaves after it. None: it is killed, with all that the task
                started.

        Returns:
            Whether a worker of that number was running a job.
        """
        return self._engine.terminator.terminate_on(pid, signal)

    # ---- what can be seen

    def statistics(self) -> PoolStatistics:
        """What there is now: workers, what they run, and counts of jobs.

        Returns:
            An immutable snapshot. It can be had in any state of the pool, also after its end.
        """
        return self._engine.observer.statistics()

    def dump_stacks(self) -> dict[int, str]:
        """The Python stacks of all workers, whatever they are doing, C code included. The workers
        go on.

        Returns:
            Texts by process ids; for a worker that cannot tell, or does not within a second, the
            reason in parentheses.
        """
        return self._engine.observer.stacks()

    def record(self, *, memory: bool = True) -> Recording:
        """Record what the pool does from now on, for a page to look at: what each worker did when,
        run times, waiting, memory, failures.

        Args:
            memory: a thread looks at the memory of the workers, ten times a second at most.

        Returns:
            To be stopped, or used as a context manager, and saved.

        Raises:
            RuntimeError: in a forked child, whose pool this is not; or the system has no thread
                left.
        """
        from prefork._engine.recording import Recording

        self._engine.check_owner()
        return Recording(self._engine, memory)

    def close(self) -> None:
        """Take no more jobs. The workers leave when all are done; `join` waits for that. A pool
        that is closed already stays so."""
        self._engine.lifecycle.close()

    def terminate(self) -> None:
        """Kill the workers with all that their tasks started; jobs that have not finished fail
        with `Terminated`.

        Waits until the workers have ended; only in the pool's own work, which would wait for
        itself, it returns at once. May be called again.
        """
        self._engine.terminate()

    def join(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        """Wait until all jobs are done, all callbacks have run and all workers have left.

        Inputs of `imap` that are still being read are read to their end, without waiting for
        their results to be taken.

        Args:
            timeout: at most so many seconds (int or float); None: for ever.

        Returns:
            Whether that is so.

        Raises:
            ValueError: neither `close` nor `terminate` was called before.
            RuntimeError: it would wait in vain: in a forked child, whose pool this is not; or in
                the pool's own work.
        """
        return self._engine.join(timeout)

    # ---- without threads

    def attach(self, loop: Loop) -> None:
        """Have an event loop drive this pool, which was made with `threads=False`.

        Args:
            loop: has `add_reader(fd, callback)`, `remove_reader(fd)` and `call_later(seconds,
                callback)`, as asyncio's loops and kombu's hub have. Everything happens in its
                thread, the callbacks included, and so must all calls of this pool. Attach it
                again when the loop has forgotten its readers.

        Raises:
            RuntimeError: the pool has threads of its own.
        """
        self._event_loop().attach(loop)

    def detach(self) -> None:
        """Leave the loop; nothing happens until `handle_events` or another `attach`.

        Raises:
            RuntimeError: the pool has threads of its own.
        """
        self._event_loop().detach()

    def handle_events(self, timeout: float | None = None) -> None:
        """Drive this pool, which was made with `threads=False`, by one step: wait for something to
        happen, and handle it. Calls that wait, such as `get()` and `join()`, do so by themselves.

        Args:
            timeout: how many seconds to wait at most (int or float); None: as long as it takes.

        Raises:
            RuntimeError: the pool has threads of its own; or this is called by what it handles, as
                by a callback.
        """
        self._event_loop().handle_events(timeout)

    def _event_loop(self) -> EventLoop:
        if not isinstance(self._engine.driver, EventLoop):
            raise RuntimeError("this pool has threads of its own: make it with threads=False")
        return self._engine.driver

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

    # ---- in an event loop

    async def __aenter__(self) -> Self:
        self._engine.state.check_running()
        self._engine.serve_loop()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As `with` does, the pool is terminated. Other tasks of the loop run until it has ended,
        and to cancel this one does not keep it from ending."""
        await self._engine.terminate_in_loop()

    async def aclose(self) -> None:
        """`close()`, and then what `join()` waits for, while other tasks of the event loop run. If
        this is cancelled, the pool stays closed, and ends when all is done.

        Raises:
            RuntimeError: in a forked child, whose pool this is not; or it has no threads, and
                another loop drives it.
        """
        self.close()
        await self._engine.join_in_loop()

    def __del__(self, _warn: Callable[..., object] = warnings.warn) -> None:
        """Only to say so: the pool is dropped by its `Owner`s. Not inside of the pool's own work,
        where nobody's filters and hooks for warnings are to run. At the interpreter's end the
        globals of this module may have gone."""
        if not hasattr(self, "_was_made"):
            return
        engine = self._engine
        if not engine.is_left_running() or engine.is_busy_here():
            return
        try:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)
        finally:
            engine.drop()  # even if a list of warnings holds it

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotImplementedError("a pool cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        state = self._engine.state.phase.value
        text = f"{type(self).__name__}: {state}, {self.processes} processes"
        if unfinished := len(self._engine.state.open_jobs.by_id):
            text += f", {unfinished} jobs unfinished"
        return f"<{text}>"


def make_pool(options: Options, limits: Limits) -> tuple[Pool, Engine]:
    """A pool with these options, which have been checked, and what runs it: for a face that has
    options of its own."""
    pool = Pool.__new__(Pool)
    pool._begin(options, limits, threads=True)
    return pool, pool._engine
