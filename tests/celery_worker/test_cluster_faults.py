"""Nodes, brokers and clients that are killed, stopped, cut off, or not there. Each item has one
outcome, and is begun once at most."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import cluster_work as work
import pytest
from celery import Celery
from clusters import LEASE, Cluster, cluster_on, let_go_on, stop_all
from servers import RabbitMQ, Redis, free_port

from helpers import Script, eventually, has_ended
from prefork import PoolBrokenError, PreforkError
from prefork.celery import ClusterPool
from prefork.celery.post import KEPT_SECONDS, BrokerPost
from prefork.cluster import NodeLostError
from prefork.cluster.letters import node_box

ITEMS = 500


@pytest.fixture(params=[Redis, RabbitMQ])
def server(request, tmp_path):
    """A broker that the test may break."""
    server = request.param(tmp_path)
    yield server
    server.close()


@pytest.fixture
def cluster(broker, tmp_path):
    with cluster_on(broker, tmp_path) as cluster:
        yield cluster


class Run:
    """Many short items; each leaves a line when it begins."""

    def __init__(self, cluster: Cluster, folder: Path, **options) -> None:
        self.log = folder / "begun"
        self.log.touch()
        self.pool = cluster.pool(**options)
        number = len(cluster.nodes)
        eventually(lambda: len(self.pool.statistics().nodes) == number, "all nodes are there")
        items = [(str(self.log), x) for x in range(ITEMS)]
        self.handles = [self.pool.apply_async(work.logged, item) for item in items]

    def begun(self) -> list[int]:
        return list(map(int, self.log.read_text().split()))

    def has_begun(self, number: int) -> None:
        eventually(lambda: len(self.begun()) >= number, f"{number} items have begun")

    def busy(self, name: str) -> None:
        """Wait until this node has begun something that it has not reported."""

        def look() -> bool:
            return any(n.name == name and n.started for n in self.pool.statistics().nodes)

        eventually(look, f"{name} has begun something")

    def errors(self) -> dict[int, BaseException]:
        """Wait for all; the errors of those that have failed. All others have run, once; and none
        of these more than once."""
        found = {}
        for x, handle in enumerate(self.handles):
            handle.wait(60)
            assert handle.ready()
            if (error := handle.failure()) is not None:
                found[x] = error
            else:
                assert handle.get(0) == x
        times = collections.Counter(self.begun())
        assert not [x for x, n in times.items() if n > 1]
        assert set(range(ITEMS)) - times.keys() <= found.keys()
        return found


# ---- nodes


def test_a_node_is_killed(cluster, tmp_path):
    run = Run(cluster, tmp_path)
    victim = cluster.nodes[0]
    run.has_begun(50)
    run.busy(victim.node)
    victim.kill()
    errors = run.errors()
    assert all(type(e) is NodeLostError and e.node == victim.node for e in errors.values())
    assert len(errors) <= 60  # one chunk
    assert len(run.pool.statistics().nodes) == 1
    cluster.add()
    eventually(lambda: len(run.pool.statistics().nodes) == 2, "the new node is taken in")
    assert run.pool.map(work.double, range(100)) == [2 * x for x in range(100)]


def test_a_node_is_killed_and_calls_may_be_retried(cluster, tmp_path):
    pool = cluster.pool(retries=2)
    log = tmp_path / "begun"
    handle = pool.starmap_async(work.logged, [(str(log), x) for x in range(ITEMS)])
    eventually(lambda: log.exists() and len(log.read_text().split()) > 50, "some have begun")
    cluster.nodes[0].kill()
    assert handle.get(60) == list(range(ITEMS))


def test_a_node_is_stopped_for_longer_than_its_lease(cluster, tmp_path):
    run = Run(cluster, tmp_path)
    victim = cluster.nodes[0]
    run.has_begun(50)
    run.busy(victim.node)
    pids = stop_all(victim)
    errors = run.errors()
    before = run.begun()
    let_go_on(pids)
    assert all(type(e) is NodeLostError and e.node == victim.node for e in errors.values())
    eventually(lambda: len(run.pool.statistics().nodes) == 2, "it is taken in again")
    assert run.pool.map(work.double, range(100)) == [2 * x for x in range(100)]
    assert run.begun() == before  # it has begun nothing that it had before


def test_the_main_process_of_a_node_is_stopped_for_longer_than_its_lease(cluster, tmp_path):
    """Its workers look at the lease by themselves."""
    run = Run(cluster, tmp_path)
    victim = cluster.nodes[0]
    run.has_begun(50)
    os.kill(victim.process.pid, signal.SIGSTOP)
    run.errors()
    let_go_on([victim.process.pid])
    eventually(lambda: len(run.pool.statistics().nodes) == 2, "it is taken in again")
    run.errors()


def test_a_node_is_slow_for_a_while(cluster, tmp_path):
    run = Run(cluster, tmp_path)
    victim = cluster.nodes[0]
    run.has_begun(50)
    pids = stop_all(victim)
    run.has_begun(100)
    let_go_on(pids)
    assert run.errors() == {}


def test_a_node_that_is_told_to_end_loses_nothing(cluster, tmp_path):
    run = Run(cluster, tmp_path)
    run.has_begun(50)
    assert cluster.nodes[0].stop() == 0
    assert run.errors() == {}


def test_all_nodes_have_gone(cluster):
    pool = cluster.pool(alone_timeout=1.0)
    assert pool.apply(work.double, (1,)) == 2
    for node in cluster.nodes:
        assert node.stop() == 0
    with pytest.raises(PoolBrokenError, match="no worker has answered for 1 s"):
        pool.apply(work.double, (1,))


# ---- brokers


def test_the_broker_is_not_there():
    app = Celery(broker=f"redis://:secret@127.0.0.1:{free_port()}/0", set_as_current=False)
    with pytest.raises(PoolBrokenError, match="could not be reached") as caught:
        ClusterPool(app, start_timeout=1.0)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_nobody_serves(broker):
    app = Celery(broker=broker.url, set_as_current=False)
    with pytest.raises(PoolBrokenError, match=r"prefork\.celery\.serve"):
        ClusterPool(app, queue="nobody", start_timeout=1.0)


def test_the_broker_is_restarted(server, tmp_path):
    with cluster_on(server, tmp_path) as cluster:
        run = Run(cluster, tmp_path)
        run.has_begun(50)
        server.kill()
        server.start()
        assert run.errors() == {}
        assert run.pool.map(work.double, range(100)) == [2 * x for x in range(100)]


def test_connections_are_cut(redis, tmp_path):
    with cluster_on(redis, tmp_path) as cluster:
        run = Run(cluster, tmp_path)
        for number in (50, 150, 250):
            run.has_begun(number)
            redis.cut_connections()
        assert run.errors() == {}


class SmallRedis(Redis):
    largest_message = 1 << 20


class SmallRabbitMQ(RabbitMQ):
    largest_message = 1 << 18


@pytest.mark.parametrize("server_class", [SmallRedis, SmallRabbitMQ])
def test_a_broker_that_takes_no_large_messages(server_class, tmp_path):
    """It takes all others; and what it does not take costs the items that are in it."""
    size = min(server_class.largest_message * 2, (1 << 20) - 1000)
    with (
        contextlib.closing(server_class(tmp_path)) as server,
        cluster_on(server, tmp_path, nodes=1) as cluster,
    ):
        pool = cluster.pool()
        arguments = pool.apply_async(work.as_it_comes, ("x" * size,))
        results = pool.apply_async(work.large, (size,))
        others = pool.map_async(work.double, range(1000))
        with pytest.raises(PreforkError, match=r"does not take a message of \d+ bytes.*pass its"):
            arguments.get(60)
        with pytest.raises(PreforkError, match=r"does not take a message of \d+ bytes.*return its"):
            results.get(60)
        assert others.get(60) == [2 * x for x in range(1000)]
        assert pool.apply(work.double, (1,)) == 2


def test_a_queue_that_nobody_reads_does_not_stay(redis):
    """And its connections notice a network that is cut without a word."""
    app = Celery(broker=redis.url, set_as_current=False, fixups=[])
    box = node_box()
    post = BrokerPost(app, node_box(), "g", None, lambda body: None, lambda here, error: None)
    try:
        assert post.send(box, b"text")
        with app.connection_for_write() as connection:
            left = connection.default_channel.client.pttl(box)
        assert 0 < left <= KEPT_SECONDS * 1000
        assert post.send(box, b"text")
        assert 10 in _idle_seconds(redis)
    finally:
        post.delete(box)
        post.stop()


def _idle_seconds(server) -> list[int]:
    """After which the kernel asks whether the other end is there, of our connections to it."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            if sock.getpeername() == ("127.0.0.1", server.port):
                found.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
    return found


