"""Context variables of the code that hands in a call, for the task.

    the caller      Carrier.capture    values of the variables, and OpenTelemetry's context
    the worker      call_in            calls the task in a copy of its own context that has them

A variable has no name by which a worker could find it, so it must be a global of a module. Of
OpenTelemetry what travels is what its propagators make of its context, usually `traceparent`,
`tracestate` and `baggage`: spans are not for pickling.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from prefork._describe import short_repr

__all__ = ["Carried", "Carrier", "call_in"]

T = TypeVar("T")

Carried = dict[str, Any]
"""Values by the names of their variables, as `module:name`."""

_TRACE: Final = ""
"""In the place of a name: what OpenTelemetry's propagators have written."""
_API: Final = "opentelemetry.context"


class Carrier:
    """
    Args:
        variables: whose values go along.

    Raises:
        TypeError: one is no context variable.
        ValueError: one is no global of a module.
    """

    def __init__(self, variables: Iterable[contextvars.ContextVar[Any]]) -> None:
        self._variables = [(_name(variable), variable) for variable in variables]

    def capture(self) -> Carried | None:
        """What goes along now; None: nothing is set."""
        carried: Carried = {}
        for name, variable in self._variables:
            try:
                carried[name] = variable.get()
            except LookupError:
                continue
        if _API in sys.modules and (written := _inject()):
            carried[_TRACE] = written
        return carried or None


def _inject() -> dict[str, str]:
    from opentelemetry import context, propagate

    written: dict[str, str] = {}
    with contextlib.suppress(Exception):  # a propagator's: no call fails for being traced
        if context.get_current():
            propagate.inject(written)
    return written


def forget_trace() -> None:
    """In a worker that was forked inside of a span: calls that come without one have none."""
    from opentelemetry import context

    context.attach(context.Context())


def _name(variable: object) -> str:
    if not isinstance(variable, contextvars.ContextVar):
        raise TypeError(
            f"context_vars must be contextvars.ContextVar objects, not {short_repr(variable)}"
        )
    for module_name, module in list(sys.modules.items()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                return f"{'__main__' if module_name == '__mp_main__' else module_name}:{name}"
    raise ValueError(
        f"{variable!r} is no global of a module: a worker finds a context variable by its name"
    )


def call_in(carried: Carried, call: Callable[..., T], *args: object) -> T:
    """`call(*args)`, in a context that has all this. Nothing of it is left then."""
    return contextvars.copy_context().run(_call, carried, call, args)


def _call(carried: Carried, call: Callable[..., T], args: tuple[object, ...]) -> T:
    for name, value in carried.items():
        if name != _TRACE:
            _find(name).set(value)
    if written := carried.get(_TRACE):
        with contextlib.suppress(Exception):  # it is not installed where the worker is, or raises
            from opentelemetry import context, propagate

            context.attach(propagate.extract(written))
    return call(*args)


_found: dict[str, contextvars.ContextVar[Any]] = {}


def _find(name: str) -> contextvars.ContextVar[Any]:
    variable = _found.get(name)
    if variable is None:
        module, _, attribute = name.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        variable = _found[name] = found
    return variable
