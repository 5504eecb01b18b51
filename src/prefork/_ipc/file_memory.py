"""Files as memory, that hold no descriptor: mapped, or copied.

`mmap` keeps a duplicate of the descriptor with each mapping, so that who keeps many large results
would run out of them. It need not: Python 3.13 has a parameter for that, and before, the file is
put over an anonymous mapping that holds none. There is a limit on mappings, too (vm.max_map_count,
65,530 by default), and a process that comes near to it can neither start a thread nor get memory.
So a part of it is used, and what comes then is copied.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any

__all__ = ["file_memory", "read_into", "shared_memory"]

DEFAULT_MAX_MAPS = 65530  # where the system does not tell


def _budget() -> int:
    try:
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
            return int(file.read()) // 4
    except (OSError, ValueError):
        return DEFAULT_MAX_MAPS // 4


class _Mapping(mmap.mmap):
    """One that is counted while it lives."""

    budget = -1  # how many there may be; it is read when the first one is made
    count = 0
    is_counted = False

    @classmethod
    def may_make(cls) -> bool:
        if cls.budget < 0:
            cls.budget = _budget()
        return cls.count < cls.budget

    def begin(self) -> None:
        self.is_counted = True
        _Mapping.count += 1

    def __del__(self) -> None:
        if self.is_counted:
            _Mapping.count -= 1


def file_memory(fd: int, read_only: bool = False) -> memoryview:
    """A file's content as memory that may be written to, and that nobody else sees.

    Args:
        read_only: it may not be written to.

    Raises:
        OSError: there is no memory for it, or it is no file.
    """
    size = os.fstat(fd).st_size
    if size and _Mapping.may_make():
        try:
            return _view(_map(fd, size, read_only), read_only)
        except (OSError, ValueError, ImportError):  # the system has no mapping left, or no ctypes
            pass
    memory = memoryview(bytearray(size))
    read_into(fd, 0, memory)
    return memory.toreadonly() if read_only else memory


def shared_memory(fd: int, size: int) -> mmap.mmap:
    """The beginning of a file, as all see it. Before Python 3.13 this does hold a descriptor: what
    it would take to hold none is large to import, and there are few of these.

    Raises:
        OSError: there is no memory for it.
    """
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, trackfd=False)
    return mmap.mmap(fd, size)


def _view(mapping: _Mapping, read_only: bool) -> memoryview:
    view = memoryview(mapping)
    return view.toreadonly() if read_only else view


def _map(fd: int, size: int, read_only: bool) -> _Mapping:
    protection = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
    if sys.version_info >= (3, 13):
        mapping = _Mapping(fd, size, mmap.MAP_PRIVATE, protection, trackfd=False)
    else:
        mapping = _Mapping(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _overlay(mapping, fd, size, protection)
    mapping.begin()
    return mapping


MAP_FIXED = 0x10
_mmap_in_c: Any = None


def _overlay(mapping: _Mapping, fd: int, size: int, protection: int) -> None:
    """Put the file where this anonymous mapping is: the object goes on to own the addresses."""
    global _mmap_in_c  # noqa: PLW0603
    import ctypes  # large, and only needed for large objects; without it, the file is copied

    if _mmap_in_c is None:
        _mmap_in_c = ctypes.CDLL(None, use_errno=True).mmap
        _mmap_in_c.restype = ctypes.c_void_p
        _mmap_in_c.argtypes = [
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
            *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
        ]
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    found = _mmap_in_c(address, size, protection, mmap.MAP_PRIVATE | MAP_FIXED, fd, 0)
    if found != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def read_into(fd: int, position: int, memory: memoryview) -> None:
    """Fill memory with what is in the file there.

    Raises:
        OSError: the file is too short.
    """
    done = 0
    while done < memory.nbytes:
        count = os.preadv(fd, [memory[done:]], position + done)
        if not count:
            raise OSError("a large object is cut off")
        done += count
