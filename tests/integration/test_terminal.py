"""Tasks and the terminal that the program has: workers are in its background."""

from __future__ import annotations

import os
import pty
import signal
import sys

import pytest

from helpers import METHODS, eventually

PROGRAM = """
import os, sys, termios
from prefork import Pool

def show():
    print("shown", flush=True)

def settle():
    termios.tcsetattr(0, termios.TCSANOW, termios.tcgetattr(0))

def settle_elsewhere():
    assert os.system("stty sane </dev/tty") == 0

def ask():
    try:
        open("/dev/tty").readline()
    except OSError:
        return
    raise AssertionError("it was in the foreground")

if __name__ == "__main__":
    os.system("stty tostop")
    with Pool(1, context=sys.argv[1]) as pool:
        for task in (show, settle, settle_elsewhere, ask):
            pool.apply(task)
    print("well done", flush=True)
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_task_that_uses_the_terminal_is_not_stopped(method, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        os.execv(sys.executable, [sys.executable, str(path), method])
    shown = bytearray()
    os.set_blocking(terminal, False)

    def has_ended() -> bool:
        try:
            shown.extend(os.read(terminal, 4096))
        except BlockingIOError:
            return False
        except OSError:  # nobody has the other end any more
            return True
        return False

    try:
        eventually(has_ended, "the end of the program")
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert b"well done" in shown, bytes(shown).decode()
    assert b"shown" in shown
