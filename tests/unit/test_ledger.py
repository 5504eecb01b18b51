"""The ledger of `chaos.py storm`: which outcome a job may have after what has happened."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FIRST, SECOND, LAST = 101, 102, 103  # process ids


@pytest.fixture
def book(monkeypatch, tmp_path):
    """Books one good task with two retries; returns what is wrong with it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import ledger  # type: ignore[import-not-found]
    import misdeeds  # type: ignore[import-not-found]

    def book(lines, killed, fate="value", retries=2, conduct="good"):
        path = tmp_path / "log"
        path.write_text("".join(f"{what} 1 {pid}\n" for what, pid in lines))
        log = misdeeds.Log(str(path))
        task = misdeeds.Task(1, misdeeds.Conduct(conduct), 0.0, b"", 0, False, retries)
        books = ledger.Ledger(strict=True)
        deeds = ledger.Deeds(killed=set(killed))
        books.book([ledger.Told(task, ledger.Fate(fate), callbacks=1)], log, deeds)
        log.close()
        return books.breaches

    yield book
    for name in {"ledger", "misdeeds"} - before:
        del sys.modules[name]


def whole(*pids):
    return [(what, pid) for pid in pids for what in ("start", "end")]


def test_a_task_that_ran_once_is_right(book):
    assert book(whole(LAST), killed=[]) == []


def test_workers_may_be_killed_between_the_end_of_a_task_and_its_report(book):
    assert book(whole(FIRST, SECOND, LAST), killed=[FIRST, SECOND]) == []


@pytest.mark.parametrize(
    ("lines", "killed"),
    [
        (whole(FIRST, LAST), []),  # it was run again for no reason
        (whole(FIRST, SECOND, LAST), [FIRST]),
        ([*whole(FIRST), ("start", LAST)], [FIRST, LAST]),  # the last one has not ended it
        ([("start", FIRST), ("end", FIRST), ("end", FIRST)], []),
        ([], []),
    ],
)
def test_other_histories_of_a_value_are_wrong(book, lines, killed):
    assert book(lines, killed)


def test_a_task_without_retries_is_not_run_again(book):
    assert book(whole(FIRST, LAST), killed=[FIRST], retries=0)


def starts(*pids):
    return [("start", pid) for pid in pids]


def test_a_task_that_raises_is_run_as_often_as_it_may(book):
    raising = {"fate": "raised", "conduct": "raise"}
    assert book(starts(FIRST, FIRST, LAST), killed=[], **raising) == []
    assert book(starts(FIRST, FIRST, LAST), killed=[FIRST], **raising) == []
    assert book(starts(FIRST, LAST), killed=[SECOND], **raising) == []
    assert book(starts(FIRST, LAST), killed=[], **raising)
    assert book(starts(FIRST, LAST), killed=[FIRST], **raising)
    assert book(starts(FIRST, FIRST, FIRST, FIRST), killed=[], **raising)
    assert book(starts(FIRST), killed=[], retries=0, **raising) == []
