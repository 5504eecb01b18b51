"""The command `prefork`: its options, and what a wrong one is answered with."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import stat
import sys
from collections.abc import Iterator
from typing import Any

import click

from prefork._system.resources import available_cpus
from prefork.buildinfo import build_info
from prefork.cli.inputs import InputError, Inputs
from prefork.cli.interrupts import Interrupted
from prefork.cli.progress import Bar, Log, make_progress
from prefork.cli.records import Earlier, Output, OutputError, ResumeError
from prefork.cli.report import closing, headline
from prefork.cli.run import Ending, Plan, Run
from prefork.cli.target import Target, TargetError

__all__ = ["cli"]

STDOUT = "-"


class Seconds(click.ParamType[float]):
    """A time limit."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        if not 0 < seconds < math.inf:
            self.fail(f"{value} is not more than 0 seconds", param, ctx)
        return seconds


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(build_info().version, message=str(build_info()))
def cli() -> None:
    """A pool of worker processes that never hangs, never loses a job, and keeps its time limits."""


@cli.command("map", short_help="Run a function over many inputs.")
@click.argument("target", metavar="MODULE:FUNCTION")
@click.argument("arguments", metavar="[INPUT]...", nargs=-1)
@click.option(
    "--glob",
    "patterns",
    metavar="PATTERN",
    multiple=True,
    help="Inputs are the paths that match; ** is any depth. Quote it, so that the shell leaves it.",
)
@click.option(
    "--lines", metavar="FILE", multiple=True, help="Inputs are the lines of a file; - is stdin."
)
@click.option(
    "--jsonl",
    metavar="FILE",
    multiple=True,
    help="Inputs are the JSON values of a file, one per line; - is stdin.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default=STDOUT,
    help="Write the results here instead of to stdout; what was there is replaced.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with what an earlier run has left undone: skip inputs that the output file holds, "
    "failed ones included (remove their lines to have them run again), and add the others to it.",
)
@click.option("--ordered", is_flag=True, help="Write the results in the order of the inputs.")
@click.option(
    "-p",
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many workers.  [default: as many as there are CPUs to use]",
)
@click.option(
    "--timeout",
    type=Seconds(),
    help="The most that one input may take; then its worker is killed, and it has failed.",
)
@click.option(
    "--soft-timeout",
    type=Seconds(),
    help="After so long, SoftTimeLimitExceeded is raised in the function, which may clean up.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="How often to try again when a worker was lost or a time limit has passed.",
)
@click.option(
    "--chunksize",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Hand so many inputs to a worker at once: faster if each takes less than a millisecond.",
)
@click.option(
    "--start-method",
    type=click.Choice(multiprocessing.get_all_start_methods()),
    help="How to start the workers.  [default: Python's own]",
)
def map_command(
    target: str,
    arguments: tuple[str, ...],
    patterns: tuple[str, ...],
    lines: tuple[str, ...],
    jsonl: tuple[str, ...],
    output: str,
    resume: bool,
    ordered: bool,
    processes: int | None,
    timeout: float | None,
    soft_timeout: float | None,
    retries: int,
    chunksize: int,
    start_method: str | None,
) -> None:
    """Run a function over many inputs, in worker processes that may crash, hang or die.

    MODULE:FUNCTION is what to call, with one argument: an INPUT as it stands here (a string), a
    path, a line, a JSON value. For example, json:loads, or tools/measure.py:main. The current
    directory is on the module path.

    \b
    The results are JSON Lines, in the order of completion, with the keys
      input             as it was given
      result | error    what the function returned | type, message, traceback
      seconds           how long it ran
      pid               of the worker process that ran it
      attempts          how often it was started

    Whatever the function does, only the input that it did it to fails. Progress, and the
    failures with their reasons, go to stderr. Ctrl-C stops and keeps what is done.

    Exit codes: 0, all inputs came through; 1, some failed; 2, wrong usage, or an input or the
    output failed.
    """
    if soft_timeout is not None and timeout is not None and soft_timeout >= timeout:
        raise click.UsageError("--soft-timeout must be less than --timeout.")
    if resume and output == STDOUT:
        raise click.UsageError("--resume needs the output file of the earlier run: -o FILE.")
    if [*lines, *jsonl].count("-") > 1:
        raise click.UsageError("Standard input can be read only once.")
    if not (arguments or patterns or lines or jsonl):
        raise click.UsageError("No inputs: name some, or use --glob, --lines or --jsonl.")
    _mend_standard_streams(output)
    with _stdout_for_records(output == STDOUT) as stdout:
        with _usage_errors():
            its = Target.parse(target)
            plan = Plan(
                its, its.load(), processes or available_cpus(), timeout, soft_timeout,
                retries, chunksize, ordered, start_method,
            )  # fmt: skip
            inputs = Inputs(arguments, patterns, lines, jsonl)
            earlier = Earlier()
            fd = os.dup(stdout) if output == STDOUT else -1
            if output != STDOUT:
                earlier, fd = _open(output, resume, inputs)
        sys.exit(_run(plan, inputs, earlier, fd, output))


