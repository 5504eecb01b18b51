"""Objects that are sent to each worker once, and are there in one copy for all of them.

    share(obj) ─► Shared ─► in a job's pickle: a key ─► Shared ─► get()
                    │                                     ▲
               SharedObject: a sealed file ─► beside the first such job ─► SharedObject, mapped

A `Shared` is a handle; what it stands for is a `SharedObject`, of which a process has one for each
key. That of the process which has made it owns the file. A worker gets it beside the job that
mentions it, keeps it for later ones, and forgets it when the pool says that it is held by nobody.
Where a handle has come by another way, as an argument of an initializer does, the file is opened
where its owner has it.
"""

from __future__ import annotations

import errno
import os
import pickle
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from prefork._describe import type_name
from prefork._ipc.constants import (
    Constant,
    ConstantFile,
    Use,
    mention,
    mentioning,
    tell_release,
)
from prefork._ipc.payload import give_up_reserve, keep_reserve
from prefork._ipc.pickling import is_unknown_name, keeper, load_by_value, pack, unpack
from prefork._public import public
from prefork._system import at_fork
from prefork._system.locks import RLock
from prefork.errors import PreforkError

__all__ = ["Shared", "arrived", "is_held", "share"]

T = TypeVar("T")

_MAIN: Final = b"__main__"
Place = tuple[int, int, int]
"""Where the owner has the file: see `ConstantFile.place`."""


def _find(key: int) -> SharedObject | None:
    """The one of this process, if there is one."""
    reference = Use.shared.get(key)
    found = None if reference is None else reference()
    assert found is None or isinstance(found, SharedObject)
    return found


def _add(shared: SharedObject) -> SharedObject:
    Use.shared[shared.key] = weakref.ref(shared)
    return shared


class SharedObject(Constant):
    """
    Args:
        file: if it is this process's own.
        pieces: definitions that go along (see `by_value.py`), the pickle, its buffers; None: they
            are in the file.
        place: where the file is, if another process has it.
        others: what is mentioned in the pickle.
        owned: its bytes, if it was shared by this process.
    """

    def __init__(
        self,
        key: int,
        file: ConstantFile | None = None,
        pieces: list[memoryview] | None = None,
        place: Place | None = None,
        others: tuple[Constant, ...] = (),
        owned: int | None = None,
    ) -> None:
        super().__init__(key, file, owned)
        self.place = place if file is None else file.place
        self._pieces = pieces
        self._others = others
        self._lock = RLock()
        self._is_loaded = False
        self._value: Any = None
        self._pid = os.getpid()

    @contextmanager
    def opened(self) -> Iterator[int]:
        if self._file is not None and self._pid == os.getpid():
            with self._file.opened() as fd:
                yield fd
            return
        if self.place is None:
            raise OSError(errno.EBADF, "this shared object has no file")
        with _opened_at(self.place) as fd:
            yield fd

    def pieces(self) -> list[memoryview]:
        if self._pieces is None:
            self._pieces = super().pieces()
        return self._pieces

    def have(self, pieces: list[memoryview]) -> None:
        """They have come: they need not be looked for."""
        if self._pieces is None and not self._is_loaded:
            self._pieces = pieces

    def others(self) -> tuple[Constant, ...]:
        return self._others

    def value(self) -> Any:
        """The object, which is unpickled once."""
        with self._lock:
            if not self._is_loaded:
                definitions, pickled, *buffers = self.pieces()
                if definitions:
                    from prefork._ipc.arrival import apply

                    apply(pickle.loads(definitions))
                self._value = unpack(pickled, buffers)
                self._is_loaded = True
            return self._value

    def renew_lock(self) -> None:
        self._lock = RLock()

    def learn(self, place: Place | None) -> None:
        """It is there, too."""
        if self.place is None:
            self.place = place

    def __del__(self) -> None:
        if sys.is_finalizing() or self._pid != os.getpid():
            return
        if _find(self.key) in (self, None):
            Use.shared.pop(self.key, None)
        tell_release()


@contextmanager
def _opened_at(place: Place) -> Iterator[int]:
    """The file, opened anew where another process has it."""
    pid, number, inode = place
    fds = at_fork.Descriptors()
    try:
        with at_fork.creating():
            path = f"/proc/{pid}/fd/{number}"
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            # Looked at before it is opened, too: to open a device or a FIFO is not without effects.
            if os.stat(path).st_ino != inode:
                raise FileNotFoundError(errno.ENOENT, "another file is there now")
            try:
                fd = fds.make(os.open, path, flags)
            except OSError as exc:
                if exc.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                give_up_reserve()
                fd = fds.make(os.open, path, flags)
        if os.fstat(fd).st_ino != inode:
            raise FileNotFoundError(errno.ENOENT, "another file is there now")
        yield fd
    finally:
        fds.close()
        keep_reserve()


def is_held(key: int) -> bool:
    """Whether anybody in this process needs it."""
    return _find(key) is not None


def arrived(key: int, pieces: list[memoryview]) -> SharedObject:
    """In a worker: it has come beside a job. Whoever this is returned to keeps it there."""
    found = _find(key)
    if found is None:
        return _add(SharedObject(key, pieces=pieces))
    found.have(pieces)
    return found


