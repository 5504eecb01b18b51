"""What the pool's side makes of a template's answers."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from prefork._system import template
from prefork._system.lifeline import Lifeline
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
