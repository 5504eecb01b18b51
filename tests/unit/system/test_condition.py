"""What threads wait for, interrupted at every point by a signal handler that raises."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from helpers import DEADLINE
from prefork._system.condition import Condition
from prefork._system.selector import Selector


class Interrupted(BaseException):
    """What a signal's handler raises."""


def interrupt() -> None:
    """What a handler that raises comes to, wherever one would run."""
    raise Interrupted


def interrupted_at(
    step: int,
    call: Callable[[], object],
    filename: str,
    besides: tuple[str, ...] = (),
    interrupt: Callable[[], object] = interrupt,
) -> bool:
    """Call it, and raise before its `step`th bytecode in this file; False if it has fewer.

    Args:
        besides: functions that are left out: between the last bytecode inside of a `with` and the
            release of its lock no handler runs, but this would raise.
        interrupt: raises; or sends a signal whose handler does.
    """
    steps = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal steps
        code = frame.f_code
        if not code.co_filename.endswith(filename) or code.co_name in besides:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps += 1
            if steps == step:
                interrupt()
        return trace

    before = sys.gettrace()
    gc.disable()  # else the finalizers of others' garbage are interrupted, too
    # Python 3.12 traces bytecodes only if a frame had asked for it by the time of `settrace`.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
        gc.enable()
    return False


def every_interrupt(
    call: Callable[[], object], filename: str, besides: tuple[str, ...] = ()
) -> Iterator[int]:
    """The call, interrupted at one point after the other; yields after each."""
    step = 1
    while interrupted_at(step, call, filename, besides):
        yield step
        step += 1
    assert step > 5  # else it was not traced


def test_who_waits_is_woken_even_if_the_notification_was_interrupted():
    for _ in every_interrupt_with_a_waiter():
        pass


def every_interrupt_with_a_waiter() -> Iterator[int]:
    step = 1
    while True:
        condition, is_true = Condition(), threading.Event()
        waiting = threading.Event()

        def predicate(
            is_true: threading.Event = is_true, waiting: threading.Event = waiting
        ) -> bool:
            waiting.set()
            return is_true.is_set()

        thread = threading.Thread(target=condition.wait, args=(predicate,), daemon=True)
        thread.start()
        assert waiting.wait(DEADLINE)
        is_true.set()
        was_interrupted = interrupted_at(step, condition.notify_all, "condition.py")
        condition.notify_all()  # as the next thing that happens in the pool does
        thread.join(DEADLINE)
        assert not thread.is_alive(), step
        if not was_interrupted:
            return
        yield step
        step += 1


def test_a_wakeup_is_never_deaf():
    selector: Selector[object] = Selector()
    wakeup = selector.wakeup
    for step in every_interrupt(wakeup.set, "selector.py"):
        wakeup.set()
        assert is_readable(selector), step
        selector.ready(0)
        assert not is_readable(selector), step
    selector.close()


def test_a_wakeup_hears_what_comes_after_an_interrupted_look():
    selector: Selector[object] = Selector()
    for step in every_interrupt(lambda: look(selector), "selector.py"):
        selector.wakeup.set()
        assert is_readable(selector), step
        selector.ready(0)
    selector.close()


def look(selector: Selector[object]) -> None:
    selector.wakeup.set()
    selector.ready(0)


def is_readable(selector: Selector[object]) -> bool:
    import select

    poll = select.poll()
    poll.register(selector.fileno(), select.POLLIN)
    return bool(poll.poll(0))


@pytest.mark.parametrize("timeout", [0.0, None])
def test_an_interrupted_wait_leaves_nothing_that_matters(timeout):
    condition = Condition()
    answers = iter(())
    for _ in every_interrupt(
        lambda: condition.wait(lambda: next(answers, True), timeout), "condition.py"
    ):
        condition.notify_all()
    assert condition.wait(lambda: False, 0.0) is False
