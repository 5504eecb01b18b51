"""The exceptions themselves."""

from __future__ import annotations

import errno
import importlib

from prefork import errors


def test_a_traceback_comes_without_a_descriptor_to_import_its_class_with(monkeypatch):
    def none_left(name):
        raise OSError(errno.EMFILE, "no descriptor is left")

    monkeypatch.setattr(importlib, "import_module", none_left)
    assert "in task" in str(errors.remote_traceback("line 3, in task"))
