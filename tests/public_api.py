"""What is public: every name that programs may use, with its arguments and their types.

`python tests/public_api.py` writes it to `public_api.txt`, which tells in a review what changes for
users; `unit/test_public_api.py` fails when the two differ.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

RECORD = Path(__file__).with_suffix(".txt")
SOURCE = Path(__file__).parents[1] / "src" / "prefork"

MODULES = ["prefork", "prefork.celery", "prefork.cluster", "prefork.joblib", "prefork.metrics"]
"""Those that users import from; `__all__` tells what. All else is inside."""

OF_OTHERS = {"prefork.celery.TaskPool", "prefork.joblib.PreforkBackend"}
"""Their methods are what celery and joblib ask for; programs only name the class."""

HANDED_OUT = {
    "ApplyResult", "Future", "IMapIterator", "IMapUnorderedIterator", "MapResult", "PoolExecutor",
    "PoolView", "Recording",
}  # fmt: skip
"""Programs get these from a pool, and make none."""

OF_THE_POOL = {
    "begin_wait", "end", "expected", "failure", "give", "has_ended", "has_room",
    "is_waited_for", "items", "job_added", "job_done", "job_started", "limit", "limit_passed",
    "note_added", "note_done", "number", "room", "title", "waiters", "watch",
}  # fmt: skip
"""What the pool itself uses of them."""

HEAD = "# Written by: python tests/public_api.py\n"


def lines() -> Iterator[str]:
    importlib.import_module("prefork.contexts")  # now standard classes are bases of ours
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            yield from recorded(name)  # it needs a package that is not here
            continue
        yield f"\n{name}"
        for public in sorted(names_of(module)):
            yield from describe(f"{name}.{public}", getattr(module, public))
    yield "\nthe command"
    yield from options()
    yield "\nenvironment"
    yield from (f"    {name}" for name in sorted(variables()))


def record() -> str:
    return HEAD + "\n".join(lines()) + "\n"


def recorded(heading: str) -> list[str]:
    """What the record says of it."""
    for section in RECORD.read_text().removeprefix(HEAD).split("\n\n"):
        if section.strip().splitlines()[0] == heading:
            return ["", *section.strip().splitlines()]
    return []


def names_of(module: ModuleType) -> list[str]:
    return list(getattr(module, "__all__", ()))


def describe(path: str, thing: Any) -> Iterator[str]:
    if isinstance(thing, type):
        yield from describe_class(path, thing)
    elif callable(thing):
        yield from describe_call(path, thing)
    else:
        yield f"{path}: {type(thing).__name__}"


def describe_class(path: str, cls: type) -> Iterator[str]:
    bases = [base.__name__ for base in cls.__mro__[1:-1] if is_public_base(base)]
    yield f"{path}({', '.join(bases)})"
    if path in OF_OTHERS:
        return
    if issubclass(cls, enum.Enum):
        yield from (f"    {path}.{member.name} = {member.value!r}" for member in cls)
        return
    names = names_with_homes(cls)
    if cls.__name__ in HANDED_OUT:
        names -= {"__init__", *OF_THE_POOL}
    if "__init__" in names:
        yield from describe_call(f"{path}.__init__", cls.__init__)
    fields = getattr(cls, "_fields", ())
    if fields and cls.__base__ is not tuple:  # it has a constructor of its own
        yield from describe_call(f"{path}.__new__", cls.__new__)
    for field in fields:
        found = next(
            own[field] for base in cls.__mro__ if field in (own := inspect.get_annotations(base))
        )
        yield f"    {path}.{field}: {kind(found)}"
    for name in sorted(names):
        if name.startswith("_") or name in fields:
            continue
        member = inspect.getattr_static(cls, name)
        if isinstance(member, property) and member.fget is not None:
            returned = inspect.get_annotations(member.fget).get("return", "?")
            yield f"    {path}.{name}: {kind(returned)}"
        elif isinstance(member, type):
            yield f"    {path}.{name}: a class"
        elif callable(member) or isinstance(member, (classmethod, staticmethod)):
            yield from describe_call(f"{path}.{name}", getattr(cls, name))
        else:
            yield f"    {path}.{name}"


def is_public_base(base: type) -> bool:
    """Of ours those that users may import; of others all but what has no meaning of its own."""
    if base.__module__.partition(".")[0] == "prefork":
        return base.__module__ == "prefork"
    return base.__module__ not in ("builtins", "typing") or issubclass(base, (BaseException, tuple))


def names_with_homes(cls: type) -> set[str]:
    """Of members that are defined by this project."""
    ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "prefork"]
    return {name for base in ours for name in vars(base)}


def describe_call(path: str, call: Any) -> Iterator[str]:
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        yield f"    {path}(…)"
        return
    yield f"    {path}"
    for parameter in signature.parameters.values():
        if parameter.name not in ("self", "cls"):
            yield f"        {spell(parameter)}"
    if signature.return_annotation is not signature.empty:
        yield f"        -> {kind(signature.return_annotation)}"


def spell(parameter: inspect.Parameter) -> str:
    stars: dict[Any, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    text = stars.get(parameter.kind, "") + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {kind(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        default = parameter.default
        name = getattr(default, "__qualname__", None)
        text += f" = {name or repr(default)}"
    if parameter.kind is parameter.KEYWORD_ONLY:
        text += "  (by its name)"
    return text


def kind(annotation: Any) -> str:
    """The same text on every Python."""
    if annotation is None or annotation is type(None):
        return "None"
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"ForwardRef\('(.*?)'.*?\)", r"\1", text)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)


def options() -> Iterator[str]:
    """Of the command line."""
    try:
        import click

        from prefork.cli.command import cli
    except ImportError:
        yield from recorded("the command")[2:]
        return
    assert isinstance(cli, click.Group)
    for name, command in sorted(cli.commands.items()):
        yield f"    prefork {name}"
        for parameter in command.params:
            flags = " ".join(parameter.opts) if isinstance(parameter, click.Option) else "argument"
            several = " (several)" if parameter.multiple or parameter.nargs == -1 else ""
            yield f"        {flags}: {parameter.type.name}{several}"


def variables() -> set[str]:
    """Of the environment, which the source mentions."""
    sources = (path.read_text() for path in SOURCE.rglob("*.py"))
    return {name for text in sources for name in re.findall(r'"(PREFORK_[A-Z_]+)"', text)}


if __name__ == "__main__":
    RECORD.write_text(record())
