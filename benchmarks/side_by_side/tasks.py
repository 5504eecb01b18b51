"""What the workers are given to do."""

from __future__ import annotations

import logging
import os
import time
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def noop(_: object = None) -> None:
    """Costs nothing, so that what is measured is the pool."""


def identity(value: T) -> T:
    return value


def nap(seconds: float) -> None:
    """Takes time but no CPU, so that the pool's own work has the CPUs to itself."""
    time.sleep(seconds)


def burn(loops: int) -> None:
    """Takes CPU: always the same work, however busy the machine is."""
    for _ in range(loops):
        pass


def touch(array: Any) -> float:
    """Read one number of each page of an array of float64: it must really be there."""
    return float(array[::512].sum())


def part(array: Any, number: int) -> float:
    """Read some of it."""
    return float(array[number : number + 8].sum())


def log(records: int) -> None:
    logger = logging.getLogger("benchmark")
    for number in range(records):
        logger.warning("item %d of %s", number, "all")


def touch_at_leisure(array: Any, _: int) -> float:
    """Long enough that every worker gets one of these."""
    time.sleep(0.05)
    return touch(array)


def array_of(size: int) -> Any:
    import numpy as np

    return np.arange(size // 8, dtype=np.float64)


@cache
def frame(rows: int) -> Any:
    """The same each time: what is measured is how it travels."""
    import pandas as pd

    names = [f"name {row}" for row in range(rows)]
    return pd.DataFrame(
        {"id": range(rows), "name": names, "price": [row / 7 for row in range(rows)]}
    )


def own_pid(seconds: float = 0.0) -> int:
    """With some seconds: stay long enough that every worker gets one of these."""
    time.sleep(seconds)
    return os.getpid()


def stay(fifo: str) -> None:
    """Until somebody opens the other end: keeps a worker busy at no cost."""
    with open(fifo, "rb"):
        pass
