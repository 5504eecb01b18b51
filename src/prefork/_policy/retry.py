"""How a job is run again after it has failed: how often, after which errors, and when."""

# Annotations are evaluated here: as strings, they would be looked up where the names are public.

import math
from typing import Any, Final, NamedTuple, Self

from prefork._arguments import count, seconds
from prefork._public import public
from prefork.errors import WorkerLostError

__all__ = ["Attempt", "Retry", "retry_of"]

On = type[BaseException] | tuple[type[BaseException], ...]
MAX_BACKOFF: Final = 60.0  # seconds, unless the caller says otherwise


@public
class Attempt(NamedTuple):
    """One run of a job that has failed.

    Attributes:
        number: the first run is 1.
        pid: the process id of the worker that ran it; None: it is not known.
        error: what it failed with.
        seconds: how long it ran, as far as is known.
    """

    number: int
    pid: int | None
    error: BaseException
    seconds: float


class _Fields(NamedTuple):
    retries: int
    on: tuple[type[BaseException], ...]
    backoff: float
    factor: float
    max_backoff: float
    jitter: float


@public
class Retry(_Fields):
    """How a job is run again after it has failed. It is immutable.

    The n-th retry begins `min(max_backoff, backoff * factor**(n - 1))` seconds after the failure,
    or up to the fraction `jitter` of that earlier, by chance. (So it is exponential back-off; a
    jitter of 1 is what is known as full jitter, 0.5 as equal jitter.) Meanwhile no worker is kept.

    Args:
        retries: how often it is run again at most, an int; 0: never.
        on: the classes of errors after which it is run again, one or a tuple of them. Subclasses
            count. By default only the loss of its worker does: a function that has raised something
            is not called again unless that is named here.
        backoff: the pause before the first retry, in seconds (int or float).
        factor: each further pause is so many times as long as the one before, at least 1.
        max_backoff: no pause is longer; seconds; infinity: there is no such limit.
        jitter: the fraction of each pause that is left to chance, from 0 (none) to 1.

    Raises:
        TypeError, ValueError: one of them is not right.
    """

    __slots__ = ()

    def __new__(
        cls,
        retries: int = 1,
        on: On = WorkerLostError,
        backoff: float = 0.0,
        factor: float = 2.0,
        max_backoff: float = MAX_BACKOFF,
        jitter: float = 0.5,
    ) -> Self:
        pause = seconds("backoff", backoff, zero=True)
        if pause is None:
            raise ValueError("backoff must be finite: such a job would never be run again")
        longest = seconds("max_backoff", max_backoff, zero=True)
        return super().__new__(
            cls,
            count("retries", retries, least=0),
            _classes(on),
            pause,
            _number("factor", factor, 1.0),
            math.inf if longest is None else longest,
            _number("jitter", jitter, 0.0, 1.0),
        )

    def covers(self, error: BaseException) -> bool:
        """Whether a job is run again after this. No code of the error's class is run."""
        return any(type.__subclasscheck__(cls, type(error)) for cls in self.on)

    def pause(self, number: int, chance: float) -> float:
        """Seconds before the retry of this number (from 1); `chance` is from 0 to 1."""
        try:
            pause = self.backoff * self.factor ** (number - 1)
        except OverflowError:
            pause = math.inf if self.backoff else 0.0
        return min(pause, self.max_backoff) * (1.0 - self.jitter * chance)

    def __repr__(self) -> str:
        given = [repr(self.retries)]
        for name, default in Retry()._asdict().items():
            value = getattr(self, name)
            if name != "retries" and value != default:
                given.append(f"{name}={_names(value) if name == 'on' else value}")
        return f"Retry({', '.join(given)})"


def _names(classes: tuple[type[BaseException], ...]) -> str:
    names = ", ".join(cls.__qualname__ for cls in classes)
    return names if len(classes) == 1 else f"({names})"


def _classes(on: Any) -> tuple[type[BaseException], ...]:
    classes = on if isinstance(on, tuple) else (on,)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise TypeError(f"on must be a class of exceptions, or a tuple of them, not {on!r}")
    return classes


def _number(name: str, value: Any, least: float, most: float = math.inf) -> float:
    try:
        number = seconds(name, value, zero=True)
    except (TypeError, ValueError) as exc:
        raise type(exc)(_range(name, value, least, most)) from None
    if number is None or not least <= number <= most:
        raise ValueError(_range(name, value, least, most))
    return number


def _range(name: str, value: object, least: float, most: float) -> str:
    upto = "" if math.isinf(most) else f" to {most:g}"
    return f"{name} must be a number from {least:g}{upto or ' on'}, not {value!r}"


def retry_of(value: object) -> Retry | None:
    """What a caller gives as `retries`; None: it is never run again.

    Raises:
        TypeError, ValueError: it is neither a `Retry` nor a number of retries.
    """
    if isinstance(value, Retry):
        return value if value.retries else None
    try:
        number = count("retries", value, least=0)
    except TypeError:
        raise TypeError(f"retries must be an int or a prefork.Retry, not {value!r}") from None
    return Retry(number) if number else None
