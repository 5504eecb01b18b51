"""The types of calls: what a function, its arguments, its result and its options have to do with
one another.

The rule: a call is accepted if `func(*args, **kwds)` would be, and refused only where type checkers
would refuse that; rather too little is refused than too much. What the overloads in `calls` and
`maps` are there for, one after another:

    Callable[[], R]             there are no arguments
    Callable[[*Ts], R]          a tuple that fits the parameters
    Callable[[A | X], R]        the same, for mypy: with a union it takes a literal, such as
                                `{"a": 1}` for a `dict[str, object]`, as what the function wants
    Callable[..., R]            what cannot be checked: in a list, of unknown types, or by name
    OfOneType[A, R]             any other iterable, of items that all parameters take
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Set
from typing import (
    Any,
    Generic,
    Never,
    ParamSpec,
    TypeAlias,
    TypedDict,
    TypeVar,
    TypeVarTuple,
)

from prefork._policy.retry import Retry

__all__ = [
    "A",
    "AnyIterable",
    "B",
    "C",
    "CallOptions",
    "Callback",
    "MapOptions",
    "OfOneType",
    "P",
    "R",
    "TaskLimits",
    "Ts",
    "Unchecked",
    "X",
    "Y",
    "Z",
]

R = TypeVar("R")  # the result
P = ParamSpec("P")  # all parameters
Ts = TypeVarTuple("Ts")  # the types of all arguments
A = TypeVar("A")  # of the first one
B = TypeVar("B")
C = TypeVar("C")
X = TypeVar("X")  # makes a union of A: see above
Y = TypeVar("Y")  # of B
Z = TypeVar("Z")  # of C

AnyIterable: TypeAlias = Iterable[A] | AsyncIterable[A]
OfOneType: TypeAlias = (
    Callable[[A], R]
    | Callable[[A, A], R]
    | Callable[[A, A, A], R]
    | Callable[[A, A, A, A], R]
    | Callable[[A, A, A, A, A], R]
    | Callable[[A, A, A, A, A, A], R]
)
Unchecked: TypeAlias = (
    list[Any] | Iterator[Any] | Set[Any] | Mapping[Any, Any] | Iterable[Never]  # that is, of Any
)
Callback: TypeAlias = Callable[[R], object] | None


class TaskLimits(TypedDict, total=False):
    """What each task of a call may take: keyword arguments of all calls."""

    soft_timeout: float | None
    """After so many seconds `SoftTimeLimitExceeded` is raised in the task; None: as the pool has
    it; infinity: never."""
    timeout: float | None
    """After so many seconds its worker is killed, and it fails with `TimeLimitExceeded`; None and
    infinity: likewise."""
    retries: int | Retry
    """How often a job is run again after its worker was lost, 0: never; or how, and after what."""


class MapOptions(TaskLimits, total=False):
    """Keyword arguments of the map family."""

    seed: int | None
    """At least 0: each item gets random numbers that depend on this and on its position, and on
    nothing else; see `prefork._worker.seeding`. None: they are different each time."""
    progress: Any
    """Shows how far it is: True, a label, tqdm, rich's `Progress`, or a class like one of these."""


class CallOptions(TaskLimits, Generic[R], total=False):
    """Keyword arguments of `apply_async`."""

    callback: Callback[R]
    error_callback: Callback[Any]
    accept_callback: Callable[[int, float], object] | None
    timeout_callback: Callable[..., object] | None
    waitforslot: bool
    lost_worker_timeout: float | None
