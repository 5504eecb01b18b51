"""The celery application of the tests: what the workers run.

Its settings come from the environment, as JSON in `PROJECT_SETTINGS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from celery import Celery, signals
from celery.exceptions import SoftTimeLimitExceeded
from kombu.transport import virtual

from gate import Door
from helpers import log_start, mark

app = Celery("project", broker=os.environ.get("PROJECT_BROKER"))
app.conf.update(
    result_backend=os.environ.get("PROJECT_BACKEND"),
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)
app.conf.update(json.loads(os.environ.get("PROJECT_SETTINGS", "{}")))

if polling := os.environ.get("PROJECT_POLLING"):  # no setting of the transports that poll tables
    virtual.Transport.polling_interval = float(polling)

logger = logging.getLogger(__name__)

MARKS = Path(os.environ.get("PROJECT_MARKS", "/nonexistent"))
"""Where the worker's signal handlers leave their marks."""


def note(event: str, text: object = "") -> None:
    if MARKS.is_dir():
        with (MARKS / event).open("a") as file:
            file.write(f"{text}\n")


# --- celery's signals


@signals.worker_before_create_process.connect
def before_create(sender, **kwargs):
    note("before_create", os.getpid())


@signals.worker_process_init.connect
def process_init(**kwargs):
    note("process_init", os.getpid())
    if os.environ.get("PROJECT_BROKEN"):
        raise SystemExit("the database is not there")
    if os.environ.get("PROJECT_KILLED"):
        os.kill(os.getpid(), signal.SIGKILL)
    if os.path.exists(os.environ.get("PROJECT_SLOW", "/nonexistent")):
        signal.signal(signal.SIGUSR2, lambda *_: None)
        signal.pause()


@signals.worker_process_shutdown.connect
def process_shutdown(pid, exitcode, **kwargs):
    note("process_shutdown", f"{pid} {os.getpid()} {exitcode}")


@signals.task_failure.connect
def failure(task_id, exception, **kwargs):
    note("task_failure", f"{task_id} {os.getpid()} {type(exception).__name__}")


# --- tasks


@app.task
def add(x, y):
    return x + y


@app.task(acks_late=True)
def add_late(x, y):
    return x + y


@app.task
def info():
    """What a task sees of its process."""
    import billiard

    return {
        "pid": os.getpid(),
        "ppid": multiprocessing.parent_process().pid,
        "name": multiprocessing.current_process().name,
        "billiard": billiard.current_process().name,
        "index": billiard.current_process().index,
        "threads": threading.active_count(),
        "title": Path("/proc/self/cmdline").read_text().replace("\0", " ").strip(),
        "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "method": multiprocessing.current_process()._start_method,
    }


@app.task
def fail():
    raise ValueError("it went wrong")


class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__("no arguments to make it again with")
        self.lock = threading.Lock()


@app.task
def fail_badly():
    raise Unpicklable(1, 2)


@app.task
def crash():
    faulthandler._sigsegv()


@app.task
def leave(code):
    sys.exit(code)


@app.task
def out_of_memory():
    raise MemoryError("no more")


def wait_at(address, value=None):
    return Door(tuple(address)).enter(value)


@app.task
def enter(address, value=None):
    """Wait at the test's gate."""
    return wait_at(address, value)


@app.task(acks_late=True)
def enter_late(address, value=None):
    return wait_at(address, value)


@app.task(acks_late=True, reject_on_worker_lost=True)
def enter_again(address, value=None):
    return wait_at(address, value)


@app.task(acks_late=True)
def die_late():
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def hang():
    hang_here()


def hang_here():
    signal.sigwait([signal.SIGUSR2])


@app.task
def quit_worker(path, signum):
    """Have the worker end, before it can know that this runs."""
    parent = multiprocessing.parent_process().pid
    log_start(Path(path), parent)
    os.kill(parent, signum)
    while True:
        signal.pause()


@app.task
def spin(path=None):
    """Python code that never ends, unless a soft limit ends it."""
    try:
        while True:
            pass
    except SoftTimeLimitExceeded as exc:
        return f"caught {type(exc).__module__}.{type(exc).__name__}"


@app.task
def leave_a_child(address, value=None):
    """The process dies. What it has forked, without Python's knowledge, goes on in its place."""
    if ctypes.PyDLL(None).fork():
        os._exit(1)
    return wait_at(address, value)


@app.task
def value_of(module):
    """What a module says that this process has inherited."""
    return sys.modules[module].VALUE


@app.task
def unwind(address, path):
    """Show that SIGTERM runs `finally`."""
    try:
        wait_at(address)
        while True:
            time.sleep(1)
    finally:
        mark(Path(path), "unwound")


@app.task
def count(path, number):
    log_start(Path(path), number)
    return number


@app.task(acks_late=True, reject_on_worker_lost=True)
def count_late(path, number):
    log_start(Path(path), number)
    return number


@app.task
def grow(mebibytes):
    app.ballast = bytearray(mebibytes << 20)
    return os.getpid()


@app.task
def say(text):
    logger.warning("said: %s", text)
    return os.getpid()


def double(x):
    return 2 * x


@app.task
def use_multiprocessing():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(double, range(5))


@app.task
def leave_orphan():
    return subprocess.Popen(["sleep", "3600"]).pid


@app.task(rate_limit="2/s")
def limited():
    return time.time()


@app.task(bind=True, max_retries=2)
def retry(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task
def large(size):
    return "x" * size


@app.task(acks_late=True)
def clean_up(address, path, late_address=None):
    """Its `finally` leaves a mark; before that it waits at the gate once more."""
    try:
        wait_at(address)
        while True:
            time.sleep(1)
    finally:
        if late_address is not None:
            wait_at(late_address, "cleaning")
        mark(Path(path), "cleaned up")


@app.task(acks_late=True)
def lock_up(address):
    """C code that runs no signal handler, and holds the interpreter: it waits for itself."""
    wait_at(address)
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)


@app.task
def shrug(address):
    """A task that goes on whatever it is sent."""
    with contextlib.suppress(SystemExit):
        wait_at(address)
        time.sleep(3600)
    time.sleep(3600)


@app.task
def leave_a_thread():
    """It is no daemon, and never ends."""
    threading.Thread(target=signal.sigwait, args=([signal.SIGUSR2],)).start()
    return os.getpid()


@app.task
def end_a_pool():
    """`multiprocessing` ends its processes by SIGTERM."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply_async(signal.sigwait, ([signal.SIGUSR2],))
    return "ended"
