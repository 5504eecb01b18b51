"""The examples of the pages in `docs` do what these say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_example_of_executors(script, tmp_path, method):
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "executor.md").read_text(), re.M | re.S)
    program = tmp_path / "program.py"
    program.write_text(code.replace("timeout=1.5", f"{method!r}, timeout=1.5"))
    status, out, err = script(program).finish()
    assert status == 0, err
    *lines, last = out.splitlines()
    assert sorted(lines) == [
        "crash: its worker has died",
        "hang: it took too long",
        "quite long: 10",
        "short: 5",
    ]
    assert last == "[1, 2, 3]"


EXAMPLES = re.findall(r"^```python\n(.*?)^```", (DOCS / "workers.md").read_text(), re.M | re.S)
SAID = [
    "[1, 2, 3, 4, 5]\n",
    "a worker has died; its successor has its device\nTrue\n",
    "True 6\n",
    "",
]


@pytest.mark.parametrize(("code", "said"), [*zip(EXAMPLES, SAID, strict=True)])
def test_the_examples_of_workers(script, tmp_path, code, said):
    if "numpy" in code:
        pytest.importorskip("numpy")
    program = tmp_path / "program.py"
    program.write_text(code)
    status, out, err = script(program).finish()
    assert (status, out) == (0, said), err
