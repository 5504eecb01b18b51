"""Arguments and results of all sizes and kinds, both ways."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from helpers import DEADLINE, METHODS, eventually
from prefork import Pool

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

# Around what a pipe takes in one piece, what it holds, what travels in a file, what shared memory
# holds: powers of two, with a little more and less for what pickle and the messages add.
POWERS = (4 * KIB, 64 * KIB, 256 * KIB, MIB)
DELTAS = (-4096, -200, -100, -64, -33, -32, -17, -16, -8, -1, 0, 1, 16, 64, 200, 4096)
EDGES = sorted({power + delta for power in POWERS for delta in DELTAS})


@pytest.fixture(scope="module", params=METHODS)
def pool(request):
    with Pool(2, context=multiprocessing.get_context(request.param)) as pool:
        yield pool


def echo(value):
    return value


def digest(value):
    return hashlib.sha256(value).digest()


def some_bytes(size):
    """Different ones in different places."""
    return np.arange(size // 4 + 1, dtype=np.uint32).tobytes()[:size]


def make_bytes(size):
    return some_bytes(size)


@pytest.mark.parametrize("size", [0, 1, 300 * KIB, 64 * MIB], ids=str)
def test_bytes_of_all_sizes(pool, size):
    data = some_bytes(size)
    assert pool.apply_async(digest, (data,)).get(DEADLINE) == digest(data)
    assert pool.apply_async(make_bytes, (size,)).get(DEADLINE) == data


@pytest.mark.parametrize("length", [0, 1, 64 * KIB - 5, 64 * KIB, 300 * KIB], ids=str)
def test_long_strings(pool, length):
    text = "é" * length
    assert pool.apply_async(echo, (text,)).get(DEADLINE) == text
    assert pool.map(echo, [text, text], 1) == [text, text]


def test_sizes_around_all_edges(make_pool):
    pool = make_pool(2)
    for size in EDGES:
        data = some_bytes(size)
        assert pool.apply_async(digest, (data,)).get(DEADLINE) == digest(data), size
        assert pool.apply_async(make_bytes, (size,)).get(DEADLINE) == data, size


def test_every_size_around_64_kib(make_pool):
    pool = make_pool(1)
    for size in range(64 * KIB - 150, 64 * KIB + 50):
        data = bytes(size)
        assert pool.apply_async(echo, (data,)).get(DEADLINE) == data, size


def test_many_payloads_at_once(pool):
    sizes = EDGES * 2
    handles = [pool.apply_async(make_bytes, (size,)) for size in sizes]
    results = pool.imap(digest, map(some_bytes, sizes), 3)
    assert [handle.get(DEADLINE) for handle in handles] == [some_bytes(size) for size in sizes]
    assert list(results) == [digest(some_bytes(size)) for size in sizes]
    assert pool.map(len, [some_bytes(size) for size in sizes], 5) == sizes


def test_small_and_large_ones_in_turn(make_pool):
    pool = make_pool(1)
    data = [some_bytes(size) for size in (10, 100 * KIB, 0, 2 * MIB, 70 * KIB, 60 * KIB) * 10]
    handles = [pool.apply_async(echo, (each,)) for each in data]
    assert [handle.get(DEADLINE) for handle in handles] == data


@pytest.mark.parametrize("count", [100, 30_000])
def test_objects_of_many_parts(pool, count):
    value = {str(number): (number, [number] * 3, b"x" * 50) for number in range(count)}
    assert pool.apply_async(echo, (value,)).get(DEADLINE) == value


# --- arrays

ARRAYS = {
    "empty": lambda: np.empty((0, 3)),
    "scalar": lambda: np.array(5.5),
    "small": lambda: np.arange(10),
    "60 KB": lambda: np.arange(60_000, dtype=np.uint8),
    "large": lambda: np.arange(1_000_000).reshape(1000, 1000),
    "fortran": lambda: np.asfortranarray(np.arange(1_000_000).reshape(1000, 1000)),
    "strided": lambda: np.arange(2_000_000)[::2],
    "reversed": lambda: np.arange(1_000_000)[::-1],
    "transposed": lambda: np.arange(999_000).reshape(999, 1000).T,
    "broadcast": lambda: np.broadcast_to(np.arange(1000), (300, 1000)),
    "slice": lambda: np.arange(1_000_000).reshape(1000, 1000)[100:900, 100:900],
    "object": lambda: np.array([{"a": 1}, None, "x", [1, 2]] * 10_000, dtype=object),
    "strings": lambda: np.array(["text", "more"] * 50_000),
    "structured": lambda: np.zeros(100_000, dtype=[("a", "i4"), ("b", "f8", (2,))]),
    "dates": lambda: np.arange("2020-01-01", "2300-01-01", dtype="datetime64[D]"),
    "big-endian": lambda: np.arange(100_000, dtype=">i4"),
    "masked": lambda: np.ma.masked_less(np.arange(100_000), 500),
}


def check_and_change(array):
    """What the receiver may do with it: read it and write to it."""
    assert array.flags.writeable
    before = array.copy()
    if array.size:
        array.reshape(-1)[:1] = array.reshape(-1)[-1:]
        array.flat[0] = array.flat[array.size - 1]
    return before


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(pool, name):
    array = ARRAYS[name]()
    expected = array.copy()
    result = pool.apply_async(check_and_change, (array,)).get(DEADLINE)
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    assert type(result) is type(expected)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(array, expected)  # the worker has written to a copy
    check_and_change(result)
    # The same once more: neither has changed what the other sees.
    np.testing.assert_array_equal(pool.apply_async(echo, (array,)).get(DEADLINE), expected)


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_read_only_arrays(pool, size):
    array = np.arange(size)
    array.flags.writeable = False
    np.testing.assert_array_equal(pool.apply(echo, (array,)), array)
    assert pool.apply(np.sum, (array,)) == array.sum()


def array_views():
    """Parts that share their memory."""
    array = np.arange(500_000)
    return [array, array[:100_000], array[::3], array]


def test_arrays_in_other_objects(pool):
    value = {"a": [np.arange(100_000)], "b": (np.zeros(3), "text", np.ones((500, 500)))}
    result = pool.apply_async(echo, (value,)).get(DEADLINE)
    np.testing.assert_array_equal(result["a"][0], value["a"][0])
    np.testing.assert_array_equal(result["b"][2], value["b"][2])
    whole, part, strided, again = pool.apply_async(array_views).get(DEADLINE)
    assert whole is again
    np.testing.assert_array_equal(part, whole[:100_000])
    np.testing.assert_array_equal(strided, whole[::3])


def test_arrays_through_all_calls(pool):
    arrays = [np.full(50_000, number) for number in range(20)]
    sums = [50_000 * number for number in range(20)]
    assert pool.map(np.sum, arrays) == sums
    assert pool.map(np.sum, arrays, 7) == sums
    assert pool.starmap(np.dot, [(a, np.ones(50_000)) for a in arrays]) == sums
    for chunksize in (1, 3):
        results = list(pool.imap(np.negative, arrays, chunksize))
        assert [int(-array.sum()) for array in results] == sums
        assert all(array.flags.writeable for array in results)


def many_views(count):
    array = np.arange(9000)
    return [array[:] for _ in range(count)]


def count_views(views):
    return len(views), int(sum(view[-1] for view in views))


KEPT = []


def keep(array):
    KEPT.append(array)
    return len(KEPT)


def first_of_kept(_):
    return [int(array[0]) for array in KEPT]


def test_a_task_keeps_its_arguments(make_pool):
    """What a worker holds on to stays as it is, however many others come and go."""
    pool = make_pool(1)
    arrays = [np.full(100_000, n) for n in range(200)]
    assert pool.map(keep, arrays, 1) == list(range(1, 201))
    assert pool.apply(first_of_kept, (None,)) == list(range(200))


# --- files that are used again


def file_of(array):
    """The number of the file that this array's memory belongs to."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            area, _, _, _, inode, *_ = line.split()
            start, end = (int(part, 16) for part in area.split("-"))
            if start <= address < end:
                return int(inode)
    raise AssertionError("it is nowhere")


