"""Who hears that a process with threads is forked: whoever started those threads, and once."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="this version of Python does not warn"
)

START = """
import multiprocessing, sys, threading, warnings
from helpers import children, eventually
from prefork import Pool

context = multiprocessing.get_context("fork")
"""


@pytest.mark.parametrize("action", ["default", "error"])
def test_nobody_if_all_threads_are_pools(script, action):
    run = script(
        START
        + """
warnings.simplefilter(sys.argv[1])
with Pool(2, context=context, maxtasksperchild=1) as pool, Pool(1, context=context) as other:
    print(pool.map(abs, range(4), 1), other.apply(abs, (-1,)))
    before = {worker.pid for worker in pool.statistics().workers}
    pool.restart()
    eventually(lambda: not before & {w.pid for w in pool.statistics().workers}, "others")
    print(pool.apply(abs, (-7,)))
""",
        action,
    )
    assert run.finish() == (0, "[0, 1, 2, 3] 1\n7\n", "")


def test_who_makes_a_pool_in_a_program_with_threads(script):
    run = script(
        START
        + """
warnings.simplefilter("default")
done = threading.Event()
threading.Thread(target=done.wait).start()
with Pool(2, context=context, maxtasksperchild=1) as pool:
    print(pool.map(abs, range(4), 1))
done.set()
"""
    )
    code, out, err = run.finish()
    assert (code, out) == (0, "[0, 1, 2, 3]\n")
    assert err.count("is multi-threaded, use of fork()") == 1


def test_as_an_error_it_leaves_no_process(script):
    run = script(
        START
        + """
warnings.simplefilter("error")
done = threading.Event()
threading.Thread(target=done.wait).start()
try:
    Pool(2, context=context)
except DeprecationWarning as exc:
    print(exc, children())
done.set()
"""
    )
    code, out, err = run.finish()
    assert (code, err) == (0, "")
    assert out.endswith("deadlocks in the child. []\n")
