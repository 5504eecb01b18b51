"""What the tests' cluster may run, beside what it may not."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gate import Door
from helpers import log_start


def double(x):
    return 2 * x


def add(x, y=10):
    return x + y


def fail(x):
    raise ValueError(f"{x} is not to be had")


class OwnError(Exception):
    pass


def fail_in_its_own_way(x):
    raise OwnError(x)


def an_object(x):
    return object()


def as_it_comes(x):
    return x


def large(size):
    return "x" * size


def die(x):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_every_hundredth(path, x):
    log_start(Path(path), x)
    if x % 100 == 50:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def die_once(path):
    """The first time."""
    if not os.path.exists(path):
        log_start(Path(path), 1)
        os.kill(os.getpid(), signal.SIGKILL)
    return "the second time"


def logged(path, x):
    """A short task that leaves a line when it begins."""
    log_start(Path(path), x)
    time.sleep(0.005)
    return x


def enter(address, value=None):
    """Wait at the test's gate."""
    return Door(tuple(address)).enter(value)


def spin():
    while True:
        pass


def random_number(x):
    import random

    return random.random()


decorated = functools.wraps(double)(lambda x: x)
system = os.system
run = subprocess.run
version = sys.version


class Thing:
    def method(self):
        return "no function of its own"
