"""The command `prefork`: its options, and what a wrong one is answered with."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import click

from prefork._system.resources import available_cpus
from prefork.buildinfo import build_info
from prefork.cli import options
from prefork.cli.external import External
from prefork.cli.formats import form_of, problem_with
from prefork.cli.inputs import InputError, Inputs, Selection
from prefork.cli.interrupts import Interrupted
from prefork.cli.looking import COMMANDS
from prefork.cli.plan import Plan
from prefork.cli.progress import Bar, Log, make_progress
from prefork.cli.recorded import Recorded
from prefork.cli.records import Earlier, Output, OutputError, ResumeError
from prefork.cli.remote import NOT_REMOTE, PROCESSES, find_app
from prefork.cli.remote import check as check_remote
from prefork.cli.report import closing, headline, outlook, preview
from prefork.cli.results_file import Mode, Origin, ResultsFile, ResultsFileError
from prefork.cli.run import Ending, Run
from prefork.cli.target import Target, TargetError
from prefork.cli.template import split
from prefork.cli.work import Function, Work

__all__ = ["cli"]

STDOUT = "-"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(build_info().version, message=str(build_info()))
def cli() -> None:
    """A pool of worker processes that never hangs, never loses a job, and keeps its time limits."""


for _command in COMMANDS:
    cli.add_command(_command)


def _with(*lists: list[click.Option]) -> Callable[[click.Command], click.Command]:
    def add(command: click.Command) -> click.Command:
        command.params += (option for each in lists for option in each)
        return command

    return add


@_with(options.WHAT_INPUTS, options.FUNCTION, options.RECORDS, options.RUN, options.CLUSTER)
@cli.command("map", short_help="Run a function over many inputs.")
@click.argument("target", metavar="MODULE:FUNCTION")
@click.argument("arguments", metavar="[INPUT]...", nargs=-1)
def map_command(target: str, arguments: tuple[str, ...], **asked: Any) -> None:
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

    def work(wanted: SimpleNamespace) -> Work:
        initializer = None if wanted.initializer is None else Target.parse(wanted.initializer)
        return Function(Target.parse(target), wanted.star, dict(wanted.kwarg), initializer)

    _start(work, arguments, **asked)


class RunCommand(click.Command):
    """What comes after `--` is a command, word by word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            args, ctx.meta["words"] = args[:at], args[at + 1 :]
        return super().parse_args(ctx, args)


@_with(options.WHAT_INPUTS, options.COMMAND, options.RECORDS, options.RUN)
@cli.command("run", cls=RunCommand, short_help="Run a command for each of many inputs.")
@click.argument("arguments", metavar="COMMAND [INPUT]... | [INPUT]... -- COMMAND", nargs=-1)
@click.pass_context
def run_command(ctx: click.Context, /, arguments: tuple[str, ...], **asked: Any) -> None:
    """Run a command for each of many inputs, some at a time.

    COMMAND is one argument, as in 'gzip -k {}', or all that comes after --, word by word. No shell
    is involved, unless there is --shell: then it is a script, as in 'sort {} | head -1 > {stem}.1',
    and what stands for {} needs no quotation marks.

    \b
      {}        the input, as one word; at the end, if there is no placeholder
      {name}    of a path: without its folder
      {stem}    without its folder and its ending
      {parent}  its folder
      {n}       the number of the input, from 1 on
      {{name}}  the text {name} itself

    \b
    The results are JSON Lines, in the order of completion, with the keys
      input             as it was given
      result | error    exit_code, stdout, stderr, peak_memory | also type, message
      seconds           how long it ran
      pid               of the worker process that started it
      attempts          how often it was started

    An input has failed if its command has not ended with exit code 0. A time limit ends it with all
    that it has started. What a command leaves running in the background is not waited for.

    Exit codes: as of `prefork map`.
    """

    def work(wanted: SimpleNamespace) -> Work:
        words = ctx.meta.get("words")
        if words is None:
            words = [arguments[0]] if wanted.shell else split(arguments[0])
        return External(
            tuple(words),
            wanted.shell,
            wanted.timeout,
            wanted.soft_timeout,
            wanted.max_memory,
            round(wanted.max_output),
            wanted.log_dir is None,
            secrets.token_hex(8),
        )

    if "words" not in ctx.meta and not arguments:
        raise click.UsageError("Missing argument 'COMMAND'.")
    _start(work, arguments if "words" in ctx.meta else arguments[1:], **asked)


