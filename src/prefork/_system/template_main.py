"""The template itself: what happens in the process that a pool's later workers are forked from.
See `template.py`."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import traceback
from typing import NamedTuple

from prefork._system import at_fork, std_internals
from prefork._system.lifeline import LifelineEnd
from prefork._system.template_wire import (
    FIRST,
    START,
    STATUS,
    Answer,
    Question,
    close_all,
    receive,
    send,
)

__all__ = ["Order", "become_template"]


class Order(NamedTuple):
    """In a process that the template has just forked: what that was told to start."""

    detail: bytes
    fds: list[int]


def become_template(fd: int, lifeline: LifelineEnd, fds: tuple[int, ...]) -> Order | None:
    """In a process that was just forked: fork the first worker, which is to keep these descriptors,
    and go on as the template. Returns in each process that is forked: None in the first worker, its
    order in all others.

    Args:
        fd: the template's end of the socket.
        lifeline: what ties it and its workers to the pool's process.
    """
    return _Template(fd, lifeline).branch(fds)


class _Template:
    """The process itself, from the moment of its fork on.

    Args:
        fd: its end of the socket.
        lifeline: what ties it and its workers to the pool's process.
    """

    def __init__(self, fd: int, lifeline: LifelineEnd) -> None:
        self._fd = fd
        self._lifeline = lifeline

    def branch(self, fds: tuple[int, ...]) -> Order | None:
        """In the process that was forked to be the template: fork the first worker, which is to
        keep these descriptors, and go on as the template. Returns in each process that is forked:
        None in the first worker, its order in all others."""
        self._lifeline.keep()
        with std_internals.sharing_tracker():
            pid = at_fork.keeping(fds, os.fork)
        if pid == 0:
            return None
        at_fork.Descriptors(*fds).close()
        at_fork.Descriptors(self._fd)  # for this process alone
        try:
            self._tell_born(FIRST, pid)
            self._tie()
            gc.freeze()
            return self._serve()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _tie(self) -> None:
        """It ends with the pool's process; but the workers get none of the descriptors by which it
        does, since they have their own."""
        with at_fork.creating():
            end = LifelineEnd(at_fork.Descriptors(os.dup(self._lifeline.fd)))
            at_fork.Descriptors(*end.hold())

    def _serve(self) -> Order:
        while True:
            message, fds = receive(self._fd)
            if message is None:
                self._reap_all()
                os._exit(0)
            question = Question(*message)
            if question.what == START:
                if self._fork(question.number):
                    return _released(Order(question.detail, fds))
            elif question.what == STATUS:
                status = _peek(question.pid)
                self._answer(Answer(question.number, status=status))
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(question.pid, os.WNOHANG)
            close_all(fds)

    @staticmethod
    def _reap_all() -> None:
        """Nobody else would. Those that the pool knows have all ended; others, which were forked
        and not released, are about to."""
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()

    def _fork(self, number: int) -> bool:
        """Whether this is the new process."""
        try:
            with std_internals.sharing_tracker():
                pid = os.fork()
        except OSError as exc:
            self._answer(Answer(number, error=exc.errno or errno.EAGAIN))
            return False
        if pid == 0:
            return True
        self._tell_born(number, pid)
        return False

    def _tell_born(self, number: int, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as exc:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._answer(Answer(number, error=exc.errno or errno.EMFILE))
            return
        self._answer(Answer(number, pid), (pidfd,))
        os.close(pidfd)

    def _answer(self, answer: Answer, fds: tuple[int, ...] = ()) -> None:
        try:
            send(self._fd, answer, fds)
        except OSError:  # nobody wants to know
            os._exit(0)


def _released(order: Order) -> Order:
    """Wait for the release; there is none if the pool does not know of this process."""
    release, *fds = order.fds
    if not os.read(release, 1):
        os._exit(0)
    os.close(release)
    return Order(order.detail, fds)


def _peek(pid: int) -> int | None:
    """How a child has ended; it stays a zombie, so that its number is not used again."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
