"""What a pool is asked for, as options of its workers: checked, before anything is made."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from multiprocessing.context import BaseContext
from typing import Any, Final

from prefork._arguments import check_callables, check_iterable, count, seconds, some_count
from prefork._compat.habits import check_environment
from prefork._describe import short_repr
from prefork._engine.options import Options
from prefork._engine.places import Affinity, Environment, make_places
from prefork._system.resources import available_cpus
from prefork._worker.options import Hook

__all__ = ["make_options", "observing"]

CONTROL: Final = "control"
"""Who may look into a pool may end jobs, too."""


def make_options(
    processes: int | None,
    initializer: Callable[..., object] | None,
    initargs: Iterable[Any],
    maxtasksperchild: int | None,
    context: BaseContext | str | None,
    maxtasksperchild_jitter: int,
    max_memory_per_child: int | None,
    max_memory_per_task: int | None,
    max_restarts: int,
    start_timeout: float | None,
    accept_delay: float | None = None,
    *,
    finalizer: Callable[[Any], object] | None,
    env: Environment | None,
    cpu_affinity: Affinity | None,
    inner_max_num_threads: float | None,
    observable: object = True,
) -> Options:
    """The options for what the constructor of a pool was given; see `Pool` for what they are.

    Raises:
        Exception: what that constructor raises.
    """
    cpus = available_cpus()
    processes = cpus if processes is None else count("processes", processes)
    try:
        maxtasksperchild = some_count("maxtasksperchild", maxtasksperchild)
    except TypeError as exc:
        raise ValueError(*exc.args) from None  # as `multiprocessing` has it
    max_memory_per_child = some_count("max_memory_per_child", max_memory_per_child)
    max_memory_per_task = some_count("max_memory_per_task", max_memory_per_task)
    jitter = count("maxtasksperchild_jitter", maxtasksperchild_jitter, least=0)
    if jitter and jitter >= (maxtasksperchild or 0):
        raise ValueError("maxtasksperchild_jitter must be less than maxtasksperchild")
    max_restarts = count("max_restarts", max_restarts, least=0)
    check_callables(initializer=initializer, finalizer=finalizer)
    initargs = check_iterable("initargs", initargs)
    if context is None or isinstance(context, str):
        context = multiprocessing.get_context(context)
    elif not isinstance(context, BaseContext):
        raise TypeError(f"context must be one of multiprocessing's, not {context!r}")
    if not (isinstance(observable, bool) or observable == CONTROL):
        raise TypeError(f'observable must be a bool or "control", not {short_repr(observable)}')
    check_environment()
    is_forking = context.get_start_method() == "fork"
    places = make_places(processes, cpus, is_forking, env, cpu_affinity, inner_max_num_threads)
    return Options(
        processes,
        context,
        Hook(initializer, initargs) if initializer else None,
        max_tasks=maxtasksperchild,
        tasks_jitter=jitter,
        max_memory=max_memory_per_child,
        max_memory_per_task=max_memory_per_task,
        max_restarts=max_restarts,
        start_timeout=None if start_timeout is None else seconds("start_timeout", start_timeout),
        accept_delay=None if accept_delay is None else seconds("accept_delay", accept_delay),
        finalizer=Hook(finalizer, ()) if finalizer else None,
        places=places,
        cpus=cpus,
        is_observable=bool(observable),
        is_controllable=observable == CONTROL,
    )


def observing(
    options: Options,
    forward_logs: object,
    capture_output: object,
    context_vars: Iterable[ContextVar[Any]],
) -> Options:
    """The same options, with what goes along with calls, and what comes from the workers beside
    results."""
    if variables := check_iterable("context_vars", context_vars):
        from prefork._observe.context import Carrier

        options = options._replace(capture=Carrier(variables).capture)
    if forward_logs is not False or capture_output is not None:
        from prefork._observe import settings

        options = options._replace(observing=settings.observing(forward_logs, capture_output))
    return options
