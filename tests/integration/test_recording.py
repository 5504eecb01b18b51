"""What a pool does, recorded, and the page of it."""

from __future__ import annotations

import gc
import os
import re
import threading

import pytest

from gate import enter
from helpers import DEADLINE, METHODS, eventually
from prefork import Cancelled, Retry, TimeLimitExceeded, WorkerLostError


def fail(number):
    raise ValueError(f"no {number}")


def fail_on_odd(number):
    if number % 2:
        raise KeyError(number)


def tile(page, name):
    found = re.search(rf"<dt>{name}</dt><dd>([^<]*)</dd>", page)
    return found and found[1]


def threads():
    return [each.name for each in threading.enumerate() if each.name == "prefork-MemoryWatch"]


@pytest.mark.parametrize("method", METHODS)
def test_jobs_are_told_with_their_function(make_pool, method):
    pool = make_pool(2, context=method)
    with pool.record() as recording:
        for number in range(5):
            pool.apply(abs, (number,))
        pool.map(abs, range(100), chunksize=10)
    pool.apply(abs, (1,))  # that is not recorded any more
    page = recording.html()
    assert tile(page, "jobs") == "15"
    assert tile(page, "failures") == "0"
    assert "builtins.abs" in page
    assert "items 90 to 99" in page


def test_failures_are_told_by_kinds_with_their_stacks(make_pool):
    pool = make_pool(1)
    with pool.record() as recording:
        for number in range(3):
            pool.apply_async(fail, (number,)).wait(DEADLINE)
        with pytest.raises(WorkerLostError):
            pool.apply(os.abort)
        pool.each_async(fail_on_odd, range(4)).get(DEADLINE)
    page = recording.html()
    assert tile(page, "failures") == "6"
    assert "3 &times; ValueError</strong>, in fail (integration/test_recording.py:" in page
    assert "raise ValueError(f&quot;no {number}&quot;)" in page
    assert "1 &times; prefork.WorkerLostError" in page
    assert "Fatal Python error: Aborted" in page
    assert "2 &times; KeyError</strong>, in fail_on_odd" in page


class Unkind(Exception):
    """An error whose own code fails wherever it is asked for something."""

    def __reduce__(self):
        return Unkind, ()

    def __str__(self):
        raise LookupError

    @property
    def stack(self):
        raise LookupError


def raise_unkind():
    raise Unkind


def test_an_error_whose_own_code_fails_harms_nobody(make_pool):
    pool = make_pool(1)
    with pool.record() as recording:
        for _ in range(2):
            with pytest.raises(Unkind):
                pool.apply(raise_unkind)
        assert pool.apply(abs, (-3,)) == 3
    page = recording.html()
    assert "2 &times; test_recording.Unkind" in page
    assert tile(page, "jobs") == "3"


def test_runs_that_were_followed_by_another_one(make_pool):
    pool = make_pool(1)
    with pool.record() as recording:
        future = pool.options(retries=Retry(2, on=ValueError)).submit(fail, 1)
        with pytest.raises(ValueError, match="no 1"):
            future.result(DEADLINE)
        with pytest.raises(WorkerLostError):
            pool.apply(os._exit, (1,), retries=1)
    page = recording.html()
    assert tile(page, "jobs") == "5"
    assert "5 failures, 3 of them of what was run again." in page
    assert "3 &times; ValueError</strong>, in fail (integration/test_recording.py:" in page
    assert "attempt 3" in page


def test_what_a_limit_kills_and_what_never_runs(make_pool, gate):
    pool = make_pool(1)
    with pool.record() as recording:
        late = pool.apply_async(enter, (gate,), timeout=0.5)
        gate.arrival()
        waiting = pool.apply_async(abs, (1,))
        assert waiting.cancel()
        with pytest.raises(TimeLimitExceeded):
            late.get(DEADLINE)
        with pytest.raises(Cancelled):
            waiting.get(DEADLINE)
    page = recording.html()
    assert tile(page, "jobs") == "1"
    assert "1 &times; prefork.TimeLimitExceeded" in page
    assert "1 &times; prefork.Cancelled" in page


