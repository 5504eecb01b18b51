"""What the nodes of `cluster.py` may run."""

from __future__ import annotations

import os
import time


def nothing(x):
    return x


def nap(seconds):
    time.sleep(seconds)


def noted(path, x):
    """It leaves a line, and takes 5 ms."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\n" % x)
    os.close(fd)
    time.sleep(0.005)
    return x
