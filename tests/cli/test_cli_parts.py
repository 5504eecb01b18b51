"""Parts of the command line that need no workers."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.cli.feeder import Feeder, Item
from prefork.cli.inputs import PAUSE, InputError, Inputs
from prefork.cli.records import Earlier
from prefork.cli.stats import Stats

# ---- the feeder: how far it reads ahead


class Endless:
    """Inputs without end, which know how many may have been read."""

    total = None

    def __init__(self) -> None:
        self.allowed = 0
        self.read = 0
        self.too_many = False

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.read += 1
            self.too_many |= self.read > self.allowed
            yield number

    def stop(self) -> None:
        pass


@pytest.mark.parametrize("chunksize", [1, 4])
def test_the_feeder_reads_no_further_ahead_than_its_window(chunksize: int) -> None:
    window = 12
    inputs: Any = Endless()
    inputs.allowed = window + 1  # one in its hand
    chunks: list[list[Item]] = []
    fed = threading.Semaphore(0)
    ends: list[tuple[int, Exception | None]] = []

    def submit(chunk: list[Item]) -> None:
        chunks.append(chunk)
        fed.release()

    feeder = Feeder(
        inputs,
        Earlier(),
        Stats(),
        lambda: chunksize,
        lambda: window,
        submit,
        lambda *_: None,
        lambda *end: ends.append(end),
    )
    feeder.start()
    for _ in range(window // chunksize):
        assert fed.acquire(timeout=30)
    for _ in range(20):
        inputs.allowed += chunksize
        feeder.release(chunksize)
        assert fed.acquire(timeout=30)
    feeder.stop()
    assert feeder.join(30)
    assert not inputs.too_many
    assert [item.value for chunk in chunks for item in chunk] == list(
        range(len(chunks) * chunksize)
    )
    assert ends == [(len(chunks) * chunksize, None)]


def test_the_feeder_submits_what_it_has_before_it_waits() -> None:
    chunks: list[list[int]] = []
    inputs: Any = [1, 2, PAUSE, PAUSE, 3]
    feeder = Feeder(
        inputs,
        Earlier(),
        Stats(),
        lambda: 10,
        lambda: 100,
        lambda chunk: chunks.append([item.value for item in chunk]),
        lambda *_: None,
        lambda *_: None,
    )
    feeder.start()
    assert feeder.join(30)
    assert chunks == [[1, 2], [3]]


# ---- inputs


def test_inputs_are_stopped_while_they_wait() -> None:
    reader, writer = os.pipe()
    inputs = Inputs(lines=[f"/dev/fd/{reader}"])
    assert inputs.total is None
    iterator = iter(inputs)
    os.write(writer, b"a\nb")
    assert [next(iterator), next(iterator)] == ["a", PAUSE]  # it would have to wait for "b"
    inputs.stop()
    assert list(iterator) == ["b"]
    inputs.close()
    os.close(reader)
    os.close(writer)


def test_long_lines_come_in_one_piece(tmp_path: Path) -> None:
    lines = ["x" * 200_000, "", "y" * 70_000, "z"]
    path = tmp_path / "lines"
    path.write_text("\n".join(lines))
    inputs = Inputs(lines=[str(path)])
    assert inputs.total == 4
    assert list(inputs) == lines
    inputs.close()


def test_an_error_while_opening_leaks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.touch()
    before = os.listdir("/dev/fd")
    with pytest.raises(InputError, match="cannot read /no/such"):
        Inputs(lines=[str(path), "/no/such"])
    assert os.listdir("/dev/fd") == before
