"""Writing a dataset's Parquet shards: the pictures' original bytes beside what is known of them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from linnet.errors import SourceError

# A reader holds one row group at a time, so neither many nor huge pictures fill its memory.
_ROW_GROUP_PICTURES = 128
_ROW_GROUP_BYTES = 2 * 2**20


@dataclass(frozen=True, slots=True)
class Entry:
    """One row to write; the bytes are read from `path` only when it is written."""

    path: Path
    key: str
    label: int
    sha256: bytes
    width: int
    height: int
    group: str | None
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file to write, or to leave empty but with its columns."""

    path: Path
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]


def write_shard(shard: Shard) -> int:
    """Write the shard and return how many pictures it has.

    Raises:
        SourceError: a file changed since it was examined.
        OSError: the file can't be written or a picture can't be read again.
    """
    schema = _schema(shard.classes)
    with pq.ParquetWriter(
        shard.path,
        schema,
        compression="none",
        use_dictionary=["label", "group"],
        write_statistics=["key", "label"],
    ) as writer:
        for rows in _row_groups(shard.entries):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return len(shard.entries)


def _row_groups(entries: Iterable[Entry]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    held = 0
    for entry in entries:
        encoded = _read_again(entry)
        if rows and (len(rows) == _ROW_GROUP_PICTURES or held + len(encoded) > _ROW_GROUP_BYTES):
            yield rows
            rows, held = [], 0
        rows.append(_row(entry, encoded))
        held += len(encoded)
    if rows:
        yield rows


def _row(entry: Entry, encoded: bytes) -> dict[str, Any]:
    return {
        "key": entry.key,
        "image": {"bytes": encoded, "path": entry.key},
        "label": entry.label,
        "sha256": entry.sha256.hex(),
        "width": entry.width,
        "height": entry.height,
        "group": entry.group,
        "attributes": [{"key": k, "value": v} for k, v in entry.attributes.items()],
    }


def _read_again(entry: Entry) -> bytes:
    encoded = entry.path.read_bytes()
    if hashlib.sha256(encoded).digest() != entry.sha256:
        raise SourceError(
            f"{entry.path} changed while it was being ingested: leave the source alone until "
            "ingest is done, and run it again"
        )
    return encoded


def _schema(classes: tuple[str, ...]) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [
        ("key", pa.string()),
        ("image", image),
        ("label", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("group", pa.string()),
        # A list of pairs and not a map, which Hugging Face `datasets` can't read.
        ("attributes", pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))),
    ]
    return pa.schema(fields, metadata={"huggingface": json.dumps(_hugging_face(classes))})


def _hugging_face(classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the metadata by which Hugging Face `datasets` shows pictures and class names."""

    def value(dtype: str) -> dict[str, str]:
        return {"dtype": dtype, "_type": "Value"}

    features = {
        "key": value("string"),
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "sha256": value("string"),
        "width": value("int32"),
        "height": value("int32"),
        "group": value("string"),
        "attributes": [{"key": value("string"), "value": value("string")}],
    }
    return {"info": {"features": features}}
