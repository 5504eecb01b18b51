"""What no node of the tests may run, or even import."""

from __future__ import annotations

import os
from pathlib import Path

if path := os.environ.get("CLUSTER_SECRET"):
    Path(path).write_text("this was imported")


def tell():
    return "the secret"
