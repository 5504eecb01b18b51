"""Memory of processes, and its end."""

from __future__ import annotations

import math
import os
import resource
import sys
import time

__all__ = [
    "ControlGroups",
    "OutOfMemoryKills",
    "ResidentMemory",
    "available_cpus",
    "raise_descriptor_limit",
    "read_text",
    "resident",
    "restore_descriptor_limit",
]

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


_soft_limit: int | None = None  # of descriptors, before it was raised here


def raise_descriptor_limit(needed: int) -> tuple[int, int]:
    """Have this process be allowed so many descriptors, if the hard limit allows that.

    Returns:
        The soft and the hard limit, as they are now.
    """
    global _soft_limit  # noqa: PLW0603
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > soft != resource.RLIM_INFINITY:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if wanted > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            if _soft_limit is None:
                _soft_limit = soft
            soft = wanted
    return soft, hard


def restore_descriptor_limit() -> None:
    """In a forked child: the soft limit is what it was before this raised it."""
    if _soft_limit is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_soft_limit, hard), hard))


TELLING_SECONDS = 1.0
"""Who was killed is found to be dead within that. Later, it must have been something else."""


class OutOfMemoryKills:
    """Tells whether the kernel has killed for lack of memory since it was last asked.

    Reads `memory.events` of our control group (v2), `memory.oom_control` (v1), or, where neither
    says anything, the machine's /proc/vmstat (Linux 4.13).
    """

    def __init__(self, root: str = "") -> None:
        groups = ControlGroups(root)
        files = [
            *(f"{group}/memory.events" for group in groups.of("")),
            *(f"{group}/memory.oom_control" for group in groups.of("memory")),
            f"{root}/proc/vmstat",
        ]
        counts = ((file, _count(file)) for file in files)
        self._untold = 0
        self._until = 0.0  # monotonic
        self._file, self._count = next((each for each in counts if each[1] is not None), ("", None))

    def any_new(self) -> bool:
        """Whether there was one that nobody has been told of: several at once are told to as many
        as ask within a second."""
        before, self._count = self._count, _count(self._file)
        now = time.monotonic()
        if before is not None and self._count is not None and self._count > before:
            self._untold, self._until = self._count - before, now + TELLING_SECONDS
        if not self._untold or now > self._until:
            return False
        self._untold -= 1
        return True


def _count(file: str) -> int | None:
    lines = read_text(file).splitlines()
    counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return counts[0] if counts else None


class ControlGroups:
    """Those that this process is in now (cgroups(7))."""

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._lines = read_text(f"{root}/proc/self/cgroup").splitlines()

    def of(self, controller: str) -> list[str]:
        """The folders of the group of a v1 controller ("": of v2), and of those above it: none if
        there is no such hierarchy."""
        for line in self._lines:
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                names = [name for name in path.split("/") if name]
                top = f"{self._root}/sys/fs/cgroup/{controller}".rstrip("/")
                return ["/".join([top, *names[:depth]]) for depth in range(len(names), -1, -1)]
        return []


def read_text(path: str) -> str:
    """The content of a file, or "" if it cannot be read. Names in there may be any bytes."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def available_cpus(root: str = "") -> int:
    """The CPUs of the affinity mask, or fewer if a control group's quota allows less; at least 1.

    The quota is that of this process's control group or the tightest above it: `cpu.max` of
    cgroup v2, `cpu.cfs_quota_us` and `cpu.cfs_period_us` of v1 (cgroups(7)). A quota of 1.5 CPUs
    counts as 2, so that it can be used up.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        cpus = os.process_cpu_count() or 1
    else:
        try:
            cpus = len(os.sched_getaffinity(0))
        except (AttributeError, OSError):  # not on this system, or not in this sandbox
            cpus = os.cpu_count() or 1
    quota = _quota(root)
    return max(1, min(cpus, math.ceil(quota))) if quota else cpus


def _quota(root: str) -> float | None:
    groups = ControlGroups(root)
    quotas = [*map(_quota_v2, groups.of("")), *map(_quota_v1, groups.of("cpu"))]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(group: str) -> float | None:
    fields = read_text(f"{group}/cpu.max").split()
    return int(fields[0]) / int(fields[1]) if fields and fields[0] != "max" else None


def _quota_v1(group: str) -> float | None:
    quota, period = read_text(f"{group}/cpu.cfs_quota_us"), read_text(f"{group}/cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None
