"""The example project does what its page says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import DEADLINE

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "celery"


@pytest.fixture
def shop(redis, tmp_path):
    """The worker of the project; the environment for its client."""
    env = {
        **os.environ,
        "SHOP_REDIS": f"redis://127.0.0.1:{redis.port}/5",
        "PYTHONPATH": str(EXAMPLE),
    }
    env.pop("CELERY_CUSTOM_WORKER_POOL", None)
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", "worker", "--loglevel", "INFO"],
            env=env,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
        yield env
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(DEADLINE) == 0


def test_it(shop):
    text = subprocess.check_output(
        [sys.executable, str(EXAMPLE / "order.py")], env=shop, text=True, timeout=DEADLINE
    )
    assert "their sum: 6187.72" in text
    assert "was killed by SIGSEGV while it ran shop.crash" in text
    assert "in string_at" in text
    assert "TimeLimitExceeded(1)" in text or "TimeLimitExceeded(1,)" in text, text
    assert "has done" in text
