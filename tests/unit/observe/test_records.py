"""Log records as they are encoded in a worker."""

from __future__ import annotations

import logging

import pytest

from prefork import SoftTimeLimitExceeded
from prefork._observe.records import decode, encode


class Raises:
    def __init__(self, error):
        self.error = error

    def __str__(self):
        raise self.error

    def __reduce__(self):
        raise self.error


def record(*args, **extra):
    return logging.makeLogRecord({"msg": "%s", "args": args, **extra})


def test_arguments_that_cannot_be_shown_are_told_of():
    sent = encode(record(Raises(LookupError("why"))), 3, "f", SoftTimeLimitExceeded)
    assert "LookupError: why" in decode(sent)["msg"]


@pytest.mark.parametrize(
    "made",
    [lambda error: record(Raises(error)), lambda error: record("text", more=Raises(error))],
    ids=["argument", "extra"],
)
def test_a_time_limit_that_passes_meanwhile_is_the_tasks(made):
    """It is raised once: if it were told of as an error of the record, the task would run on."""
    with pytest.raises(SoftTimeLimitExceeded):
        encode(made(SoftTimeLimitExceeded()), 3, "f", SoftTimeLimitExceeded)
