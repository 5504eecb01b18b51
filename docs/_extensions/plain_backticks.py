"""Text in single backticks, in docstrings: code; and a link, where it is a public name."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx import addnodes
from sphinx.application import Sphinx

import prefork


def plain(
    name: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: Inliner,
    options: dict[str, Any] | None = None,
    content: list[str] | None = None,
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    code = nodes.literal(rawtext, text)
    dotted = text.removeprefix("prefork.")
    head, _, attribute = dotted.partition(".")
    if head not in prefork.__all__ or (attribute and not attribute.isidentifier()):
        return [code], []
    reference = addnodes.pending_xref(
        "",
        code,
        refdomain="py",
        reftype="obj",
        reftarget=f"prefork.{dotted}",
        refexplicit=False,
        refwarn=False,
    )
    reference["py:module"] = reference["py:class"] = None
    return [reference], []


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("plain", plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
