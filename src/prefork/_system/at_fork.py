"""What a forked child must not keep: this process's ends of pipes, sockets and files.

An end that a child holds open hides the death of whoever it belongs to. So these descriptors are
registered here, as numbers, and a forked child closes them all at once, before anything else is
done in it; except what the fork was for (`keeping`). What there is of Python objects is left alone:
it lies on pages that parent and child share as long as neither touches them. Only an object that
has more to let go than numbers is registered itself, to be *closed in the child*.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import sys
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import chain, compress, starmap
from typing import Any, Protocol, TypeVar

from prefork._system.locks import RLock

__all__ = [
    "STANDARD_STREAMS",
    "Descriptors",
    "ForkAware",
    "above_stdio",
    "creating",
    "forget_imports",
    "holding_logging",
    "keeping",
    "pipe",
    "register",
    "unregister",
]

T = TypeVar("T")

STANDARD_STREAMS = 3


class ForkAware(Protocol):
    """What `register` takes."""

    def close_in_child(self) -> None:
        """In a forked child: let go, without a trace for the parent."""


_registered: dict[int, Callable[[], ForkAware | None]] = {}  # by their ids
_open: set[int] = set()
_kept = threading.local()
_guard = RLock()
_generation = 0  # of processes that were forked since this module was imported


def register(obj: ForkAware) -> None:
    """From now on, forked children call its `close_in_child`, until it is unregistered or gone.

    One of a compiled class cannot be referred to weakly: it is held until it is unregistered.
    """
    key = id(obj)
    try:
        _registered[key] = weakref.ref(obj, lambda _: _registered.pop(key, None))
    except TypeError:
        _registered[key] = lambda: obj


def unregister(obj: ForkAware) -> None:
    """The object is closed; to be called before its descriptors are."""
    _registered.pop(id(obj), None)


def creating() -> AbstractContextManager[object]:
    """No other thread forks between the making of descriptors and their registration."""
    return _guard


class Descriptors:
    """Some descriptors of this process, which forked children do not keep. In a child this object
    is a mere copy: the numbers may be another's there, and closing it does nothing."""

    __slots__ = ("_generation", "fds")

    def __init__(self, *fds: int) -> None:
        self.fds: list[int] = []
        self._generation = _generation
        for fd in fds:
            self.add(fd)

    def add(self, fd: int) -> int:
        """To be called inside of `creating`; returns the descriptor."""
        self.fds.append(fd)
        _open.add(fd)
        return fd

    def make(self, function: Callable[..., int], *args: object) -> int:
        """Have a new descriptor made, which is added; to be called inside of `creating`."""
        # All in C: no signal handler that raises comes between its making and its keeping.
        self.fds.extend(starmap(function, [args]))
        fd = self.fds[-1]
        _open.add(fd)
        return fd

    def remove(self, fd: int) -> None:
        """Close one of them."""
        with _guard:
            # In C, as in `close`.
            fds = (fd,)
            deque(chain(map(self.fds.remove, fds), map(_open.discard, fds), map(os.close, fds)), 0)

    @property
    def are_ours(self) -> bool:
        """Whether this was made by this very process, not by its parent."""
        return self._generation == _generation

    def hand_over(self) -> None:
        """Children that are forked from now on keep them."""
        _open.difference_update(self.fds)
        self.fds = []

    def close(self) -> None:
        """Close them, once."""
        # Nobody forks in between. At the interpreter's end no other thread runs any more: one that
        # has the guard will not release it.
        with nullcontext() if sys.is_finalizing() else _guard:
            if self._generation == _generation:
                fds, self.fds = self.fds, []
                # In C: no signal handler that raises comes in between.
                deque(chain(map(_open.discard, fds), map(os.close, fds)), 0)


def above_stdio(fd: int) -> int:
    """The same open file on a descriptor that no task takes for stdin, stdout or stderr."""
    if fd >= STANDARD_STREAMS:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STANDARD_STREAMS)
    finally:
        os.close(fd)


def pipe(reader_side: Descriptors, writer_side: Descriptors) -> tuple[int, int]:
    """A pipe whose ends have these owners; to be called inside of `creating`."""
    reader, writer = os.pipe()
    try:
        reader = reader_side.add(above_stdio(reader))
    except OSError:
        os.close(writer)
        raise
    return reader, writer_side.add(above_stdio(writer))


