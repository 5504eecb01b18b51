"""What a node's worker process calls for each item of a chunk: texts in, texts out.

Before each item it looks whether the node still holds the client's lease: its end stands on the
`Board`, memory that the node's main process shares with its workers. So a node that cannot reach
its client, or whose main process is stopped, begins nothing more from that moment on, whatever has
been handed to its processes already. What was not begun for that reason, comes back as `NOT_RUN`.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import traceback
from typing import Any, Final

from prefork._ipc.encoding_error import MaybeEncodingError
from prefork._worker.seeding import Seeded
from prefork.cluster.clock import lease_time
from prefork.cluster.codecs import ALL_CODECS, write_error
from prefork.cluster.errors import NotAllowedError
from prefork.cluster.names import code_hash, find

__all__ = ["CALL", "FAILED", "NOT_RUN", "ONE", "STAR", "TIMED", "Board", "Runner"]

NOT_RUN: Final = "?"
"""What comes back for an item that was not begun. No text of a codec's is this."""
FAILED: Final = "!"
"""What the text of an error begins with. No text of a codec's does."""

# How a function is applied to what the text of an item says.
CALL: Final = "call"  # a pair: its positional arguments, and those by name
ONE: Final = "one"  # its only argument
STAR: Final = "star"  # its positional arguments
TIMED: Final = "timed"  # as `CALL`; the result is a list: the value, seconds, the process id

LONGEST: Final = 1.0
"""Seconds after which no further item of a chunk is begun: the rest goes back, for others to take.
Chunks are made to take a tenth of that, by what the items before have taken."""
_SLOT: Final = struct.Struct("=dQ")


class Board:
    """Until when items of each client may be begun: seconds of `lease_time`, which all processes of
    a machine share.

    To be made before the worker processes are forked.
    """

    def __init__(self, slots: int) -> None:
        self._memory = mmap.mmap(-1, slots * _SLOT.size)

    def write(self, slot: int, token: int, until: float) -> None:
        """Whose slot this is, and until when. A slot changes its owner only when nothing of the
        one before can be running or waiting any more."""
        _SLOT.pack_into(self._memory, slot * _SLOT.size, until, token)

    def allows(self, slot: int, token: int, now: float) -> bool:
        until, owner = _SLOT.unpack_from(self._memory, slot * _SLOT.size)
        return bool(owner == token and now < until)


board: Board | None = None
"""This node's, in its main process and in the workers, which are forked from it."""


class Runner:
    """Calls one function for the items of one chunk.

    Args:
        name: of the function; it has been checked against what is allowed.
        how: `CALL`, `ONE` or `STAR`.
        codec: the name of that.
        slot, token: of the lease, on the board.
        code: the hash of the source that the client has; "": it does not say.
        seed: of the random numbers; None: it has none. Then the texts of items begin with the
            position of each, and a blank.
        value: what the function itself is written down as; "": it is found by its name.
    """

    def __init__(
        self,
        name: str,
        how: str,
        codec: str,
        slot: int,
        token: int,
        code: str,
        seed: int | None,
        value: str = "",
    ) -> None:
        self.name, self._how, self._codec = name, how, ALL_CODECS[codec]
        self._slot, self._token, self._code, self._seed = slot, token, code, seed
        self._value = value
        self._function: Any = None
        self._until = self._began = 0.0
        self._room = self._codec.most_result
        self.__qualname__ = name.partition(":")[2]  # for messages
        self.__module__ = name.partition(":")[0]

    def __reduce__(self) -> tuple[Any, ...]:
        codec = self._codec.name
        given = (self.name, self._how, codec, self._slot, self._token, self._code, self._seed)
        return Runner, (*given, self._value)

    def __call__(self, text: str) -> str:
        now = lease_time()
        if board is None or not board.allows(self._slot, self._token, now):
            return NOT_RUN
        if self._until == 0.0:
            self._until = now + LONGEST
        elif now > self._until or self._room < 0:
            return NOT_RUN
        self._began = time.monotonic()
        try:
            return self._run(text)
        except Exception as exc:
            # Without the frames of this module.
            frames = exc.__traceback__
            while frames is not None and frames.tb_frame.f_globals is globals():
                frames = frames.tb_next
            shown = traceback.format_exception(type(exc), exc, frames or exc.__traceback__)
            run = (time.monotonic() - self._began, os.getpid()) if self._how == TIMED else None
            text = write_error(exc, "".join(shown), run)
            self._room -= len(text)
            return FAILED + text

    def _run(self, text: str) -> str:
        if self._function is None:
            self._function = self._find()
        function = self._function
        if self._seed is not None:
            position, _, text = text.partition(" ")
            function = Seeded(function, self._seed, int(position))
        given = self._codec.read(text)
        self._began = time.monotonic()
        if self._how == ONE:
            value = function(given)
        elif self._how == STAR:
            value = function(*given)
        else:
            args, kwds = given
            value = function(*args, **kwds)
        try:
            whole = value
            if self._how == TIMED:
                whole = [value, time.monotonic() - self._began, os.getpid()]
            result = self._codec.write(whole)
        except Exception as exc:
            raise MaybeEncodingError(exc, value) from exc
        if len(result) > (most := self._codec.most_result):
            raise MaybeEncodingError(
                f"it has {len(result)} bytes: more than {most} do not go through "
                f"{self._codec.way}. Have the function write it to where all machines can read, "
                "and return its name",
                value,
            )
        self._room -= len(result)
        return result

    def _find(self) -> Any:
        if self._value:
            return self._codec.read(self._value)
        function = find(self.name)
        if self._code and (found := code_hash(self.name)) != self._code:
            raise NotAllowedError(
                f"{self.name}: the source of its module is another one on this node ({found}) than "
                f"where the call comes from ({self._code}): install the same version on both"
            )
        return function
