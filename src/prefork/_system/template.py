"""The process that a pool's later workers are forked from.

A process with threads cannot be forked safely: whatever lock one of them holds at that moment, in
Python or in C, stays locked in the child for ever. So the first child that a pool forks becomes its
*template*: it forks the first worker, before anything else has happened, and then waits for the
order to fork another one. It has one thread and runs no code of the user's; all that it has is what
the pool's process had when it was forked.

    pool                         template                     worker
      ── start: what differs ────►  fork ───────────────────────►  waits for its release
      ◄── its number, its pidfd ──
      ── release ───────────────────────────────────────────────►  runs
      ...                                                          ends (the pidfd says so)
      ── how has it ended? ──────►
      ◄── its status ─────────────
      ── reap ───────────────────►

It does nothing unasked. One question is asked at a time, and only so long an answer is waited for:
a template that has been stopped is continued, and one that does not answer is killed. The start
that it did not answer may have happened all the same. That worker is never released, so it ends of
itself.

If it is killed, its workers go on, and nobody can tell any more how they end. Except for one that
is stopped at that moment: it ends, too. Its group has lost its last link to its session, the parent
(POSIX: it is orphaned), and the kernel sends SIGHUP and SIGCONT to such a group if a member is
stopped. To be spared it a worker would have to be a session of its own, without the terminal, or to
catch SIGHUP, which then would end no worker that is stuck in C code. So its job is lost like that
of any worker that dies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from typing import NamedTuple

from prefork._system import at_fork
from prefork._system.kernel import HAS_PIDFD
from prefork._system.lifeline import LifelineEnd, is_shareable
from prefork._system.locks import RLock
from prefork._system.selector import is_readable
from prefork._system.template_wire import (
    CLOEXEC,
    DONT_WAIT,
    FIRST,
    REAP,
    START,
    STATUS,
    Answer,
    Question,
    receive,
    send,
    shut_writing,
)

__all__ = ["Born", "Template", "TemplateLostError", "is_supported"]

ANSWER_SECONDS = 10.0
"""How long a start may take: to fork a process of many GiB takes a while."""

STATUS_SECONDS = 5.0
"""How long to wait for the status of a worker."""

_FIRST_LOOK_SECONDS = 0.05
"""After so long without an answer it is looked whether the template has been stopped; then again
after twice as long, and so on."""

END_SECONDS = 5.0
"""How long to wait for the end of a template that was dismissed; then of one that was killed."""


class TemplateLostError(ConnectionError):
    """The template has died, or does not answer."""


class Born(NamedTuple):
    """A process that the template has forked."""

    pid: int
    pidfd: at_fork.Descriptors


def is_supported() -> bool:
    """Whether this system has what it takes."""
    return CLOEXEC != 0 and HAS_PIDFD and is_shareable()


class Template:
    """The pool's side; at first there is no such process yet: see `Process.prepare`.

    Safe to be used from several threads, and interrupted by signal handlers that raise.

    Args:
        lifeline: the end that ties it to the pool's process, as it does its workers.

    Attributes:
        pid: 0 as long as it is not there.
        is_clean: whether the pool's process had no other thread when it was forked.
        is_lost: it answers no more: it has ended, or was told to, or was killed.
    """

    def __init__(self, lifeline: LifelineEnd) -> None:
        self.lifeline = lifeline
        self.pid = 0
        self.is_clean = False
        self.is_lost = False
        self._is_retired = False
        self._children = 0  # whose ends are still to be told
        self._lock = RLock()
        self._asked = 0
        self._awaited = {FIRST}
        self._answers: dict[int, tuple[Answer, at_fork.Descriptors]] = {}
        self._first: tuple[Answer, at_fork.Descriptors] | None = None
        self._ours, self._theirs = at_fork.Descriptors(), at_fork.Descriptors()
        with at_fork.creating():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._fd = self._ours.add(ours.detach())
            self.newborn_fd = self._theirs.add(theirs.detach())
        self._pidfd = at_fork.Descriptors()

    # ---- its life, as the pool sees it

    def has_started(self, pid: int, is_clean: bool) -> None:
        """It has been forked; no harm if this is said again."""
        if not self.pid:
            self.is_clean = is_clean
            self.pid = pid

    def look_after(self) -> None:
        """It has been forked, and there is time for the rest; no harm if this is done again.

        Raises:
            OSError: no descriptor is left.
        """
        self._theirs.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(self.pid, self.pid)  # so that Ctrl-C in a terminal is not for it
        if not self._pidfd.fds:
            with at_fork.creating():
                self._pidfd.add(os.pidfd_open(self.pid))

    def is_alive(self) -> bool:
        """Whether it is there, as far as can be told without asking it."""
        if self.pid and self._pidfd.fds and is_readable(self._pidfd.fds[0], 0):
            self.is_lost = True
        return self.pid != 0 and not self.is_lost

    def adopt(self) -> None:
        """One process more belongs to it."""
        self._children += 1

    def let_go(self) -> None:
        """One of its processes has been accounted for."""
        self._children -= 1
        if self.is_needless:
            self._dismiss()

    def retire(self) -> None:
        """Nothing is to be started by it any more: it ends after the last of its processes. It is
        to be closed then."""
        self._is_retired = True
        if self.is_needless:
            self._dismiss()

    @property
    def is_needless(self) -> bool:
        """Whether nobody will ask it anything any more."""
        return self._is_retired and self._children <= 0

    def _dismiss(self) -> None:
        """Have it end in order: after all that it has been told, which is to reap its processes.
        Those of a killed one become init's, and not every init reaps."""
        self.is_lost = True
        with contextlib.suppress(OSError):
            shut_writing(self._fd)

    def kill(self) -> None:
        """End it at once; its processes go on, and nobody will tell how they have ended."""
        self.is_lost = True
        self._signal(signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                if self._pidfd.fds:
                    signal.pidfd_send_signal(self._pidfd.fds[0], signum)
                else:
                    os.kill(self.pid, signum)

    def close(self) -> None:
        """Have it end, if it is still there, await that, free the descriptors."""
        if self._ours.are_ours and self._ours.fds:
            self._dismiss()
            self._wait()
            for _, fds in self._answers.values():
                fds.close()
        self._answers = {}
        self._theirs.close()
        self._ours.close()
        self._pidfd.close()

    def _wait(self) -> None:
        if not self.pid:
            return
        if not self._pidfd.fds:  # its end is waited for below, without a bound
            self.kill()
        elif not self._comes(self._pidfd.fds[0], time.monotonic() + END_SECONDS):
            self.kill()
            is_readable(self._pidfd.fds[0], END_SECONDS)
        with contextlib.suppress(ChildProcessError):  # somebody else has waited for all children
            os.waitpid(self.pid, os.WNOHANG if self._pidfd.fds else 0)

    def __del__(self) -> None:
        if hasattr(self, "_pidfd"):
            self.close()

    # ---- what it is asked

    def first(self) -> Born:
        """The worker that it has forked as the first thing of all. It tells so once; what it has
        told is the same if this is called again.

        Raises:
            TemplateLostError: it has not.
            OSError: no descriptor, or no process, is left.
        """
        with self._lock:
            if self._first is None:
                self._first = self._await(FIRST, ANSWER_SECONDS)
            return self._born(*self._first)

    def start(self, detail: bytes, fds: tuple[int, ...]) -> Born:
        """Have a process forked that is given this `Order`, once it is released: a byte is to be
        written to the pipe whose reading end is the first of the descriptors.

        Raises:
            TemplateLostError: there may be such a process, or not. It is not to be released, and
                nothing that was meant for it may be used for another one.
            OSError: no descriptor, or no process, is left.
        """
        with self._lock:
            number = self._ask(START, detail=detail, fds=fds)
            return self._born(*self._await(number, ANSWER_SECONDS))

    def status(self, pid: int) -> int | None:
        """How a process of its has ended, as in `multiprocessing.Process.exitcode`; None if that
        cannot be told. The process keeps its number until `reap`."""
        try:
            with self._lock:
                answer, _ = self._await(self._ask(STATUS, pid), STATUS_SECONDS)
        except (TemplateLostError, OSError):
            return None
        return answer.status

    def reap(self, pid: int) -> None:
        """This process has ended, and its number may be used again. Does not wait."""
        with contextlib.suppress(OSError):
            self._ask(REAP, pid)

    @staticmethod
    def _born(answer: Answer, fds: at_fork.Descriptors) -> Born:
        if answer.error:
            raise OSError(answer.error, os.strerror(answer.error))
        if not fds.fds:  # none was left for it here
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Born(answer.pid, fds)

    def _ask(self, what: str, pid: int = 0, detail: bytes = b"", fds: tuple[int, ...] = ()) -> int:
        if self.is_lost or not self._ours.fds:
            raise TemplateLostError("the template process has ended")
        with self._lock:
            self._asked += 1
            number = self._asked
            try:
                send(self._fd, Question(number, what, pid, detail), fds)
            except (ConnectionError, BlockingIOError) as exc:
                self.kill()
                raise TemplateLostError("the template process has ended") from exc
        return number

    def _await(self, number: int, seconds: float) -> tuple[Answer, at_fork.Descriptors]:
        """The answer to this question. One to a question further up the stack, which a signal's
        handler has interrupted, is kept."""
        deadline = time.monotonic() + seconds
        with self._lock:
            self._awaited.add(number)
            try:
                while number not in self._answers:
                    if not self._ours.fds or not self._comes(self._fd, deadline):
                        self.kill()
                        raise TemplateLostError(f"the template process {self.pid} does not answer")
                    self._take_answer()
                return self._answers.pop(number)
            finally:
                self._awaited.discard(number)

    def _take_answer(self) -> None:
        received = at_fork.Descriptors()
        try:
            with at_fork.creating():
                message, fds = receive(self._fd, DONT_WAIT)
                for fd in fds:
                    received.add(fd)
        except BlockingIOError:
            return
        except ConnectionError:
            message = None
        if message is None:
            self.kill()
            raise TemplateLostError(f"the template process {self.pid} has died")
        answer = Answer(*message)
        if answer.number in self._awaited:
            self._answers[answer.number] = answer, received
        else:
            received.close()

    def _comes(self, fd: int, deadline: float) -> bool:
        """Wait until this is readable, as long as the template can do anything for that. One that
        was stopped is continued, once."""
        pause = _FIRST_LOOK_SECONDS
        was_stopped = False
        while not is_readable(fd, min(pause, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return False
            if _is_stopped(self.pid):
                if was_stopped:
                    return False
                was_stopped = True
                self._signal(signal.SIGCONT)
            pause *= 2
        return True


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # the name in there may be any bytes
            return stat.read().rpartition(b") ")[2][:1] in b"Tt"
    except OSError:
        return False
