"""Pictures to look at: of a prediction log, a folder, a dataset, in the file system or in S3."""

import mimetypes
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from linnet.data.dataset import MANIFEST, Dataset
from linnet.errors import DriftError, StoreAbsentError
from linnet.monitoring.settings import DriftSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import ObjectStore, open_store

# Columns of the prediction log, `linnet.inference.prediction_log`.
PICTURE, TIME = "picture", "time"


def pictures(
    source: str, settings: DriftSettings, connections: Connections | None
) -> Iterator[bytes]:
    """Yield encoded pictures of a source, at most so many as the settings say.

    Of a log the newest first, of a folder drawn ones, of a dataset its test pictures.

    Raises:
        DriftError: there are none, or the log is not one.
        StoreError: or a subclass: the store can't be reached or denies.
    """
    if (Path(source) / MANIFEST).is_file():
        rows = Dataset.open(Path(source)).pictures("test")
        yield from islice((row.encoded for row in rows), settings.pictures)
        return
    store, prefix = open_store(source, connections)
    keys = [entry.key for entry in store.entries(prefix)]
    parts = sorted((key for key in keys if key.endswith(".parquet")), reverse=True)
    if parts:
        yield from islice(_logged(store, parts, settings), settings.pictures)
        return
    files = [key for key in keys if _may_be_a_picture(key)]
    if not files:
        raise DriftError(
            f"{source} holds no pictures: give a folder of pictures, a prediction log or a "
            "dataset, as a path or s3://bucket/prefix"
        )
    random.Random(settings.seed).shuffle(files)
    for key in files[: settings.pictures]:
        yield store.read(key)


def _may_be_a_picture(key: str) -> bool:
    """Return whether a name is a picture's, or says nothing."""
    if any(part.startswith(".") for part in key.split("/")):
        return False
    guessed = mimetypes.guess_type(key)[0]
    return guessed is None or guessed.startswith("image/")


def _logged(store: ObjectStore, parts: list[str], settings: DriftSettings) -> Iterator[bytes]:
    """Yield the pictures of a log's parts, the newest rows first."""
    since = None
    if settings.hours is not None:
        since = datetime.now(UTC) - timedelta(hours=settings.hours)
    with TemporaryDirectory(prefix="linnet-log-") as scratch:
        for number, key in enumerate(parts):
            local = Path(scratch) / f"{number}.parquet"
            try:
                store.download(key, local)
            except StoreAbsentError:
                # The log's own retention has just taken it.
                continue
            rows = list(_rows(local, store.uri(key), since))
            local.unlink()
            yield from rows
            if since is not None and not rows:
                return


def _rows(path: Path, uri: str, since: datetime | None) -> Iterator[bytes]:
    """Yield a part's pictures, the newest first; a request whose picture was not kept has none."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=[TIME, PICTURE])
            times, found = table.column(TIME).to_pylist(), table.column(PICTURE).to_pylist()
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DriftError(
            f"{uri} is no part of a prediction log ({error}): expected Parquet with the columns "
            f"{TIME} and {PICTURE}, as the server's prediction log writes them"
        ) from error
    rows = ((at, picture) for at, picture in zip(times, found, strict=True) if picture)
    for at, picture in sorted(rows, key=lambda row: row[0], reverse=True):
        if since is None or at >= since:
            yield picture