# ---- clients

CLIENT = """
import sys
sys.path[:0] = sys.argv[1:3]
from celery import Celery
from prefork.celery import ClusterPool
import cluster_work as work
import inside
app = Celery(broker=sys.argv[3])
pool = ClusterPool(app, queue=sys.argv[4], lease=2.0, start_timeout=30)
address = ("127.0.0.1", int(sys.argv[5]))
handles = [pool.apply_async(work.enter, (address, x)) for x in range(50)]
print(inside.queue_of(pool), flush=True)
handles[0].get()
"""


def test_a_client_is_killed(broker, tmp_path, gate):
    here = Path(__file__).parent
    with cluster_on(broker, tmp_path, env={"CLUSTER_CLIENT_TIMEOUT": "1"}) as cluster:
        script = Script(CLIENT, here, here.parent, broker.url, cluster.queue, gate._address[1])
        try:
            visitors = [gate.arrival() for _ in range(2)]
            queue = script.process.stdout.readline().strip()
            script.process.kill()
            for visitor in visitors:
                eventually(lambda v=visitor: has_ended(v.pid), "what it ran is ended")
        finally:
            script.close()
        with cluster.pool() as pool:  # nothing is in its way
            assert pool.map(work.double, range(10)) == [2 * x for x in range(10)]
            with cluster.app().connection_for_write() as connection:
                channel = connection.default_channel
                eventually(lambda: not _exists(channel, queue), "its queue has gone")


