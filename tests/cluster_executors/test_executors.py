"""`prefork.cluster.Pool` has the verbs of a pool, whatever executor has its nodes run."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import executor_work as work
import pytest
from executors import EXECUTORS, dask

import prefork
from helpers import Script, eventually
from prefork import (
    MaybeDecodingError,
    MaybeEncodingError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from prefork.cluster import Pool

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "cluster.md"


@pytest.fixture(scope="module", params=EXECUTORS, ids=lambda make: make.__name__)
def shared(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("files"))  # where some executors leave theirs
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the modules are there, too
        with request.param() as executor, Pool(executor, 2, processes_per_node=1) as pool:
            eventually(lambda: len(pool.statistics().nodes) == 2, "both nodes answer")
            yield pool


@pytest.fixture
def pool(shared):
    yield shared
    eventually(lambda: shared.statistics().unfinished == 0, "nothing is left behind")


def test_verbs(pool):
    expected = [2 * x for x in range(3000)]
    assert pool.apply(work.add, (1,), {"y": 2}) == 3
    assert pool.submit(work.add, 1, y=5).result(30) == 6
    assert pool.map(work.double, range(3000)) == expected
    assert pool.starmap(work.add, [(1, 2), (3, 4)]) == [3, 7]
    assert list(pool.imap(work.double, iter(range(3000)))) == expected
    assert sorted(pool.imap_unordered(work.double, range(3000))) == expected
    assert list(pool.executor().map(work.double, range(100), chunksize=7)) == expected[:100]
    assert pool.options(timeout=60).apply(work.double, (2,)) == 4


def test_in_an_event_loop(pool):
    async def main():
        assert await pool.submit(work.double, 3) == 6
        return [x async for x in pool.imap(work.double, range(100))]

    assert asyncio.run(main()) == [2 * x for x in range(100)]


def test_what_has_no_name_elsewhere_goes_along(pool):
    class Local:
        def __init__(self, x):
            self.x = x

    factor = 3
    assert pool.map(lambda x: factor * x, range(5)) == [0, 3, 6, 9, 12]
    found = pool.apply(lambda local: Local(local.x + 1), (Local(1),))
    assert type(found) is Local
    assert found.x == 2
    assert pool.apply("text".upper) == "TEXT"
    assert pool.apply(abs, (-1,)) == 1


def test_values_arrive_as_they_are(pool):
    values = [(1, 2), {3: "x"}, {4}, b"\n!?", None, 1.5, "é", range(3), Path("x")]
    assert pool.map(lambda x: x, values) == values


def test_a_crash_costs_its_item_alone(pool):
    handles = [pool.apply_async(os.abort if x == 20 else work.double, () if x == 20 else (x,))
               for x in range(40)]  # fmt: skip
    for x, handle in enumerate(handles):
        if x == 20:
            with pytest.raises(WorkerLostError) as caught:
                handle.get(30)
            assert caught.value.exitcode == -signal.SIGABRT
        else:
            assert handle.get(30) == 2 * x
    assert len(pool.statistics().nodes) == 2


def test_an_error_of_a_function(pool):
    with pytest.raises(work.OwnError, match="7") as caught:
        pool.apply(work.fail, (7,))
    assert any(note.startswith("on node ") for note in caught.value.__notes__)
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(UnicodeDecodeError, match="invalid start byte") as broken:
        pool.apply(b"\xff".decode)
    assert broken.value.object == b"\xff"


def test_what_cannot_be_pickled(pool):
    with pytest.raises(TypeError, match="does not travel"):
        pool.apply(work.double, (work.NeverPickled(),))
    with pytest.raises(TypeError, match="does not travel"):
        pool.map(work.double, [1, work.NeverPickled()])
    thing = work.NeverPickled()
    with pytest.raises(TypeError, match="does not travel"):
        pool.apply(lambda: thing)
    with pytest.raises(MaybeEncodingError, match="does not travel"):
        pool.apply(work.NeverPickled)
    with pytest.raises(MaybeDecodingError, match="at home"):
        pool.apply(work.NeverUnpickled)


def test_limits_retries_and_random_numbers(pool, tmp_path):
    with pytest.raises(TimeLimitExceeded, match="in spin"):
        pool.apply(work.spin, timeout=0.2)
    with pytest.raises(WorkerLostError):
        pool.apply(os.abort, retries=1)
    with prefork.Pool(2) as local:
        expected = local.map(work.random_number, range(50), seed=3)
    assert pool.map(work.random_number, range(50), seed=3) == expected


def test_large_values(pool):
    text = "x" * (20 << 20)
    assert pool.apply(lambda x: x + "y", (text,)) == text + "y"


def test_terminate_ends_what_runs(pool, gate):
    handle = pool.apply_async(gate.enter)
    gate.arrival()
    assert handle.terminate()
    with pytest.raises(Terminated):
        handle.get(30)
    assert pool.map(work.double, [1, 2, 3]) == [2, 4, 6]


def test_what_can_be_seen(pool):
    sessions = set(pool.map(work.node_of, range(200), 1))
    statistics = pool.statistics()
    assert statistics.processes == 2
    assert sum(node.items for node in statistics.nodes) >= 200
    assert os.getsid(0) not in sessions
    stacks = pool.dump_stacks()
    assert stacks.keys() == {node.name for node in statistics.nodes}
    assert "Pool: running, 2 nodes" in repr(pool)


def test_a_killed_dask_worker_costs_its_running_items_alone(gate):
    with dask() as executor, Pool(executor, 2, processes_per_node=1) as pool:
        eventually(lambda: len(pool.statistics().nodes) == 2, "both nodes answer")
        held = [pool.apply_async(gate.enter, (x,)) for x in range(2)]
        others = [pool.apply_async(work.double, (x,)) for x in range(50)]
        visitors = [gate.arrival() for _ in range(2)]
        workers = executor._client.run(os.getpid)
        assert len(workers) == 2
        os.kill(next(iter(workers.values())), signal.SIGKILL)
        eventually(lambda: any(handle.ready() for handle in held), "what it ran has failed")
        for visitor in visitors:
            visitor.go()
        for handle in held:
            handle.wait(60)
        failed = [handle.failure() for handle in held if handle.failure() is not None]
        assert len(failed) == 1
        assert isinstance(failed[0], WorkerLostError)
        assert [handle.get(60) for handle in others] == [2 * x for x in range(50)]
        eventually(lambda: len(pool.statistics().nodes) == 2, "dask has a node run again")


def test_the_pages_example(tmp_path):
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("dask's distributed is not installed")
    found = re.search(r":caption: over_dask.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    expected = re.findall(r"# prints: (.*)", found[1])
    program = tmp_path / "over_dask.py"
    program.write_text(found[1])
    script = Script(program)
    try:
        code, out, err = script.finish()
    finally:
        script.close()
    assert (code, out.splitlines()) == (0, expected), err
    assert sys.executable
