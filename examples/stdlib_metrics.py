"""Measure Python modules: `prefork map examples/stdlib_metrics.py:measure --glob 'src/**/*.py'`.

`measure` reads, tokenizes, parses and compiles one file, and counts what it finds. A file that is
no valid Python, as some of the standard library's test data, is measured as such; it is no failure.

A module may add figures of its own by a function `__measure__()`, which is then called. It is
somebody else's code, and may do anything: crash the interpreter, never come back, raise.
"""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

BRANCHES = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.With, ast.AsyncWith,
    ast.Assert, ast.comprehension, ast.match_case,
)  # fmt: skip
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
HOOK = "__measure__"


def measure(path: str) -> dict[str, Any]:
    """Figures about one Python file."""
    source = Path(path).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old code has its deprecated spots
        try:
            tree = ast.parse(source, path)
            code = compile(tree, path, "exec", dont_inherit=True)
            lines = count_lines(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
            return {"valid": False, "why": f"{type(exc).__name__}: {exc}"}
    kinds = Counter(type(node) for node in ast.walk(tree))
    figures: dict[str, Any] = {
        "valid": True,
        "bytes": len(source),
        **lines,
        "classes": kinds[ast.ClassDef],
        "functions": sum(kinds[kind] for kind in FUNCTIONS),
        "bytecode": sum(len(part.co_code) for part in code_objects(code)),
        **complexity(tree),
    }
    if any(isinstance(node, FUNCTIONS) and node.name == HOOK for node in tree.body):
        namespace: dict[str, Any] = {"__name__": Path(path).stem, "__file__": path}
        exec(code, namespace)
        figures["own"] = namespace[HOOK]()
    return figures


def count_lines(source: bytes) -> dict[str, int]:
    """How many lines there are, and on how many there is code or a comment."""
    code, comments = set(), set()
    blank = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in blank and token.type != tokenize.ENDMARKER:
            code.update(range(token.start[0], token.end[0] + 1))
    return {"lines": source.count(b"\n"), "code": len(code), "comments": len(comments)}


def complexity(tree: ast.Module) -> dict[str, Any]:
    """McCabe's cyclomatic complexity of the functions: one more than their branches."""
    by_name = dict(function_complexities(tree, ""))
    worst = max(by_name, key=lambda name: by_name[name], default=None)
    return {
        "complexity": round(statistics.fmean(by_name.values()), 2) if by_name else 0,
        "worst": by_name[worst] if worst is not None else 0,
        "worst_function": worst,
    }


def function_complexities(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, 1 + sum(branches(part) for part in ast.walk(child))
            yield from function_complexities(child, f"{name}.")
        else:
            yield from function_complexities(child, prefix)


def branches(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    return isinstance(node, BRANCHES)


def code_objects(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_objects(constant)
