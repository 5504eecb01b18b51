"""What the tests themselves start goes with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import Script, eventually, has_ended, processes

HERE = Path(__file__).parent

SOURCE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import servers
server = getattr(servers, sys.argv[2])(Path(sys.argv[3]))
epmd = getattr(server, "_epmd", None)
print(server.process.pid, epmd.pid if epmd else "", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["Redis", "RabbitMQ"])
def test_a_server_ends_with_tests_that_are_killed(kind, tmp_path):
    script = Script(SOURCE, HERE, kind, tmp_path)
    try:
        _, out, _ = script.finish()
        server, *others = map(int, out.split())
        eventually(lambda: not any(p.group == server for p in processes()), f"{kind} ends")
        for pid in others:
            eventually(lambda pid=pid: has_ended(pid), "and what it needs")
    finally:
        script.close()
