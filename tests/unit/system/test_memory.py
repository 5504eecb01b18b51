"""How much memory there is in use, and whether the kernel has killed for the lack of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefork._system.resources import OutOfMemoryKills, ResidentMemory, resident

MIB = 1 << 20


def test_the_resident_memory_is_what_is_in_use_now():
    memory = ResidentMemory()
    before = memory.now()
    assert resident(os.getpid()) == pytest.approx(before, rel=0.2)
    data = bytearray(b"x") * (200 * MIB)
    assert memory.now() >= before + 190 * 1024
    del data
    assert memory.now() < before + 100 * 1024


def test_a_process_that_is_gone_has_none():
    assert resident(2**22 + 1) is None


def machine(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


VMSTAT = {"proc/vmstat": "nr_free_pages 1\noom_kill 5\n", "proc/self/cgroup": "0::/a\n"}
KERNELS = {
    "cgroup v2": (
        {**VMSTAT, "sys/fs/cgroup/a/memory.events": "low 0\noom 1\noom_kill 3\n"},
        "sys/fs/cgroup/a/memory.events",
    ),
    "cgroup v1": (
        {
            **VMSTAT,
            "proc/self/cgroup": "4:memory:/b\n0::/\n",
            "sys/fs/cgroup/memory/b/memory.oom_control": "under_oom 0\noom_kill 3\n",
        },
        "sys/fs/cgroup/memory/b/memory.oom_control",
    ),
    "no control groups": (VMSTAT, "proc/vmstat"),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kills_by_the_kernel_are_told_once(tmp_path, kernel):
    files, counter = KERNELS[kernel]
    kills = OutOfMemoryKills(machine(tmp_path, files))
    assert not kills.any_new()
    (tmp_path / counter).write_text("oom_kill 6\n")
    assert kills.any_new()
    (tmp_path / counter).write_text("oom_kill 8\n")
    assert kills.any_new()  # two at once: two workers may have ended so
    assert kills.any_new()
    assert not kills.any_new()


def test_a_kill_of_long_ago_was_somebody_elses(tmp_path, monkeypatch):
    files, counter = KERNELS["cgroup v2"]
    kills = OutOfMemoryKills(machine(tmp_path, files))
    monkeypatch.setattr("prefork._system.resources.TELLING_SECONDS", -1.0)
    (tmp_path / counter).write_text("oom_kill 9\n")
    kills.any_new()
    assert not kills.any_new()


def test_a_kernel_that_does_not_count(tmp_path):
    assert not OutOfMemoryKills(machine(tmp_path, {"proc/vmstat": "nr_free_pages 1\n"})).any_new()
