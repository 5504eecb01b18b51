"""How the source hangs together, in figures: for whoever changes its structure.

    python benchmarks/structure.py [--static] [FOLDER ...]

Each FOLDER (this project's `src`, if none is given) holds a package `prefork` that is not compiled;
each gets a column of the table. `--static`: only what is read from the source.

Read from the source (*the core* is all but the faces `celery`, `cli`, `cluster`, `joblib` and
`taskpool`; its lines are all lines):

layer rows          of the contract on the whole package, in the `pyproject.toml` beside the folder
floors              the longest chain of imports, of rooms (what lies at the top of the package: a
                    package there is one room) and of files. An import inside a function counts, one
                    for the type checker does not.
writes              assignments to an attribute of anything but `self` and `cls`
a.b.c.d()           calls through three dots or more
others' _privates   uses of a name with an underscore, of anything but `self`, `cls`, `super()`, a
                    class inside of itself and its subclasses, and documented names (`os._exit`,
                    `options._replace`); not in the module that all access to what is private in
                    the standard library has its place in

Counted while it runs, in a pool of two workers that have run some jobs before (`sys.setprofile`):

calls     of Python functions of the package's
files     that those are in
moves     from a call to the next one that is in another file, in one thread
submit    `apply_async`, in the caller's thread
result    from the moment at which the pool's threads look at a result until it can be had
death     the same for a worker that was killed while it ran the job
limit     the same for a job that passes its hard limit

A pool's threads run side by side: whatever they do until the outcome is there is counted, such as
part of the start of the dead worker's successor. So each is run several times, and the shortest run
is given, in which the outcome was not overtaken; the run in the middle is in parentheses. The same
in a pool without threads is always the same; there, the successor is always started first.

worker imports      modules of the package in a worker that was started with `spawn`
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FACES = {"celery", "cli", "cluster", "joblib", "taskpool"}
STANDARD = "prefork._system.std_internals"
"""What is private in the standard library is used there."""
DOCUMENTED = {"_asdict", "_exit", "_fields", "_getframe", "_make", "_replace"}
"""Names with an underscore that are none the less for everybody."""
RUNS = 15
LIMIT = 0.1
"""Seconds, of the job that passes its limit."""


# ---- read from the source


class Source:
    """A package's files and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.modules: dict[str, Path] = {}
        for path in sorted((folder / "prefork").rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = path
        self.trees = {name: ast.parse(path.read_text()) for name, path in self.modules.items()}
        self.imports = {name: self._imports(name) for name in self.modules}

    def _imports(self, name: str) -> set[str]:
        found = set(_imported(self.trees[name]))
        known = {self._module(target) for target in found} - {name, None}
        return {target for target in known if target is not None}

    def _module(self, target: str) -> str | None:
        """The module of this package that an import gets, if it is one."""
        if target in self.modules:
            return target
        parent = target.rpartition(".")[0]
        return parent if parent in self.modules else None

    def core(self) -> dict[str, ast.Module]:
        return {name: tree for name, tree in self.trees.items() if room_of(name) not in FACES}

    def core_lines(self) -> int:
        return sum(len(self.modules[name].read_text().splitlines()) for name in self.core())

    def floors_of_files(self) -> int:
        return longest_chain(self.imports)

    def floors_of_rooms(self) -> int:
        rooms: dict[str, set[str]] = {}
        for name, targets in self.imports.items():
            room = room_of(name)
            rooms.setdefault(room, set()).update(
                other for target in targets if (other := room_of(target)) != room
            )
        return longest_chain(rooms)


def room_of(module: str) -> str:
    """What lies at the top of the package: `prefork._engine.state` is in `_engine`."""
    return [*module.split("."), "__init__"][1]


def _imported(node: ast.AST) -> Iterator[str]:
    """What is imported, as `module` or `module.name`; not for the type checker."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and child.module:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        yield from _imported(child)


def longest_chain(imports: dict[str, set[str]]) -> int:
    """How many there are in it. What closes a circle is passed over."""
    heights: dict[str, int] = {}
    under_way: set[str] = set()

    def height(name: str) -> int:
        if name in under_way:
            return 0
        if name not in heights:
            under_way.add(name)
            heights[name] = 1 + max(map(height, imports.get(name, ())), default=0)
            under_way.discard(name)
        return heights[name]

    return max(map(height, imports))


def is_own(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def targets(node: ast.AST) -> Iterator[ast.expr]:
    """What an assignment assigns to."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _unpacked(target)
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        yield node.target


def _unpacked(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, (ast.Tuple, ast.List)):
        for element in target.elts:
            yield from _unpacked(element)
    elif isinstance(target, ast.Starred):
        yield from _unpacked(target.value)
    else:
        yield target


def foreign_writes(node: ast.AST) -> int:
    return sum(isinstance(t, ast.Attribute) and not is_own(t.value) for t in targets(node))


def is_long_call(node: ast.AST) -> bool:
    dots = 0
    if isinstance(node, ast.Call):
        func = node.func
        while isinstance(func, ast.Attribute):
            func, dots = func.value, dots + 1
    return dots >= 3


def foreign_privates(node: ast.AST, classes: frozenset[str] = frozenset()) -> int:
    """
    Args:
        classes: the names of those that this is in, and of what they inherit from.
    """
    if isinstance(node, ast.ClassDef):
        classes |= {node.name, *map(ast.unparse, node.bases)}
    found = sum(foreign_privates(child, classes) for child in ast.iter_child_nodes(node))
    return found + (
        isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and node.attr not in DOCUMENTED
        and not is_own(node.value)
        and ast.unparse(node.value) not in classes
    )


def layer_rows(folder: Path) -> str:
    """Of the contract on the whole package."""
    try:
        project = tomllib.loads((folder.parent / "pyproject.toml").read_text())
        contracts = project["tool"]["importlinter"]["contracts"]
        return str(len(next(c for c in contracts if c.get("containers") == ["prefork"])["layers"]))
    except (OSError, KeyError, StopIteration):
        return "-"


def read(folder: Path) -> dict[str, str]:
    """The rows of the table that are read from the source."""
    source = Source(folder)
    core = source.core()
    nodes = [node for tree in core.values() for node in ast.walk(tree)]
    privates = sum(foreign_privates(tree) for name, tree in core.items() if name != STANDARD)
    thousands = source.core_lines() / 1000

    def rate(count: int) -> str:
        return f"{count / thousands:.1f} ({count})"

    return {
        "layer rows": layer_rows(folder),
        "floors of rooms": str(source.floors_of_rooms()),
        "floors of files": str(source.floors_of_files()),
        "lines of the core": str(source.core_lines()),
        "writes to others' attributes, per 1000 lines": rate(sum(map(foreign_writes, nodes))),
        "calls a.b.c.d(), per 1000 lines": rate(sum(map(is_long_call, nodes))),
        "others' _privates, per 1000 lines": rate(privates),
    }


# ---- counted while it runs: in a process of its own, with the package on its path


class Count(NamedTuple):
    calls: int
    files: int
    moves: int


class Trace:
    """Counts the calls on the way to an outcome; is given to `sys.setprofile`.

    Args:
        is_over: nothing more is counted from then on.
    """

    def __init__(self, package: str, is_over: Callable[[], bool] = lambda: False) -> None:
        self._package = package
        self._is_over = is_over
        self._ended = False
        self._calls = self._moves = 0
        self._files: set[str] = set()
        self._last: dict[int, str] = {}  # file, by thread

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if self._ended:
            return
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(self._package):
            thread = threading.get_ident()
            self._calls += 1
            self._files.add(file)
            self._moves += self._last.get(thread, file) != file
            self._last[thread] = file
        elif event == "return":
            self._ended = self._is_over()

    def count(self) -> Count:
        return Count(self._calls, len(self._files), self._moves)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stay() -> None:
    time.sleep(60)


def own_modules() -> list[str]:
    return sorted(name for name in sys.modules if name.startswith("prefork."))


Counts = dict[str, list[Count]]


def with_threads(package: str) -> Counts:
    """The paths in the threads of a pool, several times."""
    import prefork

    counts: Counts = {"submit": [], "result": [], "death": [], "limit": []}
    path: Trace | None = None

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if path is not None:
            path(frame, event, arg)

    def follow(what: str, *call: Any, **limits: Any) -> None:
        nonlocal path
        results: list[Any] = []
        following = Trace(package, lambda: bool(results) and results[0].ready())
        if not limits:  # else the threads have something to do when it is sent, and then wait
            path = following
        results.append(pool.apply_async(*call, **limits))
        path = following
        results[0].wait()
        path = None
        counts[what].append(following.count())
        settle(pool)

    threading.setprofile(profile)
    for _ in range(RUNS):
        pool = prefork.Pool(2)
        with_limits = pool.apply_async(stay, timeout=0.01)  # which needs a thread, too
        with_limits.wait()
        settle(pool)
        pool.apply(abs, (-1,))
        settle(pool)
        here = Trace(package)
        sys.setprofile(here)
        result = pool.apply_async(abs, (-1,))
        sys.setprofile(None)
        counts["submit"].append(here.count())
        result.get()
        follow("result", abs, (-1,))
        follow("death", kill_myself)
        follow("limit", stay, timeout=LIMIT)
        pool.terminate()
        pool.join()
    threading.setprofile(None)
    return counts


def settle(pool: Any) -> None:
    """Wait until it has two workers that are ready, and nothing to do."""
    deadline = time.monotonic() + 30
    states: list[str] = []
    while time.monotonic() < deadline:
        states = [str(worker.state) for worker in pool.statistics().workers]
        if states == ["idle", "idle"]:
            return
        time.sleep(0.01)
    raise TimeoutError(f"the pool's workers are {states}")


class Loop:
    """An event loop; what it calls is followed, if there is something to be followed."""

    def __init__(self) -> None:
        self._readers: dict[int, Callable[..., object]] = {}
        self._timer: tuple[float, Callable[..., object]] | None = None
        self._poll = select.poll()

    def add_reader(self, fd: int, callback: Callable[..., object], /) -> None:
        self._readers[fd] = callback
        self._poll.register(fd, select.POLLIN)

    def remove_reader(self, fd: int, /) -> None:
        del self._readers[fd]
        self._poll.unregister(fd)

    def call_later(self, delay: float, callback: Callable[..., object], /) -> Loop:
        self._timer = time.monotonic() + delay, callback
        return self

    def cancel(self) -> None:
        self._timer = None

    def run(self, is_over: Callable[[], bool], path: Trace | None = None) -> None:
        while not is_over():
            wait = None if self._timer is None else max(0.0, self._timer[0] - time.monotonic())
            ready = self._poll.poll(None if wait is None else 1000 * wait + 1)
            calls = [self._readers[fd] for fd, _ in ready]
            if self._timer is not None and self._timer[0] <= time.monotonic():
                calls.append(self._timer[1])
                self._timer = None
            for call in calls:
                sys.setprofile(None if is_over() else path)
                call()
                sys.setprofile(None)


def without_threads(package: str) -> Counts:
    """The same paths on an event loop."""
    import prefork

    counts: Counts = {"result": [], "death": [], "limit": []}
    paths: list[tuple[str, tuple[Any, ...], float | None]] = [
        ("result", (abs, -1), None),
        ("death", (kill_myself,), None),
        ("limit", (stay,), LIMIT),
    ]
    for _ in range(3):
        pool = prefork.Pool(2, threads=False)
        loop = Loop()
        pool.attach(loop)
        for what, call, timeout in paths:
            for _ in range(3):
                loop.run(pool.apply_async(abs, (-1,)).ready)
            result = pool.apply_async(call[0], call[1:], timeout=timeout)
            path = Trace(package, result.ready)
            if timeout is None:
                time.sleep(0.2)  # all of it has happened when the pool looks
            loop.run(result.ready, path)
            counts[what].append(path.count())
        pool.terminate()
    return counts


def worker_imports() -> int:
    import prefork

    with prefork.Pool(1, context="spawn") as pool:
        return len(pool.apply(own_modules))


def run() -> dict[str, str]:
    """The rows of the table that are counted while the package runs."""
    import prefork

    package = os.path.dirname(prefork.__file__) + os.sep
    rows = {}
    for name, counts in (
        ("", with_threads(package)),
        (", no threads", without_threads(package)),
    ):
        for what, several in counts.items():
            least = " / ".join(map(str, min(several)))
            middle = " / ".join(
                f"{statistics.median(part):g}" for part in zip(*several, strict=True)
            )
            rows[f"{what}{name}: calls / files / moves"] = f"{least} ({middle})"
    rows["modules that a spawned worker imports"] = str(worker_imports())
    return rows


# ---- the table


def rows_of(folder: Path, is_static: bool) -> dict[str, str]:
    if is_static:
        return read(folder)
    command = [sys.executable, __file__, "--run"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return {**read(folder), **json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description="How the source hangs together, in figures.")
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / "src"])
    parser.add_argument("--static", action="store_true", help="only what is read from the source")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run()))
        return
    folders = [folder.resolve() for folder in options.folders]
    columns = [rows_of(folder, options.static) for folder in folders]
    print("|", *(f"| {folder}" for folder in folders), "|")
    print("|---" * (len(folders) + 1) + "|")
    for name in columns[0]:
        print(f"| {name}", *(f"| {column.get(name, '-')}" for column in columns), "|")


if __name__ == "__main__":
    main()
