"""Every use of what is private in `multiprocessing`, and of how an interpreter ends, in one place.

The standard library has no public way for these. They differ between versions of Python, and may go
in any later one; `tests/unit/system/test_std_internals.py` fails, and names what has gone.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import context as mp_context
from multiprocessing import process, util
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from prefork._system.locks import RLock

__all__ = [
    "ask_server",
    "become_current",
    "before_threads_end",
    "children",
    "disown",
    "end_if_stuck",
    "finalize",
    "flush_std_streams",
    "fork_server_of",
    "has_standard_server",
    "identify",
    "identity",
    "is_forking",
    "leave_threads",
    "log_handlers",
    "popen",
    "preload",
    "read_number",
    "reducers",
    "run_exit_functions",
    "server_pid",
    "sharing_tracker",
    "wait_for_threads",
    "without_false_file",
]


def is_forking(context: BaseContext) -> bool:
    """Whether processes are forked in this context, in the standard library's own way."""
    forked: Any = getattr(mp_context, "ForkProcess", None)
    its = getattr(context, "Process", None)
    return forked is not None and getattr(its, "_Popen", None) is forked._Popen


def popen(context: BaseContext) -> Callable[[BaseProcess], Any]:
    """What starts a process in this context, and then stands for it."""
    start: Callable[[BaseProcess], Any] = context.Process._Popen  # type: ignore[attr-defined]
    return start


def has_standard_server(context: BaseContext) -> bool:
    """Whether it is a fork server that is asked for processes, in the standard library's way."""
    asked = getattr(mp_context, "ForkServerProcess", None)
    return asked is not None and getattr(context, "Process", None) is asked


def children() -> set[BaseProcess]:
    """What `multiprocessing.active_children` looks at. (It is another set in each child.)"""
    found: set[BaseProcess] = process._children  # type: ignore[attr-defined]
    return found


def identity(process: BaseProcess) -> tuple[str, tuple[int, ...], tuple[Any, ...]]:
    """The name of a process, the numbers that tell it from all others, what its target is given."""
    its: Any = process
    return its._name, its._identity, its._args


def identify(
    process: BaseProcess, name: str, numbers: tuple[int, ...], args: tuple[Any, ...]
) -> None:
    """Give a process that has not begun another identity."""
    its: Any = process
    its._name, its._identity, its._args = name, numbers, args


def become_current(this: BaseProcess) -> None:
    """What `multiprocessing.current_process` is to return in this process."""
    process._current_process = this  # type: ignore[attr-defined]


def reducers() -> dict[type, Any]:
    """Those that were registered with `ForkingPickler`, and will be."""
    from multiprocessing.reduction import ForkingPickler

    found: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    return found


def flush_std_streams() -> None:
    """Before a fork: else a child would write again what is in the buffers."""
    util._flush_std_streams()  # type: ignore[attr-defined]


def finalize() -> None:
    """In a child: run the finalizers (`util.Finalize`), end the daemonic child processes, join the
    others; once, however often this is called."""
    util._exit_function()  # type: ignore[attr-defined]


def before_threads_end(call: Callable[[], object]) -> None:
    """Have this called at the end of the main process before all that `atexit` calls: once that
    runs, Python starts no more threads."""
    threading._register_atexit(call)  # type: ignore[attr-defined]


def wait_for_threads() -> None:
    """For those that are no daemons. What executors have registered is called before, which tells
    idle ones to end.

    Not for the main thread, as whoever waits here may be another one. Up to Python 3.12 its lock is
    among those that are waited for, unless the process was forked."""
    locks: set[object] = getattr(threading, "_shutdown_locks", set())
    locks.discard(getattr(threading.main_thread(), "_tstate_lock", None))
    threading._shutdown()  # type: ignore[attr-defined]


def leave_threads() -> None:
    """At the end of this process, do not wait for them."""
    threading._shutdown = lambda: None  # type: ignore[attr-defined]


def log_handlers() -> list[Any]:
    """Weak references to all handlers of log records, as `logging.shutdown` takes them."""
    return list(getattr(sys.modules.get("logging"), "_handlerList", ()))


def run_exit_functions() -> None:
    """What was registered with `atexit`, once."""
    atexit._run_exitfuncs()


def fork_server_of(context: BaseContext) -> Any:
    """The fork server of a start method's context: one of its own (`own_server.py`), or the
    standard library's; None, if it has none."""
    if context.get_start_method() != "forkserver":
        return None
    from multiprocessing import forkserver  # large

    return getattr(context, "server", forkserver._forkserver)


