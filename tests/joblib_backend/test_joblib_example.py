"""The example of docs/joblib.md does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "joblib.md"


@pytest.mark.timeout(180)
def test_it(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    expected = re.findall(r"print\(.*\)  # (.*)", code)
    (tmp_path / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "example.py")],
        capture_output=True,
        text=True,
        timeout=170,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.stdout.splitlines() == expected, done.stderr
    assert "4 fits failed out of a total of 6" in done.stderr
    assert "in fit" in done.stderr