def doubled(array):
    return array * 2


def test_one_large_object_after_another_takes_few_files(make_pool):
    pool = make_pool(1)
    array = np.arange(100_000)
    there = {pool.apply(file_of, (array + n,)) for n in range(20)}
    back = {file_of(pool.apply(doubled, (array,))) for _ in range(20)}
    mirrored = {file_of(pool.apply(echo, (array,))) for _ in range(20)}
    assert 0 not in there | back | mirrored
    assert max(map(len, (there, back, mirrored))) <= 3


def keep_some(array, n):
    if n % 3 == 0:
        KEPT.append(array)
    return array + 1


def kept_as_they_came(_):
    return all((array == array[0]).all() for array in KEPT) and len(KEPT)


def test_what_is_kept_is_not_written_over(pool):
    """By the worker, by the caller, for a while or for ever, while others come and go."""
    workers = 2
    kept = {}
    for n in range(120):
        array = np.full(20_000 + 5_000 * (n % 4), n)
        handles = [pool.apply_async(keep_some, (array, n)) for _ in range(workers)]
        results = [handle.get(DEADLINE) for handle in handles]
        assert all((result == n + 1).all() for result in results)
        kept[n % 50] = n, results
    assert all((result == n + 1).all() for n, results in kept.values() for result in results)
    barrier = pool.map(kept_as_they_came, range(20), 1)
    assert False not in barrier
    assert max(barrier) > 1


