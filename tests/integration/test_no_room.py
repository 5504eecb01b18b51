"""Workers that have no descriptor and no file space left, over both transports: the large object
fails, with the system's error, and nothing else."""

from __future__ import annotations

import functools
import os
import resource
from collections.abc import Callable
from typing import Any

import pytest

from helpers import DEADLINE
from prefork import Pool
from prefork._engine import starts
from prefork._ipc.channel import Channel
from prefork._ipc.memfd import Transport

LARGE = 2_000_000


@pytest.fixture(
    params=[Transport(True, True), Transport(False, False)], ids=["memfd-seqpacket", "file-dgram"]
)
def worker_pool(
    request: pytest.FixtureRequest,
    make_pool: Callable[..., Pool],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Pool]:
    """Makes pools of one worker, with an initializer."""
    monkeypatch.setattr(starts, "Channel", functools.partial(Channel, request.param))
    return lambda *init: make_pool(1, *init, context="fork")


def leave_descriptors(count: int) -> None:
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
    free = used - len(os.listdir("/proc/self/fd")) + 1
    for _ in range(free - count):
        os.dup(0)


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_worker_without_descriptors(worker_pool: Callable[..., Pool]) -> None:
    pool = worker_pool(leave_descriptors, (0,))
    large: list[Any] = [pool.apply_async(bytes, (LARGE,)) for _ in range(5)]
    large += [pool.apply_async(len, (bytes(LARGE),)) for _ in range(5)]
    small = [pool.apply_async(bytes, (size,)) for size in range(20)]
    assert [len(handle.get(DEADLINE)) for handle in large[:5]] == [LARGE] * 5
    assert [handle.get(DEADLINE) for handle in large[5:]] == [LARGE] * 5
    assert [len(handle.get(DEADLINE)) for handle in small] == list(range(20))


def test_a_worker_with_two_descriptors(worker_pool: Callable[..., Pool]) -> None:
    pool = worker_pool(leave_descriptors, (2,))  # the file, and its mapping
    for _ in range(20):
        assert pool.apply(len, (bytes(LARGE),)) == LARGE


def test_a_worker_without_room_for_files(worker_pool: Callable[..., Pool]) -> None:
    pool = worker_pool(limit_files, (LARGE // 2,))
    handles = [pool.apply_async(bytes, (size,)) for size in (LARGE, 10, LARGE, LARGE // 4)]
    for handle in handles[::2]:
        with pytest.raises(OSError, match="File too large"):
            handle.get(DEADLINE)
    assert [len(handle.get(DEADLINE)) for handle in handles[1::2]] == [10, LARGE // 4]


def test_a_pool_without_room_for_files(worker_pool: Callable[..., Pool]) -> None:
    pool = worker_pool()
    assert pool.apply(abs, (-1,)) == 1
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, before[1]))
    try:
        handles = [pool.apply_async(len, (bytes(size),)) for size in (LARGE, 10, LARGE, LARGE // 4)]
        for handle in handles[::2]:
            with pytest.raises(OSError, match="File too large"):
                handle.get(DEADLINE)
        assert [handle.get(DEADLINE) for handle in handles[1::2]] == [10, LARGE // 4]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("near", [4096, 1 << 16, 1 << 18])
def test_sizes_around_each_threshold(worker_pool: Callable[..., Pool], near: int) -> None:
    pool = worker_pool()
    sizes = range(near - 130, near + 40)
    assert pool.map(len, map(bytes, sizes), chunksize=1) == list(sizes)
    assert pool.map(bytes, sizes, chunksize=1) == [bytes(size) for size in sizes]
