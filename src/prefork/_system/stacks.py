"""The Python stack of a worker, whatever it is doing.

`faulthandler` writes it, in C and without the interpreter's help, into memory that the pool reads:

    crash        SIGSEGV and its like: the process writes its stack, and ends
    LAST_WORDS   the same at the pool's wish: so it ends a worker that is stuck
    LOOK         the process writes its stack, and goes on
"""

from __future__ import annotations

import faulthandler
import os
import signal

from prefork._system.signals import DEFAULT, IGNORE, set_action, unblock

__all__ = ["BOX", "LAST_WORDS", "LOOK", "SIGNALS", "BlackBox", "install", "uninstall"]

BOX = 1 << 16  # bytes of text that are kept
_HAS_REAL_TIME = hasattr(signal, "SIGRTMAX")
# Signals that hardly anybody else uses, and whose default is to end the process.
LAST_WORDS: int = signal.SIGRTMAX - 1 if _HAS_REAL_TIME else signal.SIGKILL
LOOK: int | None = signal.SIGRTMAX - 2 if _HAS_REAL_TIME else None
SIGNALS: tuple[int, ...] = () if LOOK is None else (LOOK, LAST_WORDS)
"""Those that are to come through in a worker, besides what it wants itself."""
_WORKER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_worker", "")


def install(fd: int) -> None:
    """In a worker: write stacks to this file, from where it stands now."""
    faulthandler.enable(fd)
    if LOOK is not None:
        # What it was before is what follows on the stack (`chain`), and what it will be again.
        set_action(LAST_WORDS, DEFAULT)
        faulthandler.register(LAST_WORDS, fd, all_threads=True, chain=True)
        set_action(LOOK, IGNORE)
        faulthandler.register(LOOK, fd, all_threads=True, chain=False)
        unblock(*SIGNALS)
    os.register_at_fork(after_in_child=uninstall)  # what a task forks has no place in the box


def uninstall() -> None:
    """Write no more stacks."""
    faulthandler.disable()
    if LOOK is not None:
        faulthandler.unregister(LOOK)
        faulthandler.unregister(LAST_WORDS)


class BlackBox:
    """The pool's side: a part of a file, and of its mapping.

    Args:
        fd: of the file. Where a worker writes next is a property of the open file, which pool
            and worker share.
        view: the mapped part.
        position: of that part in the file.
    """

    def __init__(self, fd: int, view: memoryview, position: int) -> None:
        self._fd = fd
        self._view = view
        self._position = position
        self.rewind()

    def rewind(self) -> None:
        """Empty it: what the worker writes next is all there is."""
        os.lseek(self._fd, self._position, os.SEEK_SET)
        if self._view[0]:
            self._view[:] = bytes(len(self._view))

    def text(self) -> str:
        """The stacks from the user's functions on, or "" if none was written."""
        if not self._view[0]:
            return ""
        written = bytes(self._view).partition(b"\0")[0]
        return _without_own_frames(written.decode("utf-8", "replace"))

    def close(self) -> None:
        self._view.release()


def _without_own_frames(text: str) -> str:
    """The most recent call comes first: what called the user's function is left out."""
    kept: list[str] = []
    in_own = False
    for line in text.splitlines():
        is_frame = line.startswith("  ")
        in_own = is_frame and (in_own or f'File "{_WORKER}' in line)
        if not in_own:
            kept.append(line)
    return "\n".join(kept).strip()
