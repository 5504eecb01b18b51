"""The nodes, as a client knows them."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

from prefork._describe import describe
from prefork.cluster.backlog import Chunk
from prefork.cluster.carrying import Report
from prefork.cluster.codecs import read_error
from prefork.cluster.letters import Letter, Link
from prefork.cluster.sizes import IN_FLIGHT
from prefork.cluster.statistics import NodeStatistics
from prefork.errors import PreforkError

__all__ = ["Answers", "Node"]


class Node:
    """One node, in one session.

    Attributes:
        name: that it gives itself.
        box: its queue.
        chunks: that it has, by their numbers.
        started: of these, those that it has begun, or may have.
        granted: when it was granted its last lease (monotonic).
        heard: when it was heard of last.
    """

    def __init__(self, name: str, box: str, processes: int, python: str, link: Link) -> None:
        self.name = name
        self.box = box
        self.processes = processes
        self.python = python
        self.link = link
        self.chunks: dict[int, Chunk] = {}
        self.started: set[int] = set()
        self.granted = self.heard = time.monotonic()
        self.is_leaving = False
        self.items = 0  # that have come back from it

    def room(self) -> float:
        """How many more chunks it may have, for each of its processes."""
        return IN_FLIGHT - len(self.chunks) / self.processes

    def statistics(self, now: float) -> NodeStatistics:
        return NodeStatistics(
            self.name,
            self.processes,
            len(self.chunks),
            len(self.started),
            self.items,
            self.python,
            now - self.heard,
        )

    def report(self, chunk: Chunk, letter: Letter) -> Report:
        """What it says of a chunk; if that cannot be read, its items come to an error."""
        try:
            return self._report(chunk, letter)
        except Exception as exc:
            text = f"what node {self.name} has said of these items cannot be read: {describe(exc)}"
            return Report([], {at: PreforkError(text) for at in range(chunk.size)}, set(), 0.0)

    def _report(self, chunk: Chunk, letter: Letter) -> Report:
        failures: dict[int, BaseException] = {}
        for at, text in letter.field("failures", list):
            failures[int(at)] = self._error(text)
        not_run = {int(at) for at in letter.field("not_run", list)} - failures.keys()
        seconds = float(letter.field("seconds", (int, float)))
        at_most = chunk.size - len(failures) - len(not_run)
        if any(not 0 <= at < chunk.size for at in (*failures, *not_run)):
            raise ValueError("it tells of items that there are not")
        return Report(letter.texts[:at_most], failures, not_run, seconds)

    def _error(self, text: str) -> BaseException:
        try:
            error = read_error(text)
        except Exception as exc:
            return PreforkError(
                f"the error of this item on node {self.name} cannot be read: {describe(exc)}"
            )
        error.add_note(f"on node {self.name}")
        return error


class Answers:
    """What nodes have said to one question."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.all_here = threading.Event()
        self._by_session: dict[str, tuple[str, Any]] = {}
        self._expected = 0

    def expect(self, number: int) -> None:
        self._expected = number
        if not number:
            self.all_here.set()

    def add(self, session: str, node: str, answer: Any) -> None:
        self._by_session[session] = node, answer
        if len(self._by_session) >= self._expected:
            self.all_here.set()

    def by_name(self) -> dict[str, Any]:
        """By the names of the nodes; of those that have the same one, the others have a number."""
        found: dict[str, Any] = {}
        for node, answer in list(self._by_session.values()):
            name, number = node, 2
            while name in found:
                name, number = f"{node} ({number})", number + 1
            found[name] = answer
        return found
