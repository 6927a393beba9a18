"""The list of triggers in a real MinIO: many at once, one let through, none taken for a release."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from linnet.errors import StoreError
from linnet.release.bundle import list_releases
from linnet.triggers.ledger import Claim, Ledger, Trigger
from tests.services.conftest import Bucket

pytestmark = pytest.mark.services


def ledger_in(minio: Bucket, folder: Path, root: str = "releases") -> Ledger:
    place = f"s3://{minio.name}/{root}"
    return Ledger("shades", minio.connections(folder, release_root=place))


def trigger(key: str) -> Trigger:
    return Trigger("shades", "dataset", key, "ada", "new pictures")


def at_once(ledgers: list[Ledger], keys: list[str]) -> list[Claim]:
    """Return what became of a trigger for each key, all claimed in the same moment."""
    together = Barrier(len(keys))

    def claim(ledger: Ledger, key: str) -> Claim:
        together.wait()
        return ledger.claim(trigger(key), at_least_s=0)

    with ThreadPoolExecutor(len(keys)) as threads:
        return list(threads.map(claim, ledgers, keys))


def test_the_same_trigger_ten_times_at_once_is_let_through_once(
    minio: Bucket, tmp_path: Path
) -> None:
    ledgers = [ledger_in(minio, tmp_path) for _ in range(10)]
    claims = at_once(ledgers, ["same"] * 10)
    assert Counter(one.outcome for one in claims) == {"claimed": 1, "duplicate": 9}
    assert {one.number for one in claims} == {1}


def test_different_triggers_at_once_each_get_a_number_and_what_came_of_them(
    minio: Bucket, tmp_path: Path
) -> None:
    ledgers = [ledger_in(minio, tmp_path) for _ in range(5)]
    claims = at_once(ledgers, [f"key-{number}" for number in range(5)])
    assert sorted(one.number for one in claims) == [1, 2, 3, 4, 5]
    ledgers[0].note(3, "released", run="r", words="s3://there/v1")
    entries = ledgers[1].entries()
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.state for entry in entries].count("claimed") == 4
    assert (entries[2].state, entries[2].words) == ("released", "s3://there/v1")
    connections = minio.connections(tmp_path)
    assert list_releases(f"s3://{minio.name}/releases", connections=connections) == []


def test_a_bucket_that_is_not_there_is_an_error_and_lets_nothing_through(
    minio: Bucket, tmp_path: Path
) -> None:
    minio.client().remove_bucket(minio.name)
    with pytest.raises(StoreError, match=minio.name):
        ledger_in(minio, tmp_path).claim(trigger("a"), at_least_s=0)