# ---- before the run


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except (InputError, ResumeError, TargetError) as exc:
        raise click.UsageError(str(exc)) from None
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT) from None


def _mend_standard_streams(output: str) -> None:
    """A closed one is no place for the next file that happens to be opened."""
    if output == STDOUT and sys.stdout is None:
        raise click.UsageError("standard output is closed: use -o FILE.")
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


@contextlib.contextmanager
def _stdout_for_records(wanted: bool) -> Iterator[int]:
    """Standard output for the records alone, on a descriptor of its own: what the function
    prints, here at its import or in any worker, goes to standard error instead."""
    if not wanted:
        yield -1
        return
    sys.stdout.flush()
    records = os.dup(1)
    os.dup2(2, 1)
    try:
        yield records
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.dup2(records, 1)
            os.close(records)


def _open(path: str, resume: bool, inputs: Inputs) -> tuple[Earlier, int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        earlier = Earlier()
        if resume:
            with contextlib.suppress(FileNotFoundError):
                earlier = Earlier.read(path)
        fd = os.open(path, flags, 0o666)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            if inputs.holds(status):
                os.close(fd)
                raise InputError(f"{path} is an input: the output must be another file")
            if not resume:
                os.ftruncate(fd, 0)
    except OSError as exc:
        raise click.UsageError(f"cannot write to {path}: {exc.strerror}") from None
    return earlier, fd


# ---- the run


def _run(plan: Plan, inputs: Inputs, earlier: Earlier, fd: int, path: str) -> int:
    """Returns the exit code.

    Raises:
        Interrupted: a signal, or the reader of our output, has ended it.
    """
    with contextlib.closing(make_progress()) as progress:
        progress.stats.total = inputs.total
        progress.start(headline(plan, progress.stats, earlier))
        try:
            ending = _map(plan, inputs, earlier, progress, fd, path)
        finally:
            progress.stop()
        if ending.closed:
            raise Interrupted(signal.SIGPIPE)
        for text, style in closing(progress.stats, ending, None if path == STDOUT else path):
            progress.say(text, style)
    if ending.signum is not None:
        raise Interrupted(ending.signum)
    if ending.problem is not None:
        return 2
    return 1 if progress.stats.all_failed else 0


def _map(
    plan: Plan, inputs: Inputs, earlier: Earlier, progress: Log | Bar, fd: int, path: str
) -> Ending:
    run = Run(plan, inputs, earlier, progress)
    name = "standard output" if path == STDOUT else path
    output = Output(fd, name, run.signals.waiting)
    try:
        # What goes to the terminal that the bar is on goes through it.
        ending = run(progress if output.is_terminal and isinstance(progress, Bar) else output)
        output.close()
    except OutputError as exc:
        return Ending(problem=str(exc), unwritten=True, closed=exc.is_closed)
    return ending
