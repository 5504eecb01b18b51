"""Which control groups this process is in: what it may use is said there (cgroups(7))."""

from __future__ import annotations

__all__ = ["control_groups", "read_text"]


def control_groups(controller: str, root: str = "") -> list[str]:
    """The folders of this process's control group of a v1 controller ("": of v2), and of those
    above it: none if there is no such hierarchy."""
    for line in read_text(f"{root}/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            names = [name for name in path.split("/") if name]
            top = f"{root}/sys/fs/cgroup/{controller}".rstrip("/")
            return ["/".join([top, *names[:depth]]) for depth in range(len(names), -1, -1)]
    return []


def read_text(path: str) -> str:
    """The content of a file, or "" if it cannot be read."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
