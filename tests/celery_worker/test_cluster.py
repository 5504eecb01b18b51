"""`ClusterPool`: the verbs of a pool, with two nodes on real brokers. Nothing breaks here but what
the functions break; that is in `test_cluster_faults`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import uuid

import cluster_work as work
import pytest
from clusters import Cluster, cluster_on
from kombu import Producer

import prefork
from helpers import eventually, has_ended
from inside import boxes_of, queue_of
from prefork import Retry, Terminated, TimeLimitExceeded, WorkerLostError
from prefork.cluster import NodeLostError, NotAllowedError


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """Is written when a module is imported that must not be."""
    return tmp_path_factory.mktemp("secret") / "imported"


@pytest.fixture(scope="module")
def cluster(broker, tmp_path_factory, secret):
    env = {"CLUSTER_SECRET": str(secret)}
    with cluster_on(broker, tmp_path_factory.mktemp("cluster"), env=env) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared(cluster: Cluster):
    pool = cluster.pool()
    eventually(lambda: len(pool.statistics().nodes) == 2, "both nodes answer")
    yield pool
    pool.terminate()


@pytest.fixture
def pool(shared):
    yield shared
    eventually(lambda: shared.statistics().unfinished == 0, "nothing is left behind")


# ---- verbs and handles


def test_single_calls(pool):
    assert pool.apply(work.add, (1,)) == 11
    assert pool.apply(work.add, (1,), {"y": 2}) == 3
    handle = pool.apply_async(work.double, (4,))
    assert handle.get(30) == 8
    assert handle.ready()
    assert handle.successful()
    future = pool.submit(work.add, 1, y=5)
    assert future.result(30) == 6
    assert future.done()
    assert not future.cancelled()


def test_the_map_family(pool):
    expected = [2 * x for x in range(5000)]
    assert pool.map(work.double, range(5000)) == expected
    assert pool.map(work.double, range(100), 7) == expected[:100]
    assert pool.map(work.double, []) == []
    assert pool.starmap(work.add, [(1, 2), (3, 4)]) == [3, 7]
    assert list(pool.imap(work.double, iter(range(5000)))) == expected
    assert list(pool.imap(work.double, range(100), chunksize=9)) == expected[:100]
    assert sorted(pool.imap_unordered(work.double, range(5000))) == expected


def test_callbacks(pool):
    got = []
    pool.apply_async(work.double, (1,), callback=got.append).wait(30)
    pool.map_async(work.double, [1, 2], callback=got.append).wait(30)
    pool.apply_async(work.fail, (1,), error_callback=lambda e: got.append(type(e))).wait(30)
    assert got == [2, [2, 4], ValueError]


def test_in_an_event_loop(pool):
    async def main():
        assert await pool.apply_async(work.double, (3,)) == 6
        assert await pool.submit(work.double, 3) == 6
        return [x async for x in pool.imap(work.double, range(100))]

    assert asyncio.run(main()) == [2 * x for x in range(100)]


def test_random_numbers_depend_on_the_item_alone(pool):
    with prefork.Pool(2) as local:
        expected = local.map(work.random_number, range(50), seed=3)
    assert pool.map(work.random_number, range(50), seed=3) == expected
    assert list(pool.imap(work.random_number, range(50), seed=3)) == expected


def test_options_and_progress(pool):
    drawn = []

    class Bar:
        def update(self, n):
            drawn.append(n)

    assert len(pool.map(work.double, range(500), progress=lambda total: Bar())) == 500
    assert sum(drawn) == 500
    view = pool.options(timeout=60)
    assert view.apply(work.double, (2,)) == 4
    assert view.map(work.double, range(1000)) == [2 * x for x in range(1000)]
    assert list(view.options(priority=1).imap(work.double, range(10))) == [2 * x for x in range(10)]
    with pytest.raises(prefork.DeadlineExceeded):
        pool.options(deadline=0.2).apply(work.spin)


def test_as_an_executor(pool):
    executor = pool.executor()
    assert executor.submit(work.double, 2).result(30) == 4
    assert list(executor.map(work.double, range(100), chunksize=7)) == [2 * x for x in range(100)]
    executor.shutdown()
    assert pool.apply(work.double, (1,)) == 2


def test_results_of_any_json(pool):
    values = ["", "\n", "a\nb", "?", "!", "é€😀", None, True, -5, 1.5, [], {"a": [1, {"b": None}]}]
    assert pool.map(work.as_it_comes, values) == values
    assert [o.value for o in pool.each_async(work.as_it_comes, values).get(30)] == values
    assert pool.each_async(work.as_it_comes, []).get(30) == []


# ---- what goes wrong with a function


def test_an_error_of_a_function(pool):
    with pytest.raises(ValueError, match="7 is not to be had") as caught:
        pool.apply(work.fail, (7,))
    assert any(note.startswith("on node ") for note in caught.value.__notes__)
    assert "in fail" in str(caught.value.__cause__)
    assert "runner.py" not in str(caught.value.__cause__)
    with pytest.raises(work.OwnError):
        pool.apply(work.fail_in_its_own_way, (7,))


def test_a_process_that_dies_costs_its_item_alone(pool, tmp_path):
    log = tmp_path / "log"
    func = work.die_at_every_hundredth
    items = [(str(log), x) for x in range(500)]
    handles = [pool.apply_async(func, item) for item in items]
    outcomes = [(h.wait(60), h.failure())[1] for h in handles]
    lost = [x for x, error in enumerate(outcomes) if error is not None]
    assert lost == [50, 150, 250, 350, 450]
    for x in lost:
        assert type(outcomes[x]) is WorkerLostError
        assert outcomes[x].exitcode == -signal.SIGKILL
    assert sorted(map(int, log.read_text().split())) == list(range(500))


def test_a_time_limit_is_kept_on_the_node(pool):
    with pytest.raises(TimeLimitExceeded, match="in spin") as caught:
        pool.apply(work.spin, timeout=0.2)
    assert caught.value.limit == 0.2
    with pytest.raises(prefork.SoftTimeLimitExceeded):
        pool.apply(work.spin, soft_timeout=0.2)


def test_retries(pool, tmp_path):
    with pytest.raises(WorkerLostError):
        pool.apply(work.die, (1,), retries=1)
    handle = pool.apply_async(work.die_once, (str(tmp_path / "once"),), retries=2)
    assert handle.get(30) == "the second time"
    assert handle.retries == 1
    with pytest.raises(ValueError, match="not to be had"):
        pool.options(retries=Retry(2, on=ValueError)).apply(work.fail, (1,))


def test_a_result_that_json_has_not(pool):
    with pytest.raises(prefork.MaybeEncodingError, match="not JSON serializable"):
        pool.apply(work.an_object, (1,))


def test_an_argument_that_json_has_not(pool):
    with pytest.raises(TypeError, match="not JSON serializable"):
        pool.apply(work.double, (object(),))
    with pytest.raises(ValueError, match="do not go through a message broker"):
        pool.apply(work.double, ("x" * (1 << 20),))
    with pytest.raises(TypeError, match="not JSON serializable"):
        pool.map(work.double, [1, object()])


def test_what_has_no_name_elsewhere_is_refused_at_once(pool):
    def local(x):
        return x

    for func in (lambda x: x, local, work.Thing().method, work.decorated, abs, work.Thing):
        with pytest.raises(TypeError, match="top level"):
            pool.apply(func, (1,))


def test_pickle_needs_both_sides(cluster):
    with pytest.raises(prefork.PoolBrokenError, match="no worker has answered"):
        cluster.pool(serializer="pickle", start_timeout=1.0)


# ---- what is allowed


def test_a_function_that_is_not_allowed(pool, secret, monkeypatch):
    import cluster_secret

    with pytest.raises(NotAllowedError, match="not among what this node may run"):
        pool.apply(cluster_secret.tell)
    assert not secret.exists()


def test_a_function_that_the_node_does_not_have(pool, monkeypatch):
    def new(x):
        return x

    new.__module__, new.__qualname__ = "cluster_work", "new"
    monkeypatch.setattr(work, "new", new, raising=False)
    with pytest.raises(NotAllowedError, match="has nothing of that name on this node"):
        pool.apply(new, (1,))


def test_another_version_of_a_module(cluster, monkeypatch):
    with cluster.pool(check_code=True) as pool:
        assert pool.apply(work.double, (1,)) == 2
        monkeypatch.setattr(work, "__file__", __file__)
        with pytest.raises(NotAllowedError, match="install the same version"):
            pool.apply(work.double, (1,))


FORGED = [
    "os:system",
    "posix:system",
    "builtins:eval",
    "cluster_secret:tell",
    "cluster_work.Thing:method",
    "cluster_work:Thing.method",
    "cluster_work:system",
    "cluster_work:run",
    "cluster_work:os",
    "cluster_work:version",
    "cluster_work:decorated",
    "cluster_work:double.__globals__",
    "cluster_work:Thing",
    "cluster_workx:double",
    "cluster_work.double:__call__",
    ".cluster_work:double",
    "..cluster_work:double",
    "cluster_work:__builtins__",
    "",
    ":",
    "cluster_work:",
    "cluster_work:double\n",
]


def test_names_that_are_forged(pool, secret, tmp_path, monkeypatch):
    """The client's own check is passed by: what the node does is what counts."""
    from prefork.cluster import calls

    touched = tmp_path / "touched"
    for name in FORGED:
        monkeypatch.setattr(calls, "name_of", lambda func, name=name: name)
        with pytest.raises(NotAllowedError):
            pool.apply(work.double, (f"touch {touched}",))
    assert not touched.exists()
    assert not secret.exists()


