"""A worker process and what its tasks fork, without a broker."""

from __future__ import annotations

import os
import signal
from queue import SimpleQueue

from celery import Celery

from helpers import DEADLINE
from prefork.celery import TaskPool, child


def end_forks(count):
    """How processes end that are told to at the moment of their start."""
    for name in child.EXIT_SIGNALS:
        signal.signal(getattr(signal, name), child._leave)
    child._exits_at_fork()
    statuses = set()
    for _ in range(count):
        pid = os.fork()
        if not pid:
            while True:
                signal.pause()
        os.kill(pid, signal.SIGTERM)
        statuses.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return statuses, signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_signal_at_the_moment_of_a_fork_ends_the_child(make_pool):
    statuses, blocked = make_pool(1).apply_async(end_forks, (100,)).get(DEADLINE)
    assert statuses == {-signal.SIGTERM}
    assert signal.SIGTERM not in blocked


def producers_of(app):
    return type(app.amqp).__name__


def end_process():
    raise SystemExit(3)


def test_a_worker_inherits_no_lock_of_a_property_that_is_being_read():
    """As a thread of the parent may do at the time of the fork: this one."""
    app = Celery("test", set_as_current=False, fixups=[])
    assert producers_of(app) == "AMQP"
    pool = TaskPool(1, app=app, hostname="test@host", threads=True)
    outcomes = SimpleQueue()
    pool.start()
    try:
        with Celery.amqp.lock:
            pool.apply_async(end_process, error_callback=outcomes.put)
            outcomes.get(timeout=DEADLINE)
            pool.apply_async(producers_of, (app,), callback=outcomes.put)
            assert outcomes.get(timeout=DEADLINE) == "AMQP"
    finally:
        pool.terminate()
