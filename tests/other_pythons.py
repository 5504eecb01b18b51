"""Runs the tests on other versions of Python: those that are here, or can be installed.

    other_pythons.py [--full] [--jobs N] [--minutes N] [VERSION ...] [--tests TEST ...]

A version is looked for on PATH and among pyenv's. What is not here comes from Debian's unstable
distribution, which is installed into a directory of its own and entered with chroot (as root; it
takes some minutes, once). Whatever cannot be had is left out, and the last lines say why.

The newest version runs nearly all tests, with all start methods; the others run the unit and
integration tests and CPython's own, with their default method. What is left out everywhere, and
why, is `LEFT_OUT`; the last lines say it, too.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

VERSIONS = ["3.15", "3.14", "3.13", "3.12", "3.11"]  # the newest first
FROM_DEBIAN = {"3.15", "3.14"}
DEFAULT_METHODS = {"3.15": "forkserver", "3.14": "forkserver"}  # before: fork

LAZY = "3.15"
"""The first version that can have all imports be lazy."""

LAZY_TESTS = ["WithProcessesTestPool", "WithProcessesTestPoolWorkerErrors", "TestInitializers"]
"""Of CPython's own tests of pools, which are run so; pytest cannot be imported lazily."""

NEEDS_COMPILED = "tests/integration/test_benchmarks.py::test_a_run_makes_samples_and_tables"

LEFT_OUT = {
    "the tests of celery workers, of joblib and of types": "they need packages that are not yet to "
    "be had for new versions",
    "those that are marked as serial": "they need the machine to themselves",
    NEEDS_COMPILED: "what is compiled is another version's",
}
"""What `make test` alone runs, and why."""

STUCK_MINUTES = 40.0
"""A run of tests that takes longer is ended: each test has a deadline, so this is not one's."""

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
    found += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
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


def run_here(command: str) -> Outcome:
    return run(["bash", "-euc", command])


def run_mounting(command: str) -> Outcome:
    """What it mounts is there for its own processes only, and goes with the last of them."""
    return run(["unshare", "--mount", "--propagation", "private", "bash", "-euc", command])


def run_in_debian(command: str) -> Outcome:
    root, here = shlex.quote(str(ROOT)), shlex.quote(str(HERE))
    entered = shlex.quote(f"cd {here}; {command}")
    return run_mounting(f"""
        mkdir -p {root}{here}
        mount --bind {here} {root}{here}
        mount --rbind /proc {root}/proc
        mount --rbind /dev {root}/dev
        mount -t tmpfs tmpfs {root}/dev/shm
        mount -t tmpfs tmpfs {root}/tmp
        exec chroot {root} env -u TMPDIR HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
            bash -euc {entered}
    """)


def may_mount() -> bool:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    return not run_mounting("mount -t tmpfs tmpfs /tmp").code


def need(outcome: Outcome, what: str) -> None:
    if outcome.code:
        raise LeftOut(what)


def install_from_debian(version: str) -> None:
    if version not in FROM_DEBIAN:
        raise LeftOut("it is not here, and Debian's unstable distribution has it no more")
    if not (shutil.which("apt-get") and may_mount()):
        raise LeftOut(
            "it is not here; to install it from Debian takes apt-get, and root who may mount"
        )
    quiet = "DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends"
    if not ROOT.exists():
        if not shutil.which("debootstrap"):
            command = f"{{ apt-get -qq update && {quiet} debootstrap; }} >/dev/null"
            need(run_here(command), "it is not here, and debootstrap cannot be installed")
        made = ROOT.with_name(f"{ROOT.name}.{os.getpid()}")
        made.parent.mkdir(parents=True, exist_ok=True)
        command = f"debootstrap --variant=minbase --include=ca-certificates,procps sid {made}"
        print("Installing Debian's unstable distribution, once", flush=True)
        try:
            done = run_mounting(f"{command} >/dev/null")
            need(done, "it is not here, and debootstrap has failed")
            made.rename(ROOT)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    for name in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).exists():
            shutil.copy(Path("/", name), ROOT / name)
    is_there = f"python{version} -c 'import ensurepip, test._test_multiprocessing' 2>/dev/null"
    packages = f"python{version} python{version}-venv libpython{version}-testsuite"
    # A mirror may lag behind: the index of this distribution is valid for a week only.
    update = "apt-get -qq -o Acquire::Check-Valid-Until=false update"
    install = f"{{ {update} && {quiet} {packages}; }} >/dev/null"
    needed = run_in_debian(f"{is_there} || {install}")
    need(needed, "it is not here, and Debian's unstable distribution does not give it")