def large_files(pid):
    found = 0
    for name in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += "prefork-payload" in os.readlink(name)
    return found


def test_files_are_closed_when_nobody_needs_them(make_pool):
    pool = make_pool(1)
    array = np.arange(100_000)
    [worker] = pool.statistics().workers
    # What other tests have left to the garbage collector is open here, and inherited by a fork.
    before = {pid: large_files(pid) for pid in (os.getpid(), worker.pid)}
    pool.apply(doubled, (array,))
    for pid, count in before.items():
        eventually(lambda: large_files(pid) <= count, f"{pid} has closed its files")  # noqa: B023
    assert (pool.apply(doubled, (array,)) == array * 2).all()


@pytest.mark.serial
def test_very_many_large_buffers(make_pool):
    """More than fit into one message of their lengths: 10,000 buffers of 70 KB."""
    pool = make_pool(1)
    count = 10_000
    assert pool.apply_async(count_views, (many_views(count),)).get(DEADLINE) == (
        count,
        count * 8999,
    )
    result = pool.apply_async(many_views, (count,)).get(DEADLINE)
    assert count_views(result) == (count, count * 8999)


def test_bytearrays_and_memory(pool):
    for size in (10, 200_000):
        data = bytearray(os.urandom(size))
        result = pool.apply(echo, (data,))
        assert result == data
        result[0] ^= 1
        assert result != data


# --- very large


def available_memory():
    with open("/proc/meminfo") as meminfo:
        fields = dict(line.split(":") for line in meminfo)
    return int(fields["MemAvailable"].split()[0]) * KIB


def zeros(size):
    return bytes(size)


@pytest.mark.serial
@pytest.mark.timeout(300)
@pytest.mark.skipif(available_memory() < 14 * GIB, reason="needs 14 GiB of available memory")
def test_a_result_of_3_gb(make_pool):
    """The object, its pickle and the file it travels in, and the object again."""
    pool = make_pool(1)
    size = 3_000_000_000
    result = pool.apply_async(zeros, (size,)).get(250)
    assert len(result) == size
    assert result.count(0, size - 1000) == 1000
    del result
    assert pool.apply(echo, (5,)) == 5
