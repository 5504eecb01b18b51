"""How a worker works, and what it does first."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from prefork._ipc.payload import FilePayload
from prefork._ipc.pickling import is_unknown_name, load, load_by_value
from prefork.errors import SoftTimeLimitExceeded

if TYPE_CHECKING:
    from prefork._observe.settings import WorkerSettings

__all__ = ["SOFT_SIGNAL", "Hook", "WorkerOptions", "allowing_sessions"]

SOFT_SIGNAL: Final = signal.SIGUSR1
_SMALL: Final = (
    1 << 12
)  # bytes of a pickle that fit into any pipe beside what else starts a process


class Hook:
    """A function and its arguments, to be called once in each worker: its initializer, or its
    finalizer.

    Where it has to be pickled (not with fork), the worker unpickles it itself, when it can report
    that this fails. A large pickle travels in a file: the pipe that starts a process takes little
    before the process reads, and it may hang before it does (in the import of `__main__`).
    """

    def __init__(self, func: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.func, self.args = func, args
        self._payload: FilePayload | None = None  # on its way to the worker that is being started

    def __reduce__(self) -> tuple[Any, ...]:
        # Anew for each worker: what can only be given to a child while it starts is in there, too.
        pickled = _pickle(self.func, self.args)
        if len(pickled) <= _SMALL:
            return _PickledHook, (pickled,)
        self._payload = FilePayload(pickled)  # the last worker's has been received
        return _PickledHook, (DupFd(self._payload.fd),)

    def load(self) -> Callable[..., object]:
        """In the worker: what to call; its own arguments come first. May raise whatever unpickling
        raises."""
        return _bind(self.func, self.args)


class _PickledHook:
    """The same, as it arrives in a worker."""

    def __init__(self, pickled: Any) -> None:
        self._pickled = pickled

    def load(self) -> Callable[..., object]:
        pickled = self._pickled
        func, args = load(
            pickled if isinstance(pickled, bytes) else FilePayload.open(pickled.detach())
        )
        return _bind(func, args)


def _pickle(func: Callable[..., object], args: tuple[Any, ...]) -> bytes:
    """By name, if a process that imports what it can finds all that is in there; else by value."""
    reason: Exception | None = None
    pickled = b""
    try:
        pickled = bytes(ForkingPickler.dumps((func, args)))
    except Exception as exc:
        if not is_unknown_name(exc):
            raise
        reason = exc
    else:
        if b"__main__" not in pickled:
            return pickled
    from prefork._ipc.main_module import WorkersMain  # has more imports

    main = WorkersMain(forks=False)
    if reason is None and not main.typed_in:
        return pickled
    whole: bytes = load_by_value(reason, func).dumps_whole(main, (func, args))
    return whole


def _bind(func: Callable[..., object], args: tuple[Any, ...]) -> Callable[..., object]:
    if func is _REAL_SETSID:  # it was looked up before `allowing_sessions`
        func = _setsid
    return functools.partial(func, *args)


# ---- `os.setsid` in an initializer, as daemons and terminals' programs use it. A worker leads a
# process group, and so the kernel would refuse it a session of its own.

_REAL_SETSID: Final = os.setsid


def _setsid() -> None:
    """Like `os.setsid`, also for the leader of a group: it leaves its group for a moment, and then
    leads one of the same number again, which ends with it as before.

    Raises:
        PermissionError: it leads a session already, or has processes of its own in its group.
    """
    own = os.getpid()
    if os.getpgrp() != own or os.getsid(0) == own:
        _REAL_SETSID()
        return
    os.setpgid(0, os.getpgid(os.getppid()))
    try:
        _REAL_SETSID()
    except OSError:
        os.setpgid(0, 0)
        raise


@contextlib.contextmanager
def allowing_sessions() -> Iterator[None]:
    """Inside of this, `os.setsid` is the one above."""
    os.setsid = _setsid
    try:
        yield
    finally:
        os.setsid = _REAL_SETSID


class LoadsHook(Protocol):
    """A `Hook`, or what has become of it on its way to a worker."""

    def load(self) -> Callable[..., object]: ...


class WorkerOptions(NamedTuple):
    """How the workers of a pool work."""

    initializer: LoadsHook | None = None
    max_memory: int | None = None  # KiB resident; with more after a task a worker leaves
    soft_limit: type[BaseException] = SoftTimeLimitExceeded  # what it raises in a task
    load_seconds: float = 0.0  # how long a call may take to be unpickled, beside its limits
    finalizer: LoadsHook | None = None  # called at the end with what the initializer has returned
    observing: WorkerSettings | None = None  # what it sends beside its results