def _start(
    make: Callable[[SimpleNamespace], Work], arguments: tuple[str, ...], **given: Any
) -> None:
    """
    Args:
        make: what is to be done, as the options say; raises TargetError.
        arguments: that are inputs.
    """
    asked = SimpleNamespace(**given)
    asked.form = form_of(asked.output)
    asked.records = f"{asked.output}.jsonl" if asked.form else asked.output
    if asked.max_memory is not None:
        asked.max_memory = max(1, round(asked.max_memory / 1024))
    _check(asked, arguments)
    _mend_standard_streams(asked.output)
    with _stdout_for_records(asked.output == STDOUT) as stdout:
        with _usage_errors():
            plan, source = _plan(make(asked), asked)
            inputs = Inputs(
                arguments,
                asked.glob,
                asked.lines,
                asked.jsonl,
                asked.csv,
                b"\0" if asked.null else b"\n",
                Selection(asked.limit, asked.shard, asked.sample),
            )
            if asked.dry_run:
                for line in preview(plan, inputs):
                    click.echo(line, err=True)
                return
            asked.recorded = None if asked.report is None else _recorded(asked, plan)
            earlier = Earlier()
            if asked.output == STDOUT:
                fd = os.dup(stdout)
            else:
                file = _open(asked, plan, source, inputs)
                earlier, fd = file.earlier, file.fd
            if asked.log_dir is not None:
                _make_folder(asked.log_dir)
        style = "none" if asked.quiet else asked.progress
        sys.exit(_run(plan, inputs, earlier, fd, asked, style))


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
    if getattr(asked, "app", None) is None and getattr(asked, "queue", None) is not None:
        raise click.UsageError("--queue needs --app.")
    for name, why in NOT_REMOTE.items() if getattr(asked, "app", None) else ():
        if getattr(asked, name) is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --app: {why}.")
    if (problem := problem_with(asked.output)) is not None:
        raise click.UsageError(problem)
    there = asked.form is not None and os.path.exists(asked.output)
    if there and not (asked.overwrite or os.path.exists(asked.records)):
        raise click.UsageError(f"{asked.output} exists: --overwrite replaces it.")
    files = [*asked.lines, *asked.jsonl, *asked.csv]
    if files.count("-") > 1:
        raise click.UsageError("Standard input can be read only once.")
    if "-" in files and sys.stdin is None:
        raise click.UsageError("Standard input is closed: there is nothing to read there.")
    if not (arguments or asked.glob or files):
        raise click.UsageError("No inputs: name some, or use --glob, --lines, --jsonl or --csv.")


def _plan(work: Work, asked: SimpleNamespace) -> tuple[Plan, str]:
    """And the fingerprint of the source of the work."""
    source = work.check()
    asked.work = work
    asked.app_name, asked.app = getattr(asked, "app", None) or "", None
    asked.queue = getattr(asked, "queue", None)
    if asked.app_name:
        check_remote(work)
        asked.app = find_app(asked.app_name)
    asked.processes = asked.processes or (PROCESSES if asked.app_name else available_cpus())
    if asked.fail_fast:
        asked.max_failures = 1
    if asked.max_tasks_per_child is not None:
        asked.chunksize = asked.chunksize or 1
    return Plan(**{field.name: getattr(asked, field.name) for field in fields(Plan)}), source


