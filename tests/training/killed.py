"""Train once to the end, and again with the process killed at many moments; each in a child.

Forks before torch has computed anything, so a run costs no imports. Usage: killed.py DATASET ROOT,
with {"settings": …, "moments": [[kind, count], …]} on stdin; checkpoints come out in ROOT.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_pre_hook

import linnet.training.probe
import linnet.training.stage
import linnet.training.tracked  # noqa: F401
from linnet.settings import TrainSettings
from linnet.training import fit

Moment = tuple[str, int]


def main() -> None:
    dataset, root = Path(sys.argv[1]), Path(sys.argv[2])
    given = json.load(sys.stdin)
    settings = TrainSettings.parse(given["settings"])

    def train(name: str) -> Callable[[], None]:
        return lambda: _train(dataset, root / name, settings)

    assert _in_child(train("whole-run"), None) == 0
    for kind, count in given["moments"]:
        name = f"{kind}-{count}"
        assert _in_child(train(name), (kind, count)) == -signal.SIGKILL, name
        assert _in_child(train(name), None) == 0, name
    kills = 0
    while _in_child(train("killed-again-and-again"), ("rename", 6)) != 0:
        kills += 1
        assert kills < 20, "killed so often that it never gets on"
    (root / "kills").write_text(str(kills))


def _train(dataset: Path, place: Path, settings: TrainSettings) -> None:
    report = fit(dataset, place / "checkpoint", settings, workspace=place / "workspace")
    (place / "resumed").write_text(str(report.resumed))


def _in_child(work: Callable[[], None], moment: Moment | None) -> int:
    """Return the exit status of a child that works until it is killed, if it is."""
    child = os.fork()
    if child == 0:
        if moment is not None:
            _die_at(*moment)
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_at(kind: str, count: int) -> None:
    """Kill this process at its n-th rename of a file or n-th backward pass."""
    seen = 0

    def look(event: str) -> None:
        nonlocal seen
        seen += event == kind
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(lambda event, _: look("rename") if event == "os.rename" else None)
    register_optimizer_step_pre_hook(lambda *_: look("update"))


if __name__ == "__main__":
    main()
