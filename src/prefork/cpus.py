"""How many CPUs this process may really use."""

from __future__ import annotations

import math
import os

from prefork.cgroups import control_groups, read_text

__all__ = ["available_cpus"]


def available_cpus(root: str = "") -> int:
    """The CPUs of the affinity mask, or fewer if a control group's quota allows less; at least 1.

    The quota is that of this process's control group or the tightest above it: `cpu.max` of
    cgroup v2, `cpu.cfs_quota_us` and `cpu.cfs_period_us` of v1 (cgroups(7)). A quota of 1.5 CPUs
    counts as 2, so that it can be used up.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        cpus = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quota = _quota(root)
    return max(1, min(cpus, math.ceil(quota))) if quota else cpus


def _quota(root: str) -> float | None:
    quotas = [
        *map(_quota_v2, control_groups("", root)),
        *map(_quota_v1, control_groups("cpu", root)),
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(group: str) -> float | None:
    fields = read_text(f"{group}/cpu.max").split()
    return int(fields[0]) / int(fields[1]) if fields and fields[0] != "max" else None


def _quota_v1(group: str) -> float | None:
    quota, period = read_text(f"{group}/cpu.cfs_quota_us"), read_text(f"{group}/cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None
