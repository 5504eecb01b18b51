"""Which control groups this process is in: what it may use is said there (cgroups(7))."""

from __future__ import annotations

from pathlib import Path

__all__ = ["control_groups", "read_text"]


def control_groups(controller: str, root: Path = Path("/")) -> list[Path]:
    """The folders of this process's control group of a v1 controller ("": of v2), and of those
    above it: none if there is no such hierarchy."""
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            folder = root / "sys/fs/cgroup" / controller
            own = folder / path.lstrip("/")
            groups = [own, *own.parents]
            return groups[: groups.index(folder) + 1] if folder in groups else []
    return []


def read_text(path: Path) -> str:
    """The content of a file, or "" if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
