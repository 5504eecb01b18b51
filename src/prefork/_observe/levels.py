"""Which records loggers let through, told to workers that have not inherited it."""

from __future__ import annotations

import logging
from typing import NamedTuple

__all__ = ["Levels", "levels_now"]


class Levels(NamedTuple):
    """Of all loggers of a process.

    Attributes:
        root: of the root logger.
        others: of those that have one, by name.
        disabled: their names.
        disable: what `logging.disable` was called with.
        names: of levels.
    """

    root: int
    others: dict[str, int]
    disabled: list[str]
    disable: int
    names: dict[str, int]

    def set(self) -> None:
        """Let the same through here."""
        for name, level in self.names.items():
            logging.addLevelName(level, name)
        logging.disable(self.disable)
        logging.getLogger().setLevel(self.root)
        for name, level in self.others.items():
            logging.getLogger(name).setLevel(level)
        for name in self.disabled:
            logging.getLogger(name).disabled = True


def levels_now() -> Levels:
    loggers = {
        name: logger
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger)
    }
    return Levels(
        int(logging.root.level),
        {name: int(logger.level) for name, logger in loggers.items() if logger.level},
        [name for name, logger in loggers.items() if logger.disabled],
        int(logging.root.manager.disable),
        dict(logging.getLevelNamesMapping()),
    )
