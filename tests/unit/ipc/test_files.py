"""Files that are used again: only once nobody has them, and not for ever."""

from __future__ import annotations

import mmap
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers import eventually
from prefork._ipc import memfd
from prefork._ipc.memfd import MemfdCache, MemoryFile, Transport

SIZE = 1 << 16


@pytest.fixture(params=[Transport(), Transport(memfd=False)], ids=["memfd", "temporary file"])
def make(request):
    def make(content=b"x", size=SIZE):
        file = MemoryFile("prefork-test", request.param)
        file.write(memoryview(content * size), 0)
        return file

    return make


def mapped(fd):
    return mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)


def test_a_file_is_leased_as_long_as_somebody_has_it_or_has_mapped_it(make):
    file = make()
    assert not file.is_leased()
    one, another = file.lease(), file.lease()
    memory = mapped(one.fds[0])
    one.close()
    another.close()
    assert file.is_leased()
    view = memoryview(memory)
    del memory
    assert file.is_leased()
    del view
    assert not file.is_leased()


def test_a_file_is_leased_while_it_is_on_its_way(make):
    file = make()
    near, far = socket.socketpair()
    lease = file.lease()
    socket.send_fds(near, [b"!"], lease.fds)
    lease.close()
    assert file.is_leased()
    far.close()  # with the message unread
    near.close()
    eventually(lambda: not file.is_leased(), "the kernel drops what was never received")


def test_the_lease_of_a_process_ends_with_it(make):
    file = make()
    lease = file.lease()
    memory = mapped(lease.fds[0])
    lease.close()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    memory.close()
    assert file.is_leased()
    os.close(writer)
    os.waitpid(pid, 0)
    assert not file.is_leased()


def test_who_has_a_lease_cannot_change_the_file(make):
    file = make()
    lease = file.lease()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(lease.fds[0], b"y", 0)
    with pytest.raises(OSError, match="Invalid argument"):
        os.ftruncate(lease.fds[0], 0)
    memory = mapped(lease.fds[0])
    memory[0] = ord("y")
    assert os.pread(file.fd, 1, 0) == b"x"


def test_a_spare_file_is_used_again_once_it_is_free(make):
    memfd_cache = MemfdCache()
    file = make()
    lease = file.lease()
    memfd_cache.put(file)
    assert memfd_cache.take(SIZE) is None
    lease.close()
    assert memfd_cache.take(SIZE) is file
    assert memfd_cache.take(SIZE) is None


@pytest.mark.parametrize("size", [SIZE // 3, SIZE * 3])
def test_not_for_an_object_of_another_size(make, size):
    memfd_cache = MemfdCache()
    memfd_cache.put(make())
    assert memfd_cache.take(size) is None
    assert memfd_cache.take(SIZE * 3 // 2) is not None


def test_few_are_kept(make, monkeypatch):
    monkeypatch.setattr(memfd, "MOST_CACHED_BYTES", 3 * SIZE)
    memfd_cache = MemfdCache()
    made = [make() for _ in range(memfd.MOST_CACHED + 1)]
    for file in made:
        memfd_cache.put(file)
    assert [file.fd >= 0 for file in made] == [False, True, True]
    large = make(size=3 * SIZE)
    memfd_cache.put(large)
    assert len(memfd_cache) == 1
    assert memfd_cache.take(3 * SIZE) is large
    too_large = make(size=3 * SIZE + 1)
    memfd_cache.put(too_large)
    assert too_large.fd < 0


def test_they_are_closed_when_nobody_has_used_them_for_a_while(make, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told = []
    memfd_cache = MemfdCache(lambda: told.append(now))
    assert memfd_cache.tidy() is None
    memfd_cache.put(make())
    now += memfd.CACHE_SECONDS / 2
    file = make()
    memfd_cache.put(file)
    assert told == [100.0]
    assert memfd_cache.tidy() == now + memfd.CACHE_SECONDS
    now += memfd.CACHE_SECONDS
    assert memfd_cache.tidy() is None
    assert file.fd < 0
    memfd_cache.put(make())
    assert told == [100.0, now]


def test_threads_never_get_the_same_file(make):
    """Nor do they disturb one another."""
    memfd_cache = MemfdCache()
    held = set()

    def work(_):
        for _ in range(300):
            file = memfd_cache.take(SIZE) or make(size=SIZE)
            assert file.fd not in held
            held.add(file.fd)
            held.remove(file.fd)
            memfd_cache.put(file)
            memfd_cache.tidy()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert 0 < len(memfd_cache) <= memfd.MOST_CACHED


def test_a_descriptor_that_somebody_has_closed_is_let_alone(make, tmp_path):
    memfd_cache = MemfdCache()
    memfd_cache.put(make())
    memfd_cache.put(make(size=3 * SIZE))
    numbers = [file.fd for file in memfd_cache._files]
    foreign = tmp_path / "foreign"
    with foreign.open("wb") as file:
        for number in numbers:
            os.dup2(file.fileno(), number)
    assert memfd_cache.take(SIZE) is None
    memfd_cache.close()
    for number in numbers:
        os.close(number)  # it was still open
    assert foreign.read_bytes() == b""


def test_closed_spares_keep_nothing(make):
    memfd_cache = MemfdCache()
    kept, late = make(), make()
    memfd_cache.put(kept)
    memfd_cache.close()
    memfd_cache.put(late)
    assert (kept.fd, late.fd, len(memfd_cache)) == (-1, -1, 0)


def test_without_proc_no_file_is_used_again(make, monkeypatch):
    monkeypatch.setattr(memfd, "_OPENED", "/nowhere")
    memfd_cache, file = MemfdCache(), make()
    memfd_cache.put(file)
    assert file.fd < 0
    with pytest.raises(FileNotFoundError):
        make().lease()
