"""`MODULE:FUNCTION` → the function, here and in any worker, whatever its start method.

What travels is the text, never the function: a worker imports it for itself.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Target", "TargetError"]


class TargetError(Exception):
    """There is no such function; the message says what is wrong with which part."""


@dataclass(frozen=True)
class Target:
    """A function by name.

    Attributes:
        module: a dotted module name, or the path of a `.py` file.
        attribute: what to take from it; dots go deeper.
        directory: where it may find its neighbours: the current one for a module, which goes to
            the front of `sys.path`, as with `python -m`; a file's own goes to the end, so that
            its other files hide no standard module from the workers.
    """

    module: str
    attribute: str
    directory: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """From `pkg.module:name`, `pkg.module:object.method` or `path/to/file.py:name`.

        Raises:
            TargetError: it looks like none of them.
        """
        module, colon, attribute = text.rpartition(":")
        if not colon or not module or not attribute:
            raise TargetError(
                f"{text!r} is not of the form MODULE:FUNCTION, such as json:loads "
                "or tools/measure.py:main"
            )
        if module.endswith(".py") or os.sep in module:
            path = Path(module).absolute()
            if (path.parent / "__init__.py").exists():
                return cls(*_in_package(path, attribute))
            return cls(str(path), attribute, str(path.parent))
        return cls(module, attribute, os.getcwd())

    @property
    def is_file(self) -> bool:
        return os.sep in self.module

    def __str__(self) -> str:
        module = self.module
        if self.is_file:
            module = min(module, os.path.relpath(module), key=len)
        return f"{module}:{self.attribute}"

    def find(self) -> Any:
        """Import what is there, whatever it is.

        Raises:
            TargetError: it cannot be imported, or is not there.
        """
        if self.directory not in sys.path:
            sys.path.insert(len(sys.path) if self.is_file else 0, self.directory)
        found: Any = self._import()
        for name in self.attribute.split("."):
            found = self._get(found, name)
        return found

    def load(self) -> Callable[..., Any]:
        """Import it.

        Raises:
            TargetError: it cannot be imported, is not there, or cannot be called.
        """
        found = self.find()
        if not callable(found):
            raise TargetError(f"{self} is not a function but {_a(type(found).__name__)}")
        if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__):
            raise TargetError(f"{self} is async: wrap it, as in `return asyncio.run(f(x))`")
        return found  # type: ignore[no-any-return]

    def source(self) -> str:
        """A fingerprint of the file that the function's module is in; "" if there is none."""
        with contextlib.suppress(TypeError, OSError):
            file = inspect.getsourcefile(sys.modules[self.load().__module__])
            if file is not None:
                return hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return ""

    def _import(self) -> ModuleType:
        try:
            if self.is_file:
                return import_file(self.module)
            return importlib.import_module(self.module)
        except ModuleNotFoundError as exc:
            if exc.name is None or not f"{self.module}.".startswith(f"{exc.name}."):
                raise TargetError(self._import_failure(exc)) from None
            where = f"(looked in {self.directory} and where Python looks)"
            raise TargetError(f"there is no module {exc.name!r} {where}") from None
        except OSError as exc:
            if self.is_file and exc.filename == self.module:
                raise TargetError(f"cannot read {self.module}: {exc.strerror}") from None
            raise TargetError(self._import_failure(exc)) from None
        except (Exception, SystemExit) as exc:
            raise TargetError(self._import_failure(exc)) from None

    def _import_failure(self, exc: BaseException) -> str:
        """The traceback, from the module's own first line on."""
        frames = exc.__traceback__
        while frames is not None and _is_machinery(frames.tb_frame.f_code.co_filename):
            frames = frames.tb_next
        text = "".join(traceback.format_exception(type(exc), exc, frames)).rstrip()
        return f"importing {self.module} failed:\n{text}"

    def _get(self, owner: Any, name: str) -> Any:
        try:
            return getattr(owner, name)
        except AttributeError:
            pass
        what = "module" if isinstance(owner, ModuleType) else type(owner).__name__
        label = getattr(owner, "__name__", repr(owner))
        likely = difflib.get_close_matches(name, [n for n in dir(owner) if n[0] != "_"], n=1)
        hint = f"; did you mean {likely[0]!r}?" if likely else ""
        raise TargetError(f"{what} {label!r} has no {name!r}{hint}")


def _in_package(path: Path, attribute: str) -> tuple[str, str, str]:
    """The file of a package is imported as what it is there, so that it may import its neighbours
    relatively: `a/b/c.py` as `b.c`, if `a` is no package."""
    names = [] if path.stem == "__init__" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names), attribute, str(folder)


def import_file(path: str) -> ModuleType:
    """Import a `.py` file under its own name, if that is free, else under another one."""
    name = Path(path).stem
    known = sys.modules.get(name)
    if known is not None and _is_from(known, path):
        return known
    if known is not None or name in sys.stdlib_module_names:
        name = f"_prefork_{name}"
        known = sys.modules.get(name)
        if known is not None and _is_from(known, path):
            return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} is not a Python file: give a module's name or a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_from(module: ModuleType, path: str) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and os.path.realpath(file) == os.path.realpath(path)


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename in (__file__, importlib.__file__)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"
