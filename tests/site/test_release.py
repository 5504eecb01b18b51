"""What a release says of itself is said in one voice."""

from __future__ import annotations

import re
import tomllib

import prefork
from snippets import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]


def test_the_version_is_the_same_everywhere():
    assert prefork.__version__ == VERSION
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def test_each_python_that_is_supported_is_built_and_tested():
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert f">={named[0]}" == PROJECT["project"]["requires-python"]
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", ci)[1]) == named
    built = re.search(r"cp3\{(.*)\}", PROJECT["tool"]["cibuildwheel"]["build"])[1]
    assert [f"3.{minor}" for minor in built.split(",")] == named


def test_the_readme_shows_the_first_example_with_all_that_it_prints():
    """Which the tests of examples compare, the log included."""
    readme = (ROOT / "README.md").read_text()
    (output,) = re.findall(r"```text\n(.*?)```", readme, re.DOTALL)
    assert re.search(r"^worker \d+ \(", output, re.MULTILINE)


def test_the_reference_has_all_that_is_public():
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    named = set(re.findall(r"auto(?:class|exception|function):: (\w+)$", page, re.MULTILINE))
    of_the_library = {"RemoteTraceback", "TimeoutError"}
    assert set(prefork.__all__) - of_the_library == named
