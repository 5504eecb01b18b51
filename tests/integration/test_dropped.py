"""A pool that nobody holds any more is gone, whatever has been interrupted in it."""

from __future__ import annotations

import gc
import weakref

import pytest

from helpers import an_unclosed_pool_says_so, children, eventually
from prefork import Pool


class Interrupted(BaseException):
    """What a signal's handler raises."""


class InterruptedHandler(Pool.TaskHandler):
    """It is interrupted when a job is made, and not taken yet."""

    def __init__(self, taskqueue, put, outqueue, pool):
        super().__init__(taskqueue, self.interrupted, outqueue, pool)

    @staticmethod
    def interrupted(job):
        del job  # else the exception would hold it, with this frame
        raise Interrupted


class InterruptedPool(Pool):
    TaskHandler = InterruptedHandler


def drop(pools):
    pools.clear()
    gc.collect()


def test_after_an_interrupted_map_the_pool_can_be_dropped():
    before = {child.pid for child in children()}
    pools = [InterruptedPool(1, context="fork")]
    gone = weakref.ref(pools[0])
    with pytest.raises(Interrupted):
        pools[0].map(abs, range(10))
    with an_unclosed_pool_says_so():
        drop(pools)
    assert gone() is None
    eventually(
        lambda: {child.pid for child in children()} <= before, "the workers of the pool are gone"
    )