STOPPED = """
import sys
sys.path[:0] = sys.argv[1:3]
from celery import Celery
from prefork.celery import ClusterPool
import cluster_work as work
app = Celery(broker=sys.argv[3])
pool = ClusterPool(app, queue=sys.argv[4], lease=2.0, start_timeout=30)
handles = [pool.apply_async(work.logged, (sys.argv[5], x)) for x in range(500)]
print([handle.get() for handle in handles] == list(range(500)))
pool.terminate()
"""


def test_a_client_is_stopped_for_longer_than_its_leases(cluster, tmp_path):
    """The nodes wait for it."""
    here, log = Path(__file__).parent, tmp_path / "begun"
    script = Script(STOPPED, here, here.parent, cluster.broker.url, cluster.queue, log)
    try:
        eventually(lambda: log.exists() and len(log.read_text().split()) > 50, "some have begun")
        os.kill(script.process.pid, signal.SIGSTOP)
        until = time.monotonic() + 4.0
        eventually(
            lambda: time.monotonic() > until, "its leases are over: time itself is the event"
        )
        os.kill(script.process.pid, signal.SIGCONT)
        code, out, err = script.finish()
        assert (code, out.strip()) == (0, "True"), err
        assert sorted(map(int, log.read_text().split())) == list(range(500))
    finally:
        script.close()


def _exists(channel, queue: str) -> bool:
    try:
        return bool(channel.queue_declare(queue, passive=True, durable=True).message_count)
    except channel.connection.client.channel_errors:
        return False


def test_the_lease_is_what_the_tests_say():
    assert LEASE >= 3  # shorter ones would lapse on a busy machine
