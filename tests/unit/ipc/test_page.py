"""The outcomes of items that are not reported yet."""

from __future__ import annotations

import time
from typing import Any

import pytest

from prefork._ipc.page import Page, WorkersPage, read_page, running_item

START = 16
SIZE = 256


class Shared:
    def __init__(self) -> None:
        board = memoryview(bytearray(64))
        self.board, self.clock = board.cast("Q"), board.cast("d")
        self.memory = bytearray(START + SIZE)
        self.worker = WorkersPage(self.board, self.clock, memoryview(self.memory)[START:])

    def read(self) -> Page:
        return read_page(self.board, memoryview(self.memory), START, SIZE)


@pytest.fixture
def shared() -> Shared:
    return Shared()


def test_what_is_noted_is_read(shared: Shared) -> None:
    shared.worker.turn(3)
    notes: list[tuple[bool, list[Any]]] = [
        (True, [b"result"]),
        (False, [b"error"]),
        (True, [b"", bytearray(b"a buffer"), bytearray()]),
    ]
    for item, note in enumerate(notes, 3):
        shared.worker.begin(item)
        assert shared.worker.note(*note)
    shared.worker.begin(6)
    assert shared.read() == Page(3, notes, 7)


def test_buffers_may_be_written_to(shared: Shared) -> None:
    shared.worker.note(True, [b"pickle", b"buffer"])
    ((_, pieces),) = shared.read().outcomes
    assert isinstance(pieces[1], bytearray)


def test_what_has_no_room_is_refused_and_a_new_page_has_room_again(shared: Shared) -> None:
    assert shared.worker.note(True, [bytes(SIZE // 2)])
    assert not shared.worker.note(True, [bytes(SIZE // 2)])
    assert not shared.worker.note(True, [bytes(SIZE // 4), bytes(SIZE // 4)])
    assert len(shared.read().outcomes) == 1
    shared.worker.turn(1)
    assert shared.read() == Page(1, [], 0)
    assert shared.worker.note(True, [bytes(SIZE // 2)])


def test_the_item_that_runs_is_known(shared: Shared) -> None:
    before = time.monotonic()
    assert running_item(shared.board, shared.clock) is None
    shared.worker.begin(4)
    found = running_item(shared.board, shared.clock)
    assert found is not None
    assert found[0] == 4
    assert before <= found[1] <= time.monotonic()


def test_after_the_job_nothing_is_begun(shared: Shared) -> None:
    shared.worker.begin(0)
    shared.worker.end()
    assert shared.read().begun == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff" * SIZE,  # more pieces than there is room for
        b"\1\0\0\0\0\0\0\0",  # none
        b"\1\0\0\0\1\0\0\0" + b"\xff" * 8,  # a length beyond the end
        b"\1\0\0\0\2\0\0\0" + b"\xff" * 16,  # the sum of them, too
    ],
)
def test_nonsense_is_not_read(shared: Shared, nonsense: bytes) -> None:
    shared.worker.note(True, [b"before"])
    end = len(b"before") + 16
    shared.memory[START + end : START + end + len(nonsense)] = nonsense[: SIZE - end]
    shared.board[5] = 1 << 40
    assert shared.read().outcomes == [(True, [b"before"])]


def test_a_page_that_is_begun_anew_meanwhile_is_not_read(shared: Shared) -> None:
    shared.worker.note(True, [b"old"])

    class Turning(bytearray):
        def __getitem__(self, where: Any) -> Any:
            shared.worker.turn(1)
            return super().__getitem__(where)

    assert read_page(shared.board, Turning(shared.memory), START, SIZE).outcomes == []
