"""What a run did, input by input, for `--report`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from prefork._report.account import Account, Memory, Run
from prefork._report.failures import Failure
from prefork._report.file import check, write
from prefork._report.page import Frame, render
from prefork._report.recorder import MemoryWatch, Recorder
from prefork.cli.feeder import Item
from prefork.cli.jsontext import to_json
from prefork.cli.plan import Plan
from prefork.cli.stats import shown
from prefork.cli.work import DONE, Outcome
from prefork.pool import Pool

__all__ = ["Recorded"]

LONGEST_NAME = 1000
"""Bytes of an input that are kept, since many inputs are."""
_PEAK = re.compile(rb'"peak_memory": (\d+)\}$')


class Recorded:
    """
    Args:
        path: where the page is to be written.

    Raises:
        OSError: it cannot be written there.
    """

    def __init__(self, path: str, plan: Plan) -> None:
        check(path)
        self.path = path
        self._name = str(plan.work)
        self._processes = plan.processes
        self._tells_memory = plan.work.tells_memory
        self._began = time.time()
        self._recorder = Recorder(Account(time.monotonic(), _describe, self._alive))
        self._alive_now: Callable[[], Collection[int]] = tuple

    def _alive(self) -> Collection[int]:
        return self._alive_now()

    @contextlib.contextmanager
    def watching(self, pool: Pool) -> Iterator[None]:
        """The pool that the run has: what its workers have resident is looked at meanwhile, unless
        the work tells that by itself."""
        self._alive_now = lambda: [each.pid for each in pool.statistics().workers]
        if self._tells_memory:
            yield
            return
        watch = MemoryWatch(
            self._recorder,
            lambda: [(each.pid, each.memory or 0) for each in pool.statistics().workers],
        )
        watch.start()
        try:
            yield
        finally:
            watch.stop()

    def note_handed_in(self, items: list[Item]) -> None:
        """To the pool; now."""
        now = time.monotonic()
        for item in items:
            item.handed_in = now

    def note(self, item: Item, outcome: Outcome, is_final: bool) -> None:
        """An input has been run, and may be run again."""
        note, seconds, pid = self._recorder.note, outcome.seconds, outcome.pid
        # Who was lost could not say when it began; but it is over since a moment ago.
        started = outcome.started or time.monotonic() - seconds
        text = item.text
        if len(text) > LONGEST_NAME:
            text = to_json(shown(text.decode()))
        what = item.index, item.tries, text
        if pid:
            waited = max(0.0, started - item.handed_in)
            note(Run(pid, started, seconds, waited, self._name, what))
        if self._tells_memory and (peak := _PEAK.search(outcome.text, len(outcome.text) - 50)):
            note(Memory(pid, started, started + seconds, int(peak[1]) // 1024))
        if outcome.kind != DONE:
            error: dict[str, Any] = json.loads(outcome.text)
            stack = error.get("traceback") or error.get("stderr") or ""
            end = started + seconds
            kind, message = error["type"], error["message"]
            note(Failure(kind, message, stack, what, self._name, pid, end, is_final))
        self._recorder.fold_many()

    def write(self, ended: float | None, note: str) -> None:
        """
        Args:
            ended: when the run was over (monotonic); None: now.
            note: what else is to be known of it.

        Raises:
            OSError: it cannot be written.
        """
        end = time.monotonic() if ended is None else ended
        frame = Frame(self._name, self._processes, end, "input", self._began, note)
        write(self.path, self._recorder.read(lambda account: render(account, frame)))

    def is_same_file(self, path: str) -> bool:
        return os.path.realpath(path) == os.path.realpath(self.path)


def _describe(what: tuple[int, int, bytes]) -> str:
    return shown(what[2].decode())
