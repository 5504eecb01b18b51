"""Kill things at random moments, and check the promises.

    python benchmarks/chaos.py kills     1,000 SIGKILLs to workers under load, for each start method
    python benchmarks/chaos.py storm     10,000 faults of all kinds, with each start method
    python benchmarks/chaos.py recycling 10,000 jobs with 8 MiB each, and as many workers
    python benchmarks/chaos.py owners    SIGKILL to the process that owns a pool
    python benchmarks/chaos.py leaks     1,000 pools, made and closed, terminated or dropped

*kills*: no hang, no lost and no doubled job; of each victim exactly the job that it ran fails.
What a victim was doing when it was hit is told by the log that the tasks write, see `accounts.py`:

    idle       no job failed because of it
    receiving  the job that failed had not started
    running    the job that failed had started and not ended
    sending    the job that failed had ended: its result was on the way

*storm*: tasks that raise, exit, crash, kill or stop themselves, pass their limits, ignore signals
or keep memory (`misdeeds.py`); SIGKILL and SIGSTOP from outside, jobs that are cancelled or
terminated, grow, shrink and restart meanwhile; workers replaced after 50 tasks and above a size.
All this in one kind of surroundings after another (`settings.py`), or in those of `--kinds`; and
pools that are interrupted, over and over again, by a signal whose handler raises (`interrupts.py`).
Each job gets the one outcome that its history allows (`ledger.py`):

    innocent   lost, though nothing had happened to its worker
    silent     no answer within the deadline
    doubled    started or reported twice
    wrong      another value or error than it deserves, or too late a callback
    replaced   pools that had to be given up, since they were broken or hung

With `--peer`, the same is done to other pools, without what they have no call for: `--peer all`.

*recycling*: all jobs complete, though each worker takes only one.
*owners*: all workers, and whatever their tasks have started, are gone within a second.
*leaks*: no thread, descriptor, process (zombies included) or name in /dev/shm is left.

Exits with 1 and says why when a promise is broken. A hang prints the stacks of all threads.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from accounts import Accounts, BrokenPromise, Log
from kills import bombard
from leftovers import HANG, Possessions, kill_owner, leak
from rivals import RIVALS
from trials import KINDS, Trial, recycle, storm

from prefork import TimeoutError

# --- kills -------------------------------------------------------------------------------------

PHASES = ["idle", "receiving", "running", "sending"]


def kills(args: argparse.Namespace) -> list[str]:
    breaches: list[str] = []
    say_row("start method", "kills", "jobs", "failed", *PHASES, "slowest batch", "all")
    for method in args.methods:
        with tempfile.NamedTemporaryFile(prefix="prefork-chaos-") as log:
            done = bombard(method, args.number, args.seed, args.processes, args.turmoil, log.name)
            accounts = Accounts(done.batches, done.killed, Log(log.name))
        breaches += [f"{method}: {breach}" for breach in accounts.breaches]
        say_row(
            method,
            len(done.killed),
            accounts.jobs,
            accounts.failed,
            *(accounts.phases[phase] for phase in PHASES),
            f"{done.slowest:.2f} s",
            f"{done.seconds:.1f} s",
        )
    return breaches


# --- storm and recycling -------------------------------------------------------------------------

WRONGS = ["innocent", "silent", "doubled", "wrong", "replaced"]


def run_storms(args: argparse.Namespace) -> list[str]:
    breaches = []
    say_row("pool", "start method", "kind", "faults", "jobs", *WRONGS, "left", "all")
    for name in args.peers:
        for method in args.methods if name != "loky" else ["loky"]:
            for kind, faults in shares(args.kinds, args.number, name):
                trial = Trial(faults, args.seed, args.processes, args.deadline, args.seconds)
                found = storm(kind, name, method, trial)
                counts = [found.get(what, "?") for what in ("faults", "jobs", *WRONGS)]
                end = f"{found['seconds']:.0f} s" if found["ended"] else "hangs at its end"
                say_row(name, method, kind, *counts, found["left"], end)
                if args.details:
                    print({what: found.get(what) for what in ("kinds", "fates", "breaches")})
                if RIVALS[name].strict:
                    print(found.get("stderr", ""), end="", file=sys.stderr)
                    where = f"{name}, {method}, {kind}"
                    breaches += [f"{where}: {breach}" for breach in judge(found)]
    return breaches


def shares(kinds: Sequence[str], faults: int, name: str) -> list[tuple[str, int]]:
    """How many of the faults are of each kind."""
    kinds = [kind for kind in kinds if kind in RIVALS[name].kinds]
    total = sum(KINDS[kind] for kind in kinds)
    return [(kind, -(-faults * KINDS[kind] // total)) for kind in kinds]


def judge(found: dict[str, Any]) -> list[str]:
    breaches: list[str] = found.get("breaches", [])
    if any(found.get(what, 1) for what in ("exitcode", "left", *WRONGS)) or not found["ended"]:
        breaches = breaches or ["it did not end in order"]
    return breaches + [f"possessions: {what}" for what in (found.get("possessions") or {}).items()]


def recycling(args: argparse.Namespace) -> list[str]:
    say_row("start method", "jobs", "all")
    for method in args.methods:
        faulthandler.dump_traceback_later(HANG + args.number, exit=True)
        seconds = recycle(method, args.number, 8 << 20, args.processes, HANG)
        faulthandler.cancel_dump_traceback_later()
        say_row(method, args.number, f"{seconds:.0f} s")
    return []


# --- owners and leaks ---------------------------------------------------------------------------


def owners(args: argparse.Namespace) -> list[str]:
    rng = random.Random(args.seed)
    say_row("start method", "killed", "last gone after")
    for method in args.methods:
        # Every second one at a random moment of its start; the others when all their tasks run.
        delays = [None if n % 2 else rng.uniform(0.05, 0.5) for n in range(args.number)]
        seconds = [kill_owner(method, args.processes, delay) for delay in delays]
        say_row(method, len(seconds), f"{max(seconds):.3f} s")
    return []


def leaks(args: argparse.Namespace) -> list[str]:
    breaches = []
    say_row("start method", "pools", *Possessions._fields, "all")
    for method in args.methods:
        started = time.monotonic()
        faulthandler.dump_traceback_later(HANG + args.number, exit=True)
        before, after = leak(method, args.number, args.processes)
        faulthandler.cancel_dump_traceback_later()
        changes = [f"{a} -> {b}" for a, b in zip(before, after, strict=True)]
        say_row(method, args.number, *changes, f"{time.monotonic() - started:.1f} s")
        for name, had, has in zip(Possessions._fields, before, after, strict=True):
            if has > had:
                breaches.append(f"{method}: {has - had} {name} left")
    return breaches


# --- the command -------------------------------------------------------------------------------


def say_row(*cells: object) -> None:
    print("".join(f"{cell!s:<12} " for cell in cells).rstrip(), flush=True)


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], list[str]], int, str]] = {
    "kills": (kills, 1000, "workers to kill"),
    "storm": (run_storms, 10_000, "faults"),
    "recycling": (recycling, 10_000, "jobs"),
    "owners": (owners, 20, "pools' processes to kill"),
    "leaks": (leaks, 1000, "pools to make"),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("-n", "--number", type=int, help="how many, for each start method")
    parser.add_argument("--seed", type=int, help="of the random choices (default: a new one)")
    parser.add_argument(
        "--methods",
        type=lambda text: text.split(","),
        default=["fork", "forkserver"],
        help="start methods, with commas (fork,forkserver; there is spawn, too)",
    )
    parser.add_argument(
        "--turmoil",
        action="store_true",
        help="kills: with restart, grow, shrink and maxtasksperchild at the same time",
    )
    parser.add_argument(
        "--peer",
        dest="peers",
        type=lambda text: list(RIVALS) if text == "all" else text.split(","),
        default=["prefork"],
        help=f"storm: which pools, with commas ({', '.join(RIVALS)}, or all)",
    )
    parser.add_argument(
        "--kinds",
        type=lambda text: text.split(","),
        default=list(KINDS),
        help=f"storm: which kinds, with commas (all: {', '.join(KINDS)})",
    )
    parser.add_argument(
        "--deadline", type=float, default=HANG, help="storm: what counts as a hang (60 seconds)"
    )
    parser.add_argument(
        "--seconds", type=float, default=7200, help="storm: over after so many, in any case"
    )
    parser.add_argument("--details", action="store_true", help="storm: counts by kind")
    parser.add_argument("--processes", type=int, default=4, help="of each pool (4)")
    args = parser.parse_args(argv)
    if unknown := {*args.kinds} - {*KINDS} or {*args.peers} - {*RIVALS}:
        parser.error(f"unknown: {', '.join(unknown)}")
    args.number = args.number or COMMANDS[args.command][1]
    args.seed = random.randrange(10**6) if args.seed is None else args.seed
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    command, _, what = COMMANDS[args.command]
    logging.getLogger("prefork").setLevel(logging.ERROR)  # each death is a warning
    print(f"{args.number} {what}, with each start method; seed {args.seed}", flush=True)
    try:
        breaches = command(args)
    except TimeoutError:
        faulthandler.dump_traceback(all_threads=True)
        raise
    except BrokenPromise as exc:
        breaches = [str(exc)]
    for breach in breaches:
        print(f"BROKEN: {breach}", flush=True)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
