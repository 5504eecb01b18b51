"""The page: valid, of a bounded size, and with nothing in it that it was not given."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest

from prefork._report.account import Account, Memory, Run
from prefork._report.failures import Failure
from prefork._report.page import Frame, render

BEGIN = 1000.0
VOID = {"meta", "link", "br", "input", "img"}
MOST_BYTES = 3_000_000
NASTY = "<script>alert('x')</script>\"&\x00\ud800\x1b[31m\N{GRINNING FACE}"


class Reader(HTMLParser):
    """Reads a page, and says where it is not well-formed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, name: str) -> list[str]:
        return [value or "" for _, each, value in self.attributes if each == name]


def read(account: Account, seconds: float = 10.0, **frame: Any) -> tuple[str, Reader]:
    fields: dict[str, Any] = {"title": "pkg.f", "processes": 2, "runs": "job", "began": 0.0} | frame
    page = render(account, Frame(end=BEGIN + seconds, **fields))
    page.encode()
    reader = Reader(page)
    ids = reader.values("id")
    assert len(set(ids)) == len(ids)
    links = [value[1:] for value in reader.values("href") if value.startswith("#")]
    assert set(links) | set(reader.values("for")) <= set(ids)
    assert set(itertools.chain(*map(str.split, reader.values("aria-labelledby")))) <= set(ids)
    return page, reader


def small() -> Account:
    account = Account(BEGIN, str)
    for number in range(20):
        pid = 4711 + number % 2
        run = Run(pid, BEGIN + number / 4, 0.2, 0.1, "pkg.f", f"input {number}")
        account.add(run, BEGIN + 10)
        account.add_memory(Memory(pid, run.started, run.started + 0.2, 20_000 + number), BEGIN + 10)
    stack = 'Traceback (most recent call last):\n  File "/a/b/c.py", line 7, in f\nValueError: no'
    account.add_failure(
        Failure("ValueError", "no", stack, "input 3", "pkg.f", 4712, BEGIN + 0.95, True),
        BEGIN + 10,
    )
    return account


def test_what_it_tells() -> None:
    page, reader = read(small())
    text = " ".join(reader.texts)
    assert reader.seen["rect"] > 20
    for told in (
        "pkg.f", "worker 1", "worker 2", "4711", "efficiency",
        "The slowest jobs", "input 7", "1 \N{MULTIPLICATION SIGN} ValueError", "in f (b/c.py:7)",
        "input 3: no",
        "Traceback (most recent call last)", "Half took at most", "19.5 MiB",
    ):  # fmt: skip
        assert told in text, told
    assert "input 3: 200 ms, from 750 ms on, in process 4712; it has failed" in text
    assert page.count('class="bad"') == 1


def test_it_fetches_nothing() -> None:
    _, reader = read(small())
    policy = next(v for v in reader.values("content") if "default-src" in v)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert reader.values("src") == []
    assert all(value[0] == "#" or value == "data:," for value in reader.values("href"))
    assert reader.values("style") == []  # the policy would not let them count
    assert [name for _, name, _ in reader.attributes if name.startswith("on")] == []


def test_of_nothing() -> None:
    _, reader = read(Account(BEGIN, str), seconds=0.0)
    assert "Nothing was run." in reader.texts
    assert "Nothing has failed." in reader.texts


def test_names_are_only_names() -> None:
    account = Account(BEGIN, str)
    account.add(Run(1, BEGIN, 1.0, 0.0, NASTY, NASTY), BEGIN + 10)
    account.add_failure(Failure(NASTY, NASTY, NASTY, NASTY, NASTY, 1, None, True), BEGIN + 10)
    page, reader = read(account, title=NASTY, note=NASTY)
    assert reader.seen["script"] == 1
    assert "\x00" not in page
    assert "\\x00\\ud800\\x1b[31m\N{GRINNING FACE}" in page


@pytest.mark.parametrize("workers", [2, 200])
def test_a_million_runs_are_a_page_below_3_mb(workers: int) -> None:
    """With as many failures of all kinds as are kept, and names and stacks that are long."""
    account = Account(BEGIN, str, lambda: range(workers))
    now = BEGIN + 1000
    number = itertools.count()
    what, start = "", BEGIN
    for step in range(100_000 // workers):
        for pid in range(workers):
            for part in range(10):
                start = BEGIN + step * 0.003 + part * 0.0002
                what = f"{'data/' * 30}{next(number)}.csv"
                account.add(Run(pid, start, 0.0001 * (1 + part), 0.01, "pkg.f", what), now)
        pid = step % workers
        account.add_memory(Memory(pid, now - 900, now - 900, 10_000 + step), now)
        kind = f"Error{step % 60}"
        stack = "x" * 10_000
        account.add_failure(
            Failure(kind, "m" * 1000, stack, what, "pkg.f", pid, start, step % 2 == 0), now
        )
    assert account.run_time.count == 1_000_000
    page, _ = read(account, seconds=150.0)
    assert len(page.encode()) < MOST_BYTES


def test_rows_whose_shades_change_all_the_time() -> None:
    """The most that a chart can take: as many workers as have rows, each bin of another shade."""
    account = Account(BEGIN, str, lambda: range(1000))
    for pid in range(200):
        for step in range(256):
            length = 0.0005 * (1 + (step + pid) % 4)
            start = BEGIN + step * 0.002
            account.add(Run(pid, start, length, 0.0, f"f{pid}", step + pid * 1000), BEGIN + 10)
            what = step + pid * 1000
            account.add_failure(Failure("E", "", "", what, "f", pid, start, True), BEGIN + 10)
    page, _ = read(account, seconds=0.511)
    assert len(page.encode()) < MOST_BYTES


def test_time_is_told_in_fitting_units() -> None:
    for seconds, unit in ((1e-4, "µs"), (0.2, "ms"), (50.0, " s"), (7200.0, "1:")):
        page, _ = read(small(), seconds=seconds)
        ruler = re.findall(r'class="middle">([^<]*)<', page)
        assert any(unit in text for text in ruler), (seconds, ruler)
