"""The most memory that a family of processes had: run as a program beside it.

A thread inside the measured process would stand still while that pickles. Usage: the process id
of the family's head as the argument; prints a line when it has begun; when its standard input
ends, prints by how many bytes the family's memory had grown at most.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys

from benchmarks.side_by_side.meters import descendants, memory_of, open_memory_files

PAUSE = 0.0005  # seconds between looks


def family_memory(pids: list[int]) -> int:
    """Private memory, and that of memory files: mapped, or only open (each once)."""
    private = mapped = 0
    files: dict[tuple[int, int], int] = {}
    for pid in pids:
        memory = memory_of(pid)
        private += memory.anonymous
        mapped += memory.shared
        files |= open_memory_files(pid)
    return private + max(mapped, sum(files.values()))


def main(head: int) -> None:
    pids = [pid for pid in [head, *descendants(head)] if pid != os.getpid()]
    before = most = family_memory(pids)
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        most = max(most, family_memory(pids))
    print(most - before, flush=True)


class PeakMemory:
    """How many bytes the memory of this process and its descendants grew at most in a `with`
    block."""

    peak = 0

    def __enter__(self) -> PeakMemory:
        self._program = subprocess.Popen(
            [sys.executable, "-m", __name__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._program.stdout is not None
        self._program.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        out, _error = self._program.communicate()
        self.peak = int(out)


if __name__ == "__main__":
    main(int(sys.argv[1]))
