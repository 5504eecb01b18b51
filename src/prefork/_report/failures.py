"""What has failed, by kinds: the type of an error, and where it was raised."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

__all__ = ["Failure", "Failures", "Kind", "place"]

MOST_KINDS: Final = 50
EXAMPLES: Final = 5  # of a kind
MOST_TEXT: Final = 400  # characters of a message
MOST_STACK: Final = 6000

_FRAME = re.compile(r'File "(?:.*/)?([^/]*/[^/]+)", line (\d+),? in (.+)')


def place(stack: str) -> str:
    """Where it happened, as `, in function (folder/file.py:7)`; "" if that is not known.

    A traceback ends with that, the stack of a worker that was lost begins with it.
    """
    frames = _FRAME.findall(stack)
    if not frames:
        return ""
    file, line, function = frames[-1 if stack.startswith("Traceback") else 0]
    return f", in {function} ({file}:{line})"


class Failure(NamedTuple):
    """A run that has failed.

    Attributes:
        error: the type of the error.
        message, stack: what is known; or "".
        what: was run: that of the `Run`, if there is one.
        function: that was called.
        pid: of the worker process; 0: none ran it.
        time: when it was over (monotonic, seconds); None: nobody knows.
        is_final: it is not run again.
    """

    error: str
    message: str
    stack: str
    what: Any
    function: str
    pid: int
    time: float | None
    is_final: bool


@dataclass
class Kind:
    """Those that have failed in the same way.

    Attributes:
        error: the type.
        place: where it was raised; or "".
        stack: of the first one.
        count: how many there are.
        retried: of these, how many were run again.
        examples: what has failed, with its message.
    """

    error: str
    place: str
    stack: str
    count: int = 0
    retried: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


class Failures:
    """
    Attributes:
        count: how many there are.
        retried: of these, how many were run again.
        others: of these, how many are of further kinds, which are not kept.
    """

    def __init__(self) -> None:
        self.count = self.retried = self.others = 0
        self._kinds: dict[str, Kind] = {}

    def add(self, failure: Failure, what: str) -> None:
        self.count += 1
        self.retried += not failure.is_final
        where = place(failure.stack)
        name = failure.error + where
        kind = self._kinds.get(name)
        if kind is None:
            if len(self._kinds) >= MOST_KINDS:
                self.others += 1
                return
            kind = Kind(failure.error, where.removeprefix(", "), _trim(failure.stack, MOST_STACK))
            self._kinds[name] = kind
        kind.count += 1
        kind.retried += not failure.is_final
        if len(kind.examples) < EXAMPLES:
            kind.examples.append((_trim(what, MOST_TEXT), _trim(failure.message, MOST_TEXT)))

    def kinds(self) -> list[Kind]:
        """Those that are kept, the most frequent first."""
        return sorted(self._kinds.values(), key=lambda kind: -kind.count)


def _trim(text: str, most: int) -> str:
    """Its beginning and its end, where the most telling parts of stacks are."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}\n…\n{text[-half:]}"
