"""A candidate of scikit-learn's search that has crashed, or has taken too long, gets its place in
the table of scores.

`GridSearchCV` and the like have an account of fits that raise: the score is `error_score`, and a
warning tells what was raised. But a worker that is lost raises nothing in there. So the same call
is made once more, with an estimator whose `fit` raises the pool's error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Never

__all__ = ["failing", "is_fit"]

Item = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""What `joblib.delayed` makes of a call."""

_FIT = "sklearn.model_selection._validation", "_fit_and_score"


def is_fit(item: Item) -> bool:
    """Whether it is a call in which scikit-learn treats errors of an estimator's `fit`."""
    func = getattr(item[0], "function", item[0])  # scikit-learn's own `delayed` wraps it
    return (getattr(func, "__module__", ""), getattr(func, "__name__", "")) == _FIT


class _Fit:
    """In the place of an estimator's method."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, *args: object, **kwargs: object) -> Never:
        raise self._error


def failing(item: Item, error: Exception) -> Item:
    """The same call, with an estimator whose `fit` raises this error.

    Raises:
        Exception: it cannot be made of this estimator.
    """
    func, args, kwargs = item
    estimator, *others = args
    estimator = copy.copy(estimator)
    estimator.fit = _Fit(error)
    return func, (estimator, *others), kwargs
