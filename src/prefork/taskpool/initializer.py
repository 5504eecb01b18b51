"""What a `TaskPool` has its processes do first."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
from typing import Any

__all__ = ["WORKER_SIGIGNORE", "WORKER_SIGRESET", "process_initializer", "set_signals"]

WORKER_SIGIGNORE = frozenset(["SIGINT"])
"""List of signals to ignore when a child process starts."""
WORKER_SIGRESET = frozenset(["SIGHUP", "SIGTERM", "SIGTTOU", "SIGTTIN", "SIGUSR1"])
"""List of signals to reset when a child process starts."""
LOG_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"


def process_initializer(app: Any, hostname: str | None) -> None:
    """Initializes the process so it can be used to process tasks.

    Sets signals, the process title (if setproctitle is installed) and logging, and calls what the
    app offers of `loader.init_worker()`, `loader.init_worker_process()`, `set_current()`,
    `set_default()` and `finalize()`.

    Args:
        app: any object, or None.
        hostname: of the worker that the pool belongs to; None: the machine's.
    """
    set_signals()
    set_title(hostname or socket.gethostname())
    if not logging.getLogger().handlers:
        logging.basicConfig(level=os.environ.get("PREFORK_LOG_LEVEL", "WARNING"), format=LOG_FORMAT)
    loader = getattr(app, "loader", None)
    for owner, name in (
        (loader, "init_worker"),
        (loader, "init_worker_process"),
        (app, "set_current"),
        (app, "set_default"),
        (app, "finalize"),
    ):
        if callable(call := getattr(owner, name, None)):
            call()


def set_signals() -> None:
    """Give the signals of a task process their defaults, or have them ignored."""
    for name in WORKER_SIGRESET:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    for name in WORKER_SIGIGNORE:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def set_title(hostname: str) -> None:
    """Show hostname and the process's name in the list of processes."""
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle(f"[prefork: {hostname}:{multiprocessing.current_process().name}]")