def test_letters_that_are_forged(pool, cluster):
    """They harm nothing."""
    bodies = [
        b"",
        b"no JSON",
        b"[]",
        b"{}",
        b"\xff\xfe",
        json.dumps({"version": 1, "kind": 5}).encode(),
        json.dumps({"version": 99, "kind": "chunk"}).encode(),
        json.dumps({"version": 1, "kind": "hello", "client": "celery"}).encode(),
        json.dumps({"version": 1, "kind": "hello", "client": 7}).encode(),
        json.dumps({"version": 1, "kind": "chunk", "session": uuid.uuid4().hex}).encode(),
    ]
    sessions = boxes_of(pool)
    for session in sessions:
        for fields in ({}, {"number": "1"}, {"number": 0, "received": 0}, {"number": 10**9}):
            for kind in ("chunk", "grant", "drop", "ask", "report", "renew"):
                head = {"version": 1, "kind": kind, "session": session, **fields}
                bodies.append(json.dumps(head).encode())
    boxes = [*sessions.values(), queue_of(pool)]
    with cluster.app().connection_for_write() as connection:
        producer = Producer(connection)
        for box in boxes:
            for body in bodies:
                producer.publish(body, routing_key=box, content_type="application/x-forged")
            producer.publish({"a": object}, routing_key=box, serializer="pickle")
    assert pool.map(work.double, range(1000)) == [2 * x for x in range(1000)]
    assert boxes_of(pool) == sessions


