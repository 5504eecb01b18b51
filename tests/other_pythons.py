"""Runs the tests on other versions of Python: those that are here, or can be installed.

    other_pythons.py [--share SHARE] [--jobs N] [--minutes N] [VERSION ...] [--tests TEST ...]

A version is looked for on PATH and among pyenv's. What is not here comes from Debian's unstable
distribution, which is installed into a directory of its own and entered with chroot (as root; it
takes some minutes, once). Whatever cannot be had is left out, and the last lines say why: that the
network is away fails no run; a test that fails does.

How much a version runs is its share, one of `SHARES`: nearly all for the newest, the whole of the
default start method for the one before, which is the first whose default is another; less for the
others. CI has all run the short one. What is left out everywhere, and why, is `LEFT_OUT`.
The last lines say both.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import glob
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VERSIONS = ["3.15", "3.14", "3.13", "3.12", "3.11"]  # the newest first
FROM_DEBIAN = {"3.15", "3.14"}
DEFAULT_METHODS = {"3.15": "forkserver", "3.14": "forkserver"}  # before: fork

SHARES = {
    "full": "with all start methods",
    "default": "with the default start method",
    "short": "unit tests, CPython's, those that guard a promise or may go another way there; with "
    "the default start method",
}
SHARE_OF = {"3.15": "full", "3.14": "default"}  # the others: short

DIFFER = [
    "asyncio",  # event loops
    "by_value",  # pickle's errors, cloudpickle
    "drop_in",  # what programs take from multiprocessing
    "executor",  # and from concurrent.futures
    "fork_warning",
    "forks",
    "lock_and_user_code",  # signals
    "orderly_end",  # the interpreter's end
    "scripts",  # `__main__`, threads at the end
    "shared",  # pickle
    "starts",
    "stuck",  # stacks
    "templates",
    "time_limits",
]
"""The tests of integration that touch what differs from version to version; in each share."""

LAZY = "3.15"
"""The first version that can have all imports be lazy."""

LAZY_TESTS = [
    "runner.py forkserver WithProcessesTestPool",
    "runner.py forkserver WithProcessesTestPoolWorkerErrors",
    "runner.py forkserver TestInitializers",
    "futures_runner.py forkserver ProcessPoolShutdown",
]
"""Of CPython's own tests, which are run so; pytest cannot be imported lazily."""

NEEDS_COMPILED = "tests/integration/test_benchmarks.py::test_a_run_makes_samples_and_tables"

LEFT_OUT = {
    "the tests of celery workers and of joblib": "they take servers, large packages and long",
    "the tests of types": "checkers read the source, and run nothing of it",
    "those that are marked as serial": "they need the machine to themselves",
    NEEDS_COMPILED: "what is compiled is another version's",
}
"""What `make test` alone runs, and why."""

STUCK_MINUTES = 60.0
"""A run of tests that takes longer is ended: each test has a deadline, so this is not one's. (On a
busy machine, the newest version's takes half an hour and more.)"""

DEBIAN_MINUTES = 6.0
"""The same for what is fetched from Debian's mirrors: it takes two."""

HERE = Path(__file__).resolve().parent.parent
# (A root that is there already, as debootstrap makes one, can be put into it: see `ROOT`.)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefork-pythons"
ROOT = CACHE / "debian-unstable"

FAILED = re.compile(r"(?:FAILED|ERROR) (tests/[^:\s]+(?:::\w+)?)")
"""How a line of pytest's summary begins."""


class Outcome(NamedTuple):
    code: int
    failed: list[str]
    """The tests that have, as pytest takes them, but for their parameters."""
    unsteady: list[str]
    """The tests that have failed once, but passed alone; see steady.py."""


class LeftOut(Exception):
    """This version is not here, and cannot be had; says why."""


# --- an interpreter


