"""The class of a pool's processes: what a child needs, and no more, for a worker that is spawned
imports it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from prefork._system import orderly_end, signals, std_internals
from prefork._system.lifeline import LifelineEnd

if TYPE_CHECKING:
    from prefork._system.launch import Launch

__all__ = ["Process", "list_child", "run_tied", "unlist_child"]

_listed: set[BaseProcess] = set()  # our children that are in multiprocessing's list


def list_child(process: BaseProcess) -> None:
    """It is about to be started, and be in the list of `multiprocessing.active_children`."""
    _listed.add(process)


def unlist_child(process: BaseProcess) -> None:
    """It has been accounted for."""
    _listed.discard(process)
    std_internals.children().discard(process)


def _forget_listed() -> None:
    """In a forked child, which at its end would wait for them, as if they were its own."""
    std_internals.children().difference_update(_listed)
    _listed.clear()


os.register_at_fork(after_in_child=_forget_listed)


def _finalizing(run: Callable[[], object]) -> Callable[[], None]:
    """What `multiprocessing` does at a child's end follows right upon `run`, as it did up to Python
    3.12. Newer versions first wait for threads, for ever, and leave it to exit functions."""

    def run_and_finalize() -> None:
        try:
            run()
        finally:
            std_internals.finalize()

    return run_and_finalize


def run_tied(
    end: LifelineEnd,
    blocked: Iterable[int] | None,
    target: Callable[..., object],
    args: tuple[Any, ...],
) -> None:
    """What a process that is not forked by us runs: it ends with the one that started it.

    Args:
        blocked: the signals that were blocked there; None: those that are blocked here.
    """
    signals.was_started_with(blocked)
    end.hold()
    target(*args)


class Process(BaseProcess):
    """The standard library's process class, for any start method.

    Takes the arguments of `multiprocessing.Process`; `context` says how the process is started,
    and further keyword arguments are accepted for the sake of callers that pass more.
    """

    kind = "PreforkWorker"  # what a pool's workers are called, before their number
    index = 0  # in a pool: its place there; free places are used again, the lowest first
    launch: Launch | None = None  # in a pool: how it is started
    is_worker = False  # in a pool: it decides for itself what happens at Ctrl-C

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        daemon: bool | None = None,
        *,
        context: BaseContext | None = None,
        **_kw: Any,
    ) -> None:
        super().__init__(group, target, name, tuple(args), dict(kwargs), daemon=daemon)
        self._context = context
        # In the child, the default for processes that it starts itself.
        self._start_method = context.get_start_method() if context else None

    def __getstate__(self) -> dict[str, Any]:
        """For the child: it needs neither of these, nor could unpickle them."""
        return vars(self) | {"launch": None, "_context": None}

    def twin(self, index: int, identity: tuple[Any, ...]) -> Process:
        """In a process that was forked from a template, which has inherited the first worker's
        object: the object of this process. What makes it differ from the first is told here."""
        process = type(self).__new__(type(self))
        vars(process).update(vars(self))
        std_internals.identify(process, *identity)
        process.index = index
        return process

    @property
    def sentinel(self) -> int:
        """A descriptor that is readable once the process has ended."""
        return super().sentinel if self.launch is None else self.launch.sentinel

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        """All that the child does; the standard library's name for it."""
        is_fresh = multiprocessing.get_start_method() == "spawn"
        if self._start_method is not None:
            is_fresh = self._start_method == "spawn"
        orderly_end.begin(is_fresh)
        self.run = _finalizing(self.run)  # type: ignore[method-assign]
        code: int = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
        orderly_end.end(code, is_fresh)
        return code

    def _Popen(self, process_obj: BaseProcess) -> Any:
        if self.launch is not None:
            self.launch.launch()
            return self.launch
        context = self._context or multiprocessing.get_context()
        return std_internals.popen(context)(process_obj)
