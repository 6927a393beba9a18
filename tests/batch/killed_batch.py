"""Answer pictures once to the end, and again killed at many moments; each in a child.

Usage: killed_batch.py SOURCE RELEASE ROOT COUNT…; outputs come out in ROOT. A moment is the n-th
time that a file takes its place. What was written after a kill is told in ROOT/<n>.again.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

from linnet.batch.predicting import batch
from linnet.batch.settings import BatchSettings
from linnet.settings import SourceSettings


def main() -> None:
    source, release, root = sys.argv[1:4]
    for moment in (0, *map(int, sys.argv[4:])):
        output = Path(root) / str(moment)
        if moment:
            assert in_child(source, release, output, die_at=moment) == -signal.SIGKILL, moment
            before = {path: path.stat().st_mtime_ns for path in output.rglob("*.json")}
        assert in_child(source, release, output) == 0, moment
        if moment:
            kept = [path for path, when in before.items() if path.stat().st_mtime_ns == when]
            Path(f"{output}.kept").write_text("\n".join(path.name for path in kept))


def in_child(source: str, release: str, output: Path, die_at: int = 0) -> int:
    """Return the exit status of a child that answers until it is killed, if it is."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if die_at:
                kill_at_rename(die_at)
            batch(SourceSettings(uri=source), release, str(output), BatchSettings(part_pictures=4))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_rename(count: int) -> None:
    seen = 0

    def look(event: str, _: object) -> None:
        nonlocal seen
        if event == "os.rename":
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


if __name__ == "__main__":
    main()
