"""How Sphinx makes the site of these pages: `make docs`.

Sphinx, and not MkDocs: it serves longer (in 2026 MkDocs 1 and what its pages and references were
made with are only kept alive), reads the types from the code, and needs no network to search.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent / "src"), str(HERE.parent / "tests")]

import prefork  # noqa: E402

project = "prefork"
author = "the prefork developers"
project_copyright = author
version = release = prefork.__version__

extensions = [
    "click_options",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "plain_backticks",
    "promises_table",
    "sequence",
]
exclude_patterns = ["_*", "**/_*"]
nitpicky = False
suppress_warnings: list[str] = []

# ---- pages

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

# ---- the reference

# In docstrings `this` is code. What is a name of ours becomes a link: see `plain_backticks`.
default_role = "plain"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["celery", "kombu"]
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

# Only for the names: it builds without a network, and then these are no links.
intersphinx_mapping: dict[str, tuple[str, str | None]] = {}

# ---- how it looks

html_theme = "furo"
html_title = "prefork"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["prefork.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "source_repository": "https://github.com/prefork/prefork/",
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {
        "color-brand-primary": "#0b6e4f",
        "color-brand-content": "#0b6e4f",
        "font-stack": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5fd3a5",
        "color-brand-content": "#5fd3a5",
    },
}

# ---- links to other sites: `make docs-links`

linkcheck_ignore = [
    r"https://github\.com/prefork/prefork/(edit|blob|tree)/.*",  # of what is about to be pushed
    r"https://prefork\.github\.io/.*",
]
linkcheck_anchors = False
linkcheck_timeout = 20
