"""What it costs to watch tasks: of this pool only, beside the same without being watched."""

from __future__ import annotations

import io
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

from benchmarks.side_by_side import tasks
from benchmarks.side_by_side.floors import Metrics
from benchmarks.side_by_side.measures import Bench

TURNS = 5
"""With and without, in turns: what else the machine does concerns both."""

FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


class _Bar:
    """Draws to where nothing is slow: what is measured is the pool's part."""

    def __init__(self, total: int | None) -> None:
        self._done, self._total = 0, total
        self._screen = io.StringIO()

    def update(self, n: int) -> None:
        self._done += n
        self._screen.write(f"\r{self._done} of {self._total}")


def progress(bench: Bench) -> Metrics:
    """`map` with a bar, divided by the same without (`ratio`)."""
    from prefork import Pool

    items = list(range(bench.size))
    seconds: dict[type[_Bar] | None, list[float]] = {None: [], _Bar: []}
    with Pool(2, context="fork") as pool:
        pool.map(tasks.noop, items, progress=_Bar)
        for _ in range(TURNS):
            for bar, found in seconds.items():
                begin = time.perf_counter()
                pool.map(tasks.noop, items, progress=bar)
                found.append(time.perf_counter() - begin)
    return {"ratio": median(seconds[_Bar]) / median(seconds[None])}


class _Counting(logging.StreamHandler[io.TextIOWrapper]):
    def __init__(self, file: io.TextIOWrapper) -> None:
        super().__init__(file)
        self.setFormatter(logging.Formatter(FORMAT))
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        self.count += 1


def logs(bench: Bench) -> Metrics:
    """Records from a worker to a handler that writes them to a file here, divided by the same to a
    file by the worker itself, where its standard error goes (`ratio`)."""
    with tempfile.TemporaryFile("w") as file:
        handler = _Counting(file)
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            turns = [(_logged(bench, handler, False), _logged(bench, handler, True)) for _ in "123"]
        finally:
            root.removeHandler(handler)
    return {"ratio": median(forwarded / own for own, forwarded in turns)}


def _logged(bench: Bench, handler: _Counting, forward: bool) -> float:
    """Seconds until all are written."""
    from prefork import Pool

    with Pool(1, context="fork", forward_logs=forward) as pool:
        pool.apply(tasks.log, (1,))
        _wait(lambda: handler.count >= forward)
        handler.count = 0
        begin = time.perf_counter()
        pool.apply(tasks.log, (bench.size,))
        _wait(lambda: handler.count >= forward * bench.size)
        seconds = time.perf_counter() - begin
    handler.count = 0
    return seconds


def _wait(is_done: Callable[[], bool]) -> None:
    while not is_done():
        time.sleep(sys.getswitchinterval() / 10)
