"""The command `prefork`: its options, and what a wrong one is answered with."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import click

from prefork._system.resources import available_cpus
from prefork.buildinfo import build_info
from prefork.cli.inputs import InputError, Inputs, Selection
from prefork.cli.interrupts import Interrupted
from prefork.cli.jsontext import from_json
from prefork.cli.looking import COMMANDS
from prefork.cli.progress import STYLES, Bar, Log, make_progress
from prefork.cli.records import Earlier, Output, OutputError, ResumeError
from prefork.cli.report import closing, headline, preview
from prefork.cli.results_file import Mode, Origin, ResultsFile, ResultsFileError
from prefork.cli.run import Ending, Plan, Run
from prefork.cli.target import Target, TargetError
from prefork.cli.work import Calling

__all__ = ["cli"]

STDOUT = "-"


class Quantity(click.ParamType[float]):
    """A number with a unit.

    Args:
        what: it is a number of, in messages.
        units: what each of them is, of the one that is meant if none is given.
    """

    def __init__(self, what: str, units: dict[str, float]) -> None:
        self.name = what
        self._units = units

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = str(value).rstrip("".join(self._units))
        unit = str(value)[len(number) :]
        try:
            quantity = float(number) * (self._units[unit] if unit else 1.0)
        except (ValueError, KeyError):
            units = ", ".join(self._units)
            self.fail(f"{value!r} is not a number of {self.name} (units: {units})", param, ctx)
        if not 0 < quantity < math.inf:
            self.fail(f"{value} is not more than 0 {self.name}", param, ctx)
        return quantity


SECONDS = Quantity("seconds", {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0})
BYTES = Quantity("bytes", {"K": 1024.0, "M": 1024.0**2, "G": 1024.0**3})


class Shard(click.ParamType[tuple[int, int]]):
    """`2/8`."""

    name = "shard"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        which, _, of = str(value).partition("/")
        if not (which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)):
            self.fail(f"{value!r} is not of the form 2/8, from 1/8 to 8/8", param, ctx)
        return int(which), int(of)


class Keyword(click.ParamType[tuple[str, Any]]):
    """`name=value`; the value is JSON, or else a string."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        name, equals, text = str(value).partition("=")
        if not equals or not name.isidentifier():
            self.fail(f"{value!r} is not of the form name=value", param, ctx)
        try:
            return name, from_json(text)
        except ValueError:
            return name, text


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(build_info().version, message=str(build_info()))
def cli() -> None:
    """A pool of worker processes that never hangs, never loses a job, and keeps its time limits."""


