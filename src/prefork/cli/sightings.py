"""What is seen of the pools of this machine: their own answers, and what the system tells of their
processes."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

from prefork._inspection import asking
from prefork._inspection.asking import AskingError
from prefork._inspection.questions import Address
from prefork._system.resources import read_text, resident

__all__ = ["PoolSeen", "Watcher", "WorkerSeen", "stacks_of"]

_TICKS = os.sysconf("SC_CLK_TCK")  # of a CPU's time, per second


class WorkerSeen(NamedTuple):
    """One worker; its pool's process has told most of it.

    Attributes:
        seconds: how long it has been running its job; None: it runs none.
        cpu: the share of one CPU that it had since the last look, or else since its start.
        memory: KiB.
    """

    pid: int
    state: str
    job: int | None
    function: str
    seconds: float | None
    tasks: int
    cpu: float | None
    memory: int | None


class PoolSeen(NamedTuple):
    """One pool.

    Attributes:
        program: the command line of its process.
        answer: what it tells of itself; None: nothing.
        problem: why, if it does not.
        rate: jobs per second since the last look, if there was one.
    """

    address: Address
    program: str
    answer: dict[str, Any] | None
    problem: str
    workers: list[WorkerSeen]
    rate: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what the pool tells, and what the system does."""
        uid, pid, number = self.address
        head = {"pid": pid, "pool": number, "uid": uid, "program": self.program}
        if self.answer is None:
            return {**head, "problem": self.problem}
        seen = {worker.pid: worker for worker in self.workers}
        workers = [
            {**told, "memory": seen[told["pid"]].memory, "cpu": seen[told["pid"]].cpu}
            for told in self.answer["workers"]
        ]
        return {**head, **self.answer, "workers": workers, "jobs_per_second": self.rate}


class Watcher:
    """Looks again and again; what has been since the last look is told as a rate.

    Args:
        pid: of the process whose pools are looked at; None: all pools that there are.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid
        self._done: dict[Address, tuple[float, int]] = {}  # when, how many jobs
        self._cpu: dict[int, tuple[float, float]] = {}  # by process: when, seconds until then

    def look(self) -> list[PoolSeen]:
        """
        Raises:
            AskingError: there is nothing to look at.
        """
        answers = asking.ask_all(asking.find(self._pid))
        before, self._cpu = self._cpu, {}
        seen = [self._see(address, answers[address], before) for address in sorted(answers)]
        self._done = {address: done for address, done in self._done.items() if address in answers}
        return seen

    def _see(
        self,
        address: Address,
        answer: dict[str, Any] | AskingError,
        before: dict[int, tuple[float, float]],
    ) -> PoolSeen:
        program = printable(read_text(f"/proc/{address.pid}/cmdline").replace("\0", " ").strip())
        if isinstance(answer, AskingError):
            return PoolSeen(address, program, None, printable(str(answer)), [])
        try:
            if error := answer.get("error"):
                return PoolSeen(address, program, None, printable(str(error)), [])
            workers = [self._see_worker(told, answer, before) for told in answer["workers"]]
            return PoolSeen(address, program, answer, "", workers, self._rate(address, answer))
        except (KeyError, TypeError, ValueError, AttributeError):
            problem = "it answers what cannot be understood: is it another version of prefork?"
            return PoolSeen(address, program, None, problem, [])

    def _see_worker(
        self, told: dict[str, Any], answer: dict[str, Any], before: dict[int, tuple[float, float]]
    ) -> WorkerSeen:
        pid = int(told["pid"])
        since = told["since"]
        return WorkerSeen(
            pid,
            printable(str(told["state"])),
            told["job"],
            printable(told["function"] or ""),
            None if since is None else max(0.0, float(answer["monotonic"]) - float(since)),
            int(told["tasks"]),
            self._share(pid, before.get(pid)),
            resident(pid),
        )

    def _rate(self, address: Address, answer: dict[str, Any]) -> float | None:
        now, done = float(answer["monotonic"]), int(answer["finished"]) + int(answer["failed"])
        last = self._done.get(address)
        self._done[address] = now, done
        return (done - last[1]) / (now - last[0]) if last and now > last[0] else None

    def _share(self, pid: int, before: tuple[float, float] | None) -> float | None:
        fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) < 20:
            return None
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        used = (int(fields[11]) + int(fields[12])) / _TICKS
        self._cpu[pid] = now, used
        then, earlier = before or (int(fields[19]) / _TICKS, 0.0)
        return (used - earlier) / (now - then) if now > then else None


def stacks_of(pid: int) -> dict[int, str]:
    """The Python stacks of the workers of this process, by their process ids; or of this worker.

    Raises:
        AskingError: there is no such process, or no pool in it that tells.
    """
    try:
        addresses = asking.find(pid)
    except AskingError as exc:
        if (pool := _pool_of(pid)) is None:
            raise exc from None
        return asking.stacks(pool, [pid])
    found: dict[int, str] = {}
    for address in addresses:
        answer = asking.ask(address)
        try:
            pids = [int(told["pid"]) for told in answer["workers"]]
        except (KeyError, TypeError, ValueError):
            raise AskingError(f"process {pid} has another version of prefork") from None
        found |= asking.stacks(address, pids)
    return found


def _pool_of(worker: int) -> Address | None:
    """Its pool's process has started it, or another process of the pool's has, which that one has
    started."""
    pid = worker
    for _ in range(2):
        fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) < 2:
            return None
        pid = int(fields[1])
        try:
            answers = asking.ask_all(asking.find(pid))
        except AskingError:
            continue
        for address, answer in answers.items():
            if isinstance(answer, dict) and any(
                told.get("pid") == worker for told in answer.get("workers", ())
            ):
                return address
    return None


def printable(text: str) -> str:
    """For a terminal: names and texts of other programs may have anything in them."""
    return "".join(c if c.isprintable() else "?" for c in text)
