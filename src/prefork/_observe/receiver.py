"""Receives what workers send beside their results: log records, warnings, what they print.

    worker ─► its pipes ─► Receiver, which reads all, always ─► Emitter, which calls the user's

It has a thread that does nothing but read, so no worker ever waits for what is done with it. A
worker's pipes are read to their ends, also of one that was killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from prefork._observe import delivery
from prefork._observe.emitter import Emitter
from prefork._observe.frames import RECORD, Assembler
from prefork._observe.lines import LineSplitter, OutputLine
from prefork._observe.pipes import Pipes, TapEnd
from prefork._observe.settings import Observing
from prefork._system.log import CRITICAL, Log
from prefork._system.selector import Selector
from prefork._system.threads import BackgroundThread

__all__ = ["Receiver", "Tap"]

_READ: Final = 1 << 16  # bytes at once: a pipe holds no more
BATCH_SECONDS: Final = 0.001
"""What comes within so many seconds is read at once. The threads that pass it on, and all others of
this process, would have to stop for each single record."""

READER_SECONDS: Final = 5.0
"""How long the end of a pool waits for what is in the pipes to be read: it takes milliseconds."""


class _Parser(Protocol):
    def feed(self, data: bytes) -> None: ...

    def end(self) -> None: ...


class _Stream:
    """The pool's end of one pipe."""

    def __init__(self, fd: int, parser: _Parser) -> None:
        self._fd = fd
        self._parser = parser
        self._has_ended = False

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bool | None:
        """Whether there was anything; None: nothing more will come, since nobody has the other
        end."""
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return False
        self._parser.feed(data)
        return True if data else None

    def end(self) -> None:
        """Nothing more comes; or nobody is interested in what comes."""
        if not self._has_ended:
            self._has_ended = True
            self._parser.end()


class Tap:
    """All pipes of one worker. Made before it is started; its methods never wait.

    Args:
        name: of the worker.
        receiver: reads them.
    """

    def __init__(self, name: str, observing: Observing, receiver: Receiver) -> None:
        settings = observing.workers
        self._receiver = receiver
        self.name = name
        self.pid = 0
        has_records = settings.logger is not None
        self._pipes = Pipes(int(has_records) + (2 if settings.mark else 0))
        fds = list(self._pipes.fds.fds)
        self.streams: list[_Stream] = []
        if has_records:
            self.streams.append(_Stream(fds.pop(0), Assembler(receiver.take_message)))
        for stream, fd in zip(("stdout", "stderr"), fds, strict=False):
            take = partial(self._take_line, stream)
            self.streams.append(_Stream(fd, LineSplitter(settings.mark, take)))

    def take_worker_end(self) -> TapEnd:
        return self._pipes.take_end()

    def begin(self, pid: int) -> None:
        """The worker has been started."""
        self.pid = pid
        self._receiver.add(self)

    def finish(self) -> None:
        """It has ended: what is left in the pipes is read, and then they are closed."""
        self._receiver.finish(self)

    def close(self) -> None:
        """There is no such worker."""
        if self.pid:
            self.finish()
        else:
            self.free()

    def free(self) -> None:
        """Nothing is read any more."""
        self._pipes.fds.close()

    def _take_line(self, stream: str, line: bytes, job: int | None, function: str | None) -> None:
        text = line.decode("utf-8", "replace")
        self._receiver.take_line(OutputLine(text, stream, self.name, self.pid, job, function))


class Receiver:
    """
    Args:
        observing: what is asked for.
        log: where the pool says what it has to say.
    """

    def __init__(self, observing: Observing, log: Log) -> None:
        self._observing = observing
        self._log = log
        self._emitter = Emitter(log)
        self._selector: Selector[_Stream] = Selector()
        self._taps: set[Tap] = set()  # of workers that are read
        self._finished: deque[Tap] = deque()  # whose workers have ended
        self._is_stopped = False
        self._is_closed = False
        self._shown: set[bytes] = set()  # warnings
        self._write: Callable[[OutputLine], object] = observing.output or delivery.write_line
        self._thread = BackgroundThread(self._run, "prefork-Receiver")

    def start(self) -> None:
        """The first workers have been started.

        Raises:
            RuntimeError: the system has no thread left.
        """
        self._thread.start()

    # ---- for the pool, whose lock may be held

    def tap(self, name: str) -> Tap:
        """For a worker that is about to be started.

        Raises:
            OSError: no descriptor is left.
        """
        return Tap(name, self._observing, self)

    def add(self, tap: Tap) -> None:
        self._taps.add(tap)
        for stream in tap.streams:
            self._selector.add(stream, stream)

    def finish(self, tap: Tap) -> None:
        self._finished.append(tap)
        self._selector.wakeup.set()
        if self._is_closed:
            self._close_all()

    def stop(self) -> None:
        """There are no workers any more, and none will come. Does not wait."""
        self._is_stopped = True
        self._selector.wakeup.set()
        if not self._thread.is_started:
            self._close()

    def flush(self, timeout: float | None = None) -> bool:
        """It is stopped: wait until all is passed on, for as long as that gets on; at most so many
        seconds. Whether it is."""
        if self._emitter.is_current():  # a handler that ends the pool
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._thread.join(READER_SECONDS if timeout is None else timeout):
            return False
        return self._emitter.flush(deadline)

    # ---- its thread

    def _run(self) -> None:
        try:
            while not (self._is_stopped and not self._finished):
                ready = self._selector.ready()
                for stream in ready:
                    if stream.read() is None:
                        stream.end()
                        self._selector.discard(stream)
                while self._finished:
                    self._finish(self._finished.popleft())
                self._emitter.wake()
                if ready:
                    time.sleep(BATCH_SECONDS)
        except BaseException as exc:  # a bug; workers that write find that nobody reads
            self._log.note(CRITICAL, "log records and output are not received any more", error=exc)
        finally:
            self._close()

    def _finish(self, tap: Tap) -> None:
        for stream in tap.streams:
            with contextlib.suppress(OSError):
                while stream.read():
                    pass
            stream.end()
            self._selector.discard(stream)
        self._taps.discard(tap)
        tap.free()

    def _close(self) -> None:
        self._is_closed = True
        self._selector.close()
        self._close_all()
        self._emitter.close()

    def _close_all(self) -> None:
        """Who still writes learns that nobody reads, and does not wait for it."""
        taps = {*self._taps, *self._finished}
        self._taps.clear()
        self._finished.clear()
        for tap in taps:
            tap.free()

    def take_message(self, kind: int, message: bytes) -> None:
        if kind == RECORD:
            self._emitter.put(partial(delivery.handle_record, message), len(message))
        elif message not in self._shown:  # another worker has come to the same place
            if len(self._shown) >= delivery.SHOWN:
                self._shown.clear()
            self._shown.add(message)
            self._emitter.put(partial(delivery.show_warning, message), len(message))

    def take_line(self, line: OutputLine) -> None:
        self._emitter.put(partial(self._write, line), len(line.text))
