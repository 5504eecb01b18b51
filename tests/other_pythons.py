"""Runs the tests on other versions of Python: those that are here, or can be installed.

    other_pythons.py [--full] [--jobs N] [--minutes N] [VERSION ...]

A version is looked for on PATH and among pyenv's. What is not here comes from Debian's unstable
distribution, which is installed into a directory of its own and entered with chroot (as root; it
takes some minutes, once). Whatever cannot be had is left out, and the last lines say why.

The newest version runs nearly all tests, with all start methods; the others run the unit and
integration tests, with their default method. The tests of celery workers, of types, and those that
need the machine to themselves are `make test`'s alone.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

VERSIONS = ["3.15", "3.14", "3.13", "3.12", "3.11"]  # the newest first
FROM_DEBIAN = {"3.15", "3.14"}
DEFAULT_METHODS = {"3.15": "forkserver", "3.14": "forkserver"}  # before: fork

HERE = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefork-pythons"
ROOT = CACHE / "debian-unstable"

Run = Callable[[str], int]
"""Runs a shell command with a version's interpreter; returns its exit code."""


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


def run_here(command: str) -> int:
    return subprocess.run(["bash", "-euc", command], cwd=HERE, check=False).returncode


def run_in_debian(command: str) -> int:
    """What is mounted is so for this command alone, and goes with it."""
    root, here = shlex.quote(str(ROOT)), shlex.quote(str(HERE))
    entered = shlex.quote(f"cd {here}; {command}")
    script = f"""
        mkdir -p {root}{here}
        mount --bind {here} {root}{here}
        mount --rbind /proc {root}/proc
        mount --rbind /dev {root}/dev
        mount -t tmpfs tmpfs {root}/dev/shm
        mount -t tmpfs tmpfs {root}/tmp
        exec chroot {root} env -u TMPDIR HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
            bash -euc {entered}
    """
    program = ["unshare", "--mount", "--propagation", "private", "bash", "-euc", script]
    return subprocess.run(program, check=False).returncode


def need(code: int, what: str) -> None:
    if code:
        raise LeftOut(what)


def install_from_debian(version: str) -> None:
    if version not in FROM_DEBIAN:
        raise LeftOut("it is not here, and Debian's unstable distribution has it no more")
    if os.geteuid() != 0 or not (shutil.which("apt-get") and shutil.which("unshare")):
        raise LeftOut("it is not here; to install it from Debian takes root, apt-get and unshare")
    quiet = "DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends"
    if not ROOT.exists():
        if not shutil.which("debootstrap"):
            command = f"{{ apt-get -qq update && {quiet} debootstrap; }} >/dev/null"
            need(run_here(command), "it is not here, and debootstrap cannot be installed")
        made = ROOT.with_name(f"{ROOT.name}.{os.getpid()}")
        made.parent.mkdir(parents=True, exist_ok=True)
        command = f"debootstrap --variant=minbase --include=ca-certificates,procps sid {made}"
        try:
            need(run_here(f"{command} >/dev/null"), "it is not here, and debootstrap has failed")
            made.rename(ROOT)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    for name in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).exists():
            shutil.copy(Path("/", name), ROOT / name)
    packages = f"python{version} python{version}-venv libpython{version}-testsuite"
    # A mirror may lag behind: the index of this distribution is valid for a week only.
    update = "apt-get -qq -o Acquire::Check-Valid-Until=false update"
    code = run_in_debian(f"{{ {update} && {quiet} {packages}; }} >/dev/null")
    need(code, "it is not here, and Debian's unstable distribution does not give it")


# --- its tests


def tests_of(version: str, jobs: int, is_full: bool) -> str:
    methods = "fork forkserver spawn"
    folders = "tests/unit tests/integration tests/cli tests/standard"
    if not is_full:
        methods = DEFAULT_METHODS.get(version, "fork")
        folders = "tests/unit tests/integration"
    return (
        f"PREFORK_TEST_METHODS='{methods}' PYTHONPATH=src PYTHONDONTWRITEBYTECODE=1 "
        f'"$venv/bin/python" -m pytest -q -p no:cacheprovider -n {jobs} --dist worksteal '
        f"-m 'not serial' {folders}"
    )


def test(version: str, jobs: int, is_full: bool) -> bool:
    """Whether its tests pass.

    Raises:
        LeftOut: they cannot be run.
    """
    run: Run = run_here
    if (python := find(version)) is None:
        install_from_debian(version)
        run, python = run_in_debian, f"python{version}"
    # (Not kept: a version's environment would go on as it is when that is updated.)
    venv = f'venv=$(mktemp -d); trap \'rm -rf "$venv"\' EXIT; {shlex.quote(python)} -m venv "$venv"'
    project = tomllib.loads((HERE / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["cli"]
    needed = shlex.join([*project["dependency-groups"]["test"], *extra])
    install = f'"$venv/bin/python" -m pip install --quiet --only-binary :all: {needed} || exit 99'
    code = run(f"{venv}; {install}; {tests_of(version, jobs, is_full)}")
    need(code == 99, "what the tests need cannot be installed for it")
    return code == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="default: all but this one")
    parser.add_argument("--full", action="store_true", help="all tests, with all start methods")
    parser.add_argument("--jobs", type=int, default=2, help="how many tests to run at once")
    parser.add_argument("--minutes", type=float, help="begin no other version after so long")
    options = parser.parse_args()
    this = "{}.{}".format(*sys.version_info)
    began = time.monotonic()
    results = {}
    for version in options.versions or [each for each in VERSIONS if each != this]:
        print(f"\n=== Python {version}", flush=True)
        try:
            if options.minutes and time.monotonic() - began > 60 * options.minutes:
                raise LeftOut(f"more than {options.minutes:g} minutes had passed")
            is_full = options.full or version == VERSIONS[0]
            results[version] = "passed" if test(version, options.jobs, is_full) else "FAILED"
        except LeftOut as exc:
            results[version] = f"left out: {exc}"
    if not options.versions:
        results[this] = "left to `make test`"
    print("\n=== On other versions of Python")
    for version in sorted(results):
        print(f"{version}: {results[version]}")
    return "FAILED" in results.values()


if __name__ == "__main__":
    sys.exit(main())
