"""The file that a page is written to: as a whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

__all__ = ["MARK", "check", "write"]

MARK = '<meta name="generator" content="prefork report'
"""What a page of ours has near its beginning."""


def check(path: str) -> None:
    """That a page can be written there.

    Raises:
        FileExistsError: what is there is something else, and shall stay.
        OSError: it cannot.
    """
    target = os.path.realpath(path)
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(target)
        if not stat.S_ISREG(status.st_mode):
            raise FileExistsError(errno.EEXIST, "this is no file", path)
        if status.st_size and not _is_page(target):
            raise FileExistsError(errno.EEXIST, "it exists, and is no report", path)
    new = _new(target)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
    os.unlink(new)


def write(path: str, page: str) -> None:
    """
    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    target = os.path.realpath(path)
    new = _new(target)
    try:
        with open(new, "wb") as file:
            file.write(page.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def _new(path: str) -> str:
    return f"{path}.{os.getpid()}.new"  # nobody else's


def _is_page(path: str) -> bool:
    with open(path, "rb") as file:
        return MARK.encode() in file.read(1000)
