"""The directive `sequence`: who does what after whom, written as text, drawn as SVG.

    Caller | Pool | Worker
    Caller -> Pool: apply_async
    Pool -> Pool: pickles the call
    Pool --> Worker: a ticket
    note Worker: runs the task
    -- its process is killed --

The first line names the columns, from the left. Then, from the top: an arrow (`-->`: it does not
wait for an answer), a note at one of them, or a line across all. The drawing is part of the page,
in the page's own colours; its text is what search engines and readers with a screen reader get.
"""

from __future__ import annotations

import html
import re
from typing import ClassVar, NamedTuple

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

COLUMN, ROW, HEAD, MARGIN = 170, 44, 34, 12
CHARACTER = 6.6  # the width of one, about, in the size of the labels

ARROW = re.compile(r"(.+?) (--?>) (.+?): (.+)")
NOTE = re.compile(r"note (.+?): (.+)")
BREAK = re.compile(r"-- (.+) --")


class Step(NamedTuple):
    kind: str  # "->", "-->", "note" or "break"
    text: str
    start: int = 0  # numbers of columns
    end: int = 0


def parse(lines: list[str]) -> tuple[list[str], list[Step]]:
    """
    Raises:
        ValueError: a line is none of those above, or names no column.
    """
    first, *rest = [line.strip() for line in lines if line.strip()]
    columns = [name.strip() for name in first.split("|")]
    steps = []
    for line in rest:
        if match := BREAK.fullmatch(line):
            steps.append(Step("break", match[1]))
        elif match := NOTE.fullmatch(line):
            at = columns.index(match[1])
            steps.append(Step("note", match[2], at, at))
        elif match := ARROW.fullmatch(line):
            start, kind, end, text = match.groups()
            steps.append(Step(kind, text, columns.index(start), columns.index(end)))
        else:
            raise ValueError(f"neither an arrow, a note nor a break: {line!r}")
    return columns, steps


def middle(column: int) -> float:
    return MARGIN + COLUMN * (column + 0.5)


def draw(columns: list[str], steps: list[Step], title: str) -> str:
    width = 2 * MARGIN + COLUMN * len(columns)
    bottom = HEAD + 16 + ROW * len(steps)
    parts = [
        f'<svg class="sequence" viewBox="0 0 {width} {bottom + 8}" width="{width}" role="img"'
        f' aria-label="{html.escape(title)}" xmlns="http://www.w3.org/2000/svg">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto-start-reverse"><path class="tip" d="M0 0 8 4 0 8z"/>'
        "</marker></defs>",
    ]
    for number, name in enumerate(columns):
        x = middle(number)
        parts.append(f'<line class="life" x1="{x}" y1="{HEAD}" x2="{x}" y2="{bottom}"/>')
        left = x - COLUMN / 2 + 10
        parts.append(
            f'<rect class="head" x="{left}" y="2" width="{COLUMN - 20}" height="{HEAD - 4}"'
            ' rx="6"/>'
        )
        parts.append(label(x, HEAD / 2 + 5, name, "name"))
    for number, step in enumerate(steps):
        parts += draw_step(step, HEAD + 16 + ROW * (number + 0.5), width)
    return "\n".join([*parts, "</svg>"])


def draw_step(step: Step, y: float, width: float) -> list[str]:
    start, end = middle(step.start), middle(step.end)
    if step.kind == "break":
        line = f'<line class="break" x1="{MARGIN}" y1="{y}" x2="{width - MARGIN}" y2="{y}"/>'
        return [line, *on_paper(width / 2, y + 4, step.text, "strong")]
    if step.kind == "note":
        return boxed(start, y, step.text, width)
    if step.start == step.end:
        loop = f"M{start} {y - 9} h22 v16 h-16"
        arrow = f'<path class="arrow" d="{loop}" marker-end="url(#tip)"/>'
        is_last = start + COLUMN > width
        where = (start - 10, "end") if is_last else (start + 30, "start")
        return [arrow, *on_paper(where[0], y + 3, step.text, "label", where[1])]
    dashed = " dashed" if step.kind == "-->" else ""
    return [
        f'<line class="arrow{dashed}" x1="{start}" y1="{y + 4}" x2="{end}" y2="{y + 4}"'
        ' marker-end="url(#tip)"/>',
        *on_paper((start + end) / 2, y - 5, step.text, "label"),
    ]


def boxed(x: float, y: float, text: str, width: float) -> list[str]:
    size = CHARACTER * len(text) + 16
    left = min(max(x - size / 2, 2), width - size - 2)
    return [
        f'<rect class="note" x="{left:.0f}" y="{y - 13}" width="{size:.0f}" height="26" rx="4"/>',
        label(left + size / 2, y + 4, text, "label"),
    ]


def on_paper(x: float, y: float, text: str, kind: str, anchor: str = "middle") -> list[str]:
    """With a piece of the page's background behind it, so that no line goes through it."""
    size = CHARACTER * len(text) + 6
    left = {"start": x - 3, "middle": x - size / 2, "end": x - size + 3}[anchor]
    paper = f'<rect class="paper" x="{left:.0f}" y="{y - 12}" width="{size:.0f}" height="16"/>'
    return [paper, label(x, y, text, kind, anchor)]


def label(x: float, y: float, text: str, kind: str, anchor: str = "middle") -> str:
    return (
        f'<text class="{kind}" x="{x:.0f}" y="{y}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )


class Sequence(SphinxDirective):
    has_content = True
    required_arguments = 1  # what it shows
    final_argument_whitespace = True
    option_spec: ClassVar = {"class": directives.class_option}

    def run(self) -> list[nodes.Node]:
        try:
            columns, steps = parse(list(self.content))
        except ValueError as exc:
            raise self.error(str(exc)) from None
        title = self.arguments[0]
        figure = nodes.container(classes=["drawing"])
        figure += nodes.raw("", draw(columns, steps, title), format="html")
        return [figure]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("sequence", Sequence)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
