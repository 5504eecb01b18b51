"""Executors of others, and what is done to the nodes that they have run."""

from __future__ import annotations

import contextlib
import copyreg
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@contextlib.contextmanager
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2) as executor:
        yield executor


@contextlib.contextmanager
def dask() -> Iterator[Executor]:
    before = dict(copyreg.dispatch_table)
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with (
        cluster,
        distributed.Client(cluster) as client,
        client.get_executor(pure=False) as executor,
    ):
        yield executor
    # It has registered reducers for all exceptions: not for the other tests of this process.
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@contextlib.contextmanager
def executorlib() -> Iterator[Executor]:
    with pytest.importorskip("executorlib").SingleNodeExecutor(max_workers=2) as executor:
        yield executor


EXECUTORS: list[Callable[[], Any]] = [threads, processes, dask, executorlib]


def of_session(session: int) -> list[int]:
    """The processes of a node."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == session:
                found.append(pid)
    return found


def signal_node(pid: int, signum: signal.Signals) -> int:
    """To all processes of the node that this one belongs to; the node's session."""
    session = os.getsid(pid)
    for each in of_session(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signum)
    return session
