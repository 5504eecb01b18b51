"""An orderly end of workers is orderly: their exit functions run, and what they hold is written."""

from __future__ import annotations

import atexit
import gzip
import multiprocessing
import multiprocessing.util
import os
import shelve
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import pytest

from gate import enter
from helpers import DEADLINE, eventually, marked, stop
from prefork import Terminated, WorkerState

kept: list[object] = []


@pytest.fixture(autouse=True)
def time_to_end(monkeypatch):
    """However long a busy machine takes for the end of a worker that is idle."""
    monkeypatch.setattr("prefork._engine.lifecycle.TERMINATE_SECONDS", DEADLINE)


class Anything:
    """It can be referred to weakly."""


def write(path, text):
    with open(path, "a") as file:
        file.write(text)


def hold(folder):
    """An initializer: hold a file open, and register what is to be done at the end."""
    kept.append(open(folder / f"rows.{os.getpid()}", "w"))  # noqa: SIM115
    kept.append(gzip.open(folder / f"packed.{os.getpid()}", "wt"))  # noqa: SIM115
    kept.append(Anything())
    done = str(folder / "done")
    atexit.register(write, done, "exit function\n")
    weakref.finalize(kept[-1], write, done, "weakref\n")
    multiprocessing.util.Finalize(None, write, (done, "multiprocessing\n"), exitpriority=1)


def fill(number):
    rows, packed, _ = kept
    rows.write(f"{number}\n")
    packed.write(f"{number}\n")
    return os.getpid()


def lines(folder, kind):
    found = []
    for path in folder.glob(f"{kind}.*"):
        with gzip.open(path, "rt") if kind == "packed" else open(path) as file:
            found += [int(line) for line in file]
    return sorted(found)


def everything_was_done(folder, workers, count):
    assert lines(folder, "rows") == list(range(count))
    assert lines(folder, "packed") == list(range(count))
    done = sorted((folder / "done").read_text().splitlines())
    assert done == sorted(["exit function", "weakref", "multiprocessing"] * workers)


def test_closed_and_joined(context, make_pool, tmp_path):
    pool = make_pool(1, hold, (tmp_path,), context=context)
    pool.map(fill, range(5))
    pool.close()
    assert pool.join(DEADLINE)
    everything_was_done(tmp_path, 1, 5)


def test_out_of_a_with_block_with_nothing_running(context, make_pool, tmp_path):
    with make_pool(1, hold, (tmp_path,), context=context) as pool:
        pool.map(fill, range(5))
    everything_was_done(tmp_path, 1, 5)


def test_recycled(context, make_pool, tmp_path):
    pool = make_pool(1, hold, (tmp_path,), maxtasksperchild=2, context=context)
    assert len({pool.apply(fill, (x,)) for x in range(4)}) == 2
    pool.close()
    assert pool.join(DEADLINE)
    assert lines(tmp_path, "rows") == list(range(4))


@pytest.mark.parametrize("how", ["shrink", "restart"])
def test_let_go(make_pool, tmp_path, how):
    pool = make_pool(2, hold, (tmp_path,))
    pids = set(pool.map(fill, range(20), 1))
    getattr(pool, how)()
    count = 1 if how == "shrink" else 2
    eventually(lambda: len(pool.statistics().exits) == count, "workers leave")
    gone = {left.pid for left in pool.statistics().exits} & pids
    rows = {pid: (tmp_path / f"rows.{pid}").read_text() for pid in gone}
    assert all(rows.values())


def test_only_the_worker_that_runs_a_task_is_killed(make_pool, tmp_path, gate):
    pool = make_pool(2, hold, (tmp_path,))
    eventually(lambda: {w.state for w in pool.statistics().workers} == {WorkerState.IDLE}, "idle")
    pids = set(pool.map(fill, range(50), 1))
    running = pool.apply_async(enter, (gate,))
    busy = gate.arrival().pid
    pool.terminate()
    with pytest.raises(Terminated):
        running.get(DEADLINE)
    codes = {left.pid: left.exitcode for left in pool.statistics().exits}
    assert codes.pop(busy) == -signal.SIGKILL
    assert set(codes.values()) == {0}
    for pid in pids - {busy}:
        assert (tmp_path / f"rows.{pid}").read_text()


