"""What a worker process does before and after its tasks: it becomes what celery, kombu and
billiard expect one to be, in the places where they look."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from types import FrameType
from typing import Any, NoReturn

import billiard.process
import billiard.util
from billiard.common import TERM_SIGNAME
from celery import platforms, signals
from celery._state import _set_task_join_will_block
from celery.app import trace
from celery.worker import state

from prefork._system import process, std_internals
from prefork.taskpool.initializer import set_signals

__all__ = ["FRESH", "Process", "SpawnProcess", "has_heeded", "process_initializer"]

FRESH = "FORKED_BY_MULTIPROCESSING"
"""Celery's sign, in the environment, of a child that is a fresh interpreter."""

EXIT_SIGNALS = frozenset({"SIGTERM", "SIGQUIT", "SIGHUP", TERM_SIGNAME})
"""They end the process in order: `finally` blocks run. The last one is what celery ends tasks with;
if that is not SIGTERM, by REMAP_SIGTERM, SIGTERM is for the main process alone, whoever it is sent
to: hosts that send it to all processes of a worker leave its tasks the time of a soft shutdown."""

_hostname: str | None = None


class Process(process.Process):
    """A worker process, whose life celery's signals tell."""

    kind = "ForkPoolWorker"

    def start(self) -> None:
        signals.worker_before_create_process.send(sender=self)
        super().start()

    def run(self) -> None:
        code: object = 0
        try:
            super().run()
        except SystemExit as exc:
            code = exc.code or 0
            raise
        except BaseException:
            code = 1
            raise
        finally:
            signals.worker_process_shutdown.send(sender=_hostname, pid=os.getpid(), exitcode=code)


class SpawnProcess(Process):
    kind = "SpawnPoolWorker"


def process_initializer(app: Any, hostname: str) -> None:
    """Make a new process one that can run celery's tasks.

    Args:
        app: the celery application.
        hostname: the name of the worker node.
    """
    global _hostname  # noqa: PLW0603
    _hostname = hostname
    _set_task_join_will_block(True)
    set_signals()
    for name in EXIT_SIGNALS:
        signal.signal(getattr(signal, name), _leave)
    if TERM_SIGNAME != "SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _exits_at_fork()
    _appear_in_billiard()
    platforms.set_mp_process_title("celeryd", hostname=hostname)
    app.loader.init_worker()
    app.loader.init_worker_process()
    _set_up_logging(app, hostname)
    _adopt(app, hostname)
    state.reset_state()
    signals.worker_process_init.send(sender=hostname)


def _exits_at_fork() -> None:
    """What a task forks, such as the processes of `multiprocessing`, ends at once, as usual.

    A signal may come before the child has come so far: `Pool.terminate` sends one right after the
    start. It has to wait, or our handler would see it, in a place where what it raises is dropped.
    """
    numbers = [getattr(signal, name) for name in EXIT_SIGNALS]
    ignored = {number for number in numbers if signal.getsignal(number) is signal.SIG_IGN}
    before = threading.local()

    def block() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def reset() -> None:
        for number in numbers:
            if signal.getsignal(number) is _leave or number in ignored:
                signal.signal(number, signal.SIG_DFL)
        restore()

    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=reset)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signum, signal.SIG_DFL)  # once more, and the process ends at once
    raise SystemExit(128 + signum)  # as a shell would report it


def has_heeded(pid: int, signum: int) -> bool:
    """Whether a process that was sent this signal has begun to leave: it has no handler for it any
    more. So it is, too, where the system does not tell."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:  # the name in there may be any bytes
            caught = re.search(rb"^SigCgt:\s*(\w+)", status.read(), re.MULTILINE)
    except OSError:  # it has ended
        return True
    return caught is None or not int(caught[1], 16) >> (signum - 1) & 1


def _appear_in_billiard() -> None:
    """Celery asks billiard for the name and the place of this process; kombu has billiard drop the
    connections that were opened before the fork."""
    me = multiprocessing.current_process()
    twin = billiard.process.BaseProcess(name=me.name)
    twin.index = getattr(me, "index", 0)
    parent = multiprocessing.parent_process()
    twin._parent_pid = parent.pid if parent is not None else os.getppid()
    billiard.process._set_current_process(twin)
    std_internals.become_current(me)
    if FRESH not in os.environ:
        billiard.util._run_after_forkers()


def _set_up_logging(app: Any, hostname: str) -> None:
    """The parent leaves its settings in the environment. What was set up there is inherited by a
    fork, except for a file of its own for each process (`%i` or `%I`)."""
    logfile = os.environ.get("CELERY_LOG_FILE") or None
    if logfile and "%i" in logfile.lower():
        app.log.already_setup = False
    app.log.setup(
        int(os.environ.get("CELERY_LOG_LEVEL") or 0),
        logfile,
        bool(os.environ.get("CELERY_LOG_REDIRECT")),
        str(os.environ.get("CELERY_LOG_REDIRECT_LEVEL")),
        hostname=hostname,
    )


def _adopt(app: Any, hostname: str) -> None:
    """Make this the app of the process, and have its tasks ready to run."""
    if os.environ.get(FRESH):
        trace.setup_worker_optimizations(app, hostname)
    else:
        app.set_current()
        app.set_default()
        app.finalize()
        trace._tasks = app._tasks  # where the fast tracer looks tasks up
    for name, task in app.tasks.items():
        task.__trace__ = trace.build_tracer(name, task, app.loader, hostname, app=app)