# ---- ends


def test_terminate_ends_what_runs(pool, gate):
    handles = [pool.apply_async(work.enter, (gate._address, x)) for x in range(4)]
    running = [gate.arrival() for _ in range(2)]
    for handle in handles:
        assert handle.terminate()
        with pytest.raises(Terminated):
            handle.get(30)
    for visitor in running:
        eventually(lambda v=visitor: has_ended(v.pid), "its process is killed")
    assert pool.map(work.double, [1, 2, 3]) == [2, 4, 6]


def test_cancel_takes_back_what_was_not_sent(pool, gate):
    handles = [pool.submit(work.enter, gate._address, x) for x in range(20)]
    visitors = [gate.arrival() for _ in range(2)]
    assert not handles[0].cancel()
    assert handles[-1].cancel()
    assert handles[-1].cancelled()
    for handle in handles[:-1]:
        handle.terminate()
    for visitor in visitors:
        eventually(lambda v=visitor: has_ended(v.pid), "its process is killed")


def test_a_map_that_is_interrupted_is_ended(cluster, gate):
    pids, is_over = [], threading.Event()

    def interrupt():
        pids.append(gate.arrival().pid)
        while not is_over.wait(0.1):  # Python may sleep over one
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def call():
        try:
            pool.starmap(work.enter, [(gate._address, x) for x in range(10)])
        finally:
            is_over.set()

    with cluster.pool() as pool:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        thread.join()
        eventually(lambda: pool.statistics().unfinished == 0, "it is ended")
        eventually(lambda: has_ended(pids[0]), "and what ran")


def test_two_clients_at_once(cluster, tmp_path):
    with cluster.pool() as one, cluster.pool() as other:
        log = str(tmp_path / "log")
        many = one.starmap_async(work.logged, [(log, x) for x in range(600)])
        eventually(lambda: os.path.exists(log), "the first ones run")
        assert other.apply(work.double, (1,)) == 2  # in its turn, not after all of these
        assert not many.ready()
        assert other.map(work.double, range(50)) == [2 * x for x in range(50)]
        assert many.get(60) == list(range(600))


def test_close_and_join(cluster):
    pool = cluster.pool()
    handles = [pool.apply_async(work.double, (x,)) for x in range(50)]
    pool.close()
    with pytest.raises(ValueError, match="takes no more jobs"):
        pool.apply(work.double, (1,))
    assert pool.join(30)
    assert [handle.get(0) for handle in handles] == [2 * x for x in range(50)]


def test_a_terminated_pool(cluster, gate):
    pool = cluster.pool()
    handle = pool.apply_async(work.enter, (gate._address,))
    visitor = gate.arrival()
    pool.terminate()
    with pytest.raises(Terminated):
        handle.get(0)
    eventually(lambda: has_ended(visitor.pid), "the node ends what runs")


def test_what_can_be_seen(pool):
    pool.map(work.double, range(10))
    statistics = pool.statistics()
    assert statistics.processes == 2
    assert len(statistics.nodes) == 2
    assert sum(node.items for node in statistics.nodes) >= 10
    stacks = pool.dump_stacks()
    assert stacks.keys() == {node.name for node in statistics.nodes}
    assert all(text for node in stacks.values() for text in node.values())
    assert "ClusterPool: running, 2 nodes" in repr(pool)


def test_errors_are_those_of_a_pool():
    assert issubclass(NodeLostError, WorkerLostError)
    assert issubclass(NotAllowedError, prefork.PreforkError)
    with contextlib.suppress(TypeError):
        NodeLostError()
    error = NodeLostError(3, "work.f", "n1@h", 4.5)
    assert "n1@h" in str(error)
    assert "job 3" in str(error)
