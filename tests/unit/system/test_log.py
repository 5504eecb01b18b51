"""What a pool has to say, and the thread that says it."""

from __future__ import annotations

import sys
import threading

from helpers import DEADLINE
from prefork._system.log import ERROR, Log


def test_nobody_is_left_who_writes_when_all_is_written() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: a thread may be interrupted anywhere
    try:
        for _ in range(300):
            log = Log()
            log.note(ERROR, "for a test")
            log.flush(DEADLINE)
            assert "prefork-Log" not in [thread.name for thread in threading.enumerate()]
    finally:
        sys.setswitchinterval(interval)
