"""The thread that reads the inputs and submits them, no further ahead than there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefork.cli.inputs import PAUSE, BadInput, Inputs
from prefork.cli.jsontext import to_json
from prefork.cli.records import Earlier
from prefork.cli.stats import Stats

__all__ = ["Feeder", "Item"]


@dataclass(slots=True)
class Item:
    """One input of this run.

    Attributes:
        index: of those that this run has to do with, from 0 on.
        number: of all inputs, from 1 on: it is the same in a run that goes on.
        text: the input as JSON.
        tries: that have failed.
        handed_in: to the pool, when (monotonic).
    """

    index: int
    number: int
    value: Any
    text: bytes
    tries: int = 0
    handed_in: float = 0.0


class Feeder:
    """Reads inputs, leaves out what an earlier run has done, and submits the rest.

    Args:
        inputs: what to read.
        earlier: what to leave out.
        stats: where what was left out is counted.
        chunksize: tells how many inputs to submit at once; fewer when the next ones keep us
            waiting.
        window: tells how many inputs may be on their way.
        submit: called with a list of items.
        reject: called with an item that cannot be understood, and the reason.
        on_end: called once, with how many were submitted and why it was no more, or None.
    """

    def __init__(
        self,
        inputs: Inputs,
        earlier: Earlier,
        stats: Stats,
        chunksize: Callable[[], int],
        window: Callable[[], int],
        submit: Callable[[list[Item]], object],
        reject: Callable[[Item, str], object],
        on_end: Callable[[int, Exception | None], object],
    ) -> None:
        self._inputs = inputs
        self._earlier = earlier
        self._stats = stats
        self._chunksize = chunksize
        self._window = window
        self._submit = submit
        self._reject = reject
        self._on_end = on_end
        self._chunk: list[Item] = []
        self._read = 0  # inputs, of this run
        self._finished = 0  # of these
        self._room = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="prefork-feeder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def release(self, count: int) -> None:
        """So many inputs are over and done with: there is room for as many others."""
        with self._room:
            self._finished += count
            self._room.notify()

    def stop(self) -> None:
        """Read no more, even if that is waiting for input now."""
        self._stopped = True
        self._inputs.stop()
        self.release(0)

    def join(self, timeout: float) -> bool:
        """Whether it has ended within so many seconds."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        reason: Exception | None = None
        try:
            self._read_all()
        except Exception as exc:
            reason = exc
        self._on_end(self._read, reason)

    def _read_all(self) -> None:
        number = 0
        try:
            for value in self._inputs:
                if value is PAUSE:
                    self._flush()
                else:
                    number += 1
                    self._take(number, value)
                if self._stopped:
                    return
        finally:
            self._flush()  # if it cannot be read further: what was read before is good

    def _take(self, number: int, value: Any) -> None:
        bad = value if isinstance(value, BadInput) else None
        came_through = self._earlier.take(value if bad is None else bad.text)
        if came_through is not None:
            self._stats.skipped += 1
            self._stats.skipped_failed += not came_through
            return
        if self._read - self._finished >= self._window():
            self._wait_for_room()
        if self._stopped:
            return
        text = to_json(value if bad is None else bad.text)
        item = Item(self._read, number, value, text)
        self._read += 1
        if bad is not None:
            self._reject(item, bad.reason)
            return
        self._chunk.append(item)
        if len(self._chunk) >= self._chunksize():
            self._flush()

    def _wait_for_room(self) -> None:
        self._flush()
        with self._room:
            self._room.wait_for(
                lambda: self._stopped or self._read - self._finished < self._window()
            )

    def _flush(self) -> None:
        if self._chunk and not self._stopped:
            chunk, self._chunk = self._chunk, []
            self._submit(chunk)
