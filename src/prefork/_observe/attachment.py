"""In a worker: what it sends to the pool beside its results."""

from __future__ import annotations

from collections.abc import Callable

from prefork._describe import function_name
from prefork._observe.pipes import TapEnd
from prefork._observe.settings import WorkerSettings

__all__ = ["Attachment"]


class Attachment:
    """Made once, before the initializer runs; told of each job.

    Args:
        soft_limit: what is raised in a task that has passed its limit.
    """

    def __init__(
        self, settings: WorkerSettings, end: TapEnd, soft_limit: type[BaseException]
    ) -> None:
        self._job: int | None = None
        self._func: Callable[..., object] | None = None
        self._name: str | None = None
        self._output = None
        fds = end.take()
        if settings.logger is not None:
            from prefork._observe.frames import Sender
            from prefork._observe.log_sender import send_records, send_warnings

            sender = Sender(fds.pop(0))
            send_records(settings.logger, sender, self._current, soft_limit, settings.levels)
            if not settings.logger:
                send_warnings(sender)
        if settings.mark:
            from prefork._observe.output_sender import OutputSender

            self._output = OutputSender(settings.mark, *fds)

    def begin(self, job: int, func: Callable[..., object]) -> None:
        """This job begins, and calls this function."""
        self._job, self._func, self._name = job, func, None
        if self._output is not None:
            self._output.begin(job, _name_of(func))

    def end(self) -> None:
        """It has ended; nothing is kept of it."""
        self._job = self._func = self._name = None
        if self._output is not None:
            self._output.end()

    def _current(self) -> tuple[int | None, str | None]:
        if self._name is None and (func := self._func) is not None:
            self._name = _name_of(func)
        return self._job, self._name


def _name_of(func: Callable[..., object]) -> str:
    """As the pool calls it, whose main module has another name in a worker that is not forked."""
    name = function_name(func)
    return f"__main__{name[11:]}" if name.startswith("__mp_main__.") else name
