"""Search in a child that is killed in its third trial, or in two children at once.

Forks before torch has computed anything. Usage: killed_search.py DATASET WORKSPACE [together].
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_pre_hook

from linnet.training.search import run_trials
from tests.training.test_search import search

# Four updates make an epoch, three epochs a trial: in the second epoch of the third trial.
KILLED_AT_UPDATE = 30


def main() -> None:
    dataset, workspace = Path(sys.argv[1]), Path(sys.argv[2])
    storage = os.environ.get("LINNET_SEARCH_STORAGE")

    def work() -> None:
        run_trials(search(dataset, workspace, trials=6, storage=storage))

    if sys.argv[3:] == ["together"]:
        children = [_child(work), _child(work)]
        assert [_ended(child) for child in children] == [0, 0]
    else:
        assert _ended(_child(lambda: (_die_at(KILLED_AT_UPDATE), work()))) == -signal.SIGKILL


def _child(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_at(update: int) -> None:
    seen = 0

    def look(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == update:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(look)


if __name__ == "__main__":
    main()
