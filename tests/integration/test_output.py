"""What tasks print comes to the pool's process, line by line, with the job."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from helpers import DEADLINE, NEVER, eventually, mark, marked
from prefork import OutputLine, Pool, TimeLimitExceeded, WorkerLostError
from prefork._observe import emitter
from prefork._observe.lines import LONGEST


def close(pool):
    pool.close()
    assert pool.join(DEADLINE)


@pytest.fixture
def lines():
    return []


def in_all_ways(number):
    print("print", number)
    print("to stderr", number, file=sys.stderr)
    os.write(1, b"os.write\n")
    os.system("echo shell; echo shell to stderr >&2")
    subprocess.run([sys.executable, "-c", "print('python')"], check=True)
    sys.stdout.write("two\nlines\n\nand no end")


def test_lines_come_with_worker_and_job(make_pool, context, lines):
    pool = make_pool(1, context=context, capture_output=lines.append)
    result = pool.apply_async(in_all_ways, (3,))
    result.get(DEADLINE)
    close(pool)
    pid, name = result.pid, f"{__name__}.in_all_ways"
    assert {line[2:] for line in lines} == {("PreforkWorker-1", pid, result.job, name)}
    assert [line.text for line in lines if line.stream == "stdout"] == [
        *("print 3", "os.write", "shell", "python", "two", "lines", "", "and no end")
    ]
    assert [line.text for line in lines if line.stream == "stderr"] == [
        *("to stderr 3", "shell to stderr")
    ]


IN_C = "import ctypes; libc = ctypes.CDLL(None); libc.printf(b'from C\\n'); libc.puts(b'once more')"


def run_c():
    exec(IN_C)
    os.kill(os.getpid(), 9)  # what is in C's own buffers would be lost


def test_c_code_is_heard_at_once(make_pool, context, lines):
    pool = make_pool(1, context=context, capture_output=lines.append)
    with pytest.raises(WorkerLostError):
        pool.apply(run_c)
    close(pool)
    assert [line.text for line in lines] == ["from C", "once more"]
    assert {line.function for line in lines} == {f"{__name__}.run_c"}


def shout(number):
    print(f"{number}\n" * 100, end="")
    return number


def test_every_line_is_of_its_job(make_pool, lines):
    pool = make_pool(2, capture_output=lines.append)
    results = [pool.apply_async(shout, (n,)) for n in range(200)]
    for result in results:
        result.get(DEADLINE)
    close(pool)
    jobs = {}
    for line in lines:
        jobs.setdefault(line.job, []).append(line.text)
    assert jobs == {result.job: [str(n)] * 100 for n, result in enumerate(results)}


def greet():
    print("hello")


def print_later(path):
    threading.Thread(target=lambda: (marked(path), print("later"))).start()


def test_what_no_job_prints(make_pool, context, lines, tmp_path):
    pool = make_pool(1, greet, context=context, capture_output=lines.append)
    pool.apply(print_later, (tmp_path / "go",))
    mark(tmp_path / "go")
    eventually(lambda: len(lines) == 2, "both are heard")
    assert [(line.text, line.job, line.function) for line in lines] == [
        ("hello", None, None),
        ("later", None, None),
    ]


def test_a_prefix_says_who_has_printed_it(make_pool, capsys):
    pool = make_pool(1, capture_output="prefix")
    result = pool.apply_async(in_all_ways, (1,))
    result.get(DEADLINE)
    close(pool)
    out, err = capsys.readouterr()
    prefix = f"[PreforkWorker-1, job {result.job} ({__name__}.in_all_ways)] "
    assert out.startswith(f"{prefix}print 1\n")
    assert out.endswith(f"{prefix}and no end\n")
    assert err == f"{prefix}to stderr 1\n{prefix}shell to stderr\n"


def write_oddly(size):
    os.write(1, b"\xff\xfe caf\xc3\xa9\r\n")
    os.write(1, b"\0prefork \0 and no mark\n\0pref")
    os.write(1, b"x" * size + b"\n")


def test_odd_bytes_and_long_lines(make_pool, lines):
    pool = make_pool(1, capture_output=lines.append)
    pool.apply(write_oddly, (3 * LONGEST,))
    close(pool)
    first, second, *rest = [line.text for line in lines]
    assert first == "\ufffd\ufffd café"
    assert second == "\0prefork \0 and no mark"
    assert "".join(rest) == "\0pref" + "x" * 3 * LONGEST
    assert len(rest) >= 3


def print_for_ever():
    number = 0
    while True:
        print(number)
        number += 1


def test_workers_that_are_killed_at_any_moment(make_pool, lines):
    pool = make_pool(2, capture_output=lines.append)
    while len({line.job for line in lines}) < 10:  # one that has no chance to run prints nothing
        with pytest.raises(TimeLimitExceeded):
            pool.apply(print_for_ever, timeout=0.05)
    close(pool)
    jobs = {}
    for line in lines:
        jobs.setdefault(line.job, []).append(int(line.text))
    assert len(jobs) >= 10
    assert all(numbers == list(range(len(numbers))) for numbers in jobs.values())


def close_all():
    os.close(1)
    os.close(2)


def replace():
    sys.stdout = sys.stderr = None


@pytest.mark.parametrize("task", [close_all, replace])
def test_a_task_that_spoils_its_output_harms_nobody(make_pool, lines, task):
    pool = make_pool(1, capture_output=lines.append)
    pool.apply(task)
    assert pool.apply(abs, (-1,)) == 1
    close(pool)


def test_a_function_that_blocks_holds_up_nothing(make_pool, monkeypatch):
    monkeypatch.setattr(emitter, "MOST_BYTES", 100_000)
    monkeypatch.setattr(emitter, "STUCK_SECONDS", 0.05)
    release = threading.Event()
    pool = make_pool(2, capture_output=lambda line: release.wait(DEADLINE))
    try:
        assert pool.map(shout, range(200), 1) == list(range(200))
        with pytest.raises(TimeLimitExceeded):
            pool.apply(time.sleep, (NEVER,), timeout=0.1)
        close(pool)
    finally:
        release.set()


def test_a_function_that_raises_is_called_again(make_pool, lines, caplog):
    def fail(line):
        lines.append(line)
        raise RuntimeError("broken function")

    pool = make_pool(1, capture_output=fail)
    pool.map(shout, range(3), 1)
    close(pool)
    assert len(lines) == 300
    assert caplog.text.count("told only once") == 1


@pytest.mark.parametrize("wrong", [True, 3, b"prefix"])
def test_what_is_neither_is_refused(wrong):
    with pytest.raises(TypeError, match='capture_output must be "prefix" or callable'):
        Pool(1, capture_output=wrong)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match='capture_output must be "prefix" or callable'):
        Pool(1, capture_output="suffix")  # type: ignore[arg-type]


def test_a_line_shows_who_has_printed_it():
    line = OutputLine("text", "stdout", "Worker-1", 4711, 3, "f")
    assert str(line) == "[Worker-1, job 3 (f)] text"
    assert str(line._replace(job=None, function=None)) == "[Worker-1] text"