def find(version: str) -> str | None:
    """One that is here, and can make a virtual environment."""
    found = [shutil.which(f"python{version}")]
    pyenv = os.environ.get("PYENV_ROOT") or f"{Path.home()}/.pyenv"
    found += sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python"))
    for python in filter(None, found):
        done = subprocess.run(
            [python, "-c", "import ensurepip, sys, venv; print(*sys.version_info[:2], sep='.')"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.stdout.strip() == version:
            return python
    return None


def run(program: list[str], minutes: float = STUCK_MINUTES) -> Outcome:
    """Run a program, and show what it prints."""
    failed: dict[str, None] = {}
    unsteady: list[str] | None = None  # until their list begins
    process = subprocess.Popen(
        program, cwd=HERE, stdout=subprocess.PIPE, text=True, errors="replace", process_group=0
    )
    assert process.stdout is not None

    def end(signum: int, frame: object) -> None:
        print(f"\nThis has taken {minutes:g} minutes, and is ended.", flush=True)
        os.killpg(process.pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            if match := FAILED.match(line):
                failed[match[1]] = None
            if line.startswith("Unsteady"):
                unsteady = []
            elif unsteady is not None and line.startswith("  tests/"):
                unsteady.append(line.strip())
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Outcome(process.wait(), list(failed), unsteady or [])


def run_here(command: str, minutes: float = STUCK_MINUTES) -> Outcome:
    return run(["bash", "-euc", command], minutes)


def run_mounting(command: str, minutes: float = STUCK_MINUTES) -> Outcome:
    """What it mounts is there for its own processes only, and goes with the last of them."""
    bash = ["bash", "-euc", command]
    return run(["unshare", "--mount", "--propagation", "private", *bash], minutes)


def run_in_debian(command: str, minutes: float = STUCK_MINUTES) -> Outcome:
    root, here = shlex.quote(str(ROOT)), shlex.quote(str(HERE))
    entered = shlex.quote(f"cd {here}; {command}")
    return run_mounting(
        f"""
        mount --rbind /proc {root}/proc
        mount --rbind /dev {root}/dev
        mount -t tmpfs tmpfs {root}/dev/shm
        mount -t tmpfs tmpfs {root}/tmp
        mkdir -p {root}{here}
        mount --bind {here} {root}{here}
        exec chroot {root} env -u TMPDIR HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
            bash -euc {entered}
    """,
        minutes,
    )


def may_mount() -> bool:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    return not run_mounting("mount -t tmpfs tmpfs /tmp").code


def need(outcome: Outcome, what: str) -> None:
    if outcome.code:
        raise LeftOut(what)


@contextlib.contextmanager
def having_the_cache() -> Iterator[None]:
    """Nobody else is installing there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_that_debian_may_be_entered(version: str) -> None:
    if version not in FROM_DEBIAN:
        raise LeftOut("it is not here, and Debian's unstable distribution has it no more")
    if not (shutil.which("apt-get") and may_mount()):
        raise LeftOut(
            "it is not here; to install it from Debian takes apt-get, and root who may mount"
        )


def install_from_debian(version: str) -> None:
    """Have it in `ROOT`.

    Raises:
        LeftOut: it cannot be had.
    """
    if not ROOT.exists():
        make_root()
    for name in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).exists():
            shutil.copy(Path("/", name), ROOT / name)
    is_there = f"python{version} -c 'import ensurepip, test._test_multiprocessing' 2>/dev/null"
    packages = f"python{version} python{version}-venv libpython{version}-testsuite"
    # A mirror may lag behind: the index of this distribution is valid for a week only. And somebody
    # may have ended an installation halfway.
    update = "dpkg --configure --pending && apt-get -qq -o Acquire::Check-Valid-Until=false update"
    install = f"{{ {update} && {INSTALL} {packages}; }} >/dev/null"
    needed = run_in_debian(f"{is_there} || {install}", DEBIAN_MINUTES)
    need(needed, "it is not here, and Debian's mirror is away, or has it not (see above)")


INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends"


def make_root() -> None:
    if not shutil.which("debootstrap"):
        command = f"{{ apt-get -qq update && {INSTALL} debootstrap; }} >/dev/null"
        done = run_here(command, DEBIAN_MINUTES)
        need(done, "it is not here, and debootstrap, which would get it, cannot be installed")
    made = ROOT.with_name(f"{ROOT.name}.{os.getpid()}")
    told = made.with_suffix(".log")
    command = f"debootstrap --variant=minbase --include=ca-certificates,procps sid {made}"
    print("Installing Debian's unstable distribution, once", flush=True)
    try:
        command += f" >{told} 2>&1 || {{ tail -n 5 {told}; exit 1; }}"
        done = run_mounting(command, DEBIAN_MINUTES)
        need(done, "it is not here, and Debian's mirror is away, or debootstrap fails (see above)")
        made.rename(ROOT)
    finally:
        told.unlink(missing_ok=True)
        shutil.rmtree(made, ignore_errors=True)


# --- its tests


# Bytecode is kept in the version's own place: here are other users, and other versions.
ENVIRONMENT = (
    'PYTHONPATH=$PWD/src PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX="$venv/bytecode" '
    "PREFORK_TEST_METHODS='{methods}'"
)


def commands(version: str, jobs: int, share: str, chosen: list[str]) -> list[str]:
    """What runs its tests."""
    methods = "fork forkserver spawn" if share == "full" else DEFAULT_METHODS.get(version, "fork")
    start = f'{ENVIRONMENT.format(methods=methods)} {{}}"$venv/bin/python" '

    def pytest(*tests: str, which: str = "not serial") -> str:
        options = f"-q -n {jobs} --dist worksteal -m {shlex.quote(which)}"
        return start.format("") + f"tests/steady.py {options} {shlex.join(tests)}"

    if chosen:
        return [pytest(*chosen)]
    lazily = start.format("PYTHON_LAZY_IMPORTS=all ")
    lazy = [f"{lazily}tests/standard/{test}" for test in LAZY_TESTS if version == LAZY]
    if share == "short":
        differ = [f"tests/integration/test_{name}.py" for name in DIFFER]
        return [
            pytest("tests/unit", "tests/standard", *differ),
            pytest("tests/integration", *ignored(differ), which="promise and not serial"),
            *lazy,
        ]
    folders = ["tests/unit", "tests/integration", "tests/standard"]
    folders += ["tests/cli"] if share == "full" else []
    return [pytest(*folders, "--deselect", NEEDS_COMPILED), *lazy]


def ignored(files: list[str]) -> list[str]:
    return [f"--ignore={file}" for file in files]


def test(version: str, jobs: int, share: str, chosen: list[str]) -> str:
    """What has come of its tests.

    Raises:
        LeftOut: they cannot be run.
    """
    enter = run_here
    if (python := find(version)) is None:
        check_that_debian_may_be_entered(version)
        with having_the_cache():
            install_from_debian(version)
        enter, python = run_in_debian, f"python{version}"
    # (Not kept: a version's environment would go on as it is when that is updated.)
    venv = f'venv=$(mktemp -d); trap \'rm -rf "$venv"\' EXIT; {shlex.quote(python)} -m venv "$venv"'
    project = tomllib.loads((HERE / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["cli"]
    needed = shlex.join([*project["dependency-groups"]["test"], *extra])
    install = f'"$venv/bin/python" -m pip install -qq --only-binary :all: {needed} || exit 99'
    # All are run, whatever comes of the first.
    tests = "; ".join(
        f"echo {shlex.quote(each)}; {each} || code=$?"
        for each in commands(version, jobs, share, chosen)
    )
    began = time.monotonic()
    outcome = enter(f'{venv}; {install}; "$venv/bin/python" -VV; code=0; {tests}; exit $code')
    need(outcome._replace(code=outcome.code == 99), "what the tests need cannot be installed")
    minutes = f"{(time.monotonic() - began) / 60:.1f} minutes"
    if not outcome.code:
        ran = "the tests that were chosen" if chosen else SHARES[share]
        unsteady = "; unsteady (failed once, then passed alone):" if outcome.unsteady else ""
        return "\n  ".join([f"passed ({ran}), in {minutes}{unsteady}", *outcome.unsteady])
    left = outcome.failed or chosen
    again = " ".join(["--share", share, version, *(["--tests", *left] if left else [])])
    return f"FAILED, in {minutes}; to run it again:\n  make test-pythons PYTHONS='{again}'"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="default: all but this one")
    parser.add_argument("--share", choices=SHARES, help="how much to run; default: by version")
    parser.add_argument("--jobs", type=int, default=2, help="how many tests to run at once")
    parser.add_argument("--minutes", type=float, help="begin no other version after so long")
    parser.add_argument("--tests", nargs="+", default=[], help="these tests alone, as for pytest")
    options = parser.parse_args()
    this = "{}.{}".format(*sys.version_info)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    began = time.monotonic()
    results = {}
    # Those that are here come first: whatever is wrong with the network, they are tested.
    versions = options.versions or [each for each in VERSIONS if each != this]
    for version in sorted(versions, key=lambda each: find(each) is None):
        print(f"\n=== Python {version}", flush=True)
        try:
            if options.minutes and time.monotonic() - began > 60 * options.minutes:
                raise LeftOut(f"more than {options.minutes:g} minutes had passed")
            share = options.share or SHARE_OF.get(version, "short")
            results[version] = test(version, options.jobs, share, options.tests)
        except LeftOut as exc:
            results[version] = f"left out: {exc}"
    if not options.versions:
        results[this] = "left to `make test`"
    print("\n=== On other versions of Python")
    for version in sorted(results):
        print(f"{version}: {results[version]}")
    if not options.tests:
        print("Left out:")
        print(*(f"  {what}: {why}" for what, why in LEFT_OUT.items()), sep="\n")
    return any(result.startswith("FAILED") for result in results.values())


if __name__ == "__main__":
    sys.exit(main())
