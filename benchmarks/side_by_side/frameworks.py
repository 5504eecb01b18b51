"""Those of the pools that are more than one: joblib, and two that could reach other machines."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Iterable, Iterator
from typing import Any

from benchmarks.side_by_side.peer import Func, Peer

LOOPBACK = "127.0.0.1"


def in_parallel(func: Func, items: Iterable[Any], workers: int, **options: Any) -> Any:
    """joblib's loop, by the backend that has been chosen."""
    from joblib import Parallel, delayed

    return Parallel(workers, **options)(delayed(func)(item) for item in items)


class Joblib(Peer):
    """It has no call that hands in one task and returns; a large object is a task of one."""

    module = "joblib"
    start_methods = ()  # loky's
    distribution = "joblib"

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        self._workers = workers

    def with_constant(self, func: Func, constant: Any, items: list[Any]) -> Iterable[Any]:
        """It maps large arrays from a file, which it writes once."""
        from joblib import Parallel, delayed

        call = delayed(func)
        return Parallel(self._workers)(call(constant, item) for item in items)  # type: ignore[no-any-return]

    with_shared = with_constant

    def call(self, func: Func, *args: Any) -> Any:
        return in_parallel(func, args, self._workers)[0]

    def map(self, func: Func, items: list[Any]) -> Iterable[Any]:
        return self.parallel(func, items)

    def imap(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return iter(in_parallel(func, items, self._workers, return_as="generator", batch_size=1))

    def imap_unordered(self, func: Func, items: list[Any]) -> Iterator[Any]:
        how = "generator_unordered"
        return iter(in_parallel(func, items, self._workers, return_as=how, batch_size=1))

    def parallel(self, func: Func, items: Iterable[Any]) -> list[Any]:
        return in_parallel(func, items, self._workers)  # type: ignore[no-any-return]

    def run_all(self, func: Func, arguments: Iterable[Any]) -> None:
        self.parallel(func, arguments)


class Ray(Peer):
    """A cluster of this machine alone."""

    module = "ray"
    joblib_module = "ray.util.joblib"
    start_methods = ()  # its own
    distribution = "ray"
    default_chunk_is_one = True
    heavy = True

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            logging_level=logging.ERROR,
            _node_ip_address=LOOPBACK,
        )
        self._workers = workers
        self._remote: dict[Func, Any] = {}

    def _run(self, func: Func, *args: Any) -> Any:
        import ray

        if func not in self._remote:
            self._remote[func] = ray.remote(func)
        return self._remote[func].remote(*args)

    def submit(self, func: Func, *args: Any) -> Any:
        return self._run(func, *args)

    def result(self, handle: Any) -> Any:
        import ray

        return ray.get(handle)

    def awaitable(self, func: Func, *args: Any) -> Awaitable[Any]:
        waiting: Awaitable[Any] = asyncio.ensure_future(self._run(func, *args))
        return waiting

    def map(self, func: Func, items: list[Any]) -> Iterable[Any]:
        return self.result([self._run(func, item) for item in items])  # type: ignore[no-any-return]

    def imap(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return map(self.result, [self._run(func, item) for item in items])

    def with_constant(self, func: Func, constant: Any, items: list[Any]) -> Iterable[Any]:
        import ray

        stored = ray.put(constant)
        return self.result([self._run(func, stored, item) for item in items])  # type: ignore[no-any-return]

    with_shared = with_constant

    def parallel(self, func: Func, items: list[Any]) -> list[Any]:
        from joblib import parallel_config
        from ray.util.joblib import register_ray

        register_ray()
        with parallel_config(backend="ray"):
            return in_parallel(func, items, self._workers)  # type: ignore[no-any-return]

    def run_all(self, func: Func, arguments: Iterable[Any]) -> None:
        self.result([self._run(func, argument) for argument in arguments])


class Dask(Peer):
    """Its scheduler is another process, or a thread of this one: here the latter, its default."""

    module = "distributed"
    start_methods = ()  # its own
    distribution = "distributed"
    default_chunk_is_one = True
    heavy = True

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        from distributed import Client

        self._client: Any = Client(
            n_workers=workers,
            threads_per_worker=1,
            host=LOOPBACK,
            dashboard_address=None,
        )
        self._client.wait_for_workers(workers)
        self._workers = workers

    def submit(self, func: Func, *args: Any) -> Any:
        return self._client.submit(func, *args, pure=False)

    def result(self, handle: Any) -> Any:
        return handle.result()

    def future(self, func: Func, *args: Any) -> Any:
        return self._client.get_executor(pure=False).submit(func, *args)

    def map(self, func: Func, items: list[Any]) -> Iterable[Any]:
        return self._client.gather(self._client.map(func, items, pure=False))  # type: ignore[no-any-return]

    def imap(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return map(self.result, self._client.map(func, items, pure=False))

    def with_constant(self, func: Func, constant: Any, items: list[Any]) -> Iterable[Any]:
        there = self._client.scatter(constant, broadcast=True)
        handles = [self.submit(func, there, item) for item in items]
        return self._client.gather(handles)  # type: ignore[no-any-return]

    with_shared = with_constant

    def parallel(self, func: Func, items: list[Any]) -> list[Any]:
        from joblib import parallel_config

        with parallel_config(backend="dask"):
            return in_parallel(func, items, self._workers)  # type: ignore[no-any-return]

    def run_all(self, func: Func, arguments: Iterable[Any]) -> None:
        self._client.gather([self.submit(func, argument) for argument in arguments])
