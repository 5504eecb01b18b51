"""The command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.side_by_side import rounds
from benchmarks.side_by_side.page import write
from benchmarks.side_by_side.peers import PEERS, REFERENCE
from benchmarks.side_by_side.report import report
from benchmarks.side_by_side.sample import ROOT
from benchmarks.side_by_side.summary import Run
from benchmarks.side_by_side.workloads import FULL, QUICK, WORKLOADS

ROUNDS = {QUICK: 3, FULL: 5}
RESULTS = Path("build/bench/results.json")
PAGE = Path("build/bench")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side", description="prefork beside other process pools"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, write the results, and show them")
    run.add_argument("--full", action="store_true", help="all workloads, in their full size")
    run.add_argument("--rounds", type=int, help="3; 5 with --full")
    run.add_argument("--only", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    run.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    run.add_argument("--results", type=Path, default=RESULTS, help=f"({RESULTS})")
    show = commands.add_parser("report", help="the tables of a run")
    show.add_argument("results", type=Path, nargs="?", default=RESULTS)
    show.add_argument("--details", action="store_true", help="with every median and its quartiles")
    page = commands.add_parser("page", help="the tables and charts of a run, for the documentation")
    page.add_argument("results", type=Path, nargs="?", default=RESULTS)
    page.add_argument("--into", type=Path, default=PAGE, help=f"a folder ({PAGE})")
    args = parser.parse_args()
    if args.command == "run":
        _run(args)
    elif args.command == "report":
        print(report(_load(args.results), args.details))
    else:
        write(_load(args.results), args.into)
        print(f"Tables and charts are in {args.into}")


def _run(args: argparse.Namespace) -> None:
    mode = FULL if args.full else QUICK
    peers = [peer for peer in PEERS if peer in {REFERENCE, *args.peers}]
    for peer in peers:
        home = PEERS[peer].home
        if home is not None and not (ROOT / home / "prefork").is_dir():
            raise SystemExit(f"{home} has no prefork in it: make compiled")
    plan = rounds.Plan(mode, args.rounds or ROUNDS[mode], args.only, peers)
    data = rounds.run(plan)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(data, indent=1))
    print(f"\n{report(Run(data))}\n\nAll samples are in {args.results}")


def _load(path: Path) -> Run:
    return Run(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