# --- its tests


# Bytecode is kept in the version's own place: here are other users, and other versions.
ENVIRONMENT = (
    'PYTHONPATH=$PWD/src PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX="$venv/bytecode" '
    "PREFORK_TEST_METHODS='{methods}'"
)


def commands(version: str, jobs: int, is_full: bool, chosen: list[str]) -> list[str]:
    """What runs its tests."""
    methods = "fork forkserver spawn"
    tests = ["tests/unit", "tests/integration", "tests/cli", "tests/standard"]
    if not is_full:
        methods = DEFAULT_METHODS.get(version, "fork")
        tests = ["tests/unit", "tests/integration", "tests/standard"]
    tests = chosen or [*tests, "--deselect", NEEDS_COMPILED]
    start = f'{ENVIRONMENT.format(methods=methods)} {{}}"$venv/bin/python" '
    run = start.format("") + (
        f"tests/steady.py -q -n {jobs} --dist worksteal -m 'not serial' {shlex.join(tests)}"
    )
    lazily = start.format("PYTHON_LAZY_IMPORTS=all ") + "tests/standard/runner.py forkserver "
    return [run, *(lazily + name for name in LAZY_TESTS if version == LAZY and not chosen)]


def test(version: str, jobs: int, is_full: bool, chosen: list[str]) -> str:
    """What has come of its tests.

    Raises:
        LeftOut: they cannot be run.
    """
    enter = run_here
    if (python := find(version)) is None:
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
        for each in commands(version, jobs, is_full, chosen)
    )
    began = time.monotonic()
    outcome = enter(f'{venv}; {install}; "$venv/bin/python" -VV; code=0; {tests}; exit $code')
    need(outcome._replace(code=outcome.code == 99), "what the tests need cannot be installed")
    minutes = f"{(time.monotonic() - began) / 60:.1f} minutes"
    ran = "all start methods" if is_full else DEFAULT_METHODS.get(version, "fork")
    if not outcome.code:
        unsteady = "; unsteady (failed once, then passed alone):" if outcome.unsteady else ""
        return "\n  ".join([f"passed ({ran}), in {minutes}{unsteady}", *outcome.unsteady])
    options = f"{'--full ' if is_full else ''}{version}"
    left = outcome.failed or chosen
    again = " ".join([options, *(["--tests", *left] if left else [])])
    return f"FAILED, in {minutes}; to run it again:\n  make test-pythons PYTHONS='{again}'"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="default: all but this one")
    parser.add_argument("--full", action="store_true", help="all tests, with all start methods")
    parser.add_argument("--jobs", type=int, default=2, help="how many tests to run at once")
    parser.add_argument("--minutes", type=float, help="begin no other version after so long")
    parser.add_argument("--tests", nargs="+", default=[], help="these tests alone, as for pytest")
    options = parser.parse_args()
    this = "{}.{}".format(*sys.version_info)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    began = time.monotonic()
    results = {}
    for version in options.versions or [each for each in VERSIONS if each != this]:
        print(f"\n=== Python {version}", flush=True)
        try:
            if options.minutes and time.monotonic() - began > 60 * options.minutes:
                raise LeftOut(f"more than {options.minutes:g} minutes had passed")
            is_full = options.full or version == VERSIONS[0]
            results[version] = test(version, options.jobs, is_full, options.tests)
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
