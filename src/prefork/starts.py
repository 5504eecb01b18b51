"""Starting workers where that may take for ever.

With fork it is one call. With the other start methods it is a conversation: with the fork server,
which may have been stopped or killed, or with the child, which may hang. The supervisor must not
wait for that, so it is had on a thread of its own, one worker at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Start", "is_passing"]


class Start:
    """One worker's start, on a thread of its own.

    Args:
        hire: starts the worker.
        done: called on that thread when there is an outcome.
    """

    def __init__(self, hire: Callable[[], object], done: Callable[[], object]) -> None:
        self.began = time.monotonic()
        self.error: Exception | None = None
        self._hire, self._done = hire, done
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="prefork-Start", daemon=True).start()

    def _run(self) -> None:
        try:
            self._hire()
        except Exception as exc:
            self.error = exc
        finally:
            self._ended.set()
            self._done()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def finish(self, timeout: float | None) -> None:
        """Wait for its end, at most so many seconds.

        Raises:
            TimeoutError: it has not ended.
            Exception: what `hire` has raised.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no worker process could be started within {timeout:g} s")
        if self.error is not None:
            raise self.error


def is_passing(error: Exception) -> bool:
    """Whether the next start may well succeed: the fork server, or the child, has died."""
    return isinstance(error, (EOFError, ConnectionError))
