"""`gzip -k {}`: a command with placeholders → what is run for an input.

Without a shell, each word of the template is one argument, whatever the input holds. With one, the
template becomes a script once, in which the placeholders are the script's parameters: no shell ever
parses an input, so none can be a command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import PurePath

from prefork.cli.target import TargetError

__all__ = ["Template"]

VALUES: dict[str, Callable[[int, str], str]] = {
    "": lambda number, text: text,
    "name": lambda number, text: PurePath(text).name,
    "stem": lambda number, text: PurePath(text).stem,
    "parent": lambda number, text: str(PurePath(text).parent),
    "n": lambda number, text: str(number),
}
"""What stands for a placeholder: of the number of an input, and its text."""

_ANY = re.compile(r"(?<!\$)\{(\{\w*\}|\w*)\}")  # {{name}} is {name} itself; ${name} is the shell's
_QUOTES = re.compile(rf"\\.|\$\(|[()'\"`]|{_ANY.pattern}", re.DOTALL)


class Template:
    """What is run, with holes.

    Args:
        words: of the command; with `shell`, a script.
        shell: whether they are for the shell.

    Raises:
        TargetError: a placeholder is unknown, or stands where nothing can be put in; or it is
            empty.
    """

    def __init__(self, words: list[str], shell: bool) -> None:
        if not words or not words[0]:
            raise TargetError("there is no command")
        self.program = "sh" if shell else words[0]
        names = [name for word in words for name in _ANY.findall(word) if name[:1] != "{"]
        for name in names:
            if name not in VALUES:
                known = ", ".join(f"{{{each}}}" for each in VALUES)
                raise TargetError(
                    f"{{{name}}} is no placeholder: there are {known}; {{{{{name}}}}} is the text "
                    f"{{{name}}} itself"
                )
        if not names:
            words = [*words[:-1], f"{words[-1]} {{}}"] if shell else [*words, "{}"]
        if shell:
            parameters = list(dict.fromkeys(["", *names]))
            words = ["sh", "-c", _script(" ".join(words), parameters), "sh"]
            self._words = [*map(_literal, words), *map(_value, parameters)]
        else:
            self._words = list(map(_filled, words))

    def fill(self, number: int, text: str) -> list[str]:
        """The arguments of the process."""
        return [word(number, text) for word in self._words]


def split(command: str) -> list[str]:
    """The words of a command that is written as for a shell, but needs none.

    Raises:
        TargetError: a quotation mark is not closed.
    """
    try:
        return shlex.split(command)
    except ValueError as exc:
        raise TargetError(f"{command!r} cannot be split into words: {exc}") from None


Word = Callable[[int, str], str]


def _literal(word: str) -> Word:
    return lambda number, text: word


def _value(name: str) -> Word:
    return VALUES[name]


def _filled(word: str) -> Word:
    if not _ANY.search(word):
        return _literal(word)

    def fill(number: int, text: str) -> str:
        return _ANY.sub(
            lambda found: found[1] if found[1][:1] == "{" else VALUES[found[1]](number, text), word
        )

    return fill


def _script(template: str, parameters: list[str]) -> str:
    """The template with its placeholders as parameters, which need quotation marks unless they
    are in some."""
    inside = [""]  # the quotation marks and parentheses that are open

    def replace(found: re.Match[str]) -> str:
        token = found[0]
        if found[1] is not None:
            if found[1][:1] == "{":
                return found[1]
            if inside[-1] == "'":
                raise TargetError(f"{token} is inside of '…', where the shell puts nothing in")
            parameter = f"${{{parameters.index(found[1]) + 1}}}"
            return parameter if inside[-1] == '"' else f'"{parameter}"'
        if inside[-1] == "'":
            if token == "'":
                inside.pop()
        elif token in ("'", '"', "`") and token == inside[-1]:
            inside.pop()
        elif token == ")":
            if inside[-1] == "(":
                inside.pop()
        elif (token == "'" and inside[-1] != '"') or token in ('"', "`", "$("):
            inside.append(token[-1])
        elif token == "(" and inside[-1] != '"':
            inside.append(token)
        return token

    return _QUOTES.sub(replace, template)
