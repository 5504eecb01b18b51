"""Pools over executors of others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import pytest
from executors import threads

from prefork.cluster import Pool


@pytest.fixture
def make() -> Iterator[Callable[..., Pool]]:
    """Makes pools of two nodes with one process each, over threads unless told otherwise."""
    with contextlib.ExitStack() as stack:

        def pool(executor: Executor | None = None, nodes: int = 2, **options: Any) -> Pool:
            if executor is None:
                executor = stack.enter_context(threads())
            made = Pool(executor, nodes, processes_per_node=1, **options)
            stack.callback(made.terminate)
            return made

        yield pool
