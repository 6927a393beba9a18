"""What this process may use of the machine it runs on."""

import os
import resource
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


def available_cpus() -> int:
    """Return how many CPUs this process may use, at least 1.

    The smaller of the scheduler's affinity mask and the cgroup's quota (version 1 or 2, rounded
    down): inside a container with a CPU limit, `os.cpu_count()` sees the whole host instead.
    """
    cpus = len(os.sched_getaffinity(0))
    quota = cpu_quota(_CGROUPS, _OWN_CGROUP)
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def cpu_quota(cgroups: Path, own_cgroup: Path) -> float | None:
    """Return the tightest CPU quota, in CPUs, on the way from this process's cgroup to the root.

    `cgroups` is where the cgroup file system is mounted, `own_cgroup` is `/proc/self/cgroup`.
    None means that nothing limits it.
    """
    quotas = [
        quota
        for folder in _cgroup_folders(cgroups, own_cgroup, "cpu")
        for quota in (_quota_v2(folder), _quota_v1(folder))
        if quota is not None
    ]
    return min(quotas, default=None)


def memory_limit() -> int | None:
    """Return how many bytes of memory this process may use, None where nothing limits it.

    The smallest of its cgroup's limit (version 1 or 2) and of the limits on its address space and
    its data.
    """
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    cgroup = cgroup_memory(_CGROUPS, _OWN_CGROUP)
    found = [limit for limit in (*limits, cgroup) if limit not in (None, resource.RLIM_INFINITY)]
    return min(found, default=None)


def int8_saturates(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether products of 8-bit integers may overflow here: on x86 without VNNI.

    Weights of 7 bits are the remedy. Source: ONNX Runtime, Quantize ONNX models.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    return flags is not None and not {"avx512_vnni", "avx_vnni"} & set(flags)


def cgroup_memory(cgroups: Path, own_cgroup: Path) -> int | None:
    """Return the tightest limit on memory, in bytes, from this process's cgroup to the root."""
    limits = [
        limit
        for folder in _cgroup_folders(cgroups, own_cgroup, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _bytes_in(folder / name)) is not None
    ]
    return min(limits, default=None)


def _bytes_in(path: Path) -> int | None:
    try:
        limit = int(path.read_text())
    except (OSError, ValueError):
        return None
    # Version 1 has a huge number for "no limit".
    return limit if limit < 1 << 60 else None


def _cgroup_folders(cgroups: Path, own_cgroup: Path, controller: str) -> set[Path]:
    """Return the folders that may hold a limit; in a container the mount's root is our own."""
    folders = {cgroups, cgroups / controller}
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        own = Path(path.lstrip("/"))
        folders.update(root / parent for parent in (own, *own.parents))
    return folders


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
