"""What a node has with its clients, and what their chunks come to."""

from __future__ import annotations

import secrets
from collections import deque

from prefork._ipc.outcome import Outcome
from prefork.cluster.codecs import ALL_CODECS, write_error
from prefork.cluster.letters import Letter, Link
from prefork.cluster.runner import CALL, FAILED, NOT_RUN, ONE, STAR, TIMED, Runner
from prefork.results import ApplyResult

__all__ = ["Session", "Work", "sorted_out"]


class Work:
    """One chunk on this node."""

    def __init__(self, letter: Letter, slot: int, token: int) -> None:
        """
        Raises:
            ValueError: a field is missing, or is not what it should be.
        """
        self.number = letter.field("chunk", int)
        self.texts = letter.texts
        self.name = letter.field("function", str)
        self.value = letter.head.get("value", "")
        self.codec = letter.field("codec", str)
        self.limits = {
            name: letter.field(name, (int, float))
            for name in ("timeout", "soft_timeout")
            if letter.head.get(name) is not None
        }
        how, seed = letter.field("how", str), letter.head.get("seed")
        if (
            how not in (CALL, ONE, STAR, TIMED)
            or self.codec not in ALL_CODECS
            or type(self.value) is not str
        ):
            raise ValueError("it says nothing of how its items are to be run")
        if seed is not None:
            seed = letter.field("seed", int)
        code = letter.field("code", str)
        self.runner = Runner(self.name, how, self.codec, slot, token, code, seed, self.value)
        self.handle: ApplyResult[list[Outcome]] | None = None
        self.began = 0.0


class Session:
    """What this node has with one client, on one lease."""

    def __init__(self, client: str, slot: int, link: Link, now: float) -> None:
        self.client = client
        self.slot = slot
        self.token = secrets.randbits(63)
        self.link = link
        self.waiting: deque[Work] = deque()
        self.running: dict[int, Work] = {}
        self.until = 0.0  # the lease's end, by `lease_time`
        self.heard = now
        self.is_over = False


def sorted_out(
    outcomes: list[Outcome],
) -> tuple[list[str], list[tuple[int, str]], list[int]]:
    """The texts of results; the errors, by the positions of their items; and the positions of those
    that were not begun."""
    texts: list[str] = []
    failures: list[tuple[int, str]] = []
    not_run: list[int] = []
    for at, (ok, value) in enumerate(outcomes):
        if not ok:
            failures.append((at, write_error(value, _remote(value))))
        elif value == NOT_RUN:
            not_run.append(at)
        elif value.startswith(FAILED):
            failures.append((at, value.removeprefix(FAILED)))
        else:
            texts.append(value)
    return texts, failures, not_run


def _remote(error: BaseException) -> str:
    """The traceback of an error that comes from the pool: its stack is in its text already."""
    cause = error.__cause__
    return str(getattr(cause, "tb", "")) if cause is not None else ""