def _open(asked: SimpleNamespace, plan: Plan, source: str, inputs: Inputs) -> ResultsFile:
    mode = Mode.REFUSE
    if asked.resume_anyway:
        mode = Mode.RESUME_ANYWAY
    elif asked.resume:
        mode = Mode.RESUME
    elif asked.overwrite:
        mode = Mode.OVERWRITE
    limits = {name: getattr(plan, name) for name in ("timeout", "soft_timeout", "max_memory")}
    origin = Origin(str(plan.work), source, limits | plan.work.terms())
    return ResultsFile(asked.records, mode, origin, inputs.holds, asked.retry_failed)


def _recorded(asked: SimpleNamespace, plan: Plan) -> Recorded:
    try:
        recorded = Recorded(asked.report, plan)
    except OSError as exc:
        raise click.UsageError(f"cannot write to {asked.report}: {exc.strerror}") from None
    if asked.output != STDOUT and any(map(recorded.is_same_file, (asked.output, asked.records))):
        raise click.UsageError("--report and --output must be different files.")
    return recorded


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as exc:
        raise click.UsageError(f"cannot write to {path}: {exc.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise click.UsageError(f"cannot write to {path}: Permission denied")


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


def _run(
    plan: Plan,
    inputs: Inputs,
    earlier: Earlier,
    fd: int,
    asked: SimpleNamespace,
    style: str,
) -> int:
    """Returns the exit code.

    Raises:
        Interrupted: a signal, or the reader of our output, has ended it.
    """
    with contextlib.closing(make_progress(style)) as progress:
        progress.stats.total = inputs.total
        progress.start(headline(plan, progress.stats, earlier))
        try:
            ending = _run_all(plan, inputs, earlier, progress, fd, asked)
        finally:
            progress.stop()
        report_problem = _write_report(asked.recorded, progress, ending)
        if ending.closed:
            raise Interrupted(signal.SIGPIPE)
        paths = (None, None) if asked.output == STDOUT else (asked.output, asked.records)
        for line in closing(progress.stats, ending, _going_on(asked), *paths):
            progress.say(*line)
        if report_problem is not None:
            progress.say(f"error: {report_problem}", "bold red")
    if ending.signum is not None:
        raise Interrupted(ending.signum)
    if ending.problem is not None:
        return 3 if ending.unwritten else 2
    if report_problem is not None:
        return 3
    return 1 if progress.stats.all_failed else 0


def _going_on(asked: SimpleNamespace) -> str | None:
    """What a command that has been stopped needs to do the rest; None: that cannot be."""
    if asked.output == STDOUT or not os.path.isfile(asked.records):  # it may be a device
        return None
    return "--resume in place of --overwrite" if asked.overwrite else "--resume"


def _write_report(recorded: Recorded | None, progress: Log | Bar, ending: Ending) -> str | None:
    """Why it could not be written; None: it is, or it is not wanted."""
    if recorded is None:
        return None
    try:
        recorded.write(progress.stats.ended, outlook(progress.stats, ending))
    except OSError as exc:
        return f"cannot write to {recorded.path}: {exc.strerror}"
    return None


def _run_all(
    plan: Plan,
    inputs: Inputs,
    earlier: Earlier,
    progress: Log | Bar,
    fd: int,
    asked: SimpleNamespace,
) -> Ending:
    run = Run(plan, inputs, earlier, progress, asked.recorded)
    name = "standard output" if asked.output == STDOUT else asked.records
    output = Output(fd, name, run.signals.waiting)
    try:
        # What goes to the terminal that the bar is on goes through it.
        ending = run(progress if output.is_terminal and isinstance(progress, Bar) else output)
        output.close()
        if asked.form is not None and ending == Ending():
            asked.form.make(asked.records, asked.output)
    except OutputError as exc:
        return Ending(problem=str(exc), unwritten=True, closed=exc.is_closed)
    except OSError as exc:
        return Ending(problem=f"cannot write to {asked.output}: {exc.strerror}", unwritten=True)
    return ending
