"""Log records and warnings of workers reach the handlers of the pool's process."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import operator
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

from gate import enter
from helpers import DEADLINE, NEVER, eventually, stop
from prefork import (
    Pool,
    ProcessPoolExecutor,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
)
from prefork._observe import emitter

NAME = "prefork_test.logs"


class Notes(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)

    def texts(self):
        return [record.getMessage() for record in self.records]


@pytest.fixture
def notes():
    """Whatever is logged under `NAME`, at any level."""
    handler, logger = Notes(), logging.getLogger(NAME)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # the test run would keep them, too
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.disabled = False
    logger.propagate = True


def close(pool):
    """At an orderly end all has arrived."""
    pool.close()
    assert pool.join(DEADLINE)


def say(number, text="number %d"):
    logging.getLogger(NAME).info(text, number)
    return os.getpid()


def test_records_come_with_process_job_and_function(make_pool, context, notes):
    pool = make_pool(2, context=context, forward_logs=True)
    results = [pool.apply_async(say, (n,)) for n in range(10)]
    pids = [result.get(DEADLINE) for result in results]
    close(pool)
    found = {record.job: record for record in notes.records}
    for number, (result, pid) in enumerate(zip(results, pids, strict=True)):
        record = found[result.job]
        assert record.getMessage() == f"number {number}"
        assert (record.msg, record.args) == ("number %d", (number,))
        assert (record.process, record.function) == (pid, f"{__name__}.say")
        assert record.processName.startswith("PreforkWorker-")
        assert (record.name, record.levelno, record.levelname) == (NAME, logging.INFO, "INFO")
        assert (record.funcName, record.filename) == ("say", "test_logs.py")
        assert record.exc_info is None


def say_many(count):
    for number in range(count):
        say(number)


def test_none_is_lost_and_those_of_a_worker_keep_their_order(make_pool, context, notes):
    pool = make_pool(2, context=context, forward_logs=True)
    pool.map(say_many, [500] * 4, 1)
    close(pool)
    jobs = {}
    for record in notes.records:
        jobs.setdefault(record.job, []).append(record.args[0])
    assert list(jobs.values()) == [list(range(500))] * 4


class Unpicklable:
    def __init__(self):
        self.lock = threading.Lock()

    def __repr__(self):
        return "it"


class Unprintable:
    def __str__(self):
        raise RuntimeError("no text today")


def say_odd_things():
    logger = logging.getLogger(NAME)
    logger.info("%s and %r", Unpicklable(), "text")
    logger.info("%s", Unprintable())
    logger.info("%d", "no number", extra={"what": Unpicklable(), "size": 3})
    logger.info({"a": Unpicklable()})
    logger.info("%(a)s", {"a": 1})
    logger.info("bytes %s", b"\x00\xff")
    logger.info("%s", "x" * 100_000)
    logger.info("x" * 3_000_000)
    try:
        raise KeyError("why")
    except KeyError:
        logger.exception("failed", stack_info=True)


def test_what_cannot_be_pickled_comes_as_text(make_pool, context, notes):
    pool = make_pool(1, context=context, forward_logs=True)
    pool.apply(say_odd_things)
    close(pool)
    odd, unprintable, misfit, dictionary, mapping, data, long, longest, failed = notes.records
    assert odd.getMessage() == "it and 'text'"
    assert "no text today" in unprintable.getMessage()
    assert misfit.msg == "%d"  # it is put together in the handlers, as if it had been logged here
    assert (misfit.size, misfit.what) == (3, "it")
    assert dictionary.getMessage() == "{'a': it}"
    assert mapping.getMessage() == "1"
    assert data.getMessage() == r"bytes b'\x00\xff'"
    assert long.getMessage() == "x" * 100_000
    assert longest.getMessage().endswith("(the rest was too long)")
    assert failed.exc_text.endswith("KeyError: 'why'")
    assert "say_odd_things" in failed.stack_info
    text = logging.Formatter().format(failed)
    assert "Traceback" in text


@pytest.fixture
def levels(notes):
    logging.getLogger(f"{NAME}.quiet").setLevel(logging.ERROR)
    logging.getLogger(f"{NAME}.off").disabled = True
    logging.addLevelName(23, "HEED")
    yield
    logging.getLogger(f"{NAME}.quiet").setLevel(logging.NOTSET)
    logging.getLogger(f"{NAME}.off").disabled = False


def say_at_levels():
    for name in ("quiet", "off", "loud"):
        logger = logging.getLogger(f"{NAME}.{name}")
        logger.log(23, name)
        logger.error(name)
    return logging.getLogger(f"{NAME}.quiet").isEnabledFor(logging.INFO)


def test_levels_are_looked_at_in_the_worker(make_pool, context, notes, levels):
    pool = make_pool(1, context=context, forward_logs=True)
    assert not pool.apply(say_at_levels)
    close(pool)
    found = [(record.name.rpartition(".")[2], record.levelname) for record in notes.records]
    assert found == [("quiet", "ERROR"), ("loud", "HEED"), ("loud", "ERROR")]


def say_by_two():
    logging.getLogger(NAME).info("wanted")
    logging.getLogger("prefork_test.other").error("not wanted")


def test_only_those_of_one_logger(make_pool, context, notes, capfd):
    other = Notes()
    logging.getLogger("prefork_test.other").addHandler(other)
    try:
        pool = make_pool(1, context=context, forward_logs=NAME)
        pool.apply(say_by_two)
        close(pool)
    finally:
        logging.getLogger("prefork_test.other").removeHandler(other)
    assert notes.texts() == ["wanted"]
    assert not other.records


def test_records_climb_as_they_do_here(make_pool, notes):
    """What a forked worker has inherited writes nothing a second time."""
    higher, logger = Notes(), logging.getLogger("prefork_test")
    logger.addHandler(higher)
    try:
        for propagate in (True, False):
            logging.getLogger(NAME).propagate = propagate
            pool = make_pool(1, context="fork", forward_logs=True)
            pool.apply(say, (int(propagate),))
            close(pool)
    finally:
        logger.removeHandler(higher)
    assert notes.texts() == ["number 1", "number 0"]
    assert higher.texts() == ["number 1"]


def say_at_start():
    logging.getLogger(NAME).info("starts")


def say_at_exit():
    import atexit

    atexit.register(say_bye)


def say_bye():
    logging.getLogger(NAME).info("bye")


def test_an_initializer_and_the_end_of_a_worker_are_heard(make_pool, context, notes):
    pool = make_pool(1, say_at_start, context=context, forward_logs=True)
    pool.apply(say_at_exit)
    close(pool)
    assert [(r.getMessage(), r.job, r.function) for r in notes.records] == [
        ("starts", None, None),
        ("bye", None, None),
    ]


def say_in_a_child():
    pid = os.fork()
    if pid == 0:
        try:
            say(1)
            say("x" * 50_000, "%s")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return pid


def say_in_threads():
    threads = [threading.Thread(target=say, args=("x" * 20_000 + str(n), "%s")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_children_and_threads_of_tasks_are_heard(make_pool, context, notes):
    pool = make_pool(1, context=context, forward_logs=True)
    pid = pool.apply(say_in_a_child)
    pool.apply(say_in_threads)
    close(pool)
    assert [record.process == pid for record in notes.records] == [True] * 2 + [False] * 8
    assert sorted(record.args[0][-1] for record in notes.records[2:]) == list("01234567")


def run_a_pool():
    with Pool(1, forward_logs=True) as pool:
        pid = pool.apply(say, (1,))
        close(pool)
    return pid


def test_a_pool_inside_of_a_task_passes_on(make_pool, notes):
    pool = make_pool(1, forward_logs=True)
    pid = pool.apply(run_a_pool)
    close(pool)
    (record,) = notes.records
    assert (record.process, record.function) == (pid, f"{__name__}.say")


def test_a_successor_is_heard(make_pool, context, notes):
    pool = make_pool(1, context=context, maxtasksperchild=1, forward_logs=True)
    pids = [pool.apply(say, (n,)) for n in range(2)]
    pool.restart()
    pids.append(pool.apply(say, (2,)))
    close(pool)
    assert [(r.process, r.args[0]) for r in notes.records] == list(zip(pids, range(3), strict=True))


# --- warnings


def warn(number):
    warnings.simplefilter("always")
    for _ in range(3):
        warnings.warn("it is old", FutureWarning, stacklevel=1)
    warnings.warn(f"number {number % 2}", UserWarning, stacklevel=1)


def test_a_warning_is_shown_once_for_each_place(make_pool, context):
    with warnings.catch_warnings(record=True) as shown:
        pool = make_pool(2, context=context, forward_logs=True)
        pool.map(warn, range(10), 1)
        close(pool)
    found = sorted((str(w.message), w.category.__name__) for w in shown if w.filename == __file__)
    assert found == [
        ("it is old", "FutureWarning"),
        ("number 0", "UserWarning"),
        ("number 1", "UserWarning"),
    ]


def test_warnings_are_captured_by_logging(make_pool, monkeypatch):
    handler, logger = Notes(), logging.getLogger("py.warnings")
    logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        pool = make_pool(2, forward_logs=True)
        pool.map(warn, range(2), 1)
        close(pool)
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(handler)
    assert sum("it is old" in text for text in handler.texts()) == 1


# --- handlers that go wrong


def test_a_handler_that_raises_is_told_of_once(make_pool, notes, capfd):
    def fail(record):
        raise SystemExit("broken handler")

    notes.emit = fail
    pool = make_pool(2, forward_logs=NAME)
    assert len(pool.map(say, range(100), 1)) == 100
    told = Notes()
    logging.getLogger("prefork").addHandler(told)
    try:
        close(pool)
    finally:
        logging.getLogger("prefork").removeHandler(told)
    assert sum("raised" in text for text in told.texts()) <= 1


def sleep_and_say(seconds):
    logging.logMultiprocessing = False  # as below
    say_many(100)
    time.sleep(seconds)


def test_a_handler_that_blocks_stops_neither_results_nor_limits(make_pool, notes, monkeypatch):
    monkeypatch.setattr(emitter, "MOST_BYTES", 100_000)
    monkeypatch.setattr(emitter, "STUCK_SECONDS", 0.05)
    going, release = threading.Event(), threading.Event()

    def block(record):
        going.set()
        release.wait(DEADLINE)

    notes.emit = block
    pool = make_pool(2, forward_logs=True)
    pool.map(say_many, [1000] * 20, 1)  # many times what the pipes and the queue hold
    assert going.wait(DEADLINE)
    with pytest.raises(TimeLimitExceeded):
        pool.apply(sleep_and_say, (NEVER,), timeout=0.3)
    with pytest.raises(SoftTimeLimitExceeded):
        pool.apply(sleep_and_say, (NEVER,), soft_timeout=0.3)
    close(pool)  # which does not wait for it for ever
    told = Notes()
    logging.getLogger("prefork").addHandler(told)
    try:
        release.set()
        eventually(lambda: [t for t in told.texts() if "were dropped" in t], "it is counted")
    finally:
        logging.getLogger("prefork").removeHandler(told)


def test_a_handler_that_is_slow_loses_none_at_the_end(make_pool, notes, monkeypatch):
    monkeypatch.setattr(emitter, "STUCK_SECONDS", 2.0)
    texts = []

    def slow(record):
        time.sleep(0.01)
        texts.append(record.getMessage())

    notes.emit = slow
    pool = make_pool(2, forward_logs=True)
    pool.map(say_many, [100] * 3, 1)
    close(pool)
    assert len(texts) == 300


def test_a_handler_may_use_and_end_the_pool(make_pool, notes):
    pool = make_pool(2, forward_logs=True)
    found = []

    def use(record):
        if record.args == (1,):
            found.append(pool.apply(abs, (-3,)))
            pool.terminate()
            found.append(pool.join(DEADLINE))

    notes.emit = use
    pool.apply(say, (1,))
    eventually(lambda: found == [3, True], "it has ended the pool")


# --- workers that go wrong


def say_and_kill(count):
    for number in range(count):
        say(number)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_loses_only_what_it_had_not_sent(make_pool, context, notes):
    pool = make_pool(2, context=context, forward_logs=True)
    kills = 20 if context.get_start_method() == "fork" else 2  # others start slowly
    for _ in range(kills):
        with pytest.raises(WorkerLostError):
            pool.apply(say_and_kill, (50,))
    close(pool)
    jobs = {}
    for record in notes.records:
        jobs.setdefault(record.job, []).append(record.args[0])
    assert list(jobs.values()) == [list(range(50))] * kills


def say_for_ever(size):
    number = 0
    while True:
        logging.getLogger(NAME).info("%d %s", number, "x" * size)
        number += 1


@pytest.mark.parametrize("size", [10, 30_000])
def test_workers_that_are_killed_at_any_moment(make_pool, notes, size):
    """What arrives is whole, and without a gap."""
    pool = make_pool(2, forward_logs=True)

    def heard():
        return {record.job for record in notes.records if record.function.endswith("say_for_ever")}

    while len(heard()) < 10:  # one that has no chance to run says nothing
        with pytest.raises(TimeLimitExceeded):
            pool.apply(say_for_ever, (size,), timeout=0.05)
        pool.apply(say, (-1,))
    close(pool)
    jobs = {}
    for record in notes.records:
        if record.function.endswith("say_for_ever"):
            number, text = record.args
            assert text == "x" * size
            jobs.setdefault(record.job, []).append(number)
    assert len(jobs) >= 10
    assert all(numbers == list(range(len(numbers))) for numbers in jobs.values())


def say_until_the_limit(size):
    logging.logMultiprocessing = False  # where records are made, logging takes any error for none
    try:
        say_for_ever(size)
    except SoftTimeLimitExceeded:
        say(-1)
        return "in time"


@pytest.mark.parametrize("size", [10, 30_000])
def test_a_soft_limit_comes_through(make_pool, notes, size, capfd):
    pool = make_pool(1, forward_logs=True)
    in_time = 0
    while in_time < 20:
        with contextlib.suppress(SoftTimeLimitExceeded):  # before it has come to its `try`
            in_time += pool.apply(say_until_the_limit, (size,), soft_timeout=0.02) == "in time"
    close(pool)
    assert [r.args[0] for r in notes.records].count(-1) == 20
    assert "Logging error" not in capfd.readouterr().err


def test_a_worker_that_is_stopped_holds_up_nobody(make_pool, gate, notes):
    pool = make_pool(2, forward_logs=True)
    result = pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    stop(visitor.pid)
    pool.map(say, range(100), 1)
    eventually(lambda: len(notes.records) == 100, "the other one is heard")
    os.kill(visitor.pid, signal.SIGCONT)
    visitor.go()
    result.get(DEADLINE)


# --- costs


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def leave_open(pool):
    """For the garbage collector."""


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
@pytest.mark.parametrize("end", [close, Pool.terminate, leave_open])
def test_nothing_is_left(notes, end):
    def use():
        pool = Pool(2, forward_logs=True, capture_output=lambda line: None, maxtasksperchild=2)
        pool.map(say, range(8), 1)
        pool.apply_async(os._exit, (1,)).wait(DEADLINE)
        end(pool)

    def possessions():
        gc.collect()
        return descriptors(), threading.active_count(), len(multiprocessing.active_children())

    use()
    before = possessions()
    for _ in range(3):
        use()
    eventually(lambda: all(map(operator.le, possessions(), before)), "all is given back")


def test_nothing_is_imported_for_it_unless_asked():
    code = """
