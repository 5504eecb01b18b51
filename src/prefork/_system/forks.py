"""The two ways in which a pool's workers are forked: from its own process, or from its template.

A fork of this process takes some care, for others may run in it at the same time:
no signal handler runs in between, which could raise in the midst of another library's at-fork hook
or be run by the child (`signals.Hold`); no other thread writes a log message
(`at_fork.holding_logging`); and the child begins anew what others were importing.

A fork from the template, which has one thread, takes none of that. See `template.py`.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
from multiprocessing import context as mp_context
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, ClassVar, cast

from prefork._system import at_fork, fork_warning, resources, signals, std_internals
from prefork._system.kernel import HAS_PIDFD
from prefork._system.launch import Launch
from prefork._system.lifeline import LifelineEnd
from prefork._system.template import Born, Template
from prefork._system.template_main import Order, become_template

if TYPE_CHECKING:
    from prefork._system.process import Process

__all__ = ["Fork", "TemplateFork"]


class Fork(Launch):
    """The standard library's way to fork a process, in steps.

    After a fork, parent and child share all memory; a page that either of them touches is copied
    then. So if several are forked one after another, little is to be done in between.

    Args:
        fds: of this process, which the child is to keep.
        lifeline: what ties it to this process.
        template: if given, the process that is forked becomes this template, and forks the worker,
            as the first thing that happens.
    """

    def __init__(
        self,
        process: Process,
        fds: tuple[int, ...],
        lifeline: LifelineEnd,
        template: Template | None,
    ) -> None:
        super().__init__(process, template)
        self._pids: list[int] = []  # of one process, once it has been forked
        self._is_clean = False
        self._lifeline = lifeline
        self._born: Born | None = None
        self._reader, self._theirs = at_fork.Descriptors(), at_fork.Descriptors()
        if not HAS_PIDFD:
            with at_fork.creating():
                reader, writer = os.pipe()
                self._reader.add(reader)
                self._theirs.add(writer)
        self._workers_fds = (*fds, *self._theirs.fds)
        self.fds = (*self._workers_fds, lifeline.fd)
        if template is not None:
            self.fds += (template.newborn_fd,)

    def has_started(self) -> bool:
        if not self._pids:
            return False
        if self._template is not None:
            self._template.has_started(self._pids[0], self._is_clean)
        return True

    @property
    def pid(self) -> int:  # type: ignore[override]
        """0 until it is launched. If the template forks it, this waits for the answer."""
        if self._template is None:
            return sum(self._pids)
        if self._born is None and self.has_started():
            self._born = self._template.first()
        return self._born.pid if self._born is not None else 0

    def launch(self) -> None:
        std_internals.flush_std_streams()
        hold = signals.Hold()
        try:
            hold.begin()
            self._is_clean = signals.threads() == 1
            with (
                at_fork.holding_logging(),
                std_internals.sharing_tracker(),
                fork_warning.silenced(__name__),
            ):
                # All in C: nothing comes between the fork and the number.
                self._pids.extend(itertools.starmap(os.fork, [()]))
        finally:
            if self._pids != [0]:
                hold.end()
        if self._pids == [0]:
            self._run(hold)
        self.has_started()

    def _run(self, hold: signals.Hold) -> None:
        """In the child."""
        code = 1
        try:
            hold.leave_to_child()
            at_fork.forget_imports()
            process = self._process
            if self._template is not None:
                fd = self._template.newborn_fd
                order = become_template(fd, self._lifeline, self._workers_fds)
                if order is not None:
                    process = process.twin(*_unpickle(order))
            self._theirs.hand_over()
            parent_sentinel, *_ = self._lifeline.hold()
            resources.restore_descriptor_limit()
            code = process._bootstrap(parent_sentinel)
        finally:
            os._exit(code)

    @property
    def sentinel(self) -> int:  # type: ignore[override]
        return self._reader.fds[0] if self._reader.fds else self.pidfd

    def tidy(self) -> None:
        self._theirs.close()
        if self._template is not None:
            self.has_started()
            self._template.look_after()
        if self.pidfd >= 0 or not self.pid:
            return
        if self._born is not None:
            self._pidfd = self._born.pidfd
        elif HAS_PIDFD:
            with at_fork.creating():
                self._pidfd.add(os.pidfd_open(self.pid))

    def close(self) -> None:
        self._theirs.close()
        self._reader.close()
        super().close()


class TemplateFork(Launch):
    """A process that the template forks.

    Args:
        fds: of this process, which that one is to get.
    """

    def __init__(self, process: Process, fds: tuple[int, ...], template: Template) -> None:
        super().__init__(process, template)
        self._ask = template.start
        self._sent: list[int] = []
        self._born: list[Born] = []  # one, once it has been started
        self._release = at_fork.Descriptors()
        with at_fork.creating():
            for fd in os.pipe():
                self._release.add(fd)

    def has_started(self) -> bool:
        return bool(self._born)

    @property
    def pid(self) -> int:  # type: ignore[override]
        return self._born[0].pid if self._born else 0

    def launch(self) -> None:
        std_internals.flush_std_streams()
        detail = self._pickle()
        reader, writer = self._release.fds
        question = detail, (reader, *self._sent)
        self._born.extend(itertools.starmap(self._ask, [question]))
        self.tidy()
        os.write(writer, b"!")
        self._release.close()

    # What descriptors become while they are pickled: the protocol of the standard library.

    def _pickle(self) -> bytes:
        differs = self._process.index, std_internals.identity(self._process)
        target = io.BytesIO()
        mp_context.set_spawning_popen(cast(Any, self))
        try:
            ForkingPickler(target, pickle.HIGHEST_PROTOCOL).dump(differs)
        finally:
            mp_context.set_spawning_popen(None)
        return target.getvalue()

    def duplicate_for_child(self, fd: int) -> int:
        self._sent.append(fd)
        return len(self._sent) - 1

    @staticmethod
    def DupFd(index: int) -> _Received:
        return _Received(index)

    def tidy(self) -> None:
        if self._born:
            self._pidfd = self._born[0].pidfd

    def close(self) -> None:
        self._release.close()
        super().close()


class _Received:
    """A descriptor that has come along with an order; see `multiprocessing.reduction.DupFd`."""

    fds: ClassVar[list[int]] = []  # in the process that got the order

    def __init__(self, index: int) -> None:
        self._index = index

    def detach(self) -> int:
        return self.fds[self._index]


def _unpickle(order: Order) -> Any:
    _Received.fds = order.fds
    return pickle.loads(order.detail)