for _command in COMMANDS:
    cli.add_command(_command)


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
@click.option("-0", "--null", is_flag=True, help="Lines end with a NUL, as find -print0 has it.")
@click.option(
    "--jsonl",
    metavar="FILE",
    multiple=True,
    help="Inputs are the JSON values of a file, one per line; - is stdin.",
)
@click.option(
    "--csv",
    metavar="FILE",
    multiple=True,
    help="Inputs are the rows of a file, as objects; its first line names the columns.",
)
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Take the first N inputs.")
@click.option(
    "--shard",
    type=Shard(),
    default="1/1",
    metavar="I/N",
    help="Take every Nth input, from the Ith on: for N runs that share the work.",
)
@click.option(
    "--star",
    is_flag=True,
    help="An input that is a list is the function's arguments, an object its keyword arguments.",
)
@click.option(
    "--kwarg",
    "keywords",
    type=Keyword(),
    multiple=True,
    metavar="NAME=VALUE",
    help="A keyword argument for each call; the value is JSON, or else a string.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default=STDOUT,
    help="Write the results here instead of to stdout. What has made them is noted in FILE.origin.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with what an earlier run has left undone: skip inputs that the output file holds, "
    "and add the others to it. It must have been the same function with the same limits.",
)
@click.option("--resume-anyway", is_flag=True, help="The same, whatever has made the file.")
@click.option(
    "--retry-failed", is_flag=True, help="With --resume: run again what has failed earlier."
)
@click.option("--overwrite", is_flag=True, help="Replace what the output file holds.")
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
    type=SECONDS,
    help="The most that one input may take (90, 90s, 2m, 1.5h); then its worker is killed, and it "
    "has failed.",
)
@click.option(
    "--soft-timeout",
    type=SECONDS,
    help="After so long, SoftTimeLimitExceeded is raised in the function, which may clean up.",
)
@click.option(
    "--max-memory",
    type=BYTES,
    help="The most that a worker may have resident while it runs one input (800M, 2G); then it is "
    "killed, and the input has failed.",
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
    "--max-failures",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop when N inputs have failed; what is done is kept.",
)
@click.option("--fail-fast", is_flag=True, help="Stop when one has.")
@click.option(
    "--chunksize",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Hand so many inputs to a worker at once: faster if each takes less than a millisecond.",
)
@click.option(
    "--initializer",
    metavar="MODULE:FUNCTION",
    help="Call this, without arguments, in each worker when it starts.",
)
@click.option(
    "--max-tasks-per-child",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replace a worker after N inputs, or chunks of them.",
)
@click.option(
    "--start-method",
    type=click.Choice(multiprocessing.get_all_start_methods()),
    help="How to start the workers.  [default: Python's own]",
)
@click.option(
    "--progress",
    type=click.Choice(STYLES),
    default="auto",
    show_default=True,
    help="What to show on stderr; json is one object per line.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but failures and errors.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
def map_command(target: str, arguments: tuple[str, ...], **options: Any) -> None:
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

    Whatever the function does, only the input that it did it to fails; so does one that cannot be
    understood. Progress, and the failures with their reasons, go to stderr. Ctrl-C stops and keeps
    what is done; SIGUSR1 has it tell what each worker does.

    Exit codes: 0, all inputs came through; 1, some failed; 2, wrong usage, or an input that cannot
    be read; 3, the output cannot be written; 128 + N, ended by signal N.
    """
    asked = SimpleNamespace(**options)
    _check(asked, arguments)
    _mend_standard_streams(asked.output)
    with _stdout_for_records(asked.output == STDOUT) as stdout:
        with _usage_errors():
            plan = _plan(target, asked)
            end = b"\0" if asked.null else b"\n"
            selection = Selection(asked.limit, *asked.shard)
            inputs = Inputs(
                arguments, asked.patterns, asked.lines, asked.jsonl, asked.csv, end, selection
            )
            if asked.dry_run:
                for line in preview(plan, inputs):
                    click.echo(line, err=True)
                return
            earlier = Earlier()
            if asked.output == STDOUT:
                fd = os.dup(stdout)
            else:
                file = _open(asked, plan, inputs)
                earlier, fd = file.earlier, file.fd
        style = "none" if asked.quiet else asked.progress
        sys.exit(_run(plan, inputs, earlier, fd, asked.output, style))


# ---- the options


def _check(asked: SimpleNamespace, arguments: tuple[str, ...]) -> None:
    """That they go together.

    Raises:
        click.UsageError: they do not.
    """
    soft, hard = asked.soft_timeout, asked.timeout
    if soft is not None and hard is not None and soft >= hard:
        raise click.UsageError("--soft-timeout must be less than --timeout.")
    goes_on = asked.resume or asked.resume_anyway
    if (goes_on or asked.retry_failed) and asked.output == STDOUT:
        raise click.UsageError("--resume needs the output file of the earlier run: -o FILE.")
    if asked.retry_failed and not goes_on:
        raise click.UsageError("--retry-failed needs --resume.")
    if goes_on and asked.overwrite:
        raise click.UsageError("--overwrite and --resume are opposites.")
    files = [*asked.lines, *asked.jsonl, *asked.csv]
    if files.count("-") > 1:
        raise click.UsageError("Standard input can be read only once.")
    if not (arguments or asked.patterns or files):
        raise click.UsageError("No inputs: name some, or use --glob, --lines, --jsonl or --csv.")


def _plan(target: str, asked: SimpleNamespace) -> Plan:
    its = Target.parse(target)
    initializer = None if asked.initializer is None else Target.parse(asked.initializer)
    if initializer is not None:
        initializer.load()
    return Plan(
        its,
        its.load(),
        asked.processes or available_cpus(),
        asked.timeout,
        asked.soft_timeout,
        asked.retries,
        asked.chunksize,
        asked.ordered,
        asked.start_method,
        Calling(asked.star, dict(asked.keywords)),
        initializer,
        None if asked.max_memory is None else max(1, round(asked.max_memory / 1024)),
        asked.max_tasks_per_child,
        1 if asked.fail_fast else asked.max_failures,
    )


def _open(asked: SimpleNamespace, plan: Plan, inputs: Inputs) -> ResultsFile:
    mode = Mode.REFUSE
    if asked.resume_anyway:
        mode = Mode.RESUME_ANYWAY
    elif asked.resume:
        mode = Mode.RESUME
    elif asked.overwrite:
        mode = Mode.OVERWRITE
    origin = Origin.of(
        plan.target,
        plan.function,
        timeout=plan.timeout,
        soft_timeout=plan.soft_timeout,
        max_memory=plan.max_memory,
        star=plan.calling.star or None,
        kwargs=plan.calling.keywords or None,
    )
    return ResultsFile(asked.output, mode, origin, inputs.holds, asked.retry_failed)


# ---- before the run


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except (InputError, ResultsFileError, ResumeError, TargetError) as exc:
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


# ---- the run


def _run(plan: Plan, inputs: Inputs, earlier: Earlier, fd: int, path: str, style: str) -> int:
    """Returns the exit code.

    Raises:
        Interrupted: a signal, or the reader of our output, has ended it.
    """
    with contextlib.closing(make_progress(style)) as progress:
        progress.stats.total = inputs.total
        progress.start(headline(plan, progress.stats, earlier))
        try:
            ending = _map(plan, inputs, earlier, progress, fd, path)
        finally:
            progress.stop()
        if ending.closed:
            raise Interrupted(signal.SIGPIPE)
        for line in closing(progress.stats, ending, None if path == STDOUT else path):
            progress.say(*line)
    if ending.signum is not None:
        raise Interrupted(ending.signum)
    if ending.problem is not None:
        return 3 if ending.unwritten else 2
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