def never_end(path):
    """Have the exit of this process take for ever."""
    atexit.register(time.sleep, 3600)
    path.write_text(str(os.getpid()))


def test_an_exit_that_takes_for_ever_is_cut_short(make_pool, tmp_path, monkeypatch):
    monkeypatch.setattr("prefork._engine.lifecycle.TERMINATE_SECONDS", 0.2)
    pool = make_pool(1)
    pool.apply(never_end, (tmp_path / "at",))
    pool.terminate()
    (left,) = pool.statistics().exits
    assert left.exitcode == -signal.SIGKILL


def test_what_the_parent_has_registered_and_holds_is_the_parents(script, tmp_path):
    program = script(
        textwrap.dedent(f"""
        import atexit, weakref, os, sys
        from prefork import Pool
        class Anything: pass
        it, home = Anything(), os.getpid()
        path = {str(tmp_path / "log")!r}
        def say(text):
            with open(path, "a") as file:
                file.write(f"{{text}} {{os.getpid() == home}}\\n")
        atexit.register(say, "exit function")
        weakref.finalize(it, say, "weakref")
        held = open({str(tmp_path / "held")!r}, "w")
        held.write("once\\n")
        with Pool(2, context="fork") as pool:
            pool.map(abs, range(10), 1)
        held.close()
        """)
    )
    code, _, errors = program.finish()
    assert (code, errors) == (0, "")
    assert sorted((tmp_path / "log").read_text().splitlines()) == [
        "exit function True",
        "weakref True",
    ]
    assert (tmp_path / "held").read_text() == "once\n"


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_what_the_program_and_its_libraries_have_begun_is_ended(script, tmp_path, method):
    """What log handlers hold is written; with spawn, which has inherited nothing, exit functions of
    the program's file find its files open, and what its modules hold comes to its end."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import atexit, logging.handlers, shelve, sys, tempfile
            from concurrent.futures import ThreadPoolExecutor

            import prefork

            METHOD, FOLDER = sys.argv[1:]
            rows = None

            @atexit.register
            def write_last():
                if rows is not None:
                    rows.write("last")

            def begin():
                global rows, table, temporary, executor
                rows = open(f"{FOLDER}/rows", "w")
                table = shelve.open(f"{FOLDER}/table", writeback=True)
                temporary = tempfile.NamedTemporaryFile(dir=FOLDER, prefix="temporary")
                executor = ThreadPoolExecutor(1)
                executor.submit(abs, -1).result()  # it has a thread that waits for more
                file = logging.FileHandler(f"{FOLDER}/log")
                held = logging.handlers.MemoryHandler(1000, logging.CRITICAL, file)
                logging.getLogger("tasks").addHandler(held)

            def task(number):
                table[str(number)] = number
                logging.getLogger("tasks").warning("%d", number)

            if __name__ == "__main__":
                with prefork.Pool(1, begin, context=METHOD) as pool:
                    pool.map(task, range(3))
                    pool.close()
                    pool.join()
        """)
    )
    code, _, err = script(program, method, tmp_path).finish()
    assert (code, err) == (0, "")
    assert (tmp_path / "log").read_text().split() == ["0", "1", "2"]
    if method == "spawn":
        assert (tmp_path / "rows").read_text() == "last"
        with shelve.open(str(tmp_path / "table")) as table:
            assert dict(table) == {"0": 0, "1": 1, "2": 2}
        assert not list(tmp_path.glob("temporary*"))


