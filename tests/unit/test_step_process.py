"""How the process of a step of a local run ends."""

import subprocess
import sys
from pathlib import Path

import pytest

NOTED = """
import atexit, sys, threading, time

class Slow:
    def __del__(self):
        print("taken apart")

def later():
    time.sleep(0.2)
    print("thread ended")

kept = Slow()
atexit.register(print, "told at exit")
threading.Thread(target=later).start()
print(sys.argv[1:], __name__)
"""


def ended(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "a_step.py").write_text(program)
    command = [sys.executable, "-m", "linnet.step_process", "a_step", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_step_that_went_well_ends_its_threads_and_is_not_taken_apart(tmp_path: Path) -> None:
    done = ended(tmp_path, NOTED, "--each", "1")
    assert done.returncode == 0, done.stderr
    lines = ["['--each', '1'] __main__", "thread ended", "told at exit"]
    assert done.stdout.splitlines() == lines


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("raise ValueError('no such thing')", 1, "ValueError: no such thing"),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('gone')", 1, "gone"),
    ],
)
def test_a_step_that_fails_ends_as_python_ends(
    tmp_path: Path, program: str, code: int, said: str
) -> None:
    done = ended(tmp_path, program)
    assert done.returncode == code
    assert said in done.stderr
