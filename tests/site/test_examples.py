"""Every example of the site and of the README does what its page says: see snippets.py."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import prefork
from snippets import (
    ROOT,
    Block,
    all_blocks,
    blocks,
    commands,
    differences,
    only_log,
    pages,
    run_by,
    without_log,
)

SECONDS = 55.0
"""After which an example is ended that does not say how long it may take."""

METHODS = sorted({multiprocessing.get_start_method(), "spawn"})
"""Python's own, and the one that asks most of a program."""

LANGUAGES = {"", "python", "console", "text", "sh", "toml", "ini", "yaml", "docker", "diff"}
"""Of blocks. `sh` is for what is to be done to a machine, and is not run."""

DIRECTIVES = {
    "{click-options}", "{eval-rst}", "{figure}", "{grid-item-card}", "{grid}", "{image}",
    "{include}", "{note}",
    "{promises}", "{sequence}", "{tab-item}", "{tab-set}", "{tip}", "{toctree}", "{warning}",
}  # fmt: skip

PROGRAMS = [block for block in all_blocks("python") if block.remark("not run") is None]
CONSOLES = sorted({block.page for block in all_blocks("console")})

SITE = """\
import multiprocessing, signal, sys
sys.stdout.reconfigure(line_buffering=True)
multiprocessing.set_start_method({method!r}, force=True)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
"""Lines come out as on a terminal, and interrupts are heard, which a shell has what it runs in the
background ignore."""

SHIM = """\
#!/bin/sh
exec {python} {arguments} "$@"
"""


class Run:
    """A directory with the files of a page, in which its examples are run."""

    def __init__(self, page: Path, folder: Path, method: str) -> None:
        self.folder = folder / "work"
        tools = folder / "tools"
        for each in (self.folder, tools):
            each.mkdir()
        (tools / "sitecustomize.py").write_text(SITE.format(method=method))
        for name, arguments in (("python", ""), ("prefork", "-m prefork"), ("pytest", "-m pytest")):
            (tools / name).write_text(SHIM.format(python=sys.executable, arguments=arguments))
            (tools / name).chmod(0o755)
        for block in blocks(page):
            if block.caption:
                (self.folder / block.caption).write_text(block.text)
        source = str(Path(prefork.__file__).parents[1])
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(tools), os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join([str(tools), source]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "",
            "COLUMNS": "100",
        }

    def __call__(self, command: list[str], seconds: float) -> tuple[int, str, str]:
        """Exit code, output, error output."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"it does not end within {seconds:g} s\n{out}\n{err}")
        return process.returncode, out, err


def check(block: Block, expected: str, status: int, out: str, err: str) -> None:
    unordered = block.remark("unordered") is not None
    wrong = differences(without_log(expected), out, unordered)
    assert not wrong, f"{wrong}\n\nand to standard error:\n{err}"
    if warning := block.remark("warns"):
        assert warning in err
    else:
        assert not without_log(err), err
    if log := only_log(expected):
        assert not differences(log, err, unordered)
    assert status == int(block.remark("exit") or 0), err


def is_run_by_a_command(block: Block) -> bool:
    consoles = [other for other in blocks(block.page) if other.language == "console"]
    stem = block.caption.removesuffix(".py")
    return bool(stem) and any(stem in command.line for c in consoles for command in commands(c))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "block", [block for block in PROGRAMS if not is_run_by_a_command(block)], ids=lambda b: b.name
)
def test_programs(block, method, tmp_path):
    if block.missing:
        pytest.skip(f"needs {', '.join(block.missing)}")
    run = Run(block.page, tmp_path, method)
    program = block.caption or "program.py"
    (run.folder / program).write_text(block.text)
    seconds = float(block.remark("seconds") or SECONDS)
    check(block, block.expected, *run([sys.executable, program], seconds))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("page", CONSOLES, ids=lambda page: page.name)
def test_commands(page, method, tmp_path):
    run = Run(page, tmp_path, method)
    for block in blocks(page):
        if block.language != "console" or block.remark("not run") is not None:
            continue
        if block.missing:
            pytest.skip(f"needs {', '.join(block.missing)}")
        *first, last = commands(block)
        for command in first:
            status, out, err = run(["bash", "-c", command.line], SECONDS)
            wrong = differences(command.output, out + err)
            assert not wrong, f"$ {command.line}\n{wrong}"
            assert status == 0
        status, out, err = run(["bash", "-c", last.line], SECONDS)
        unordered = block.remark("unordered") is not None
        wrong = differences(last.output, out + err, unordered)
        assert not wrong, f"$ {last.line}\n{wrong}"
        assert status == int(block.remark("exit") or 0)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_block_is_of_a_language_that_is_known_here(page):
    """Else an example might be one that nothing runs."""
    for block in blocks(page):
        known = block.language in LANGUAGES or block.language.split()[0] in DIRECTIVES
        assert known, f"{block.name}: {block.language}"


def test_what_is_not_run_has_a_reason():
    left_out = [b for b in all_blocks("python", "console") if b.remark("not run") is not None]
    assert all(block.remark("not run") for block in left_out)
    assert len(left_out) < 0.05 * len(PROGRAMS), [block.name for block in left_out]


def test_what_another_test_runs_is_run_there():
    for page in pages():
        if (test := run_by(page)) is not None:
            assert page.name in (ROOT / test).read_text(), f"{test} does not run {page.name}"
