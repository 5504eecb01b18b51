"""A run as a part of the documentation: its tables and charts, and the file of its samples."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.side_by_side.charts import CHARTS, draw
from benchmarks.side_by_side.report import comparison, goals, setting
from benchmarks.side_by_side.summary import Run
from benchmarks.side_by_side.workloads import TOPICS

RESULTS = "_benchmarks.md"
SAMPLES = "benchmarks.json"


def write(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SAMPLES).write_text(json.dumps(run.data, indent=1) + "\n")
    parts = ["\n".join(f"    {line}" for line in setting(run).splitlines())]
    for topic, workloads in TOPICS.items():
        if not (found := comparison(run, workloads)):
            continue
        parts.append(f"### {topic}")
        if path := draw(run, topic, folder):
            parts.append(f"![{CHARTS[topic][1]}]({path.name})")
        parts.append(found)
    parts += ["### Goals", goals(run)]
    (folder / RESULTS).write_text("\n\n".join(parts) + "\n")
