"""Messages in an SQL database: celery has no event loop, so the pool has threads of its own.

The transport has no broadcasts, so there is no remote control: nothing can be revoked.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter

import pytest
from celery.exceptions import TimeLimitExceeded
from celery.worker.consumer import Consumer
from kombu.transport.sqlalchemy import Channel
from running import CELERY

from helpers import eventually, has_ended, marked

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload``:DeprecationWarning")  # kombu's

SOON = 0.8


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    yield f"sqla+sqlite:///{tmp_path_factory.mktemp('broker')}/messages"
    for engine, _ in Channel._engines.values():
        engine.dispose()


def start_on(database, start, *options):
    worker = start(
        *options,
        broker=database,
        env={"PROJECT_POLLING": "0.02"},
        settings={"worker_proc_alive_timeout": 30},
    )
    worker.app.conf.broker_transport_options = {}  # all of them go to the database's driver
    return worker


@pytest.fixture(scope="module")
def worker(database, start_shared):
    """Its processes are killed, and the new ones use the database. A fork, while a thread is in the
    middle of something in SQLite, would have them wait for it for ever."""
    if CELERY < (5, 7):
        pytest.skip("celery 5.7 can start fresh interpreters")
    return start_on(database, start_shared, "--pool-start-method", "spawn")


@pytest.fixture
def own_worker(database, start_worker):
    return start_on(database, start_worker)


def test_tasks(worker):
    info = worker.run("info")
    assert info["ppid"] == worker.process.pid
    assert len(os.listdir(f"/proc/{worker.process.pid}/task")) > 1
    results = [worker.send("add", x, x) for x in range(30)]
    assert [worker.get(result) for result in results] == [2 * x for x in range(30)]


def test_tasks_that_send_tasks(worker):
    """A process has a connection of its own to the database, also one that is started later."""
    add = worker.app.signature("project.add", queue=worker.queue)
    for again in (True, False):
        assert worker.get((add.clone((1, 1)) | add.clone((5,))).apply_async()) == 7
        if again:
            for pid in worker.workers:
                os.kill(pid, signal.SIGKILL)
    assert worker.run("retry") == 2


def test_limits(worker):
    assert worker.run("spin", soft_time_limit=SOON).startswith("caught ")
    error = worker.outcome(worker.send("hang", time_limit=SOON))
    assert isinstance(error, TimeLimitExceeded)
    assert "in hang_here" in worker.logged("Task handler raised error: TimeLimitExceeded(")


def test_killed_processes_lose_no_task(worker, tmp_path):
    """Acknowledged late, and delivered again."""
    path = tmp_path / "starts"
    results = [worker.send("count_late", str(path), number) for number in range(60)]
    for _ in range(2):
        before = sum(result.ready() for result in results)
        if workers := worker.workers:
            with contextlib.suppress(ProcessLookupError):  # one that was killed just now
                os.kill(random.choice(workers), signal.SIGKILL)
        eventually(
            lambda before=before: (now := sum(r.ready() for r in results)) > before or now == 60,
            "it goes on",
        )
    assert [worker.get(result) for result in results] == list(range(60))
    starts = Counter(int(line) for line in path.read_text().splitlines())
    assert set(starts) == set(range(60))


def left(worker):
    """How many messages are in the queue of a worker that has ended."""
    with worker.app.connection_for_read() as connection, connection.channel() as channel:
        return channel.queue_declare(worker.queue, passive=True).message_count


@pytest.mark.skipif(
    not hasattr(Consumer, "call_soon_ack"),
    reason="older celery forgets acknowledgements at the end",
)
def test_warm_shutdown(own_worker, gate):
    """What runs is finished. What waits is left to others, and there once."""
    running = [own_worker.send("enter_late", gate._address, x) for x in range(2)]
    visitors = [gate.arrival() for _ in running]
    waiting = [own_worker.send("add_late", x, 10) for x in range(2)]
    own_worker.logged("Task project.add_late[")  # it waits for a process; the other is not fetched
    own_worker.process.send_signal(signal.SIGTERM)
    own_worker.logged("Warm shutdown")
    for visitor in visitors:
        visitor.go()
    assert [own_worker.get(result) for result in running] == [0, 1]
    assert own_worker.ended() == 0
    # One that found a free process in the last moment has run.
    assert left(own_worker) == len([result for result in waiting if not result.ready()])


def test_cold_shutdown(own_worker, gate, tmp_path):
    """What runs is ended, with its `finally`. What is acknowledged late is left to others."""
    path = tmp_path / "unwound"
    own_worker.send("unwind", gate._address, str(path))
    visitors = [gate.arrival()]
    late = own_worker.send("enter_late", gate._address)
    visitors.append(gate.arrival())
    own_worker.process.send_signal(signal.SIGQUIT)
    own_worker.ended()
    assert all(has_ended(visitor.pid) for visitor in visitors)
    assert not late.ready()
    assert left(own_worker) >= 1  # two, if the end came before the first was acknowledged
    if CELERY >= (5, 5):  # before, a cold shutdown was nothing but SIGKILL
        assert marked(path) == "unwound"
