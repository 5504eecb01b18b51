"""What the pool's side makes of a template's answers."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator

import pytest

from helpers import stop
from prefork._system import template
from prefork._system.lifeline import Lifeline
from prefork._system.resources import read_text
from prefork._system.template import Template
from prefork._system.template_wire import FIRST, Answer, send


@pytest.fixture
def asked() -> Iterator[Template]:
    """One whose process is played by the test."""
    lifeline = Lifeline()
    made = Template(lifeline.end)
    yield made
    made.close()
    lifeline.cut()


@pytest.mark.parametrize(
    "answer",
    [Answer(FIRST, 1234), Answer(FIRST, error=errno.EMFILE)],
    ids=["its descriptor got lost", "it had none"],
)
def test_a_first_worker_without_a_descriptor_is_asked_for_once(
    asked: Template, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells of that worker once. Whoever asks again, to get rid of it, does not wait in vain for
    another answer, which would hold up the whole pool."""
    monkeypatch.setattr(template, "ANSWER_SECONDS", 0.01)
    send(asked.newborn_fd, answer)
    for _ in range(2):
        with pytest.raises(OSError, match="Too many open files") as caught:
            asked.first()
        assert caught.value.errno == errno.EMFILE
    assert not asked.is_lost


NAMED = r"""
with open("/proc/self/comm", "wb") as name:
    name.write(b"half a letter: \xd0"[-15:])
print(flush=True)
input()
"""


def test_a_process_that_is_stopped_may_have_any_name() -> None:
    """Names are bytes: the system cuts a long one in the midst of a letter."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", NAMED], stdin=pipe, stdout=pipe) as process:
        try:
            process.stdout.readline()
            assert "letter: \udcd0)" in read_text(f"/proc/{process.pid}/stat")
            assert not template._is_stopped(process.pid)
            stop(process.pid)
            assert template._is_stopped(process.pid)
        finally:
            process.kill()
