"""The build hook: a wheel gets compiled modules where they can be compiled, and none where not.

`PREFORK_PURE` says what is wanted:

    not set   compiled, if there is a C compiler and it succeeds; else plain Python, and one line
              on stderr that says why
    1         plain Python; the compiler is not even installed
    0         compiled, or the build fails

Either way the wheel holds the sources. A module's compiled twin lies beside it and is imported in
its place. How the wheel was built is noted in a file of it, which `prefork.build_info` reads.

An editable install is plain Python always: it runs from `src`, where nothing is ever compiled.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import weakref
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NEWEST = (3, 14)  # the newest Python for which the compiler is known to work

NOTE = "prefork/_build.txt"

HEADERS = ("include", "platinclude")  # where Python.h may be


class CannotCompile(Exception):
    """Why there are no compiled modules, to be read after "since"."""


class CompiledModules(BuildHookInterface[Any]):
    """Configured in `pyproject.toml`: `modules`, and what the compiler is installed from."""

    def dependencies(self) -> list[str]:
        """What is to be installed before the build, besides hatchling."""
        try:
            check_whether_to_try()
        except CannotCompile:
            return []
        requirements: list[str] = self.config["compiler"]
        return requirements

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        # What is in it is packed after this. It goes then; or with this object, if a build fails.
        self._scratch = Path(tempfile.mkdtemp(prefix="prefork-build-"))
        self._clean = weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        note = self._scratch / "note"
        note.write_text(f"{self._compile_or_say_why_not(build_data)}\n", encoding="utf-8")
        build_data["force_include"][str(note)] = NOTE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._clean()

    def _compile_or_say_why_not(self, build_data: dict[str, Any]) -> str:
        try:
            check_whether_to_try()
            self._compile(build_data)
        except CannotCompile as exc:
            if wanted() == "0":
                raise SystemExit(f"prefork: nothing is compiled, since {exc}") from exc
            if wanted() != "1":
                print(
                    f"prefork: plain Python (small calls are slower), since {exc}", file=sys.stderr
                )
            return f"plain Python, since {exc}"
        return f"compiled by mypyc {version_of('mypy')}"

    def _compile(self, build_data: dict[str, Any]) -> None:
        """Compile a copy, so that nothing is left in the checkout."""
        package = self._scratch / "source/prefork"
        stale = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(Path(self.root, "src/prefork"), package, ignore=stale)
        modules = [module.removeprefix("/src/") for module in self.config["modules"]]
        names = [module.removesuffix(".py").replace("/", ".") for module in modules]
        script = Path(self.root, "tools/compile.py")
        run_python(package.parent, "the compilation failed", script, *modules)
        run_python(package.parent, "what was compiled fails", "-c", f"import {', '.join(names)}")
        for path in package.rglob("*.so"):
            build_data["force_include"][str(path)] = path.relative_to(package.parent).as_posix()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def wanted() -> str:
    """`PREFORK_PURE`: "1", "0" or, if there is nothing in it, ""."""
    value = os.environ.get("PREFORK_PURE", "")
    return value if value in ("", "0") else "1"


def check_whether_to_try() -> None:
    """Raise `CannotCompile` where it is not wanted, or where it is known beforehand to fail.

    So that the compiler is not installed for nothing; and that an install does not fail because the
    compiler, for its part, cannot be installed on a Python that is too new for it.
    """
    if wanted() == "1":
        raise CannotCompile("PREFORK_PURE=1 was set when it was built")
    if wanted() == "0":
        return
    if os.name != "posix" or sys.implementation.name != "cpython":
        raise CannotCompile(f"{sys.implementation.name} on {sys.platform} is not covered")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise CannotCompile("a free-threaded Python is not covered")
    if sys.version_info[:2] > NEWEST:
        version = ".".join(map(str, sys.version_info[:2]))
        raise CannotCompile(f"Python {version} is newer than the compiler")
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    program = next(iter(shlex.split(compiler)), "cc")
    if shutil.which(program) is None:
        raise CannotCompile(f"there was no C compiler ({program})")
    if not any(Path(sysconfig.get_path(name), "Python.h").exists() for name in HEADERS):
        raise CannotCompile("Python's headers (Python.h) were not there")


def run_python(folder: Path, complaint: str, *arguments: object) -> None:
    """Run this Python there, or raise `CannotCompile`."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        if wanted() == "0":
            print(done.stdout, file=sys.stderr)
        raise CannotCompile(f"{complaint} ({gist(done.stdout)})")


def gist(output: str) -> str:
    """The line of a compiler's output that tells most: its first error, or the last of all."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if " error: " in line]  # a compiler's, not an exception
    return (errors or lines[-1:] or ["it said nothing"])[0][:200]
