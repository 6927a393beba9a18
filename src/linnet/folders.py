"""Artifact folders that are either whole or not there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from linnet.errors import StoreError
from linnet.stores.objects import folder_errors


@contextmanager
def written_whole(destination: Path, manifest: str) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes the place of `destination` if the block ends well.

    `destination` may be absent, empty (Kubeflow Pipelines makes such folders) or hold an earlier
    artifact of the same kind, told by its `manifest`. On an error it is as it was.

    Raises:
        StoreError: something else is at `destination`, or it can't be written.
    """
    with folder_errors("write", destination):
        if (
            destination.exists()
            and not (destination / manifest).is_file()
            and any(destination.iterdir())
        ):
            raise StoreError(
                f"{destination} is not empty and holds no {manifest}, so it is left alone: "
                "choose another destination"
            )
        partial = destination.with_name(f".{destination.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if destination.exists():
                shutil.rmtree(destination)
            partial.rename(destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
