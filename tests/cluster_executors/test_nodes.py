"""Nodes over an executor that do not come, are killed, stopped or cut off; and clients that go."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import socket
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import executor_work as work
import pytest
from executors import of_session, signal_node

import inside
from helpers import DEADLINE, Script, eventually, has_ended
from prefork import PoolBrokenError, Terminated
from prefork.cluster import NodeLostError, Pool, lines, node

LEASE = 4.0


def both(pool: Pool) -> Pool:
    eventually(lambda: len(pool.statistics().nodes) == 2, "both nodes answer")
    return pool


# ---- nodes that do not come


def test_an_executor_that_was_shut_down():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(PoolBrokenError, match="takes no task: RuntimeError: cannot schedule"):
        Pool(executor)


class AtOnce(Executor):
    """Has done what it is given when `submit` returns."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_an_executor_that_makes_who_submits_wait():
    with Pool(AtOnce(), processes_per_node=1) as pool:
        assert pool.apply(work.double, (2,)) == 4


def test_arguments_that_are_not_right():
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(TypeError, match="must have a submit"):
            Pool(5)
        with pytest.raises(ValueError, match="nodes must be at least 1"):
            Pool(executor, 0)
        with pytest.raises(ValueError, match="that nodes can connect to"):
            Pool(executor, host="0.0.0.0")
        with pytest.raises(OSError, match="Cannot assign"):
            Pool(executor, host="192.0.2.1")
        with pytest.raises(ValueError, match="lease must be finite"):
            Pool(executor, lease=float("inf"))
        with pytest.raises(TypeError, match="chunk_seconds must be a number"):
            Pool(executor, chunk_seconds="much")


def test_an_executor_without_a_free_worker():
    is_over = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(is_over.wait)
        try:
            with pytest.raises(PoolBrokenError, match=r"within 0\.5 s .* 1 wait") as caught:
                Pool(executor, start_timeout=0.5)
        finally:
            is_over.set()
        assert "start_timeout" in str(caught.value)


class Failing(ThreadPoolExecutor):
    def submit(self, fn, /, *args, **kwargs):
        return super().submit(os.stat, "/nowhere")


def test_an_executor_whose_tasks_fail():
    with (
        Failing(2) as executor,
        pytest.raises(PoolBrokenError, match="no node is left") as caught,
    ):
        Pool(executor, 2)
    assert "nowhere" in str(caught.value)


def test_in_a_daemonic_process():
    """Which may have no children of multiprocessing's."""

    def body(writer):
        with ThreadPoolExecutor(1) as executor, Pool(executor, processes_per_node=1) as pool:
            writer.send(pool.apply(work.double, (4,)))

    reader, writer = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=body, args=(writer,), daemon=True)
    process.start()
    try:
        assert reader.poll(DEADLINE)
        assert reader.recv() == 8
        process.join(DEADLINE)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


# ---- nodes that go


class Run:
    """Many short items; each leaves a line when it begins."""

    ITEMS = 400

    def __init__(self, pool: Pool, folder) -> None:
        self.log = folder / "begun"
        self.log.touch()
        self.pool = pool
        items = [(str(self.log), x) for x in range(self.ITEMS)]
        self.handles = [pool.apply_async(work.logged, item) for item in items]

    def has_begun(self, number: int) -> None:
        eventually(lambda: len(self.log.read_text().split()) >= number, f"{number} have begun")

    def errors(self) -> dict[int, BaseException]:
        """Wait for all; all that have not failed have run, once, and none more than once."""
        found = {}
        for x, handle in enumerate(self.handles):
            handle.wait(60)
            assert handle.ready()
            if (error := handle.failure()) is not None:
                found[x] = error
            else:
                assert handle.get(0) == x
        times = collections.Counter(map(int, self.log.read_text().split()))
        assert not [x for x, n in times.items() if n > 1]
        assert set(range(self.ITEMS)) - times.keys() <= found.keys()
        return found


def a_process_of(pool: Pool) -> int:
    return next(pid for stacks in pool.dump_stacks().values() for pid in stacks)


def test_a_node_is_killed(make, tmp_path, monkeypatch):
    monkeypatch.setattr(node, "MOST_SHORT_LIVES", 0)  # no other one takes its place
    pool = both(make())
    victim = a_process_of(pool)
    run = Run(pool, tmp_path)
    run.has_begun(50)
    signal_node(victim, signal.SIGKILL)
    errors = run.errors()
    assert all(type(error) is NodeLostError for error in errors.values())
    assert len({error.node for error in errors.values()}) <= 1
    assert len(errors) <= 60  # one chunk
    assert len(pool.statistics().nodes) == 1


def test_another_node_takes_the_place_of_one_that_was_killed(make):
    """Which has hardly lived."""
    pool = make(nodes=1)
    victim = a_process_of(pool)
    session = signal_node(victim, signal.SIGKILL)
    assert pool.apply(work.node_of, (1,), retries=5) != session
    assert len(pool.statistics().nodes) == 1


