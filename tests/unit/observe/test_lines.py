"""Lines of what a worker has printed, however it is read."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from prefork._observe.lines import LONGEST, LineSplitter
from prefork._observe.output_sender import MARK_REST

MARK = b"\0prefork 12345678"


def begin(job, name=b"f"):
    return MARK + MARK_REST.pack(job, len(name)) + name


END = MARK + MARK_REST.pack(0, 0)


def split(*chunks):
    taken = []
    splitter = LineSplitter(MARK, lambda *line: taken.append(line))
    for chunk in chunks:
        splitter.feed(chunk)
    splitter.end()
    return taken


def test_lines_are_of_the_job_between_the_marks():
    data = b"before\n" + begin(3) + b"one\ntwo" + END + b"after\n" + begin(4, b"g") + b"\n" + END
    assert split(data) == [
        (b"before", None, None),
        (b"one", 3, "f"),
        (b"two", 3, "f"),
        (b"after", None, None),
        (b"", 4, "g"),
    ]


texts = st.lists(st.sampled_from([b"a", b"\n", b"\0", MARK[:5], MARK[1:], b"\xff", b"\r\n"]))


@given(texts, texts, st.lists(st.integers(0, 200), max_size=8))
def test_it_does_not_matter_how_it_is_read(first, second, positions):
    data = begin(1) + b"".join(first) + END + begin(2) + b"".join(second) + END
    edges = [0, *sorted(p % (len(data) + 1) for p in positions), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert split(*chunks) == split(data)
    assert b"".join(line for line, *_ in split(data)).count(b"a") == [*first, *second].count(b"a")


def test_a_line_without_an_end_comes_at_the_end():
    assert split(begin(1), b"no ", b"end") == [(b"no end", 1, "f")]
    assert split(b"x", MARK[:7]) == [(b"x" + MARK[:7], None, None)]


def test_a_line_that_never_ends_comes_in_parts():
    chunk = bytes(1 << 14)
    taken = split(*[chunk] * 20)
    assert {len(line) for line, *_ in taken} == {LONGEST}