def keeping(fds: Iterable[int], fork: Callable[[], T]) -> T:
    """Call `fork`: a child that this thread forks meanwhile keeps these descriptors, for somebody
    there to take over into new `Descriptors`."""
    _kept.fds = fds
    try:
        return fork()
    finally:
        _kept.fds = ()


def forget_imports() -> None:
    """In a forked child: begin anew what other threads were importing at the time of the fork.

    They do not exist here, so whoever imports the same would wait for them for ever. There is no
    public way; where these names mean something else, nothing happens.
    """
    locks = getattr(importlib._bootstrap, "_module_locks", {})
    for name, reference in list(locks.items()):
        owner = getattr(reference(), "owner", None)
        if owner is not None and owner != threading.get_ident():
            del locks[name]
            spec = getattr(sys.modules.get(name), "__spec__", None)
            if getattr(spec, "_initializing", False):
                del sys.modules[name]


LOCK_SECONDS = 0.1
"""How long to wait for each lock of logging; a handler may be slow, or stuck."""


@contextmanager
def holding_logging() -> Iterator[None]:
    """For a fork: no other thread is writing a log message inside of this.

    A handler's lock is made anew in a child by logging itself, but not those of what it writes to,
    such as a file's: nobody in the child would ever release them. Who has a handler's lock holds
    off everybody who is to write there.
    """
    held: list[Any] = []
    try:
        # The guard first: who waits for it, as each fork does, must not have what others wait for.
        # Then in the order in which logging itself takes its locks, where it takes both.
        _hold_guard_and_logging(held)
        for find in list(getattr(sys.modules.get("logging"), "_handlerList", ())):
            _hold(getattr(find(), "lock", None), held)
        yield
    finally:
        _release(held)


def _hold_guard_and_logging(held: list[Any]) -> None:
    """Hold the guard, and the lock that logging's own hook takes in each fork after ours.

    Neither is waited for while the other is held, at least not for long: whoever has the other may
    be waiting for the one. That is a thread that is about to fork, too; or one that has logging's
    lock, and there the garbage collector closes what nobody refers to any more.
    """
    while True:
        _take(_guard, held)
        lock = getattr(sys.modules.get("logging"), "_lock", None)
        if _hold(lock, held):
            return
        held.pop().release()
        waited: list[Any] = []
        _hold(lock, waited)  # with empty hands
        _release(waited)


def _hold(lock: Any, held: list[Any]) -> bool:
    """False if somebody else has it, for long."""
    with suppress(Exception):  # there is none; or it is somebody's own, which knows no timeout
        return _take(lock, held, LOCK_SECONDS)
    return True


def _take(lock: Any, held: list[Any], timeout: float = -1.0) -> bool:
    """Acquire a lock. It is in the list then, also if a signal handler raises at this moment."""
    before = len(held)
    held.extend(compress((lock,), starmap(lock.acquire, ((True, timeout),))))
    return len(held) > before


def _release(held: list[Any]) -> None:
    while held:
        with suppress(RuntimeError):  # it is another one by now, in the child
            held.pop().release()


_forks = threading.local()  # `held`: for each fork that this thread is in, what it holds


def _before() -> None:
    held: list[Any] = []
    _forks.__dict__.setdefault("held", []).append(held)
    _hold_guard_and_logging(held)


def _after() -> None:
    if forks := getattr(_forks, "held", None):
        _release(forks.pop())


def _after_in_child() -> None:
    global _generation  # noqa: PLW0603
    _after()  # the thread that forked, and that lives on here, holds what it held there
    _generation += 1
    kept = getattr(_kept, "fds", ())
    _close_all(sorted(_open.difference(kept)))
    _open.intersection_update(kept)
    _kept.fds = ()
    for find in list(_registered.values()):
        if obj := find():
            try:
                obj.close_in_child()
            except Exception:  # a bug; the others must be abandoned all the same
                traceback.print_exc()


def _close_all(fds: list[int]) -> None:
    """Close descriptors, given in order. Most are neighbours, so it takes few system calls."""
    start = -1
    for i, fd in enumerate(fds):
        if i == 0 or fds[i - 1] != fd - 1:
            start = fd
        if i + 1 == len(fds) or fds[i + 1] != fd + 1:
            os.closerange(start, fd + 1)


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
