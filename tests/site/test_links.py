"""Links of the pages to one another, and into the repository, lead somewhere."""

from __future__ import annotations

import re

import pytest

from snippets import ROOT, pages

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
OURS = "https://github.com/prefork/prefork/"
SITE = "https://prefork.github.io/prefork/"
MORE = ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "examples/README.md"]
PAGES = [*pages(), *(ROOT / name for name in MORE), ROOT / "tests" / "README.md"]


def links(text: str) -> list[str]:
    """But for those in code."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    return [a or b for a, b in LINK.findall(text)]


def anchors(page) -> set[str]:
    """As GitHub and MyST make them of headlines."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headlines = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    explicit = re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", line.lower().replace("`", "")) for line in headlines}
    return {slug.strip().replace(" ", "-") for slug in slugs} | set(explicit)


def leads_to(page, anchor) -> bool:
    return not anchor or page.suffix != ".md" or anchor in anchors(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    wrong = []
    for link in links(page.read_text()):
        target, _, anchor = link.partition("#")
        if link.startswith(SITE):
            path = ROOT / "docs" / (target.removeprefix(SITE) or "index.html")
            there = path.with_suffix(".md")
        elif link.startswith(OURS):
            kind, _, path = target.removeprefix(OURS).partition("/main/")
            if kind not in ("blob", "tree", "raw"):
                continue
            there = ROOT / path
        elif re.match(r"[a-z]+:", link):
            continue
        else:
            there = page.parent / target if target else page
        if not there.exists() or not leads_to(there, anchor):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES[:1], ids=["README.md"])
def test_links_of_the_readme_are_absolute(page):
    """It is shown elsewhere, too: by package indexes."""
    assert [link for link in links(page.read_text()) if not link.startswith("https://")] == []
