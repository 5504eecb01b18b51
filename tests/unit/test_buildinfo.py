"""Which build is it? That is told by what lies beside the module, and by the wheel's note."""

from __future__ import annotations

import importlib.util
import platform
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import prefork
from prefork import build_info, buildinfo


def builds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: str, note: str | None
) -> prefork.BuildInfo:
    """What is told where the modules lie there, and this is noted."""
    path = tmp_path / "note"
    if note is not None:
        path.write_text(f"{note}\n")
    monkeypatch.setattr(buildinfo, "NOTE", path)
    spec = ModuleSpec(buildinfo.COMPILED_TOO, None, origin=origin)
    monkeypatch.setattr(importlib.util, "find_spec", {spec.name: spec}.get)
    return build_info()


@pytest.mark.parametrize(
    ("origin", "note", "compiled", "how"),
    [
        ("m.cpython-312-x86_64-linux-gnu.so", "compiled by mypyc 2", True, "compiled by mypyc 2"),
        ("m.py", "plain Python, since it rains", False, "plain Python, since it rains"),
        ("m.py", None, False, "plain Python, run from its source"),
        ("m.so", None, True, "compiled"),
        (
            "m.py",
            "compiled by mypyc 2",
            False,
            "plain Python: it was compiled by mypyc 2, but for another Python",
        ),
    ],
)
def test_build_info(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    origin: str,
    note: str | None,
    compiled: bool,
    how: str,
) -> None:
    info = builds(monkeypatch, tmp_path, origin, note)
    assert info == (prefork.__version__, compiled, how)
    python = platform.python_version()
    assert str(info) == f"prefork {prefork.__version__} ({how}; CPython {python})"
