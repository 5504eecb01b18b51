"""A command of the system, once for each input: what `prefork run` does in a worker.

It is started by posix_spawn(3), which copies nothing of this process. A time limit ends it with all
that it has started: its descendants, and whoever has its mark in the environment, which those that
have left its process group, and their parents, still have.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

from prefork._describe import describe_exit
from prefork._system.kernel import HAS_PIDFD
from prefork.cli.target import TargetError
from prefork.cli.template import Template
from prefork.cli.work import WorkFailed

__all__ = ["External", "kill_marked"]

MARK = "PREFORK_RUN"  # the variable, with a mark for each command that a process is part of
LINGERING = 0.2  # seconds after its end, for what others still write that it has started
LOOKING = 0.1  # seconds between two looks at its memory, if that is limited
ROUNDS = 100  # of looking for processes to kill
EXEC = 0.01  # seconds until the next round, if one was in execve(2)
_KERNELS = 0x200000  # the flag of the kernel's own threads, which have no environment
_BLOCK = 1 << 16
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NO_INPUT = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
_IGNORED_HERE = (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True)
class External:
    """
    Attributes:
        words: of the command, with placeholders.
        shell: they are a script.
        timeout, soft_timeout: seconds until it is killed, and until it gets SIGTERM.
        max_memory: KiB that all its processes may have resident.
        max_output: bytes of each stream that are kept.
        captures: what it prints becomes part of the result.
    """

    keeps_limits: ClassVar[bool] = True
    tells_memory: ClassVar[bool] = True

    words: tuple[str, ...]
    shell: bool
    timeout: float | None
    soft_timeout: float | None
    max_memory: int | None
    max_output: int
    captures: bool
    mark: str  # all that is started has it in its environment

    def __str__(self) -> str:
        return " ".join(self.words)

    def check(self) -> str:
        program = Template([*self.words], self.shell).program
        if "{" in program:  # it depends on the input
            return ""
        if (found := shutil.which(program)) is None:
            raise TargetError(f"there is no command {program!r}")
        return os.path.realpath(found)

    def terms(self) -> dict[str, Any]:
        return {"shell": self.shell or None, "max_output": self.max_output}

    def named(self) -> object:
        return SimpleNamespace(__module__="", __qualname__=str(self))

    def load(self) -> Callable[[int, Any], Any]:
        return _Commands(self)

    def end(self) -> None:
        kill_marked(self.mark.encode(), signal.SIGKILL)


class _Commands:
    def __init__(self, asked: External) -> None:
        self._asked = asked
        self._template = Template([*asked.words], asked.shell)
        self._environ = os.environb.copy()
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # that of the folder
                os.set_inheritable(fd, fd <= 2)  # a fork server's may be

    def __call__(self, number: int, value: Any) -> dict[str, Any]:
        text = value if isinstance(value, str) else json.dumps(value)
        mark = b"%b.%d.%d;" % (self._asked.mark.encode(), number, time.monotonic_ns())
        self._environ[MARK.encode()] = os.environb.get(MARK.encode(), b"") + mark
        process = _Process(self._template.fill(number, text), self._environ, mark, self._asked)
        try:
            limit = process.wait()
        finally:
            process.close()
        return process.account(limit)


class _Kept:
    """The first and the last bytes of an output, at most so many in all."""

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._size = 0

    def add(self, data: bytes) -> None:
        self._size += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self._half:  # not each time: that would copy it each time
            del self._tail[: len(self._tail) - self._half]

    def text(self) -> str:
        if len(self._tail) > self._half:
            del self._tail[: len(self._tail) - self._half]
        left_out = self._size - len(self._head) - len(self._tail)
        note = b"\n[%d bytes are left out]\n" % left_out if left_out else b""
        return (self._head + note + self._tail).decode("utf-8", "backslashreplace")


class _Process:
    """One command that runs.

    Raises:
        WorkFailed: it cannot be started.
    """

    def __init__(self, argv: list[str], environ: Any, mark: bytes, asked: External) -> None:
        self._asked = asked
        self._mark = mark
        self._streams: dict[int, _Kept] = {}  # by the descriptors to read them from
        self._kept = [_Kept(asked.max_output), _Kept(asked.max_output)]
        self._own_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._status: int | None = None
        theirs = []
        try:
            for kept in self._kept if asked.captures else ():
                reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                os.set_blocking(writer, True)
                self._streams[reader] = kept
                theirs.append(writer)
            outputs = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(theirs, 1)]
            self._started = time.monotonic()
            self._pid = os.posix_spawnp(
                argv[0], argv, environ,
                file_actions=[_NO_INPUT, *outputs], setsigmask=(), setsigdef=_IGNORED_HERE,
            )  # fmt: skip
            self._ended = self._watch()
        except (OSError, ValueError) as exc:
            self._close_streams()
            reason = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise WorkFailed("CommandNotStarted", f"cannot run {argv[0]!r}: {reason}") from None
        finally:
            for fd in theirs:
                os.close(fd)

    def _watch(self) -> int:
        """A descriptor that is readable when it has ended."""
        try:
            return os.pidfd_open(self._pid) if HAS_PIDFD else self._watch_in_a_thread()
        except OSError:  # no descriptor is left
            self._kill(signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise

    def _watch_in_a_thread(self) -> int:
        ended, told = os.pipe2(os.O_CLOEXEC)

        def watch(pid: int) -> None:
            with contextlib.suppress(ChildProcessError):  # it has been reaped already
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            os.close(told)

        threading.Thread(target=watch, args=(self._pid,), daemon=True).start()
        return ended

    def wait(self) -> str:
        """Until it has ended. Returns which limit it has passed, or ""."""
        asked, limit = self._asked, ""
        soft, hard = asked.soft_timeout, asked.timeout
        poll = select.poll()
        for fd in (self._ended, *self._streams):
            poll.register(fd, select.POLLIN)
        until = None  # it has ended, and others may write until then
        while self._streams or until is None:
            now = time.monotonic() - self._started
            dates = [date for date in (soft, hard, until) if date is not None]
            if asked.max_memory is not None:
                dates.append(now + LOOKING)
            patience = max(0.0, min(dates) - now) * 1000 + 1 if dates else None
            for fd, _ in poll.poll(patience):
                if fd == self._ended:
                    poll.unregister(fd)
                    until, soft, hard = time.monotonic() - self._started + LINGERING, None, None
                elif not self._read(fd):
                    poll.unregister(fd)
                    del self._streams[fd]
                    os.close(fd)
            now = time.monotonic() - self._started
            if until is not None:
                if now >= until:
                    break
            elif hard is not None and now >= hard:
                limit, soft, hard = "TimeLimitExceeded", None, None
                self._kill(signal.SIGKILL)
            elif soft is not None and now >= soft:
                limit, soft = "SoftTimeLimitExceeded", None
                self._kill(signal.SIGTERM)
            elif asked.max_memory is not None and self._resident() > asked.max_memory:
                limit = "MemoryLimitExceeded"
                self._kill(signal.SIGKILL)
        if limit:
            self._kill(signal.SIGKILL)  # what it has left behind
        return limit

    def _read(self, fd: int) -> bool:
        """Whether more may come."""
        try:
            data = os.read(fd, _BLOCK)
        except BlockingIOError:
            return True
        self._streams[fd].add(data)
        return bool(data)

    def _kill(self, signum: signal.Signals) -> None:
        kill_marked(self._mark, signum, self._pid)

    def _resident(self) -> int:
        """KiB, of all its processes."""
        pages = 0
        for pid in _look(self._mark, self._pid)[0]:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as file:
                pages += int(file.read().split()[1])
        return pages * _PAGE // 1024

    def close(self) -> None:
        """Reap it; it is killed if it has not ended."""
        self._close_streams()
        os.close(self._ended)
        if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            self._kill(signal.SIGKILL)
        _, self._status, self._usage = os.wait4(self._pid, 0)

    def _close_streams(self) -> None:
        for fd in self._streams:
            os.close(fd)
        self._streams.clear()

    def account(self, limit: str) -> dict[str, Any]:
        """What has become of it.

        Raises:
            WorkFailed: it has failed.
        """
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        out, err = (kept.text() for kept in self._kept)
        # What this process had at its start counts as its own, as the kernel has it.
        peak = self._usage.ru_maxrss if self._usage.ru_maxrss > self._own_memory else None
        told: dict[str, Any] = {"exit_code": code}
        if self._asked.captures:
            told |= {"stdout": out, "stderr": err}
        told["peak_memory"] = None if peak is None else peak * 1024
        if limit:
            raise WorkFailed(limit, self._said_of(limit), **told)
        if code:
            last = err.rstrip().rpartition("\n")[2]
            message = f"it {describe_exit(code)}" + (f": {last}" if last else "")
            raise WorkFailed("CommandFailed", message, **told)
        return told

    def _said_of(self, limit: str) -> str:
        asked = self._asked
        if limit == "MemoryLimitExceeded":
            return f"it had more than {asked.max_memory} KiB of memory resident, so it was killed"
        if limit == "TimeLimitExceeded":
            return f"it ran for more than {asked.timeout:g} s, so it was killed"
        return f"it ran for more than {asked.soft_timeout:g} s, so it was sent SIGTERM"


def kill_marked(mark: bytes, signum: signal.Signals, root: int = 0) -> None:
    """Signal all processes of a mark, and the descendants of one, until there is no other one."""
    seen: set[int] = set()
    for _ in range(ROUNDS):
        marked, hidden = _look(mark, root)
        found = [pid for pid in marked if pid not in seen]
        if not found and not hidden:
            return
        if not found:
            time.sleep(EXEC)
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signum)
        seen.update(found)


def _look(mark: bytes, root: int) -> tuple[list[int], bool]:
    """Those that run, the first one first: what is left of others has no parent any more. And
    whether there are some whose environment cannot be seen now, since they are in execve(2)."""
    parents: dict[int, int] = {}
    found = set()
    hidden = False
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
            if fields[0] in (b"Z", b"X"):
                continue
            parents[int(name)] = int(fields[1])
            with open(f"/proc/{name}/environ", "rb") as file:
                environ = file.read()
            if mark in environ:
                found.add(int(name))
            elif not environ and not int(fields[6]) & _KERNELS:
                start, end = fields[47:49]
                hidden |= end == b"0" or start != end
    if root in parents:
        found.add(root)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()}, key=lambda pid: pid != root), hidden
