"""Files of other forms, made from the records."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from prefork.cli.formats import form_of

RECORDS: list[dict[str, Any]] = [
    {"input": "a", "result": {"x": 1, "y": [1], "z": 1 << 70}, "pid": 7},
    {"input": "ü\ud800", "result": {"x": 1.5, "y": {}, "z": 1}, "pid": 7},
    {"input": 3, "error": {"type": "T", "ok": True}, "pid": 8},
]


@pytest.fixture
def records(tmp_path: Path) -> str:
    path = tmp_path / "records"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return str(path)


def make(records: str, path: str) -> None:
    form = form_of(path)
    assert form is not None
    form.make(records, path)
    assert not os.path.exists(f"{path}.new")


def test_csv(records: str, tmp_path: Path) -> None:
    make(records, f"{tmp_path}/x.csv")
    rows = list(csv.reader((tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()))
    assert rows == [
        ["input", "result.x", "result.y", "result.z", "pid", "error.type", "error.ok"],
        ["a", "1", "[1]", str(1 << 70), "7", "", ""],
        ["ü\\ud800", "1.5", "{}", "1", "7", "", ""],
        ["3", "", "", "", "8", "T", "true"],
    ]


def test_parquet(records: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    make(records, f"{tmp_path}/x.parquet")
    assert parquet.read_table(f"{tmp_path}/x.parquet").to_pydict() == {
        "input": ["a", "ü\\ud800", "3"],
        "result.x": [1.0, 1.5, None],
        "result.y": ["[1]", "{}", None],
        "result.z": [str(1 << 70), "1", None],
        "pid": [7, 7, 8],
        "error.type": [None, None, "T"],
        "error.ok": [None, None, True],
    }


def test_no_records_at_all(tmp_path: Path) -> None:
    (tmp_path / "records").touch()
    for ending in ("csv", "jsonl.gz", *["parquet"] * bool(importlib.util.find_spec("pyarrow"))):
        make(f"{tmp_path}/records", f"{tmp_path}/x.{ending}")


def test_what_is_there_stays_if_it_cannot_be_made(records: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("before")
    (tmp_path / "records").write_text("{")
    with pytest.raises(ValueError, match="Expecting property name"):
        make(records, f"{tmp_path}/x.csv")
    assert (tmp_path / "x.csv").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"x.csv", "records"}


def results(path: Path) -> list[int]:
    lines = gzip.decompress(path.read_bytes()).splitlines()
    return sorted(json.loads(line)["result"] for line in lines)


def test_a_run_makes_it_at_its_end(prefork: Any, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl.gz"
    assert prefork.run("number", 1, 2, "-o", out).code == 0
    assert results(out) == [1, 2]
    refused = prefork.run("number", 3, "-o", out)
    assert refused.code == 2
    assert "x.jsonl.gz.jsonl exists: --resume goes on" in refused.stderr
    assert prefork.run("number", 1, 2, 3, "-o", out, "--resume").code == 0
    assert results(out) == [1, 2, 3]


def test_a_file_of_somebody_elses_is_not_touched(prefork: Any, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("precious")
    refused = prefork.run("number", 3, "-o", "x.csv")
    assert refused.code == 2
    assert "x.csv exists: --overwrite replaces it" in refused.stderr
    assert (tmp_path / "x.csv").read_text() == "precious"
    assert prefork.run("number", 3, "-o", "x.csv", "--overwrite").code == 0
    assert (tmp_path / "x.csv").read_text().startswith("input,result,")


def test_a_run_that_was_stopped_keeps_the_records(prefork: Any, tmp_path: Path, fifo: Path) -> None:
    process = prefork.start("behave", "a", f"hang {fifo}", "-p", 1, "-o", "x.csv")
    fifo.read_text()
    process.terminate()
    _, said = process.communicate()
    assert "x.csv.jsonl keeps what is done" in said
    assert not (tmp_path / "x.csv").exists()
    assert '"a"' in (tmp_path / "x.csv.jsonl").read_text()


def test_a_missing_package_is_found_before_the_run(prefork: Any, tmp_path: Path) -> None:
    hide = tmp_path / "sitecustomize.py"
    hide.write_text("import sys; sys.modules['pyarrow'] = None\n")
    prefork.environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    done = prefork.run("number", 1, "-o", "x.parquet")
    assert done.code == 2
    assert "x.parquet needs pyarrow: pip install 'prefork[parquet]'" in done.stderr
    assert not (tmp_path / "x.parquet.jsonl").exists()
