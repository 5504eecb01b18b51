"""The commands that look at pools: `prefork ps`, `prefork top`, `prefork stacks`."""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console, RenderableType
from rich.text import Text

from prefork._inspection.asking import AskingError
from prefork.cli.interrupts import Interrupted
from prefork.cli.keys import raw_keys
from prefork.cli.live import Top
from prefork.cli.sightings import PoolSeen, Watcher, printable, stacks_of
from prefork.cli.tables import failures, pools_table, rows, workers_table

__all__ = ["COMMANDS"]

WIDE = 200
"""Columns where there is no terminal, so that nothing is cut off."""

_pid = click.argument("pid", type=click.IntRange(min=1), required=False)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object per pool, in a line.")


class OutputProblem(click.ClickException):
    exit_code = 3


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    if sys.stdout is None:
        raise OutputProblem("standard output is closed")
    try:
        yield
    except AskingError as exc:
        raise click.ClickException(str(exc)) from None
    except BrokenPipeError:  # nobody reads on, which click knows
        raise
    except OSError as exc:
        raise OutputProblem(f"cannot write to standard output: {exc.strerror}") from None
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT) from None


@click.command("ps", short_help="Show the pools that run on this machine.")
@_pid
@_json
def ps(pid: int | None, as_json: bool) -> None:
    """Show your pools on this machine, or those of the process PID, once.

    A pool need not be prepared for it; one that was made with observable=False is not shown.
    """
    with _told_in_a_line():
        seen = _look_once(Watcher(pid))
        if as_json:
            _print_json(seen)
        else:
            _print(pools_table(seen))


@click.command("top", short_help="Watch pools and their workers.")
@_pid
@_json
@click.option("--once", is_flag=True, help="Show it once, and end.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Look so often.",
)
def top(pid: int | None, as_json: bool, once: bool, interval: float) -> None:
    """Watch your pools on this machine, or those of the process PID: what their workers run, since
    when, and what that takes.

    Keys: s sorts by another column, / shows only what has a text in it, up and down choose a
    worker, enter shows its Python stack, k ends its job (if the pool allows it:
    observable="control"), q quits.
    """
    watcher = Watcher(pid)
    with _told_in_a_line():
        if as_json and not once:
            while True:
                _print_json(watcher.look())
                time.sleep(interval)
        elif as_json:
            _print_json(_look_once(watcher))
        elif once or not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
            _print_once(_look_once(watcher))
        else:
            with raw_keys(sys.stdin.fileno()) as typed:
                Top(watcher, Console(), interval).run(typed)


@click.command("stacks", short_help="Show where the workers of a pool are.")
@click.argument("pid", type=click.IntRange(min=1))
def stacks(pid: int) -> None:
    """Show the Python stacks of all workers of the process PID, or of the worker PID, whatever they
    are doing, C code included. They go on."""
    with _told_in_a_line():
        for number, (worker, text) in enumerate(stacks_of(pid).items()):
            click.echo("" if number else None, nl=bool(number))
            click.echo(f"worker {worker}:")
            for line in text.splitlines():
                click.echo(f"  {printable(line)}")


COMMANDS = (ps, top, stacks)


def _look_once(watcher: Watcher) -> list[PoolSeen]:
    """
    Raises:
        AskingError: there is nothing to look at.
    """
    seen = watcher.look()
    if not seen:
        raise AskingError("no pool of yours runs on this machine")
    return seen


def _print(*parts: RenderableType) -> None:
    if sys.stdout.isatty():
        Console().print(*parts, sep="\n")
        return
    console = Console(width=WIDE, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    for line in capture.get().splitlines():
        click.echo(line.rstrip())  # a table is as wide as the console


def _print_json(seen: Sequence[PoolSeen]) -> None:
    for pool in seen:
        click.echo(json.dumps(pool.as_dict()))


def _print_once(seen: Sequence[PoolSeen]) -> None:
    told = failures(seen)
    notes = [Text(f"failed: {told}")] if told else []
    _print(pools_table(seen), *notes, Text(), workers_table(rows(seen)))