# ---- the handle


@public
class Shared(Generic[T]):
    """A handle of an object that is there in one copy for all workers, as `share` returns it. It is
    cheap to send: in arguments and results, in what a function or an initializer is made with.

    The object's memory is freed when all handles of it are gone or released, and the jobs that were
    given one are over.

    Attributes:
        nbytes: how many bytes it is, pickled (int).
    """

    def __init__(self, shared: SharedObject, kind: str, nbytes: int) -> None:
        self._shared: SharedObject | None = shared
        self._kind = kind
        self.nbytes = nbytes

    def get(self) -> T:
        """The object: the same one for all calls in this process. Its buffers, such as the data of
        arrays, cannot be written to; who wants to change them makes a copy.

        Raises:
            ValueError: this handle was released.
            PreforkError: the object is not there any more, or not in reach of this process.
            Exception: what unpickling it raises.
        """
        shared = self._held()
        try:
            value: T = shared.value()
        except OSError as exc:
            where = "" if shared.place is None else f" by process {shared.place[0]}"
            raise PreforkError(
                f"{self!r}, shared{where}, cannot be had in process {os.getpid()}: its owner has "
                "ended or has released it, or runs on another machine, or as another user "
                f"({exc})"
            ) from exc
        return value

    def release(self) -> None:
        """Let it go: this handle stands for nothing any more. Jobs that were given it go on."""
        self._shared = None

    def _held(self) -> SharedObject:
        if self._shared is None:
            raise ValueError(f"this shared {self._kind} was released: share it again")
        return self._shared

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __reduce__(self) -> tuple[Any, ...]:
        shared = self._held()
        whole = None
        if not mention(shared) and shared.place is None:  # nobody else would find it
            whole = [bytes(piece) for piece in shared.pieces()]
        return _arrive, (type(self), shared.key, shared.place, self._kind, self.nbytes, whole)

    def __repr__(self) -> str:
        state = ", released" if self._shared is None else ""
        return f"<Shared {self._kind}, {self.nbytes} bytes{state}>"


def _arrive(
    cls: type[Shared[Any]],
    key: int,
    place: Place | None,
    kind: str,
    nbytes: int,
    whole: list[bytes] | None,
) -> Shared[Any]:
    shared = _find(key)
    if shared is None:
        pieces = None if whole is None else [memoryview(piece) for piece in whole]
        shared = _add(SharedObject(key, pieces=pieces, place=place))
    shared.learn(place)
    return cls(shared, kind, nbytes)


@public
def share(obj: T) -> Shared[T]:
    """Have one copy of an object for all workers, of any pool.

    It is pickled now; a worker unpickles it when a task first asks for it. Large buffers (arrays of
    NumPy and Arrow, columns of pandas, whatever leaves them out of its pickle) lie in memory that
    all processes share, and that nobody can write to. The rest each process has of its own; bytes
    and strings belong to that.

    Args:
        obj: what can be pickled. Later changes to it are not seen by the workers.

    Raises:
        Exception: what pickling it raises.
    """
    buffers: list[memoryview] = []
    with mentioning() as others:
        try:
            definitions, pickled = _pickled(obj, buffers)
        except Exception as exc:
            exc.add_note(f"while pickling a {type_name(obj)} to share it with worker processes")
            raise
    pieces = [memoryview(definitions), memoryview(pickled), *buffers]
    nbytes = sum(piece.nbytes for piece in pieces)
    key = int.from_bytes(os.urandom(7), "little") + 1
    file, kept = None, None
    try:
        file = ConstantFile(key, pieces)
    except OSError:  # no descriptor is left for it, or no memory for a file
        kept = [memoryview(piece.tobytes()).toreadonly() for piece in pieces]
    shared = SharedObject(key, file, kept, None, tuple(others), nbytes)
    return Shared(_add(shared), type_name(obj), nbytes)


def _pickled(obj: object, buffers: list[memoryview]) -> tuple[bytes, bytes]:
    """What has to go along of `__main__`, and the pickle."""
    fds: list[int] = []
    try:
        pickled, views = pack(obj, fds, results=False)
    except Exception as exc:
        if not is_unknown_name(exc):
            raise
        return _pickled_by_value(load_by_value(exc, obj), obj, buffers)
    if fds:
        at_fork.Descriptors(*fds).close()
        raise pickle.PicklingError("it has descriptors, which go with arguments only")
    if _MAIN in pickled and _is_typed_in():
        return _pickled_by_value(load_by_value(None, obj), obj, buffers)
    buffers += views
    return b"", pickled


def _pickled_by_value(by_value: Any, obj: object, buffers: list[memoryview]) -> tuple[bytes, bytes]:
    from prefork._ipc.main_module import WorkersMain

    main = WorkersMain(forks=False)
    found: tuple[bytes, bytes] = by_value.dumps_with_definitions(main, obj, None, keeper(buffers))
    return found


def _is_typed_in() -> bool:
    from prefork._ipc.main_module import is_typed_in

    return is_typed_in()
