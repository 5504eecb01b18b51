"""The examples of the documentation: where they are, and what each is to print.

An example is a fenced block of a page.

`python`: a program of its own. With a caption (`{code-block} python` and `:caption: tasks.py`) it
is a file of that name, beside the page's other programs, which they may import; it is run like them
unless a command on the page runs it.

`console`: lines that begin with `$ ` are commands of the shell; what follows each is its output.
The commands of a page are run in their order, in one directory, which has the page's files.

`text`, directly after a program: what that prints. Without it, the comments behind its calls of
`print` tell: `print(6 * 7)  # 42`. In both, `…` stands for anything, by itself for any lines, and
the numbers 4711 to 4719 for any number, such as a process id; so does that of a `PreforkWorker`.
What the pool logs of a worker that has died is on standard error; a page shows it or not.

A comment before a block, `<!-- example: … -->`, tells what is special about it:

    exit 1          the program's exit code
    unordered       its lines may come in any order
    needs X         it is left out where the module X, or the command, is not installed
    seconds 60      it may take that long
    warns X         what it writes to standard error contains X
    not run: …      it cannot be, for this reason

`<!-- examples: run by tests/… -->` says that this test runs the examples of the page, together.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<info>[^\n`]*)$")
RUN_BY = re.compile(r"<!-- examples: run by (\S+) -->")
DIRECTIVE = re.compile(r"<!-- example: (.*?) -->")
LOGGED = re.compile(
    r"worker \d+ \(|worker process \d+ could not start: |the initializer failed in a worker: "
)


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    caption: str  # the name of a file, or ""
    text: str
    remarks: tuple[str, ...]
    output: str | None  # the text block that follows

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def remark(self, word: str) -> str | None:
        """What is said after this word; None if it is not there."""
        for remark in self.remarks:
            if remark == word or remark.startswith((f"{word} ", f"{word}: ")):
                return remark[len(word) :].lstrip(": ")
        return None

    @property
    def missing(self) -> list[str]:
        """What it needs and is not here."""
        wanted = set((self.remark("needs") or "").split())
        if self.language == "python":
            beside = {block.caption.removesuffix(".py") for block in blocks(self.page)}
            wanted |= imported(self.text) - beside
        return sorted(name for name in wanted if not is_here(name))

    @property
    def expected(self) -> str:
        return comments_of_prints(self.text) if self.output is None else self.output


class Command(NamedTuple):
    line: str
    output: str


def pages() -> list[Path]:
    """README.md, and those of the site."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text().splitlines()
    remarks: tuple[str, ...] = ()
    after = -1  # where a text block would belong to the block before
    number = 0
    while number < len(lines):
        line = lines[number]
        if match := FENCE.match(line):
            start = number
            end = next(
                n for n in range(start + 1, len(lines)) if lines[n].strip() == match["fence"]
            )
            body = [text.removeprefix(match["indent"]) for text in lines[start + 1 : end]]
            options = []
            while body and re.match(r":[a-z-]+:", body[0]):
                options.append(body.pop(0))
            while options and body and not body[0].strip():
                body.pop(0)
            text = "\n".join(body) + "\n"
            language = match["info"].replace("{code-block}", "").strip()
            if language == "text" and after == start:
                found[-1] = found[-1]._replace(output=text)
            else:
                caption = [o.partition(": ")[2] for o in options if o.startswith(":caption:")]
                found.append(
                    Block(page, start + 1, language, "".join(caption), text, remarks, None)
                )
            remarks = ()
            number = end + 1
            after = number
            continue
        if match := DIRECTIVE.fullmatch(line.strip()):
            remarks = (*remarks, *(part.strip() for part in match[1].split(",")))
        if not line.strip() and after == number:
            after += 1
        number += 1
    return found


def commands(block: Block) -> list[Command]:
    """Of a block of the language `console`."""
    found: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], ""))
        elif found and found[-1].line.endswith("\\"):
            found[-1] = found[-1]._replace(line=f"{found[-1].line}\n{line}")
        else:
            found[-1] = found[-1]._replace(output=f"{found[-1].output}{line}\n")
    return found


def imported(program: str) -> set[str]:
    """The top-level packages that it imports from elsewhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)


def is_here(name: str) -> bool:
    beside = Path(sys.executable).with_name(name)
    return bool(importlib.util.find_spec(name) or shutil.which(name) or beside.exists())


def comments_of_prints(program: str) -> str:
    """What stands in comments behind calls of `print`, in the order of the lines."""
    found = []
    for line in program.splitlines():
        if match := re.search(r"\bprint\(.*\)\s+# (.*)$", line):
            found.append(match[1])
    return "".join(f"{text}\n" for text in found)


# ---- is what came what was expected?


def differences(expected: str, came: str, unordered: bool = False) -> str:
    """ "" if it is; else both, to be read."""
    want, got = (
        [line.rstrip() for line in text.rstrip().splitlines()] for text in (expected, came)
    )
    if unordered:
        got = in_the_order_of(want, got)
    if re.fullmatch("".join(map(pattern, want)), "".join(f"{line}\n" for line in got)):
        return ""
    return f"expected:\n{expected.rstrip()}\n\nbut it printed:\n{came.rstrip()}"


def in_the_order_of(want: list[str], got: list[str]) -> list[str]:
    found, rest = [], list(got)
    for line in want:
        hits = [other for other in rest if re.fullmatch(pattern(line), f"{other}\n")]
        if hits:
            rest.remove(hits[0])
            found.append(hits[0])
    return [*found, *rest]


def pattern(line: str) -> str:
    """A regular expression for what a line of a page stands for."""
    if line.strip() == "…":
        return r"(?:.*\n)*?"
    text = ".*".join(re.escape(part) for part in line.split("…"))
    text = re.sub(r"471\d", r"\\d+", text)
    return re.sub(r"(PreforkWorker\\?-)\d+", r"\1\\d+", text) + r"\n"


def without_log(text: str) -> str:
    """But for what the pool logs of its workers."""
    return "".join(f"{line}\n" for line in text.splitlines() if not LOGGED.match(line))


def only_log(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if LOGGED.match(line))


def run_by(page: Path) -> str | None:
    """The test that runs all examples of a page together, if there is one."""
    match = RUN_BY.search(page.read_text())
    return match[1] if match else None


def all_blocks(*languages: str) -> Iterator[Block]:
    """Of the pages whose examples are programs by themselves."""
    for page in pages():
        if run_by(page) is not None:
            continue
        yield from (block for block in blocks(page) if block.language in languages)
