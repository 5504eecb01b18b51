"""The command `prefork`, run as users run it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

FUNCTIONS = str(Path(__file__).with_name("functions.py"))


class Done(NamedTuple):
    """What a finished command leaves behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return parse(self.stdout)

    def by_input(self) -> dict[Any, dict[str, Any]]:
        records = self.records
        found = {record["input"]: record for record in records}
        assert len(found) == len(records), "an input has two records"
        return found


def parse(text: str) -> list[dict[str, Any]]:
    """Records; every line must be a complete one."""
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


class Prefork:
    """Runs `prefork map`, or `prefork run`, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []
        self.environ = os.environ | {
            "PYTHONWARNINGS": "error,ignore:This process:DeprecationWarning",
            "TERM": "xterm",
            "COLUMNS": "120",
        }

    def command(self, target: str, *args: object, verb: str = "map") -> list[str]:
        """A command line; of `map`, a target without a colon is a function of functions.py."""
        if verb == "map" and ":" not in target:
            target = f"{FUNCTIONS}:{target}"
        return [sys.executable, "-m", "prefork", verb, target, *map(str, args)]

    def start(
        self, target: str, *args: object, verb: str = "map", **options: Any
    ) -> subprocess.Popen[str]:
        return self.start_command(self.command(target, *args, verb=verb), **options)

    def start_command(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            command,
            **{"cwd": self.folder, "env": self.environ, "text": True} | pipes | options,
        )
        self._started.append(process)
        return process

    def run(self, target: str, *args: object, stdin: str = "", **options: Any) -> Done:
        return finish(self.start(target, *args, **options), stdin)

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


def finish(process: subprocess.Popen[str], stdin: str | None = None) -> Done:
    """Wait for the end; what it has written until then."""
    stdout, stderr = process.communicate(stdin)
    return Done(process.returncode, stdout, stderr)
