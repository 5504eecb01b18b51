"""A worker process and what its tasks fork, without a broker."""

from __future__ import annotations

import os
import signal

from helpers import DEADLINE
from prefork.celery import child


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
    statuses, blocked = make_pool(1).apply_async(end_forks, (300,)).get(DEADLINE)
    assert statuses == {-signal.SIGTERM}
    assert signal.SIGTERM not in blocked
