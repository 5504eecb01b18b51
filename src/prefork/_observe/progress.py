"""Shows how far a call of the map family is.

    results ── note_progress (a number has changed) ──► Drawing ── its thread ──► Bar

The bar is drawn by a thread of its own, which is there as long as the bar, and sleeps while nothing
happens. So a slow terminal, or a class that raises, holds up neither results nor limits nor
callbacks: what is drawn is what the counts are when there is time for it, ten times a second at
most. A bar that raises is not drawn any more; the call goes on.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol

from prefork._observe.bars import Bar, make_bar
from prefork._system.condition import Condition
from prefork._system.log import WARNING, Log
from prefork._system.threads import BackgroundThread

__all__ = ["Counts", "Drawing"]

LAST_SECONDS: Final = 1.0
"""So long a call that has ended waits for its bar's last drawing."""


class Counts(Protocol):
    """How far a call is; of items."""

    @property
    def done(self) -> int: ...

    @property
    def failed(self) -> int:
        """Of those that are done."""

    def expected(self) -> int | None:
        """How many there are, if that is known."""

    def has_ended(self) -> bool:
        """Whether no more will be done."""

    def watch(self, note_progress: Callable[[], object]) -> None:
        """Have this called after each change; it takes no lock, does not wait, and does not
        raise."""


class Drawing:
    """The bar of one call; entered while the call is handed in.

    Args:
        progress: see `make_bar`.
        total: how many items there are, as far as is known.
        name: of the function.
        until_end: the call has ended when this is left, and so does the bar.
        log: where it is noted what the bar raises.

    Raises:
        Exception: what `make_bar` raises.
    """

    def __init__(
        self,
        progress: object,
        counts: Counts,
        total: int | None,
        name: str,
        log: Log,
        until_end: bool = False,
    ) -> None:
        self._counts = counts
        self._total = total
        self._until_end = until_end
        self._log = log
        self._bar: Bar = make_bar(progress, total, name)
        self._drawn = -1
        self._is_told = False  # to end
        self._is_waiting = False  # for a change
        self._changed = Condition()
        self._thread = BackgroundThread(self._run, "prefork-Progress")

    def __enter__(self) -> None:
        self._counts.watch(self._note_progress)
        try:
            self._thread.start()
        except RuntimeError as exc:  # the system has no thread left; the call can do without
            self._log.note(WARNING, "no progress is shown: %s", str(exc))
            self._close()
        else:
            _drawings.add(self)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._until_end or exc_type is not None:
            self.finish(LAST_SECONDS)

    def finish(self, seconds: float) -> None:
        """Draw it for the last time, and wait for that, at most so long."""
        self._is_told = True
        self._changed.notify_all()
        self._thread.join(seconds)

    def _note_progress(self) -> None:
        """Called for each job: it wakes the thread only if that has nothing to do."""
        if self._is_waiting or self._counts.has_ended():
            self._changed.notify_all()

    # ---- on the thread

    def _run(self) -> None:
        try:
            while self._draw():
                # No sooner than that; but at once if it is over.
                self._changed.wait(self._is_over, self._bar.pause)
                self._is_waiting = True  # before the look: who counts after it, sees it
                self._changed.wait(self._has_news)
                self._is_waiting = False
        except BaseException as exc:
            self._complain(exc)
        finally:
            self._close()
            _drawings.discard(self)

    def _draw(self) -> bool:
        """False, if it was for the last time."""
        is_over = self._is_over()  # first: what is counted then is all
        done = self._counts.done
        if done != self._drawn:
            expected = self._counts.expected()
            total = self._total if expected is None else expected
            self._bar.draw(done, self._counts.failed, total)
            self._drawn = done
        return not is_over

    def _is_over(self) -> bool:
        return self._is_told or self._counts.has_ended()

    def _has_news(self) -> bool:
        return self._counts.done != self._drawn or self._is_over()

    def _close(self) -> None:
        try:
            self._bar.close()
        except BaseException as exc:
            self._complain(exc)

    def _complain(self, error: BaseException) -> None:
        text = "a progress bar raised, and is not drawn any more; its call is not affected"
        self._log.note(WARNING, text, error=error)


_drawings: set[Drawing] = set()  # that are not over


def _finish_all() -> None:
    """At the interpreter's exit: no thread may be writing while it is taken down."""
    for drawing in list(_drawings):
        drawing.finish(LAST_SECONDS)


atexit.register(_finish_all)
os.register_at_fork(after_in_child=_drawings.clear)
