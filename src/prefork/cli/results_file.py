"""The file that results go to: who may write there, and what has made what it holds.

A run that goes on with an earlier one's file must be a run of the same: beside the file `x` there
is a small one, `x.origin`, which tells the function, its source and its time limits. The file
itself holds nothing but records. Only one run at a time may write to it: it is locked (flock(2)),
and the kernel ends the lock with the process.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

from prefork._system import at_fork
from prefork.cli.records import Earlier, ResumeError

__all__ = ["Mode", "Origin", "ResultsFile", "ResultsFileError"]


class ResultsFileError(Exception):
    """Nothing can, or may, be written there; the message says why, and what to do."""


class Mode(enum.Enum):
    """What to do with a file that holds something."""

    REFUSE = enum.auto()
    OVERWRITE = enum.auto()
    RESUME = enum.auto()
    RESUME_ANYWAY = enum.auto()  # whatever has made it


class Origin(NamedTuple):
    """What makes results.

    Attributes:
        function: what is run, as it was given.
        source: a fingerprint of its source; "" if there is none.
        limits: the options that decide what becomes of an input, by their names.
    """

    function: str
    source: str
    limits: dict[str, Any]

    def differences(self, earlier: Origin) -> list[str]:
        """From another one, in words."""
        found = []
        if self.function != earlier.function:
            found.append(f"the function was {earlier.function}, and is {self.function}")
        elif self.source != earlier.source:
            found.append(f"the source of {self.function} has changed")
        for name in {**earlier.limits, **self.limits}:
            before, now = earlier.limits.get(name), self.limits.get(name)
            if before != now:
                found.append(f"{name} was {_said(before)}, and is {_said(now)}")
        return found

    def write(self, path: str) -> None:
        """As a whole or not at all."""
        new = f"{path}.new"
        try:
            with open(new, "w", encoding="utf-8") as file:
                json.dump(self._asdict(), file, indent=1)
                file.write("\n")
            os.replace(new, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            raise

    @classmethod
    def read(cls, path: str) -> Origin:
        """Raises ValueError: it holds something else."""
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        try:
            return cls(**fields)
        except TypeError:
            raise ValueError("it is no account of a run") from None


def _said(value: object) -> str:
    return "not given" if value is None else str(value)


class ResultsFile:
    """The file, open for appending and locked.

    Args:
        path: where.
        mode: what to do if it holds something.
        origin: what is about to write to it.
        is_input: whether a file of this status is one of those that are read.
        retry_failed: forget the failures that it holds, so that they are run again.

    Attributes:
        fd: to write to. Forked workers do not keep it: the lock would be theirs, too.
        earlier: what it holds.

    Raises:
        ResultsFileError: it cannot be written to; it holds something, and is not to be touched; it
            was made by something else; or another run is writing to it.
        ResumeError: it holds something other than records.
    """

    def __init__(
        self,
        path: str,
        mode: Mode,
        origin: Origin,
        is_input: Callable[[os.stat_result], bool],
        retry_failed: bool = False,
    ) -> None:
        self.path = path
        self.earlier = Earlier()
        self._descriptors = at_fork.Descriptors()
        try:
            self._open(mode, origin, is_input, retry_failed)
        except OSError as exc:
            self._descriptors.close()
            raise ResultsFileError(f"cannot write to {path}: {exc.strerror}") from None
        except BaseException:
            self._descriptors.close()
            raise

    @property
    def fd(self) -> int:
        return self._descriptors.fds[0]

    def _open(
        self,
        mode: Mode,
        origin: Origin,
        is_input: Callable[[os.stat_result], bool],
        retry_failed: bool,
    ) -> None:
        path = self.path
        status = self._lock()
        if not stat.S_ISREG(status.st_mode):
            if mode in (Mode.RESUME, Mode.RESUME_ANYWAY):
                raise ResumeError(f"{path} is not a file that can be resumed")
            return
        if is_input(status):
            raise ResultsFileError(f"{path} is an input: the output must be another file")
        if status.st_size:
            if mode is Mode.REFUSE:
                raise ResultsFileError(
                    f"{path} exists: --resume goes on with what it holds, --overwrite replaces it"
                )
            if mode is Mode.OVERWRITE:
                os.ftruncate(self.fd, 0)
            else:
                if mode is Mode.RESUME:
                    self._check_origin(origin)
                self.earlier = Earlier.read(path)
                if retry_failed:
                    self._forget_failures()
        origin.write(self._origin_path)

    @property
    def _origin_path(self) -> str:
        return f"{self.path}.origin"

    def _lock(self) -> os.stat_result:
        """Open and lock it, until what is locked is what the path leads to: a run that forgets
        failures puts another file in its place."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        while True:
            with at_fork.creating():
                fd = self._descriptors.make(os.open, self.path, flags, 0o666)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return status
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResultsFileError(f"another run is writing to {self.path}") from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self.path), status):
                    return os.fstat(fd)
            self._descriptors.remove(fd)

    def _check_origin(self, origin: Origin) -> None:
        try:
            differences = origin.differences(Origin.read(self._origin_path))
        except FileNotFoundError:
            raise ResultsFileError(
                f"{self._origin_path} is gone, so nobody knows what has made {self.path}: "
                "--resume-anyway takes it as it is"
            ) from None
        except ValueError as exc:
            raise ResultsFileError(
                f"{self._origin_path} cannot be understood: {exc}; --resume-anyway takes "
                f"{self.path} as it is"
            ) from None
        if differences:
            raise ResultsFileError(
                f"{self.path} holds the results of something else: {'; '.join(differences)}. "
                "--resume-anyway goes on all the same, --overwrite begins anew"
            )

    def _forget_failures(self) -> None:
        """Put a file without them in its place, as a whole or not at all."""
        if not self.earlier.failed:
            return
        path = f"{self.path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        with at_fork.creating():
            fd = self._descriptors.make(os.open, path, flags, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.fchmod(fd, stat.S_IMODE(os.fstat(self.fd).st_mode))
            with open(fd, "wb", closefd=False) as new:
                new.writelines(Earlier.lines_that_came_through(self.path))
                new.flush()
                os.fsync(fd)
            os.replace(path, self.path)
        except BaseException:
            os.unlink(path)
            raise
        self._descriptors.remove(self.fd)
        self.earlier.forget_failures()
