"""What a wrong command is answered with: exit code 2 and one clear message."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from running import parse

import prefork as package
from prefork.cli.command import cli

FUNCTIONS = Path(__file__).with_name("functions.py")


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, args)))


@pytest.fixture(autouse=True)
def _keep_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command in this process imports is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "functions", raising=False)


def complaint(result: Result) -> str:
    """The error message of a command that was refused."""
    assert result.exit_code == 2, result.output
    assert "{" not in result.stdout
    assert "Usage: " in result.stderr
    return result.stderr.partition("Error: ")[2]


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str) -> None:
    result = invoke("map", option)
    assert result.exit_code == 0
    assert "--soft-timeout" in result.stdout
    assert "Exit codes: 0" in result.stdout
    assert "map" in invoke(option).stdout


def test_version() -> None:
    assert invoke("--version").stdout == f"{package.build_info()}\n"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("json", "'json' is not of the form MODULE:FUNCTION, such as json:loads"),
        (":loads", "is not of the form MODULE:FUNCTION"),
        ("json:", "is not of the form MODULE:FUNCTION"),
        ("jsonn:loads", "there is no module 'jsonn' (looked in "),
        ("json.nothing:loads", "there is no module 'json.nothing'"),
        ("json:load_s", "module 'json' has no 'load_s'; did you mean 'loads'?"),
        ("json:xyz", "module 'json' has no 'xyz'\n"),
        ("json:loads.nothing", "function 'loads' has no 'nothing'"),
        ("sys:maxsize", "sys:maxsize is not a function but an int"),
        ("missing/file.py:f", "missing/file.py: No such file or directory"),
        ("./folder:f", "is not a Python file"),
        (f"{FUNCTIONS}:NOT_CALLABLE", "NOT_CALLABLE is not a function but an int"),
        (f"{FUNCTIONS}:coroutine", "coroutine is async: wrap it"),
        (f"{FUNCTIONS}:async_object", "async_object is async: wrap it"),
    ],
)
def test_a_wrong_function(target: str, message: str) -> None:
    assert message in complaint(invoke("map", target, "a"))


@pytest.mark.parametrize(
    ("source", "messages"),
    [
        ("import nothing_like_it", ["broken.py", "line 1", "No module named 'nothing_like_it'"]),
        ("1 +", ["broken.py", "line 1", "SyntaxError"]),
        ("\nraise OSError('no')", ["line 2", "OSError: no"]),
        ("import sys; sys.exit('bye')", ["SystemExit: bye"]),
    ],
)
def test_a_module_that_cannot_be_imported(tmp_path: Path, source: str, messages: list[str]) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    said = complaint(invoke("map", f"{path}:f", "a"))
    assert f"importing {path} failed:" in said
    for message in messages:
        assert message in said
    assert "importlib" not in said
    assert "prefork/cli" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "0"], "'-p' / '--processes': 0 is not in the range x>=1"),
        (["--processes", "-2"], "-2 is not in the range"),
        (["--processes", "two"], "'two' is not a valid integer"),
        (["--timeout", "-1"], "'--timeout': -1 is not more than 0 seconds"),
        (["--timeout", "0"], "0 is not more than 0 seconds"),
        (["--timeout", "nan"], "nan is not more than 0 seconds"),
        (["--timeout", "soon"], "'soon' is not a number of seconds"),
        (["--soft-timeout", "-1"], "'--soft-timeout': -1 is not more than 0 seconds"),
        (["--soft-timeout", "5", "--timeout", "5"], "--soft-timeout must be less than --timeout"),
        (["--timeout", "5x"], "'5x' is not a number of seconds (units: ms, s, m, h)"),
        (["--max-memory", "much"], "'much' is not a number of bytes (units: K, M, G)"),
        (["--shard", "3/2"], "'3/2' is not of the form 2/8"),
        (["--kwarg", "novalue"], "'novalue' is not of the form name=value"),
        (["--initializer", "json:nothing"], "module 'json' has no 'nothing'"),
        (["--retry-failed", "-o", "x"], "--retry-failed needs --resume"),
        (["--resume", "--overwrite", "-o", "x"], "--overwrite and --resume are opposites"),
        (["--retries", "-1"], "'--retries': -1 is not in the range x>=0"),
        (["--chunksize", "-1"], "'--chunksize': -1 is not in the range x>=1"),
        (["--start-method", "magic"], "'magic' is not one of"),
        (["--resume"], "--resume needs the output file of the earlier run: -o FILE"),
        (["--lines", "-", "--jsonl", "-"], "Standard input can be read only once"),
        (["--lines", "/no/such/file"], "cannot read /no/such/file: No such file or directory"),
        (["--jsonl", "/"], "cannot read /: it is a directory"),
        (["--glob", "/no/*/such"], "no file matches '/no/*/such'"),
        (["-o", "/no/such/file"], "cannot write to /no/such/file: No such file or directory"),
        (["-o", "/"], "cannot write to /: Is a directory"),
        (["-o", "x.csv.gz"], "x.csv.gz would hold JSON Lines, whatever it is called"),
        (["-o", "X.CSV"], "there are .csv, .parquet and .jsonl.gz"),
        (["--what"], "No such option '--what'"),
    ],
)
def test_wrong_options(options: list[str], message: str) -> None:
    assert message in complaint(invoke("map", "json:loads", "1", *options))


@pytest.mark.parametrize("args", [[], ["json:loads"]])
def test_too_little(args: list[str]) -> None:
    said = complaint(invoke("map", *args))
    assert "Missing argument 'MODULE:FUNCTION'" in said or "No inputs: name some" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_forbidden_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(mode=0)
    said = complaint(invoke("map", "json:loads", "--lines", path))
    assert "cannot read" in said
    assert "Permission denied" in said
    said = complaint(invoke("map", "json:loads", "1", "-o", path))
    assert "cannot write" in said


def test_the_output_is_no_input(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1\n")
    said = complaint(invoke("map", "json:loads", "--lines", path, "-o", path))
    assert "is an input: the output must be another file" in said
    assert path.read_text() == "1\n"


def test_a_refused_command_leaves_the_output_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious\n")
    complaint(invoke("map", "json:no", "1", "-o", path))
    complaint(invoke("map", "json:loads", "--lines", "/no/such/file", "-o", path))
    assert path.read_text() == "precious\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("oops", "broken, line 3: not JSON: Expecting value (column 1)"),
        ('{"a": NaN}', "line 3: not JSON: NaN is not JSON"),
        ("[" * 100_000, "line 3: not JSON: it is nested too deeply"),
        ('{"a": 1e999}', "line 3: not JSON: 1e999 is too large a number"),
    ],
)
def test_bad_json_fails_alone(prefork: Any, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "broken").write_text(f"1\n\n{line}\n4\n")
    done = prefork.run("same", "--jsonl", "broken", "--ordered")
    assert done.code == 1
    assert [record["input"] for record in done.records] == [1, line, 4]
    error = done.records[1]["error"]
    assert error["type"] == "InputError"
    assert message in error["message"]
    assert "Traceback" not in done.stderr


def test_jsonl_that_is_no_utf8(prefork: Any, tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b'"\xff"\n')
    assert (
        "broken, line 1: not JSON: it is not UTF-8"
        in prefork.run("same", "--jsonl", "broken").stderr
    )


@pytest.mark.parametrize("chunksize", [1, 20])
def test_a_full_disk(prefork: Any, tmp_path: Path, chunksize: int) -> None:
    """The output ends with a complete line, and can be resumed."""
    inputs = [f"fill {length}" for length in range(60_000, 60_020)]
    args = ["behave", *inputs, "--chunksize", chunksize, "-o", "out"]
    process = prefork.start(*args, "--lines", "-")
    # Less than all results need, but enough for the shared memory of the workers.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    _, stderr = process.communicate()
    assert process.returncode == 3
    assert "error: cannot write to out: File too large" in stderr
    assert "--resume does the rest" in stderr
    assert "Traceback" not in stderr
    text = (tmp_path / "out").read_text()
    assert text.endswith("}\n")
    assert prefork.run(*args, "--resume").code == 0
    assert {record["input"] for record in parse((tmp_path / "out").read_text())} == set(inputs)


def test_a_device_without_room(prefork: Any) -> None:
    done = prefork.run("number", "1", "-o", "/dev/full")
    assert done.code == 3
    assert "error: cannot write to /dev/full: No space left on device" in done.stderr
    assert "--resume" not in done.stderr, "it cannot be resumed"
    assert "Traceback" not in done.stderr


def test_stdout_without_room(prefork: Any) -> None:
    with open("/dev/full", "w") as full:
        done = prefork.run("number", "1", stdout=full)
    assert done.code == 3
    assert "error: cannot write to standard output: No space left on device" in done.stderr


def test_closed_standard_streams(prefork: Any, tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m prefork map json:loads 1"
    run = prefork.start_command(["sh", "-c", f"{command} >&-"])
    _, stderr = run.communicate()
    assert run.returncode == 2
    assert "standard output is closed: use -o FILE" in stderr
    run = prefork.start_command(["sh", "-c", f"{command} --lines - <&-"])
    _, stderr = run.communicate()
    assert run.returncode == 2
    assert "Standard input is closed" in stderr
    run = prefork.start_command(["sh", "-c", f"{command} -o out <&- >&- 2>&-"])
    run.communicate()
    assert run.returncode == 0
    assert '"result": 1' in (tmp_path / "out").read_text()


def test_workers_that_cannot_start(prefork: Any, tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(
        "import multiprocessing\n"
        "if multiprocessing.parent_process(): raise RuntimeError('not here')\n"
        "def f(x): pass\n"
    )
    done = prefork.run("moody:f", "1", "2", "--start-method", "spawn")
    assert done.code == 2
    assert "RuntimeError: not here" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_a_missing_package(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from prefork.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"prefork: the command line needs {missing}: pip install 'prefork[cli]'\n"
    )


def test_the_version_needs_neither() -> None:
    code = (
        "import sys; sys.modules['click'] = sys.modules['rich'] = None\n"
        "from prefork.cli import main; sys.argv[1:] = ['--version']; main()"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told == f"{package.build_info()}\n"


def test_the_core_needs_neither(prefork: Any) -> None:
    code = "import sys, prefork; sys.exit('click' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
