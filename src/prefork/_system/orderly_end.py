"""The end of a child process in good order, as that of an interpreter that nobody has forked.

The standard library ends a child of the start methods fork and forkserver by `os._exit`: functions
that were registered with `atexit` in it do not run, and what is in the buffers of its files is
lost. Here they run, and the files are closed; not what it has inherited, which is its parent's.

The end waits for threads and child processes, as the standard library does, but not for ever: what
a task has left behind holds nobody up. See `part`.
"""

from __future__ import annotations

import _io
import atexit
import gc
import io
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import process
from typing import Any

from prefork._system import std_internals

__all__ = ["LEFTOVER_SECONDS", "begin", "end", "part"]

LEFTOVER_SECONDS = 1.0
"""So long the end of a worker waits for the threads and child processes that its tasks have left
behind, all together."""


def begin(is_fresh: bool) -> None:
    """To be called first in a child.

    Args:
        is_fresh: it is an interpreter of its own (spawn), which has inherited nothing.

    What a child shares with its parent is not looked at again by the garbage collector: to look at
    an object means to write to it, and so to copy its page.
    """
    if is_fresh:
        return
    gc.freeze()
    _disarm_finalizers()
    # Exit functions run in the reverse order of their registration. So those of this process run
    # before this one, and those that it has inherited do not run at all.
    atexit.register(_leave)
    if "logging" in sys.modules:  # else what it registers is not inherited
        atexit.register(_flush_log, std_internals.log_handlers())


def _flush_log(inherited: list[object]) -> None:
    """As `logging` does it at the exit of the process that has imported it; not for what belongs to
    the parent, which would be written twice."""
    theirs = set(map(id, inherited))
    own = [handler for handler in std_internals.log_handlers() if id(handler) not in theirs]
    if own:
        sys.modules["logging"].shutdown(own)


def _disarm_finalizers() -> None:
    """`weakref.finalize` calls what is left at the exit; of the parent's objects, in the parent."""
    finalize: Any = weakref.finalize
    for finalizer in list(getattr(finalize, "_registry", ())):
        finalizer.atexit = False
    finalize._registered_with_atexit = False  # in here: anew, and so before `_leave`


def part() -> None:
    """To be called at the end of a child of any start method, before the standard library waits:
    wait a little for the threads that are no daemons, executors' among them, and for the child
    processes of `multiprocessing`. Those that are there then are not waited for any more: the
    threads end with this process, and the processes with its group.
    """
    global _has_parted  # noqa: PLW0603
    if not _leftovers():
        return
    # Aside, as it may take for ever. The standard library's own way tells idle executors to end.
    waiting = threading.Thread(target=_wait_for_leftovers, daemon=True)
    try:
        waiting.start()
    except RuntimeError:  # the system has no thread left
        time.sleep(LEFTOVER_SECONDS)
    else:
        waiting.join(LEFTOVER_SECONDS)
    if waiting.is_alive() or _leftovers():
        _has_parted = True
        std_internals.children().clear()
        std_internals.leave_threads()


_has_parted = False  # threads go on: the end of an interpreter would be none for what they refer to


def _leftovers() -> list[object]:
    """What the standard library would wait for at the end of this process."""
    main = threading.main_thread()
    threads = [t for t in threading.enumerate() if not t.daemon and t is not main]
    return [*threads, *(child for child in process.active_children() if not child.daemon)]


def _wait_for_leftovers() -> None:
    std_internals.wait_for_threads()
    for child in process.active_children():
        if not child.daemon:
            child.join()


def end(code: int, is_fresh: bool) -> None:
    """To be called last in a child: run its exit functions, close its files, and exit.

    A fresh one is left to exit by itself, which ends what its modules still hold: it has nothing
    that is its parent's. Its exit functions are run before its files are closed, all of them: some
    were registered before anything of ours was there (`logging`'s own, those of the program's
    file), and may have something to write. Nor could it tell by itself which files are garbage.
    """
    global _code  # noqa: PLW0603
    _code = code
    std_internals.run_exit_functions()
    if is_fresh and not _has_parted:
        _leave_nothing()
    else:
        _leave()  # newer versions of Python have forgotten what `begin` has registered


_code = 0


def _leave() -> None:
    try:
        _leave_nothing()
    finally:
        os._exit(_code)


def _leave_nothing() -> None:
    _close_files()
    _end_group()


def _end_group() -> None:
    """End what is left of the group that this process leads, and not this process.

    Whoever accounts for this process does so, too. But if that is killed before it can, nobody is
    left who would: what ties the group to it ends with this process, unless others inherited it.
    """
    group = os.getpid()
    if os.getpgrp() != group or os.getsid(0) == group:
        return
    with suppress(OSError):  # the parent is in another session
        os.setpgid(0, os.getpgid(os.getppid()))
    if os.getpgrp() != group:
        for _ in range(2):  # once more, for what is forked at that very moment
            with suppress(OSError):  # there is nobody
                os.killpg(group, signal.SIGKILL)


def _close_files() -> None:
    """Close what this process has opened and not closed, so that what is in the buffers is written.

    A file may be made of others: text of a buffer, a compressed one of a plain one, or the other
    way round. So all are flushed first, from the outside in, and then closed so.
    """
    streams = (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__)
    standard = set(map(id, streams))
    found = [obj for obj in gc.get_objects() if _io._IOBase in type(obj).__mro__]
    files = sorted((file for file in found if id(file) not in standard), key=_depth)
    for file in files:
        if type(file) in _BUFFERS and not file.closed:
            _try(file.flush)
    for file in files:
        _try(file.close)


_BUFFERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def _depth(file: Any) -> int:
    """How far inside a file usually is."""
    if isinstance(file, _io._TextIOBase):
        return 0
    if isinstance(file, _io._BufferedIOBase):
        return 2 if type(file) in _BUFFERS else 1
    return 3


def _try(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception:  # a full disk, for instance
        traceback.print_exc()
