"""scikit-learn's searches go on over candidates that crash or hang."""

from __future__ import annotations

import os
import warnings

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("sklearn")

from joblib import parallel_config  # noqa: E402
from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_validate  # noqa: E402
from sklearn.pipeline import Pipeline  # noqa: E402

from prefork import WorkerLostError  # noqa: E402
from prefork.joblib.search import is_fit  # noqa: E402

pytestmark = pytest.mark.timeout(180)  # workers import scikit-learn, each one anew

X, Y = np.arange(24.0).reshape(12, 2), np.array([0, 1] * 6)
ONE_SPLIT = [(np.arange(8), np.arange(8, 12))]  # each lost worker has a successor that imports all


class Odd(ClassifierMixin, BaseEstimator):
    def __init__(self, mode="fine"):
        self.mode = mode

    def fit(self, X, y):
        if self.mode == "crashes":
            os.abort()
        while self.mode == "hangs":
            pass
        if self.mode == "raises":
            raise LookupError("so it is")
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.zeros(len(X), int)


def searched(estimator, grid, **options):
    search = GridSearchCV(estimator, grid, cv=ONE_SPLIT, n_jobs=2, refit=False, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with parallel_config(backend="prefork", timeout=5):
            search.fit(X, Y)
    return search.cv_results_["mean_test_score"], "\n".join(str(w.message) for w in caught)


def test_a_score_table_with_two_errors():
    modes = ["fine", "hangs", "crashes"]
    scores, warned = searched(Odd(), {"mode": modes})
    assert scores[0] == 0.5
    assert np.isnan(scores[1:]).all()
    assert "2 fits failed out of a total of 3" in warned
    assert "TimeLimitExceeded: job" in warned
    assert "exceeded its time limit of 5 s" in warned
    assert "was killed by SIGABRT" in warned
    assert "in fit" in warned  # where it was


def test_the_same_in_a_pipeline_with_other_scores():
    pipeline = Pipeline([("odd", Odd())])
    modes = ["fine", "crashes", "raises"]
    scores, warned = searched(pipeline, {"odd__mode": modes}, error_score=-1)
    assert list(scores) == [0.5, -1, -1]
    assert "LookupError: so it is" in warned


def test_who_wants_the_error_gets_it():
    with pytest.raises(WorkerLostError, match="SIGABRT"):
        searched(Odd(), {"mode": ["fine", "crashes"]}, error_score="raise")


def test_cross_validation():
    with (
        parallel_config(backend="prefork", n_jobs=2),
        pytest.raises(ValueError, match="All the 1 fits failed"),
    ):
        cross_validate(Odd("crashes"), X, Y, cv=ONE_SPLIT)


def test_only_those_calls_are_meant():
    def _fit_and_score():
        pass

    assert not is_fit((_fit_and_score, (), {}))
    assert not is_fit((np.sum, (), {}))
    assert not is_fit((len, (), {}))
