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
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.side_by_side", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * DEADLINE,  # several programs, one after another
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


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


def test_what_cannot_be_measured_is_left_out_and_said(tmp_path):
    results = tmp_path / "results.json"
    pools = ["multiprocessing", "interpreters", "threads"]
    options = ["--rounds", 1, "--only", "apply", "--peers", *pools, "--results", results]
    told = benchmarks("run", *options)
    data = json.loads(results.read_text())
    measured = {sample["contender"] for sample in data["samples"]}
    for pool in pools:
        assert (pool in measured) != (pool in data["skipped"])
        assert (pool in measured) != (f"{pool} left out: " in told)
    assert "multiprocessing" in measured
    assert {sample["status"] for sample in data["samples"]} == {"ok"}
    assert data["builds"].keys() == {"prefork"}


FAMILY = """
import subprocess
import sys

from benchmarks.side_by_side import family
from benchmarks.side_by_side.meters import descendants

family.adopt_orphans()
with subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE) as parent:
    lines = [parent.stdout.readline() for _ in range(2)]
    parent.kill()
print(len(lines), len(descendants()))
family.end_all()
print(len(descendants()))
"""

WITH_A_CHILD = """
import os
import signal

os.fork() or os.setsid()
print("here", flush=True)
signal.pause()
"""


def test_nothing_of_a_sample_is_left_in_any_session():
    script = [sys.executable, "-c", FAMILY, WITH_A_CHILD]
    told = subprocess.run(
        script, cwd=ROOT, capture_output=True, text=True, check=True, timeout=DEADLINE
    ).stdout
    assert told.split() == ["2", "1", "0"]


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
