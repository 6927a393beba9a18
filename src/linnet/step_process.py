"""Run a module as `python -m` does, and end without taking the interpreter apart.

A step that has imported torch or MLflow would spend 1 to 4 seconds on that, looking for garbage in
memory that is given back anyway. What ends by itself does so first: threads, and whatever was
registered with `atexit`. A step that fails ends as Python ends.

    python -m linnet.step_process MODULE [ARGUMENT]…
"""

import atexit
import os
import runpy
import sys


def main() -> None:
    """Run the module that the arguments name."""
    ended_well = False

    # The first to be registered is the last to be called.
    @atexit.register
    def end() -> None:
        if ended_well:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    ended_well = True


if __name__ == "__main__":
    main()
