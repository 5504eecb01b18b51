"""Memory of processes, and its end."""

from __future__ import annotations

import os
import resource
import sys

from prefork.cgroups import control_groups, read_text

__all__ = ["OutOfMemoryKills", "ResidentMemory", "resident"]

_KIB_PER_PAGE = resource.getpagesize() // 1024


def _parse(statm: bytes) -> int:
    return int(statm.split()[1]) * _KIB_PER_PAGE


def resident(pid: int) -> int | None:
    """The resident memory of a process now, KiB; None if it has gone, or cannot be told."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return _parse(statm.read()) or None
    except OSError:
        return None


class ResidentMemory:
    """This process's own, read again and again at little cost."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def now(self) -> int:
        """KiB. Where there is no /proc: the most that it ever was."""
        if self._fd >= 0:
            return _parse(os.pread(self._fd, 128, 0))
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most // 1024 if sys.platform == "darwin" else most


class OutOfMemoryKills:
    """Tells whether the kernel has killed for lack of memory since it was last asked.

    Reads `memory.events` of our control group (v2), `memory.oom_control` (v1), or, where neither
    says anything, the machine's /proc/vmstat (Linux 4.13).
    """

    def __init__(self, root: str = "") -> None:
        files = [
            *(f"{group}/memory.events" for group in control_groups("", root)),
            *(f"{group}/memory.oom_control" for group in control_groups("memory", root)),
            f"{root}/proc/vmstat",
        ]
        self._file = next((file for file in files if _count(file) is not None), None)
        self._count = _count(self._file)

    def any_new(self) -> bool:
        before, self._count = self._count, _count(self._file)
        return before is not None and self._count is not None and self._count > before


def _count(file: str | None) -> int | None:
    if file is None:
        return None
    lines = read_text(file).splitlines()
    counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return counts[0] if counts else None
