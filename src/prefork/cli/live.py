"""The view of `prefork top`, which is drawn anew once in a while, and when a key is pressed."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from prefork._inspection import asking
from prefork._inspection.asking import AskingError
from prefork.cli import keys
from prefork.cli.sightings import PoolSeen, Watcher, printable, stacks_of
from prefork.cli.tables import ORDERS, Row, failures, pools_table, rows, workers_table

__all__ = ["Top"]

POOLS_SHOWN: Final = 5
HELP: Final = {
    "list": "q quit  s sort  / filter  up, down choose  enter stack  k end its job",
    "filter": "enter keep  escape drop",
    "stack": "escape back  up, down scroll  r look again",
    "confirm": "y end it  any other key: no",
}


class Mode(enum.Enum):
    LIST = "list"
    FILTER = "filter"  # its text is being typed
    STACK = "stack"  # of the chosen worker
    CONFIRM = "confirm"  # that a job is to be ended


class Top:
    """
    Args:
        watcher: looks at the pools.
        interval: seconds between two looks.
    """

    def __init__(self, watcher: Watcher, console: Console, interval: float) -> None:
        self._watcher = watcher
        self._console = console
        self._interval = interval
        self._mode = Mode.LIST
        self._order = next(iter(ORDERS))
        self._filter = ""
        self._chosen: int | None = None  # the process id of a worker
        self._pools: Sequence[PoolSeen] = ()
        self._rows: list[Row] = []
        self._message = ""
        self._ending: Row | None = None  # whose job is to be ended
        self._stack: list[str] = []
        self._scrolled = 0

    def run(self, typed: keys.Keys) -> None:
        """Until the key for that is pressed, or what was looked at has gone.

        Raises:
            AskingError: there is nothing to look at.
        """
        self._look()
        with Live(self._view(), console=self._console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(self._view(), refresh=True)
                due = time.monotonic() + self._interval
                while (key := typed.next(max(0.0, due - time.monotonic()))) is not None:
                    if key == keys.END or not self._press(key):
                        return
                    live.update(self._view(), refresh=True)
                self._look()

    def _look(self) -> None:
        self._pools = self._watcher.look()
        self._arrange()

    def _arrange(self) -> None:
        self._rows = rows(self._pools, self._order, self._filter)

    # ---- keys

    def _press(self, key: str) -> bool:
        """Whether it goes on."""
        self._message = ""
        if self._mode is Mode.FILTER:
            self._edit(key)
        elif self._mode is Mode.CONFIRM:
            self._confirm(key)
        elif self._mode is Mode.STACK:
            self._scroll(key)
        else:
            return self._choose(key)
        return True

    def _choose(self, key: str) -> bool:
        if key in ("q", "Q"):
            return False
        if key == "s":
            orders = list(ORDERS)
            self._order = orders[(orders.index(self._order) + 1) % len(orders)]
        elif key == "/":
            self._mode, self._filter = Mode.FILTER, ""
        elif key == keys.ESCAPE:
            self._filter = ""
        elif key in (keys.UP, keys.DOWN) and self._rows:
            here = self._place()
            step = 1 if key == keys.DOWN else -1
            place = 0 if here is None else min(max(0, here + step), len(self._rows) - 1)
            self._chosen = self._rows[place].worker.pid
        elif key == keys.ENTER:
            self._show_stack()
        elif key == "k":
            self._ask_to_end()
        self._arrange()
        return True

    def _edit(self, key: str) -> None:
        if key in (keys.ENTER, keys.ESCAPE):
            self._mode = Mode.LIST
            self._filter = "" if key == keys.ESCAPE else self._filter
        elif key == keys.BACKSPACE:
            self._filter = self._filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self._filter += key
        self._arrange()

    def _scroll(self, key: str) -> None:
        if key in (keys.ESCAPE, "q", keys.ENTER):
            self._mode = Mode.LIST
        elif key == keys.UP:
            self._scrolled = max(0, self._scrolled - 1)
        elif key == keys.DOWN:
            self._scrolled = min(max(0, len(self._stack) - 1), self._scrolled + 1)
        elif key == "r":
            self._show_stack()

    def _show_stack(self) -> None:
        if self._chosen is None:
            self._message = "choose a worker first (up, down)"
            return
        try:
            text = stacks_of(self._chosen)[self._chosen]
        except (AskingError, KeyError) as exc:
            text = f"({exc})"
        self._stack = [printable(line) for line in text.splitlines()]
        self._scrolled = 0
        self._mode = Mode.STACK

    def _ask_to_end(self) -> None:
        place = self._place()
        row = None if place is None else self._rows[place]
        if row is None or row.worker.job is None or row.pool.answer is None:
            self._message = "choose a worker that runs a job (up, down)"
        elif not row.pool.answer.get("can_terminate"):
            self._message = 'only of a pool that was made with observable="control"'
        else:
            self._ending = row
            self._mode = Mode.CONFIRM

    def _confirm(self, key: str) -> None:
        self._mode = Mode.LIST
        row, self._ending = self._ending, None
        if row is None or row.worker.job is None or key != "y":
            return
        worker = row.worker
        try:
            asking.terminate(row.pool.address, worker.pid, row.worker.job)
            self._message = f"job {worker.job} is ended"
        except AskingError as exc:
            self._message = str(exc)

    def _place(self) -> int | None:
        """Of the chosen worker among the rows."""
        pids = [row.worker.pid for row in self._rows]
        return pids.index(self._chosen) if self._chosen in pids else None

    # ---- what is shown

    def _view(self) -> RenderableType:
        height = self._console.height
        if self._mode is Mode.STACK:
            shown = self._stack[self._scrolled : self._scrolled + height - 2]
            head = Text(f"The stack of worker {self._chosen}", style="bold")
            text = Text("\n".join(shown), no_wrap=True, overflow="ellipsis")
            return Group(head, text, self._last_line())
        pools = self._pools[:POOLS_SHOWN]
        hidden = len(self._pools) - len(pools)
        head_lines: list[RenderableType] = [
            self._first_line(hidden),
            pools_table(pools, in_lines=True),
        ]
        used = 2 + len(pools) + 1 + 1 + 1  # with the titles of both tables, and the last line
        if told := failures(self._pools):
            head_lines.append(Text(f"failed: {told}", no_wrap=True, overflow="ellipsis"))
            used += 1
        room = max(1, height - used)
        place = self._place()
        first = 0 if place is None else max(0, place - room + 1)
        shown_rows = self._rows[first : first + room]
        table = workers_table(shown_rows, place, self._order, first, in_lines=True)
        return Group(*head_lines, table, self._last_line())

    def _first_line(self, hidden: int) -> Text:
        workers = sum(len(pool.workers) for pool in self._pools)
        text = (
            f"prefork top {time.strftime('%H:%M:%S')}: {len(self._pools)} pools, {workers} workers"
        )
        if hidden:
            text += f" ({hidden} pools more than shown)"
        if self._filter and self._mode is not Mode.FILTER:
            text += f", only with {self._filter!r}"
        return Text(text, no_wrap=True, overflow="ellipsis", style="bold")

    def _last_line(self) -> Text:
        text = self._message or HELP[self._mode.value]
        if self._mode is Mode.FILTER:
            text = f"/{self._filter}   ({HELP['filter']})"
        elif self._ending is not None:
            worker = self._ending.worker
            which = f"job {worker.job} ({worker.function}) of worker {worker.pid}"
            text = f"End {which}? {HELP['confirm']}"
        return Text(text, no_wrap=True, overflow="ellipsis", style="reverse")
