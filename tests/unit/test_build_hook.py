"""A wheel that is built from source has compiled modules, or says why it has none."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("hatchling")

TOOLS = Path(__file__).parents[2] / "tools"
COMPILER = ["a compiler"]
COMPILES = "open('prefork/library.so', 'w').close()"
FAILS = "print('fast.c:1: error: no such thing'); raise SystemExit(1)"


@pytest.fixture(autouse=True)
def able(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is here: a Python that is covered, with its headers and a C compiler. (The directory
    is made before: what makes it may remove older ones, in the way of the version that this is.)"""
    monkeypatch.delenv("PREFORK_PURE", raising=False)
    monkeypatch.setenv("CC", f"{sys.executable} -some-option")
    monkeypatch.setattr("sys.version_info", (3, 12, 0, "final", 0))
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": 0}.get)
    monkeypatch.setattr(Path, "exists", lambda _: True)


@pytest.fixture
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_hook", TOOLS / "build_hook.py")
    assert spec is not None
    assert spec.loader is not None
    hook: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    hook.version_of = lambda _: "7.8"
    return hook


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A package with one module, and a compiler that a test writes."""
    (tmp_path / "src/prefork").mkdir(parents=True)
    (tmp_path / "src/prefork/__init__.py").touch()
    (tmp_path / "src/prefork/fast.py").touch()
    (tmp_path / "src/prefork/stale.so").touch()
    (tmp_path / "tools").mkdir()
    return tmp_path


class Built:
    """What the hook has the builder pack, read before it is taken away."""

    def __init__(self, module: ModuleType, project: Path, version: str = "standard") -> None:
        config = {"compiler": COMPILER, "modules": ["/src/prefork/fast.py"]}
        args: Any = (str(project), config, None, None, "", "wheel", None)
        self.hook = module.CompiledModules(*args)
        data: dict[str, Any] = {"force_include": {}}
        self.hook.initialize(version, data)
        files = {name: Path(path) for path, name in data.pop("force_include").items()}
        self.settings = data
        note = files.pop("prefork/_build.txt", None)
        self.note = None if note is None else note.read_text().strip()
        self.names = sorted(files)
        self.hook.finalize(version, data, "")
        assert not [path for path in [note, *files.values()] if path and path.is_file()]


@pytest.fixture
def build(module: ModuleType, project: Path) -> Callable[..., Built]:
    def make(compiler: str, version: str = "standard") -> Built:
        (project / "tools/compile.py").write_text(compiler)
        before = sorted(project.rglob("*"))
        built = Built(module, project, version)
        assert sorted(project.rglob("*")) == before
        return built

    return make


def test_compiled(build: Callable[..., Built], capfd: pytest.CaptureFixture[str]) -> None:
    built = build(COMPILES)
    assert built.names == ["prefork/library.so"]
    assert built.settings == {"pure_python": False, "infer_tag": True}
    assert built.note == "compiled by mypyc 7.8"
    assert built.hook.dependencies() == COMPILER
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (FAILS, "the compilation failed (fast.c:1: error: no such thing)"),
        ("raise OSError('first') from KeyError('second')", "(OSError: first)"),
        ("raise SystemExit(3)", "the compilation failed (it said nothing)"),
        ("import os; os.abort()", "the compilation failed (it said nothing)"),
        ("import no_such_module", "No module named 'no_such_module')"),
        (
            "open('prefork/fast.py', 'w').write('1/0')",
            "fails (ZeroDivisionError: division by zero)",
        ),
    ],
)
def test_a_failure_leaves_plain_python_and_one_line(
    build: Callable[..., Built], capfd: pytest.CaptureFixture[str], compiler: str, reason: str
) -> None:
    built = build(compiler)
    assert not built.names
    assert not built.settings
    assert built.note is not None
    assert built.note.startswith("plain Python, since ")
    assert built.note.endswith(reason)
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("prefork: plain Python")
    assert err.endswith(f"{reason}\n")
    assert err.count("\n") == 1


def no_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CC", "no-such-compiler -O")


def no_headers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "exists", lambda _: False)


def free_threads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": 1}.get)


def too_new(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("sys.version_info", (3, 99, 0, "final", 0))


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        (no_compiler, "there was no C compiler (no-such-compiler)"),
        (no_headers, "Python's headers (Python.h) were not there"),
        (free_threads, "a free-threaded Python is not covered"),
        (too_new, "Python 3.99 is newer than the compiler"),
    ],
)
def test_where_it_cannot_work_the_compiler_is_not_even_installed(
    build: Callable[..., Built],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    obstacle: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    obstacle(monkeypatch)
    built = build(COMPILES)
    assert not built.names
    assert built.hook.dependencies() == []
    assert built.note == f"plain Python, since {reason}"
    assert capfd.readouterr().err.count("\n") == 1


def test_plain_python_on_demand(
    build: Callable[..., Built], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFORK_PURE", "1")
    built = build(COMPILES)
    assert not built.names
    assert built.hook.dependencies() == []
    assert built.note == "plain Python, since PREFORK_PURE=1 was set when it was built"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("obstacle", [None, no_compiler, too_new])
def test_compiled_on_demand_or_not_at_all(
    build: Callable[..., Built],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    obstacle: Callable[[pytest.MonkeyPatch], None] | None,
) -> None:
    monkeypatch.setenv("PREFORK_PURE", "0")
    if obstacle is not None:
        obstacle(monkeypatch)
    built = build(COMPILES)
    assert built.names == ["prefork/library.so"]
    assert built.hook.dependencies() == COMPILER
    with pytest.raises(SystemExit, match="nothing is compiled, since the compilation failed"):
        build("print('first'); " + FAILS)
    assert "first" in capfd.readouterr().err


def test_an_editable_install_is_plain_python(build: Callable[..., Built]) -> None:
    built = build(FAILS, "editable")
    assert (built.names, built.settings, built.note) == ([], {}, None)
