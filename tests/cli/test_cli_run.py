"""`prefork run`: a command for each input."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.cli.external import _Kept, kill_marked
from prefork.cli.target import TargetError
from prefork.cli.template import Template

METHODS = ("fork", "forkserver", "spawn")


@pytest.fixture
def marked() -> Iterator[str]:
    """An argument for processes that must be gone at the end: whatever runs with it is killed."""
    mark = f"1000.{os.getpid()}{time.monotonic_ns() % 10**6}"
    yield mark
    for pid in running(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def running(argument: str) -> list[int]:
    """The processes that run with this argument."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if argument.encode() in words and b"sleep" in words[0]:
                found.append(int(folder.name))
    return found


def wait_until_gone(argument: str) -> None:
    """A process that was killed is there for a moment."""
    deadline = time.monotonic() + 20
    while running(argument):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.01)


# ---- what is run


@pytest.mark.parametrize("method", METHODS)
def test_what_a_command_has_done(prefork: Any, method: str) -> None:
    script = "echo out {n}; echo err >&2; exit {}"
    done = prefork.run(script, "0", "3", "--shell", "--start-method", method, verb="run")
    assert done.code == 1
    records = done.by_input()
    assert records["0"]["result"] | {"peak_memory": 0} == {
        "exit_code": 0,
        "stdout": "out 1\n",
        "stderr": "err\n",
        "peak_memory": 0,
    }
    error = records["3"]["error"]
    assert (error["type"], error["message"]) == ("CommandFailed", "it exited with code 3: err")
    assert (error["exit_code"], error["stdout"], error["stderr"]) == (3, "out 2\n", "err\n")
    assert records["3"]["seconds"] > 0
    assert records["3"]["attempts"] == 1


def test_its_peak_memory(prefork: Any) -> None:
    """What is less than the worker itself has cannot be told."""
    code = "import sys; x = b'x' * int(sys.argv[1])"
    done = prefork.run("-p1", "300000000", "1", "--", "python3", "-c", code, verb="run")
    records = done.by_input()
    assert 300e6 < records["300000000"]["result"]["peak_memory"] < 500e6
    assert (records["1"]["result"]["peak_memory"] or 0) < 100e6


def test_a_command_word_by_word(prefork: Any) -> None:
    done = prefork.run("a b", "--", "printf", "<%s>", "x{}", "--", "y", verb="run")
    assert done.by_input()["a b"]["result"]["stdout"] == "<xa b><--><y>"


@pytest.mark.parametrize("value", ["a b", "$(touch x)", "'; touch x; '", '"`touch x`"', "*", "\\"])
@pytest.mark.parametrize(
    ("options", "command"),
    [
        ([], "printf %s {}"),
        (["--shell"], "printf %s {}"),
        (["--shell"], 'printf %s "{}"'),
        (["--shell"], 'printf %s "$(printf %s {})"'),
        (["--shell"], "x={}; printf %s `printf '%s\n' \"$x\"` > /dev/null; printf %s {}"),
    ],
)
def test_an_input_is_never_a_command(
    prefork: Any, tmp_path: Path, value: str, options: list[str], command: str
) -> None:
    done = prefork.run(command, value, *options, verb="run")
    assert done.records[0]["result"]["stdout"] == value
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gzip", "-k", "{}"], ["gzip", "-k", "/a/b.tar.gz"]),
        (["gzip"], ["gzip", "/a/b.tar.gz"]),
        (["{name}", "x{stem}x", "{parent}{n}"], ["b.tar.gz", "xb.tarx", "/a7"]),
        (["{{n}}", "{n", "{ n }", "${n}", "{{}}"], ["{n}", "{n", "{ n }", "${n}", "{}", None]),
    ],
)
def test_placeholders(words: list[str], expected: list[Any]) -> None:
    expected = ["/a/b.tar.gz" if word is None else word for word in expected]
    assert Template(words, shell=False).fill(7, "/a/b.tar.gz") == expected


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("a {}", 'a "${1}"'),
        ('a "{} {n}"', 'a "${1} ${2}"'),
        ('"$(a {})" {}', '"$(a "${1}")" "${1}"'),
        ("a 'b' {} (c {})", 'a \'b\' "${1}" (c "${1}")'),
        ("echo \\' {} '{{x}}'", "echo \\' \"${1}\" '{x}'"),
        ("a", 'a "${1}"'),
    ],
)
def test_scripts(script: str, expected: str) -> None:
    _, _, made, *_ = Template([script], shell=True).fill(1, "x")
    assert made == expected


