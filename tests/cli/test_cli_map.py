"""`prefork map`: its inputs, its options, its records."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers import at_leisure

METHODS = multiprocessing.get_all_start_methods()
CHUNKSIZES = [1, 3]


@pytest.fixture(params=CHUNKSIZES)
def chunksize(request: pytest.FixtureRequest) -> tuple[str, int]:
    return "--chunksize", request.param


# ---- records and exit codes


def test_a_record_for_each_input(prefork: Any) -> None:
    done = prefork.run("number", "1", "22", "--processes", 1, "--", "-3", "-4")
    assert done.code == 0
    assert {given: record["result"] for given, record in done.by_input().items()} == {
        "1": 1, "22": 22, "-3": -3, "-4": -4,
    }  # fmt: skip
    for record in done.records:
        assert list(record) == ["input", "result", "seconds", "pid", "attempts"]
        assert record["attempts"] == 1
        assert record["seconds"] >= 0
    assert len({record["pid"] for record in done.records}) == 1


def test_a_failure_is_a_record_and_listed_at_the_end(prefork: Any) -> None:
    done = prefork.run("number", "1", "one", "2")
    assert done.code == 1
    error = done.by_input()["one"]["error"]
    assert error["type"] == "ValueError"
    assert "invalid literal" in error["message"]
    assert "functions.py" in error["traceback"]
    assert "prefork/cli" not in error["traceback"]
    assert "one: ValueError: invalid literal" in done.stderr
    assert "2 of 3 inputs came through, 1 failed" in done.stderr


def test_failures_are_shown_as_they_come_and_counted_by_their_kinds(prefork: Any) -> None:
    done = prefork.run("number", *(f"x{i}" for i in range(25)), "-p", 1)
    assert done.code == 1
    shown = [line for line in done.stderr.splitlines() if "failed: " in line]
    assert [line.split()[2] for line in shown] == ["x0:", "x1:", "x2:"]
    assert "ValueError: invalid literal" in shown[0]
    summary = done.stderr.partition("25 inputs failed:")[2].splitlines()
    assert (
        "25 x ValueError: invalid literal for int() with base 10: 'x0', in number (" in summary[1]
    )
    assert summary[1].endswith(", with x0")
    assert len(done.records) == 25


def test_failures_of_different_kinds(prefork: Any) -> None:
    done = prefork.run("behave", "raise a", "exit 3", "raise b", "exit 3", "raise c", "-p", 1)
    kinds = [line.split()[1:4] for line in done.stderr.splitlines() if " x " in line]
    assert kinds[0][0] == "3"
    assert sorted(kind[0] for kind in kinds) == ["2", "3"]


@pytest.mark.parametrize("options", [["--max-failures", 2], ["--fail-fast"]])
def test_enough_failures(prefork: Any, options: list[Any]) -> None:
    most = 2 if len(options) == 2 else 1
    inputs = ["1", *(f"x{i}" for i in range(500))]
    done = prefork.run("number", *inputs, "-p", 1, "-o", "out", *options)
    assert done.code == 1
    failed = int(re.search(r"stopped after (\d+) failure", done.stderr)[1])  # type: ignore[index]
    assert most <= failed < 400  # those that had failed by then, too
    assert "--resume does the rest" in done.stderr


def test_no_input_at_all_is_fine(prefork: Any) -> None:
    assert prefork.run("same", "--lines", "-").code == 0


@pytest.mark.parametrize("method", METHODS)
def test_only_the_guilty_input_fails(prefork: Any, method: str, chunksize: Any) -> None:
    bad = ["crash", "exit 3", "sys.exit 4", "raise no [such] thing", "loop"]
    good = [f"good {i}" for i in range(6)]
    mixed = [text for pair in zip(bad, good[1:], strict=True) for text in pair]
    done = prefork.run(
        "behave", good[0], *mixed, "--timeout", 3, "--start-method", method, *chunksize
    )
    assert done.code == 1
    records = done.by_input()
    assert set(records) == {*bad, *good}
    for given in good:
        assert records[given]["result"] == given
    errors = {given: records[given]["error"] for given in bad}
    assert {given: error["type"] for given, error in errors.items()} == {
        "crash": "WorkerLostError",
        "exit 3": "WorkerLostError",
        "sys.exit 4": "SystemExit",
        "raise no [such] thing": "LookupError",
        "loop": "TimeLimitExceeded",
    }
    assert "SIGSEGV" in errors["crash"]["message"]
    assert "string_at" in errors["crash"]["traceback"]
    assert "exited with code 3" in errors["exit 3"]["message"]
    assert "3 s" in errors["loop"]["message"]
    assert records["loop"]["seconds"] >= 3
    assert "raise no [such] thing: LookupError: no [such] thing" in done.stderr
    assert "crash: WorkerLostError: its worker process" in done.stderr


def test_nothing_runs_twice(prefork: Any, tmp_path: Path, chunksize: Any) -> None:
    log = tmp_path / "log"
    what = [f"{i}" for i in range(8)]
    what[3] = "crash"
    what[5] = "raise it"
    what[6] = "exit 1"
    inputs = [f"{log}|{text}" for text in what]
    done = prefork.run("log_and_behave", *inputs, "--ordered", *chunksize)
    assert [record["input"] for record in done.records] == inputs
    assert [i for i, record in enumerate(done.records) if "error" in record] == [3, 5, 6]
    assert Counter(log.read_text().splitlines()) == Counter(what)


def test_what_the_function_prints_is_not_among_the_records(prefork: Any) -> None:
    done = prefork.run("shout", "a", "b")
    assert [record["input"] for record in sorted(done.records, key=str)]
    assert "functions.py is imported" in done.stderr
    assert "I say a" in done.stderr
    assert "I complain of b" in done.stderr


def test_what_it_prints_goes_to_stdout_if_the_records_do_not(prefork: Any) -> None:
    done = prefork.run("shout", "a", "-o", "out")
    assert "I say a" in done.stdout
    assert "I say" not in done.stderr


def test_the_function_gets_no_standard_input(prefork: Any) -> None:
    done = prefork.run("stdin", "--lines", "-", stdin="a\nb\n")
    assert [record["result"] for record in done.records] == ["", ""]


def test_a_child_that_the_function_forked_does_no_harm(prefork: Any, chunksize: Any) -> None:
    done = prefork.run("fork_and_return", "a", "b", "c", "d", *chunksize)
    assert done.code == 0
    assert set(done.by_input()) == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("object", "Shapes; return str(...) of it"),
        ("nan", "return None in place of NaN"),
        ("circle", "Circular reference"),
        ("key", "keys must be str"),
        ("iterator", "list_iterator; return list(...) of it"),
    ],
)
def test_a_result_that_is_not_json(prefork: Any, kind: str, advice: str) -> None:
    done = prefork.run("not_json", kind)
    assert done.code == 1
    error = done.records[0]["error"]
    assert error["type"] == "NotJSONError"
    assert error["message"].startswith("the result is not JSON: ")
    assert advice in error["message"]
    assert "; it is " in error["message"]  # nothing is lost
    assert "NotJSONError: the result is not JSON: " in done.stderr


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("set", [1, 2]),
        ("bytes", {"base64": "/2FiYw=="}),
        ("dataclass", [{"x": 1, "y": 2}]),
        ("path", "x"),
        ("decimal", "0.10"),
        ("datetime", "2026-01-02T03:04:05+00:00"),
        ("date", "2026-01-02"),
        ("duration", 90.0),
        ("uuid", "00000000-0000-0000-0000-000000000001"),
        ("enum", "red"),
        ("scalar", 1.5),
        ("integer", 3),
        ("array", [[0, 1], [2, 3]]),
        ("model", {"a": 1, "at": "2026-01-02"}),
    ],
)
def test_a_result_that_json_has_no_form_for(prefork: Any, kind: str, expected: Any) -> None:
    pytest.importorskip("numpy")
    assert prefork.run("rich", kind).records[0]["result"] == expected


# ---- inputs


def test_inputs_come_in_the_order_of_arguments_globs_lines_jsonl(
    prefork: Any, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("b.txt", "a.txt", "folder/c.txt", "folder/d.md"):
        (tmp_path / name).touch()
    (tmp_path / "lines").write_bytes(b"first\n\nthird\r\n naive \xc3\xaf\xff")
    (tmp_path / "jsonl").write_text('{"b": [1.5, null]}\n\n"text"\n')
    done = prefork.run(
        "same",
        "--jsonl",
        "jsonl",
        "--lines",
        "lines",
        "--glob",
        "**/*.txt",
        "argument",
        "--ordered",
    )
    assert done.code == 0
    assert [record["input"] for record in done.records] == [
        "argument", "a.txt", "b.txt", "folder/c.txt",
        "first", "", "third", " naive \u00ef\udcff",
        {"b": [1.5, None]}, "text",
    ]  # fmt: skip
    assert all(record["result"] == record["input"] for record in done.records)
    assert "over 11 inputs" in done.stderr  # an empty line of JSON Lines counts for nothing
    assert "10 of 10 inputs" in done.stderr


def test_a_glob_is_for_files_unless_it_ends_with_a_slash(prefork: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert set(prefork.run("same", "--glob", "f*").by_input()) == {"file"}
    assert set(prefork.run("same", "--glob", "f*/").by_input()) == {"folder/"}


@pytest.mark.parametrize("option", ["--lines", "--jsonl"])
def test_inputs_from_stdin(prefork: Any, option: str) -> None:
    done = prefork.run("same", option, "-", stdin="1\n2\n3")
    expected = [1, 2, 3] if option == "--jsonl" else ["1", "2", "3"]
    assert sorted(record["result"] for record in done.records) == expected


def test_a_byte_order_mark_is_no_part_of_the_input(prefork: Any, tmp_path: Path) -> None:
    (tmp_path / "jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert prefork.run("same", "--jsonl", "jsonl").records[0]["result"] == {"a": 1}


def test_rows_of_csv(prefork: Any, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(
        b'name,size\r\na,1\r\n"b, c","2\n3"\r\n\r\nshort\r\nd,4\r\n'
    )
    done = prefork.run("same", "--csv", "table.csv", "--ordered")
    assert done.code == 1
    assert [record["input"] for record in done.records] == [
        {"name": "a", "size": "1"},
        {"name": "b, c", "size": "2\n3"},
        "short",
        {"name": "d", "size": "4"},
    ]
    error = done.records[2]["error"]
    assert (error["type"], error["message"]) == (
        "InputError",
        "table.csv, line 6: 1 values for 2 columns",
    )


def test_a_column_that_is_there_twice_is_not_lost(prefork: Any) -> None:
    done = prefork.run("same", "--csv", "-", stdin="a,b,a\n1,2,3\n")
    assert (done.code, done.stdout) == (2, "")
    assert "standard input: the first line names the column 'a' twice" in done.stderr


def test_lines_that_end_with_nul(prefork: Any) -> None:
    done = prefork.run("same", "--lines", "-", "--null", stdin="a\nb\0c\0")
    assert set(done.by_input()) == {"a\nb", "c"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--limit", 3], "123"),
        (["--limit", 0], ""),
        (["--shard", "2/3"], "258"),
        (["--shard", "1/3", "--limit", 2], "14"),
    ],
)
def test_some_of_the_inputs(prefork: Any, options: list[Any], expected: str) -> None:
    done = prefork.run("same", *"123456789", *options)
    assert sorted(record["input"] for record in done.records) == list(expected)
    assert f"{len(expected)} of {len(expected)} inputs came through" in done.stderr


def test_several_arguments_and_keywords(prefork: Any) -> None:
    lines = '[2, 3]\n{"base": 3}\n5\n'
    options = ["--star", "--kwarg", "plus=0.5", "--jsonl", "-"]
    done = prefork.run("power", *options, stdin=lines)
    assert sorted(record["result"] for record in done.records) == [8.5, 9.5, 25.5]


def test_a_sample_is_the_same_each_time(prefork: Any) -> None:
    inputs = [str(number) for number in range(1000)]
    options = ["--lines", "-", "--sample", 20, "--ordered"]
    first = prefork.run("same", *options, stdin="\n".join(inputs))
    chosen = [record["input"] for record in first.records]
    assert len(set(chosen)) == 20
    assert chosen == sorted(chosen, key=int)
    assert int(chosen[-1]) > 500
    again = prefork.run("same", *options, stdin="\n".join(inputs))
    assert [record["input"] for record in again.records] == chosen
    assert len(prefork.run("same", "a", "b", "--sample", 3).records) == 2


@pytest.mark.parametrize("chunksize", [None, 2])
def test_what_is_printed_goes_to_files(prefork: Any, tmp_path: Path, chunksize: Any) -> None:
    options = [] if chunksize is None else ["--chunksize", chunksize]
    done = prefork.run("speak", "a", "b/ c", "--log-dir", "logs", *options)
    assert done.code == 0
    texts = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    said = "print {0}\nwrite {0}\nchild {0}\n"
    assert texts == {"1-a.log": said.format("a"), "2-b_c.log": said.format("b/ c")}
    assert "print" not in done.stderr


def test_a_folder_for_logs_that_cannot_be_made(prefork: Any) -> None:
    done = prefork.run("same", "a", "--log-dir", "/dev/null/x")
    assert done.code == 2
    assert "cannot write to /dev/null/x: Not a directory" in done.stderr


def test_many_tiny_inputs_go_together_but_wait_for_no_long_one(prefork: Any) -> None:
    """What a long one keeps waiting in its chunk is done by others meanwhile."""
    quick = [str(number) for number in range(3000)]
    inputs = [*quick, "sleep 1.5", *(f"x{number}" for number in range(50))]
    done = prefork.run("wait_for_long", "--lines", "-", "-p", 2, stdin="\n".join(inputs))
    assert done.code == 0
    order = [record["input"] for record in done.records]
    assert sorted(order) == sorted(inputs)
    assert len(done.by_input()) == len(inputs)
    assert all(record["attempts"] == 1 for record in done.records)


def test_inputs_from_a_named_pipe(prefork: Any, fifo: Path) -> None:
    process = prefork.start("same", "--lines", fifo)
    fifo.write_text("a\nb\n")
    stdout, _ = process.communicate()
    assert sorted(json.loads(line)["result"] for line in stdout.splitlines()) == ["a", "b"]


@pytest.mark.parametrize("size", [1, 10])
def test_stdin_is_read_lazily(prefork: Any, size: int) -> None:
    process = prefork.start("same", "--lines", "-", "--chunksize", size)
    for text in ("a", "b"):
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["result"] == text
    process.communicate()
    assert process.returncode == 0


# ---- where the function is


def test_a_module_of_the_current_directory(prefork: Any, tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tool.py").write_text(
        "class Thing:\n    @classmethod\n    def twice(cls, x): return 2 * x\n"
    )
    for method in METHODS:
        done = prefork.run("pkg.tool:Thing.twice", "ab", "--start-method", method)
        assert done.records[0]["result"] == "abab"


@pytest.mark.parametrize("method", METHODS)
def test_a_file(prefork: Any, tmp_path: Path, method: str) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "helper.py").write_text("def twice(x): return 2 * x\n")
    # Its name is a standard module's, and it imports a neighbour.
    (tools / "json.py").write_text("from helper import twice\n")
    done = prefork.run("tools/json.py:twice", "ab", "--start-method", method)
    assert [record["result"] for record in done.records] == ["abab"], done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_a_file_of_a_package_may_import_its_neighbours(
    prefork: Any, tmp_path: Path, method: str
) -> None:
    package = tmp_path / "src" / "outer" / "inner"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package.parent / "rates.py").write_text("RATE = 3\n")
    (package / "task.py").write_text("from ..rates import RATE\ndef f(x): return RATE\n")
    done = prefork.run("src/outer/inner/task.py:f", "1", "--start-method", method)
    assert [record["result"] for record in done.records] == [3]


def test_a_builtin_function(prefork: Any) -> None:
    assert prefork.run("builtins:len", "four").records[0]["result"] == 4


# ---- options


def test_ordered_keeps_the_order_of_the_inputs(prefork: Any, fifo: Path) -> None:
    inputs = [f"wait {fifo}", "a", "b", f"tell {fifo}", "c"]  # the first ends after the fourth
    ordered = prefork.run("behave", *inputs, "--ordered", "--processes", 2)
    assert [record["input"] for record in ordered.records] == inputs
    unordered = prefork.run("behave", *inputs, "--processes", 2)
    assert unordered.records[0]["input"] != inputs[0]
    assert set(unordered.by_input()) == set(inputs)


def test_processes(prefork: Any, fifo: Path) -> None:
    # One can go on only when another one runs at the same time.
    done = prefork.run("behave", f"wait {fifo}", f"tell {fifo}", "--processes", 2)
    assert len({record["pid"] for record in done.records}) == 2
    assert "in 2 processes" in done.stderr


def test_a_time_limit_is_each_inputs_own(prefork: Any) -> None:
    done = prefork.run(
        "behave", *["sleep 0.3"] * 8, "--timeout", 2, "--chunksize", 8, "--processes", 1
    )
    assert done.code == 0, done.stderr
    assert len(done.records) == 8


def test_a_soft_limit_lets_the_function_clean_up(prefork: Any, chunksize: Any) -> None:
    def attempt(seconds: float) -> None:  # it may pass before the function has come to its `try`
        limits = ["--soft-timeout", seconds, "--timeout", 50]
        done = prefork.run("patient", "a", "b", *limits, *chunksize)
        assert [record["result"] for record in done.records] == ["cleaned up", "cleaned up"]

    at_leisure(attempt, 0.2)


def test_a_soft_limit_fails_the_input(prefork: Any, chunksize: Any) -> None:
    done = prefork.run("behave", "loop", "a", "--soft-timeout", 1, "--retries", 1, *chunksize)
    record = done.by_input()["loop"]
    assert record["error"]["type"] == "SoftTimeLimitExceeded"
    assert "functions.py" in record["error"]["traceback"]
    assert record["attempts"] == 2


def test_retries_after_a_lost_worker(prefork: Any, tmp_path: Path, chunksize: Any) -> None:
    markers = [tmp_path / f"marker{i}" for i in range(4)]
    done = prefork.run("die_once", *markers, "--retries", 1, *chunksize)
    assert done.code == 0
    assert [record["result"] for record in done.records] == ["survived"] * 4
    assert [record["attempts"] for record in done.records] == [2] * 4


def test_retries_come_to_an_end(prefork: Any, chunksize: Any) -> None:
    done = prefork.run("behave", "exit 1", "a", "raise it", "loop", "--retries", 2,
                       "--timeout", 1, *chunksize)  # fmt: skip
    assert done.code == 1
    attempts = {given: record["attempts"] for given, record in done.by_input().items()}
    assert attempts == {"exit 1": 3, "a": 1, "raise it": 1, "loop": 3}


@pytest.mark.parametrize("method", METHODS)
def test_start_method(prefork: Any, method: str) -> None:
    done = prefork.run("modules", "a", "--start-method", method)
    assert done.code == 0
    if method != "fork":
        assert done.records[0]["result"] == []  # workers load neither click nor rich


def test_many_small_inputs_in_chunks(prefork: Any) -> None:
    numbers = [f"{i}" for i in range(5000)]
    done = prefork.run(
        "number", "--lines", "-", "--chunksize", 40, "--ordered", stdin="\n".join(numbers)
    )
    assert [record["result"] for record in done.records] == list(range(5000))


def test_large_inputs_and_results(prefork: Any) -> None:
    big = "y" * 300_000
    done = prefork.run("same", "--lines", "-", "--chunksize", 2, stdin=f"{big}\n{big}\n{big}\n")
    assert [record["result"] for record in done.records] == [big] * 3


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer(prefork: Any, tmp_path: Path, method: str) -> None:
    (tmp_path / "task.py").write_text(
        "known = []\ndef begin(): known.append('here')\ndef f(x): return known\n"
    )
    options = ["--initializer", "task.py:begin", "--start-method", method]
    assert prefork.run("task.py:f", "1", *options).records[0]["result"] == ["here"]


def test_workers_are_replaced(prefork: Any) -> None:
    done = prefork.run("same", *"12345", "-p", 1, "--max-tasks-per-child", 1)
    assert len({record["pid"] for record in done.records}) == 5


def test_a_memory_limit_is_each_inputs_own(prefork: Any, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import time\n"
        "def f(x):\n"
        "    if x == 'big':\n"
        "        kept = bytearray(b'x') * (400 << 20)\n"
        "        time.sleep(30)\n"
        "    return x\n"
    )
    done = prefork.run("task.py:f", "a", "big", "b", "--max-memory", "300M")
    found = done.by_input()
    assert found["big"]["error"]["type"] == "MemoryLimitExceeded"
    assert (found["a"]["result"], found["b"]["result"]) == ("a", "b")
