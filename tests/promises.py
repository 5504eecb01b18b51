"""Which tests guard which of the README's promises. `python tests/promises.py` writes the table in
`tests/README.md`.

A test is marked with the number that the promise has in the README:
`@pytest.mark.promise(number=3)`, or in its module's `pytestmark`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
PAGE = TESTS / "README.md"
BEGIN, END = "<!-- begin: python tests/promises.py -->", "<!-- end -->"


class Guard(NamedTuple):
    promise: int
    file: str  # from this folder
    test: str  # "": all of the file


def promises() -> dict[int, str]:
    """Their headlines, by their numbers in the project's README."""
    text = (TESTS.parent / "README.md").read_text()
    section = text.split("## What you can rely on", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"^(\d+)\. \*\*(.+?)\*\*", section, re.MULTILINE | re.DOTALL)
    return {int(number): headline.rstrip(".") for number, headline in found}


def guards() -> list[Guard]:
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        file = path.relative_to(TESTS).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
                found += [Guard(number, file, "") for number in _numbers(node.value)]
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                for mark in node.decorator_list:
                    found += [Guard(number, file, node.name) for number in _numbers(mark)]
    return found


def _numbers(node: ast.AST) -> Iterator[int]:
    """Of all marks in an expression."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.promise":
            (number,) = call.keywords
            yield ast.literal_eval(number.value)


def spelled_out(expression: str) -> str:
    """An expression for pytest's option `-m`, with `promise(3)` as pytest wants to have it."""
    return re.sub(r"\bpromise\(\s*(\d+)\s*\)", r"promise(number=\1)", expression)


def table() -> str:
    lines = ["| promise | its tests |", "|---|---|"]
    for number, headline in promises().items():
        files: dict[str, list[str]] = {}
        for guard in guards():
            if guard.promise == number:
                files.setdefault(guard.file, []).append(guard.test.removeprefix("test_"))
        cells = "<br>".join(_cell(file, tests) for file, tests in files.items())
        lines.append(f"| {number}. {headline} | {cells} |")
    return "\n".join(lines)


def _cell(file: str, tests: list[str]) -> str:
    name = Path(file).stem.removeprefix("test_")
    return f"[{name}]({file}): {', '.join(filter(None, tests)) or 'all'}"


def page() -> str:
    """What is to be in the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