def test_a_node_is_stopped_for_longer_than_its_lease(make, tmp_path):
    pool = both(make(lease=LEASE))
    victim = a_process_of(pool)
    run = Run(pool, tmp_path)
    run.has_begun(50)
    signal_node(victim, signal.SIGSTOP)
    try:
        errors = run.errors()
        before = run.log.read_text()
    finally:
        signal_node(victim, signal.SIGCONT)
    assert all(type(error) is NodeLostError for error in errors.values())
    both(pool)
    assert pool.map(work.double, range(100)) == [2 * x for x in range(100)]
    assert run.log.read_text() == before


def test_connections_are_cut(make, tmp_path):
    run = Run(both(make()), tmp_path)
    for number in (50, 150, 250):
        run.has_begun(number)
        inside.cut_connections(run.pool)
    assert run.errors() == {}


def test_connections_are_cut_in_the_midst_of_large_letters(make):
    pool = both(make())
    text = "x" * (8 << 20)
    handles = [pool.apply_async(work.double, (text,)) for _ in range(6)]
    for handle in handles:
        inside.cut_connections(pool)
        assert handle.get(60) == 2 * text


def test_a_stopped_node_does_not_hold_up_the_end(make, monkeypatch):
    monkeypatch.setattr(lines, "QUIET_SECONDS", 10 * DEADLINE)
    pool = both(make())
    victim = a_process_of(pool)
    signal_node(victim, signal.SIGSTOP)
    try:
        for _ in range(12):  # as much as the connections do not take
            pool.apply_async(work.double, ("x" * (8 << 20),))
        pool.terminate()
        assert pool.join(DEADLINE)
    finally:
        signal_node(victim, signal.SIGCONT)


def test_a_node_that_is_told_to_end_loses_nothing(make, tmp_path):
    pool = both(make())
    victim = os.getsid(a_process_of(pool))  # the leader of its session
    run = Run(pool, tmp_path)
    run.has_begun(50)
    os.kill(victim, signal.SIGTERM)
    assert run.errors() == {}
    eventually(lambda: len(pool.statistics().nodes) == 1, "it has gone")


def test_all_nodes_have_gone(make, gate, monkeypatch):
    monkeypatch.setattr(node, "MOST_SHORT_LIVES", 0)
    pool = make(nodes=1)
    handle = pool.apply_async(gate.enter)
    signal_node(gate.arrival().pid, signal.SIGKILL)
    with pytest.raises((NodeLostError, PoolBrokenError)):
        handle.get(DEADLINE)

    def is_broken() -> bool:
        try:
            pool.apply_async(work.double, (1,)).terminate()
        except PoolBrokenError:
            return True
        return False

    eventually(is_broken, "the pool says so")


def test_strangers_at_the_door(make):
    pool = make()
    host, port = inside.listens_at(pool)
    with socket.create_connection((host, port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(AuthenticationError):
            Client((host, port), authkey=b"a guess")
        assert pool.map(work.double, range(100)) == [2 * x for x in range(100)]


# ---- ends


def test_nothing_is_left_of_a_pool(make, gate):
    pool = make()
    handle = pool.apply_async(gate.enter)
    session = os.getsid(gate.arrival().pid)
    pool.terminate()
    with pytest.raises(Terminated):
        handle.get(0)
    eventually(lambda: not of_session(session), "its node has ended")
    assert pool.join(DEADLINE)


def test_close_and_join(make):
    pool = make()
    handles = [pool.apply_async(work.double, (x,)) for x in range(50)]
    pool.close()
    with pytest.raises(ValueError, match="takes no more jobs"):
        pool.apply(work.double, (1,))
    assert pool.join(30)
    assert [handle.get(0) for handle in handles] == [2 * x for x in range(50)]


CLIENT = """
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from gate import Door
from prefork.cluster import Pool
if __name__ == "__main__":
    executor = vars()[sys.argv[1]](1)
    pool = Pool(executor, processes_per_node=1)
    handle = pool.apply_async(Door(("127.0.0.1", int(sys.argv[2]))).enter)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("executor", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
@pytest.mark.parametrize("ends", ["killed", "by itself"])
def test_a_client_goes(executor, ends, gate):
    """One that ends by itself has not closed its pool: it does not hang for that."""
    script = Script(CLIENT, executor, gate._address[1])
    try:
        visitor = gate.arrival()
        session = os.getsid(visitor.pid)
        if ends == "killed":
            script.process.kill()
        else:
            code, _, err = script.finish()
            assert code == 0, err
        eventually(lambda: has_ended(visitor.pid), "what ran is ended")
        eventually(lambda: not of_session(session), "and its node")
    finally:
        script.close()
