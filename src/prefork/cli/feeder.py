"""The thread that reads the inputs and submits them, no further ahead than there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefork.cli.inputs import PAUSE, BadInput, InputError, Inputs
from prefork.cli.jsontext import to_json
from prefork.cli.progress import Stats
from prefork.cli.records import Earlier

__all__ = ["Feeder", "Item"]


@dataclass(slots=True)
class Item:
    """One input of this run."""

    index: int
    value: Any
    text: bytes  # the same as JSON
    tries: int = 0  # that have failed


class Feeder:
    """Reads inputs, leaves out what an earlier run has done, and submits the rest.

    Args:
        inputs: what to read.
        earlier: what to leave out.
        stats: where what was left out is counted.
        chunksize: how many inputs to submit at once; fewer when the next ones keep us waiting.
        window: how many inputs may be on their way; at least `chunksize`.
        submit: called with a list of items.
        reject: called with an item that cannot be understood, and the reason.
        on_end: called once, with how many were submitted and why it was no more, or None.
    """

    def __init__(
        self,
        inputs: Inputs,
        earlier: Earlier,
        stats: Stats,
        chunksize: int,
        window: int,
        submit: Callable[[list[Item]], object],
        reject: Callable[[Item, str], object],
        on_end: Callable[[int, Exception | None], object],
    ) -> None:
        self._inputs = inputs
        self._earlier = earlier
        self._stats = stats
        self._chunksize = chunksize
        self._room = threading.Semaphore(window)
        self._submit = submit
        self._reject = reject
        self._on_end = on_end
        self._chunk: list[Item] = []
        self._submitted = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="prefork-feeder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def release(self, count: int) -> None:
        """So many inputs are over and done with: there is room for as many others."""
        if count:
            self._room.release(count)

    def stop(self) -> None:
        """Read no more, even if that is waiting for input now."""
        self._stopped = True
        self._inputs.stop()
        self._room.release()

    def join(self, timeout: float) -> bool:
        """Whether it has ended within so many seconds."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        reason: Exception | None = None
        try:
            self._read()
        except Exception as exc:
            reason = exc
        self._on_end(self._submitted, reason)

    def _read(self) -> None:
        try:
            for value in self._inputs:
                if value is PAUSE:
                    self._flush()
                elif isinstance(value, BadInput):
                    self._pass_by(value)
                elif not self._is_done(value):
                    self._room.acquire()
                    self._add(value)
                if self._stopped:
                    return
        except InputError:
            self._flush()  # what was read before it is good
            raise
        self._flush()

    def _is_done(self, value: Any) -> bool:
        came_through = self._earlier.take(value)
        if came_through is None:
            return False
        self._stats.skipped += 1
        self._stats.skipped_failed += not came_through
        return True

    def _pass_by(self, bad: BadInput) -> None:
        self._flush()
        if not self._is_done(bad.text):
            self._room.acquire()
            if not self._stopped:
                self._submitted += 1
                self._reject(Item(self._submitted - 1, None, to_json(bad.text)), bad.reason)

    def _add(self, value: Any) -> None:
        self._chunk.append(Item(self._submitted + len(self._chunk), value, to_json(value)))
        if len(self._chunk) >= self._chunksize:
            self._flush()

    def _flush(self) -> None:
        if self._chunk and not self._stopped:
            chunk, self._chunk = self._chunk, []
            self._submit(chunk)
            self._submitted += len(chunk)
