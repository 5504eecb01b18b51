"""Data frames and tables travel as their buffers, without a copy in the pickle."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from helpers import DEADLINE
from prefork._ipc.pickling import OUT_OF_BAND, pack

ROWS = 100_000


def frame():
    numbers = np.arange(ROWS)
    return pd.DataFrame({"a": numbers, "b": numbers * 0.5, "c": numbers.astype(np.int32)})


def table():
    return pa.table({"a": np.arange(ROWS), "b": ["text"] * ROWS})


KINDS = {
    "frame": frame,
    "series": lambda: frame()["b"],
    "frame of texts": lambda: pd.DataFrame({"a": ["x", None, "y"] * 1000}),
    "table": table,
    "arrow array": lambda: pa.array(np.arange(ROWS)),
    "sliced table": lambda: table().slice(ROWS // 2),
}


def change(data):
    """What is received can be written to."""
    data.loc[0, "a"] = -1
    return data


def echo(data):
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(make_pool, kind):
    data = KINDS[kind]()
    assert make_pool(1).apply_async(echo, (data,)).get(DEADLINE).equals(data)


@pytest.mark.parametrize("kind", ["frame", "series", "table", "arrow array"])
def test_the_pickle_holds_no_buffer(kind):
    pickled, buffers = pack((KINDS[kind](),))
    assert len(pickled) < OUT_OF_BAND
    assert sum(buffer.nbytes for buffer in buffers) >= ROWS * 8


def test_a_frame_may_be_changed_by_the_task(make_pool):
    data = frame()
    changed = make_pool(1).apply_async(change, (data,)).get(DEADLINE)
    assert changed.loc[0, "a"] == -1
    assert changed.loc[1:].equals(data.loc[1:])
    assert data.loc[0, "a"] == 0
