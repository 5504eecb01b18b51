"""What workers send beside their results, as the engine sees it: it has the means made with each
worker, and freed with it. What travels there, and who reads it, it does not know."""

from __future__ import annotations

from typing import Any, Final, Protocol

__all__ = ["TAP_DESCRIPTORS", "Tap", "TapEnd", "Taps"]

TAP_DESCRIPTORS: Final = 6
"""A tap takes no more than that while its worker is being started; afterwards half of it."""


class TapEnd(Protocol):
    """The worker's side; it can be pickled for a process that is being started."""

    def fds(self) -> tuple[int, ...]:
        """What the child needs of this process's descriptors."""

    def close(self) -> None:
        """Of this process."""


class Tap(Protocol):
    """What one worker has for it. None of its methods waits."""

    def take_worker_end(self) -> TapEnd: ...

    def begin(self, pid: int) -> Any:
        """The worker has been started."""

    def finish(self) -> Any:
        """It has ended; what it has sent is read, and then the tap closed."""

    def close(self) -> Any:
        """There is no such worker."""


class Taps(Protocol):
    """Makes them, and reads what comes."""

    def tap(self, name: str) -> Tap:
        """For a worker of that name.

        Raises:
            OSError: no descriptor is left.
        """

    def start(self) -> Any:
        """The first workers have been started.

        Raises:
            RuntimeError: the system has no thread left.
        """

    def stop(self) -> Any:
        """There are no workers any more. Does not wait."""

    def flush(self, timeout: float | None = None) -> bool:
        """It is stopped: wait until what has come is passed on, as long as that gets on; at most so
        many seconds. Whether it is."""
