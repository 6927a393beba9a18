"""A search whose workers share a real PostgreSQL."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from linnet.training.search_report import conclude
from tests.training.conftest import SIZES, write_dataset
from tests.training.test_search import search

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]


def test_two_workers_share_a_new_database(empty_postgres: str, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", SIZES)
    script = "-m", "tests.training.killed_search", dataset, tmp_path / "workspace", "together"
    done = subprocess.run(
        [sys.executable, "-W", "error", *script],
        env={**os.environ, "LINNET_SEARCH_STORAGE": empty_postgres},
        text=True,
        capture_output=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    shared = search(dataset, tmp_path / "workspace", trials=6, storage=empty_postgres)
    report = conclude(shared, tmp_path / "found")
    assert len(report.trials) == 6
    assert ":***@" in report.storage
    assert not (tmp_path / "workspace" / "search.db").exists()
