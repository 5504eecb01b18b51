"""The page "Past one machine" does what it says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from helpers import DEADLINE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "cluster.md"
FILE = re.compile(r"```\{code-block\} python\n:caption: (\S+)\n(.*?)```", re.DOTALL)


def test_five_minutes(broker, tmp_path):
    text = PAGE.read_text()
    for name, source in FILE.findall(text):
        (tmp_path / name).write_text(source)
    commands = re.findall(r"^    (celery -A .*)$", text, re.MULTILINE)
    assert len(commands) == 2
    inherited = os.environ.get("PYTHONPATH", "")
    env = {
        **os.environ,
        "BROKER": broker.url,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), inherited])),
    }
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((tmp_path / "log").open("wb"))
        nodes = []
        for command in commands:
            words = command.replace("-c 4", "-c 1").split()[1:]
            nodes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "celery", *words],
                    env=env,
                    cwd=tmp_path,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
            stack.callback(_kill, nodes[-1])
        out = subprocess.check_output(
            [sys.executable, str(tmp_path / "client.py")], env=env, text=True, timeout=DEADLINE
        )
        expected = re.search(r"```text\n(.*?)```", text, re.DOTALL)
        assert expected is not None
        assert out == expected[1]
        for node in nodes:
            node.send_signal(signal.SIGTERM)
            assert node.wait(DEADLINE) == 0, (tmp_path / "log").read_text()


def _kill(node: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait()