def test_a_placeholder_where_nothing_can_be_put_in() -> None:
    with pytest.raises(TargetError, match="is inside of '…'"):
        Template(["awk '{}' x"], shell=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["echo {what}", "a"], "{what} is no placeholder: there are {}, {name}, {stem}"),
        (["no-such-command", "a"], "there is no command 'no-such-command'"),
        (["echo 'x", "a"], "cannot be split into words"),
        (["", "a"], "there is no command"),
        (["a", "--"], "there is no command"),
        ([], "Missing argument 'COMMAND'"),
        (["echo"], "No inputs: name some"),
    ],
)
def test_wrong_usage(prefork: Any, args: list[str], message: str) -> None:
    done = prefork.run(*args, verb="run") if args else prefork.run("--quiet", verb="run")
    assert done.code == 2
    assert message in done.stderr
    assert not done.stdout


def test_commands_that_cannot_be_started(prefork: Any, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    given = ["no-such-command", "./plain", "true", "--jsonl", "-"]
    done = prefork.run("{}", *given, verb="run", stdin='"\\u0000"\n')
    records = done.by_input()
    assert records["true"]["result"]["exit_code"] == 0
    for given, reason in {
        "no-such-command": "cannot run 'no-such-command': No such file or directory",
        "./plain": "cannot run './plain': Permission denied",
        "\0": "cannot run '\\x00': embedded null byte",
    }.items():
        assert records[given]["error"]["message"] == reason
        assert records[given]["error"]["type"] == "CommandNotStarted"


@pytest.mark.parametrize("method", METHODS)
def test_what_a_command_inherits(prefork: Any, method: str) -> None:
    """Three descriptors, and the signals as they are by default: but that nobody is stopped by the
    terminal, in whose background it is."""
    command = "ls -l /proc/self/fd; grep ^Sig[BI] /proc/self/status; : {}"
    done = prefork.run(command, "", "--shell", "--start-method", method, verb="run")
    said = done.records[0]["result"]["stdout"]
    fds = [line.split()[8] for line in said.splitlines() if "->" in line]
    assert sorted(fds) == ["0", "1", "2", "3"]  # the last one is the folder itself
    assert "0 -> /dev/null" in said
    masks = [int(line.split()[1], 16) for line in said.splitlines() if line.startswith("Sig")]
    of_the_c_library = 1 << 31 | 1 << 32
    of_the_terminal = 1 << signal.SIGTTIN - 1 | 1 << signal.SIGTTOU - 1
    assert [mask & ~of_the_c_library for mask in masks] == [0, of_the_terminal]


# ---- how it ends


def test_a_hard_limit_ends_all_that_it_has_started(prefork: Any, marked: str) -> None:
    script = (
        f"sleep {marked} & setsid sleep {marked} & (setsid sleep {marked} &); echo x; sleep {{}}"
    )
    done = prefork.run(script, marked, "--shell", "--timeout", "1", verb="run")
    error = done.records[0]["error"]
    assert (error["type"], error["exit_code"]) == ("TimeLimitExceeded", -9)
    assert error["message"] == "it ran for more than 1 s, so it was killed"
    assert error["stdout"] == "x\n"
    wait_until_gone(marked)


def test_a_soft_limit_lets_it_clean_up(prefork: Any) -> None:
    script = "trap 'echo cleaned; exit 0' TERM; echo {}; while :; do sleep 0.01; done"
    done = prefork.run(script, "x", "--shell", "--soft-timeout", "0.5", verb="run")
    error = done.records[0]["error"]
    assert (error["type"], error["exit_code"]) == ("SoftTimeLimitExceeded", 0)
    assert error["stdout"] == "x\ncleaned\n"


def test_one_that_ignores_sigterm(prefork: Any, marked: str) -> None:
    script = "trap '' TERM; while :; do sleep {}; done"
    options = ["--shell", "--soft-timeout", "0.2", "--timeout", "0.6"]
    done = prefork.run(script, marked, *options, verb="run")
    assert done.records[0]["error"]["type"] == "TimeLimitExceeded"
    wait_until_gone(marked)


def test_one_that_daemonises_is_not_waited_for(prefork: Any, marked: str) -> None:
    script = "(setsid sleep {} &); echo done"
    done = prefork.run(script, marked, "--shell", "--timeout", "50", verb="run")
    assert done.records[0]["result"]["stdout"] == "done\n"
    assert len(running(marked)) == 1


def test_a_memory_limit_is_for_all_of_it(prefork: Any) -> None:
    code = "import time; x = b'x' * int(3e8); time.sleep(1000)"
    command = ["sh", "-c", f'python3 -c "{code}"; exit $1', "sh"]
    done = prefork.run("0", "--max-memory", "200M", "--", *command, verb="run")
    assert done.records[0]["error"]["type"] == "MemoryLimitExceeded"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_ends_with_a_run_that_is_stopped(
    prefork: Any, marked: str, signum: signal.Signals, fifo: Path
) -> None:
    script = f"setsid sleep {marked} & echo x > {fifo}; sleep {{}}"
    process = prefork.start(script, marked, "--shell", verb="run")
    fifo.read_text()
    process.send_signal(signum)
    process.communicate()
    assert process.returncode == -signum
    wait_until_gone(marked)


def test_what_fails_is_tried_again(prefork: Any, tmp_path: Path) -> None:
    script = "echo x >> {}; test $(wc -l < {}) = 3"
    done = prefork.run(script, tmp_path / "tries", "--shell", "--retries", 5, verb="run")
    assert done.code == 0
    assert done.records[0]["attempts"] == 3


# ---- what it prints


def test_output_without_end_is_bounded(prefork: Any) -> None:
    script = "printf begin; head -c {} /dev/zero; printf end"
    done = prefork.run(script, "300000000", "--shell", "--max-output", "1K", verb="run")
    said = done.records[0]["result"]["stdout"]
    assert said.startswith("begin\0")
    assert "\n[299998984 bytes are left out]\n" in said
    assert said.endswith("\0end")
    assert len(said) < 1100


def test_what_is_kept_of_an_output() -> None:
    for sizes in ([3], [10], [11], [4, 4, 4], [1] * 30, [50, 1]):
        kept = _Kept(10)
        data = bytes(range(65, 65 + sum(sizes)))
        place = 0
        for size in sizes:
            kept.add(data[place : place + size])
            place += size
        text = data.decode("utf-8", "backslashreplace")
        if len(data) > 10:
            note = f"\n[{len(data) - 10} bytes are left out]\n"
            text = data[:5].decode() + note + data[-5:].decode("utf-8", "backslashreplace")
        assert kept.text() == text


def test_output_goes_to_files(prefork: Any, tmp_path: Path) -> None:
    script = "echo {}; echo more >&2"
    done = prefork.run(script, "a b", "/c", "--shell", "--log-dir", "logs/x", verb="run")
    assert "stdout" not in done.records[0]["result"]
    texts = {path.name: path.read_text() for path in (tmp_path / "logs/x").iterdir()}
    assert texts == {"1-a_b.log": "a b\nmore\n", "2-_c.log": "/c\nmore\n"}


def test_output_that_is_no_text(prefork: Any) -> None:
    done = prefork.run("printf '\\377x'; true", "a", "--shell", verb="run")
    assert done.records[0]["result"]["stdout"] == "\\xffx"


def test_resume(prefork: Any) -> None:
    options = ["-o", "out", "--shell", "--ordered"]
    prefork.run("echo {n}", "a", "b", *options, verb="run")
    done = prefork.run("echo {n}", "a", "b", "c", *options, "--resume", verb="run")
    assert done.code == 0
    lines = (prefork.folder / "out").read_text().splitlines()
    assert [json.loads(line)["result"]["stdout"] for line in lines] == ["1\n", "2\n", "3\n"]
    other = prefork.run("echo {}", "a", *options, "--resume", verb="run")
    assert other.code == 2
    assert "the function was echo {n}, and is echo {}" in other.stderr


def test_a_process_is_found_while_it_becomes_another_program(tmp_path: Path) -> None:
    """Its environment cannot be read then."""
    script = tmp_path / "again"
    script.write_text('exec sh "$0"\n')
    for number in range(100):
        mark = f"{os.getpid()}.{number};"
        environ = os.environ | {"PREFORK_RUN": mark}
        with subprocess.Popen(["sh", str(script)], env=environ) as process:
            try:
                kill_marked(mark.encode(), signal.SIGKILL)
                assert process.wait(20) == -signal.SIGKILL
            finally:
                process.kill()
