"""How far a run is, and what has failed: counts, and what people read of them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from prefork._report.failures import place

__all__ = ["INPUT_WIDTH", "Failure", "Stats", "shown"]

SHOWN_FAILURES, SHOWN_OF_A_KIND = 20, 3
"""So many are shown as they come."""
INPUT_WIDTH = 80
REASON_WIDTH = 160


class Failure:
    """An input and why it failed; short, on one line.

    Attributes:
        kind: what it has in common with others that failed for the same reason.
    """

    def __init__(self, given: bytes, error: bytes) -> None:
        reason = json.loads(error)
        self.input = shown(given.decode())
        message = reason["message"].strip().partition("\n")[0]
        text = _shorten(f"{reason['type']}: {message}".removesuffix(": "), REASON_WIDTH)
        where = place(reason.get("traceback", ""))
        self.reason = text + where
        self.kind = reason["type"] + where

    def __str__(self) -> str:
        return f"{self.input}: {self.reason}"


def shown(given: str, width: int = INPUT_WIDTH) -> str:
    """An input, which is JSON, for people; on one line, and no longer than that."""
    value = json.loads(given)
    return _shorten(value if isinstance(value, str) else given, width)


def _shorten(text: str, width: int) -> str:
    """On one line, printable, and with the middle left out if it is too long."""
    if not text.isprintable() or not text:
        text = json.dumps(text)
    half = width // 2
    return text if len(text) <= width else f"{text[:half]}…{text[1 - half :]}"


@dataclass
class Kind:
    """Failures that have the same reason."""

    example: Failure
    count: int = 0


@dataclass
class Stats:
    """How far a run is. One thread counts, others may look."""

    total: int | None = None  # inputs, those that are skipped included
    done: int = 0  # of this run, failed ones included
    failed: int = 0
    skipped: int = 0  # which an earlier run had done
    skipped_failed: int = 0  # of these, which had failed
    kinds: dict[str, Kind] = field(default_factory=dict)  # of failures
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    _shown: int = 0  # failures

    def count(self) -> None:
        """One more input came through."""
        self.done += 1

    def count_failure(self, given: bytes, error: bytes) -> Failure | None:
        """One more has failed: input and error as JSON. Returns it if it is to be shown."""
        self.done += 1
        self.failed += 1
        failure = Failure(given, error)
        kind = self.kinds.setdefault(failure.kind, Kind(failure))
        kind.count += 1
        if kind.count > SHOWN_OF_A_KIND or self._shown >= SHOWN_FAILURES:
            return None
        self._shown += 1
        return failure

    @property
    def handled(self) -> int:
        return self.done + self.skipped

    @property
    def all_failed(self) -> int:
        """In this run or in the earlier one."""
        return self.failed + self.skipped_failed

    @property
    def seconds(self) -> float:
        """How long the run has taken, or took."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started