def test_memory_is_looked_at_while_a_task_runs(make_pool, gate):
    pool = make_pool(1)
    with pool.record() as recording:
        result = pool.apply_async(enter, (gate,))
        visitor = gate.arrival()
        eventually(lambda: tile(recording.html(), "memory of a worker"), "it is measured")
        visitor.go()
        result.get(DEADLINE)
    assert threads() == []
    assert "Resident memory" in recording.html()


def test_without_a_thread(make_pool):
    pool = make_pool(1, threads=False)
    with pool.record(memory=False) as recording:
        assert threads() == []
        assert pool.apply(abs, (-1,)) == 1
    assert tile(recording.html(), "jobs") == "1"
    assert "It was not measured." in recording.html()


def test_several_at_once_and_while_it_runs(make_pool):
    pool = make_pool(1)
    first, second = pool.record(), pool.record()
    pool.apply(abs, (1,))
    assert tile(first.html(), "jobs") == tile(second.html(), "jobs") == "1"
    first.stop()
    first.stop()
    pool.apply(abs, (1,))
    assert tile(first.html(), "jobs") == "1"
    assert tile(second.html(), "jobs") == "2"
    assert repr(first) == "<Recording: stopped>"
    assert repr(second) == "<Recording: running>"
    second.stop()


def test_a_terminated_pool_is_recorded_to_its_end(make_pool, gate):
    pool = make_pool(1)
    recording = pool.record()
    pool.apply_async(enter, (gate,))
    gate.arrival()
    waiting = pool.apply_async(abs, (1,))
    pool.terminate()
    waiting.wait(DEADLINE)
    eventually(lambda: tile(recording.html(), "failures") == "2", "both have failed")
    eventually(lambda: not threads(), "the thread ends with the pool")
    assert tile(recording.html(), "jobs") == "1"


def test_one_that_is_dropped_records_no_more(make_pool):
    pool = make_pool(1)
    pool.record()
    gc.collect()
    eventually(lambda: not threads(), "the thread ends")


def test_many_short_jobs_from_many_threads(make_pool):
    """Each is told once, though all threads and the pool's own note and account for them."""
    pool = make_pool(2)

    def work():
        for number in range(100):
            pool.apply(abs, (number,))
            recording.html() if number % 25 == 0 else None

    with pool.record() as recording:
        callers = [threading.Thread(target=work) for _ in range(4)]
        for each in callers:
            each.start()
        for each in callers:
            each.join(DEADLINE)
    assert tile(recording.html(), "jobs") == "400"


# ---- the file


@pytest.fixture
def recording(make_pool):
    with make_pool(1).record(memory=False) as recording:
        yield recording


def test_a_page_replaces_a_page(recording, tmp_path):
    path = tmp_path / "report.html"
    path.touch()
    recording.save(path, title="first")
    recording.save(str(path), title="second")
    assert "<h1>second</h1>" in path.read_text()
    assert os.listdir(tmp_path) == ["report.html"]


def test_anything_else_stays(recording, tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("1,2\n")
    with pytest.raises(FileExistsError, match="it exists, and is no report"):
        recording.save(path)
    assert path.read_text() == "1,2\n"
    with pytest.raises(FileExistsError, match="this is no file"):
        recording.save(tmp_path)
    with pytest.raises(FileExistsError, match="this is no file"):
        recording.save("/dev/null")


def test_a_link_is_followed(recording, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    recording.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text().startswith("<!DOCTYPE html>")


def test_where_nothing_can_be_written(recording, tmp_path):
    with pytest.raises(FileNotFoundError):
        recording.save(tmp_path / "nowhere" / "report.html")


def test_a_full_disk_leaves_what_was_there(recording, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    recording.save(path, title="first")

    def fsync(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        recording.save(path, title="second")
    assert "<h1>first</h1>" in path.read_text()
    assert os.listdir(tmp_path) == ["report.html"]


def test_not_in_a_forked_child(recording, make_pool, tmp_path):
    with make_pool(1) as pool:
        pid = os.fork()
        if not pid:
            for call in (pool.record, recording.html):
                try:
                    call()
                except RuntimeError:
                    continue
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
