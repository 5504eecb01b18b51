"""Workers that do not come to start: nobody waits for them for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.popen_forkserver import Popen
from pathlib import Path

import pytest

from helpers import DEADLINE, Script, eventually
from prefork import Pool
from prefork.adapters import AdapterPool

HANGING_MAIN = """
import sys, time
if __name__ == "__mp_main__":
    time.sleep(3600)
from prefork import Pool, PoolBrokenError
if __name__ == "__main__":
    try:
        with Pool(2, print, (bytes(1_000_000),), context=sys.argv[1], start_timeout=3.0) as pool:
            pool.apply(abs, (-1,))
    except PoolBrokenError as exc:
        print("not ready within" in str(exc))
    except TimeoutError as exc:  # it is the fork server that hangs, from Python 3.12.8 on
        print("could be started within" in str(exc))
"""


STOPPED_SERVER = """
import faulthandler; faulthandler.enable()
import os, signal
from multiprocessing.forkserver import _forkserver
from prefork import Pool, PoolBrokenError, WorkerLostError

with Pool(1, context="forkserver") as first:
    first.apply(abs, (-1,))  # so that the server runs: the limit is for workers
pool = Pool(1, context="forkserver", start_timeout=2.0)
assert pool.apply(abs, (-1,)) == 1
os.kill(_forkserver._forkserver_pid, signal.SIGSTOP)
try:
    pool.apply(os._exit, (1,))
except WorkerLostError:
    print("lost")
try:
    pool.apply(abs, (-1,))
except PoolBrokenError:
    print("broken")
pool.terminate()
try:
    Pool(1, context="forkserver", start_timeout=0.2)
except TimeoutError:
    print("not made")
os.kill(_forkserver._forkserver_pid, signal.SIGKILL)
"""


INTERRUPTED = """
import os, signal, sys
from prefork import Pool
from prefork._system.process import Process

class Interrupted(Process):
    def __setstate__(self, state):
        os.kill(os.getpid(), signal.SIGINT)  # at its first step in the new process
        vars(self).update(state)

class OwnPool(Pool):
    Process = Interrupted

if __name__ == "__main__":
    with OwnPool(2, context=sys.argv[1], threads=sys.argv[2] == "threads", max_restarts=0) as pool:
        print(pool.map(abs, [-1, -2], 1))
        print(pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, ())))
else:
    os.kill(os.getpid(), signal.SIGINT)  # here the fork server, or the worker
"""

BYSTANDER = """
import multiprocessing, os, signal, sys
from prefork import Pool

def look():
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

class Interrupted(multiprocessing.get_context("forkserver").Process):
    def __setstate__(self, state):
        os.kill(os.getpid(), signal.SIGINT)
        vars(self).update(state)

def run(process):
    process.start()
    process.join()
    print(process.exitcode)

if __name__ == "__main__":
    with Pool(1, context="forkserver") as pool:
        pool.apply(abs, (1,))
        run(multiprocessing.get_context("forkserver").Process(target=look))
        run(Interrupted(target=look))
"""


DYING_SERVER = """
import socket, sys
from multiprocessing import forkserver
from prefork import Pool

threads = sys.argv[1] == "threads"
with Pool(1, context="forkserver", threads=threads) as pool:
    pool.apply(abs, (-1,))
with socket.socket(socket.AF_UNIX) as client:  # as of somebody who is interrupted then
    client.connect(forkserver._forkserver._forkserver_address)
with Pool(2, context="forkserver", threads=threads) as pool:
    print(pool.map(abs, [-1, -2], 1))
"""


def die_at_first(log: Path, times: int) -> None:
    """An initializer that is killed so many times."""
    with log.open("a") as file:
        file.write("x")
    if log.stat().st_size <= times:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.promise(number=1)
def test_a_closed_pool_whose_worker_is_killed_at_its_start_again_and_again(
    context: BaseContext, make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    pool = make_pool(1, die_at_first, (tmp_path / "log", 5), context=context)
    result = pool.apply_async(abs, (-1,))
    pool.close()
    assert pool.join(3 * DEADLINE)  # six starts
    assert result.get(0) == 1


class WellBegun(AdapterPool):
    """Its first worker has time to start."""

    first_start_timeout = DEADLINE


def be_late(folder: Path) -> None:
    """An initializer; the second worker's blocks all signals, and takes too long."""
    (folder / str(os.getpid())).touch()
    if len(list(folder.iterdir())) == 2:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        time.sleep(0.55)


def test_a_worker_that_becomes_ready_while_it_is_being_killed_for_being_late(
    make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    pool = make_pool(
        1, be_late, (tmp_path,), context="fork", start_timeout=0.5, pool_class=WellBegun
    )
    assert pool.apply(abs, (-1,)) == 1
    pool.grow()
    eventually(lambda: len(list(tmp_path.iterdir())) >= 3, "another one is started")
    pool.close()
    assert pool.join(DEADLINE)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_large_initargs_for_a_main_module_that_hangs(
    script: Callable[..., Script], tmp_path: Path, method: str
) -> None:
    (tmp_path / "hanging.py").write_text(HANGING_MAIN)
    program = script(tmp_path / "hanging.py", method)
    code, out, _ = program.finish()
    assert (code, out) == (0, "True\n")
    assert program.leftovers() == {}


def test_a_fork_server_that_is_killed_while_it_starts_the_only_worker(
    make_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, context="forkserver", maxtasksperchild=1)
    launch = Popen._launch

    def fail_once(popen: Popen, process: object) -> None:
        monkeypatch.setattr(Popen, "_launch", launch)
        raise EOFError("what multiprocessing says then")

    for n in range(5):
        monkeypatch.setattr(Popen, "_launch", fail_once)
        assert pool.apply(abs, (-n,)) == n
    assert pool.apply(abs, (-1,)) == 1


@pytest.mark.promise(number=1)
def test_a_fork_server_that_is_stopped(script: Callable[..., Script]) -> None:
    program = script(STOPPED_SERVER)
    code, out, err = program.finish()
    assert (code, out) == (0, "lost\nbroken\nnot made\n"), err
    assert program.leftovers() == {}


@pytest.mark.parametrize("threads", ["threads", "loop"])
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_ctrl_c_ends_no_newborn_worker(
    script: Callable[..., Script], tmp_path: Path, method: str, threads: str
) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    program = script(tmp_path / "interrupted.py", method, threads)
    assert program.finish() == (0, "[1, 2]\nset()\n", "")


def test_ctrl_c_ends_other_children_of_the_fork_server_as_ever(
    script: Callable[..., Script], tmp_path: Path
) -> None:
    (tmp_path / "bystander.py").write_text(BYSTANDER)
    code, out, err = script(tmp_path / "bystander.py").finish()
    assert (code, out) == (0, "True\nset()\n0\n1\n")
    assert "KeyboardInterrupt" in err


@pytest.mark.parametrize("threads", ["threads", "loop"])
def test_a_pool_is_made_although_the_fork_server_is_just_dying(
    script: Callable[..., Script], threads: str
) -> None:
    code, out, err = script(DYING_SERVER, threads).finish()
    assert (code, out) == (0, "[1, 2]\n"), err
