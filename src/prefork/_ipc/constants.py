"""Pickles that several jobs have in common: each is sent to a worker beside them, in a file.

The file is sealed, so that whoever has it cannot change what others see. Its first piece is the
*key*, by which a worker tells whether it has this already. The descriptor goes along with a job, by
the same way as that of a large call, and is closed once the file is mapped; so a job that is taken
back takes it along, and a worker that is new has nothing that it should not.

    key, pickle, its out-of-band buffers …

Where there can be no file, or its descriptor cannot be sent, the pieces are copied instead, through
the channel's annex (`payload.py`).

A job holds its constants until it is resolved. Which these are, is noted while it is pickled
(`Mentions`). When one is held by nobody any more, the pools of this process hear of it (`watch`),
and tell their workers.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

from prefork._ipc.file_memory import file_memory
from prefork._ipc.memfd import BEST, MemoryFile, Transport
from prefork._ipc.payload import MOST_FDS, Payload
from prefork._ipc.pieces import pieces_of, write_end, write_pieces
from prefork._system import at_fork

__all__ = [
    "FUNCTION",
    "CallWithConstants",
    "Constant",
    "ConstantFile",
    "Mentions",
    "Use",
    "annexed_constant",
    "hold",
    "mentioning",
    "open_constant",
    "unwatch",
    "watch",
]

FUNCTION: Final = 0
"""The key of a function that each of its jobs unpickles anew."""

MOST_FILES: Final = 128
"""So many of these have a file, in one process: descriptors are to be left for others."""

_KEY: Final = 8  # bytes


class Use:
    """Of all this in this process: in sets and dictionaries, which finalizers may change at any
    moment, on any thread.

    Attributes:
        files: that are open, by their identities.
        shared: the shared objects that there are here, by their keys. As long as there are none, no
            job mentions any.
    """

    files: ClassVar[set[int]] = set()
    shared: ClassVar[dict[int, weakref.ref[Constant]]] = {}

    @classmethod
    def close_in_child(cls) -> None:
        """In a forked child, all of it is the parent's."""
        for reference in list(cls.shared.values()):
            if (constant := reference()) is not None:
                constant.renew_lock()
        cls.files.clear()
        cls.shared.clear()
        _watchers.clear()

    @classmethod
    def counts(cls) -> tuple[int, int]:
        """How many objects were shared by this process and are held, and their bytes."""
        found = [reference() for reference in list(cls.shared.values())]
        sizes = [each.owned for each in found if each is not None and each.owned is not None]
        return len(sizes), sum(sizes)


_watchers: list[weakref.WeakMethod[Callable[[], object]]] = []
at_fork.register(Use)


def watch(on_release: Callable[[], object]) -> None:
    """Have this method called when a constant is held by nobody any more: at any moment, on any
    thread. Its object is not held here."""
    _watchers.append(weakref.WeakMethod(on_release, _watchers.remove))


def unwatch(on_release: Callable[[], object]) -> None:
    for reference in _watchers.copy():
        if reference() == on_release:
            _watchers.remove(reference)


def tell_release() -> None:
    for reference in _watchers.copy():
        if (on_release := reference()) is not None:
            on_release()


