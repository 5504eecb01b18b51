"""These tests need joblib, and some of them scikit-learn. Workers are kept from test to test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("joblib")


@pytest.fixture(autouse=True, scope="module")
def nothing_kept() -> Iterator[None]:
    import prefork.joblib

    yield
    prefork.joblib.shutdown()
