"""The directive `click-options`: the options of `prefork map`, as the command itself has them."""

from __future__ import annotations

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from prefork.cli import command


class ClickOptions(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        definitions = nodes.definition_list()
        for option in command.map_command.params:
            if not isinstance(option, click.Option):
                continue
            term = nodes.term()
            for number, name in enumerate(option.opts):
                term += [nodes.Text(", ")] if number else []
                term += nodes.literal("", name)
            if not option.is_flag:
                term += nodes.Text(f" {option.make_metavar(click.Context(command.map_command))}")
            text = nodes.paragraph("", option.help or "")
            term_and_text = nodes.definition_list_item("", term, nodes.definition("", text))
            definitions += term_and_text
        self.env.note_dependency(command.__file__)
        return [definitions]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("click-options", ClickOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