class ConstantFile:
    """
    Args:
        key: of the constant.
        pieces: its pickle and buffers, which are copied.

    Raises:
        OSError: there is no memory for a file, or no descriptor.
    """

    def __init__(self, key: int, pieces: list[memoryview], transport: Transport = BEST) -> None:
        self._owner = 0
        if len(Use.files) >= MOST_FILES:
            raise OSError(errno.EMFILE, "as many constants have files as may have")
        self._file = MemoryFile("prefork-constant", transport, sealable=True)
        whole = [memoryview(key.to_bytes(_KEY, "little")), *pieces]
        self._file.size = write_pieces(self._file.fd, 0, whole)
        self._file.seal()
        self._owner = os.getpid()
        Use.files.add(id(self))

    @property
    def place(self) -> tuple[int, int, int]:
        """Where another process may find it: a process id, a descriptor there, its inode."""
        return self._owner, self._file.fd, self._file.inode

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Its descriptor.

        Raises:
            OSError: there is none.
        """
        if self._owner != os.getpid() or self._file.is_lost():
            raise OSError(errno.EBADF, "the file of a constant has been closed here")
        yield self._file.fd

    def __del__(self) -> None:
        if self._owner == os.getpid():
            Use.files.discard(id(self))


class Constant:
    """A pickle with its buffers that jobs have in common.

    Attributes:
        key: of it.
        owned: how many bytes it is, if it is an object that this process has shared.
    """

    def __init__(self, key: int, file: ConstantFile | None, owned: int | None = None) -> None:
        self.key = key
        self.owned = owned
        self._file = file

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of its file, to be sent.

        Raises:
            OSError: there is none.
        """
        if self._file is None:
            raise OSError(errno.EBADF, "this constant has no file")
        with self._file.opened() as fd:
            yield fd

    def pieces(self) -> list[memoryview]:
        """The pickle and its buffers, which cannot be written to.

        Raises:
            OSError: they cannot be had.
        """
        with self.opened() as fd:
            return pieces_of(file_memory(fd, read_only=True))[1:]

    def write(self, fd: int, start: int) -> int:
        """Copy it into another file; see `write_pieces`."""
        return write_pieces(
            fd, start, [memoryview(self.key.to_bytes(_KEY, "little")), *self.pieces()]
        )

    def renew_lock(self) -> None:
        """In a forked child: whoever has a lock of it in the parent will not release it here."""

    def others(self) -> tuple[Constant, ...]:
        """What is needed beside it."""
        return ()


class CallWithConstants(Payload):
    """A call and the constants that go along with it: all to be copied to the annex."""

    def __init__(self, call: Payload, constants: list[Constant]) -> None:
        super().__init__(b"")
        self.fds = call.fds
        self._call, self._constants = call, constants

    def write(self, fd: int, start: int) -> int:
        end = self._call.write(fd, start)
        for each in self._constants:
            end = each.write(fd, end)
        return write_end(fd, end)


# ---- in a worker


def _key_of(pieces: list[memoryview]) -> int:
    if len(pieces) < 2 or pieces[0].nbytes != _KEY:
        raise OSError("a constant has come without its key")
    return int.from_bytes(pieces[0], "little")


def open_constant(fd: int) -> tuple[int, list[memoryview]]:
    """Map a file that has come: the key; then the pickle and its buffers, which may be written to
    only if it is a function's.

    Raises:
        OSError: there is no memory for it, or it is none.
    """
    try:
        pieces = pieces_of(file_memory(fd, read_only=True))
        key = _key_of(pieces)
        if key == FUNCTION:
            pieces = pieces_of(file_memory(fd))
        return key, pieces[1:]
    except (ValueError, TypeError) as exc:
        raise OSError(f"a constant came as a file that holds none: {exc}") from exc


def annexed_constant(pieces: list[memoryview]) -> tuple[int, list[memoryview]]:
    """The same, of copies."""
    key = _key_of(pieces)
    return key, pieces[1:] if key == FUNCTION else [piece.toreadonly() for piece in pieces[1:]]


# ---- what a job has


class _Here(threading.local):
    # Of what is being pickled for a job; what was interrupted before its end counts no more as
    # soon as nobody has it.
    mentions: weakref.ref[Mentions] | None = None


_here = _Here()


class Mentions:
    """What this thread pickles from here on, up to the `end`, is for a job, which is to hold the
    constants that are mentioned.

    Attributes:
        found: these; some may be there twice.
    """

    def __init__(self) -> None:
        self.found: list[Constant] = []
        self._before, _here.mentions = _here.mentions, weakref.ref(self)

    def end(self) -> None:
        _here.mentions = self._before


@contextmanager
def mentioning() -> Iterator[list[Constant]]:
    """The same, of what is pickled in here."""
    mentions = Mentions()
    try:
        yield mentions.found
    finally:
        mentions.end()


def mention(constant: Constant) -> bool:
    """It is being pickled; whether that is for a job."""
    if _here.mentions is None or (mentions := _here.mentions()) is None:
        return False
    mentions.found.append(constant)
    return True


def hold(constants: Iterable[Constant]) -> tuple[Constant, ...]:
    """These, and what they need, each once.

    Raises:
        ValueError: they are too many.
    """
    found: dict[int, Constant] = {}
    todo = [*constants]
    while todo:
        constant = todo.pop()
        if constant.key not in found:
            found[constant.key] = constant
            todo += constant.others()
    if len(found) > MOST_FDS:
        raise ValueError(f"a call can have {MOST_FDS} shared objects, and this one has more")
    return tuple(found.values())
