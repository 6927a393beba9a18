"""Compile every pipeline to IR YAML for `kfp run create -f` and `linnet run`.

    python -m pipelines.compile [FOLDER]

The images' prefix and tag come from LINNET_IMAGE_PREFIX and LINNET_IMAGE_TAG, see
`components/step.py`, the kind of cluster from LINNET_OVERLAY, see `pipelines/placement.py`.
"""

import shutil
import sys
from pathlib import Path

from kfp import compiler

from pipelines.batch_predict import batch_predict
from pipelines.search_and_release import search_and_release
from pipelines.train_and_release import train_and_release
from pipelines.watch_drift import watch_drift

SETTINGS = Path(__file__).parent / "settings"
PIPELINES = {
    "train_and_release": train_and_release,
    "search_and_release": search_and_release,
    "watch_drift": watch_drift,
    "batch_predict": batch_predict,
}


def compile_all(folder: Path) -> list[Path]:
    """Write `<pipeline>.yaml` and the built-in run's settings to `folder`; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, pipeline in PIPELINES.items():
        files.append(folder / f"{name}.yaml")
        compiler.Compiler().compile(pipeline, str(files[-1]))
        _drop_header(files[-1])
    files.append(Path(shutil.copy(SETTINGS / "digits.yaml", folder)))
    return files


def _drop_header(file: Path) -> None:
    """Remove kfp's comments, whose order changes: one pipeline compiles to the same bytes."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("#")), encoding="utf-8")


if __name__ == "__main__":
    for file in compile_all(Path(sys.argv[1] if len(sys.argv) > 1 else "build/pipelines")):
        sys.stdout.write(f"{file}\n")
