"""Objects that are there in one copy for all workers: `share`."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest

import prefork
from helpers import DEADLINE, constant_files, eventually, has_ended, mark, marked
from prefork import Pool, PreforkError, Shared, WorkerLostError, share

SIZE = 1 << 22


@pytest.fixture
def pool(make_pool, context):
    return make_pool(2, context=context)


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield

    def are_closed() -> bool:
        gc.collect()  # each time: a thread of a pool may just be ending, and be part of a cycle
        return constant_files() == (0, 0)

    eventually(are_closed, "files of constants are closed")


def item(shared, index):
    return int(shared.get()[index])


def array():
    return np.arange(SIZE, dtype=np.uint8)


def test_a_handle_is_an_argument(pool):
    with share(array()) as shared:
        handles = [pool.apply_async(item, (shared, i)) for i in range(50)]
        assert [handle.get(DEADLINE) for handle in handles] == list(range(50))
        assert pool.starmap(item, [(shared, i) for i in range(9)]) == list(range(9))
        assert pool.submit(item, shared, 7).result(DEADLINE) == 7
        assert list(pool.executor().map(item, [shared] * 5, range(5))) == list(range(5))


def test_a_handle_is_part_of_a_function(pool):
    with share(array()) as shared:
        func = functools.partial(item, shared)
        assert pool.map(func, range(50), 1) == list(range(50))
        assert list(pool.imap(func, range(50), 3)) == list(range(50))
        large = functools.partial(both, shared, array())
        assert pool.map(large, range(6), 2) == [2 * i for i in range(6)]


def both(shared, mine, index):
    return int(shared.get()[index]) + int(mine[index])


kept: Shared[np.ndarray] | None = None


def keep(shared):
    global kept
    kept = shared


def kept_item(index):
    return int(kept.get()[index])


def test_a_handle_is_an_argument_of_the_initializer(context):
    options = {"context": context, "initializer": keep, "maxtasksperchild": 2}
    with Pool(1, initargs=(share(array()),), **options) as pool:
        assert pool.map(kept_item, range(6), 1) == list(range(6))


def nested(shared, index):
    with Pool(1) as pool:
        return pool.apply(item, (shared, index))


def test_a_handle_goes_to_an_inner_pool(pool):
    with share(array()) as shared:
        assert pool.apply(nested, (shared, 5)) == 5


def tell(shared, queue):
    queue.put(item(shared, 3))


def test_a_handle_goes_to_other_processes(context):
    with share(array()) as shared:
        queue = context.SimpleQueue()
        process = context.Process(target=tell, args=(shared, queue))
        process.start()
        assert queue.get() == 3
        process.join()


def test_a_temporary_handle_lives_as_long_as_its_jobs(pool):
    results = [pool.apply_async(item, (share(array()), 9)) for _ in range(5)]
    assert [result.get(DEADLINE) for result in results] == [9] * 5


def is_same(shared, index):
    return id(shared.get())


def is_writable(shared):
    return shared.get().flags.writeable


def test_it_is_unpickled_once_and_cannot_be_written_to(make_pool):
    pool = make_pool(1)
    with share(array()) as shared:
        assert len(set(pool.starmap(is_same, [(shared, i) for i in range(9)], 1))) == 1
        assert not pool.apply(is_writable, (shared,))
        assert shared.get() is shared.get()
        assert not is_writable(shared)


class Model:
    def __init__(self):
        self.weights = {"a": array(), "names": ["x", "y"]}

    def equals(self, other):
        return self.weights["names"] == other.weights["names"] and bool(
            (self.weights["a"] == other.weights["a"]).all()
        )


def make_frame():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"a": np.arange(100_000), "b": ["text"] * 100_000})


def make_table():
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.table({"a": list(range(100_000)), "b": ["text"] * 100_000})


KINDS = {
    "nothing": lambda: None,
    "number": lambda: 5,
    "bytes": lambda: bytes(range(256)) * 4096,
    "bytearray": lambda: bytearray(range(256)) * 4096,
    "text": lambda: "é" * 1_000_000,
    "dict": lambda: {str(i): i for i in range(100_000)},
    "object": Model,
    "frame": make_frame,
    "table": make_table,
}


def compare(shared, expected):
    found = shared.get()
    same = found.equals(expected) if hasattr(found, "equals") else found == expected
    return type(found) is type(expected) and same


@pytest.mark.parametrize("kind", KINDS)
def test_objects_of_all_kinds(pool, kind):
    obj = KINDS[kind]()
    with share(obj) as shared:
        assert pool.apply(compare, (shared, obj))
        assert compare(shared, obj)


def test_a_buffer_is_seen_as_memory(pool):
    data = bytes(range(256)) * 4096
    with share(pickle.PickleBuffer(data)) as shared:
        assert pool.apply(item, (shared, 77)) == 77


def inner_item(shared, index):
    return item(shared.get()["inner"], index)


def test_shared_objects_in_a_shared_object(pool):
    outer = share({"inner": share(array())})
    assert pool.apply(inner_item, (outer, 6)) == 6
    assert pool.map(functools.partial(inner_item, outer), range(6), 1) == list(range(6))


# --- the end of it


def test_idle_workers_forget_what_was_released(pool):
    shared = share(array())
    assert pool.map(functools.partial(item, shared), range(50), 1) == list(range(50))
    assert (pool.statistics().shared, pool.statistics().shared_bytes) == (1, shared.nbytes)
    pids = [worker.pid for worker in pool.statistics().workers]
    assert any(constant_files(pid)[0] for pid in pids)
    del shared
    eventually(lambda: not any(constant_files(pid)[0] for pid in pids), "workers have unmapped it")
    assert (pool.statistics().shared, pool.statistics().shared_bytes) == (0, 0)


def test_a_task_may_keep_what_was_released(make_pool):
    pool = make_pool(1)
    pool.apply(keep, (share(array()),))
    assert pool.apply(kept_item, (4,)) == 4
    pool.apply(keep, (None,))


def test_a_handle_that_was_released(pool):
    shared = pool.share(array())
    assert repr(shared) == f"<Shared numpy.ndarray, {shared.nbytes} bytes>"
    shared.release()
    shared.release()
    with pytest.raises(ValueError, match="released"):
        shared.get()
    with pytest.raises(ValueError, match="released"):
        pool.apply(item, (shared, 1))


def test_what_the_owner_has_released_is_in_nobodys_reach():
    shared = share(array())
    pickled = pickle.dumps(shared)
    assert pickle.loads(pickled).get() is shared.get()
    del shared
    gc.collect()
    with pytest.raises(PreforkError, match=f"by process {os.getpid()}"):
        pickle.loads(pickled).get()


def test_what_cannot_be_pickled():
    with pytest.raises(TypeError, match="cannot pickle") as caught, open(os.devnull) as file:
        share([file])
    notes = caught.value.__notes__  # from Python 3.14 on, pickle adds some of its own
    assert "to share it" in notes[-1]
    reader, writer = multiprocessing.Pipe()
    with reader, writer, pytest.raises(pickle.PicklingError, match="descriptors"):
        share(reader)


def test_too_many_in_one_call(make_pool):
    pool = make_pool(1)
    handles = [share(i) for i in range(251)]
    assert pool.apply(len, (handles[1:],)) == 250
    with pytest.raises(ValueError, match="250 shared objects"):
        pool.apply(len, (handles,))


def test_more_of_them_than_there_may_be_files(make_pool):
    pool = make_pool(2)
    handles = [share(np.full(1 << 17, n, np.uint8)) for n in range(200)]
    assert constant_files()[1] == 128
    assert pool.starmap(item, [(handle, 5) for handle in handles], 1) == list(range(200))
    assert pickle.loads(pickle.dumps(handles[-1])).get()[0] == 199
    assert pool.apply(nested, (handles[-1], 5)) == 199


def send_back(shared):
    return shared


def test_a_handle_as_a_result_is_the_same_object(pool):
    with share(array()) as shared:
        back = pool.apply(send_back, (shared,))
        assert isinstance(back, Shared)
        assert back.get() is shared.get()


def share_there():
    keep(share(array()))
    return kept


def test_a_task_shares_too(pool):
    handle = pool.apply(share_there)
    assert item(handle, 8) == 8


def kill_once(shared, path, index):
    if index == 5 and not path.exists():
        mark(path)
        os.kill(os.getpid(), signal.SIGKILL)
    return item(shared, index)


def test_killed_workers_and_their_successors(pool, tmp_path):
    shared = share(array())
    func = functools.partial(kill_once, shared, tmp_path / "killed")
    assert pool.map(func, range(20), 1, retries=2) == list(range(20))
    with pytest.raises(WorkerLostError):
        pool.apply(kill_once, (shared, tmp_path / "again", 5))
    assert pool.map(func, range(20), 1) == list(range(20))


def test_replaced_workers_get_it_anew(make_pool, context):
    pool = make_pool(2, context=context, maxtasksperchild=1)
    shared = share(array())
    assert pool.map(functools.partial(item, shared), range(10), 1) == list(range(10))


def test_a_closed_pool_finishes_jobs_that_have_it(pool):
    results = [pool.apply_async(item, (share(array()), i)) for i in range(20)]
    pool.close()
    assert [result.get(DEADLINE) for result in results] == list(range(20))
    assert pool.join(DEADLINE)


OWNER = """
import functools, os, sys, time
from pathlib import Path
import numpy as np
from helpers import mark
from prefork import Pool, share

