"""One worker as the pool knows it."""

from __future__ import annotations

from prefork.channel import Channel
from prefork.process import Child
from prefork.scheduler import Seat

__all__ = ["Worker"]


class Worker(Seat):
    """A worker process: its seat at the scheduler, its channel, its process.

    It starts, is ready, and leaves: of itself, when it is dismissed, or by dying. It is *exited*
    once its process has ended, and *gone* once it is accounted for.
    """

    def __init__(self, channel: Channel, process: Child, name: str) -> None:
        super().__init__()
        self.channel = channel
        self.process = process
        self.pid = process.pid
        self.name = name
        self.ready = False  # it has run its initializer
        self.leaving = False  # it was told to leave, or has said so
        self.exited = False
        self.gone = False
        self.start_error: BaseException | None = None  # what its initializer raised
        self.verdicts: dict[int, Exception] = {}  # why it was killed: for which job which error
        self.patience_ends: float | None = None  # what it is waited for does not come later

    def running(self) -> tuple[int, float]:
        try:
            return self.channel.running()
        except ValueError:  # closed this very moment
            return 0, 0.0

    def accepted(self) -> float:
        try:
            return self.channel.accepted()
        except ValueError:
            return 0.0

    def __repr__(self) -> str:
        state = "gone" if self.gone else "leaving" if self.leaving else "starting"
        if self.ready and not (self.leaving or self.gone):
            state = f"{len(self.sent)} jobs"
        return f"<{self.name} {self.pid}: {state}>"
