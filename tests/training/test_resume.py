import json
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = {
    "network": "test_resnet",
    "weights": "none",
    "normalisation": "dataset",
    "size_px": 16,
    "batch_size": 16,
    "head": {"epochs": 2, "lr": 0.01},
    "whole": {"epochs": 3, "lr": 0.003, "augmentation": "strong", "warmup_epochs": 1},
    "dropout": 0.2,
    "average_weights": 0.9,
    "precision": "32",
}
# Four updates make an epoch; the first renames are those of the caches.
MOMENTS = [("update", n) for n in (6, 9, 14)] + [("rename", n) for n in (1, 6, 9, 12, 18)]


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    given = json.dumps({"settings": SETTINGS, "moments": MOMENTS})
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, "-W", "error", script, dataset, root]
    done = subprocess.run(command, input=given, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: "-".join(map(str, moment)))
def test_a_killed_run_ends_as_the_uninterrupted_one_bit_for_bit(
    runs: Path, moment: tuple[str, int]
) -> None:
    name = "-".join(map(str, moment))
    assert_same(runs / "whole-run", runs / name)


def test_a_run_killed_again_and_again_comes_to_the_same_end(runs: Path) -> None:
    assert int((runs / "kills").read_text()) > 3
    assert_same(runs / "whole-run", runs / "killed-again-and-again")


def test_the_report_says_whether_the_run_was_resumed(runs: Path) -> None:
    assert (runs / "whole-run" / "resumed").read_text() == "False"
    assert (runs / "update-14" / "resumed").read_text() == "True"


def test_a_finished_run_leaves_no_state_behind(runs: Path) -> None:
    for run in runs.glob("*/workspace/training"):
        assert list(run.iterdir()) == []


def assert_same(expected: Path, found: Path) -> None:
    wanted = {path.name: path for path in (expected / "checkpoint").iterdir()}
    assert {path.name for path in (found / "checkpoint").iterdir()} == set(wanted)
    for name, path in wanted.items():
        other = found / "checkpoint" / name
        if name == "history.csv":
            assert _without_times(other) == _without_times(path)
        elif name == "model.json":
            assert _without_revision(other) == _without_revision(path)
        else:
            assert other.read_bytes() == path.read_bytes(), name


def _without_revision(manifest: Path) -> dict[str, object]:
    return json.loads(manifest.read_text()) | {"code_revision": "may move on under a test"}


def _without_times(history: Path) -> list[list[str]]:
    rows = [line.split(",") for line in history.read_text().splitlines()]
    timed = {
        column for column, name in enumerate(rows[0]) if name == "seconds" or name.endswith("_s")
    }
    return [[cell for column, cell in enumerate(row) if column not in timed] for row in rows]
