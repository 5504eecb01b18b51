"""The options of `prefork map` and `prefork run`, and the types of their values."""

from __future__ import annotations

import math
import multiprocessing
from typing import Any

import click

from prefork.cli.jsontext import from_json
from prefork.cli.progress import STYLES

__all__ = ["CLUSTER", "COMMAND", "FUNCTION", "RECORDS", "RUN", "WHAT_INPUTS"]


class Quantity(click.ParamType[float]):
    """A number with a unit.

    Args:
        what: it is a number of, in messages.
        units: what each of them is, of the one that is meant if none is given.
    """

    def __init__(self, what: str, units: dict[str, float]) -> None:
        self.name = what
        self._units = units

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
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


class Shard(click.ParamType[tuple[int, int]]):
    """`2/8`."""

    name = "shard"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        which, _, of = str(value).partition("/")
        if not (which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)):
            self.fail(f"{value!r} is not of the form 2/8, from 1/8 to 8/8", param, ctx)
        return int(which), int(of)


class Keyword(click.ParamType[tuple[str, Any]]):
    """`name=value`; the value is JSON, or else a string."""

    name = "name=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        name, equals, text = str(value).partition("=")
        if not equals or not name.isidentifier():
            self.fail(f"{value!r} is not of the form name=value", param, ctx)
        try:
            return name, from_json(text)
        except ValueError:
            return name, text


def _option(names: str, help_text: str, kind: Any = None, **more: Any) -> click.Option:
    """`-o --output FILE`, for instance; without a word for its value, it is a switch."""
    flags = [name for name in names.split() if name[0] == "-"]
    if flags == names.split():
        return click.Option(flags, is_flag=True, help=help_text, **more)
    return click.Option(flags, type=kind, metavar=names.rsplit(None, 1)[-1], help=help_text, **more)


# fmt: off
SECONDS = Quantity("seconds", {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0})
BYTES = Quantity("bytes", {"K": 1024.0, "M": 1024.0**2, "G": 1024.0**3})
COUNT, COUNT_FROM_0 = click.IntRange(min=1), click.IntRange(min=0)
METHODS = click.Choice(multiprocessing.get_all_start_methods())

WHAT_INPUTS = [
    _option("--glob PATTERN",
        "Inputs are the paths that match; ** is any depth. Quote it, so that the shell leaves it.",
        multiple=True),
    _option("--lines FILE",
        "Inputs are the lines of a file; - is stdin.", multiple=True),
    _option("-0 --null",
        "Lines end with a NUL, as find -print0 has it."),
    _option("--jsonl FILE",
        "Inputs are the JSON values of a file, one per line; - is stdin.", multiple=True),
    _option("--csv FILE",
        "Inputs are the rows of a file, as objects; its first line names the columns.",
        multiple=True),
    _option("--limit N",
        "Take the first N inputs.", COUNT_FROM_0),
    _option("--shard I/N",
        "Take every Nth input, from the Ith on: for N runs that share the work.",
        Shard(), default="1/1"),
    _option("--sample N",
        "Take N inputs by chance, the same ones each time; all are read first.", COUNT),
]
FUNCTION = [
    _option("--star",
        "An input that is a list is the function's arguments, an object its keyword arguments."),
    _option("--kwarg NAME=VALUE",
        "A keyword argument for each call; the value is JSON, or else a string.",
        Keyword(), multiple=True),
    _option("--initializer MODULE:FUNCTION",
        "Call this, without arguments, in each worker when it starts."),
]
CLUSTER = [
    _option("--app MODULE:APP",
        "Run it on the workers of this celery application, which have called prefork.celery.serve; "
        "see the page Past one machine."),
    _option("--queue NAME",
        "With --app: the queue of these workers.  [default: the application's own]"),
]
COMMAND = [
    _option("--shell",
        "The command is a script for sh."),
    _option("--max-output BYTES",
        "Of what a command prints to stdout and to stderr, keep so much of the beginning and the "
        "end.", BYTES, default="1M", show_default=True),
]
RECORDS = [
    _option("-o --output FILE",
        "Write the results here instead of to stdout. What has made them is noted in FILE.origin. "
        "If it ends with .csv, .parquet or .jsonl.gz, it is made at the end, of FILE.jsonl.",
        default="-"),
    _option("--resume",
        "Go on with what an earlier run has left undone: skip inputs that the output file holds, "
        "and add the others to it. It must have been the same, with the same limits."),
    _option("--resume-anyway",
        "The same, whatever has made the file."),
    _option("--retry-failed",
        "With --resume: run again what has failed earlier."),
    _option("--overwrite",
        "Replace what the output file holds."),
    _option("--ordered",
        "Write the results in the order of the inputs."),
    _option("--log-dir FOLDER",
        "What is printed goes there, to one file for each input: NUMBER-INPUT.log."),
]
RUN = [
    _option("-p --processes N",
        "How many workers.  [default: as many as there are CPUs to use]", COUNT),
    _option("--timeout SECONDS",
        "The most that one input may take (90, 90s, 2m, 1.5h); then it is killed, and has failed.",
        SECONDS),
    _option("--soft-timeout SECONDS",
        "After so long, SoftTimeLimitExceeded is raised in a function, SIGTERM sent to a command: "
        "it may clean up.", SECONDS),
    _option("--max-memory BYTES",
        "The most that one input may have resident (800M, 2G); then it is killed, and has failed.",
        BYTES),
    _option("--retries N",
        "How often to try again when a worker was lost or a time limit has passed, or when a "
        "command has failed.", COUNT_FROM_0, default=0, show_default=True),
    _option("--max-failures N",
        "Stop when N inputs have failed; what is done is kept.", COUNT),
    _option("--fail-fast",
        "Stop when one has."),
    _option("--chunksize N",
        "Hand so many inputs to a worker at once.  [default: by how long they take]", COUNT),
    _option("--max-tasks-per-child N",
        "Replace a worker after N inputs, or chunks of --chunksize.", COUNT),
    _option("--start-method METHOD",
        "How to start the workers.  [default: Python's own]", METHODS),
    _option("--progress STYLE",
        "What to show on stderr; json is one object per line.",
        click.Choice(STYLES), default="auto", show_default=True),
    _option("-q --quiet",
        "Show nothing but failures and errors."),
    _option("--report FILE",
        "Write a page of HTML there at the end, however it ends: what each worker did when, run "
        "times, waiting, memory, failures. A report that is there is replaced."),
    _option("--dry-run",
        "Only show what would be done."),
]
# fmt: on
