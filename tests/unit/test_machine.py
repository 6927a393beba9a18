"""How many CPUs and how much memory there are for us."""

import os
from pathlib import Path

import pytest

from linnet.machine import available_cpus, cgroup_memory, cpu_quota
from tests.pictures import write_tree


def test_there_is_at_least_one_cpu_and_no_more_than_the_scheduler_allows() -> None:
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


CASES = {
    "no limit": ({"cpu.max": b"max 100000\n"}, b"0::/\n", None),
    "container, version 2": ({"cpu.max": b"150000 100000\n"}, b"0::/\n", 1.5),
    "a parent's limit": (
        {"pods/cpu.max": b"200000 100000\n", "pods/one/cpu.max": b"max 100000\n"},
        b"0::/pods/one\n",
        2.0,
    ),
    "the tightest of two": (
        {"pods/cpu.max": b"400000 100000\n", "pods/one/cpu.max": b"50000 100000\n"},
        b"0::/pods/one\n",
        0.5,
    ),
    "container, version 1": (
        {"cpu/cpu.cfs_quota_us": b"300000\n", "cpu/cpu.cfs_period_us": b"100000\n"},
        b"4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
        3.0,
    ),
    "version 1, no limit": (
        {"cpu/cpu.cfs_quota_us": b"-1\n", "cpu/cpu.cfs_period_us": b"100000\n"},
        b"4:cpu,cpuacct:/\n",
        None,
    ),
    "nothing mounted": ({}, b"0::/\n", None),
}


@pytest.mark.parametrize(("files", "own", "expected"), CASES.values(), ids=list(CASES))
def test_the_quota_is_read_from_either_version_of_cgroups(
    tmp_path: Path, files: dict[str, bytes], own: bytes, expected: float | None
) -> None:
    cgroups = write_tree(tmp_path / "cgroup", files)
    own_cgroup = tmp_path / "self"
    own_cgroup.write_bytes(own)
    assert cpu_quota(cgroups, own_cgroup) == expected


def test_a_system_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "absent", tmp_path / "absent-too") is None


MEMORY = {
    "no limit": ({"memory.max": b"max\n"}, b"0::/\n", None),
    "container, version 2": ({"memory.max": b"1073741824\n"}, b"0::/\n", 1 << 30),
    "a parent's limit": (
        {"pods/memory.max": b"4096\n", "pods/one/memory.max": b"8192\n"},
        b"0::/pods/one\n",
        4096,
    ),
    "container, version 1": (
        {"memory/memory.limit_in_bytes": b"8192\n"},
        b"4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
        8192,
    ),
    "version 1, no limit": (
        {"memory/memory.limit_in_bytes": b"9223372036854771712\n"},
        b"3:memory:/\n",
        None,
    ),
}


@pytest.mark.parametrize(("files", "own", "expected"), MEMORY.values(), ids=list(MEMORY))
def test_the_limit_on_memory_is_read_from_either_version_of_cgroups(
    tmp_path: Path, files: dict[str, bytes], own: bytes, expected: int | None
) -> None:
    cgroups = write_tree(tmp_path / "cgroup", files)
    own_cgroup = tmp_path / "self"
    own_cgroup.write_bytes(own)
    assert cgroup_memory(cgroups, own_cgroup) == expected
