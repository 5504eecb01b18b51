"""Handlers of logs, for the storms of the kinds "logging" and "threads"."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

WAIT = 60.0  # seconds: what nobody has to wait, even on a busy machine


class SlowHandler(logging.Handler):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def emit(self, record: logging.LogRecord) -> None:
        time.sleep(self.seconds)


class PoolHandler(logging.Handler):
    """A handler of the pool's log."""

    def __init__(self, breaches: list[str]) -> None:
        super().__init__()
        self.pool: Any = None
        self.ways: dict[str, Callable[[], object]] = {
            "slow": lambda: time.sleep(0.002),
            "use the pool": self._use,
            "wait for the pool": self._wait,
            "raise": self._raise,
            "block": self._block,
        }
        self.way = "slow"
        self._breaches = breaches
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()
        self.ways[self.way]()

    def _use(self) -> None:
        pool = self.pool.pool
        pool.statistics()
        repr(pool)
        with contextlib.suppress(ValueError):  # it is closed
            pool.apply_async(abs, (-1,))

    def _wait(self) -> None:
        import prefork

        try:
            if self.pool.pool.apply_async(abs, (-1,)).get(WAIT) != 1:
                self._breaches.append("a wrong value for a handler of the log")
        except ValueError:
            pass  # it is closed
        except prefork.WorkerLostError:
            pass  # some worker was killed
        except Exception as exc:
            self._breaches.append(f"a handler of the log has waited in vain: {exc!r}")

    @staticmethod
    def _raise() -> None:
        raise RuntimeError("a handler")

    def _block(self) -> None:
        """Nobody reads the pipe."""
        os.write(self._writer, bytes(1 << 17))

    def read(self) -> None:
        """Somebody does, and nothing blocks from now on until the next round."""
        self.way = "slow"
        quiet = 0
        while quiet < 5:
            try:
                os.read(self._reader, 1 << 20)
                quiet = 0
            except BlockingIOError:
                quiet += 1
                time.sleep(0.001)

    def close(self) -> None:
        super().close()
        os.close(self._reader)
        os.close(self._writer)
