"""What the nodes of these tests run."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from helpers import log_start


def double(x):
    return 2 * x


def add(x, y=10):
    return x + y


class OwnError(Exception):
    pass


def fail(x):
    raise OwnError(x)


def logged(path, x):
    """A short task that leaves a line when it begins."""
    log_start(Path(path), x)
    time.sleep(0.005)
    return x


def random_number(x):
    return random.random()


def spin():
    while True:
        pass


class NeverPickled:
    def __reduce__(self):
        raise TypeError("it does not travel")


def raise_key_error():
    raise KeyError("at home")


class NeverUnpickled:
    def __reduce__(self):
        return raise_key_error, ()


def node_of(x):
    """The session of the node."""
    return os.getsid(0)
