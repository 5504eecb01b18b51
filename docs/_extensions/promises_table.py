"""The directive `promises`: each of the README's promises, with the tests that guard it."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import promises

TESTS = "https://github.com/prefork/prefork/blob/main/tests/"


class Promises(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        found: dict[int, dict[str, list[str]]] = {}
        for guard in promises.guards():
            tests = found.setdefault(guard.promise, {}).setdefault(guard.file, [])
            tests.append(guard.test.removeprefix("test_").replace("_", " ") or "all")
        definitions = nodes.definition_list()
        for number, headline in promises.promises().items():
            files = nodes.bullet_list()
            for file, tests in sorted(found[number].items()):
                name = file.rpartition("/")[2].removeprefix("test_").removesuffix(".py")
                line = nodes.paragraph()
                line += nodes.reference("", name, refuri=TESTS + file)
                line += nodes.Text(": " + ", ".join(tests))
                files += nodes.list_item("", line)
            term = nodes.term("", f"{number}. {headline}")
            definitions += nodes.definition_list_item("", term, nodes.definition("", files))
        self.env.note_dependency(promises.__file__)
        return [definitions]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("promises", Promises)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
