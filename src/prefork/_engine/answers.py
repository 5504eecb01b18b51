"""What a pool answers those who ask it from outside (see `prefork._inspection.questions`)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from prefork._inspection.questions import (
    LONGEST_ANSWER,
    MOST_STACKS,
    STACKS,
    STATISTICS,
    TERMINATE,
    encode,
)
from prefork.buildinfo import build_info

if TYPE_CHECKING:
    from prefork._engine.observer import Observer
    from prefork._engine.options import Options
    from prefork._engine.state import PoolState
    from prefork._engine.terminator import Terminator

__all__ = ["Answers"]

FRESH_SECONDS: Final = 0.1
"""So old a snapshot may be: however many ask, it is made so often at most."""

_MOST_BYTES: Final = LONGEST_ANSWER * 3 // 4  # of an answer: the system has some of the room


class Answers:
    """Is called with a question, and returns the answer at once. For one thread at a time."""

    def __init__(
        self, state: PoolState, observer: Observer, terminator: Terminator, options: Options
    ) -> None:
        self._state = state
        self._observer = observer
        self._terminator = terminator
        self._options = options
        self._made = time.time()
        self._snapshot = b""
        self._snapshot_time = 0.0  # monotonic

    def __call__(self, question: str) -> bytes:
        match question.split():
            case [str(word)] if word == STATISTICS:
                return self._statistics()
            case [str(word), *pids] if word == STACKS and all(map(_is_number, pids)):
                look = self._observer.stack_so_far
                found = {pid: look(int(pid)) for pid in pids[:MOST_STACKS]}
                answer = encode({"stacks": found})
            case [str(word), pid, job] if word == TERMINATE and _is_number(pid) and _is_number(job):
                answer = encode(self._terminate(int(pid), int(job)))
            case _:
                answer = encode({"error": "this is no question"})
        return _fitting(answer)

    def _statistics(self) -> bytes:
        now = time.monotonic()
        if not self._snapshot or now - self._snapshot_time >= FRESH_SECONDS:
            # Who asks is on the same machine, and looks up the workers' memory by himself.
            statistics = self._observer.statistics(measured=False)
            self._snapshot = _fitting(encode(self._described() | statistics.as_dict()))
            self._snapshot_time = now
        return self._snapshot

    def _described(self) -> dict[str, Any]:
        state = self._state
        return {
            "version": build_info().version,
            "phase": "broken" if state.broken is not None else state.phase.value,
            "made": self._made,
            "start_method": self._options.start_method,
            "can_terminate": self._options.is_controllable,
        }

    def _terminate(self, pid: int, job: int) -> dict[str, Any]:
        if not self._options.is_controllable:
            return {"error": 'the pool was not made with observable="control"'}
        with self._state.lock:
            found = [w for w in self._state.workers if w.pid == pid]
            running = found[0].current_job() if found else None
            if running is None or running.id != job:
                return {"error": f"worker {pid} does not run job {job} any more"}
            return {"terminated": self._terminator.terminate(running)}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def _fitting(answer: bytes) -> bytes:
    return answer if len(answer) <= _MOST_BYTES else encode({"error": "the answer is too long"})