def item(shared, index):
    return int(shared.get().sum())

if __name__ == "__main__":
    pool = Pool(2, context=sys.argv[1])
    shared = share(np.ones(1 << 20, np.uint8))
    pool.map(functools.partial(item, shared), range(8), 1)
    mark(Path(sys.argv[2]))
    time.sleep(1000)
"""


def test_nobody_has_it_when_the_owner_was_killed(script, tmp_path, context):
    """It has no name, so the kernel frees it then."""
    path = tmp_path / "program.py"
    path.write_text(OWNER)
    process = script(path, context.get_start_method(), tmp_path / "ready")
    marked(tmp_path / "ready")
    found = [constant_files(pid) for pid in process.leftovers() if not has_ended(pid)]
    assert (0, 1) in found  # the owner's
    assert (1, 0) in found  # a worker's
    process.process.kill()
    eventually(lambda: not process.leftovers(), "all have ended")


FEW = """
import os, resource
from prefork import Pool, share

def item(shared, index):
    return shared.get()[index]

def take_all(_=None):
    global held
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    data = bytearray(range(256)) * 4096
    pool = Pool(2, context="fork")
    pool.map(take_all, range(8), 1)
    with share(data) as shared:
        assert pool.starmap(item, [(shared, i) for i in range(50)], 1) == list(range(50))
    take_all()
    with share(data) as shared:
        assert pool.starmap(item, [(shared, i) for i in range(50)], 1) == list(range(50))
    print("done")
"""


def test_without_a_descriptor_it_goes_the_slower_way(script):
    code, out, err = script(FEW).finish()
    assert (code, out) == (0, "done\n"), err


def test_names():
    assert prefork.share is share
    assert share.__module__ == Shared.__module__ == "prefork"