def test_a_file_that_cannot_be_written_is_said_and_the_others_are(make_pool, tmp_path, capfd):
    # (A fork server says it where the program said things when the server was started.)
    pool = make_pool(1, hold, (tmp_path,), context="fork")
    pool.apply(open_full)
    pool.apply(fill, (1,))
    pool.close()
    assert pool.join(DEADLINE)
    assert lines(tmp_path, "rows") == [1]
    assert "No space left on device" in capfd.readouterr().err


kept_open: list[IO[str]] = []


def open_full():
    kept_open.append(open("/dev/full", "w"))  # noqa: SIM115
    kept_open[0].write("x")


def stay(path):
    path.write_text(str(os.getpid()))
    return os.getpid()


def test_an_idle_worker_that_was_stopped_does_not_hold_up_the_end(make_pool, tmp_path):
    pool = make_pool(1)
    pid = pool.apply(stay, (tmp_path / "at",))
    assert int(marked(tmp_path / "at")) == pid
    os.kill(pid, signal.SIGSTOP)
    pool.terminate()
    (left,) = pool.statistics().exits
    assert left.exitcode == 0


def test_an_idle_worker_that_was_stopped_does_not_hold_up_a_closed_pool(make_pool):
    pool = make_pool(2)
    pool.map(abs, range(10), 1)
    for worker in pool.statistics().workers:
        stop(worker.pid)
    pool.close()
    assert pool.join(DEADLINE)
    assert [left.exitcode for left in pool.statistics().exits] == [0, 0]


# --- what tasks leave behind


def leave_thread(path):
    threading.Thread(target=wait_for_ever).start()  # no daemon


def leave_executor(path):
    ThreadPoolExecutor(1).submit(wait_for_ever)


def leave_process(path):
    multiprocessing.get_context("fork").Process(target=wait_for_ever).start()


def wait_for_ever():
    signal.sigwait([signal.SIGUSR2])


@pytest.mark.parametrize("leave", [leave_thread, leave_executor, leave_process])
def test_what_a_task_has_left_does_not_hold_its_worker(context, make_pool, tmp_path, leave):
    """And all else that is to be done at its end is done."""
    pool = make_pool(1, hold, (tmp_path,), context=context)
    pool.apply(leave, (tmp_path,))
    pool.apply(fill, (0,))
    pool.close()
    assert pool.join(DEADLINE)
    (left,) = pool.statistics().exits
    assert left.exitcode == 0  # nobody has had to kill it
    everything_was_done(tmp_path, 1, 1)


def leave_short_thread(path):
    threading.Thread(target=write_soon, args=(path / "soon",)).start()


def write_soon(path):
    threading.Event().wait(0.1)
    path.write_text("done")


def test_what_ends_soon_is_waited_for(context, make_pool, tmp_path):
    pool = make_pool(1, context=context)
    pool.apply(leave_short_thread, (tmp_path,))
    pool.close()
    assert pool.join(DEADLINE)
    assert (tmp_path / "soon").read_text() == "done"


def test_coverage_of_workers_is_complete(tmp_path):
    pytest.importorskip("coverage")
    (tmp_path / "program.py").write_text(
        "from prefork import Pool\n"
        "def task(x):\n"
        "    y = x + 1\n"
        "    return y\n"
        "if __name__ == '__main__':\n"
        "    with Pool(2) as pool:\n"
        "        print(sum(pool.map(task, range(4))))\n"
    )
    (tmp_path / ".coveragerc").write_text("[run]\nconcurrency = multiprocessing\nparallel = true\n")
    coverage = [sys.executable, "-m", "coverage"]
    run = [*coverage, "run", "program.py"]
    subprocess.run(run, cwd=tmp_path, check=True, timeout=DEADLINE)
    subprocess.run([*coverage, "combine"], cwd=tmp_path, check=True, timeout=DEADLINE)
    report = subprocess.run(
        [*coverage, "report", "-m", "--include=program.py"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert "100%" in report.stdout, report.stdout