import sys
from prefork import Pool

def wanted(names):
    return [name for name in names if "_observe" in name or name == "logging"]

if __name__ == "__main__":
    with Pool(1, context="spawn") as pool:
        there = pool.apply(eval, ("list(__import__('sys').modules)",))
        print(wanted(there), wanted(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "[] []\n", run.stderr


@pytest.mark.parametrize("wrong", [3, ["name"], logging.getLogger()])
def test_what_is_no_name_is_refused(wrong):
    with pytest.raises(TypeError, match="forward_logs must be True or the name of a logger"):
        Pool(1, forward_logs=wrong)


def test_an_executor_forwards_too(notes):
    with ProcessPoolExecutor(1, forward_logs=True) as executor:
        executor.submit(say, 1).result(DEADLINE)
    assert notes.texts() == ["number 1"]


def test_a_pool_without_threads_forwards_too(make_pool, notes):
    pool = make_pool(1, threads=False, forward_logs=True)
    pool.apply(say, (1,))
    close(pool)
    assert notes.texts() == ["number 1"]


LEFT = """
import logging
from prefork import Pool

def say():
    logging.getLogger("left").warning("heard")

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s by %(function)s")
    pool = Pool(1, forward_logs=True)
    pool.apply(say)
"""


def test_a_pool_that_is_left_behind_loses_none(script):
    code, _, err = script(LEFT).finish()
    assert (code, err) == (0, "heard by __main__.say\n")


def test_settings_go_to_workers():
    from prefork._observe.settings import WorkerSettings

    settings = pickle.loads(pickle.dumps(WorkerSettings("", b"mark")))
    assert (settings.logger, settings.mark) == ("", b"mark")
    assert settings.levels is not None
