"""The command line: `prefork map MODULE:FUNCTION [INPUT …]`, `prefork run COMMAND [INPUT …]`. It
needs the extra `cli`.

    inputs ──► feeder thread ──► pool ──► workers: the work, one input after another
                    ▲                                 │ JSON
               room in the window                     ▼
                    └────────────── main thread ◄── outcomes      (retries go back to the pool)
                                     │        │
                               records file   progress, on stderr

Layout, from the top; a module imports only from those below it:

    command     the commands, with click; what a wrong option is answered with
    looking     the commands that look at pools: ps, top, stacks
    live        the view of `top`, and its keys
    keys        a terminal that gives single keys
    tables      pools and workers, for a terminal
    sightings   what pools tell when they are asked, and the system of their processes
    report      what is said at the start and at the end
    run         one run: its events, retries, order, what is kept when it is stopped
    recorded    what was done when, for --report
    remote      --app: the pool is that of a celery application's workers
    plan        what is asked; how many inputs go to a worker at once
    feeder      the thread that reads the inputs, no further ahead than there is room
    external    work that is a command of the system
    options     the options
    work        what runs in a worker; work that is a function
    template    a command with placeholders → what is run for an input
    interrupts  Ctrl-C as an event
    results_file  the output's file: who may write there, and what has made what it holds
    formats     other files than JSON Lines, made of the records
    progress    the bar or log lines, with rich
    stats       counts, and failures by their kinds
    inputs      arguments, globs, lines, JSON Lines, CSV; read lazily, in a thread that can stop
    records     the output: one JSON object per line; what an earlier run has written
    target      MODULE:FUNCTION → the function, in any process
    jsontext    values ↔ JSON text

Only `command`, `options`, `progress` and those that look at pools import click and rich: workers
load neither.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import signal
import sys

from prefork.buildinfo import build_info
from prefork.cli.interrupts import Interrupted

__all__ = ["main"]

NEEDED = ("click", "rich")


def main() -> None:
    """The command `prefork`; it ends the process.

    Exit codes: 0, all inputs came through; 1, some failed; 2, it could not be done: wrong usage, an
    input that cannot be read; 3, the output cannot be written. After Ctrl-C, or another
    signal, the process ends by that signal (a shell tells 128 + its number), so that a shell's loop
    around it ends too.
    """
    if sys.argv[1:] == ["--version"]:  # that is told whether the extra is there or not
        print(build_info())
        sys.exit()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"prefork: the command line needs {' and '.join(missing)}: pip install 'prefork[cli]'\n"
        )
        sys.exit(2)
    try:
        from prefork.cli.command import cli

        cli(prog_name="prefork")
    except Interrupted as exc:
        end_by_signal(exc.signum)
    except KeyboardInterrupt:
        end_by_signal(signal.SIGINT)


def end_by_signal(signum: int) -> None:
    """End this process as if nobody had handled the signal, but not without tidying up."""
    atexit._run_exitfuncs()  # forkserver's folder, for one; a signal's end would leave it behind
    signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signum])
    os.kill(os.getpid(), signum)
    sys.exit(128 + signum)
