"""What is public changes only when somebody means it to."""

from __future__ import annotations

import difflib

import pytest

import public_api


def test_what_is_public_is_what_was_recorded() -> None:
    before, now = public_api.RECORD.read_text(), public_api.record()
    changes = difflib.unified_diff(
        before.splitlines(), now.splitlines(), "recorded", "now", n=2, lineterm=""
    )
    if before != now:
        pytest.fail(
            "what is public has changed. If it is meant to, `python tests/public_api.py` records "
            "it, and the change needs a news fragment:\n" + "\n".join(changes),
            pytrace=False,
        )
