"""CPU time, memory and wake-ups of a process and its descendants, from /proc."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

KIB = 1024


def _parents() -> dict[int, int]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_bytes()  # names may be cut within a letter
            except OSError:
                continue  # it has ended meanwhile
            found[int(name)] = int(stat.rpartition(b") ")[2].split()[1])
    return found


def descendants(root: int | None = None) -> list[int]:
    """The processes that this one (or `root`) has started, directly or not."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    generation = [os.getpid() if root is None else root]
    while generation:
        generation = [child for pid in generation for child in children.get(pid, ())]
        found += generation
    return found


def _cpu_seconds(pid: int) -> float:
    """Of a process's present threads. The scheduler's own account is in nanoseconds; that of
    `stat` is in ticks of 10 ms, too coarse for many workers."""
    total = 0
    try:
        for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total += int(schedstat.read_text().split()[0])
    except OSError:
        pass
    return total / 1e9


def _family_cpu() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + sum(map(_cpu_seconds, descendants()))


class Cost:
    """What a `with` block took: `wall` seconds, and `cpu` seconds of this process and all its
    descendants. They must be there when it begins."""

    wall = 0.0
    cpu = 0.0

    def __enter__(self) -> Cost:
        self._cpu = _family_cpu()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = _family_cpu() - self._cpu

    def per(self, tasks: int) -> dict[str, float]:
        return {"wall": self.wall / tasks, "cpu": self.cpu / tasks}


class Memory(NamedTuple):
    """Bytes. Pages that several processes share are divided among them (PSS)."""

    total: int
    anonymous: int
    shared: int  # of memfds and /dev/shm


def memory_of(pid: int) -> Memory:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return Memory(0, 0, 0)
    lines = [line.split() for line in text.splitlines()[1:]]
    sizes = {words[0]: int(words[1]) * KIB for words in lines}
    return Memory(sizes["Pss:"], sizes["Pss_Anon:"], sizes["Pss_Shmem:"])


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that a process has now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def available() -> int:
    """Bytes that programs could still take without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * KIB
    raise OSError("/proc/meminfo has no MemAvailable")


def open_memory_files(pid: int) -> dict[tuple[int, int], int]:
    """Bytes of the memfds and the files in /dev/shm that a process holds open, by their identity.

    Their memory exists whether anybody maps it or not.
    """
    found: dict[tuple[int, int], int] = {}
    try:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(fd).startswith(("/memfd:", "/dev/shm/")):
                status = fd.stat()
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    except OSError:
        pass  # it, or the descriptor, has gone meanwhile
    return found


def waits() -> int:
    """How often the threads of this process and its descendants have begun to wait until now."""
    return sum(_switches("voluntary_ctxt_switches:").values())


def wake_ups() -> int:
    """How often the threads of this process, without its main thread, and those of its
    descendants have been switched to until now."""
    switches = _switches("voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:")
    return sum(count for thread, count in switches.items() if thread != os.getpid())


def _switches(*kinds: str) -> dict[int, int]:
    """By thread."""
    found = {}
    for pid in [os.getpid(), *descendants()]:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            try:
                lines = status.read_text(errors="replace").splitlines()
            except OSError:
                continue  # it has ended meanwhile
            words = map(str.split, lines)
            found[int(status.parent.name)] = sum(int(w[1]) for w in words if w and w[0] in kinds)
    return found