def ask_server(server: Any, pipes: list[int], more: list[int]) -> None:
    """Ask a fork server that runs for a child. All but the connection itself is there already, so
    that the server is told what it wants to know, or not even connected to.

    Args:
        pipes: what the child reads from, and what the server tells its number and status through.
        more: other descriptors that the child is to have.

    Raises:
        OSError: the server has ended; or no descriptor is left.
        ValueError: these are too many descriptors.
    """
    from multiprocessing import connection, forkserver, reduction, resource_tracker

    server.ensure_running()
    fds = [*pipes, server._forkserver_alive_fd, resource_tracker.getfd(), *more]
    if len(fds) >= forkserver.MAXFDS_TO_SEND:
        raise ValueError(f"a process can be given {forkserver.MAXFDS_TO_SEND} descriptors")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server._forkserver_address)
        if key := getattr(server, "_forkserver_authkey", None):  # from Python 3.14 on
            link: Any = connection.Connection(client.fileno())
            try:
                connection.answer_challenge(link, key)
                connection.deliver_challenge(link, key)
            finally:
                link._detach()
        reduction.sendfds(client, fds)


def read_number(status: int) -> int:
    """What a fork server tells of a child: its process id; later, its exit code."""
    from multiprocessing import forkserver

    return int(forkserver.read_signed(status))


def preload(server: Any, module: str) -> None:
    """Have a fork server, unless it runs already, import a module once for all its children, beside
    what the program wants it to."""
    if module not in server._preload_modules:
        kept: dict[str, Any] = {}
        if sys.version_info >= (3, 15):
            kept["on_error"] = server._preload_on_error
        server.set_forkserver_preload([*server._preload_modules, module], **kept)


def server_pid(server: Any) -> int | None:
    """The process of a fork server; None before its first start."""
    pid: int | None = server._forkserver_pid
    return pid


def end_if_stuck(server: Any) -> None:
    """A fork server has not answered in time: end it, unless it has children, which would lose
    their parent. The next start has another one begin; what waits for this one fails at once.

    From Python 3.12.8 on it runs the program's `__main__` first, and if that hangs, serves nobody,
    and does not end with the program either.
    """
    pid = server._forkserver_pid
    with suppress(OSError):  # there is none; it has ended; or this system does not tell
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as listed:
            children = listed.read()
        if not children:
            os.kill(pid, signal.SIGKILL)


def disown(server: Any) -> None:
    """In a forked child: a fork server that its parent has started is none of its own; the first
    child that it wants has another one begin.

    The standard library would fail, since this process cannot wait for that server; and what locks
    it may be held by a thread that does not exist here.
    """
    server._lock = RLock()
    if server._forkserver_pid is None:
        return
    with suppress(OSError):
        os.close(server._forkserver_alive_fd)  # the server ends with the parent alone
    for name in ("address", "alive_fd", "authkey", "pid"):  # (no key before 3.14)
        setattr(server, f"_forkserver_{name}", None)


_hiding = RLock()
_hidden: list[str] = []  # while it is


def _after_in_child() -> None:
    global _hiding  # noqa: PLW0603
    _hiding = RLock()
    if (module := sys.modules.get("multiprocessing.forkserver")) is not None:
        disown(module._forkserver)


os.register_at_fork(after_in_child=_after_in_child)


@contextmanager
def without_false_file() -> Iterator[None]:
    """Inside of this a program that came from standard input has no `__file__`, as one of
    `python -c` has none. Its children would look for a file of that name, "<stdin>", and end."""
    main: Any = sys.modules.get("__main__")
    if not (_hidden or _has_false_file(main)):
        yield
        return
    with _hiding:
        if not _has_false_file(main):
            yield
            return
        _hidden.append(main.__file__)
        del main.__file__
        try:
            yield
        finally:
            main.__file__ = _hidden.pop()


def _has_false_file(main: Any) -> bool:
    name = getattr(main, "__file__", None)
    return isinstance(name, str) and name.startswith("<")


@contextmanager
def sharing_tracker() -> Iterator[None]:
    """A child that this thread forks inside of this shares this process's resource tracker, as one
    that the standard library forks.

    Newer versions of Python take the tracker away from every other forked process. That would start
    one of its own, which removes what the process has made for others (its shared memory, for
    instance) once the process has ended.
    """
    # Whoever has not imported the tracker has none to share.
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    intent: Any = getattr(tracker, "_fork_intent", None)
    if intent is None:
        yield
        return
    intent.preserve_fd = True
    try:
        yield
    finally:  # in both processes
        intent.preserve_fd = False
