"""Pools and their workers as tables, for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from rich.table import Table
from rich.text import Text

from prefork._observe.rates import clock, per_second
from prefork.cli.sightings import PoolSeen, WorkerSeen

__all__ = ["ORDERS", "Row", "failures", "pools_table", "rows", "workers_table"]


class Row(NamedTuple):
    """A worker, and its pool."""

    pool: PoolSeen
    worker: WorkerSeen

    def matches(self, text: str) -> bool:
        """Whether its line has this in it, whatever the case."""
        its = (self.worker.pid, self.worker.state, self.worker.function, self.pool.program)
        return any(text.lower() in str(each).lower() for each in its)


ORDERS: Final[dict[str, Callable[[Row], object]]] = {
    "time": lambda row: -(row.worker.seconds or -1.0),
    "cpu": lambda row: -(row.worker.cpu or 0.0),
    "memory": lambda row: -(row.worker.memory or 0),
    "tasks": lambda row: -row.worker.tasks,
    "pid": lambda row: row.worker.pid,
    "function": lambda row: row.worker.function or "\uffff",
}
"""How workers can be sorted; the first is what is done unasked."""


def rows(pools: Sequence[PoolSeen], order: str = "time", text: str = "") -> list[Row]:
    """All workers that match the text."""
    found = [Row(pool, worker) for pool in pools for worker in pool.workers]
    return sorted(
        (row for row in found if row.matches(text)),
        key=lambda row: (ORDERS[order](row), row[1].pid),
    )


def pools_table(pools: Sequence[PoolSeen], in_lines: bool = False) -> Table:
    """
    Args:
        in_lines: each takes one line, whatever is cut off.
    """
    table = _table()
    for name in ("PID", "POOL", "WORKERS", "QUEUED", "RATE", "DONE", "FAILED", "ENDED"):
        table.add_column(name, justify="right")
    table.add_column("STATE")
    table.add_column("PROGRAM", ratio=1, min_width=8, no_wrap=in_lines)
    for pool in pools:
        numbers = [str(pool.address.pid), str(pool.address.number)]
        if pool.answer is None:
            table.add_row(*numbers, *[""] * 6, Text("?"), Text(f"{pool.problem}; {pool.program}"))
            continue
        busy = sum(worker.state == "busy" for worker in pool.workers)
        table.add_row(
            *numbers,
            f"{busy}/{len(pool.workers)}",
            *(short(pool.answer.get("queued")),),
            "" if pool.rate is None else per_second(pool.rate),
            *(short(pool.answer.get(name)) for name in ("finished", "failed", "ended")),
            Text(str(pool.answer.get("phase", "?"))),
            Text(pool.program),
        )
    return table


def workers_table(
    found: Sequence[Row],
    chosen: int | None = None,
    order: str = "",
    first: int = 0,
    in_lines: bool = False,
) -> Table:
    """
    Args:
        chosen: the number of the row that is marked.
        order: the column that they are sorted by.
        first: the number of the first row.
        in_lines: each takes one line, whatever is cut off.
    """
    table = _table()
    names = ("pid", "state", "cpu", "memory", "time", "tasks", "job", "function")
    for name in names:
        title = {"cpu": "CPU%", "memory": "MEM"}.get(name, name.upper())
        right = name not in ("state", "function")
        table.add_column(
            f"{title}↓" if name == order else title,
            justify="right" if right else "left",
            ratio=None if name != "function" else 1,
            no_wrap=in_lines,
        )
    for number, (_, worker) in enumerate(found, first):
        style = "reverse" if number == chosen else "dim" if worker.state == "idle" else ""
        table.add_row(
            str(worker.pid),
            worker.state,
            "" if worker.cpu is None else f"{100 * worker.cpu:.0f}",
            "" if worker.memory is None else memory(worker.memory),
            "" if worker.seconds is None else since(worker.seconds),
            short(worker.tasks),
            "" if worker.job is None else str(worker.job),
            Text(worker.function),
            style=style,
        )
    return table


def failures(pools: Sequence[PoolSeen]) -> str:
    """How many jobs have failed, by kinds; "": none."""
    counts: dict[str, int] = {}
    for pool in pools:
        for kind, count in ((pool.answer or {}).get("failures") or {}).items():
            counts[kind] = counts.get(kind, 0) + int(count)
    told = (f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items() if count)
    return ", ".join(told)


def _table() -> Table:
    return Table(box=None, pad_edge=False, expand=True, padding=(0, 1, 0, 0), header_style="bold")


def short(number: object) -> str:
    """For people: "1234", "12.3k", "4.5M"."""
    if not isinstance(number, int):
        return "?"
    if number < 10_000:
        return str(number)
    return f"{number / 1e3:.1f}k" if number < 1_000_000 else f"{number / 1e6:.1f}M"


def memory(kib: int) -> str:
    return f"{kib / 1024:.0f}M" if kib < 10 << 20 else f"{kib / (1 << 20):.1f}G"


def since(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}s"
    return f"{seconds // 60:.0f}m{seconds % 60:02.0f}s" if seconds < 3600 else clock(seconds)
