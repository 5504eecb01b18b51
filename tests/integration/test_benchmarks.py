"""The benchmarks run, on what Python itself brings; what they measure is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from helpers import DEADLINE

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ["multiprocessing", "concurrent.futures"]


def benchmarks(*args: object) -> str:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.side_by_side", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    ).stdout


def test_the_structure_is_read_from_the_source():
    script = [sys.executable, str(ROOT / "benchmarks" / "structure.py"), "--static"]
    table = subprocess.run(script, capture_output=True, text=True, check=True, timeout=DEADLINE)
    rows = dict(line.strip("| ").split(" | ") for line in table.stdout.splitlines()[2:])
    assert int(rows["lines of the core"]) > 1000
    assert int(rows["layer rows"]) > 1
    assert int(rows["floors of files"]) >= int(rows["floors of rooms"]) > 1
    assert "(" in rows["others' _privates, per 1000 lines"]


def test_a_run_makes_samples_and_tables(tmp_path):
    results = tmp_path / "results.json"
    workloads = ["apply", "imap_unordered", "start_2_fork"]
    options = ["--rounds", 2, "--only", *workloads, "--peers", *OTHERS, "--results", results]
    benchmarks("run", *options)
    samples = json.loads(results.read_text())["samples"]
    assert {sample["status"] for sample in samples} == {"ok"}
    assert {sample["workload"] for sample in samples} == {"apply", "start_2_fork"}  # quick mode
    contenders = [sample["contender"] for sample in samples if sample["workload"] == "apply"]
    for name in ["prefork", *OTHERS, "floor: socket ping-pong"]:
        assert contenders.count(name) == 2
    report = benchmarks("report", results, "--details")
    assert "one `apply` after another, p50" in report
    assert "socket ping-pong" in report


def test_a_program_prints_the_same_with_prefork_installed():
    """Others need their packages."""
    told = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "programs.py"), "a script"],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    ).stdout
    assert told == "a script: the same: 2 lines, 1 pools\n"
